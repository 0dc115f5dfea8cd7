"""The words of a figure: what its points are called, beside them or below, and the room for that."""

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
"""Room around a panel's axes, and the height of a line of text below, in inches."""
TEXT: Any = {"color": INK, "fontsize": 8, "parse_math": False}
UNDER = 0.5
"""How far the paper under a label goes beyond it, in points."""
NAMED = 10
"""With more models than this, points are numbered."""
NEAR, FAR = (2, 6, 12), (2, 6, 12, 20, 30, 45, 60, 80, 100, 130, 160, 200)
"""Distances between a point and its label that are tried, in points: names must be near."""
MARK, LED, AMISS = 6.5, 9, 12
"""In points: half of a marker; from what distance a line leads to the label; what hiding a line costs."""


@dataclass(frozen=True)
class Point:
    """One model in a panel: its number among all, its cost and its score with the interval, as the axes show them."""

    number: int
    row: Row
    cost: float
    value: float
    low: float
    high: float
    on_front: bool


def arrange(figure: Any, *, lines: int) -> None:
    """Give each panel the same size in inches, whatever stands below it: that many lines of text."""
    step, room = LEFT + PANEL[0] + RIGHT, BOTTOM + lines * LINE + (LINE / 2 if lines else 0)
    width, height = step * max(1, len(figure.axes)), TOP + PANEL[1] + room
    figure.set_size_inches(width, height)
    for number, place in enumerate(figure.axes):
        corner = ((number * step + LEFT) / width, room / height)
        place.set_position((*corner, PANEL[0] / width, PANEL[1] / height))


