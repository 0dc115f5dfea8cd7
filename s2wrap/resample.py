"""Everything around the backbone is linear and separable: a pair of small matrices an image size.

    image at scale k  =  R_h · image · R_wᵀ                              `resize_matrix`
    merged features   =  Σ over tiles  A_h[tile] · X[tile] · A_w[tile]ᵀ  `merge_matrix`

numpy builds the matrices in float64.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor

from s2wrap.options import Blend, Interpolation
from s2wrap.plan import Axis

Array = np.ndarray
Function = TypeVar("Function", bound=Callable[..., Any])


STRIP_ROWS = {True: 64, False: 1024}
"""Rows of an image that are resized at a time, on a CPU, whose cache holds them, and on other devices."""


def constant_when_traced(function: Function) -> Function:
    """A function whose result a trace takes as a constant.

    The same as `torch.compiler.assume_constant_result`, which would import all of torch._dynamo (1.3 s) for it.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def resize(
    images: Shaped[Tensor, "batch chans height width"],
    image_hw: tuple[int, int],
    *,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
) -> Float[Tensor, "batch chans new_height new_width"]:
    """Images resized to `image_hw` pixels (height, width), in at least float32.

    Eager code calls PyTorch's `interpolate`; an exported graph holds two constant matrix products instead, because
    no other runtime computes an antialiased cubic resize alike. A test keeps the two equal.

    Args:
        images: any values; integers and half precision become float32 first, plane by plane in memory where they were
            pixels.
        image_hw: the new height and width in pixels.
        interpolation: "bicubic" or "bilinear".
        antialias: widen the kernel when shrinking, as PIL does. Without it PyTorch's cubic kernel has a = -0.75,
            with it a = -0.5.
    """
    (old_h, old_w), (new_h, new_w) = images.shape[-2:], image_hw
    interpolate = partial(F.interpolate, mode=interpolation, antialias=antialias, align_corners=False)
    if images.dtype not in (torch.float32, torch.float64) and new_w < old_w and not torch.compiler.is_compiling():
        # across first, as PyTorch does it too, a strip at a time: a large image is never held as floats
        narrow, rows = images.new_empty((*images.shape[:-1], new_w), dtype=torch.float32), STRIP_ROWS[images.is_cpu]
        for strip, into in zip(images.split(rows, dim=-2), narrow.split(rows, dim=-2), strict=True):
            into.copy_(interpolate(_to_floats(strip), (strip.shape[-2], new_w)))
        images, old_w = narrow, new_w
    images = _to_floats(images)
    if (old_h, old_w) == (new_h, new_w):
        return images
    if not _exporting():
        return interpolate(images, image_hw)
    rows = _matrix_tensor(old_h, new_h, interpolation, antialias).to(images)
    cols = _matrix_tensor(old_w, new_w, interpolation, antialias).to(images)
    with full_precision(images.device):
        return rows @ images @ cols.T


