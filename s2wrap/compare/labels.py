"""Lay out a figure: the size of its panels, labels beside the points, and the text below."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2wrap.compare.comparison import Row

INK, GREY, PAPER = "#24292f", "#767676", "#ffffff"
PANEL = (5.0, 4.1)
"""Width and height of a panel's axes, in inches."""
LEFT, RIGHT, TOP, BOTTOM, LINE = 0.75, 0.25, 0.25, 0.65, 0.2
"""Margins around a panel's axes, and the height of a line of text below, in inches."""
TEXT: Any = {"color": INK, "fontsize": 8, "parse_math": False}
PADDING = 0.5
"""How far a label's background extends beyond its text, in points."""
MOST_NAMES = 10
"""With more models than this, points are numbered."""
NAME_DISTANCES = (2, 6, 12)
NUMBER_DISTANCES = (2, 6, 12, 20, 30, 45, 60, 80, 100, 130, 160, 200)
"""Distances that are tried between a point and its label, in points: names must be near."""
HALF_MARKER, LEADER, CONFLICT = 6.5, 9, 12
"""In points: half the size of a marker; the distance beyond which a line leads to the label; the cost of a conflict."""


@dataclass(frozen=True)
class Point:
    """One model in a panel: its index among all, and its cost and its score with the interval in the axes' units."""

    number: int
    row: Row
    cost: float
    value: float
    low: float
    high: float
    on_front: bool


def arrange(figure: Any, *, lines: int) -> None:
    """Resize the figure so that every panel has the size `PANEL`, with a number of lines of text below."""
    step, below = LEFT + PANEL[0] + RIGHT, BOTTOM + lines * LINE + (LINE / 2 if lines else 0)
    width, height = step * max(1, len(figure.axes)), TOP + PANEL[1] + below
    figure.set_size_inches(width, height)
    for number, axes in enumerate(figure.axes):
        corner = ((number * step + LEFT) / width, below / height)
        axes.set_position((*corner, PANEL[0] / width, PANEL[1] / height))


