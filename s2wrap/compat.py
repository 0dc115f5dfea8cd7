"""The original `s2wrapper.forward`, to migrate from it: `from s2wrap.compat import forward`.

Parameters and results (to 1e-5 in float32) are the same, with all quirks: no antialiasing, square images, tiles of
`size ÷ n` pixels whatever the model's own size, `int(scale · side)`, pooling cells that overlap where they do not
divide the map. `s2wrap.wrap` has none of these. Where the original only asserts, the errors here say what would work.

Integer images, which the original accepts, are refused: it resizes them in floating point and casts the overshoot
back, which is undefined in C.
"""

import math
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.fusion import MergeMatrices, fuse_scales, merge_matrices, merge_tiles
from s2wrap.resample import adaptive_matrix, resize


def forward(
    model: Callable[[Tensor], Tensor],
    input: Tensor,
    scales: Sequence[float] | None = None,
    img_sizes: Sequence[int] | None = None,
    max_split_size: int | None = None,
    resize_output_to_idx: int = 0,
    num_prefix_token: int = 0,
    output_shape: str = "bnc",
    split_forward: bool = False,
) -> Tensor:
    """Return multi-scale features as the original computes them.

    Args:
        model: takes images (b, c, h, w), returns (b, n, c) or (b, c, h, w), as `output_shape` says.
        input: square floating images (b, c, side, side).
        scales: scales, each of which resizes the images to `int(side · scale)` pixels.
        img_sizes: sizes in pixels, instead of scales; they take precedence if both are given.
        max_split_size: largest side of a tile in pixels; the input's side by default.
        resize_output_to_idx: index of the scale whose merged map sets the grid of the result.
        num_prefix_token: number of prefix tokens at the start of "bnc"; they are averaged over the tiles.
        output_shape: "bnc" or "bchw".
        split_forward: call the model once a tile position instead of once a scale.

    Returns:
        (b, prefix + n, c · scales) or (b, c · scales, h, w).

    Raises:
        S2WrapError: where the original asserts, with the values and what would work.

    >>> pool = torch.nn.AvgPool2d(16)
    >>> forward(pool, torch.rand(1, 3, 64, 64), scales=[1, 2], output_shape="bchw").shape
    torch.Size([1, 6, 4, 4])
    """
    sizes = _sizes(input, scales, img_sizes)
    if output_shape not in ("bnc", "bchw"):
        raise S2WrapError(f"output_shape={output_shape!r} is unknown; use 'bnc' or 'bchw'")
    if output_shape == "bchw" and num_prefix_token:
        raise S2WrapError(
            f"num_prefix_token={num_prefix_token} with output_shape='bchw': a map has none; use 0, or 'bnc'"
        )
    if not -len(sizes) <= resize_output_to_idx < len(sizes):
        raise S2WrapError(f"resize_output_to_idx={resize_output_to_idx} names none of {len(sizes)} scales")
    counts = [_tile_count(size, max_split_size or input.shape[-1]) for size in sizes]
    maps = []
    for size, count in zip(sizes, counts, strict=True):
        resized = resize(input, (size, size), antialias=False).to(input.dtype)
        tiles = rearrange(resized, "b c (r h) (q w) -> (r q b) c h w", r=count, q=count)
        batches = tiles.split(len(input)) if split_forward else [tiles]
        output = torch.cat([model(batch) for batch in batches])
        maps.append((count, *_split_prefix(output, output_shape, num_prefix_token)))
    count, spatial, _ = maps[resize_output_to_idx]
    side = count * spatial.shape[-1]
    merged = [_merge_tiles(count, spatial, prefix, side) for count, spatial, prefix in maps]
    fused = fuse_scales(merged, "concat")
    if output_shape == "bchw":
        return fused.spatial
    return torch.cat([fused.prefix, fused.tokens], dim=1)


def _sizes(images: Tensor, scales: Sequence[float] | None, img_sizes: Sequence[int] | None) -> list[int]:
    """Return the side in pixels of every scale."""
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise S2WrapError(
            f"input has shape {tuple(images.shape)}; the original takes square images (b, c, side, side); "
            f"s2wrap.wrap takes any height and width"
        )
    if not images.is_floating_point():
        raise S2WrapError(f"input is {images.dtype}; give normalised floating images, or use s2wrap.wrap")
    if not scales and not img_sizes:
        raise S2WrapError("neither scales nor img_sizes is given; give one of them, such as scales=[1, 2]")
    sizes = list(img_sizes) if img_sizes else [images.shape[-1] * scale for scale in scales or ()]
    if not all(1 <= size <= 2**15 for size in sizes):
        raise S2WrapError(f"the scales make images of {sizes} pixels; each needs at least 1 and at most {2**15}")
    return [int(size) for size in sizes]


def _tile_count(size: int, most: int) -> int:
    """Return the number of tiles along a side of `size` pixels, each of at most `most` pixels."""
    if most < 1:
        raise S2WrapError(f"max_split_size={most} is no size of a tile; use 1 pixel or more")
    count = math.ceil(size / most)
    if size % count:
        raise S2WrapError(
            f"size {size} makes {count}×{count} tiles of at most {most} pixels, which do not divide it; "
            f"use a size of {size // count * count} or {(size // count + 1) * count}, or another max_split_size"
        )
    return count


def _split_prefix(output: Tensor, output_shape: str, num_prefix_token: int) -> tuple[Tensor, Tensor]:
    """Return a model's output as map (n, c, h, h) and prefix tokens (n, p, c)."""
    if output.ndim != len(output_shape):
        raise S2WrapError(f"the model returned {tuple(output.shape)}, which is not output_shape={output_shape!r}")
    if output_shape == "bchw":
        return output, output.new_zeros(len(output), 0, output.shape[1])
    count = output.shape[1] - num_prefix_token
    side = math.isqrt(max(count, 0))
    if side == 0 or side * side != count:
        raise S2WrapError(
            f"the model returned {output.shape[1]} tokens; without num_prefix_token={num_prefix_token} they are "
            f"{count}, which is no square grid"
        )
    spatial = rearrange(output[:, num_prefix_token:], "b (h w) c -> b c h w", h=side)
    return spatial, output[:, :num_prefix_token]


def _merge_tiles(count: int, spatial: Tensor, prefix: Tensor, side: int) -> Features:
    """Return `count` × `count` tiles merged and pooled to a grid of `side` × `side`, in the model's precision."""
    rows = adaptive_matrix(count, spatial.shape[-2], side)
    cols = adaptive_matrix(count, spatial.shape[-1], side)
    made = merge_matrices(rows, cols, [1 / count**2] * count**2)
    matrices = MergeMatrices(*(matrix.to(spatial.device) for matrix in made))
    merged = merge_tiles(matrices, spatial, prefix, first=0, tiles=count**2)
    return Features((merged.spatial.to(spatial.dtype),), (merged.prefix.to(prefix.dtype),))
