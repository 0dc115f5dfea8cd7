"""`Comparison`, the result of `compare`, with one `Row` a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2wrap.compare.score import Score
from s2wrap.cost import Cost

INFORMATION = "information"
"""The measure of a reconstruction, in nats: the only measure that is not a share, 0…1."""


@dataclass
class Row:
    """One model: its cost for one image, and its scores.

    Attributes:
        spec: the model's spec, `FAMILY:NAME@SCALES`.
        cost: parameters, multiply-adds, activations, tiles and tokens.
        memory: peak bytes beyond weights and input, for one image; None where that was not measured.
        timings: by backend, the figures of `Timing.figures` (median_ms, p90_ms, p99_ms, images_per_second, …), or
            under "reason" why there are none.
        scores: by measure ("accuracy", "k-NN", "5-shot", "mIoU", "information"); larger is better.
        details: further figures by name, such as the losses of a reconstruction.
        on_front: whether the model is on the Pareto front: no cheaper model scores as much in the first measure.
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
    """The costs, times and scores of several models.

    Attributes:
        rows: one a model, in the order of the specs.
        facts: how the figures were measured: pictures, folds, device, versions.
        measures: the names of the scores, the one that decides first; empty without pictures.
        curves: the fitted `Curve` of each series of three or more models, by the series' name.
        verdict: sentences on which model is best, and how often several scales are better.
        pairs: sentences that compare every model at several scales with other ways to spend the same compute.
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
        """Return a pandas DataFrame with one row a model."""
        from s2wrap.compare import report

        return report.to_frame(self)

    def to_csv(self) -> str:
        """Return the frame as CSV."""
        from s2wrap.compare import report

        return report.to_csv(self)

    def to_json(self) -> str:
        """Return everything as JSON."""
        from s2wrap.compare import report

        return report.to_json(self)

    def to_html(self) -> str:
        """Return one self-contained HTML page: verdict, plots, table, and how it was measured."""
        from s2wrap.compare import page

        return page.to_html(self)

    def write(self, path: str | Path) -> None:
        """Write a .html, .csv, .json, .png or .svg file, by the path's suffix; whole or not at all."""
        from s2wrap.compare import report

        report.write_report(self, path)
