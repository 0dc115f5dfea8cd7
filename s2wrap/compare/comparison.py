"""`Comparison`: what `compare` returns, one `Row` a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2wrap.compare.score import Score
from s2wrap.cost import Cost

INFORMATION = "information"
"""The measure of a reconstruction, in nats: the one that is no share, 0…1."""


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
        verdict: sentences on who is best, and how often several scales are better.
        pairs: sentences on every model at several scales and what the same compute could be spent on.
        skipped: pictures that were left out, with the reason.
    """

    rows: list[Row]
    facts: dict[str, str]
    measures: tuple[str, ...] = ()
    curves: dict[str, Any] = field(default_factory=dict)
    verdict: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row a model."""
        from s2wrap.compare import report

        return report.to_frame(self)

    def to_csv(self) -> str:
        """The frame as CSV."""
        from s2wrap.compare import report

        return report.to_csv(self)

    def to_json(self) -> str:
        """Everything as JSON."""
        from s2wrap.compare import report

        return report.to_json(self)

    def to_html(self) -> str:
        """One page that needs nothing else: verdict, plots, table, and how it was measured."""
        from s2wrap.compare import page

        return page.to_html(self)

    def write(self, path: str | Path) -> None:
        """Write a file by its ending: .html, .csv, .json, .png or .svg; whole or not at all."""
        from s2wrap.compare import report

        report.write_report(self, path)
