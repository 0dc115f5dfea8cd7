"""Integers only: which sizes an image is looked at, and where the tiles lie.

`resample.py` turns a plan into matrices, `wrapper.py` runs it.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import index
from typing import Any

from s2wrap.errors import S2WrapError
from s2wrap.notebook import html_table
from s2wrap.policies import POLICIES, Policy, choose_grid

MAX_SCALE = 32
"""The largest scale: at 32 times a 224-pixel backbone an image already makes 1,024 tiles."""
MIN_SIDE = 2
"""The smallest side of an image in pixels: one pixel has no neighbour to interpolate with."""
FITS = ("stretch", "aspect", "pad")

Pair = tuple[int, int]


@dataclass(frozen=True)
class Scale:
    """One look at the image, where a number does not say enough. What is None, the model's own options say.

    Args:
        size: a multiple of the backbone's own input size (1 is the size it was trained at), or a side in pixels as
            text: "448px".
        fit: "stretch", "aspect" or "pad".
        whole: one backbone call on the whole resized image, instead of tiles of the backbone's own size.
        policy: how "aspect" chooses the rows and columns of tiles: "closest", "nvila", "internvl", "anyres" or a
            function (`s2wrap.policies`). With "pad", the image is fitted into that grid.
        max_tiles: the tile budget of the policy. Default: the tiles of the square scale, size².
    """

    size: float | str
    fit: str | None = None
    whole: bool | None = None
    policy: str | Policy | None = None
    max_tiles: int | None = None

    @property
    def chooses_tiles(self) -> bool:
        """Whether a policy chooses the rows and columns of tiles, once every option is set."""
        return self.policy is not None and self.fit != "stretch" and not self.whole

    def __str__(self) -> str:
        words = [str(self.size), self.fit, {True: "whole", False: "tiled", None: None}[self.whole]]
        return ":".join(word for word in words if word)


@dataclass(frozen=True)
class Axis:
    """One axis of one scale, in pixels: tiles of `tile` pixels begin at `starts` on a line of `size` pixels.

    The image fills the first `content` pixels; the rest is padding.
    """

    size: int
    tile: int
    starts: tuple[int, ...]
    content: int

    @property
    def stride(self) -> int:
        """The most pixels from one tile to the next; a tile if there is only one."""
        return max((second - first for first, second in pairwise(self.starts)), default=self.tile)

    @property
    def overlaps(self) -> tuple[tuple[int, int], ...]:
        """Pixels that each tile shares with the one before and the one after."""
        shared = [first + self.tile - second for first, second in pairwise(self.starts)]
        return tuple(zip([0, *shared], [*shared, 0], strict=True))

    @property
    def owned(self) -> tuple[tuple[int, int], ...]:
        """The stretch of the image that each tile answers for: where two tiles overlap they meet half-way."""
        cuts = [(first + self.tile + second) // 2 for first, second in pairwise(self.starts)]
        return tuple(pairwise([0, *cuts, self.content]))


@dataclass(frozen=True)
class ScalePlan:
    """One scale: the size the image is resized to, and its tiles in rows and columns."""

    rows: Axis
    cols: Axis

    @property
    def image_hw(self) -> Pair:
        """Height and width of the resized image in pixels, without padding."""
        return self.rows.content, self.cols.content

    @property
    def padding_hw(self) -> Pair:
        """Pixels of padding below and to the right of the resized image."""
        return self.rows.size - self.rows.content, self.cols.size - self.cols.content

    @property
    def tile_hw(self) -> Pair:
        """Height and width of a tile in pixels; the whole canvas for a whole scale."""
        return self.rows.tile, self.cols.tile

    @property
    def block_size(self) -> Pair:
        """Rows and columns of tiles."""
        return len(self.rows.starts), len(self.cols.starts)

    @property
    def origins(self) -> tuple[Pair, ...]:
        """Top and left of every tile in pixels, row by row."""
        return tuple((top, left) for top in self.rows.starts for left in self.cols.starts)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the image that each tile answers for, row by row; they sum to 1."""
        area = self.rows.content * self.cols.content
        return tuple(
            (bottom - top) * (right - left) / area for top, bottom in self.rows.owned for left, right in self.cols.owned
        )


