"""A comparison as data, and as a file of any kind."""

import json
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from s2wrap.compare.comparison import Comparison
from s2wrap.compare.page import to_html
from s2wrap.compare.plots import image, plot
from s2wrap.compare.table import COSTS, keys, score_figures
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.files import disk_errors, whole_file

NEEDED = {
    ".html": ("jinja2", "matplotlib"),
    ".csv": ("pandas",),
    ".json": (),
    ".png": ("matplotlib",),
    ".svg": ("matplotlib",),
}
"""The endings that can be written, and the libraries that they take."""
TIMES = {"p50_ms": "median_ms", "p90_ms": "p90_ms", "p99_ms": "p99_ms", "images_per_second": "images_per_second"}
"""What is told of a timing, and its name in `Timing.figures`."""


def check_ending(path: str | Path) -> str:
    """The ending of a report's file, once it is one that can be written here: to be asked before the work.

    Raises:
        S2WrapError: another ending.
        MissingExtraError: a library that it takes is not installed.
    """
    ending = Path(path).suffix.lower()
    if ending not in NEEDED:
        raise S2WrapError(f"cannot write {str(path)!r} as a report: use an ending of {', '.join(NEEDED)}")
    for library in NEEDED[ending]:
        if find_spec(library) is None:
            raise MissingExtraError(f"{library}, which {ending} reports take,", "compare")
    return ending


def write_report(comparison: Comparison, path: str | Path) -> None:
    """Write the comparison as its ending says: .html, .csv, .json, .png or .svg; whole or not at all.

    Raises:
        S2WrapError: another ending, or a file that cannot be written.
        MissingExtraError: a library that the ending takes is not installed.
    """
    writers: dict[str, Callable[[Comparison], str | bytes]] = {
        ".html": to_html,
        ".csv": to_csv,
        ".json": to_json,
        ".png": lambda found: image(plot(found), format="png", dpi=160),
        ".svg": lambda found: image(plot(found), format="svg", metadata={"Date": None}),
    }
    write = writers[check_ending(path)]
    with whole_file(path) as draft:
        content = write(comparison)
        with disk_errors(Path(path)):
            draft.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))


def to_frame(comparison: Comparison) -> Any:
    """A pandas DataFrame, one row a model, in order; what is not known is missing.

    Columns: model; what an image costs; of every measure its value and the ends of its 95 % interval (`accuracy`,
    `accuracy_low`, `accuracy_high`; shares are 0…1); details; of every backend `eager_p50_ms`, `eager_p90_ms`,
    `eager_p99_ms`, `eager_images_per_second` and `eager_reason`; pareto_front.
    """
    import pandas

    rows = comparison.rows
    columns: dict[str, list[Any]] = {"model": [row.spec for row in rows]}
    columns |= {name: [cost(row) for row in rows] for name, cost in COSTS.items()}
    for measure in comparison.measures:
        figures = [score_figures(row, measure) for row in rows]
        columns |= {measure: [each.get("value") for each in figures]}
        columns |= {f"{measure}_{end}": [each.get(end) for each in figures] for end in ("low", "high")}
    columns |= {name: [row.details.get(name) for row in rows] for name in keys(row.details for row in rows)}
    for backend in keys(row.timings for row in rows):
        timings = [row.timings.get(backend, {}) for row in rows]
        columns |= {f"{backend}_{name}": [each.get(key) for each in timings] for name, key in TIMES.items()}
        columns[f"{backend}_reason"] = [each.get("reason") for each in timings]
    columns["pareto_front"] = [row.on_front for row in rows]
    return pandas.DataFrame(columns).astype({"memory_bytes": "Int64"})


def to_csv(comparison: Comparison) -> str:
    """`to_frame` as comma-separated values, with all digits."""
    return to_frame(comparison).to_csv(index=False)


def to_json(comparison: Comparison) -> str:
    """All that is known, as standard JSON: what is not finite is null."""
    rows = [
        {"model": row.spec}
        | {name: cost(row) for name, cost in COSTS.items()}
        | {"scores": {measure: score_figures(row, measure) for measure in row.scores}}
        | {"details": row.details, "timings": row.timings, "pareto_front": row.on_front}
        for row in comparison.rows
    ]
    curves = {
        name: {key: getattr(curve, key) for key in ("floor", "a", "b", "low", "high")}
        for name, curve in comparison.curves.items()
    }
    told = {"facts": comparison.facts, "measures": comparison.measures, "rows": rows, "curves": curves}
    told |= {"verdict": comparison.verdict, "pairs": comparison.pairs, "skipped": comparison.skipped}
    return json.dumps(_standard(told), indent=2, allow_nan=False)


def _standard(value: Any) -> Any:
    """As JSON knows it: plain containers, numbers of Python, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _standard(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(each) for each in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
