"""Fewer tiles, training-free: which tiles of the finer scales are worth a backbone call.

A heat map says what is useful where; a tile is as useful as the average heat of what it answers for. `by` is
"detail", "saliency" or any function `(images, features) -> (b, h, w)` of the normalised images and of what the
smallest scale saw; `similar_to` and `inside` make such functions.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from s2wrap.components import likeness
from s2wrap.errors import S2WrapError, first_line
from s2wrap.features import Features
from s2wrap.plan import Axis, Plan
from s2wrap.policies import Pair
from s2wrap.resample import full_precision, resize
from s2wrap.scales import whole_number

Heat = Callable[[Tensor, Features], Tensor]
Useful = str | Heat
"""What is useful: "detail", "saliency", or a function of images and features."""


def choose_tiles(
    images: Tensor, base: Features, plan: Plan, base_scale: int, select: object, by: object
) -> list[list[list[int]]]:
    """For each image and scale the indices of the tiles to run: the best of all scales but the smallest.

    Args:
        images: normalised images (b, c, height, width).
        base: what the smallest scale saw of them, on its own grid.
        plan: where the tiles lie.
        base_scale: index of the smallest scale.
        select: how many tiles of the other scales together.
        by: what is useful: "detail", "saliency" or a function.

    Raises:
        S2WrapError: more tiles than there are, an unknown `by`, or heat that is no map of finite numbers.
    """
    fine = [(k, i) for k, scale in enumerate(plan.scales) if k != base_scale for i in range(len(scale.origins))]
    count = check_select(select, len(fine), (images.shape[-2], images.shape[-1]))
    if not fine:
        return [[[] for _ in plan.scales] for _ in images]
    heat = _heat(by, images, base) if count < len(fine) else images.new_zeros(len(images), 1, 1)
    heat = heat.float() if isinstance(heat, Tensor) else heat
    if not isinstance(heat, Tensor) or heat.ndim != 3 or len(heat) != len(images) or not heat.isfinite().all():
        shape = tuple(heat.shape) if isinstance(heat, Tensor) else type(heat).__name__
        raise S2WrapError(f"by={by!r} gave {shape} for {len(images)} images; it must give finite heat (b, h, w)")
    scores = torch.cat(
        [_tile_heat(heat, plan.scales[k].rows, plan.scales[k].cols) for k in _others(plan, base_scale)], 1
    )
    chosen = []
    for best in scores.argsort(dim=1, descending=True, stable=True)[:, :count].tolist():
        tiles: list[list[int]] = [[] for _ in plan.scales]
        for k, i in sorted(fine[number] for number in best):
            tiles[k].append(i)
        chosen.append(tiles)
    return chosen


def check_select(select: object, most: int, image_hw: Pair) -> int:
    """How many tiles are to run. Raises S2WrapError for no number, and for more than there are."""
    count = whole_number(select)
    if count is None or not 0 <= count <= most:
        raise S2WrapError(
            f"select={select!r}, but an image of {image_hw[0]}×{image_hw[1]} pixels has {most} tiles beyond the "
            f"smallest scale; use 0 to {most}"
        )
    return count


def _heat(by: object, images: Tensor, base: Features) -> Any:
    """What a function of the user's, or one that a word names, answers."""
    function = heat_for(by)
    try:
        return function(images, base)
    except S2WrapError:
        raise
    except Exception as error:
        name = getattr(function, "__name__", repr(function))
        raise S2WrapError(f"by={name!r} failed on {len(images)} images: {first_line(error)}") from error


def heat_for(by: object) -> Heat:
    """The function that a word names, or the one given."""
    words = {"detail": detail, "saliency": saliency}
    if isinstance(by, str) and by in words:
        return words[by]
    if not callable(by):
        raise S2WrapError(
            f"by={by!r} is unknown; use {', '.join(map(repr, words))}, s2wrap.similar_to(vectors), "
            f"s2wrap.inside(boxes), or a function of (images, features) that gives heat (b, h, w)"
        )
    return cast(Heat, by)