@dataclass(frozen=True)
class Plan:
    """All scales of one image."""

    image_hw: Pair
    scales: tuple[ScalePlan, ...]

    @property
    def num_tiles(self) -> int:
        """How many times the backbone looks at a tile of this image, or at the whole."""
        return sum(len(scale.origins) for scale in self.scales)

    def __str__(self) -> str:
        lines = [self._title]
        for k, image, tiles, padding in self._rows():
            lines.append(f"  scale {k}: {image} in {tiles}" + (f", padding {padding}" if padding else ""))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_table(self._title, ["scale", "image", "tiles", "padding"], self._rows())

    @property
    def _title(self) -> str:
        return f"{self.image_hw[0]}×{self.image_hw[1]} pixels (height × width), {self.num_tiles} tiles"

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """What a table of the scales says: index, size of the resized image, tiles, padding below and right."""
        rows = []
        for k, scale in enumerate(self.scales):
            image, tile, tiles, padding = (
                f"{down}×{across}"
                for down, across in (scale.image_hw, scale.tile_hw, scale.block_size, scale.padding_hw)
            )
            rows.append((str(k), image, f"{tiles} of {tile}", padding if any(scale.padding_hw) else ""))
        return rows


def plan_image(
    image_hw: Pair,
    scales: tuple[Scale, ...],
    *,
    tile_hw: Pair,
    patch_hw: tuple[float, float],
    overlap: int = 0,
) -> Plan:
    """The sizes and tiles at which an image is looked at.

    Args:
        image_hw: height and width of the image in pixels.
        scales: with every option set.
        tile_hw: the backbone's own input size in pixels: every tile has exactly this size.
        patch_hw: pixels between tokens; whole scales get a multiple of it.
        overlap: tokens that neighbouring tiles share, at least.

    Raises:
        S2WrapError: a side of the image is shorter than 2 pixels, or than one patch once it is resized; a policy
            finds no grid.

    >>> scales = (Scale(1, "stretch", False), Scale(1.5, "stretch", False))
    >>> plan_image((480, 640), scales, tile_hw=(224, 224), patch_hw=(16, 16)).scales[1].rows
    Axis(size=336, tile=224, starts=(0, 112), content=336)
    """
    image_hw = parse_image_hw(image_hw)
    plans = []
    for scale in scales:
        content_hw = _content(scale, image_hw, tile_hw, patch_hw)
        for side, patch, axis in zip(content_hw, patch_hw, ("height", "width"), strict=True):
            if side < patch:
                raise S2WrapError(
                    f"at scale {scale} an image of {image_hw[0]}×{image_hw[1]} pixels (height × width) has a {axis} "
                    f"of {side} pixels, less than one patch of {patch:g}; use fit='stretch', or a larger scale"
                )
        axes = [
            _whole_axis(content, patch) if scale.whole else tile_axis(content, tile, round(overlap * patch), patch)
            for content, tile, patch in zip(content_hw, tile_hw, patch_hw, strict=True)
        ]
        plans.append(ScalePlan(*axes))
    return Plan(image_hw, tuple(plans))


