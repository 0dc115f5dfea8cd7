"""Draw the concept pages' pictures: `python docs/drawings.py` writes docs/pages/pictures/*.svg.

They take the colours of the page that they are put into (see hooks.py); alone, a grey that both grounds show.
"""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from s2wrap.plan import tile_axis  # noqa: E402 (of this checkout)
from s2wrap.resample import _blend_window  # noqa: E402

PICTURES = Path(__file__).parent / "pages" / "pictures"
COLOURS = ("#4c8dd6", "#e58a2b", "#3aa76d")
"""Of the scales: blue, orange, green."""
STYLE = """<style>
.s2 text{font:15px system-ui,sans-serif;fill:var(--md-typeset-color,#6e7781)}
.s2 .small{font-size:13px}
.s2 .line{fill:none;stroke:var(--md-typeset-color,#6e7781);stroke-width:1.2}
.s2 .thin{fill:none;stroke:var(--md-typeset-color,#6e7781);stroke-width:.6;opacity:.7}
</style>"""


class Drawing:
    """Shapes in a frame of some width and height."""

    def __init__(self, width: int, height: int):
        self.size, self.shapes = (width, height), [STYLE]

    def text(self, x: float, y: float, words: str, *, anchor: str = "middle", small: bool = False) -> None:
        """Write words with their base line at y."""
        kind = ' class="small"' if small else ""
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{kind}>{escape(words)}</text>')

    def box(self, x: float, y: float, w: float, h: float, colour: str = "none", opacity: float = 0.3) -> None:
        """Draw a rectangle with a line around it, filled with a colour."""
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" class="line"/>')
        if colour != "none":
            place = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"'
            self.shapes.append(f'<rect {place} fill="{colour}" fill-opacity="{opacity:g}"/>')

    def grid(self, x: float, y: float, w: float, h: float, rows: int, cols: int, colour: str, opacity: float = 0.3):
        """Draw a rectangle that is divided evenly."""
        self.box(x, y, w, h, colour, opacity)
        lines = [f"M{x + w * i / cols:g} {y:g}v{h:g}" for i in range(1, cols)]
        lines += [f"M{x:g} {y + h * i / rows:g}h{w:g}" for i in range(1, rows)]
        if lines:
            self.shapes.append(f'<path d="{"".join(lines)}" class="thin"/>')

    def arrow(self, x: float, y: float, length: float) -> None:
        """Draw an arrow to the right."""
        self.shapes.append(f'<path d="M{x:g} {y:g}h{length:g}m-7 -5l7 5l-7 5" class="line"/>')

    def path(self, points: list[tuple[float, float]], colour: str, width: float = 2) -> None:
        """Draw a line through points."""
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.shapes.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>')

    def dot(self, x: float, y: float, colour: str, radius: float = 3) -> None:
        """Draw a point."""
        self.shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{colour}"/>')

    def __str__(self) -> str:
        width, height = self.size
        shapes = "\n".join(self.shapes)
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" class="s2">\n{shapes}\n</svg>\n'


def scales() -> Drawing:
    """An image at three scales, its tiles, their maps, and the fused map."""
    drawing = Drawing(480, 460)
    for x, words in ((65, "resized image"), (250, "map of the scale"), (420, "one grid")):
        drawing.text(x, 18, words)
    top = 36
    for k, colour in enumerate(COLOURS, start=1):
        side = 40 * k
        drawing.grid(65 - side / 2, top, side, side, k, k, colour)
        drawing.grid(250 - side / 2, top, side, side, 4 * k, 4 * k, colour)
        drawing.grid(400, top + side / 2 - 20, 40, 40, 4, 4, colour)
        drawing.arrow(65 + side / 2 + 6, top + side / 2, 250 - side - 65 - 12)
        drawing.arrow(250 + side / 2 + 6, top + side / 2, 400 - 250 - side / 2 - 12)
        words = f"{k}×: 1 tile, 1 backbone pass" if k == 1 else f"{k}×: {k * k} tiles, {k * k} backbone passes"
        drawing.text(160, top + side + 19, words, small=True)
        drawing.text(345, top + side / 2 - 8, "average", small=True)
        top += side + 40
    for k, colour in enumerate(COLOURS):
        drawing.grid(215 + 8 * k, 408 - 6 * k, 40, 40, 4, 4, colour, 0.55)
    drawing.text(205, 432, "joined on channels:", anchor="end")
    drawing.text(285, 432, "3 × the channels", anchor="start")
    return drawing


