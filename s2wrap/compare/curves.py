"""Curves of error against compute, fitted to the models of a series, and where two curves cross."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2wrap.compare.score import LEVEL, Score
from s2wrap.errors import S2WrapError

REFITS = 300
"""The most resamples that a curve is fitted to."""
EXPONENTS = (0.02, 3.0)
"""Range of the exponent with which error falls with compute."""
STEPS = 513
"""Number of costs at which two curves are compared."""


@dataclass(frozen=True)
class Curve:
    """The error of a series of models as a function of their cost, error(C) = floor + a · C^(−b).

    Attributes:
        low: multiply-adds of the cheapest model.
        high: multiply-adds of the most expensive one; the curve does not extend beyond the two.
        floor: the error that remains at any cost, 0…1.
        a: the reducible error at one multiply-add, 0 or more; 0 is a flat curve, and `b` then means nothing.
        b: the exponent of the decrease, within `EXPONENTS`.
        samples: (refits, 3) floor, a and b, refitted on resampled pictures, which are the same for all curves.
    """

    low: float
    high: float
    floor: float
    a: float
    b: float
    samples: np.ndarray

    def error(self, cost: Any) -> Any:
        """Return the error, 0…1, at a cost or costs in multiply-adds."""
        return self.floor + self.a * np.asarray(cost, dtype=np.float64) ** -self.b

    def errors(self, costs: np.ndarray) -> np.ndarray:
        """Return the errors (refits, n) of all refits at costs (n,)."""
        floor, a, b = self.samples.T[:, :, None]
        return floor + a * costs**-b

    def band(self, cost: Any, level: float = LEVEL) -> tuple[Any, Any]:
        """Return the ends of the interval that holds the middle `level` of the refits' errors, at a cost or costs."""
        costs = np.asarray(cost, dtype=np.float64)
        low, high = np.quantile(self.errors(costs.reshape(-1)), ((1 - level) / 2, (1 + level) / 2), axis=0)
        return low.reshape(costs.shape)[()], high.reshape(costs.shape)[()]


def fit_curve(cost: Any, scores: Sequence[Score]) -> Curve:
    """Return the least-squares curve of a series of models, with refits on their resampled scores.

    A power law with a floor, as in scaling laws (Rosenfeld et al., arXiv 1909.12673). For a fixed exponent the fit is
    linear in floor and factor, so only the exponent is searched, first on a grid. A series whose larger models are
    worse becomes a flat curve.

    Three models determine three parameters: the curve then goes through all of them if it can, and its band shows the
    noise of the pictures, not whether models between them would lie on it.

    Args:
        cost: (m,) multiply-adds of three or more models, three of them different.
        scores: (m) shares, 0…1, measured on the same pictures.

    Raises:
        S2WrapError: fewer than three models of different costs, costs that are not positive numbers, scores that are
            not shares or come from different pictures.
    """
    costs = np.asarray(cost, dtype=np.float64)
    _check(costs, scores)
    centre = np.log(costs).mean()
    samples = np.stack([score.samples[:REFITS] for score in scores], axis=1)
    errors = 1 - np.vstack([[score.value for score in scores], samples])
    floor, factor, b = _fit(np.log(costs) - centre, errors)
    fits = np.stack([floor, factor * np.exp(centre * b), b], axis=1)
    return Curve(float(costs.min()), float(costs.max()), *map(float, fits[0]), samples=fits[1:])


def _check(costs: np.ndarray, scores: Sequence[Score]) -> None:
    if costs.ndim != 1 or len(costs) != len(scores) or len(costs) < 3:
        raise S2WrapError(f"{costs.size} costs and {len(scores)} scores make no curve; give three models or more")
    if not np.isfinite(costs).all() or costs.min() <= 0:
        raise S2WrapError(f"costs {costs.tolist()} are not all positive; give multiply-adds")
    if len(set(costs)) < 3:
        raise S2WrapError(f"costs {costs.tolist()} are {len(set(costs))} different ones; a curve needs three")
    if len({(score.pictures, len(score.samples)) for score in scores}) > 1:
        raise S2WrapError(f"scores are of {[score.pictures for score in scores]} pictures; test all models on the same")
    for score in scores:
        values = np.append(score.samples, score.value)
        if not (values.min() > -1e-9 and values.max() < 1 + 1e-9):  # rounding may take averages of shares beyond
            raise S2WrapError(f"a score of {score.value} is no share, 0…1: its error, 1 − score, means nothing")