def whole_number(value: Any) -> int | None:
    """A whole number of any library as an int; None for what is none, such as 1.5 or True."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def whole_pair(values: Any) -> Pair | None:
    """Two whole numbers; None for what is none."""
    numbers = [whole_number(value) for value in values] if isinstance(values, tuple | list) else []
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        return None
    return numbers[0], numbers[1]


def parse_image_hw(image_hw: Any) -> Pair:
    """Height and width of an image as given, checked."""
    pair = whole_pair(image_hw)
    if pair is None:
        raise S2WrapError(f"image_hw={image_hw!r} is no image size; use (height, width) in whole pixels")
    check_image(pair)
    return pair


def check_image(image_hw: Pair) -> None:
    """Raise S2WrapError for an image without two pixels a side."""
    if min(image_hw) < MIN_SIDE:
        raise S2WrapError(
            f"an image of {image_hw[0]}×{image_hw[1]} pixels (height × width) cannot be resized; "
            f"each side needs at least {MIN_SIDE} pixels"
        )


def tile_axis(content: int, tile: int, overlap: int = 0, patch: float = 1) -> Axis:
    """As few full tiles as cover `content` pixels and share `overlap` with their neighbours.

    Without overlap they lie side by side, and the last is shifted back to end where the line ends; with it they are
    spread evenly, in whole patches. A line shorter than a tile is padded to one.

    >>> tile_axis(500, 224).starts, tile_axis(672, 224, 70, 14).starts
    ((0, 224, 276), (0, 154, 294, 448))
    """
    size = max(content, tile)
    count = 1 + math.ceil((size - tile) / (tile - overlap))
    if overlap == 0 or count == 1:
        starts = [min(i * tile, size - tile) for i in range(count)]
    else:
        step = (size - tile) / (count - 1)
        starts = [round(math.floor(i * step / patch + 0.5) * patch) for i in range(count - 1)] + [size - tile]
    return Axis(size, tile, tuple(starts), content)


def _whole_axis(content: int, patch: float) -> Axis:
    """One tile of whole patches."""
    size = math.ceil(content / patch) * round(patch)
    return Axis(size, size, (0,), content)


def _content(scale: Scale, image_hw: Pair, tile_hw: Pair, patch_hw: tuple[float, float]) -> Pair:
    """Height and width in pixels that an image is resized to."""
    box_hw = scale_size(scale.size, tile_hw)
    if scale.fit == "stretch":
        return _round_to(box_hw, patch_hw) if scale.whole else box_hw
    if scale.policy is not None and not scale.whole and min(box_hw) >= min(tile_hw):
        tiles = math.floor(box_hw[0] * box_hw[1] / (tile_hw[0] * tile_hw[1]))
        policy = POLICIES[scale.policy] if isinstance(scale.policy, str) else scale.policy
        most = scale.max_tiles or tiles
        if policy is POLICIES["nvila"] and tiles > most and _number(scale.size)[1]:
            raise S2WrapError(
                f"scale {scale} makes {tiles} tiles of {tile_hw[0]}×{tile_hw[1]} pixels, but max_tiles={most}; use "
                f"max_tiles={tiles} or more, or a backbone built at {box_hw[0] // math.isqrt(most)} pixels "
                f"(image_size={box_hw[0] // math.isqrt(most)})"
            )
        rows, cols = choose_grid(policy, image_hw, tile_hw, tiles, most)
        box_hw = (rows * tile_hw[0], cols * tile_hw[1])
        if scale.fit == "aspect":
            return box_hw
    if scale.fit == "pad":
        ratio = min(box / side for box, side in zip(box_hw, image_hw, strict=True))
        return round(image_hw[0] * ratio), round(image_hw[1] * ratio)
    ratio = math.sqrt(box_hw[0] * box_hw[1] / (image_hw[0] * image_hw[1]))  # whole: as many pixels as the square
    return _round_to((round(image_hw[0] * ratio), round(image_hw[1] * ratio)), patch_hw)


def _round_to(size_hw: Pair, patch_hw: tuple[float, float]) -> Pair:
    """The nearest whole patches; less than half a patch is left as it is."""
    height, width = (
        math.floor(side / patch + 0.5) * round(patch) or side for side, patch in zip(size_hw, patch_hw, strict=True)
    )
    return height, width


def parse_scale(scale: Any) -> Scale:
    """A scale as given: a `Scale`, a number, or text with options after colons: "2", "448px", "3:whole:aspect"."""
    if isinstance(scale, Scale):
        parsed = scale
    elif isinstance(scale, str):
        size, *words = (word.strip() for word in scale.split(":"))
        for known in (FITS, ("whole", "tiled")):
            if len(said := sorted(set(words) & set(known), key=words.index)) > 1:
                raise S2WrapError(f"scale {scale!r} says {' and '.join(said)}; use one of them")
        parsed = Scale(size)
        for word in words:
            if word in FITS:
                parsed = replace(parsed, fit=word)
            elif word in ("whole", "tiled"):
                parsed = replace(parsed, whole=word == "whole")
            else:
                raise S2WrapError(
                    f"scale {scale!r}: {word!r} is unknown; after the size write whole, tiled, {', '.join(FITS)}"
                )
    else:
        parsed = Scale(scale)
    _number(parsed.size)
    check_fit(parsed.fit, parsed.policy, parsed.whole)
    tiles = parsed.max_tiles
    if tiles is None:
        return parsed
    if (number := whole_number(tiles)) is None or number < 1:
        raise S2WrapError(f"max_tiles={tiles!r} is no number of tiles; use 1 or more")
    return replace(parsed, max_tiles=number)


def check_fit(fit: Any, policy: Any, whole: Any) -> None:
    """Raise S2WrapError for a fit, policy or whole that does not exist; None is left for the model to decide."""
    if fit not in (None, *FITS):
        raise S2WrapError(f"fit={fit!r} is unknown; use one of {', '.join(FITS)}")
    if not (policy is None or callable(policy) or (isinstance(policy, str) and policy in POLICIES)):
        raise S2WrapError(f"policy={policy!r} is unknown; use a function or one of {', '.join(POLICIES)}")
    if whole not in (None, True, False):
        raise S2WrapError(f"whole={whole!r} is unknown; use True, False (tiles), or None for the default")


def _number(size: Any) -> tuple[float, bool]:
    """The number in a scale's size, and whether it is a side in pixels ("448px") rather than a multiple."""
    in_pixels = isinstance(size, str) and size.strip().endswith("px")
    try:
        value = float(size.strip().removesuffix("px") if isinstance(size, str) else size)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or isinstance(size, bool):
        raise S2WrapError(
            f"scale {size!r} is no scale; use a multiple of the backbone's own size such as 2, "
            f"or a side in pixels such as '448px'"
        )
    return value, in_pixels


