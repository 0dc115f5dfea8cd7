"""`Score`: a measure with its noise, from the same resampled pictures for every model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES = 2000
"""Times that the pictures are drawn again."""
LEVEL = 0.95
"""Of all intervals, unless another is asked for."""


@dataclass(frozen=True)
class Score:
    """A measure of one model, and what it would have been on other pictures like these.

    Attributes:
        value: on the pictures that were tested.
        samples: (resamples,) on pictures drawn from them again, with repetition (Efron's bootstrap). The same draws
            for every model, so that the noise that two models share is not in their difference.
        pictures: how many were tested.
    """

    value: float
    samples: np.ndarray
    pictures: int

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Between what the middle `level` of the samples lies."""
        low, high = np.quantile(self.samples, ((1 - level) / 2, (1 + level) / 2))
        return float(low), float(high)

    def difference(self, other: "Score", level: float = LEVEL) -> tuple[float, float, float]:
        """How much larger it is than another's, and between what that lies.

        From the deviation of the paired samples, as if they were normal: levels near 1, for many models at once, lie
        farther out than so many samples reach.
        """
        value, reach = self.value - other.value, NormalDist().inv_cdf((1 + level) / 2)
        deviation = float((self.samples - other.samples).std())
        return value, value - reach * deviation, value + reach * deviation


@cache
def resampled(count: int, seed: int = 0) -> np.ndarray:
    """How often each of `count` pictures is drawn: (resamples, count), rows that sum to `count`.

    >>> resampled(5).shape
    (2000, 5)
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def score(parts: Any, measure: Callable[[np.ndarray], np.ndarray]) -> Score:
    """The score of a measure of totals over pictures, such as the share that is right, or the mean IoU.

    Args:
        parts: (n, …) of each picture: what is added up.
        measure: from totals (r, …), each over n pictures drawn, to values (r,).
    """
    parts = np.asarray(parts, dtype=np.float64)
    flat = parts.reshape(len(parts), -1)
    totals = (resampled(len(parts)) @ flat).reshape(-1, *parts.shape[1:])
    return Score(float(measure(parts.sum(axis=0)[None])[0]), measure(totals), len(parts))


def mean_score(parts: Any) -> Score:
    """The score of an average over pictures: of what is right of each, 0…1, for example.

    >>> mean_score([0, 1, 1, 1]).value
    0.75
    """
    count = len(parts)
    return score(parts, lambda totals: totals / count)