def _fit(logs: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return floor, factor and exponent (n,) of the best curves through errors (n, m) at log costs (m,)."""
    grid = np.geomspace(*EXPONENTS, 25)
    losses = np.stack([_fit_linear(np.full(len(errors), b), logs, errors)[0] for b in grid])
    best = losses.argmin(axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    for _ in range(50):  # ternary search: the minimum is never in the third beyond the larger of two values
        left, right = low + (high - low) / 3, high - (high - low) / 3
        lower = _fit_linear(left, logs, errors)[0] < _fit_linear(right, logs, errors)[0]
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    b = np.where(_fit_linear(low, logs, errors)[0] < losses.min(axis=0), low, grid[best])
    return *_fit_linear(b, logs, errors)[1:], b


def _fit_linear(b: np.ndarray, logs: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the least squared errors (n,) at exponents (n,), with their floors and factors, all at least 0."""
    powers = np.exp(-b[:, None] * logs)
    centred = powers - powers.mean(axis=1, keepdims=True)
    factor = (centred * errors).sum(axis=1) / (centred**2).sum(axis=1)
    floor = errors.mean(axis=1) - factor * powers.mean(axis=1)
    negative_floor, rising = floor < 0, factor < 0  # never both; the constrained minimum then has that one at 0
    factor = np.where(negative_floor, (powers * errors).sum(axis=1) / (powers**2).sum(axis=1), factor.clip(0))
    floor = np.where(rising, errors.mean(axis=1), floor.clip(0))
    return np.square(errors - floor[:, None] - factor[:, None] * powers).sum(axis=1), floor, factor


@dataclass(frozen=True)
class Crossing:
    """Which of two curves is lower, over the range of costs that both cover.

    Attributes:
        one: the least and the most multiply-adds of the first curve.
        other: the same of the second curve.
        lower: which curve has less error, 0 for the first and 1 for the second, from the lowest common cost on: (0,)
            for the whole range, (0, 1) with one crossing. Empty where no costs are common or the curves are the same.
        costs: multiply-adds at which the curves cross, one fewer than `lower`.
        intervals: for each crossing the interval of the middle 95 % of the resamples with the same order.
        share: the share of resamples, 0…1, with the same order.
    """

    one: tuple[float, float]
    other: tuple[float, float]
    lower: tuple[int, ...] = ()
    costs: tuple[float, ...] = ()
    intervals: tuple[tuple[float, float], ...] = ()
    share: float = 0.0

    @property
    def shared(self) -> tuple[float, float] | None:
        """The range of multiply-adds that both cover; None if there is none."""
        low, high = max(self.one[0], self.other[0]), min(self.one[1], self.other[1])
        return (low, high) if low < high else None

    def sentence(self, one: str, other: str) -> str:
        """Return the result as a sentence, with figures in G multiply-adds."""
        if self.shared is None:
            return (
                f"the curves share no range of compute: `{one}` covers {_range(self.one)} G multiply-adds, "
                f"`{other}` {_range(self.other)}"
            )
        if not self.lower:
            return f"`{one}` and `{other}` are the same from {_range(self.shared)} G multiply-adds"
        names = [f"`{(one, other)[index]}`" for index in self.lower]
        often = f"in {math.floor(100 * self.share + 1e-9)} % of resamples"  # 100 only where all agree
        if not self.costs:
            return f"{names[0]} is better from {_range(self.shared)} G multiply-adds {often}"
        intervals = [f" ({_range(interval)})" for interval in self.intervals] or [""] * len(self.costs)
        points = [f"{_giga(cost)} G multiply-adds{text}" for cost, text in zip(self.costs, intervals, strict=True)]
        between = [f", {name} from there to {point}" for name, point in zip(names[1:-1], points[1:], strict=True)]
        return f"{names[0]} is better below {points[0]}{''.join(between)}, {names[-1]} above, {often}"


def crossing(one: Curve, other: Curve) -> Crossing:
    """Return where the curves of two series cross, with intervals from the pairs of refits on the same resamples.

    Raises:
        S2WrapError: curves with different numbers of refits, which were not fitted to the same resamples.
    """
    if len(one.samples) != len(other.samples):
        raise S2WrapError(
            f"curves of {len(one.samples)} and {len(other.samples)} refits were not fitted to the same pictures"
        )
    ranges = Crossing((one.low, one.high), (other.low, other.high))
    if ranges.shared is None:
        return ranges
    costs = np.geomspace(*ranges.shared, STEPS)
    lower, points = _sign_changes(one.error(costs) - other.error(costs), costs)
    refits = [_sign_changes(row, costs) for row in one.errors(costs) - other.errors(costs)]
    same_order = np.array([crossings for order, crossings in refits if order == lower])
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    intervals = []
    if same_order.size:
        intervals = [(float(low), float(high)) for low, high in np.quantile(same_order, ends, axis=0).T]
    return Crossing(ranges.one, ranges.other, lower, points, tuple(intervals), len(same_order) / len(refits))


def _sign_changes(difference: np.ndarray, costs: np.ndarray) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return which of two curves is lower along the costs, and the costs at which their difference changes sign."""
    nonzero = np.flatnonzero(difference)
    if not len(nonzero):
        return (), ()
    difference, logs = difference[nonzero], np.log(costs[nonzero])
    before = np.flatnonzero(np.diff(np.sign(difference)))
    fraction = difference[before] / (difference[before] - difference[before + 1])
    crossings = np.exp(logs[before] + fraction * (logs[before + 1] - logs[before]))
    order = (int(difference[0] > 0), *(int(value > 0) for value in difference[before + 1]))
    return order, tuple(float(cost) for cost in crossings)


def _giga(cost: float) -> str:
    return f"{float(f'{cost / 1e9:.3g}'):g}"


def _range(costs: tuple[float, float]) -> str:
    return f"{_giga(costs[0])} to {_giga(costs[1])}"