def scale_size(size: Any, tile_hw: Pair) -> Pair:
    """Height and width in pixels of the box that a scale resizes an image to.

    Args:
        size: a multiple of the backbone's own input size (1 is the size it was trained at), up to 32, as a number or
            text; or a side in pixels, as text: `"448px"`.
        tile_hw: the backbone's own input size.

    Raises:
        S2WrapError: not a number, not above 0, or larger than 32 tiles.

    >>> scale_size(2, (224, 224)), scale_size("336px", (224, 224))
    ((448, 448), (336, 336))
    """
    value, in_pixels = _number(size)
    tile_h, tile_w = tile_hw
    if in_pixels and tile_h != tile_w:
        raise S2WrapError(
            f"scale {size!r} gives one side, but the backbone takes {tile_h}×{tile_w} pixels; use a multiple such as 2"
        )
    multiple = value / tile_h if in_pixels else value
    if multiple * min(tile_hw) < 1:
        raise S2WrapError(f"scale {size!r} leaves no pixel of the image; use a scale above 0, such as 0.5 or 1")
    if multiple > MAX_SCALE:
        hint = "" if in_pixels else f"; for a side of {value:.0f} pixels write '{value:.0f}px'"
        raise S2WrapError(
            f"scale {size!r} makes an image {multiple:g} times the backbone's {tile_h}×{tile_w} pixels; "
            f"the largest scale is {MAX_SCALE}{hint}"
        )
    return math.floor(multiple * tile_h + 0.5), math.floor(multiple * tile_w + 0.5)
