"""Policies that choose how many rows and columns of tiles suit an image's shape.

A policy is any function `(image_hw, tile_hw, min_tiles, max_tiles) -> (rows, columns)`.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from s2wrap.errors import S2WrapError, first_line

Pair = tuple[int, int]
Policy = Callable[[Pair, Pair, int, int], Pair]
PolicyName = Literal["closest", "nvila", "anyres", "internvl"]


def closest(image_hw: Pair, tile_hw: Pair, min_tiles: int, max_tiles: int) -> Pair:
    """Return the grid with the least error of |log aspect ratio|; of equals, the one with the most tiles.

    Symmetric: a transposed image gets the transposed grid. `min_tiles` is ignored: a grid of fewer tiles with the
    better shape wins, as in a fit of the long side.

    >>> closest((1080, 1920), (448, 448), 9, 12), closest((1920, 1080), (448, 448), 9, 12)
    ((2, 4), (4, 2))
    """
    grids = _grids(1, max_tiles)
    return min(grids, key=lambda grid: (_stretch(image_hw, tile_hw, grid), -grid[0] * grid[1]))


def nvila(image_hw: Pair, tile_hw: Pair, min_tiles: int, max_tiles: int) -> Pair:
    """Return the grid of NVILA's dynamic-S2 (arXiv 2412.04468): least |W/H - columns/rows| within the tile counts.

    Not symmetric: 1920×1080 pixels get 4 columns × 3 rows, 1080×1920 get 2 × 5. Of exact equals the larger grid is
    taken if the image has more than half its pixels. Where no grid has so many tiles the original silently falls back
    to one tile; here that is an error.

    >>> nvila((1080, 1920), (448, 448), 9, 12), nvila((1920, 1080), (448, 448), 9, 12)
    ((3, 4), (5, 2))
    """
    (height, width), best = image_hw, None
    for rows, cols in sorted(_grids(min_tiles, max_tiles), key=lambda grid: (grid[0] * grid[1], grid[1])):
        error = abs(width / height - cols / rows)
        larger_fits = height * width > 0.5 * tile_hw[0] * tile_hw[1] * rows * cols
        if best is None or error < best[0] or (error == best[0] and larger_fits):
            best = error, (rows, cols)
    if best is None:
        raise S2WrapError(
            f"no grid has {min_tiles} to {max_tiles} tiles; give a max_tiles of at least {max(min_tiles, 1)}, or a "
            f"smaller scale"
        )
    return best[1]


def internvl(image_hw: Pair, tile_hw: Pair, min_tiles: int, max_tiles: int) -> Pair:
    """Return the grid of InternVL's dynamic tiling (arXiv 2404.16821): as `nvila`, but from one tile on.

    >>> internvl((500, 1000), (448, 448), 9, 12)
    (1, 2)
    """
    return nvila(image_hw, tile_hw, 1, max_tiles)


def anyres(image_hw: Pair, tile_hw: Pair, min_tiles: int, max_tiles: int) -> Pair:
    """Return the grid of LLaVA-NeXT's AnyRes, which keeps most of the image's pixels; of equals, with least padding.

    The kept pixels are those of the image fitted into the grid with its aspect ratio, at most as many as it has, so
    small images get small grids. Meant for `fit="pad"`. The original pads on both sides in black; here padding lies at
    the bottom and right, in the mean colour, and is masked.

    >>> anyres((400, 400), (336, 336), 4, 4), anyres((300, 1200), (336, 336), 4, 4)
    ((2, 2), (1, 4))
    """
    height, width = image_hw

    def key(grid: Pair) -> tuple[int, int, Pair]:
        box_h, box_w = grid[0] * tile_hw[0], grid[1] * tile_hw[1]
        ratio = min(Fraction(box_h, height), Fraction(box_w, width))
        used = min(math.floor(height * ratio) * math.floor(width * ratio), height * width)
        return -used, box_h * box_w - used, grid

    return min(_grids(1, max_tiles), key=key)


POLICIES: dict[PolicyName, Policy] = {"closest": closest, "nvila": nvila, "anyres": anyres, "internvl": internvl}


def policy_function(policy: PolicyName | Policy) -> Policy:
    """The function that a policy's name stands for, or the one given."""
    return policy if callable(policy) else POLICIES[policy]


def policy_name(policy: PolicyName | Policy) -> PolicyName:
    """The name of a policy of this file, given by name or as the function itself.

    Raises:
        S2WrapError: a function of the caller's, which a file cannot hold.
    """
    for name, function in POLICIES.items():
        if policy in (name, function):
            return name
    raise S2WrapError(
        f"policy={getattr(policy, '__qualname__', policy)!r} is a function of your own, which a file cannot hold; use "
        f"one of {', '.join(POLICIES)}"
    )


def choose_grid(policy: Policy, image_hw: Pair, tile_hw: Pair, min_tiles: int, max_tiles: int) -> Pair:
    """Return a policy's rows and columns. Raises S2WrapError unless these make 1 to `max_tiles` tiles."""
    name = getattr(policy, "__name__", repr(policy))
    request = f"an image of {image_hw[0]}×{image_hw[1]} pixels, {min_tiles} to {max_tiles} tiles"
    try:
        result = policy(image_hw, tile_hw, min_tiles, max_tiles)
    except S2WrapError:
        raise
    except Exception as error:
        raise S2WrapError(f"policy {name!r} failed on {request}: {first_line(error)}") from error
    try:
        rows, cols = (int(number) for number in result)
    except (TypeError, ValueError):
        rows = cols = 0
    if rows < 1 or cols < 1 or rows * cols > max_tiles:
        raise S2WrapError(
            f"policy {name!r} answered {result!r} for {request}; it must give (rows, columns) of 1 to {max_tiles} tiles"
        )
    return rows, cols


def _grids(min_tiles: int, max_tiles: int) -> list[Pair]:
    """Return every (rows, columns) with `min_tiles` to `max_tiles` tiles."""
    return [
        (rows, cols)
        for rows in range(1, max_tiles + 1)
        for cols in range(max(1, math.ceil(min_tiles / rows)), max_tiles // rows + 1)
    ]


def _stretch(image_hw: Pair, tile_hw: Pair, grid: Pair) -> Fraction:
    """Return how much more one axis is stretched than the other, 1 or more, as an exact fraction to find equals."""
    ratio = Fraction(image_hw[1] * grid[0] * tile_hw[0], image_hw[0] * grid[1] * tile_hw[1])
    return max(ratio, 1 / ratio)