def saliency(images: Tensor, features: Features) -> Tensor:
    """How far each token lies from the image's average token: what stands out."""
    spatial = features.maps[-1].float()
    return (spatial - reduce(spatial, "b c h w -> b c 1 1", "mean")).norm(dim=1)


def detail(images: Tensor, features: Features) -> Tensor:
    """What the smallest scale cannot have seen: the energy that the image loses when it is shrunk to the map's size.

    Measured at eight pixels a token, where patches still tell textures apart.
    """
    height, width = (8 * side for side in features.maps[-1].shape[-2:])
    sharp = resize(images, (min(2 * height, images.shape[-2]), min(2 * width, images.shape[-1])))
    lost = sharp - resize(resize(sharp, (height, width)), (sharp.shape[-2], sharp.shape[-1]))
    return reduce(lost.square(), "b c h w -> b h w", "mean")


def similar_to(vectors: Tensor) -> Heat:
    """Heat by likeness: the largest cosine between a token and these vectors, (c,) or (n, c).

    >>> similar_to(torch.ones(8))(torch.zeros(1, 3, 9, 9), Features((torch.ones(1, 8, 2, 2),), ())).shape
    torch.Size([1, 2, 2])
    """
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or not vectors.numel():
        found = tuple(vectors.shape) if isinstance(vectors, Tensor) else f"a {type(vectors).__name__}"
        raise S2WrapError(f"similar_to() takes a tensor of vectors (c,) or (n, c), not {found}")
    vectors = torch.atleast_2d(vectors)

    def heat(images: Tensor, features: Features) -> Tensor:
        spatial = features.maps[-1].float()
        if vectors.shape[-1] != spatial.shape[1]:
            raise S2WrapError(
                f"similar_to() has vectors of {vectors.shape[-1]} channels; tokens have {spatial.shape[1]}"
            )
        return likeness(spatial, vectors)

    return heat


def inside(boxes: Sequence[Sequence[float]]) -> Heat:
    """Heat by place: the share of each spot inside any of these boxes (left, top, right, bottom) in image pixels."""
    if not isinstance(boxes, Iterable):
        raise S2WrapError(f"inside() takes a list of boxes (left, top, right, bottom) in pixels, not {boxes!r}")
    corners = [_corners(box) for box in boxes]

    def heat(images: Tensor, features: Features) -> Tensor:
        height, width = images.shape[-2:]
        found = torch.zeros(len(images), height, width, device=images.device)
        for left, top, right, bottom in corners:
            found[:, max(0, round(top)) : max(0, round(bottom)), max(0, round(left)) : max(0, round(right))] = 1
        return found

    return heat


def _corners(box: Any) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError):
        left = top = right = bottom = math.nan
    if not all(map(math.isfinite, (left, top, right, bottom))) or not (left < right and top < bottom):
        raise S2WrapError(
            f"box {box!r} is none; use (left, top, right, bottom) in pixels, left < right and top < bottom"
        )
    return left, top, right, bottom


def _others(plan: Plan, base_scale: int) -> list[int]:
    return [k for k in range(len(plan.scales)) if k != base_scale]


def _tile_heat(heat: Tensor, rows: Axis, cols: Axis) -> Tensor:
    """The average heat of what each tile answers for: (b, tiles)."""
    down, across = (
        torch.from_numpy(_shares(axis, cells)).to(heat)
        for axis, cells in zip((rows, cols), heat.shape[1:], strict=True)
    )
    with full_precision(heat.device):
        return rearrange(down @ heat @ across.T, "b r q -> b (r q)")


def _shares(axis: Axis, cells: int) -> np.ndarray:
    """The (tiles, cells) matrix that averages a map of the whole image over what each tile answers for."""
    edges = np.linspace(0, axis.content, cells + 1)
    owned = np.array(axis.owned)
    shared = np.minimum(edges[1:], owned[:, 1:]) - np.maximum(edges[:-1], owned[:, :1])
    shares = shared.clip(0)
    return shares / shares.sum(axis=1, keepdims=True)
