"""How a backbone lays out its features, found by looking at what it returns.

The shape of the answer often leaves one reading. Where it leaves several (is 7×7×7 channels first or last? are 10
tokens 1 + 3×3 or 6 + 2×2?) the probe changes one spot of an image after another and keeps the reading whose tokens
at that spot answer most. One reading must remain, else the caller is asked: nothing is guessed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from s2wrap.errors import S2WrapError, first_line
from s2wrap.inputs import has_values
from s2wrap.options import Order

MAX_PREFIX_TOKENS = 16
SPOTS = ((0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8))
"""Centres of the changed spots, as fractions of height and width."""
SPOT_SIDE = 0.2
"""Side of a changed spot, as a fraction of the image's."""

Call = Callable[[Tensor], object]


@dataclass(frozen=True)
class Layout:
    """How to read a backbone's answer.

    Attributes:
        order: "bnc" (tokens), "bchw" or "bhwc" (maps).
        num_prefix_tokens: tokens before the spatial ones (0 for maps).
        grid_hw: rows and columns of spatial tokens for one tile.
        num_features: channels.
        patch_hw: pixels that a token covers; less than tile ÷ grid where patches do not divide the tile.
    """

    order: str
    num_prefix_tokens: int
    grid_hw: tuple[int, int]
    num_features: int
    patch_hw: tuple[float, float]

    def spatial(self, answer: Tensor, rows: int | None = None) -> Tensor:
        """The spatial map (b, c, h, w) in a backbone's answer; tokens make so many rows, those of a tile by default."""
        if self.order == "bchw":
            return answer
        if self.order == "bhwc":
            return rearrange(answer, "b h w c -> b c h w")
        if self.order == "bcn":
            answer = rearrange(answer, "b c n -> b n c")
        return rearrange(answer[:, self.num_prefix_tokens :], "b (h w) c -> b c h w", h=rows or self.grid_hw[0])

    def prefix(self, answer: Tensor) -> Tensor:
        """The prefix tokens (b, p, c) in a backbone's answer; p is 0 for maps."""
        if self.order == "bnc":
            return answer[:, : self.num_prefix_tokens]
        return answer.new_zeros(answer.shape[0], 0, self.num_features)

    def stride_hw(self, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Pixels from one token to the next, given the size of the tile: whole for any convolution or patch.

        A map of 9 cells on 260 pixels has a stride of 32: maps are taken to halve, where a power of two fits.
        """
        height, width = (
            _stride(side, cells, patch, maps=self.order != "bnc")
            for side, cells, patch in zip(image_hw, self.grid_hw, self.patch_hw, strict=True)
        )
        return height, width

    def __str__(self) -> str:
        if self.order == "bcn":
            return "tokens with the channels first"
        prefix = f"{self.num_prefix_tokens} prefix tokens and " if self.order == "bnc" else ""
        return f"{self.order!r} with {prefix}a {self.grid_hw[0]}×{self.grid_hw[1]} grid"


def _stride(side: int, cells: int, patch: float, *, maps: bool) -> int:
    halvings = [2**n for n in range(11) if cells in (side // 2**n, math.ceil(side / 2**n))]
    known = patch < side / cells  # whole patches with a rest unseen, as found or given
    return halvings[0] if maps and halvings and not known else round(patch)


@torch.no_grad()
def probe(
    call: Call,
    image: Tensor,
    *,
    name: str,
    order: Order | None = None,
    num_prefix_tokens: int | None = None,
    grid_hw: tuple[int, int] | None = None,
    patch_hw: tuple[float, float] | None = None,
) -> Layout:
    """The layout of what `call` returns: the one that fits its shape, what is known, and the changed spots.

    Args:
        call: takes images (1, c, h, w), returns (1, n, c), (1, c, h, w) or (1, h, w, c).
        image: zeros (1, c, h, w) of the backbone's own size, dtype and device.
        name: the backbone's name, for messages.
        order: "bnc", "bchw" or "bhwc" where known.
        num_prefix_tokens: number of leading tokens that are not spatial, where known.
        grid_hw: rows and columns of spatial tokens, where known.
        patch_hw: pixels that a token covers, where known.

    Raises:
        S2WrapError: `call` fails, returns something else, or not exactly one reading is left.
    """
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(image.shape, generator=generator, device="cpu").to(image)

    plain = noise()
    answer = _answer(call, plain, name)
    readings = [
        reading
        for reading in _readings(answer, plain, num_prefix_tokens, grid_hw)
        if order in (None, reading.order)
        and num_prefix_tokens in (None, reading.num_prefix_tokens)
        and (grid_hw or reading.grid_hw != (1, 1))  # one cell is no grid, unless told
    ]
    guessed = [reading.order == "bnc" and num_prefix_tokens is None and grid_hw is None for reading in readings]
    if (len(readings) > 1 or any(guessed)) and not has_values(plain):
        raise S2WrapError(
            f"{name} returned {_shape(answer)} for an image of {_shape(plain)}, which can be read as "
            f"{' or '.join(map(str, readings))}; without values (on meta, or fake) nothing tells: pass layout=, and "
            f"num_prefix_tokens= or grid="
        )
    if len(readings) > 1 or any(guessed):
        changes = [(_answer(call, _change_spot(plain, noise(), spot), name) - answer).abs() for spot in SPOTS]
        following = [reading for reading in readings if _follows(reading, changes)]
        if len(readings) == 1 and not following:
            raise S2WrapError(
                f"{name} returned {_shape(answer)} for an image of {_shape(plain)}; that could be {readings[0]}, but "
                f"these tokens do not answer where the image changes (are they object queries, or of another order?); "
                f"if they are right, pass num_prefix_tokens= or grid="
            )
        readings = following or readings
    if len(readings) != 1 or readings[0].order == "bcn":
        what = "can be read as " + " or ".join(map(str, readings)) if readings else "is no such grid of tokens"
        known = [f"layout={order!r}"] * (order is not None)
        known += [f"num_prefix_tokens={num_prefix_tokens}"] * (num_prefix_tokens is not None)
        known += [f"grid={grid_hw}"] * (grid_hw is not None)
        raise S2WrapError(
            f"{name} returned {_shape(answer)} for an image of {_shape(plain)}, which {what}"
            f"{' given ' + ', '.join(known) if known else ''}; pass layout= ('bnc', 'bchw' or 'bhwc'), "
            f"num_prefix_tokens= and grid= (rows, columns) that fit, or a backbone that returns such a tensor"
        )
    (layout,) = readings
    if patch_hw is None:
        return replace(layout, patch_hw=_patch(call, plain, answer, layout, name))
    for patch, cells, side in zip(patch_hw, layout.grid_hw, image.shape[-2:], strict=True):
        if not 0 < patch * cells <= side:
            raise S2WrapError(
                f"patch_size={patch:g}: {cells} patches of it do not fit into {side} pixels of {name}; "
                f"use at most {side / cells:g}"
            )
    return replace(layout, patch_hw=patch_hw)


def _answer(call: Call, image: Tensor, name: str) -> Tensor:
    """What the backbone returns for one image, checked to be one floating tensor of three or four axes."""
    try:
        answer = call(image.clone())  # some work in place
    except S2WrapError:
        raise
    except Exception as error:
        raise S2WrapError(
            f"{name} failed on an image of {_shape(image)}: {first_line(error)}; "
            f"if it takes another size or number of channels, pass image_size= or in_channels="
        ) from error
    if (
        not isinstance(answer, Tensor)
        or answer.ndim not in (3, 4)
        or answer.shape[0] != 1
        or not answer.is_floating_point()
    ):
        raise S2WrapError(
            f"{name} returned {describe(answer)} for an image of {_shape(image)}; s2wrap needs floating features "
            f"(b, n, c), (b, c, h, w) or (b, h, w, c), before pooling and classifier"
        )
    return answer


def _readings(
    answer: Tensor, image: Tensor, num_prefix_tokens: int | None, grid_hw: tuple[int, int] | None
) -> list[Layout]:
    """All readings of the answer's shape with this grid, or with any that one stride makes of the image.

    Up to 16 prefix tokens are thought of, or the number given. Tokens with the channels first ("bcn") are read too,
    as a rival: they must not pass for "bnc".
    """
    height, width = image.shape[-2:]
    _, *sides = answer.shape
    found = []
    if answer.ndim == 3:
        for order, count, channels in (("bnc", sides[0], sides[1]), ("bcn", sides[1], sides[0])):
            prefixes = range(MAX_PREFIX_TOKENS + 1) if num_prefix_tokens is None else [num_prefix_tokens]
            for prefix in [count - grid_hw[0] * grid_hw[1]] if grid_hw else prefixes:
                rows = grid_hw[0] if grid_hw else max(1, round(math.sqrt(max(count - prefix, 0) * height / width)))
                if 0 <= prefix < count and (count - prefix) % rows == 0:
                    found.append((order, prefix, (rows, (count - prefix) // rows), channels))
    else:
        found = [("bchw", 0, (sides[1], sides[2]), sides[0]), ("bhwc", 0, (sides[0], sides[1]), sides[2])]
    return [
        Layout(order, prefix, grid, channels, (height / grid[0], width / grid[1]))
        for order, prefix, grid, channels in found
        if (grid == grid_hw if grid_hw else _one_stride(grid, (height, width)))
    ]


def _one_stride(grid_hw: tuple[int, int], image_hw: tuple[int, int]) -> bool:
    """Whether one stride makes this grid of the image on both axes, both rounded down or both rounded up."""
    axes = list(zip(image_hw, grid_hw, strict=True))
    down = max(side / (cells + 1) for side, cells in axes) < min(side / cells for side, cells in axes)
    up = max(side / cells for side, cells in axes) < min(side / max(cells - 1, 0.5) for side, cells in axes)
    return down or up


def _window(spot: tuple[float, float], sides_hw: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns that a spot covers on a grid of this size: at least one each."""
    rows, cols = (
        slice(math.floor((centre - SPOT_SIDE / 2) * side), math.ceil((centre + SPOT_SIDE / 2) * side))
        for centre, side in zip(spot, sides_hw, strict=True)
    )
    return rows, cols


def _change_spot(plain: Tensor, other: Tensor, spot: tuple[float, float]) -> Tensor:
    rows, cols = _window(spot, (plain.shape[-2], plain.shape[-1]))
    changed = plain.clone()
    changed[..., rows, cols] = other[..., rows, cols]
    return changed


def _follows(layout: Layout, changes: list[Tensor]) -> bool:
    """Whether, read this way, the tokens at each spot answer to that spot more than to any other."""
    heats = torch.stack([layout.spatial(change).sum(dim=1)[0] for change in changes])
    heats = heats / heats.mean(dim=(1, 2), keepdim=True)
    windows = [_window(spot, layout.grid_hw) for spot in SPOTS]
    return all(int(heats[:, rows, cols].sum(dim=(1, 2)).argmax()) == k for k, (rows, cols) in enumerate(windows))


def _patch(call: Call, plain: Tensor, answer: Tensor, layout: Layout, name: str) -> tuple[float, float]:
    """Pixels a token covers: tile ÷ grid, unless whole patches leave a rest that is provably not seen (384 ÷ 14)."""
    (height, width), (rows, cols) = plain.shape[-2:], layout.grid_hw
    if not has_values(plain):
        if height % rows or width % cols:
            raise S2WrapError(
                f"{name} makes {rows}×{cols} tokens of {height}×{width} pixels; without values (on meta, or fake) "
                f"nothing tells whether its patches leave a rest unseen: pass patch_size="
            )
        return height / rows, width / cols

    def sees(axis: int, first: int, last: int) -> bool:
        changed = plain.clone()
        changed.narrow(axis, first, last - first).neg_()
        return not torch.equal(_answer(call, changed, name), answer)

    def along(axis: int, side: int, cells: int) -> float:
        for patch in range((side - 1) // cells, side // (cells + 1), -1):
            end = patch * cells
            if sees(axis, end, side):
                break
            if sees(axis, end - 1, end):
                return float(patch)
        return side / cells

    down = along(2, height, rows)
    return down, down if (height, rows) == (width, cols) else along(3, width, cols)


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def describe(value: object) -> str:
    """A tensor's shape and type, or the type of anything else, for messages."""
    return f"{_shape(value)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