def full_precision(device: torch.device) -> AbstractContextManager:
    """A context without autocast, which would compute matrix products in half precision."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _to_floats(images: Tensor) -> Tensor:
    """Images in at least float32; integers plane by plane in memory, where they were pixels."""
    if images.is_floating_point():
        return images.to(torch.promote_types(images.dtype, torch.float32))
    return images.to(torch.float32, memory_format=torch.contiguous_format)


@constant_when_traced
def _exporting() -> bool:
    """Whether torch.export is tracing. Asked as a constant: PyTorch 2.11 would say yes inside torch.compile too."""
    return torch.compiler.is_exporting()


@constant_when_traced
def _matrix_tensor(old: int, new: int, interpolation: Interpolation, antialias: bool) -> Tensor:
    """`resize_matrix` as a constant of a traced graph."""
    return torch.from_numpy(resize_matrix(old, new, interpolation=interpolation, antialias=antialias).astype("float32"))


def resize_matrix(old: int, new: int, *, interpolation: Interpolation, antialias: bool) -> Array:
    """The (new, old) matrix that resizes one axis as `F.interpolate(…, align_corners=False)` does.

    Antialiasing widens the kernel by the shrinking factor and drops taps outside the image (PIL's way); without it,
    outside taps repeat the border pixel.

    >>> resize_matrix(4, 2, interpolation="bilinear", antialias=True).round(3).tolist()
    [[0.429, 0.429, 0.143, 0.0], [0.0, 0.143, 0.429, 0.429]]
    """
    ratio = old / new
    spread = max(ratio, 1.0) if antialias else 1.0
    centers = (np.arange(new) + 0.5) * ratio - 0.5
    if antialias:
        distance = (np.arange(old) - centers[:, None]) / spread
        weights = _kernel(distance, interpolation, -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    first = np.floor(centers).astype(int) - 1
    taps = first[:, None] + np.arange(4)
    weights = _kernel(taps - centers[:, None], interpolation, -0.75)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix


def _kernel(distance: Array, interpolation: Interpolation, a: float) -> Array:
    """Keys' cubic convolution kernel (Keys 1981, eq. 4, with parameter a), or the triangle of linear interpolation."""
    x = np.abs(distance)
    if interpolation == "bilinear":
        return np.clip(1 - x, 0, None)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def merge_matrix(
    axis: Axis, *, tokens: int, patch: float, cells: int, blend: Blend = "smooth", fine: int | None = None
) -> Array:
    """The (tiles, cells, tokens) matrices that bring the tiles' tokens to the cells of one axis.

    A token's value holds for the pixels that it saw; where tiles overlap, a pixel's value is their blend; a cell is
    the average over its pixels. So any number of cells, any tile position, padding and patches that do not divide
    the tile need no special case: pixels that no token saw (the rest when `tokens · patch < tile`) and pixels that
    are padding do not count. More cells than `fine` are interpolated linearly between that many, never blocky.

    Args:
        axis: the tiles.
        tokens: tokens of a tile along this axis.
        patch: pixels that a token saw.
        cells: cells of the result along this axis; they divide the image, not the padding.
        blend: how overlapping tiles share a pixel: "smooth" (from one to the next in a smoothstep), "trim" (each up
            to the middle), "constant", "triangular" or "gaussian" (see `_blend_window`).
        fine: cells as fine as the tokens; any number of cells is averaged if None.

    >>> merge_matrix(Axis(size=4, tile=2, starts=(0, 2), content=4), tokens=2, patch=1, cells=2).tolist()
    [[[0.5, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.5, 0.5]]]
    """
    if fine is not None and cells > fine:
        own = merge_matrix(axis, tokens=tokens, patch=patch, cells=fine, blend=blend)
        return resize_matrix(fine, cells, interpolation="bilinear", antialias=False) @ own
    windows = np.stack([_blend_window(tokens, blend, *(n / patch for n in shared)) for shared in axis.overlaps])
    limits = axis.owned if blend == "trim" else [(0, axis.content)] * len(axis.starts)
    cell_edges = np.linspace(0, axis.content, cells + 1)

    def weigh(token_edges: Array) -> Array:
        tile_edges = [(start + token_edges).clip(*limit) for start, limit in zip(axis.starts, limits, strict=True)]
        cuts = np.unique(np.concatenate([cell_edges, *tile_edges]))
        middles = (cuts[1:] + cuts[:-1]) / 2
        seen = np.stack([_holds(edges, middles) for edges in tile_edges]) * windows[:, :, None]
        total = seen.sum(axis=(0, 1))
        lengths = np.diff(cuts) * _holds(cell_edges, middles)
        return lengths @ rearrange(seen / np.where(total == 0, 1, total), "n t p -> n p t")

    edges = np.arange(tokens + 1) * patch
    weights = weigh(edges)
    blind = weights.sum(axis=(0, 2)) == 0
    if blind.any():  # a cell of unseen pixels only: it takes the token beside it
        weights[:, blind] = weigh(np.append(edges[:-1], axis.tile))[:, blind]
    return weights / weights.sum(axis=(0, 2))[:, None]


def _blend_window(tokens: int, blend: Blend, before: float, after: float) -> Array:
    """How much each token of a tile counts that shares so many tokens with the tiles before and after it.

    "trim" and "constant" count all alike ("trim" has cut the tiles half-way before); "smooth" passes over from one
    tile to the next in a smoothstep; "triangular" falls linearly from the tile's middle; "gaussian" has a standard
    deviation of an eighth of the tile, as MONAI's sliding windows.
    """
    from_start = np.arange(tokens) + 0.5
    from_middle = np.abs(from_start - tokens / 2)
    if blend == "smooth":
        rise, fall = (from_start / max(before, 1e-9)).clip(0, 1), ((tokens - from_start) / max(after, 1e-9)).clip(0, 1)
        return rise**2 * (3 - 2 * rise) * fall**2 * (3 - 2 * fall)
    if blend == "triangular":
        return tokens / 2 - from_middle
    if blend == "gaussian":
        return np.exp(-0.5 * (from_middle / (tokens / 8)) ** 2)
    return np.ones(tokens)


def _holds(edges: Array, points: Array) -> Array:
    """Which interval between edges holds which point: 0 or 1, (intervals, points)."""
    return ((edges[:-1, None] <= points) & (points < edges[1:, None])).astype(float)


def polynomial_matrix(axis: Axis, *, tokens: int, patch: float) -> Array:
    """The (tiles, tokens, tokens) projections of a tile's tokens onto polynomials of low degree along one axis.

    One degree for every four tokens from one tile to the next: 4 for tiles of 16 tokens side by side, 3 for tiles
    that overlap by 5. Tokens of padding are fitted by nothing and shape nothing.
    """
    stride = axis.stride / axis.tile * tokens
    centers = np.array(axis.starts)[:, None] + (np.arange(tokens) + 0.5) * patch
    places = np.linspace(-1, 1, 2 * tokens + 1)[1::2]
    found = []
    for seen in (centers - patch / 2 < axis.content).astype(float):
        degree = min(max(1, math.floor(stride / 4 + 0.5)), int(seen.sum()) - 1)
        basis = np.polynomial.legendre.legvander(places, degree)
        found.append(basis @ np.linalg.pinv(basis * seen[:, None]) * seen)
    return np.stack(found)


def seen_pixels(axis: Axis, matrices: Array, *, patch: float) -> Array:
    """First and last pixel (cells, 2) of the resized image that the tokens behind each cell saw."""
    tiles, cells, tokens = np.nonzero(matrices > 1e-9)
    first = np.array(axis.starts)[tiles] + tokens * patch
    low, high = np.full(matrices.shape[1], np.inf), np.zeros(matrices.shape[1])
    np.minimum.at(low, cells, first)
    np.maximum.at(high, cells, (first + patch).clip(max=axis.content))
    return np.stack([low, high], axis=1)


def spread_matrix(axis: Axis, *, tokens: int, patch: float, cells: int) -> Array:
    """The (tiles, tokens, cells) matrices that interpolate a map of the whole image at the tokens of each tile.

    Linear between the centres of the cells; beyond the outermost centres, and in padding, the nearest cell.
    """
    centers = np.array(axis.starts)[:, None] + (np.arange(tokens) + 0.5) * patch
    places = (centers * cells / axis.content - 0.5).clip(0, cells - 1)
    return np.clip(1 - np.abs(places[:, :, None] - np.arange(cells)), 0, None)


def adaptive_matrix(tiles: int, tokens: int, cells: int) -> Array:
    """The (tiles, cells, tokens) matrices of PyTorch's adaptive average pooling over stitched tiles.

    Cell i averages tokens ⌊i·n/cells⌋ to ⌈(i+1)·n/cells⌉ of the n stitched ones: cells overlap unless they divide n
    (`F.interpolate(mode="area")`, which the original s2wrapper uses). `merge_matrix` is exact where this is not.
    """
    count = tiles * tokens
    index, cell = np.arange(count), np.arange(cells)[:, None]
    inside = (index >= cell * count // cells) & (index < -(-(cell + 1) * count // cells))
    weights = inside / inside.sum(axis=1, keepdims=True)
    return weights.reshape(cells, tiles, tokens).transpose(1, 0, 2)
