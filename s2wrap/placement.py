"""Everything that depends on an image's size, made once for it: plan, grids and matrices."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from s2wrap.backbones.base import Backbone
from s2wrap.fusion import CorrectionMatrices, MergeMatrices, correction_matrices, merge_matrices
from s2wrap.inputs import MeanStd
from s2wrap.options import Blend, GridWord, Options
from s2wrap.plan import Axis, Plan, ScalePlan
from s2wrap.policies import Pair
from s2wrap.resample import merge_matrix, polynomial_matrix, seen_pixels, spread_matrix

Matrices = tuple[np.ndarray, np.ndarray]
Kept = TypeVar("Kept")
KEPT_SIZES = 64
"""Image sizes whose matrices are kept."""


class LayerMatrices(NamedTuple):
    """What becomes of the tiles of one scale and layer.

    Attributes:
        merge: reduces them to the grid of the result, or to the scale's own.
        correction: takes their tile-wide part from a coarser map first (detail fusion, but for the smallest scale).
        average: reduces them to one cell (detail fusion).
        own: merges the smallest scale to its own grid, for the choice of tiles, where `merge` does not.
    """

    merge: MergeMatrices
    correction: CorrectionMatrices | None = None
    average: MergeMatrices | None = None
    own: MergeMatrices | None = None


class ScalePlacement(NamedTuple):
    """One scale of images of one size: plain numbers and tensors, which traces take as constants.

    Attributes:
        image_hw: height and width in pixels of the resized image, without padding.
        padding_hw: pixels of padding below and to the right of it.
        tile_hw: height and width of a tile.
        origins: top and left of every tile, row by row.
        layers: what reduces the tiles, one a layer.
        own_hw: rows and columns of its own grid, one a layer: as many tokens as it has side by side, in all phases.
        boxes: (h, w, 4): what each cell of its map looked at, as fractions of the image: left, top, right, bottom. An
            array: it stays on the CPU, so that nobody waits for a GPU to say it.
    """

    image_hw: Pair
    padding_hw: Pair
    tile_hw: Pair
    origins: tuple[Pair, ...]
    layers: tuple[LayerMatrices, ...]
    own_hw: tuple[Pair, ...]
    boxes: np.ndarray


class Placement(NamedTuple):
    """What depends on the size of images, on one device.

    Attributes:
        order: indices of the scales, from the smallest to the largest.
        scales: in the order of the model's.
        target_hw: the grid of the result, one a layer.
        mean_std: what normalises images.
        plan: where the tiles lie.
        tokens: [scale][layer] the tokens of the tiles.
    """

    order: tuple[int, ...]
    scales: tuple[ScalePlacement, ...]
    target_hw: tuple[Pair, ...]
    mean_std: MeanStd
    plan: Plan
    tokens: "tuple[tuple[Tokens, ...], ...]"


@dataclass(frozen=True)
class Tokens:
    """The tokens of one scale and layer: so many a tile, each of which saw a patch of so many pixels."""

    rows: Axis
    cols: Axis
    tokens_hw: Pair
    patch_hw: tuple[float, float]
    own_hw: Pair

    def merge_matrices(self, cells_hw: Pair, blend: Blend) -> Matrices:
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

    def boxes(self, cells_hw: Pair, blend: Blend) -> np.ndarray:
        """What each cell of a grid looked at, as fractions of the image (h, w, 4): left, top, right, bottom."""
        (top, bottom), (left, right) = (
            seen_pixels(axis, matrix, patch=patch).T / axis.content
            for axis, matrix, patch in zip(
                (self.rows, self.cols), self.merge_matrices(cells_hw, blend), self.patch_hw, strict=True
            )
        )
        sides = np.broadcast_arrays(left[None, :], top[:, None], right[None, :], bottom[:, None])
        return np.stack(sides, axis=-1)

    def _axes(self, cells_hw: Pair):
        return zip((self.rows, self.cols), self.tokens_hw, self.patch_hw, self.own_hw, cells_hw, strict=True)


def place(plan: Plan, backbone: Backbone, options: Options, order: tuple[int, ...]) -> Placement:
    """The matrices that bring the tokens of every scale and layer of a plan to the grid of the result, on the CPU.

    Args:
        plan: where the tiles lie.
        backbone: whose tokens they are.
        options: of the model.
        order: indices of the scales, from the smallest to the largest.
    """
    layers = range(len(backbone.layouts))
    tokens = tuple(tuple(_tokens(scale, backbone, layer) for layer in layers) for scale in plan.scales)
    own_hw = [tuple(each.own_hw for each in of_scale) for of_scale in tokens]
    everything = [own for of_scale in own_hw for own in of_scale] if options.join_layers else None
    target_hw = tuple(_target([own[n] for own in own_hw], everything, options.result_grid) for n in layers)
    if options.join_layers and isinstance(
        options.result_grid, int
    ):  # one grid for all: the coarsest of that scale's layers
        target_hw = (min(own_hw[options.result_grid], key=math.prod),) * len(layers)
    scales = []
    for k, scale in enumerate(plan.scales):
        place_in_order = order.index(k)
        coarser = order[place_in_order - 1] if place_in_order else None
        own = options.fuse == "pyramid" or (options.fuse == "detail" and k != order[-1])
        merged_hw = own_hw[k] if own else target_hw
        matrices = tuple(
            _layer_matrices(
                tokens[k][n],
                merged_hw[n],
                options.blend,
                scale.shares,
                None if coarser is None else own_hw[coarser][n],
                detail=options.fuse == "detail",
                keep_own=coarser is None and merged_hw != own_hw[k],
            )
            for n in layers
        )
        shown_hw = merged_hw if options.fuse == "pyramid" else target_hw
        boxes = tokens[k][-1].boxes(shown_hw[-1], options.blend)
        of_plan = (scale.image_hw, scale.padding_hw, scale.tile_hw, scale.origins)
        scales.append(ScalePlacement(*of_plan, matrices, own_hw[k], boxes))
    return Placement(order, tuple(scales), target_hw, backbone.input.mean_std("cpu"), plan, tokens)


class PlacementCache(Generic[Kept]):
    """Placements, or other tuples of tensors, of the image sizes that were used last, copied to each device of use.

    It is no state of the model: copies, pickles and hashes of a model do not see it. Safe in threads. Tensors are made
    outside inference mode, so that a model that has validated can train.
    """

    def __init__(self) -> None:
        self.kept: OrderedDict[str, dict[str, Kept]] = OrderedDict()
        self.lock = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementCache, ()

    def __deepcopy__(self, memo: object) -> "PlacementCache[Kept]":
        return PlacementCache()

    def get(self, key: str, device: str, make: Callable[[], Kept]) -> Kept:
        """The placement under a key on a device; made, or copied there, unless it is kept."""
        with self.lock:
            copies = self.kept.get(key)
            if copies is None:
                with _real_tensors():
                    copies = {"cpu": make()}
                if len(self.kept) >= KEPT_SIZES:
                    self.kept.popitem(last=False)
                self.kept[key] = copies
            self.kept.move_to_end(key)
            if device not in copies:
                with _real_tensors():
                    copies[device] = moved(copies["cpu"], device)
            return copies[device]

    def __contains__(self, key: str) -> bool:
        return key in self.kept


@contextmanager
def _real_tensors() -> Iterator[None]:
    """Tensors made here have values and may be kept, whatever mode is on: fake tensors, a trace, inference."""
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        yield


def moved(value: object, device: str) -> Any:
    """A tensor, or whatever tuple of tensors, on a device; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _layer_matrices(
    tokens: Tokens,
    merged_hw: Pair,
    blend: Blend,
    shares: tuple[float, ...],
    coarser_hw: Pair | None,
    *,
    detail: bool,
    keep_own: bool,
) -> LayerMatrices:
    def merge_to(cells_hw: Pair) -> MergeMatrices:
        return merge_matrices(*tokens.merge_matrices(cells_hw, blend), shares)

    merge = merge_to(merged_hw)
    if not detail:
        return LayerMatrices(merge, own=merge_to(tokens.own_hw) if keep_own else None)
    if coarser_hw is None:
        return LayerMatrices(merge, average=merge_to((1, 1)))
    correction = correction_matrices(tokens.spread_matrices(coarser_hw), tokens.polynomials())
    return LayerMatrices(merge, correction, merge_to((1, 1)))


def _tokens(scale: ScalePlan, backbone: Backbone, layer: int) -> Tokens:
    tokens_hw = backbone.grid_hw(scale.tile_hw, layer)
    layout = backbone.layouts[layer]
    own = scale.tile_hw == backbone.image_hw
    rows, cols = (
        max(1, round((axis.content - axis.shift) * tokens / axis.tile)) * axis.phases
        for axis, tokens in zip((scale.rows, scale.cols), tokens_hw, strict=True)
    )
    patch_hw = layout.patch_hw if own else layout.stride_hw(backbone.image_hw)
    return Tokens(scale.rows, scale.cols, tokens_hw, patch_hw, (rows, cols))


def _target(own: list[Pair], everything: list[Pair] | None, target_grid: GridWord | int | Pair) -> Pair:
    """The grid of the result: by word, by index of a scale, or as given."""
    if isinstance(target_grid, tuple):
        return target_grid
    if isinstance(target_grid, int):
        return own[target_grid]
    return (max if target_grid == "finest" else min)(everything or own, key=math.prod)
