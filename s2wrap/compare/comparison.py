"""`Comparison`, the result of `compare`, with one `Row` a model."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from s2wrap.compare.score import Score
from s2wrap.cost import Cost


class Unit(NamedTuple):
    """How a measure is shown: the factor that its values are multiplied by, the unit's sign and decimal digits."""

    factor: float
    sign: str
    digits: int

    def text(self, value: float) -> str:
        """Return a value with its unit.

        >>> SHARE.text(0.8649)
        '86.5 %'
        """
        return f"{self.factor * value:.{self.digits}f} {self.sign}".rstrip().replace("-", "−")


SHARE = Unit(100, "%", 1)
UNITS = {
    "information": Unit(1, "", 3),
    "training information": Unit(1, "", 3),
    "match error": Unit(1, "px", 1),
    "shift cosine": Unit(1, "", 3),
    "RMSE": Unit(1, "", 3),
}
"""The units of measures that are no shares, 0…1."""


def unit_of(measure: str) -> Unit:
    """Return the unit of a measure.

    >>> unit_of("accuracy")
    Unit(factor=100, sign='%', digits=1)
    """
    return UNITS.get(measure, SHARE)


@dataclass
class Row:
    """One model: its cost for one image, and its scores.

    Attributes:
        spec: the model's spec, `FAMILY:NAME@SCALES`.
        cost: parameters, multiply-adds, activations, tiles and tokens.
        memory: peak bytes beyond weights and input, for one image; None where that was not measured.
        timings: by backend, the figures of `Timing.figures` (median_ms, p90_ms, p99_ms, images_per_second, …), or
            under "reason" why there are none.
        scores: by measure ("accuracy", "mIoU", "matches", …).
        unable: by task, why the model cannot do it.
        on_front: whether the model is on the Pareto front: no cheaper model scores as much in the first measure.
    """

    spec: str
    cost: Cost
    memory: int | None = None
    timings: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    unable: dict[str, str] = field(default_factory=dict)
    on_front: bool = False


@dataclass
class Comparison:
    """The costs, times and scores of several models. `s2wrap.compare.write_report` and others show it.

    Attributes:
        rows: one a model, in the order of the specs.
        facts: how the figures were measured: pictures, folds, device, versions.
        tasks: by task the names of its measures, of which the first decides, and is larger where a model is better.
        verdict: sentences on which model is best, and how often several scales are better.
        pairs: sentences that compare every model at several scales with other ways to spend the same compute.
        skipped: pictures that were left out, with the reason.
        pictures: the files of all pictures.
        tested: those that were tested, in the order of `Score.each`.
    """

    rows: list[Row]
    facts: dict[str, str]
    tasks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    verdict: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    tested: list[str] = field(default_factory=list)

    @property
    def measures(self) -> list[str]:
        """The names of all measures, task by task; empty without pictures."""
        return [measure for measures in self.tasks.values() for measure in measures]

    @property
    def deciding(self) -> list[str]:
        """The first measure of each task."""
        return [measures[0] for measures in self.tasks.values() if measures]