def label(figure: Any, panels: Sequence[Sequence[Point]], names: list[str], handles: dict[str, Any]) -> None:
    """Name the points where all names fit beside them; else number them, and tell the numbers below."""
    numbers = [str(number) for number in range(1, len(names) + 1)]
    texts, key = names, []
    spots = [_spots(place, points, names, NEAR) for place, points in zip(figure.axes, panels, strict=True)]
    if len(names) > NAMED or any(None in each for each in spots):
        texts, key = numbers, [f"{number}  {name}" for number, name in zip(numbers, names, strict=True)]
        spots = [_spots(place, points, numbers, FAR) for place, points in zip(figure.axes, panels, strict=True)]
    line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 5}
    under = {"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "pad": UNDER}
    for place, points, found in zip(figure.axes, panels, spots, strict=True):
        for point, spot in zip(points, found, strict=True):
            if spot is not None:
                led = line if spot[1] else None
                place.annotate(
                    texts[point.number], (point.cost, point.value), spot[0], textcoords="offset points", ha="center",
                    va="center", zorder=5, arrowprops=led, bbox=under, **TEXT,
                )  # fmt: skip
    _write_below(figure, key, handles)


def _spots(
    place: Any, points: Sequence[Point], texts: list[str], distances: Sequence[float]
) -> list[tuple[Any, bool] | None]:
    """Where each label's centre goes from its point, in points, and whether that is far; None where it does not fit."""
    scale = 72 / place.figure.dpi

    def at(cost: float, value: float) -> Any:
        return scale * place.transData.transform((cost, value))

    lines = [(*at(point.cost, point.low), *at(point.cost, point.high)) for point in points]
    front = sorted((at(point.cost, point.value) for point in points if point.on_front), key=lambda spot: spot[0])
    front += [(place.figure.get_figwidth() * 72, top) for _, top in front[-1:]]
    for (left, bottom), (right, top) in itertools.pairwise(front):
        lines += [(left, bottom, right, bottom), (right, bottom, right, top)]
    return place_labels(
        np.reshape([at(point.cost, point.value) for point in points], (-1, 2)),
        np.reshape([_text_size(place.figure, texts[point.number]) for point in points], (-1, 2)),
        room=scale * place.bbox.extents,
        lines=lines,
        distances=distances,
    )


def place_labels(points: Any, sizes: Any, *, room: Any, lines: Any, distances: Any) -> list[tuple[Any, bool] | None]:
    """For each of n points the offset of its label's centre, and whether it is far; None where none fits.

    One after the other takes the nearest place, of sixteen directions, that covers no point and no other label. To hide
    a line, or to lie nearer to another point, counts as so much farther.

    Args:
        points: (n, 2), in points, as all that follows.
        sizes: (n, 2) width and height of the labels.
        room: left, bottom, right, top that they must lie in.
        lines: (m, 4) left, bottom, right, top of what they had better not hide.
        distances: (d,) from a point to its label, to try.
    """
    points, sizes, room = (np.asarray(each, dtype=float) for each in (points, sizes, room))
    angles = np.arange(16) * math.pi / 8
    directions = np.column_stack([np.cos(angles), np.sin(angles)])
    taken, lines = (np.reshape(each, (-1, 4)) for each in (np.hstack([points - MARK, points + MARK]), lines))
    found: list[tuple[Any, bool] | None] = []
    for point, size in zip(points, sizes, strict=True):
        offsets = np.vstack([directions * (MARK + distance + size / 2) for distance in distances])
        boxes = np.hstack([point + offsets - size / 2, point + offsets + size / 2])
        gaps = np.linalg.norm(np.maximum(np.abs(point + offsets - points[:, None]) - size / 2, 0), axis=-1)
        nearer = gaps < np.linalg.norm(np.maximum(np.abs(offsets) - size / 2, 0), axis=-1)
        amiss = _overlap(boxes, lines).sum(axis=1) + nearer.sum(axis=0)
        costs = np.repeat(distances, len(directions)) + AMISS * amiss
        outside = (boxes[:, :2] < room[:2]).any(axis=1) | (boxes[:, 2:] > room[2:]).any(axis=1)
        best = int(np.argmin(np.where(outside | _overlap(boxes, taken).any(axis=1), np.inf, costs)))
        if outside[best] or _overlap(boxes[best : best + 1], taken).any():
            found.append(None)
            continue
        taken = np.vstack([taken, boxes[best]])
        gap = np.hypot(*np.maximum(np.abs(offsets[best]) - size / 2, 0))
        found.append((offsets[best], bool(gap > MARK + LED)))
    return found


def _overlap(boxes: Any, others: Any) -> Any:
    """(k, m) whether boxes (k, 4) and others (m, 4) touch."""
    boxes, others = boxes[:, None], others[None]
    return (boxes[..., :2] <= others[..., 2:]).all(axis=-1) & (others[..., :2] <= boxes[..., 2:]).all(axis=-1)


def _text_size(figure: Any, text: str) -> tuple[float, float]:
    """Width and height of a label with the paper under it, in points."""
    from matplotlib.font_manager import FontProperties

    renderer, font = figure.canvas.get_renderer(), FontProperties(size=TEXT["fontsize"])
    width = renderer.get_text_width_height_descent(text, font, False)[0]
    height = renderer.get_text_width_height_descent("lp", font, False)[1]  # what every line is given
    return width * 72 / figure.dpi + 2 * UNDER, height * 72 / figure.dpi + 2 * UNDER


def _write_below(figure: Any, key: list[str], handles: dict[str, Any]) -> None:
    """The legend, and under it the names of numbered points, in as many columns as fit."""
    inches = figure.get_size_inches()[0] - LEFT - RIGHT
    columns = [_columns(figure, texts, inches, gap) for texts, gap in ((list(handles), 0.6), (key, 0.3))]
    rows = [math.ceil(len(texts) / across) for texts, across in zip((handles, key), columns, strict=True)]
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


def _columns(figure: Any, texts: list[str], inches: float, gap: float) -> int:
    """As many columns as fit side by side: one a text, or else as wide as the widest."""
    widths = [_text_size(figure, text)[0] / 72 + gap for text in texts]
    return len(texts) or 1 if sum(widths) <= inches else max(1, int(inches / max(widths)))
