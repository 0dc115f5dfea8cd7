"""Integers only: which sizes an image is looked at, and where the tiles lie.

`resample.py` turns a plan into matrices, `wrapper.py` runs it.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from s2wrap.errors import S2WrapError

MAX_SCALE = 32
"""The largest scale: at 32 times a 224-pixel backbone an image already makes 1,024 tiles."""

MIN_SIDE = 2
"""The smallest side of an image in pixels: one pixel has no neighbour to interpolate with."""


@dataclass(frozen=True)
class Axis:
    """One axis of one scale, in pixels: tiles of `tile` pixels begin at `starts` on a line of `size` pixels."""

    size: int
    tile: int
    starts: tuple[int, ...]

    @property
    def owned(self) -> tuple[tuple[int, int], ...]:
        """The stretch of the line that each tile answers for: where two tiles overlap they meet half-way."""
        cuts = [(first + self.tile + second) // 2 for first, second in pairwise(self.starts)]
        return tuple(pairwise([0, *cuts, self.size]))


@dataclass(frozen=True)
class ScalePlan:
    """One scale: the size the image is resized to, and its tiles in rows and columns."""

    rows: Axis
    cols: Axis

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the resized image in pixels."""
        return self.rows.size, self.cols.size

    @property
    def origins(self) -> tuple[tuple[int, int], ...]:
        """Top and left of every tile in pixels, row by row."""
        return tuple((top, left) for top in self.rows.starts for left in self.cols.starts)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the image that each tile answers for, row by row; they sum to 1."""
        area = self.rows.size * self.cols.size
        return tuple(
            (bottom - top) * (right - left) / area for top, bottom in self.rows.owned for left, right in self.cols.owned
        )


@dataclass(frozen=True)
class Plan:
    """All scales of one image."""

    image_hw: tuple[int, int]
    scales: tuple[ScalePlan, ...]

    @property
    def num_tiles(self) -> int:
        """How many times the backbone looks at a tile of this image."""
        return sum(len(scale.origins) for scale in self.scales)


def plan_image(image_hw: tuple[int, int], *, tile_hw: tuple[int, int], sizes_hw: tuple[tuple[int, int], ...]) -> Plan:
    """The sizes and tiles at which an image is looked at; the image is stretched to each size (paper, section 3.1).

    Args:
        image_hw: height and width of the image in pixels.
        tile_hw: the backbone's own input size in pixels: every tile has exactly this size.
        sizes_hw: the size to resize the image to, one a scale, as `scale_size` gives it.

    Raises:
        S2WrapError: a side of the image is shorter than 2 pixels.

    >>> plan_image((480, 640), tile_hw=(224, 224), sizes_hw=((224, 224), (336, 336))).scales[1].rows
    Axis(size=336, tile=224, starts=(0, 112))
    """
    if min(image_hw) < MIN_SIDE:
        raise S2WrapError(
            f"an image of {image_hw[0]}×{image_hw[1]} pixels (height × width) cannot be resized; "
            f"each side needs at least {MIN_SIDE} pixels"
        )
    scales = tuple(ScalePlan(tile_axis(height, tile_hw[0]), tile_axis(width, tile_hw[1])) for height, width in sizes_hw)
    return Plan((int(image_hw[0]), int(image_hw[1])), scales)


def tile_axis(size: int, tile: int) -> Axis:
    """As few full tiles as cover `size` pixels, side by side; the last is shifted back to end where the line ends.

    >>> tile_axis(500, 224).starts
    (0, 224, 276)
    """
    count = math.ceil(size / tile)
    return Axis(size, tile, tuple(min(i * tile, size - tile) for i in range(count)))


def parse_scale(scale: float | str) -> tuple[float, bool]:
    """The number in a scale, and whether it is a side in pixels ("448px") rather than a multiple."""
    in_pixels = isinstance(scale, str) and scale.strip().endswith("px")
    try:
        value = float(scale.strip().removesuffix("px") if isinstance(scale, str) else scale)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or isinstance(scale, bool):
        raise S2WrapError(
            f"scale {scale!r} is no scale; use a multiple of the backbone's own size such as 2, "
            f"or a side in pixels such as '448px'"
        )
    return value, in_pixels


def scale_size(scale: float | str, tile_hw: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels to resize an image to, for one scale.

    Args:
        scale: a multiple of the backbone's own input size (1 is the size it was trained at), from 1 to 32, as a
            number or text; or a side in pixels, as text: `"448px"`.
        tile_hw: the backbone's own input size.

    Raises:
        S2WrapError: not a number, smaller than one tile, or larger than 32 tiles.

    >>> scale_size(2, (224, 224)), scale_size("336px", (224, 224))
    ((448, 448), (336, 336))
    """
    value, in_pixels = parse_scale(scale)
    tile_h, tile_w = tile_hw
    if in_pixels and tile_h != tile_w:
        raise S2WrapError(
            f"scale {scale!r} gives one side, but the backbone takes {tile_h}×{tile_w} pixels; use a multiple such as 2"
        )
    multiple = value / tile_h if in_pixels else value
    if multiple < 1:
        raise S2WrapError(
            f"scale {scale!r} makes an image of {multiple * tile_h:g}×{multiple * tile_w:g} pixels, smaller than the "
            f"backbone's {tile_h}×{tile_w}; use a scale of at least 1 (or '{tile_h}px')"
        )
    if multiple > MAX_SCALE:
        hint = "" if in_pixels else f"; for a side of {value:.0f} pixels write '{value:.0f}px'"
        raise S2WrapError(
            f"scale {scale!r} makes an image {multiple:g} times the backbone's {tile_h}×{tile_w} pixels; "
            f"the largest scale is {MAX_SCALE}{hint}"
        )
    return math.floor(multiple * tile_h + 0.5), math.floor(multiple * tile_w + 0.5)
