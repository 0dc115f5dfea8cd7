"""Large pictures, read in windows: TIFFs of tiles or strips, with the coarser levels that they may hold."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2wrap.errors import MissingExtraError, S2WrapError, warn
from s2wrap.images.ground import Ground, ground_of
from s2wrap.images.limits import ReadOnlyFile, Stream
from s2wrap.images.options import Reading
from s2wrap.images.read import read_stream, readable
from s2wrap.images.tiff import MAGIC, ORIENTATION, check_numbers, samples_of, tifffile, tile_pixels
from s2wrap.images.values import Samples, to_tensor

METRES = {2: 0.0254, 3: 0.01}
"""Metres of the values of ResolutionUnit, inch and centimetre (TIFF 6.0, page 38)."""


@dataclass(frozen=True)
class Level:
    """A picture at one resolution: `read(top, left, bottom, right)` gives (channels, height, width)."""

    image_hw: tuple[int, int]
    read: Callable[[int, int, int, int], Tensor]


@dataclass(frozen=True)
class Scene:
    """A picture that is read in windows.

    Attributes:
        name: what errors call it.
        levels: the picture, and smaller ones of it that the file holds.
        ground: where it lies, if it says so.
        pixel_metres: the size of a pixel in metres, if it says so.
        pixel_bytes: of all samples of a pixel.
    """

    name: str
    levels: tuple[Level, ...]
    ground: Ground | None = None
    pixel_metres: float | None = None
    pixel_bytes: int = 3

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.levels[0].image_hw

    def level_for(self, shrink: float) -> Level:
        """The coarsest level that has all the detail of the picture made smaller by a factor."""
        height, width = self.image_hw
        fine_enough = [
            level
            for level in self.levels
            if max(height / level.image_hw[0], width / level.image_hw[1]) <= shrink * 1.01  # sides are rounded
        ]
        return fine_enough[-1] if fine_enough else self.levels[0]

    def pixels_read(self, size_hw: tuple[int, int], shrink: float) -> int:
        """How many pixels are read for a window of this size that will be made smaller by a factor."""
        sides = zip(size_hw, self.level_for(shrink).image_hw, self.image_hw, strict=True)
        return math.prod(max(2, round(size * small / large)) for size, small, large in sides)

    def window(self, top: int, left: int, size_hw: tuple[int, int], shrink: float = 1) -> Tensor:
        """A window (channels, height, width), from the level for a factor; its edge is repeated beyond the picture.

        Where a coarse level's pixels do not begin with the window, they are interpolated linearly.

        Args:
            top: its first row, in pixels of the whole picture.
            left: its first column.
            size_hw: its height and width in pixels of the whole picture.
            shrink: by how much it will be made smaller.

        Raises:
            S2WrapError: damaged.
        """
        level = self.level_for(shrink)
        down, across = (
            _positions(start, size, whole, side)
            for start, size, whole, side in zip((top, left), size_hw, self.image_hw, level.image_hw, strict=True)
        )
        first_row, first_col = int(down.min()), int(across.min())
        ends = min(int(down.max()) + 2, level.image_hw[0]), min(int(across.max()) + 2, level.image_hw[1])
        with readable(self.name):
            pixels = level.read(first_row, first_col, *ends)
        return _at_positions(_at_positions(pixels, down - first_row, dim=1), across - first_col, dim=2)


def _positions(start: int, size: int, whole: int, side: int) -> Tensor:
    """Where the pixels of a window lie on one axis of a level: 0 is the centre of its first pixel, and none is beyond.

    Args:
        start: of the window, in pixels of the whole picture.
        size: of the window.
        whole: side of the picture.
        side: of the level.
    """
    scale = side / whole
    count = max(2, round(size * scale))
    centres = start * scale + (torch.arange(count, dtype=torch.float64) + 0.5) * (size * scale / count) - 0.5
    nearest = centres.round()
    return torch.where((centres - nearest).abs() < 1e-3, nearest, centres).clamp(0, side - 1)


def _at_positions(pixels: Tensor, positions: Tensor, dim: int) -> Tensor:
    """Pixels along one axis, interpolated linearly between two where a position is not whole."""
    lower = positions.long()
    if bool((positions == lower).all()):
        consecutive = bool((lower.diff() == 1).all())  # false where the last is repeated
        return pixels.narrow(dim, int(lower[0]), len(lower)) if consecutive else pixels.index_select(dim, lower)
    shape = [-1 if axis == dim else 1 for axis in range(pixels.ndim)]
    share = (positions - lower).float().reshape(shape)
    upper = (lower + 1).clamp(max=pixels.shape[dim] - 1)
    below, above = (pixels.index_select(dim, index).float() for index in (lower, upper))
    mixed = below + (above - below) * share
    return mixed if pixels.is_floating_point() else mixed.round().to(pixels.dtype)


@contextmanager
def open_scene(stream: Stream, name: str, reading: Reading) -> Iterator[Scene]:
    """A picture of which windows are read: a TIFF as needed, of whatever size; others are decoded whole at once.

    Args:
        stream: the file, open as long as the scene is used.
        name: what errors call it.
        reading: bands and range of values; of its limits, only pictures that are read whole have any.

    Raises:
        S2WrapError: no picture, damaged, or values that need a `value_range`.
        MissingExtraError: tifffile, zarr, or rasterio for a georeferenced picture, is not installed.
    """
    with readable(name):
        start = stream.read(4)
        stream.seek(0)
        whole = None if start in MAGIC else read_stream(stream, name, reading)
    if whole is not None:
        yield Scene(name, (Level((whole.shape[1], whole.shape[2]), partial(_crop, whole)),))
        return
    with ExitStack() as stack:
        with readable(name):
            tiff = stack.enter_context(tifffile().TiffFile(ReadOnlyFile(stream)))
            series = max(tiff.series, key=lambda each: np.prod(each.shape))
            levels = tuple(_level(series, number, name, reading) for number in range(len(series.levels)))
            page = series.keyframe
            ground = ground_of(page, stream)
            if page.is_geotiff and ground is None:
                warn(f"{name}: has GeoTIFF tags without a place that could be kept; its map will lie on pixels")
            _check_page(page, name, reading)
            pixel_bytes = page.samplesperpixel * max(1, page.bitspersample // 8)
        yield Scene(name, levels, ground, _pixel_metres(tiff, page, ground), pixel_bytes)


def _check_page(page: Any, name: str, reading: Reading) -> None:
    """Raise S2WrapError for a picture that is stored turned, or in strips or tiles that memory cannot hold."""
    check_numbers(page, name)
    orientation = page.tags.get(ORIENTATION)
    if orientation is not None and orientation.value != 1:
        raise S2WrapError(
            f"{name}: is stored turned (orientation {orientation.value}), and is not read in windows; turn it first"
        )
    tile = 3 * tile_pixels(page) * page.samplesperpixel * (8 if page.dtype is None else page.dtype.itemsize)
    if tile > reading.max_memory:
        raise S2WrapError(
            f"{name}: strips or tiles of {tile_pixels(page)} pixels, which are decoded whole, take up to "
            f"{tile / 1e9:.1f} GB, more than max_memory={reading.max_memory}; store it in smaller tiles, or raise it"
        )


def _crop(pixels: Tensor, top: int, left: int, bottom: int, right: int) -> Tensor:
    return pixels[:, top:bottom, left:right]


def _level(series: Any, number: int, name: str, reading: Reading) -> Level:
    """A level of a TIFF, whose pixels mean what the page of the finest one says."""
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError("zarr", "images") from error
    axes, page = series.axes, series.keyframe
    if "Y" not in axes or "X" not in axes:
        raise S2WrapError(f"{name}: axes {axes}; a picture has Y and X")
    array = zarr.open_array(series.aszarr(level=number), mode="r")
    sizes = dict(zip(axes, array.shape, strict=True))
    samples_axis = next((axis for axis in "SC" if axis in axes), None)

    def samples(top: int, left: int, bottom: int, right: int) -> Samples:
        spans = {"Y": slice(top, bottom), "X": slice(left, right), samples_axis: slice(None)}
        part = np.asarray(array[tuple(spans.get(axis, 0) for axis in axes)])
        order = [axis for axis in axes if axis in spans]
        part = np.moveaxis(part, [order.index(axis) for axis in ("Y", "X")], [0, 1])
        return samples_of(page, part if part.ndim == 3 else part[:, :, None], name)

    def read(top: int, left: int, bottom: int, right: int) -> Tensor:
        return to_tensor(samples(top, left, bottom, right), name, reading)

    corner = samples(0, 0, 1, 1)
    if corner.bounds is None and corner.to_rgb is None and reading.value_range is None:
        raise S2WrapError(
            f"{name}: values of {corner.values.dtype}, and the file does not say which of them are black and white; "
            f"give value_range="
        )
    return Level((sizes["Y"], sizes["X"]), read)


def _pixel_metres(tiff: Any, page: Any, ground: Ground | None) -> float | None:
    """The width of a pixel in metres, as far as the file tells it: on the ground, of a slide, by its resolution."""
    if ground is not None:
        return math.hypot(ground.transform[0], ground.transform[3]) * ground.metres if ground.metres else None
    if tiff.is_svs:
        microns = tifffile().tifffile.svs_description_metadata(page.description).get("MPP")
        return float(microns) * 1e-6 if microns else None
    if tiff.is_ome:
        image = tifffile().xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        unit = {"nm": 1e-9, "µm": 1e-6, "mm": 1e-3}.get(pixels.get("PhysicalSizeXUnit", "µm"))
        size = pixels.get("PhysicalSizeX")
        return float(size) * unit if size and unit else None
    unit = METRES.get(page.resolutionunit)
    per_unit = page.resolution[0]
    return unit / per_unit if unit and per_unit > 0 else None
