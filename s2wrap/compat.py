"""The call of the original `s2wrapper.forward`, for people who migrate: `from s2wrap.compat import forward`.

Same parameters, same results to 1e-5 in float32, quirks included: no antialiasing, square images, tiles of `size ÷ n`
pixels whatever the model's own size, `int(scale · side)`, pooling cells that overlap where they do not divide the
map. `s2wrap.wrap` has none of these. Where the original stops at a bare assertion, this says what would work.

One thing is refused that the original accepts: integer images. It resizes them in floating point and casts the
overshoot back, which C leaves undefined.
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
    """Multi-scale features as the original computes them.

    Args:
        model: takes images (b, c, h, w), returns (b, n, c) or (b, c, h, w), as `output_shape` says.
        input: square floating images (b, c, side, side).
        scales: each resizes the images to `int(side · scale)` pixels.
        img_sizes: sizes in pixels, instead of scales; they win if both are given.
        max_split_size: largest side of a tile in pixels; the input's side by default.
        resize_output_to_idx: index of the scale whose stitched map sets the grid of the result.
        num_prefix_token: leading tokens of "bnc" that are not spatial; averaged over the tiles.
        output_shape: "bnc" or "bchw".
        split_forward: one model call a tile position instead of one a scale.

    Returns:
        (b, prefix + n, c · scales) or (b, c · scales, h, w).

    Raises:
        S2WrapError: what the original asserts, with the values and what would work.

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
        parts = tiles.split(len(input)) if split_forward else [tiles]
        answer = torch.cat([model(part) for part in parts])
        maps.append((count, *_tokens(answer, output_shape, num_prefix_token)))
    count, spatial, _ = maps[resize_output_to_idx]
    side = count * spatial.shape[-1]
    levels = [_merge(count, spatial, prefix, side) for count, spatial, prefix in maps]
    fused = fuse_scales(levels, "concat")
    if output_shape == "bchw":
        return fused.spatial
    return torch.cat([fused.prefix, fused.tokens], dim=1)


def _sizes(images: Tensor, scales: Sequence[float] | None, img_sizes: Sequence[int] | None) -> list[int]:
    """The side in pixels of every scale."""
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise S2WrapError(
            f"input has shape {tuple(images.shape)}; the original takes square images (b, c, side, side); "
            f"s2wrap.wrap takes any height and width"
        )
    if not images.is_floating_point():
        raise S2WrapError(f"input is {images.dtype}; give normalised floating images, or use s2wrap.wrap")
    if not scales and not img_sizes:
        raise S2WrapError("neither scales nor img_sizes is given; give one of them, such as scales=[1, 2]")
    wanted = list(img_sizes) if img_sizes else [images.shape[-1] * scale for scale in scales or ()]
    if not all(1 <= size <= 2**15 for size in wanted):
        raise S2WrapError(f"the scales make images of {wanted} pixels; each needs at least 1 and at most {2**15}")
    return [int(size) for size in wanted]


def _tile_count(size: int, split: int) -> int:
    """Tiles a side, each of at most `split` pixels."""
    if split < 1:
        raise S2WrapError(f"max_split_size={split} is no size of a tile; use 1 pixel or more")
    count = math.ceil(size / split)
    if size % count:
        raise S2WrapError(
            f"size {size} makes {count}×{count} tiles of at most {split} pixels, which do not divide it; "
            f"use a size of {size // count * count} or {(size // count + 1) * count}, or another max_split_size"
        )
    return count


def _tokens(answer: Tensor, output_shape: str, num_prefix_token: int) -> tuple[Tensor, Tensor]:
    """A model's answer as map (n, c, h, h) and prefix tokens (n, p, c)."""
    if answer.ndim != len(output_shape):
        raise S2WrapError(f"the model returned {tuple(answer.shape)}, which is not output_shape={output_shape!r}")
    if output_shape == "bchw":
        return answer, answer.new_zeros(len(answer), 0, answer.shape[1])
    count = answer.shape[1] - num_prefix_token
    side = math.isqrt(max(count, 0))
    if side == 0 or side * side != count:
        raise S2WrapError(
            f"the model returned {answer.shape[1]} tokens; without num_prefix_token={num_prefix_token} they are "
            f"{count}, which is no square grid"
        )
    spatial = rearrange(answer[:, num_prefix_token:], "b (h w) c -> b c h w", h=side)
    return spatial, answer[:, :num_prefix_token]


def _merge(count: int, spatial: Tensor, prefix: Tensor, side: int) -> Features:
    """`count` × `count` tiles pooled to a grid of `side`, in the model's precision."""
    rows = adaptive_matrix(count, spatial.shape[-2], side)
    cols = adaptive_matrix(count, spatial.shape[-1], side)
    made = merge_matrices(rows, cols, [1 / count**2] * count**2)
    matrices = MergeMatrices(*(matrix.to(spatial.device) for matrix in made))
    merged = merge_tiles(matrices, spatial, prefix, first=0, tiles=count**2)
    return Features((merged.spatial.to(spatial.dtype),), (merged.prefix.to(prefix.dtype),))
