"""Plot a comparison: quality against cost, and against time."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from s2wrap.compare.comparison import Comparison, Row, unit_of
from s2wrap.compare.labels import GREY, INK, PAPER, TEXT, Point, arrange, label_points
from s2wrap.compare.verdict import pareto_front
from s2wrap.compare.ways import LARGER, PATCH, PLAIN, SCALES, SMALLER, short_names, way_of, weights_of
from s2wrap.errors import S2WrapError

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that colour-blind people can distinguish (Okabe and Ito 2008) and that show on white and on black."""
MARKERS = {PLAIN: ("o", 48), SCALES: ("D", 40), LARGER: ("s", 44), PATCH: ("^", 52), SMALLER: ("v", 52)}
"""Marker and area, in square points, of each way to spend compute."""


def plot(comparison: Comparison, measure: str | None = None, panels: Sequence[str] = ("cost", "time")) -> Any:
    """Return a matplotlib Figure of a measure against multiply-adds, and against the first timed backend's time.

    Bars are 95 % intervals. Rings and the step line are the Pareto front of the panel's own two axes.
    Comparisons without measures are drawn as bar charts of costs.

    Args:
        comparison: a comparison of any number of models.
        measure: one of the comparison's measures; the first by default.
        panels: "cost", "time" or both; "time" is left out where nothing was timed.

    Raises:
        S2WrapError: a measure that the comparison does not have.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if measure is not None and measure not in comparison.measures:
        available = ", ".join(comparison.measures) or "none, without pictures"
        raise S2WrapError(f"measure {measure!r} is not in this comparison; it has {available}")
    measure = measure or next(iter(comparison.measures), None)
    titles_and_costs = [costs for name in panels if (costs := _costs(comparison.rows, name))]
    figure = Figure(facecolor=PAPER)
    FigureCanvasAgg(figure)
    all_axes = [figure.add_subplot() for _ in titles_and_costs]
    arrange(figure, lines=0)
    colours, handles, points = _colours(comparison.rows), {}, []
    for axes, (title, costs) in zip(all_axes, titles_and_costs, strict=True):
        _style_axes(axes, title)
        if measure is None:
            _draw_bars(axes, comparison.rows, costs, colours)
            continue
        points.append(_points(comparison.rows, costs, measure))
        handles |= _draw_points(axes, points[-1], measure, colours)
    if measure is not None:
        label_points(figure, points, _names(comparison.rows), handles)
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


def _names(rows: Sequence[Row]) -> list[str]:
    return [printable(name) for name in short_names([row.spec for row in rows])]


def _costs(rows: Sequence[Row], panel: str) -> tuple[str, list[float]] | None:
    """Return a panel's title and every row's cost, 0 where it is unknown; None where all are unknown."""
    if panel == "cost":
        return "multiply-adds of one image, billions", [row.cost.multiply_adds / 1e9 for row in rows]
    timed = [backend for row in rows for backend, figures in row.timings.items() if "median_ms" in figures]
    if not timed:
        return None
    costs = [float(row.timings.get(timed[0], {}).get("median_ms", 0)) for row in rows]
    return f"{printable(timed[0])}: milliseconds a batch, median", costs


def _points(rows: Sequence[Row], costs: Sequence[float], measure: str) -> list[Point]:
    """Return the points of the rows that have both a cost and a score."""
    scored = {
        id(row): (number, row, cost)
        for number, (row, cost) in enumerate(zip(rows, costs, strict=True))
        if cost > 0 and measure in row.scores and math.isfinite(row.scores[measure].value)
    }
    front = pareto_front([row for _, row, _ in scored.values()], measure, lambda row: scored[id(row)][2])
    on_front = {id(row) for row in front}
    factor, points = unit_of(measure).factor, []
    for number, row, cost in scored.values():
        score = row.scores[measure]
        low, high = (factor * end if math.isfinite(end) else factor * score.value for end in score.interval())
        points.append(Point(number, row, cost, factor * score.value, low, high, id(row) in on_front))
    return points


def _weights_and_way(spec: str) -> tuple[str, str]:
    """Return a model's weights and its way to spend compute; for names that are not specs, the name and `PLAIN`."""
    try:
        return weights_of(spec), way_of(spec)
    except S2WrapError:
        return spec, PLAIN


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """Return a colour for each weights' name, the frequent ones first; grey where there are not enough colours."""
    names = [name for name, _ in Counter(_weights_and_way(row.spec)[0] for row in rows).most_common()]
    return dict.fromkeys(names, GREY) | dict(zip(names, PALETTE, strict=False))


