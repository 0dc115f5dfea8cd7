"""Integers only: at which sizes an image is looked at, and where the tiles lie.

`resample.py` turns a plan into matrices, `wrapper.py` runs it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from s2wrap.errors import S2WrapError
from s2wrap.notebook import html_table
from s2wrap.policies import Pair, Policy, choose_grid, nvila, policy_function
from s2wrap.scales import ResolvedScale, whole_pair

MIN_SIDE = 2
"""The smallest side of an image in pixels: one pixel has no neighbour to interpolate with."""


@dataclass(frozen=True)
class Axis:
    """One axis of one scale, in pixels: tiles of `tile` pixels begin at `starts` on a line of `size` pixels.

    The image fills the first `content` pixels; the rest is padding. With `phases` above 1 the image is covered that
    many times: every so many starts are one covering, which begins a part of a patch after the one before.
    """

    size: int
    tile: int
    starts: tuple[int, ...]
    content: int
    phases: int = 1

    @property
    def shift(self) -> int:
        """Pixels from the first covering to the last."""
        return self.starts[self.phases - 1] - self.starts[0]

    @property
    def stride(self) -> int:
        """The most pixels from one tile to the next of its covering; a tile if there is only one."""
        return max((second - first for first, second in self._neighbours), default=self.tile)

    @property
    def overlaps(self) -> tuple[tuple[int, int], ...]:
        """Pixels that each tile shares with the one before and the one after in its covering."""
        shared = [first + self.tile - second for first, second in self._neighbours]
        edge = [0] * self.phases
        return tuple(zip([*edge, *shared], [*shared, *edge], strict=True))

    @property
    def owned(self) -> tuple[tuple[int, int], ...]:
        """The stretch of the image that each tile answers for in its covering: overlapping tiles meet half-way."""
        cuts = [(first + self.tile + second) // 2 for first, second in self._neighbours]
        first, last = [0] * self.phases, [self.content] * self.phases
        return tuple(zip([*first, *cuts], [*cuts, *last], strict=True))

    @property
    def _neighbours(self) -> list[tuple[int, int]]:
        return list(zip(self.starts, self.starts[self.phases :], strict=False))


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
        area = self.rows.content * self.cols.content * self.rows.phases * self.cols.phases
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
    scales: Sequence[ResolvedScale],
    *,
    tile_hw: Pair,
    patch_hw: tuple[float, float],
    overlap: int = 0,
) -> Plan:
    """The sizes and tiles at which an image is looked at.

    Args:
        image_hw: height and width of the image in pixels.
        scales: the scales of a model.
        tile_hw: the backbone's own input size in pixels: every tile has exactly this size.
        patch_hw: pixels between tokens; whole scales get a multiple of it.
        overlap: tokens that neighbouring tiles share, at least.

    Raises:
        S2WrapError: a side of the image is shorter than 2 pixels, or than one patch once it is resized; a policy
            finds no grid.

    >>> from s2wrap.scales import Scale
    >>> scale = ResolvedScale(Scale(1.5), (336, 336), "stretch", whole=False, policy=None)
    >>> plan_image((480, 640), [scale], tile_hw=(224, 224), patch_hw=(16, 16)).scales[0].rows
    Axis(size=336, tile=224, starts=(0, 112), content=336, phases=1)
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
        rows, cols = (with_phases(axis, scale.phases, patch) for axis, patch in zip(axes, patch_hw, strict=True))
        plans.append(ScalePlan(rows, cols))
    return Plan(image_hw, tuple(plans))


def parse_image_hw(image_hw: object) -> Pair:
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


def with_phases(axis: Axis, phases: int, patch: float) -> Axis:
    """An axis whose image is covered several times, each time a part of a patch further on.

    The image is resized to as many pixels more as the last covering is moved: every covering misses some pixels at
    an edge, and nothing is made up beyond it.

    >>> with_phases(tile_axis(448, 224), 2, 14)
    Axis(size=455, tile=224, starts=(0, 7, 224, 231), content=455, phases=2)
    """
    offsets = phase_offsets(phases, patch)
    starts = tuple(start + offset for start in axis.starts for offset in offsets)
    return Axis(axis.size + offsets[-1], axis.tile, starts, axis.content + offsets[-1], phases)


def phase_offsets(phases: int, patch: float) -> list[int]:
    """The pixels at which the coverings of an axis begin.

    >>> phase_offsets(3, 16)
    [0, 5, 11]
    """
    return [math.floor(phase * patch / phases + 0.5) for phase in range(phases)]


def _whole_axis(content: int, patch: float) -> Axis:
    """One tile of whole patches."""
    size = math.ceil(content / patch) * round(patch)
    return Axis(size, size, (0,), content)


def _content(scale: ResolvedScale, image_hw: Pair, tile_hw: Pair, patch_hw: tuple[float, float]) -> Pair:
    """Height and width in pixels that an image is resized to."""
    box_hw = scale.box_hw
    if scale.fit == "stretch":
        return round_to(box_hw, patch_hw) if scale.whole else box_hw
    if scale.policy is not None and min(box_hw) >= min(tile_hw):
        rows, cols = _choose_tiles(scale, policy_function(scale.policy), image_hw, tile_hw)
        box_hw = (rows * tile_hw[0], cols * tile_hw[1])
        if scale.fit == "aspect":
            return box_hw
    if scale.fit == "pad":
        return _padded(image_hw, box_hw, patch_hw, scale.phases)
    ratio = math.sqrt(box_hw[0] * box_hw[1] / (image_hw[0] * image_hw[1]))  # whole: as many pixels as the square
    return round_to((round(image_hw[0] * ratio), round(image_hw[1] * ratio)), patch_hw)


def _padded(image_hw: Pair, box_hw: Pair, patch_hw: tuple[float, float], phases: int) -> Pair:
    """Height and width of an image in a box, before `with_phases` adds its pixels: with these, the aspect is kept."""
    added = [phase_offsets(phases, patch)[-1] for patch in patch_hw]
    ratio = min(box / side for box, side in zip(box_hw, image_hw, strict=True))
    wider = min((box + more) / side for box, more, side in zip(box_hw, added, image_hw, strict=True))
    height, width = (  # a narrow image keeps a patch, if it has one
        max(round(side * wider) - more, min(round(side * ratio), math.ceil(patch)))
        for side, more, patch in zip(image_hw, added, patch_hw, strict=True)
    )
    return height, width


def _choose_tiles(scale: ResolvedScale, policy: Policy, image_hw: Pair, tile_hw: Pair) -> Pair:
    """The rows and columns of tiles that the policy chooses for an image."""
    tiles = math.floor(scale.box_hw[0] * scale.box_hw[1] / (tile_hw[0] * tile_hw[1]))
    most = scale.scale.max_tiles or tiles
    if policy is nvila and tiles > most and scale.scale.in_pixels:
        side = scale.box_hw[0] // math.isqrt(most)
        raise S2WrapError(
            f"scale {scale} makes {tiles} tiles of {tile_hw[0]}×{tile_hw[1]} pixels, but max_tiles={most}; use "
            f"max_tiles={tiles} or more, or a backbone built at {side} pixels (image_size={side})"
        )
    return choose_grid(policy, image_hw, tile_hw, tiles, most)


def round_to(size_hw: Pair, patch_hw: tuple[float, float]) -> Pair:
    """The nearest whole patches; less than half a patch is left as it is."""
    height, width = (
        math.floor(side / patch + 0.5) * round(patch) or side for side, patch in zip(size_hw, patch_hw, strict=True)
    )
    return height, width