def label_points(figure: Any, panels: Sequence[Sequence[Point]], names: list[str], handles: dict[str, Any]) -> None:
    """Write the names beside the points if all fit; otherwise number the points, and list the names below."""
    texts, key = names, []
    drawn = list(zip(figure.axes, panels, strict=True))
    placements = [_place(axes, points, names, NAME_DISTANCES) for axes, points in drawn]
    if len(names) > MOST_NAMES or any(None in panel for panel in placements):
        texts = [str(number) for number in range(1, len(names) + 1)]
        key = [f"{number}  {name}" for number, name in zip(texts, names, strict=True)]
        placements = [_place(axes, points, texts, NUMBER_DISTANCES) for axes, points in drawn]
    leader = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5}
    background = {"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "pad": PADDING}
    for (axes, points), panel in zip(drawn, placements, strict=True):
        for point, placement in zip(points, panel, strict=True):
            if placement is not None:
                offset, far = placement
                axes.annotate(
                    texts[point.number], (point.cost, point.value), offset, textcoords="offset points", ha="center",
                    va="center", zorder=5, arrowprops=leader if far else None, bbox=background, **TEXT,
                )  # fmt: skip
    _write_below(figure, key, handles)


def _place(
    axes: Any, points: Sequence[Point], texts: list[str], distances: Sequence[float]
) -> list[tuple[Any, bool] | None]:
    """Return the labels' offsets as `place_labels` does, avoiding the panel's points, intervals and Pareto front."""
    scale = 72 / axes.figure.dpi

    def position(cost: float, value: float) -> Any:
        return scale * axes.transData.transform((cost, value))

    lines = [(*position(point.cost, point.low), *position(point.cost, point.high)) for point in points]
    front = sorted((position(point.cost, point.value) for point in points if point.on_front), key=lambda xy: xy[0])
    front += [(axes.figure.get_figwidth() * 72, top) for _, top in front[-1:]]
    for (left, bottom), (right, top) in itertools.pairwise(front):
        lines += [(left, bottom, right, bottom), (right, bottom, right, top)]
    return place_labels(
        np.reshape([position(point.cost, point.value) for point in points], (-1, 2)),
        np.reshape([_text_size(axes.figure, texts[point.number]) for point in points], (-1, 2)),
        bounds=scale * axes.bbox.extents,
        lines=lines,
        distances=distances,
    )


def place_labels(points: Any, sizes: Any, *, bounds: Any, lines: Any, distances: Any) -> list[tuple[Any, bool] | None]:
    """Return for each of n points the offset of its label's centre, and whether it is far; None where none fits.

    Greedily, each label takes the nearest of sixteen directions where it covers no point and no other label. Covering
    a line, or lying nearer to another point, counts as an additional distance of `CONFLICT`.

    Args:
        points: (n, 2) positions; all lengths are in points of 1/72 inch.
        sizes: (n, 2) width and height of the labels.
        bounds: left, bottom, right and top of the area that labels must lie in.
        lines: (m, 4) left, bottom, right and top of lines that labels should not cover.
        distances: (d,) distances from a point to its label that are tried.
    """
    points, sizes, bounds = (np.asarray(each, dtype=float) for each in (points, sizes, bounds))
    angles = np.arange(16) * math.pi / 8
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    lines = np.reshape(lines, (-1, 4))
    taken = np.hstack([points - HALF_MARKER, points + HALF_MARKER])
    placements: list[tuple[Any, bool] | None] = []
    for point, size in zip(points, sizes, strict=True):
        offsets = np.vstack([directions * (HALF_MARKER + distance + size / 2) for distance in distances])
        boxes = np.hstack([point + offsets - size / 2, point + offsets + size / 2])
        gaps = np.linalg.norm(np.maximum(np.abs(point + offsets - points[:, None]) - size / 2, 0), axis=-1)
        own_gap = np.linalg.norm(np.maximum(np.abs(offsets) - size / 2, 0), axis=-1)
        conflicts = _overlap(boxes, lines).sum(axis=1) + (gaps < own_gap).sum(axis=0)
        outside = (boxes[:, :2] < bounds[:2]).any(axis=1) | (boxes[:, 2:] > bounds[2:]).any(axis=1)
        impossible = outside | _overlap(boxes, taken).any(axis=1)
        costs = np.where(impossible, np.inf, np.repeat(distances, len(directions)) + CONFLICT * conflicts)
        best = int(np.argmin(costs))
        if np.isinf(costs[best]):
            placements.append(None)
            continue
        taken = np.vstack([taken, boxes[best]])
        placements.append((offsets[best], bool(own_gap[best] > HALF_MARKER + LEADER)))
    return placements


def _overlap(boxes: Any, others: Any) -> Any:
    """Return (k, m) whether boxes (k, 4) and others (m, 4) touch."""
    boxes, others = boxes[:, None], others[None]
    return (boxes[..., :2] <= others[..., 2:]).all(axis=-1) & (others[..., :2] <= boxes[..., 2:]).all(axis=-1)


def _text_size(figure: Any, text: str) -> tuple[float, float]:
    """Return width and height of a label with its background, in points."""
    from matplotlib.font_manager import FontProperties

    renderer, font = figure.canvas.get_renderer(), FontProperties(size=TEXT["fontsize"])
    width = renderer.get_text_width_height_descent(text, font, False)[0]
    height = renderer.get_text_width_height_descent("lp", font, False)[1]  # the height that matplotlib gives every line
    return width * 72 / figure.dpi + 2 * PADDING, height * 72 / figure.dpi + 2 * PADDING


def _write_below(figure: Any, key: list[str], handles: dict[str, Any]) -> None:
    """Draw the legend, and under it the names of numbered points, in as many columns as fit."""
    inches = figure.get_size_inches()[0] - LEFT - RIGHT
    columns = [_column_count(figure, texts, inches, gap) for texts, gap in ((list(handles), 0.6), (key, 0.3))]
    rows = [math.ceil(len(texts) / count) for texts, count in zip((handles, key), columns, strict=True)]
    arrange(figure, lines=sum(rows))
    width, height = figure.get_size_inches()
    top = height - TOP - PANEL[1] - BOTTOM
    if handles:
        figure.legend(
            handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(LEFT / width, top / height),
            ncols=columns[0], frameon=False, fontsize=TEXT["fontsize"], labelcolor=INK, borderpad=0, borderaxespad=0,
            labelspacing=0.7, handletextpad=0.6,
        )  # fmt: skip
    for number, text in enumerate(key):
        column, row = divmod(number, rows[1])
        x, y = LEFT + column * inches / columns[1], top - (rows[0] + row + 0.1) * LINE
        figure.text(x / width, y / height, text, va="top", **TEXT)


def _column_count(figure: Any, texts: list[str], inches: float, gap: float) -> int:
    """Return how many columns fit side by side: one a text, or else columns as wide as the widest text."""
    widths = [_text_size(figure, text)[0] / 72 + gap for text in texts]
    return len(texts) or 1 if sum(widths) <= inches else max(1, int(inches / max(widths)))
