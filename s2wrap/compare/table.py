"""Print a comparison in the terminal, and make the columns of its tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from s2wrap.compare.comparison import Comparison, Row, unit_of
from s2wrap.compare.plots import printable

COST_COLUMNS = {
    "M parameters": ("parameters", 1e6),
    "G multiply-adds": ("multiply_adds", 1e9),
    "M activations": ("activations", 1e6),
    "tiles": ("tiles", 1),
    "tokens": ("tokens", 1),
    "MiB": ("memory_bytes", 2**20),
}
"""Shown costs by column heading: the name in `costs`, and the divisor."""
MOST_SKIPPED = 10
"""Most skipped pictures that the terminal lists."""
PIPED_WIDTH, GAP = 1000, 2
"""Characters of a line where output is not a terminal, and between columns."""


class Cell(NamedTuple):
    """The text of a table's cell, and the number that it is sorted by; None for empty cells."""

    text: str
    number: float | None


EMPTY, UNABLE = Cell("–", None), Cell("unable", None)
Columns = dict[str, list[Cell]]
"""The columns of a table by heading, with one cell a model."""


def print_table(comparison: Comparison, console: Console) -> None:
    """Print costs, scores and times in as many tables as the console's width requires, then pairs and the verdict.

    Between them: why tasks or backends did not run, and pictures that were left out (the first ten). Where output is
    not a terminal there is one table, and no line is broken.
    """
    rows, piped = comparison.rows, not console.is_terminal
    if piped:
        console.width = PIPED_WIDTH
    longest = max((len(printable(row.spec)) for row in rows), default=0)
    width = console.width - GAP - 1 - GAP - min(longest, console.width // 4)
    tables = [_make_table(rows, columns) for columns in _pack(column_groups(comparison), width)]
    console.print(Text(printable(facts_line(comparison)), style="bold"), soft_wrap=piped)
    for table in tables:
        console.print("", table)
    console.print()
    skipped = [f"left out: {text}" for text in comparison.skipped[:MOST_SKIPPED]]
    if len(comparison.skipped) > MOST_SKIPPED:
        skipped.append(f"left out: {len(comparison.skipped) - MOST_SKIPPED} more")
    sentences = [*comparison.pairs, *comparison.verdict]  # whose last is the command to go on with
    front = ["● Pareto front: none that costs no more scores as much"] if any(row.on_front for row in rows) else []
    for style, texts in (("", front), ("yellow", not_measured(rows) + skipped), ("", sentences)):
        for text in texts:
            console.print(Text(printable(text), style=style), soft_wrap=piped)


def facts_line(comparison: Comparison) -> str:
    """Return the facts in one line."""
    unnamed = ("pictures", "device")
    return ", ".join(text if name in unnamed else f"{name} {text}" for name, text in comparison.facts.items())


def _pack(groups: Sequence[Columns], width: int) -> list[Columns]:
    """Return tables of as many groups of columns side by side as fit into a width in characters."""
    tables: list[Columns] = []
    used = 0
    for group in groups:
        group_width = sum(_width(heading, cells) + GAP for heading, cells in group.items())
        if not tables or used + group_width > width:
            tables.append({})
            used = 0
        tables[-1] |= group
        used += group_width
    return tables


def _make_table(rows: Sequence[Row], columns: Columns) -> Table:
    """Return a table with the models at the left, whose names are folded if necessary; figures are not."""
    names = Column("model", overflow="fold")
    table = Table("", names, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading, cells in columns.items():
        table.add_column(Text(heading), justify="right", width=_width(heading, cells))
    for number, row in enumerate(rows):
        figures = [Text(cells[number].text) for cells in columns.values()]
        table.add_row("●" if row.on_front else "", Text(printable(row.spec)), *figures)
    return table


def _width(heading: str, cells: Sequence[Cell]) -> int:
    return max(map(len, (*heading.split(), *(cell.text for cell in cells))))


def column_groups(comparison: Comparison) -> list[Columns]:
    """Return groups of columns that belong together: costs, each measure, each backend."""
    groups = [_cost_columns(comparison.rows)]
    for task, measures in comparison.tasks.items():
        for measure in measures:
            sign = unit_of(measure).sign
            heading = printable(f"{measure}, {sign}" if sign else measure)
            groups.append({heading: [_score_cell(row, measure, task) for row in comparison.rows]})
    return [group for group in groups + _time_columns(comparison.rows) if group]


def _cost_columns(rows: Sequence[Row]) -> Columns:
    """Return the columns of costs, without those that are empty for all models."""
    shown = COST_COLUMNS.items()
    columns = {heading: [cell(costs(row)[name], per=per) for row in rows] for heading, (name, per) in shown}
    return {heading: cells for heading, cells in columns.items() if any(cell != EMPTY for cell in cells)}


def _score_cell(row: Row, measure: str, task: str) -> Cell:
    """Return a cell such as "93.3 (88.3–96.7)", or "unable" where the model cannot do the task."""
    if measure not in row.scores:
        return UNABLE if task in row.unable else EMPTY
    factor, sign, digits = unit_of(measure)
    figures = score_figures(row, measure)
    value, low, high = (f"{factor * figures[key]:.{digits}f}" for key in ("value", "low", "high"))
    interval = f"{low}–{high}" if sign else f"{low} to {high}"  # what has no sign may be negative
    return Cell(f"{value} ({interval})".replace("-", "−"), figures["value"])


def _time_columns(rows: Sequence[Row]) -> list[Columns]:
    """Return for each backend that ran the columns of milliseconds, such as "12.3/13.1/14.0", and images a second."""
    groups = []
    for backend in keys(row.timings for row in rows):
        timings = [row.timings.get(backend, {}) for row in rows]
        if any("median_ms" in timing for timing in timings):
            speeds = [cell(timing.get("images_per_second")) for timing in timings]
            groups.append({f"{backend} p50/p90/p99 ms": [*map(_time_cell, timings)], f"{backend} images/s": speeds})
    return groups


def _time_cell(timing: Mapping[str, Any]) -> Cell:
    if "median_ms" not in timing:
        return EMPTY
    return Cell("/".join(_digits(timing[key]) for key in ("median_ms", "p90_ms", "p99_ms")), timing["median_ms"])


def not_measured(rows: Sequence[Row]) -> list[str]:
    """Return why tasks or backends did not run: a line for each and each reason, with the models that it holds for."""
    failures: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        reasons = row.unable | {
            name: str(figures["reason"]) for name, figures in row.timings.items() if "reason" in figures
        }
        for name, reason in reasons.items():
            failures.setdefault((name, reason), []).append(row.spec)
    return [
        f"{name} ({'all models' if len(specs) == len(rows) > 1 else ', '.join(specs)}): {reason}"
        for (name, reason), specs in failures.items()
    ]


def cell(value: float | None, *, per: float = 1) -> Cell:
    """Return a cell that shows a value divided by `per`, and sorts by the value."""
    return EMPTY if value is None or not math.isfinite(value) else Cell(_digits(value / per), value)


def _digits(value: float) -> str:
    """Return a number with three digits, or with all digits of its whole part.

    >>> [_digits(value) for value in (14, 5.518, 1234.5)]
    ['14', '5.52', '1,234']
    """
    whole = value == round(value) or abs(value) >= 100
    return f"{value:,.0f}" if whole else f"{value:#.3g}"


def keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all keys of several mappings, in the order in which they appear first."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def costs(row: Row) -> dict[str, int | None]:
    """Return a row's costs by name, in single units."""
    names = ("parameters", "multiply_adds", "multiply_adds_attention_once", "activations", "tiles", "tokens")
    return {name: getattr(row.cost, name) for name in names} | {"memory_bytes": row.memory}


def score_figures(row: Row, measure: str) -> dict[str, float]:
    """Return a score's value, the ends of its interval and its number of pictures; {} where there is no score."""
    if measure not in row.scores:
        return {}
    score = row.scores[measure]
    low, high = score.interval()
    return {"value": score.value, "low": low, "high": high, "pictures": score.pictures}
