"""The map of one large picture as Zarr, with coordinates that xarray, rioxarray and GDAL read."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2wrap.extraction.maps import GroupWriter, open_zarr
from s2wrap.extraction.picture import Row
from s2wrap.files import sync_folder
from s2wrap.images.ground import Affine, Ground

CHUNK = 4 << 20
"""Bytes of a chunk before compression, about."""


@dataclass(frozen=True)
class SceneLayout:
    """What a map of a scene is like.

    Attributes:
        shape: channels, rows and columns.
        cell: height and width of a cell in pixels of the scene.
        starts: the first row of cells of each row of windows.
        ground: where the scene lies.
    """

    shape: tuple[int, int, int]
    cell: tuple[int, int]
    starts: tuple[int, ...]
    ground: Ground | None

    @property
    def transform(self) -> Affine:
        """From columns and rows of cells to the ground, or to pixels of the scene."""
        height, width = self.cell
        a, b, c, d, e, f = self.ground.transform if self.ground else (1, 0, 0, 0, 1, 0)
        return a * width, b * height, c, d * width, e * height, f


class SceneWriter(GroupWriter):
    """A Zarr group (format 2, which GDAL reads too) of spatial (channel, y, x), seen (y, x), coordinates, spatial_ref.

    A "row" of it are the rows of cells that are finished with one row of windows.
    """

    block = 1

    def __init__(self, folder: Path, dtype: str, layout: SceneLayout):
        super().__init__(folder, dtype)
        self.layout = layout
        self.group: Any = None

    def start(self, rows: int, description: Mapping[str, object]) -> list[Row]:
        """Create the arrays, or open those that are there."""
        zarr = open_zarr()
        if rows:
            self.group = zarr.open_group(self.folder, mode="r+", zarr_format=2)
            return []
        self.group = zarr.open_group(self.folder, mode="a", zarr_format=2, attributes=dict(description))
        channels, height, width = self.layout.shape
        side = max(1, int((CHUNK / (channels * np.dtype(self.dtype).itemsize)) ** 0.5))
        chunk = min(side, height), min(side, width)
        self._create("spatial", ("channel", "y", "x"), self.layout.shape, (channels, *chunk), self.dtype, np.nan)
        self._create("seen", ("y", "x"), (height, width), chunk, "uint8")
        a, b, c, d, e, f = self.layout.transform
        if b == d == 0:
            self._coordinate("x", c + a * (np.arange(width) + 0.5))
            self._coordinate("y", f + e * (np.arange(height) + 0.5))
        self._coordinate("channel", np.arange(channels))
        reference = self._create("spatial_ref", (), (), (), "int32")
        reference.attrs["GeoTransform"] = " ".join(map(repr, map(float, (c, a, b, f, d, e))))
        if self.layout.ground is not None:
            wkt = self.layout.ground.crs
            reference.attrs.update({"crs_wkt": wkt, "spatial_ref": wkt})
            for name in ("spatial", "seen"):
                self.group[name].attrs["_CRS"] = {"wkt": wkt}  # as GDAL reads it
        return []

    def write(self, first: int, rows: Sequence[Row]) -> list[Path]:
        """Write the rows of cells that one row of windows has finished to the disk, and name the chunks now whole."""
        (row,) = rows
        top = self.layout.starts[first]
        whole: list[Path] = []
        for name, values in row.arrays.items():
            bottom = top + values.shape[-2]
            array = self.group[name]
            array[..., top:bottom, :] = values.numpy()
            folders, height = {self.folder / name}, array.chunks[-2]
            for number in range(top // height, -(-bottom // height)):
                for file in self.folder.joinpath(name, *["0"] * (array.ndim - 2), str(number)).rglob("*"):
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
                    folders |= {file.parent, file.parent.parent}
                    whole += [file] if min((number + 1) * height, array.shape[-2]) <= bottom else []
            for folder in folders:
                sync_folder(folder)
        return whole

    def _create(
        self,
        name: str,
        dims: tuple[str, ...],
        shape: object,
        chunks: object,
        dtype: str,
        fill_value: float | None = None,
    ) -> Any:
        """An array whose dimensions have names, and which lies on the grid of cells if it has any of its axes."""
        attributes: dict[str, Any] = {"_ARRAY_DIMENSIONS": list(dims)}
        if "y" in dims and "x" in dims:
            attributes |= {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
        return self.group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            fill_value=fill_value,
            attributes=attributes,
            chunk_key_encoding={"name": "v2", "separator": "/"},
            overwrite=True,
        )

    def _coordinate(self, name: str, values: np.ndarray) -> None:
        self._create(name, (name,), values.shape, values.shape, str(values.dtype))[:] = values
