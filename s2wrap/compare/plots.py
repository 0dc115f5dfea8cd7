"""Plot a comparison: quality against cost, and against time."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2wrap.compare.comparison import Comparison, Row, unit_of
from s2wrap.compare.verdict import pareto_front
from s2wrap.compare.ways import LARGER, PATCH, PLAIN, SCALES, SMALLER, short_names, way_of, weights_of
from s2wrap.errors import S2WrapError

INK, GREY, PAPER = "#24292f", "#767676", "#ffffff"
WIDTH = 4.8
"""Of a panel in inches: small, so that its text can be read on a phone."""
TEXT: Any = {"color": INK, "fontsize": 9, "parse_math": False}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that colour-blind people can distinguish (Okabe and Ito 2008) and that show on white and on black."""
MARKERS = {PLAIN: "o", SCALES: "D", LARGER: "s", PATCH: "^", SMALLER: "v"}
"""The marker of each way to spend compute."""
RING: Any = {"marker": "o", "markersize": 11.5, "markerfacecolor": "none", "markeredgecolor": INK, "color": INK}
"""How the points on the Pareto front are marked."""


@dataclass(frozen=True)
class Point:
    """One model in a panel: its number from 1, and its cost and its score with the interval in the axes' units."""

    number: int
    marker: str
    colour: str
    cost: float
    value: float
    low: float
    high: float
    on_front: bool


def plot(comparison: Comparison, measure: str | None = None, panels: Sequence[str] = ("cost", "time")) -> Any:
    """Return a matplotlib Figure of a measure against multiply-adds, and against the first timed backend's time.

    Bars are 95 % intervals. Rings and the step line are the Pareto front of the panel's own two axes.

    Args:
        comparison: a comparison of any number of models.
        measure: one of the comparison's measures; the first by default.
        panels: "cost", "time" or both; "time" is left out where nothing was timed.

    Raises:
        S2WrapError: a comparison of costs only, or a measure that it does not have.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not comparison.measures:
        raise S2WrapError("costs only, without a score, are no plot: compare on pictures (data=), or write .html")
    measure, rows = measure or comparison.measures[0], comparison.rows
    if measure not in comparison.measures:
        raise S2WrapError(f"measure {measure!r} is not in this comparison; it has {', '.join(comparison.measures)}")
    drawn = [costs for name in panels if (costs := _costs(rows, name))]
    names = [printable(name) for name in short_names([row.spec for row in rows])]
    columns = max(1, int(WIDTH * len(drawn) / (0.4 + 0.075 * max(map(len, names), default=0))))
    height = 4 + 0.22 * math.ceil((len(rows) + 1) / columns)
    figure = Figure((WIDTH * max(1, len(drawn)), height), facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    colours, panels_of_points = _colours(rows), []
    for number, (title, costs) in enumerate(drawn, start=1):
        axes = figure.add_subplot(1, len(drawn), number)
        points = _points(rows, costs, measure, colours)
        _style_axes(axes, title, measure)
        if points:
            _draw_points(axes, points, unit_of(measure).factor)
            panels_of_points.append((axes, points))
        else:
            axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes, **TEXT)
    _draw_key(figure, rows, names, colours, columns)
    for axes, points in panels_of_points:
        _number(axes, points)
    return figure


def printable(text: str) -> str:
    r"""Return a text with characters that terminals and XML do not accept, such as line breaks, escaped.

    >>> printable("a\x1bb")
    'a\\x1bb'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def image(figure: Any, **options: Any) -> bytes:
    """Return a figure as the bytes of a file, the same on every call; the text of an SVG stays text.

    Args:
        figure: a figure made by `plot`.
        **options: passed to matplotlib's `savefig`.
    """
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "s2wrap"}):
        figure.savefig(stream, **options)
    return stream.getvalue()


def _costs(rows: Sequence[Row], panel: str) -> tuple[str, list[float]] | None:
    """Return a panel's title and every row's cost, 0 where it is unknown; None where all are unknown."""
    if panel == "cost":
        return "multiply-adds of one image, billions", [row.cost.multiply_adds / 1e9 for row in rows]
    timed = [backend for row in rows for backend, figures in row.timings.items() if "median_ms" in figures]
    if not timed:
        return None
    costs = [float(row.timings.get(timed[0], {}).get("median_ms", 0)) for row in rows]
    return f"{printable(timed[0])}: milliseconds a batch, median", costs


