"""Maps and prefix tokens as Zarr: arrays of any length, in compressed chunks of a few pictures each."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2wrap.errors import MissingExtraError
from s2wrap.extraction.encode import Keep, whole_maps
from s2wrap.extraction.picture import Arrays, Row
from s2wrap.extraction.vectors import printable
from s2wrap.extraction.writer import Writer, check_same_shapes
from s2wrap.features import Features
from s2wrap.files import entries, sync_folder

CHUNK = 4 << 20
"""Bytes per chunk before compression, about: small enough to fetch one picture, large enough to keep files few."""
CHUNKS = 8
"""Chunks per block."""
OWN = re.compile(
    r"zarr\.json|zarr\.[0-9a-f]{32}\.partial|\.zgroup|\.zattrs|\.zmetadata|(spatial|prefix)(_\d+)?|path|image_hw|seen|[xy]|channel|spatial_ref"
)
"""Names in a Zarr store that s2wrap writes."""
METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
COORDINATES = ("x", "y", "channel", "spatial_ref")
REMEDY = "give --target-grid ROWSxCOLS or --fit stretch, or write .safetensors with --shard"


def filled_maps(features: Features) -> Arrays:
    """The map and prefix tokens of one picture, without empty arrays, which Zarr cannot divide into chunks."""
    return {name: array for name, array in whole_maps(features).items() if array.numel()}


class GroupWriter(Writer):
    """What the writers of Zarr groups share: of maps of pictures, and of the map of a scene."""

    def own(self) -> list[Path]:
        """The arrays of a store of maps, and of the map of a scene."""
        return own_arrays(self.folder)

    def metadata_files(self) -> list[Path]:
        """The files that say how the rows lie: metadata, and coordinates."""
        files = [path for own in self.own() for path in (own, *own.rglob("*")) if path.is_file()]
        return [path for path in files if path.name in METADATA or path.parent.name in COORDINATES]

    def made_by(self, own: Sequence[Path]) -> dict[str, Any]:
        """The spec and the hash of the weights as the group has them."""
        attributes = dict(open_zarr().open_group(self.folder, mode="r").attrs)
        return {key: attributes[key] for key in ("spec", "weights_sha256") if key in attributes}


class MapWriter(GroupWriter):
    """A Zarr group with one row per picture: spatial (n, c, h, w), prefix (n, p, c), path (n,), image_hw (n, 2)."""

    keep: Keep = staticmethod(filled_maps)

    def __init__(self, folder: Path, dtype: str, chunk: int | None):
        open_zarr()
        super().__init__(folder, dtype)
        self.chunk = chunk
        self.group: Any = None
        self.first: Arrays = {}

    def start(self, rows: int, description: Mapping[str, object]) -> list[Row]:
        """Discard all rows but the first `rows`; those of the last block are returned if it is not full."""
        if rows == 0:
            for path in self.own():  # what is left of a run that was killed before its first commit
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.group = open_zarr().open_group(self.folder, mode="a", zarr_format=3, attributes=dict(description))
            return []
        for path in self.own():  # chunks that were being written when a run was killed
            for draft in path.rglob("*.partial"):
                draft.unlink()
        self.group = open_zarr().open_group(self.folder, mode="r+")
        self._set_block(self.group["spatial" if "spatial" in self.group else "spatial_0"].chunks[0])
        self._resize(rows)
        (last,) = self._read(rows - 1, rows)
        self.first = last.arrays
        return self._read(rows - rows % self.block, rows)

    def size_block(self, row: Row) -> None:
        """Choose the number of pictures per chunk by the bytes of the first picture, and create the arrays."""
        largest = max(array.nbytes for array in row.arrays.values())
        self._set_block(self.chunk or max(1, min(64, CHUNK // largest)))
        self.first = row.arrays
        for name, array in row.arrays.items():
            shape = tuple(array.shape)
            level = name.removeprefix("spatial")  # "", or "_0" of a pyramid, whose levels have grids of their own
            dims = ("channel", f"y{level}", f"x{level}") if name.startswith("spatial") else ("token", "channel")
            self._create(name, ("picture", *dims), shape, (self.chunk, *shape), self.dtype)
        self._create("path", ("picture",), (), (self.block,), str)
        self._create("image_hw", ("picture", "height_width"), (2,), (self.block, 2), "int32")
        self.group.attrs["arrays"] = list(row.arrays)

    def write(self, first: int, rows: Sequence[Row]) -> list[Path]:
        """Write the rows of a block so far; the file of each chunk is replaced as a whole."""
        for row in rows:
            check_same_shapes(self.first, row, REMEDY)
        end = first + len(rows)
        columns: dict[str, Any] = {name: np.stack([row.arrays[name].numpy() for row in rows]) for name in self.first}
        columns["path"] = np.array([printable(row.name) for row in rows], self.group["path"].dtype)
        columns["image_hw"] = np.array([[row.height, row.width] for row in rows], np.int32)
        written: list[Path] = []
        for name, values in columns.items():
            array = self.group[name]
            array.resize((end, *array.shape[1:]))
            array[first:end] = values
            written += _sync(self.folder / name, range(first // array.chunks[0], -(-end // array.chunks[0])))
        return written

    def _create(self, name: str, dims: tuple[str, ...], shape: tuple[int, ...], chunks: object, dtype: object) -> None:
        """An array without rows, whose dimensions have names, as xarray wants it."""
        self.group.create_array(
            name, shape=(0, *shape), chunks=chunks, dtype=dtype, dimension_names=dims, overwrite=True
        )

    def _set_block(self, chunk: int) -> None:
        self.chunk, self.block = chunk, chunk * CHUNKS

    def _resize(self, rows: int) -> None:
        for name in (*self.group.attrs["arrays"], "path", "image_hw"):
            array = self.group[name]
            array.resize((rows, *array.shape[1:]))

    def _read(self, first: int, end: int) -> list[Row]:
        arrays = {name: torch.from_numpy(self.group[name][first:end]) for name in self.group.attrs["arrays"]}
        names, sizes = self.group["path"][first:end], self.group["image_hw"][first:end]
        return [
            Row(str(name), int(height), int(width), {key: array[number] for key, array in arrays.items()})
            for number, (name, (height, width)) in enumerate(zip(names, sizes, strict=True))
        ]


def _sync(folder: Path, chunks: range) -> list[Path]:
    """Flush the metadata of an array and some of its chunks to the disk; the result are the files of the chunks."""
    files: list[Path] = []
    for chunk in chunks:
        path = folder / "c" / str(chunk)
        files += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in (folder / "zarr.json", *files):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    for parent in {parent for file in files for parent in file.parents if parent.is_relative_to(folder)}:
        sync_folder(parent)
    return files


def own_arrays(folder: Path) -> list[Path]:
    """The files and folders in a Zarr store that s2wrap writes: the group's metadata, and its arrays."""
    return [path for path in entries(folder) if OWN.fullmatch(path.name)]


def is_scene(folder: Path) -> bool:
    """Whether a Zarr store holds the map of one scene, and not maps of pictures."""
    return (folder / "seen").is_dir()


def open_zarr() -> Any:
    """The library for Zarr."""
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError("zarr", "features") from error
    return zarr
