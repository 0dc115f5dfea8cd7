"""Everything that depends on an image's size, made once for it: plan, grids and matrices."""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from s2wrap.backbones import Backbone
from s2wrap.errors import S2WrapError
from s2wrap.fusion import TileCorrection, TileMerge
from s2wrap.plan import Axis, Pair, Plan, ScalePlan, whole_number, whole_pair
from s2wrap.resample import merge_matrix, polynomial_matrix, seen_pixels, spread_matrix

GRIDS = ("coarsest", "finest")
Matrices = tuple[np.ndarray, np.ndarray]


class Placement(nn.Module):
    """The matrices that bring the tokens of every scale and layer of one plan to the grid of the result.

    Attributes:
        plan: where the tiles lie.
        order: indices of the scales, from the smallest to the largest.
        own_hw: [scale][layer] rows and columns of its own grid: as many tokens as it has side by side.
        target_hw: [layer] the grid of the result.
        levels: [scale][layer] what reduces the tiles.
        boxes: [scale] (h, w, 4) what each cell looked at, as fractions of the image: left, top, right, bottom.
        used: when it was last asked for, in calls of the model.
    """

    def __init__(
        self,
        plan: Plan,
        backbone: Backbone,
        *,
        order: list[int],
        fuse: str,
        target_grid: Any,
        blend: str,
        join_layers: bool,
    ):
        super().__init__()
        self.plan = plan
        self.order = order
        layers = range(len(backbone.layouts))
        self.tokens = [[_tokens(scale, backbone, layer) for layer in layers] for scale in plan.scales]
        self.own_hw = [[tokens.own_hw for tokens in of_scale] for of_scale in self.tokens]
        everything = [own for of_scale in self.own_hw for own in of_scale] if join_layers else None
        self.target_hw = [_target([own[n] for own in self.own_hw], everything, target_grid) for n in layers]
        self.used = 0
        self.levels, self.boxes = nn.ModuleList(), []
        for k, scale in enumerate(plan.scales):
            own = fuse == "pyramid" or (fuse == "detail" and k != self.order[-1])
            merged = self.own_hw[k] if own else self.target_hw
            coarser = self.coarser(k)
            of_layers = [
                _level(
                    self.tokens[k][n],
                    merged[n],
                    blend,
                    scale,
                    None if coarser is None else self.own_hw[coarser][n],
                    detail=fuse == "detail",
                    keep_own=coarser is None and merged != self.own_hw[k],
                )
                for n in layers
            ]
            self.levels.append(nn.ModuleList(of_layers))
            self.boxes.append(self.tokens[k][-1].boxes((merged if fuse == "pyramid" else self.target_hw)[-1], blend))

    def coarser(self, scale: int) -> int | None:
        """The index of the next smaller scale; None for the smallest."""
        place = self.order.index(scale)
        return self.order[place - 1] if place else None

    def level(self, scale: int, layer: int) -> "Level":
        """What reduces the tiles of a scale and layer."""
        return cast(nn.ModuleList, self.levels[scale])[layer]  # pyright: ignore[reportReturnType] (all are Levels)


class Level(nn.Module):
    """What becomes of the tiles of one scale and layer: corrected by a coarser map (detail fusion), then merged.

    `own` merges the smallest scale to its own grid, for the choice of tiles, where `merge` does not.
    """

    def __init__(
        self,
        merge: TileMerge,
        correction: TileCorrection | None = None,
        average: TileMerge | None = None,
        own: TileMerge | None = None,
    ):
        super().__init__()
        self.merge, self.correction, self.average, self.own = merge, correction, average, own


def _level(
    tokens: "Tokens",
    merged_hw: Pair,
    blend: str,
    scale: ScalePlan,
    coarser_hw: Pair | None,
    *,
    detail: bool,
    keep_own: bool,
) -> Level:
    def merge_to(cells_hw: Pair) -> TileMerge:
        return TileMerge(*tokens.merge_matrices(cells_hw, blend), scale.shares)

    merge = merge_to(merged_hw)
    if not detail:
        return Level(merge, own=merge_to(tokens.own_hw) if keep_own else None)
    if coarser_hw is None:
        return Level(merge, average=merge_to((1, 1)))
    correction = TileCorrection(tokens.spread_matrices(coarser_hw), tokens.polynomials())
    return Level(merge, correction, merge_to((1, 1)))


