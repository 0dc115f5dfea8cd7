"""Merging: the tiles of one scale into one map, as they arrive. Fusing: the scales into one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.resample import Constants, full_precision

FUSIONS = ("concat", "mean", "sum", "max", "weighted", "pyramid")


class TileMerge(Constants):
    """The matrices that reduce the tiles of one scale to a grid: Σ A_h · X · A_wᵀ, in at least float32.

    Tiles may come in parts: the sum of the parts is the grid. So no stitched map is ever held, and memory does not
    depend on the number of tiles.
    """

    rows: Tensor
    cols: Tensor
    areas: Tensor

    def __init__(self, rows: np.ndarray, cols: np.ndarray, areas: Sequence[float]):
        """The matrices for one scale; its tiles will come row by row.

        Args:
            rows: (tile rows, grid height, tile tokens), from `resample.merge_matrix` or `adaptive_matrix`.
            cols: (tile columns, grid width, tile tokens).
            areas: share of the image that each tile answers for, summing to 1.
        """
        super().__init__(
            rows=repeat(rows, "r h y -> (r q) h y", q=len(cols)),
            cols=repeat(cols, "q w x -> (r q) w x", r=len(rows)),
            areas=np.array(areas),
        )

    def forward(self, spatial: Tensor, prefix: Tensor, *, first: int, tiles: int) -> Features:
        """The part of the grid (b, c, h, w) and of the prefix tokens (b, p, c) that some tiles make.

        Args:
            spatial: maps (tiles · b, c, y, x), all images of a tile together.
            prefix: prefix tokens (tiles · b, p, c), which the tile's share of the image weighs.
            first: index of the first tile.
            tiles: their number.
        """
        wide = torch.promote_types(spatial.dtype, torch.float32)
        now = slice(first, first + tiles)
        rows, cols, areas = self.rows[now].to(wide), self.cols[now].to(wide), self.areas[now].to(wide)
        with full_precision(spatial.device):
            # channels last: the products are large ones then, and tokens need no copy
            maps = rearrange(spatial.to(wide), "(n b) c y x -> n b y x c", n=tiles).contiguous()
            lines = rearrange(cols[:, None, None] @ maps, "n b y w c -> b (n y) (w c)")
            grid = rearrange(rearrange(rows, "n h y -> h (n y)") @ lines, "b h (w c) -> b c h w", c=spatial.shape[1])
            tokens = rearrange(prefix.to(wide), "(n b) p c -> n b p c", n=tiles)
            return Features((grid,), (torch.einsum("nbpc,n->bpc", tokens, areas),))


def fuse_scales(levels: list[Features], fuse: str, weights: tuple[float, ...] | None = None) -> Features:
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


def _reduce(tensors: list[Tensor], fuse: str, weights: tuple[float, ...] | None, dim: int) -> Tensor:
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


def check_fusion(fuse: str, weights: Any, scales: int) -> tuple[float, ...] | None:
    """The weights as numbers, once `fuse` and they name a fusion of that many scales; S2WrapError otherwise."""
    if fuse not in FUSIONS:
        raise S2WrapError(f"fuse={fuse!r} is unknown; use one of {', '.join(FUSIONS)}")
    if (fuse == "weighted") != (weights is not None):
        raise S2WrapError(
            f"fuse={fuse!r} with weights={weights}; weights belong to fuse='weighted': "
            f"give {scales} numbers, one a scale"
        )
    if weights is None:
        return None
    try:
        numbers = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != scales or not all(map(math.isfinite, numbers)):
        raise S2WrapError(f"weights={weights} for {scales} scales; give one finite number a scale")
    return numbers
