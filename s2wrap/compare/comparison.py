"""`Comparison`: what `compare` returns, one `Row` a model."""

from dataclasses import dataclass, field
from typing import Any

from s2wrap.compare.score import Score
from s2wrap.cost import Cost


@dataclass
class Row:
    """One model: what it costs an image, and how it scored.

    Attributes:
        spec: its name, `FAMILY:NAME@SCALES`.
        cost: parameters, multiply-adds, activations, tiles and tokens.
        memory: bytes at once beyond weights and input, for one image; None where that was not measured.
        timings: by backend, the figures of `Timing.figures` (median_ms, p90_ms, p99_ms, images_per_second, …), or
            under "reason" why there are none.
        scores: by measure ("accuracy", "k-NN", "5-shot", "mIoU", "information"), larger is better.
        details: further figures by name, such as the losses of a reconstruction.
        on_front: whether nothing that costs less scores as much in the first measure: the Pareto front.
    """

    spec: str
    cost: Cost
    memory: int | None = None
    timings: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)
    on_front: bool = False


@dataclass
class Comparison:
    """Models beside each other.

    Attributes:
        rows: one a model, in the order that was asked.
        facts: what is told beside the figures: pictures, folds, device, versions.
        measures: the names of the scores, the one that decides first; empty without pictures.
        curves: of families of three or more sizes, by name.
        verdict: sentences.
        skipped: pictures that were left out, with the reason.
    """

    rows: list[Row]
    facts: dict[str, str]
    measures: tuple[str, ...] = ()
    curves: dict[str, Any] = field(default_factory=dict)
    verdict: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