@dataclass(frozen=True)
class Tokens:
    """The tokens of one scale and layer: so many a tile, each of which saw a patch of so many pixels."""

    rows: Axis
    cols: Axis
    tokens_hw: Pair
    patch_hw: tuple[float, float]
    own_hw: Pair

    def merge_matrices(self, cells_hw: Pair, blend: str) -> Matrices:
        """What brings the tokens to a grid of the image; see `resample.merge_matrix`."""
        rows, cols = (
            merge_matrix(axis, tokens=tokens, patch=patch, cells=cells, blend=blend, fine=fine)
            for axis, tokens, patch, fine, cells in self._axes(cells_hw)
        )
        return rows, cols

    def spread_matrices(self, cells_hw: Pair) -> Matrices:
        """What interpolates a map of the image at the tokens; see `resample.spread_matrix`."""
        rows, cols = (
            spread_matrix(axis, tokens=tokens, patch=patch, cells=cells)
            for axis, tokens, patch, _, cells in self._axes(cells_hw)
        )
        return rows, cols

    def polynomials(self) -> Matrices:
        """What keeps the tile-wide part of a tile's tokens; see `resample.polynomial_matrix`."""
        rows, cols = (
            polynomial_matrix(axis, tokens=tokens, patch=patch) for axis, tokens, patch, *_ in self._axes((1, 1))
        )
        return rows, cols

    def boxes(self, cells_hw: Pair, blend: str) -> Tensor:
        """What each cell of a grid looked at, as fractions of the image (h, w, 4): left, top, right, bottom."""
        (top, bottom), (left, right) = (
            seen_pixels(axis, matrix, patch=patch).T / axis.content
            for axis, matrix, patch in zip(
                (self.rows, self.cols), self.merge_matrices(cells_hw, blend), self.patch_hw, strict=True
            )
        )
        sides = np.broadcast_arrays(left[None, :], top[:, None], right[None, :], bottom[:, None])
        return torch.from_numpy(np.stack(sides, axis=-1).astype(np.float32))

    def _axes(self, cells_hw: Pair):
        return zip((self.rows, self.cols), self.tokens_hw, self.patch_hw, self.own_hw, cells_hw, strict=True)


def _tokens(scale: ScalePlan, backbone: Backbone, layer: int) -> Tokens:
    tokens_hw = backbone.grid_hw(scale.tile_hw, layer)
    layout = backbone.layouts[layer]
    own = scale.tile_hw == backbone.image_hw
    rows, cols = (
        max(1, round(content * tokens / tile))
        for content, tokens, tile in zip(scale.image_hw, tokens_hw, scale.tile_hw, strict=True)
    )
    patch_hw = layout.patch_hw if own else layout.stride_hw(backbone.image_hw)
    return Tokens(scale.rows, scale.cols, tokens_hw, patch_hw, (rows, cols))


def _target(own: list[Pair], everything: list[Pair] | None, target_grid: Any) -> Pair:
    """The grid of the result: by word, by index of a scale, or as given."""
    if target_grid in GRIDS:
        choose = min if target_grid == "coarsest" else max
        return choose(everything or own, key=math.prod)
    return own[target_grid] if isinstance(target_grid, int) else target_grid


def check_grid(grid: Any, scales: int) -> Any:
    """A target grid that exists: "coarsest", "finest", the index of a scale, or (rows, columns)."""
    if isinstance(grid, str) and grid in GRIDS:
        return grid
    if (scale := whole_number(grid)) is not None and -scales <= scale < scales:
        return scale
    if (pair := whole_pair(grid)) and all(1 <= cells <= 4096 for cells in pair):
        return pair
    raise S2WrapError(
        f"target_grid={grid!r} is no grid; use 'coarsest', 'finest', the index of one of {scales} scales, or "
        f"(rows, columns) of 1 to 4096 cells"
    )
