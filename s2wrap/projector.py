"""Prepare features for a multimodal projector: dynamic-S2's options, blocks of a map, pixel-unshuffle.

NVILA (arXiv 2412.04468) looks at an image at 448, 896 and 1344 pixels, the last cut by the image's aspect, and gives
its projector square blocks of the finest grid:

    model = s2wrap.wrap(backbone, **s2wrap.dynamic_s2())
    for features in model.encode(pictures):
        blocks = s2wrap.split_blocks(features.spatial, features.block_size)
        tokens = projector(s2wrap.pixel_unshuffle(blocks, 2))
        merged = s2wrap.merge_blocks(tokens, features.block_size)
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from jaxtyping import Shaped
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.policies import Pair
from s2wrap.scales import Scale, whole_number, whole_pair


def dynamic_s2(sizes: object = (448, 896, 1344), *, max_tiles: int = 12) -> dict[str, Any]:
    """Return the options of NVILA's dynamic-S2, for `wrap` and `load`.

    The smaller sizes are squares; at the largest, the rows and columns of tiles suit the image's shape, with at most
    `max_tiles` tiles; the result has the grid of the largest.

    Args:
        sizes: sides in pixels, increasing; the first is the backbone's own size.
        max_tiles: most tiles of the largest size; at least those of its square (9 for three times the first).

    >>> dynamic_s2()["scales"][0]
    Scale(size='448px', fit='stretch', whole=False, policy=None, max_tiles=None, phases=None)
    """
    if not isinstance(sizes, Sequence) or not all((whole_number(size) or 0) > 0 for size in sizes):
        raise S2WrapError(f"sizes={sizes!r} are no sides in pixels; use whole numbers such as (448, 896, 1344)")
    if not sizes or list(sizes) != sorted(set(sizes)) or any(size % sizes[0] for size in sizes):
        raise S2WrapError(
            f"sizes={tuple(sizes)}; dynamic-S2 takes increasing multiples of the first, as (448, 896, 1344)"
        )
    square = (sizes[-1] // sizes[0]) ** 2
    if (whole_number(max_tiles) or 0) < square:
        raise S2WrapError(
            f"max_tiles={max_tiles!r}, but {sizes[-1]} pixels make {square} tiles of {sizes[0]}; use {square} or more"
        )
    *smaller, largest = [f"{size}px" for size in sizes]
    scales = [Scale(size, "stretch", False) for size in smaller]
    scales.append(Scale(largest, "aspect", False, "nvila", max_tiles))
    return {"scales": tuple(scales), "target_grid": len(sizes) - 1, "prefix": "drop"}


def split_blocks(spatial: Shaped[Tensor, "b c height width"], block_size: Pair) -> Shaped[Tensor, "blocks c h w"]:
    """Return a map cut into rows × columns of equal blocks, row by row: (b · rows · columns, c, h, w)."""
    rows, cols = _rows_and_cols("split_blocks() takes a map (b, c, height, width)", spatial, block_size)
    if spatial.shape[-2] % rows or spatial.shape[-1] % cols:
        raise S2WrapError(
            f"a {spatial.shape[-2]}×{spatial.shape[-1]} map cannot be cut into {rows}×{cols} equal blocks; "
            f"use the block_size of these features"
        )
    return rearrange(spatial, "b c (r h) (q w) -> (b r q) c h w", r=rows, q=cols)


def merge_blocks(blocks: Shaped[Tensor, "blocks c h w"], block_size: Pair) -> Shaped[Tensor, "b c height width"]:
    """Return the map that `split_blocks` has cut, also from blocks of another size and number of channels."""
    rows, cols = _rows_and_cols("merge_blocks() takes blocks (n, c, h, w)", blocks, block_size)
    if len(blocks) % (rows * cols):
        raise S2WrapError(f"{len(blocks)} blocks are no {rows}×{cols} of them; use the block_size they were split by")
    return rearrange(blocks, "(b r q) c h w -> b c (r h) (q w)", r=rows, q=cols)


def pixel_unshuffle(spatial: Shaped[Tensor, "b c height width"], factor: int) -> Shaped[Tensor, "b fc h w"]:
    """Return a map with factor × factor neighbours as channels: (b, factor² · c, ⌈height/factor⌉, ⌈width/factor⌉).

    Where the factor does not divide a side, zeros are added below and to the right (32 → 33 for 3 × 3). The channels
    of a cell are the neighbours' row by row, each with all its channels.
    """
    _check_map("pixel_unshuffle() takes a map (b, c, height, width)", spatial)
    if (side := whole_number(factor)) is None or side < 1:
        raise S2WrapError(f"factor={factor!r} is no number of neighbours; use 1 or more, such as 2")
    below, right = (-length % side for length in spatial.shape[-2:])
    padded = F.pad(spatial, (0, right, 0, below))
    return rearrange(padded, "b c (h p) (w q) -> b (p q c) h w", p=side, q=side)


def _rows_and_cols(usage: str, tensor: object, block_size: object) -> Pair:
    """Return a block size as whole numbers. Raises S2WrapError if it is none, or the tensor not of four dimensions."""
    _check_map(usage, tensor)
    if (pair := whole_pair(block_size)) is None or min(pair) < 1:
        raise S2WrapError(f"block_size={block_size!r} is none; use (rows, columns) of 1 or more: features.block_size")
    return pair


def _check_map(usage: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor) or tensor.ndim != 4:
        actual = tuple(tensor.shape) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise S2WrapError(f"{usage}, not {actual}")
