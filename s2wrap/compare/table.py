"""A comparison in the terminal, and the columns of any table of one."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from s2wrap.compare.comparison import Comparison, Row
from s2wrap.compare.plots import printable, unit

COSTS: dict[str, Callable[[Row], int | None]] = {
    "parameters": lambda row: row.cost.parameters,
    "multiply_adds": lambda row: row.cost.multiply_adds,
    "multiply_adds_attention_once": lambda row: row.cost.multiply_adds_attention_once,
    "activations": lambda row: row.cost.activations,
    "tiles": lambda row: row.cost.tiles,
    "tokens": lambda row: row.cost.tokens,
    "memory_bytes": lambda row: row.memory,
}
"""What an image costs, each in units of one."""
READ = {
    "M parameters": ("parameters", 1e6),
    "G multiply-adds": ("multiply_adds", 1e9),
    "M activations": ("activations", 1e6),
    "tiles": ("tiles", 1),
    "tokens": ("tokens", 1),
    "MiB": ("memory_bytes", 2**20),
}
"""The costs that people read, and how much of each is 1."""
DETAILS = {"I train": "information_train", "I/I* train": "ratio_train", "I/I* test": "ratio_test"}
"""Of a reconstruction: the information in training, and the shares of that of the reference."""
LISTED = 10
"""Skipped pictures that the terminal shows."""
ENDLESS, GAP = 1000, 2
"""Characters of a line where output is no terminal, and between columns."""


class Cell(NamedTuple):
    """What a table says of a model, and the number that it is sorted by; None where there is none."""

    text: str
    number: float | None


NOTHING = Cell("–", None)
Columns = dict[str, list[Cell]]
"""Columns of a table by heading, one cell a model."""


def print_table(comparison: Comparison, console: Console) -> None:
    """What models cost, how they scored and how long they took, in as many tables as the width takes; then in words.

    Below the tables: why backends did not run, pictures that were left out (the first ten), the verdict. Where output
    is no terminal there is one table, and no line is broken.
    """
    rows, piped = comparison.rows, not console.is_terminal
    if piped:
        console.width = ENDLESS
    longest = max((len(printable(row.spec)) for row in rows), default=0)
    room = console.width - GAP - 1 - GAP - min(longest, console.width // 4)
    tables = [_table(rows, columns) for columns in _packed(column_groups(comparison), room)]
    console.print(Text(printable(facts_line(comparison)), style="bold"), soft_wrap=piped)
    for table in tables:
        console.print("", table)
    console.print()
    skipped = [f"left out: {text}" for text in comparison.skipped[:LISTED]]
    if len(comparison.skipped) > LISTED:
        skipped.append(f"left out: {len(comparison.skipped) - LISTED} more")
    told = [*comparison.verdict, *comparison.pairs]
    front = ["● Pareto front: none that costs no more scores as much"] if any(row.on_front for row in rows) else []
    for style, texts in (("", front), ("yellow", not_timed(rows) + skipped), ("", told)):
        for text in texts:
            console.print(Text(printable(text), style=style), soft_wrap=piped)


def facts_line(comparison: Comparison) -> str:
    """The facts in one line."""
    plain = ("pictures", "device")
    return ", ".join(text if name in plain else f"{name} {text}" for name, text in comparison.facts.items())


def _packed(groups: Sequence[Columns], room: int) -> list[Columns]:
    """Groups of columns side by side, as many as go into the room, in characters."""
    tables: list[Columns] = []
    used = 0
    for group in groups:
        wide = sum(_width(heading, cells) + GAP for heading, cells in group.items())
        if not tables or used + wide > room:
            tables.append({})
            used = 0
        tables[-1] |= group
        used += wide
    return tables


def _table(rows: Sequence[Row], columns: Columns) -> Table:
    """Models at the left, folded where they must; figures are not."""
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
    """Columns that belong together: costs, each measure, each backend."""
    groups = [_costs(comparison.rows)]
    for measure in comparison.measures:
        sign = unit(measure)[1]
        heading = printable(f"{measure}, {sign}" if sign else measure)
        groups.append({heading: [_score_cell(row, measure) for row in comparison.rows]})
    details = {title: [cell(row.details.get(key)) for row in comparison.rows] for title, key in DETAILS.items()}
    groups.append({title: cells for title, cells in details.items() if any(each != NOTHING for each in cells)})
    return [group for group in groups + _times(comparison.rows) if group]


def _costs(rows: Sequence[Row]) -> dict[str, list[Cell]]:
    """The columns of costs; those of which nothing is known are left out."""
    columns = {heading: [cell(COSTS[name](row), per=per) for row in rows] for heading, (name, per) in READ.items()}
    return {heading: cells for heading, cells in columns.items() if any(cell != NOTHING for cell in cells)}


def _score_cell(row: Row, measure: str) -> Cell:
    """Such as "93.3 (88.3–96.7)"."""
    if measure not in row.scores:
        return NOTHING
    factor, sign = unit(measure)
    found = score_figures(row, measure)
    value, low, high = (f"{factor * found[key]:.{1 if sign else 3}f}" for key in ("value", "low", "high"))
    between = f"{low}–{high}" if sign else f"{low} to {high}"  # information may be negative
    return Cell(f"{value} ({between})".replace("-", "−"), found["value"])


def _times(rows: Sequence[Row]) -> list[Columns]:
    """Of each backend that ran: milliseconds, such as "12.3/13.1/14.0", and images a second."""
    groups = []
    for backend in keys(row.timings for row in rows):
        timings = [row.timings.get(backend, {}) for row in rows]
        if any("median_ms" in each for each in timings):
            speeds = [cell(each.get("images_per_second")) for each in timings]
            groups.append({f"{backend} p50/p90/p99 ms": [*map(_time_cell, timings)], f"{backend} images/s": speeds})
    return groups


def _time_cell(timing: Mapping[str, Any]) -> Cell:
    if "median_ms" not in timing:
        return NOTHING
    return Cell("/".join(_digits(timing[key]) for key in ("median_ms", "p90_ms", "p99_ms")), timing["median_ms"])


def not_timed(rows: Sequence[Row]) -> list[str]:
    """Why backends did not run: a line for each backend and reason, with the models that it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for backend in keys(row.timings for row in rows):
        for row in rows:
            if "reason" in (told := row.timings.get(backend, {})):
                found.setdefault((backend, told["reason"]), []).append(row.spec)
    return [
        f"{backend} ({'all models' if len(specs) == len(rows) > 1 else ', '.join(specs)}): {reason}"
        for (backend, reason), specs in found.items()
    ]


def cell(value: float | None, *, per: float = 1) -> Cell:
    """A figure, divided by how much is 1 in the column."""
    return NOTHING if value is None or not math.isfinite(value) else Cell(_digits(value / per), value)


def _digits(value: float) -> str:
    """Three digits, or all of the whole part.

    >>> [_digits(value) for value in (14, 5.518, 1234.5)]
    ['14', '5.52', '1,234']
    """
    whole = value == round(value) or abs(value) >= 100
    return f"{value:,.0f}" if whole else f"{value:#.3g}"


def keys(told: Iterable[Mapping[str, Any]]) -> list[str]:
    """All keys of several mappings, in the order in which they appear first."""
    return list(dict.fromkeys(key for each in told for key in each))


def score_figures(row: Row, measure: str) -> dict[str, float]:
    """A score's value, the ends of its interval, and how many pictures; nothing where there is none."""
    if measure not in row.scores:
        return {}
    score = row.scores[measure]
    low, high = score.interval()
    return {"value": score.value, "low": low, "high": high, "pictures": score.pictures}