def tiles() -> Drawing:
    """How a scale of 2, of 1.5, and a whole scale are seen."""
    drawing = Drawing(480, 190)
    blue, orange, green = COLOURS
    drawing.text(75, 16, "2×: 448 pixels")
    for i in range(4):
        drawing.box(15 + 62 * (i % 2), 28 + 62 * (i // 2), 58, 58, blue)
    drawing.text(75, 170, "4 tiles of 224", small=True)
    drawing.text(240, 16, "1.5×: 336 pixels")
    for i in range(4):
        drawing.box(195 + 30 * (i % 2), 43 + 30 * (i // 2), 60, 60, orange, 0.22)
    drawing.text(240, 170, "4 tiles of 224 that overlap", small=True)
    drawing.text(405, 16, "2×, whole")
    drawing.box(345, 28, 120, 120, green)
    drawing.text(405, 170, "1 pass of 448", small=True)
    return drawing


def fit() -> Drawing:
    """What becomes of an image of 2:3 at scale 3."""
    drawing = Drawing(480, 250)
    blue, orange, green = COLOURS
    drawing.text(240, 16, "an image of 427×640 pixels at scale 3")
    drawing.box(195, 26, 90, 60)
    drawing.shapes.append('<circle cx="240" cy="56" r="18" class="line"/>')
    for x, words in ((80, 'fit="stretch"'), (245, 'fit="aspect"'), (410, 'fit="pad"')):
        drawing.text(x, 118, words)
    drawing.grid(35, 130, 90, 90, 3, 3, blue)
    drawing.shapes.append('<ellipse cx="80" cy="175" rx="18" ry="27" class="line"/>')
    drawing.grid(200, 130, 90, 60, 2, 3, orange)
    drawing.shapes.append('<circle cx="245" cy="160" r="18" class="line"/>')
    drawing.grid(365, 130, 90, 60, 2, 3, green)
    drawing.box(365, 130, 90, 90)
    drawing.shapes.append('<circle cx="410" cy="160" r="18" class="line"/>')
    drawing.text(410, 210, "padding", small=True)
    drawing.text(80, 240, "the square", small=True)
    drawing.text(245, 240, "rows × columns that suit it", small=True)
    drawing.text(410, 240, "not in the result", small=True)
    return drawing


def fusion() -> Drawing:
    """What concat, mean, detail and pyramid make of two scales."""
    drawing = Drawing(480, 300)
    blue, orange, _ = COLOURS
    drawing.text(60, 20, "two scales")
    drawing.grid(20, 34, 80, 80, 4, 4, blue)
    drawing.text(60, 132, "coarse", small=True)
    drawing.grid(20, 160, 80, 80, 8, 8, orange)
    drawing.text(60, 258, "fine", small=True)
    drawing.text(200, 20, "concat")
    drawing.grid(168, 42, 72, 72, 4, 4, blue, 0.45)
    drawing.grid(160, 34, 72, 72, 4, 4, orange, 0.45)
    drawing.text(200, 132, "both, on channels", small=True)
    drawing.text(390, 20, "mean, sum, max")
    drawing.grid(354, 34, 72, 72, 4, 4, "#98906a", 0.5)
    drawing.text(390, 132, "the backbone's width", small=True)
    drawing.text(200, 168, "detail")
    drawing.grid(160, 180, 72, 72, 8, 8, blue, 0.45)
    for x, y in ((178, 198), (205, 190), (214, 225), (187, 234)):
        drawing.box(x, y, 9, 9, orange, 0.9)
    drawing.text(200, 270, "coarse, with fine detail", small=True)
    drawing.text(390, 168, "pyramid")
    drawing.grid(330, 192, 48, 48, 4, 4, blue)
    drawing.grid(392, 180, 72, 72, 8, 8, orange)
    drawing.text(390, 270, "each as it is", small=True)
    return drawing


def geometry() -> Drawing:
    """Where the cells of a map lie on an image."""
    drawing = Drawing(480, 330)
    blue, orange, green = COLOURS
    left, top, cell = 80, 46, 80
    drawing.text(left + 2 * cell, 18, "image of 480×640 pixels, map of 3×4 cells")
    drawing.grid(left, top, 4 * cell, 3 * cell, 3, 4, blue, 0.12)
    drawing.box(left + 2 * cell, top + cell, cell, cell, orange, 0.35)
    for i in range(3):
        for j in range(4):
            drawing.dot(left + cell * (j + 0.5), top + cell * (i + 0.5), blue)
    drawing.dot(left + 40, top + 40, green, 6)
    drawing.text(left - 8, top + 5, "(0, 0)", anchor="end", small=True)
    drawing.text(left + 40, top + 62, "(80, 80)", small=True)
    drawing.text(left + 4 * cell + 6, top + 3 * cell + 4, "(480, 640)", anchor="start", small=True)
    drawing.text(left + 2.5 * cell, top + 1.5 * cell + 24, "cell (1, 2)", small=True)
    drawing.text(left + 2 * cell, top + 3 * cell + 24, "every cell: 160×160 pixels (the stride)", small=True)
    drawing.text(left + 2 * cell, top + 3 * cell + 42, "pairs are (down, across)", small=True)
    return drawing


def overlap() -> Drawing:
    """The weights of three tiles of 16 tokens along one axis, by blend."""
    drawing = Drawing(480, 390)
    tokens = 16
    axis = tile_axis(3 * tokens, tokens, overlap=5)
    drawing.text(240, 18, f"weights along 48 tokens of {len(axis.starts)} tiles of 16, overlap=5")
    for number, blend in enumerate(("trim", "constant", "triangular", "gaussian", "smooth")):
        base = 85 + 72 * number
        weights = np.zeros((len(axis.starts), axis.size))
        for tile, (start, shared) in enumerate(zip(axis.starts, axis.overlaps, strict=True)):
            weights[tile, start : start + tokens] = _blend_window(tokens, blend, *shared)
            if blend == "trim":
                places = np.arange(axis.size) + 0.5
                weights[tile] *= (places > axis.owned[tile][0]) & (places < axis.owned[tile][1])
        weights /= weights.sum(axis=0)
        drawing.text(88, base - 14, blend, anchor="end")
        for tile, row in enumerate(weights):
            points = [
                (96 + 7.8 * (token + side), base - 44 * weight) for token, weight in enumerate(row) for side in (0, 1)
            ]
            drawing.path(points, (*COLOURS, "#b05fc4")[tile % 4])
    return drawing


DRAWINGS = {"scales": scales, "tiles": tiles, "fit": fit, "fusion": fusion, "geometry": geometry, "overlap": overlap}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (PICTURES / f"{name}.svg").write_text(str(draw()))
