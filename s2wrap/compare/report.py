"""Convert a comparison to a data frame, CSV or JSON, and write it to files."""

from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from s2wrap.compare.comparison import Comparison
from s2wrap.compare.disagree import disagreements, two_best
from s2wrap.compare.page import to_html
from s2wrap.compare.plots import image, plot
from s2wrap.compare.table import costs, keys, score_figures
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.files import disk_errors, whole_file
from s2wrap.standard_json import dump_json

TIMES = {"p50_ms": "median_ms"} | {name: name for name in ("p90_ms", "p99_ms", "images_per_second", "reason")}
"""The figures of a timing that are reported, and their names in `Row.timings`."""


def check_ending(path: str | Path) -> str:
    """Return the suffix of a report's file, after checking, before any work, that it can be written.

    Raises:
        S2WrapError: another suffix.
        MissingExtraError: a library that it needs is not installed.
    """
    ending = Path(path).suffix.lower()
    if ending not in WRITERS:
        raise S2WrapError(f"cannot write {str(path)!r} as a report: use an ending of {', '.join(WRITERS)}")
    for library in WRITERS[ending][1]:
        if find_spec(library) is None:
            raise MissingExtraError(f"{library}, which {ending} reports take,", "compare")
    return ending


def write_report(comparison: Comparison, path: str | Path) -> None:
    """Write the comparison as .html, .csv, .json, .png or .svg, by the path's suffix; whole or not at all.

    Raises:
        S2WrapError: another suffix, or a file that cannot be written.
        MissingExtraError: a library that the suffix needs is not installed.
    """
    write, _ = WRITERS[check_ending(path)]
    with whole_file(path) as draft:
        content = write(comparison)
        with disk_errors(Path(path)):
            draft.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))


def to_frame(comparison: Comparison) -> Any:
    """Return a pandas DataFrame with one row a model, in order; unknown values are missing.

    Columns: model; costs of one image; for every measure its value and the ends of its 95 % interval (`accuracy`,
    `accuracy_low`, `accuracy_high`; shares are 0…1); for every backend `eager_p50_ms`, `eager_p90_ms`,
    `eager_p99_ms`, `eager_images_per_second` and `eager_reason`; pareto_front.
    """
    import pandas

    records = [
        {"model": row.spec, **costs(row)}
        | {
            f"{measure}{end}": score_figures(row, measure).get(key)
            for measure in comparison.measures
            for end, key in {"": "value", "_low": "low", "_high": "high"}.items()
        }
        | {
            f"{backend}_{name}": row.timings.get(backend, {}).get(key)
            for backend in keys(row.timings for row in comparison.rows)
            for name, key in TIMES.items()
        }
        | {"pareto_front": row.on_front}
        for row in comparison.rows
    ]
    return pandas.DataFrame(records).astype({"memory_bytes": "Int64"} if records else {})


def to_csv(comparison: Comparison) -> str:
    """Return `to_frame` as comma-separated values, with all digits."""
    return to_frame(comparison).to_csv(index=False)


def to_json(comparison: Comparison) -> str:
    """Return the whole comparison as standard JSON, with null for numbers that are not finite."""
    rows = [
        {"model": row.spec, **costs(row)}
        | {"scores": {measure: score_figures(row, measure) for measure in row.scores}}
        | {"unable": row.unable, "timings": row.timings, "pareto_front": row.on_front}
        for row in comparison.rows
    ]
    data = {"facts": comparison.facts, "tasks": comparison.tasks, "rows": rows}
    data["disagreements"] = [
        {"measure": measure, "one": models[0], "other": models[1], "pictures": [asdict(each) for each in found]}
        for measure in comparison.deciding
        if (found := disagreements(comparison, measure, models := two_best(comparison, measure)))
    ]
    data |= {"verdict": comparison.verdict, "pairs": comparison.pairs, "skipped": comparison.skipped}
    return dump_json(data)


_PLOT = ("matplotlib", "textalloc")
WRITERS: dict[str, tuple[Callable[[Comparison], str | bytes], tuple[str, ...]]] = {
    ".html": (to_html, ("jinja2", *_PLOT)),
    ".csv": (to_csv, ("pandas",)),
    ".json": (to_json, ()),
    ".png": (lambda comparison: image(plot(comparison), format="png", dpi=160), _PLOT),
    ".svg": (lambda comparison: image(plot(comparison), format="svg", metadata={"Date": None}), _PLOT),
}
"""What writes each kind of file, by its suffix, and the libraries that it needs."""
