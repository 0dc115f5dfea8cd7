"""Where the windows of a scene lie, and which of its cells may be looked at."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.images import WindowOptions
from s2wrap.images.read import readable
from s2wrap.images.scene import Scene
from s2wrap.plan import tile_axis
from s2wrap.wrapper import MultiScale

SAME_SHAPE = 0.02
"""By how much the ratio of the sides of a mask may differ from that of its scene."""


@dataclass(frozen=True)
class Grid:
    """Where the windows of a scene lie.

    Attributes:
        cell_hw: height and width of a cell in pixels of the scene.
        window: rows and columns of cells of a window.
        rows: the first row of cells of each row of windows.
        cols: the first column of each column of windows.
        cells_hw: rows and columns of the whole map.
        channels: of the map.
    """

    cell_hw: tuple[int, int]
    window: tuple[int, int]
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    cells_hw: tuple[int, int]
    channels: int

    @property
    def window_hw(self) -> tuple[int, int]:
        """Height and width of a window in pixels of the scene."""
        return self.window[0] * self.cell_hw[0], self.window[1] * self.cell_hw[1]

    @property
    def ends(self) -> tuple[int, ...]:
        """The row of cells where the part ends that is finished with each row of windows."""
        return (*self.rows[1:], self.cells_hw[0])


def plan_windows(model: MultiScale, scene: Scene, windows: WindowOptions, max_memory: int) -> Grid:
    """The windows of a scene, whose cells are whole pixels.

    Raises:
        S2WrapError: a picture smaller than a window, of other channels than the model or of unknown pixel size, a
            window that takes more than `max_memory` bytes, or a model of several maps.
    """
    assert windows.window is not None
    side = windows.window
    if windows.pixel_metres is not None:
        if scene.pixel_metres is None:
            raise S2WrapError(
                f"{scene.name} does not say how many metres its pixels have; leave out "
                f"pixel_size={windows.pixel_size!r}"
            )
        side = max(2, round(min(side * windows.pixel_metres / scene.pixel_metres, 2**31)))
    shapes = model.map_shapes((side, side))
    if len(shapes) != 1:
        raise S2WrapError(f"{len(shapes)} maps; windows are joined into one: use another --fuse, or --join-layers")
    channels, *window = shapes[0]
    if windows.window_overlap >= min(window):
        raise S2WrapError(
            f"window_overlap={windows.window_overlap}, but a window has {window[0]}×{window[1]} cells; use fewer"
        )
    cell_hw = max(1, round(side / window[0])), max(1, round(side / window[1]))
    cells = [math.ceil(size / cell) for size, cell in zip(scene.image_hw, cell_hw, strict=True)]
    rows, cols = (
        tile_axis(count, tile, windows.window_overlap).starts for count, tile in zip(cells, window, strict=True)
    )
    grid = Grid(cell_hw, (window[0], window[1]), rows, cols, (cells[0], cells[1]), channels)
    _check_window(model, scene, grid, max_memory)
    return grid


def _check_window(model: MultiScale, scene: Scene, grid: Grid, max_memory: int) -> None:
    """Raise S2WrapError for windows larger than the scene or than memory, or of other channels than the model."""
    size = f"{grid.window_hw[0]}×{grid.window_hw[1]}"
    if any(whole < side for whole, side in zip(scene.image_hw, grid.window_hw, strict=True)):
        raise S2WrapError(
            f"{scene.name}: {scene.image_hw[0]}×{scene.image_hw[1]} pixels, smaller than a window of {size}; give a "
            f"smaller --window, or none"
        )
    needed = 4 * scene.pixels_read(grid.window_hw, shrinks_by(model, grid.window_hw)) * scene.pixel_bytes
    if needed > max_memory:
        raise S2WrapError(
            f"a window of {size} pixels takes up to {needed / 1e9:.1f} GB, more than max_memory={max_memory}; give a "
            f"smaller --window, or raise it"
        )
    found = scene.window(0, 0, (2, 2)).shape[0]
    if found != model.input.channels:
        raise S2WrapError(
            f"{scene.name} has {found} channels, and the model takes {model.input.channels}; choose bands: --bands "
            f"{','.join(map(str, range(1, model.input.channels + 1)))}"
        )


def read_mask(path: str, image_hw: tuple[int, int], grid: Grid) -> Tensor:
    """The cells of a scene in which a picture of its shape is not 0 everywhere, (rows, columns).

    Raises:
        S2WrapError: no picture, or one of another shape.
    """
    with readable(path), Image.open(path) as picture:
        nonzero = np.asarray(np.atleast_3d(np.asarray(picture)).any(-1))
    height, width = nonzero.shape
    scale_hw = height / image_hw[0], width / image_hw[1]
    if abs(scale_hw[0] / scale_hw[1] - 1) > SAME_SHAPE:
        raise S2WrapError(
            f"{path}: {height}×{width} pixels, and the scene has {image_hw[0]}×{image_hw[1]}; a mask has its shape"
        )
    for axis in (0, 1):
        edges = np.minimum(np.arange(grid.cells_hw[axis] + 1) * grid.cell_hw[axis], image_hw[axis]) * scale_hw[axis]
        firsts, ends = np.floor(edges[:-1] + 1e-6).astype(int), np.ceil(edges[1:] - 1e-6).astype(int)
        counts = np.insert(nonzero.cumsum(axis), 0, 0, axis)
        ends = np.clip(ends, firsts + 1, nonzero.shape[axis])
        nonzero = counts.take(ends, axis) > counts.take(np.minimum(firsts, nonzero.shape[axis] - 1), axis)
    return torch.from_numpy(nonzero)


def shrinks_by(model: MultiScale, window_hw: tuple[int, int]) -> float:
    """By how much the largest scale makes a window smaller."""
    scales = model.plan(window_hw).scales
    return min(min(side / max(scale.image_hw[k] for scale in scales) for k, side in enumerate(window_hw)), 2.0**31)
