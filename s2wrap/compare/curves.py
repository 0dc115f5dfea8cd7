"""Quality against compute: a curve through the models of a series, and where two curves cross."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2wrap.compare.score import LEVEL, Score
from s2wrap.errors import S2WrapError

REFITS = 300
"""Resamples that a curve is fitted to again, at most."""
EXPONENTS = (0.02, 3.0)
"""How slowly or steeply error may fall with compute."""
STEPS = 513
"""Costs of a range at which two curves are compared."""


@dataclass(frozen=True)
class Curve:
    """The error of a series of models against what they cost, error(C) = floor + a · C^(−b).

    Attributes:
        low: multiply-adds of the cheapest model.
        high: of the dearest; the curve says nothing of costs beyond them.
        floor: the error that no compute takes away, 0…1.
        a: the rest at one multiply-add, 0 or more; 0 is a flat curve, of which `b` says nothing.
        b: how steeply the rest falls, within `EXPONENTS`.
        samples: (refits, 3) floor, a and b on resampled pictures, the same for all curves.
    """

    low: float
    high: float
    floor: float
    a: float
    b: float
    samples: np.ndarray

    def error(self, cost: Any) -> Any:
        """The error, 0…1, at a cost or costs in multiply-adds."""
        return self.floor + self.a * np.asarray(cost, dtype=np.float64) ** -self.b

    def errors(self, costs: np.ndarray) -> np.ndarray:
        """The errors (refits, n) on resampled pictures, at costs (n,)."""
        floor, a, b = self.samples.T[:, :, None]
        return floor + a * costs**-b

    def band(self, cost: Any, level: float = LEVEL) -> tuple[Any, Any]:
        """Between what the error at a cost, or at each of costs, lies in the middle `level` of the refits."""
        costs = np.asarray(cost, dtype=np.float64)
        low, high = np.quantile(self.errors(costs.reshape(-1)), ((1 - level) / 2, (1 + level) / 2), axis=0)
        return low.reshape(costs.shape)[()], high.reshape(costs.shape)[()]


def fit_curve(cost: Any, scores: Sequence[Score]) -> Curve:
    """The curve of least squared error through models of a series, and through each of their resamples.

    A power law with a floor, as scaling laws have it (Rosenfeld et al., arXiv 1909.12673). With an exponent given the
    rest is linear, so the best one is searched on its own: first on a grid. A series whose larger models are worse
    becomes a flat curve.

    Three models fix three parameters: the curve then goes through all of them if it can, and its band shows the noise
    of the pictures, not whether models between them would lie on it.

    Args:
        cost: (m,) multiply-adds of three or more models, three of them different.
        scores: (m) shares that are right, 0…1, on the same pictures.

    Raises:
        S2WrapError: fewer than three models of different costs, costs that are no positive numbers, scores that are no
            shares or of different pictures.
    """
    costs = np.asarray(cost, dtype=np.float64)
    _check(costs, scores)
    middle = np.log(costs).mean()
    logs = np.log(costs) - middle

    drawn = np.stack([each.samples[:REFITS] for each in scores], axis=1)
    floor, rest, b = _fit(logs, 1 - np.vstack([[each.value for each in scores], drawn]))
    fitted = np.stack([floor, rest * np.exp(middle * b), b], axis=1)
    return Curve(float(costs.min()), float(costs.max()), *map(float, fitted[0]), samples=fitted[1:])


def _check(costs: np.ndarray, scores: Sequence[Score]) -> None:
    if costs.ndim != 1 or len(costs) != len(scores) or len(costs) < 3:
        raise S2WrapError(f"{costs.size} costs and {len(scores)} scores make no curve; give three models or more")
    if not np.isfinite(costs).all() or costs.min() <= 0:
        raise S2WrapError(f"costs {costs.tolist()} are not all positive; give multiply-adds")
    if len(set(costs)) < 3:
        raise S2WrapError(f"costs {costs.tolist()} are {len(set(costs))} different ones; a curve needs three")
    if len({(each.pictures, len(each.samples)) for each in scores}) > 1:
        raise S2WrapError(f"scores are of {[each.pictures for each in scores]} pictures; test all models on the same")
    for each in scores:
        values = np.append(each.samples, each.value)
        if not (values.min() > -1e-9 and values.max() < 1 + 1e-9):  # averages of shares may be rounded up
            raise S2WrapError(f"a score of {each.value} is no share, 0…1: its error, 1 − score, means nothing")


def _fit(logs: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Floor, the rest at log cost 0, and exponent (n,) of the best curves through errors (n, m) at log costs (m,)."""
    grid = np.geomspace(*EXPONENTS, 25)
    losses = np.stack([_linear(np.full(len(errors), b), logs, errors)[0] for b in grid])
    best = losses.argmin(axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    for _ in range(50):  # thirds: the least is never in the one beyond the larger of two values
        left, right = low + (high - low) / 3, high - (high - low) / 3
        lower = _linear(left, logs, errors)[0] < _linear(right, logs, errors)[0]
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    b = np.where(_linear(low, logs, errors)[0] < losses.min(axis=0), low, grid[best])
    return *_linear(b, logs, errors)[1:], b


def _linear(b: np.ndarray, logs: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The least squared errors (n,) at exponents (n,), and the floors and the rests that have them, none below 0."""
    falling = np.exp(-b[:, None] * logs)
    centred = falling - falling.mean(axis=1, keepdims=True)
    rest = (centred * errors).sum(axis=1) / (centred**2).sum(axis=1)
    floor = errors.mean(axis=1) - rest * falling.mean(axis=1)
    sunk, rising = floor < 0, rest < 0  # never both; the best that is allowed then lies at the 0 that was passed
    rest = np.where(sunk, (falling * errors).sum(axis=1) / (falling**2).sum(axis=1), rest.clip(0))
    floor = np.where(rising, errors.mean(axis=1), floor.clip(0))
    return np.square(errors - floor[:, None] - rest[:, None] * falling).sum(axis=1), floor, rest


@dataclass(frozen=True)
class Crossing:
    """Which of two curves is lower, over the costs that both cover.

    Attributes:
        one: the cheapest and the dearest multiply-adds of one curve.
        other: of the other.
        lower: which has less error, 0 for the one and 1 for the other, from the lowest common cost on: (0,) all along,
            (0, 1) up to a crossing. Empty where no costs are common, or where the curves are the same.
        costs: multiply-adds at which they cross, one fewer.
        intervals: between what each crossing lies in the middle 95 % of the resamples whose order is the same.
        share: of the resamples, 0…1, whose order is the same.
    """

    one: tuple[float, float]
    other: tuple[float, float]
    lower: tuple[int, ...] = ()
    costs: tuple[float, ...] = ()
    intervals: tuple[tuple[float, float], ...] = ()
    share: float = 0.0

    @property
    def shared(self) -> tuple[float, float] | None:
        """The multiply-adds that both cover; None if there are none."""
        low, high = max(self.one[0], self.other[0]), min(self.one[1], self.other[1])
        return (low, high) if low < high else None

    def sentence(self, one: str, other: str) -> str:
        """What was found, in words, with figures in G multiply-adds."""
        if self.shared is None:
            return (
                f"the curves share no range of compute: `{one}` covers {_range(self.one)} G multiply-adds, "
                f"`{other}` {_range(self.other)}"
            )
        if not self.lower:
            return f"`{one}` and `{other}` are the same from {_range(self.shared)} G multiply-adds"
        names = [f"`{(one, other)[index]}`" for index in self.lower]
        often = f"in {math.floor(100 * self.share + 1e-9)} % of resamples"  # 100 only where it is all
        if not self.costs:
            return f"{names[0]} is better from {_range(self.shared)} G multiply-adds {often}"
        noise = [f" ({_range(interval)})" for interval in self.intervals] or [""] * len(self.costs)
        points = [f"{_giga(cost)} G multiply-adds{each}" for cost, each in zip(self.costs, noise, strict=True)]
        between = [f", {name} from there to {point}" for name, point in zip(names[1:-1], points[1:], strict=True)]
        return f"{names[0]} is better below {points[0]}{''.join(between)}, {names[-1]} above, {often}"


def crossing(one: Curve, other: Curve) -> Crossing:
    """Where the curves of two series cross, and how sure that is: resample by resample, on the same pictures.

    Raises:
        S2WrapError: curves with different numbers of refits, which were not fitted to the same resamples.
    """
    if len(one.samples) != len(other.samples):
        raise S2WrapError(
            f"curves of {len(one.samples)} and {len(other.samples)} refits were not fitted to the same pictures"
        )
    found = Crossing((one.low, one.high), (other.low, other.high))
    if found.shared is None:
        return found
    costs = np.geomspace(*found.shared, STEPS)
    lower, points = _turns(one.error(costs) - other.error(costs), costs)
    refits = [_turns(row, costs) for row in one.errors(costs) - other.errors(costs)]
    alike = np.array([crossed for order, crossed in refits if order == lower])
    inner = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    intervals = [(float(low), float(high)) for low, high in np.quantile(alike, inner, axis=0).T] if alike.size else []
    return Crossing(found.one, found.other, lower, points, tuple(intervals), len(alike) / len(refits))


def _turns(difference: np.ndarray, costs: np.ndarray) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Which of two is lower along the costs, and the costs between, where the difference changes its sign."""
    kept = np.flatnonzero(difference)
    if not len(kept):
        return (), ()
    difference, logs = difference[kept], np.log(costs[kept])
    at = np.flatnonzero(np.diff(np.sign(difference)))
    share = difference[at] / (difference[at] - difference[at + 1])
    points = np.exp(logs[at] + share * (logs[at + 1] - logs[at]))
    order = (int(difference[0] > 0), *(int(value > 0) for value in difference[at + 1]))
    return order, tuple(float(point) for point in points)


def _giga(cost: float) -> str:
    return f"{float(f'{cost / 1e9:.3g}'):g}"


def _range(costs: tuple[float, float]) -> str:
    return f"{_giga(costs[0])} to {_giga(costs[1])}"
