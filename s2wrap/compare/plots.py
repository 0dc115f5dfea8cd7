"""A comparison drawn: quality against what it costs, and against the time it takes."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from s2wrap.compare.comparison import INFORMATION, Comparison, Row
from s2wrap.compare.labels import GREY, INK, PAPER, TEXT, Point, arrange, label
from s2wrap.compare.verdict import pareto_front
from s2wrap.compare.ways import LARGER, PATCH, PLAIN, SCALES, SMALLER, short_names, way_of, weights_of
from s2wrap.errors import S2WrapError

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that colour-blind people tell apart (Okabe and Ito 2008), without those that vanish on white or on black."""
MARKERS = {PLAIN: ("o", 48), SCALES: ("D", 40), LARGER: ("s", 44), PATCH: ("^", 52), SMALLER: ("v", 52)}
"""Shape and area, in square points, of the ways to spend compute."""
DASHES = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))


def plot(comparison: Comparison, measure: str | None = None, panels: Sequence[str] = ("cost", "time")) -> Any:
    """A matplotlib Figure: a measure against multiply-adds, and against the time of the first backend that has one.

    Bars are 95 % intervals. Rings and the step line are the Pareto front of the panel's own two axes; fitted curves
    are drawn with their bands where the first measure stands against multiply-adds. Without measures: bars of costs.

    Args:
        comparison: of any number of models.
        measure: one of the comparison's; the first by default.
        panels: "cost", "time" or both; the time is left out where nothing was timed.

    Raises:
        S2WrapError: a measure that the comparison does not have.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if measure is not None and measure not in comparison.measures:
        known = ", ".join(comparison.measures) or "none, without pictures"
        raise S2WrapError(f"measure {measure!r} is not in this comparison; it has {known}")
    measure = measure or next(iter(comparison.measures), None)
    found = {name: costs for name in panels if (costs := _costs(comparison.rows, name))}
    figure = Figure(facecolor=PAPER)
    FigureCanvasAgg(figure)
    places = [figure.add_subplot() for _ in found]
    arrange(figure, lines=0)
    colours, handles, drawn = _colours(comparison.rows), {}, []
    for place, (name, (title, costs)) in zip(places, found.items(), strict=True):
        _plain_axes(place, title)
        if measure is None:
            _draw_bars(place, comparison.rows, costs, colours)
            continue
        if name == "cost" and measure == comparison.measures[0]:
            handles |= _draw_curves(place, comparison.curves, colours, unit(measure)[0])
        drawn.append(_points(comparison.rows, costs, measure))
        handles |= _draw_points(place, drawn[-1], measure, colours)
    if measure is not None:
        label(figure, drawn, _names(comparison.rows), handles)
    return figure


def unit(measure: str) -> tuple[float, str]:
    """By what a measure's scores are multiplied to be read, and the sign behind them: all but information are shares.

    >>> unit("accuracy")
    (100, '%')
    """
    return (1, "") if measure == INFORMATION else (100, "%")


def printable(text: str) -> str:
    r"""A text on one line: what terminals and XML do not take, such as control characters, is escaped.

    >>> printable("a\x1bb")
    'a\\x1bb'
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def image(figure: Any, **options: Any) -> bytes:
    """A figure as a file, the same bytes every time; the text of an SVG stays text.

    Args:
        figure: of `plot`.
        **options: of matplotlib's `savefig`.
    """
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "s2wrap"}):
        figure.savefig(stream, **options)
    return stream.getvalue()


def _names(rows: Sequence[Row]) -> list[str]:
    return [printable(name) for name in short_names([row.spec for row in rows])]


def _costs(rows: Sequence[Row], panel: str) -> tuple[str, list[float]] | None:
    """A panel's title and what every row costs, 0 where that is not known; None where it is known of none."""
    if panel == "cost":
        return "multiply-adds of one image, billions", [row.cost.multiply_adds / 1e9 for row in rows]
    timed = [backend for row in rows for backend, told in row.timings.items() if "median_ms" in told]
    if not timed:
        return None
    costs = [float(row.timings.get(timed[0], {}).get("median_ms", 0)) for row in rows]
    return f"{printable(timed[0])}: milliseconds a batch, median", costs


def _points(rows: Sequence[Row], costs: Sequence[float], measure: str) -> list[Point]:
    """The rows that have both a cost and a score."""
    scored = [
        number
        for number, row in enumerate(rows)
        if costs[number] > 0 and measure in row.scores and math.isfinite(row.scores[measure].value)
    ]
    by_row = {id(rows[number]): costs[number] for number in scored}
    front = {id(row) for row in pareto_front([rows[number] for number in scored], measure, lambda row: by_row[id(row)])}
    factor, points = unit(measure)[0], []
    for number in scored:
        row, score = rows[number], rows[number].scores[measure]
        low, high = (factor * end if math.isfinite(end) else factor * score.value for end in score.interval())
        points.append(Point(number, row, costs[number], factor * score.value, low, high, id(row) in front))
    return points


