"""Merging: the tiles of one scale into one map, as they arrive. Fusing: the scales into one."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange, reduce, repeat
from torch import Tensor

from s2wrap.features import Features
from s2wrap.options import Fusion, Norm
from s2wrap.resample import full_precision


class MergeMatrices(NamedTuple):
    """The matrices that reduce the tiles of one scale to a grid: Σ A_h · X · A_wᵀ. One of each a tile, row by row.

    Attributes:
        rows: (tiles, grid height, tile tokens).
        cols: (tiles, grid width, tile tokens).
        areas: (tiles,): the share of the image that each tile answers for; they sum to 1.
    """

    rows: Tensor
    cols: Tensor
    areas: Tensor


class CorrectionMatrices(NamedTuple):
    """The matrices of `correct_tiles`, one of each a tile, row by row; see there.

    Attributes:
        spread_rows: (tiles, tile tokens, cells of the coarser map's height).
        spread_cols: (tiles, tile tokens, cells of its width).
        smooth_rows: (tiles, tile tokens, tile tokens).
        smooth_cols: (tiles, tile tokens, tile tokens).
    """

    spread_rows: Tensor
    spread_cols: Tensor
    smooth_rows: Tensor
    smooth_cols: Tensor


def merge_matrices(rows: np.ndarray, cols: np.ndarray, areas: Sequence[float]) -> MergeMatrices:
    """The matrices of `merge_tiles` for one scale, in float32 on the CPU.

    Args:
        rows: (tile rows, grid height, tile tokens), from `resample.merge_matrix` or `adaptive_matrix`.
        cols: (tile columns, grid width, tile tokens).
        areas: share of the image that each tile answers for, summing to 1.
    """
    down, across = len(rows), len(cols)
    return MergeMatrices(
        float32(repeat(rows, "r h y -> (r q) h y", q=across)),
        float32(repeat(cols, "q w x -> (r q) w x", r=down)),
        float32(np.array(areas)),
    )


def correction_matrices(spread: Sequence[np.ndarray], smooth: Sequence[np.ndarray]) -> CorrectionMatrices:
    """The matrices of `correct_tiles` for one scale, in float32 on the CPU.

    Args:
        spread: for rows and columns (tiles, tokens, cells), from `resample.spread_matrix`.
        smooth: for rows and columns (tiles, tokens, tokens), from `resample.polynomial_matrix`.
    """
    (rows, cols), (smooth_rows, smooth_cols) = spread, smooth
    down, across = len(rows), len(cols)
    return CorrectionMatrices(
        float32(repeat(smooth_rows @ rows, "r y h -> (r q) y h", q=across)),
        float32(repeat(smooth_cols @ cols, "q x w -> (r q) x w", r=down)),
        float32(repeat(smooth_rows, "r y z -> (r q) y z", q=across)),
        float32(repeat(smooth_cols, "q x z -> (r q) x z", r=down)),
    )


def float32(array: np.ndarray) -> Tensor:
    """An array as a tensor of float32 on the CPU, whatever the default device is."""
    return torch.tensor(np.ascontiguousarray(array), dtype=torch.float32, device="cpu")


def merge_tiles(matrices: MergeMatrices, spatial: Tensor, prefix: Tensor, *, first: int, tiles: int) -> Features:
    """The part of the grid (b, c, h, w) and of the prefix tokens (b, p, c) that some tiles make.

    Computed in at least float32. The sum over all tiles is the grid: no stitched map is ever held, and memory does not
    depend on the number of tiles.

    Args:
        matrices: of the scale.
        spatial: maps (tiles · b, c, y, x), all images of a tile together.
        prefix: prefix tokens (tiles · b, p, c), which the tile's share of the image weighs.
        first: index of the first tile.
        tiles: their number.
    """
    wide = torch.promote_types(spatial.dtype, torch.float32)
    now = slice(first, first + tiles)
    rows, cols, areas = (matrix[now].to(wide) for matrix in matrices)
    with full_precision(spatial.device):
        # channels last: the products are large ones then, and tokens need no copy
        maps = rearrange(spatial.to(wide), "(n b) c y x -> n b y x c", n=tiles).contiguous()
        lines = rearrange(cols[:, None, None] @ maps, "n b y w c -> b (n y) (w c)")
        grid = rearrange(rearrange(rows, "n h y -> h (n y)") @ lines, "b h (w c) -> b c h w", c=spatial.shape[1])
        tokens = rearrange(prefix.to(wide), "(n b) p c -> n b p c", n=tiles)
        return Features((grid,), (torch.einsum("nbpc,n->bpc", tokens, areas),))


def correct_tiles(matrices: CorrectionMatrices, spatial: Tensor, coarse: Tensor, *, first: int, tiles: int) -> Tensor:
    """Tiles (tiles · b, c, y, x) with the tile-wide part of their features taken from a coarser map.

    A tile seen alone carries an offset of its own, which shows as a chess-board. Inside each tile, the part of the
    features that a polynomial of low degree expresses is replaced by that of the coarser map: with P the projection
    onto such polynomials along an axis, C the coarser map and U its interpolation at the tile's tokens,

        corrected  =  X + P_h (U_h C U_wᵀ − X) P_wᵀ

    Args:
        matrices: of the scale.
        spatial: maps of some tiles (tiles · b, c, y, x), all images of a tile together.
        coarse: the coarser map of the images (b, c, h, w).
        first: index of the first tile.
        tiles: their number.
    """
    wide = torch.promote_types(spatial.dtype, torch.float32)
    now = slice(first, first + tiles)
    spread_rows, spread_cols, smooth_rows, smooth_cols = (matrix[now] for matrix in matrices)
    with full_precision(spatial.device):
        maps = rearrange(spatial.to(wide), "(n b) c y x -> n b c y x", n=tiles)
        low = _both_sides(spread_rows, coarse.to(wide)[None], spread_cols)
        own = _both_sides(smooth_rows, maps, smooth_cols)
        return rearrange(maps + low - own, "n b c y x -> (n b) c y x")


def _both_sides(rows: Tensor, maps: Tensor, cols: Tensor) -> Tensor:
    """Rows · map · colsᵀ for matrices (n, …) and maps (n or 1, b, c, h, w)."""
    return rows.to(maps)[:, None, None] @ maps @ rearrange(cols.to(maps), "n x w -> n 1 1 w x")


def level_out(spatial: Tensor, averages: list[Tensor]) -> Tensor:
    """A map (b, c, h, w) whose average feature is that of all scales, (b, c, 1, 1) each."""
    return spatial + torch.stack(averages).mean(dim=0) - reduce(spatial, "b c h w -> b c 1 1", "mean")


def normalise_scales(levels: list[Features], norm: Norm, base: int) -> list[Features]:
    """The scales on one footing: averaged maps have smaller values, and would count less in a distance.

    Args:
        levels: one map a scale.
        norm: "none"; "l2" (every token gets length 1); "layer" (mean 0 and variance 1 over the channels of a token);
            "std" (all maps of an image get the standard deviation, about each channel's mean, of the base scale's).
        base: index of the base scale.
    """
    if norm == "none":
        return levels
    if norm == "std":
        deviations = [_deviation(level.spatial) for level in levels]
        factors = [deviations[base] / deviation for deviation in deviations]
        return [
            Features((level.spatial * factor[..., None],), (level.prefix * factor,))
            for level, factor in zip(levels, factors, strict=True)
        ]
    return [Features((_token_norm(level.spatial, norm, 1),), (_token_norm(level.prefix, norm, 2),)) for level in levels]


def _deviation(spatial: Tensor) -> Tensor:
    """Root mean square distance from each channel's mean: (b, 1, 1)."""
    centred = spatial - reduce(spatial, "b c h w -> b c 1 1", "mean")
    return reduce(centred.square(), "b c h w -> b 1 1", "mean").sqrt().clamp(min=1e-6)


def _token_norm(tensor: Tensor, norm: Norm, dim: int) -> Tensor:
    if norm == "l2":
        return F.normalize(tensor, dim=dim)
    centred = tensor - tensor.mean(dim=dim, keepdim=True)
    return centred * (centred.square().mean(dim=dim, keepdim=True) + 1e-6).rsqrt()


def fuse_scales(levels: list[Features], fuse: Fusion, weights: Sequence[float] | None = None) -> Features:
    """The scales as one `Features`: "concat" on channels (the paper, section 3.1), an element-wise reduction, or as is.

    Args:
        levels: one a scale; all on one grid unless `fuse` is "pyramid".
        fuse: "concat", "mean", "sum", "max", "weighted" or "pyramid".
        weights: one factor a scale for "weighted", used as given.
    """
    if fuse == "pyramid":
        return Features(tuple(level.spatial for level in levels), tuple(level.prefix for level in levels))
    spatial = _reduce([level.spatial for level in levels], fuse, weights, dim=1)
    prefix = _reduce([level.prefix for level in levels], fuse, weights, dim=2)
    return Features((spatial,), (prefix,))


def _reduce(tensors: list[Tensor], fuse: Fusion, weights: Sequence[float] | None, dim: int) -> Tensor:
    if fuse == "concat":
        return torch.cat(tensors, dim=dim)
    if weights is not None:
        tensors = [weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]
    stacked = torch.stack(tensors)
    if fuse == "max":
        return stacked.amax(dim=0)
    if fuse == "mean":
        return stacked.mean(dim=0)
    return stacked.sum(dim=0)