def _style_axes(axes: Any, title: str) -> None:
    axes.set_facecolor("none")
    axes.set_xlabel(title, **TEXT | {"fontsize": 10})
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def _draw_bars(axes: Any, rows: Sequence[Row], costs: Sequence[float], colours: dict[str, str]) -> None:
    """Draw a bar for each model, the first on top, with its name above it."""
    bar_colours = [colours[_weights_and_way(row.spec)[0]] for row in rows]
    bars = axes.barh(range(len(rows)), costs, height=0.4, color=bar_colours)
    axes.bar_label(bars, [f"{cost:,.4g}" if cost else "–" for cost in costs], padding=3, **TEXT)
    for number, name in enumerate(_names(rows)):
        axes.annotate(name, (0, number - 0.25), (1, 0), textcoords="offset points", va="bottom", **TEXT)
    axes.set_xlim(0, 1.12 * max(costs, default=0) or 1)
    axes.set_ylim(max(3, len(rows)) - 0.5, -0.75)
    axes.set_yticks([])


def _draw_points(axes: Any, points: Sequence[Point], measure: str, colours: dict[str, str]) -> dict[str, Any]:
    """Draw points with intervals and the Pareto front. Return the legend's handles by their text."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    factor, sign, _ = unit_of(measure)
    axes.set_ylabel(f"{printable(measure)}{sign and f', {sign}'} (with 95 % intervals)", **TEXT | {"fontsize": 10})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    if not points:
        axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes, **TEXT)
        return {}
    ends = [end for point in points for end in (point.low, point.value, point.high)]
    bottom, top = min(ends), max(ends)
    pad = 0.1 * (top - bottom) or 0.05 * factor
    axes.set_ylim(bottom - pad, top + pad)
    costs = [point.cost for point in points]
    axes.set_xlim(min(costs) / 1.7, 1.7 * max(costs))
    handles = {}
    for way, (marker, area) in MARKERS.items():
        of_way = [point for point in points if _weights_and_way(point.row.spec)[1] == way]
        if of_way:
            xs, ys = [point.cost for point in of_way], [point.value for point in of_way]
            point_colours = [colours[_weights_and_way(point.row.spec)[0]] for point in of_way]
            bars = [point.low for point in of_way], [point.high for point in of_way]
            axes.vlines(xs, *bars, colors=point_colours, linewidth=1.2, alpha=0.6)
            axes.scatter(xs, ys, area, point_colours, marker=marker, zorder=3, edgecolors=PAPER, linewidths=0.8)
            handles["one scale" if way == PLAIN else way] = axes.scatter([], [], area, GREY, marker=marker)
    return handles | _draw_front(axes, [point for point in points if point.on_front])


def _draw_front(axes: Any, front: Sequence[Point]) -> dict[str, Any]:
    """Draw rings around the Pareto front, and the step line of the best score up to each cost."""
    front = sorted(front, key=lambda point: point.cost)
    ring = {"marker": "o", "markersize": 11.5, "markerfacecolor": "none", "markeredgecolor": INK, "color": INK}
    costs, values = [point.cost for point in front], [point.value for point in front]
    axes.plot(costs, values, linestyle="none", zorder=4, **ring)
    axes.step([*costs, axes.get_xlim()[1]], [*values, values[-1]], where="post", color=INK, linewidth=0.9, alpha=0.7)
    return {"Pareto front": axes.plot([], [], linewidth=0.9, **ring)[0]}