def _ways(spec: str) -> tuple[str, str]:
    """The weights of a model, and how it spends compute; of names that are no specs, the name itself."""
    try:
        return weights_of(spec), way_of(spec)
    except S2WrapError:
        return spec, PLAIN


def _colours(rows: Sequence[Row]) -> dict[str, str]:
    """One colour for the same weights, the frequent ones first; where there are not enough, the rest is grey."""
    names = [name for name, _ in Counter(_ways(row.spec)[0] for row in rows).most_common()]
    return dict.fromkeys(names, GREY) | dict(zip(names, PALETTE, strict=False))


def _plain_axes(place: Any, title: str) -> None:
    place.set_facecolor("none")
    place.set_xlabel(title, **TEXT | {"fontsize": 10})
    place.grid(color=GREY, alpha=0.2, linewidth=0.6)
    place.set_axisbelow(True)
    place.tick_params(colors=INK, labelsize=9, length=3)
    for side, spine in place.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def _draw_bars(place: Any, rows: Sequence[Row], costs: Sequence[float], colours: dict[str, str]) -> None:
    """A bar a model, the first on top, its name above it."""
    bars = place.barh(range(len(rows)), costs, height=0.4, color=[colours[_ways(row.spec)[0]] for row in rows])
    place.bar_label(bars, [f"{cost:,.4g}" if cost else "–" for cost in costs], padding=3, **TEXT)
    for number, name in enumerate(_names(rows)):
        place.annotate(name, (0, number - 0.25), (1, 0), textcoords="offset points", va="bottom", **TEXT)
    place.set_xlim(0, 1.12 * max(costs, default=0) or 1)
    place.set_ylim(max(3, len(rows)) - 0.5, -0.75)
    place.set_yticks([])


def _draw_points(place: Any, points: Sequence[Point], measure: str, colours: dict[str, str]) -> dict[str, Any]:
    """Points with intervals and their front; returns what the legend explains, by its words."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    factor, sign = unit(measure)
    place.set_ylabel(f"{printable(measure)}{sign and f', {sign}'} (with 95 % intervals)", **TEXT | {"fontsize": 10})
    place.set_xscale("log")
    place.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    place.xaxis.set_minor_locator(NullLocator())
    place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    if not points:
        place.text(0.5, 0.5, "nothing to show", ha="center", transform=place.transAxes, **TEXT)
        return {}
    ends = [end for point in points for end in (point.low, point.value, point.high)]
    bottom, top = min(ends), max(ends)
    pad = 0.1 * (top - bottom) or 0.05 * factor
    place.set_ylim(bottom - pad, top + pad)
    costs = [point.cost for point in points]
    place.set_xlim(min(costs) / 1.7, 1.7 * max(costs))
    handles = {}
    for way, (marker, area) in MARKERS.items():
        mine = [point for point in points if _ways(point.row.spec)[1] == way]
        if mine:
            xs, ys = [point.cost for point in mine], [point.value for point in mine]
            paints = [colours[_ways(point.row.spec)[0]] for point in mine]
            bars = [point.low for point in mine], [point.high for point in mine]
            place.vlines(xs, *bars, colors=paints, linewidth=1.2, alpha=0.6)
            place.scatter(xs, ys, area, paints, marker=marker, zorder=3, edgecolors=PAPER, linewidths=0.8)
            handles["one scale" if way == PLAIN else way] = place.scatter([], [], area, GREY, marker=marker)
    return handles | _draw_front(place, [point for point in points if point.on_front])


def _draw_front(place: Any, front: Sequence[Point]) -> dict[str, Any]:
    """Rings, and the step line of the best that can be had for a cost."""
    front = sorted(front, key=lambda point: point.cost)
    ring = {"marker": "o", "markersize": 11.5, "markerfacecolor": "none", "markeredgecolor": INK, "color": INK}
    costs, values = [point.cost for point in front], [point.value for point in front]
    place.plot(costs, values, linestyle="none", zorder=4, **ring)
    place.step([*costs, place.get_xlim()[1]], [*values, values[-1]], where="post", color=INK, linewidth=0.9, alpha=0.7)
    return {"Pareto front": place.plot([], [], linewidth=0.9, **ring)[0]}


def _draw_curves(place: Any, curves: dict[str, Any], colours: dict[str, str], factor: float) -> dict[str, Any]:
    """Fitted curves with their bands, from errors back to scores."""
    handles = {}
    for number, (name, curve) in enumerate(curves.items()):
        costs = np.geomspace(curve.low, curve.high, 60)
        look = {"color": colours.get(name, GREY), "zorder": 1}
        low, high = (factor * (1 - errors) for errors in curve.band(costs))
        place.fill_between(costs / 1e9, low, high, alpha=0.12, linewidth=0, **look)
        style = {"linestyle": DASHES[number % len(DASHES)], "linewidth": 1.2}
        (line,) = place.plot(costs / 1e9, factor * (1 - curve.error(costs)), **style, **look)
        handles[f"fitted: {printable(name)}"] = line
    return handles