def _points(rows: Sequence[Row], costs: Sequence[float], measure: str, colours: Sequence[str]) -> list[Point]:
    """Return the points of the rows that have both a cost and a score."""
    scored = {
        row.spec: (number, row, cost)
        for number, (row, cost) in enumerate(zip(rows, costs, strict=True), start=1)
        if cost > 0 and measure in row.scores and math.isfinite(row.scores[measure].value)
    }
    scored_rows = [row for _, row, _ in scored.values()]
    front = {row.spec for row in pareto_front(scored_rows, measure, lambda row: scored[row.spec][2])}
    factor, points = unit_of(measure).factor, []
    for number, row, cost in scored.values():
        score, marker = row.scores[measure], MARKERS[way_of(row.spec)]
        low, high = (factor * end if math.isfinite(end) else factor * score.value for end in score.interval())
        colour, value = colours[number - 1], factor * score.value
        points.append(Point(number, marker, colour, cost, value, low, high, row.spec in front))
    return points


def _colours(rows: Sequence[Row]) -> list[str]:
    """Return each row's colour, one for each weights' name, the frequent ones first; grey where none is left."""
    names = [weights_of(row.spec) for row in rows]
    colours = dict(zip((name for name, _ in Counter(names).most_common()), PALETTE, strict=False))
    return [colours.get(name, GREY) for name in names]


def _style_axes(axes: Any, title: str, measure: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    sign = unit_of(measure).sign
    axes.set_facecolor("none")
    axes.set_xlabel(title, **TEXT | {"fontsize": 10})
    axes.set_ylabel(f"{printable(measure)}{sign and f', {sign}'} (with 95 % intervals)", **TEXT | {"fontsize": 10})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _draw_points(axes: Any, points: Sequence[Point], factor: float) -> None:
    """Draw points with intervals, rings around the Pareto front, and the step line of the best score up to a cost."""
    ends = [end for point in points for end in (point.low, point.value, point.high)]
    pad = 0.1 * (max(ends) - min(ends)) or 0.05 * factor
    axes.set_ylim(min(ends) - pad, max(ends) + pad)
    costs = [point.cost for point in points]
    axes.set_xlim(min(costs) / 1.7, 1.7 * max(costs))
    for point in points:
        axes.vlines(point.cost, point.low, point.high, colors=point.colour, linewidth=1.4, alpha=0.75)
        axes.scatter(point.cost, point.value, 48, point.colour, marker=point.marker, zorder=3, edgecolors=PAPER)
    costs, values = zip(*sorted((point.cost, point.value) for point in points if point.on_front), strict=True)
    axes.plot(costs, values, linestyle="none", zorder=4, **RING)
    axes.step([*costs, axes.get_xlim()[1]], [*values, values[-1]], where="post", color=INK, linewidth=0.9, alpha=0.7)


def _draw_key(figure: Any, rows: Sequence[Row], names: Sequence[str], colours: Sequence[str], columns: int) -> None:
    """Draw below the panels what the numbers stand for."""
    from matplotlib.lines import Line2D

    markers = [MARKERS[way_of(row.spec)] for row in rows]
    handles = [Line2D([], [], linestyle="none", marker=m, color=c) for m, c in zip(markers, colours, strict=True)]
    texts = [f"{number}  {name}" for number, name in enumerate(names, start=1)]
    legend = figure.legend(
        [*handles, Line2D([], [], linewidth=0.9, **RING)], [*texts, "Pareto front"], loc="outside lower left",
        ncols=columns, frameon=False, fontsize=TEXT["fontsize"], labelcolor=INK,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _number(axes: Any, points: Sequence[Point]) -> None:
    """Write the points' numbers beside them, where they cover neither each other nor a point nor an interval."""
    import textalloc

    xs, ys = [point.cost for point in points], [point.value for point in points]
    texts = [str(point.number) for point in points]
    bars = {"x_lines": [[point.cost] * 2 for point in points], "y_lines": [[point.low, point.high] for point in points]}
    style = {"textsize": TEXT["fontsize"], "textcolor": INK, "linecolor": GREY, "linewidth": 0.6, "zorder": 5}
    markers = {"x_scatter": xs, "y_scatter": ys}
    textalloc.allocate(axes, xs, ys, texts, min_distance=0.025, max_distance=0.25, **markers, **bars, **style)
