"""`Score`, a measure with its sampling noise, from the same resampled pictures for every model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
"""Number of bootstrap resamples of the pictures."""
LEVEL = 0.95
"""Default level of confidence intervals."""


@dataclass(frozen=True)
class Score:
    """A measure of one model, with bootstrap samples of it.

    Attributes:
        value: the measure on the test pictures.
        samples: (resamples,) the measure on pictures drawn from them with replacement (Efron's bootstrap). The draws
            are the same for every model, so that noise that two models share cancels in their difference.
        each: (n,) the measure on each test picture alone, in the order of the pictures.
    """

    value: float
    samples: np.ndarray
    each: np.ndarray

    @property
    def pictures(self) -> int:
        """The number of test pictures."""
        return len(self.each)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the ends of the interval that holds the middle `level` of the samples."""
        low, high = np.quantile(self.samples, ((1 - level) / 2, (1 + level) / 2))
        return float(low), float(high)

    def difference(self, other: "Score", level: float = LEVEL) -> tuple[float, float, float]:
        """Return how much larger this score is than another, and the ends of that difference's interval.

        The interval is that of a normal distribution with the deviation of the paired samples, since levels near 1,
        for many models at once, need quantiles that so few samples do not have.
        """
        value, quantile = self.value - other.value, NormalDist().inv_cdf((1 + level) / 2)
        margin = quantile * float((self.samples - other.samples).std())
        return value, value - margin, value + margin


@cache
def resampled(count: int, seed: int = 0) -> np.ndarray:
    """Return how often each resample draws each of `count` pictures: (resamples, count), rows that sum to `count`.

    >>> resampled(5).shape
    (2000, 5)
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def score(parts: ArrayLike, measure: Callable[[np.ndarray], np.ndarray]) -> Score:
    """Return the score of a measure of sums over pictures, such as accuracy or mean IoU.

    Args:
        parts: (n, …) each picture's contribution to the sums.
        measure: maps sums (r, …), each over n drawn pictures, to values (r,).
    """
    parts = np.asarray(parts, dtype=np.float64)
    flat = parts.reshape(len(parts), -1)
    totals = (resampled(len(parts)) @ flat).reshape(-1, *parts.shape[1:])
    return Score(float(measure(parts.sum(axis=0)[None])[0]), measure(totals), measure(parts))


def mean_score(parts: ArrayLike) -> Score:
    """Return the score of an average over pictures, such as accuracy from 0 or 1 for each.

    >>> mean_score([0, 1, 1, 1]).value
    0.75
    """
    parts = np.asarray(parts, dtype=np.float64)
    return score(np.stack([parts, np.ones(len(parts))], axis=1), lambda totals: totals[:, 0] / totals[:, 1])
