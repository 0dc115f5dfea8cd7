"""Where the cells of a map lie on the original image: `Geometry`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.policies import Pair

Number = tuple[float, float]
Points = TypeVar("Points", Number, np.ndarray, Tensor)


@dataclass(frozen=True)
class Geometry:
    """The place of one map on the original image: its cells divide the image evenly, whatever the scales were.

    Pixels are counted continuously from the top left corner of the image: pixel (0, 0) spans 0…1 both ways, and its
    centre is (0.5, 0.5). Cells are counted by their centres: cell (0, 0) is the middle of the first cell, and its
    edges are at -0.5 and 0.5. So cell (i, j) spans the pixels i·height/rows…(i+1)·height/rows, and j·width/columns…
    across. Every pair is (down, across).

    A point is a pair of numbers; points are an array or a tensor whose last axis holds such pairs. What comes out is
    of the same kind: floats, an array or a tensor, float64 unless the points were of another floating type.

    Attributes:
        grid: rows and columns of the map.
        image_hw: height and width of the original image in pixels.
        scale: the index of the scale that the map shows; None where scales are fused.
        layer: the index of the layer that it shows, among those asked for; None where layers are joined.

    >>> geometry = Geometry((16, 16), (480, 640))
    >>> geometry.stride, geometry.offset
    ((30.0, 40.0), (15.0, 20.0))
    >>> geometry.to_pixels((3, 5)), geometry.to_cells((105, 220)), geometry.cell_at((100, 239.9))
    ((105.0, 220.0), (3.0, 5.0), (3, 5))
    """

    grid: Pair
    image_hw: Pair
    scale: int | None = None
    layer: int | None = None

    @property
    def stride(self) -> Number:
        """Pixels from one cell to the next, down and across."""
        return self.image_hw[0] / self.grid[0], self.image_hw[1] / self.grid[1]

    @property
    def offset(self) -> Number:
        """The centre of cell (0, 0) in pixels, down and across: half a stride."""
        return self.stride[0] / 2, self.stride[1] / 2

    def to_pixels(self, cells: Points) -> Points:
        """The pixels at which cells have their centres: cell i is at (i + 0.5) · stride.

        Raises:
            S2WrapError: cells outside the map, below -0.5 or above rows - 0.5 (columns - 0.5).
        """
        points = _checked(cells, (-0.5, -0.5), (self.grid[0] - 0.5, self.grid[1] - 0.5), f"cells of {self}")
        pixels = (points + 0.5) * points.new_tensor(self.image_hw) / points.new_tensor(self.grid)
        return _as_given(pixels.minimum(points.new_tensor(self.image_hw)), cells)

    def to_cells(self, pixels: Points) -> Points:
        """The cells, in fractions, at which pixels lie: the exact inverse of `to_pixels`.

        Raises:
            S2WrapError: pixels outside the image.
        """
        points = _checked(pixels, (0, 0), self.image_hw, f"pixels of {self}")
        return _as_given(points * points.new_tensor(self.grid) / points.new_tensor(self.image_hw) - 0.5, pixels)

    def cell_at(self, pixels: Points) -> Points:
        """The row and column of the cell that holds each pixel, as whole numbers to index a map with.

        A pixel on the border of two cells belongs to the second; the far borders of the image to the last.

        Raises:
            S2WrapError: pixels outside the image.
        """
        points = _checked(pixels, (0, 0), self.image_hw, f"pixels of {self}")
        cells = (points * points.new_tensor(self.grid) / points.new_tensor(self.image_hw)).floor().long()
        return _as_given(cells.minimum(cells.new_tensor(self.grid) - 1), pixels)

    def __str__(self) -> str:
        of = "".join(f", {name} {k}" for name, k in (("scale", self.scale), ("layer", self.layer)) if k is not None)
        return f"a {self.grid[0]}×{self.grid[1]} map of {self.image_hw[0]}×{self.image_hw[1]} pixels{of}"


def _checked(given: Number | np.ndarray | Tensor, low: Sequence[float], high: Sequence[float], what: str) -> Tensor:
    """Points as a floating tensor, each between `low` and `high`."""
    try:
        dtype = None if isinstance(given, np.ndarray) else np.float64
        points = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given, dtype))
    except (TypeError, ValueError) as error:
        raise S2WrapError(f"{what}: {given!r} are no points; use pairs of numbers (down, across)") from error
    if points.ndim == 0 or points.shape[-1] != 2:
        raise S2WrapError(f"{what}: {tuple(points.shape)} is no shape of points; the last axis holds (down, across)")
    widened = torch.promote_types(points.dtype, torch.float32)
    points = points.to(widened if points.is_floating_point() else torch.float64)
    inside = (points >= points.new_tensor(low)) & (points <= points.new_tensor(high))
    if not bool(inside.all()):
        outside = points[~inside.all(dim=-1)].tolist()
        some = ", ".join(f"({down:g}, {across:g})" for down, across in outside[:3])
        more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
        raise S2WrapError(
            f"{what}: {some}{more} outside; use {low[0]:g}…{high[0]:g} down and {low[1]:g}…{high[1]:g} across"
        )
    return points


def _as_given(points: Tensor, given: Points) -> Points:
    """Points as the kind that was given."""
    if isinstance(given, Tensor):
        return points
    if isinstance(given, np.ndarray) or points.ndim > 1:
        return cast(Points, points.numpy())
    return cast(Points, tuple(points.tolist()))
