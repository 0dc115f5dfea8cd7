"""Features that were written, opened by the kind of their store or file."""

import json
import re
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.addresses import file_system_of, is_remote, kind, list_folder, opened
from s2wrap.extraction.control import SUFFIX, State, control_folder, read_state
from s2wrap.extraction.int8 import RECALL, Recall, dequantize
from s2wrap.extraction.maps import open_zarr
from s2wrap.extraction.reader import FeatureStore
from s2wrap.extraction.vectors import GEO, matrix_of, open_pyarrow


class _Parts(FeatureStore):
    """A store of several files.

    Attributes:
        counts: pictures of each file.
    """

    counts: list[int]

    @abstractmethod
    def part(self, number: int, first: int, end: int) -> list[dict[str, Tensor]]:
        """The arrays of successive pictures of one file."""

    def rows(self, first: int, end: int) -> list[dict[str, Tensor]]:
        """The arrays of successive pictures."""
        ends, found = list(accumulate(self.counts)), []
        while first < end:
            number = bisect_right(ends, first)
            start = ends[number] - self.counts[number]
            stop = min(end, ends[number])
            found += self.part(number, first - start, stop - start)
            first = stop
        return found


class VectorStore(_Parts):
    """Parquet: vectors in part files, of which the last two are kept in memory."""

    def __init__(self, path: str):
        open_pyarrow()
        import pyarrow.dataset

        self.path = path
        names = _parts(path, ".parquet")
        data = pyarrow.dataset.dataset(names, filesystem=None if not is_remote(path) else file_system_of(path))
        self.made_by = {key.decode(): _value(text.decode()) for key, text in (data.schema.metadata or {}).items()}
        self.made_by.pop(GEO, None)  # describes a column
        self.quantized = "scale" in data.schema.names
        if recall := _control_file(path, RECALL):
            self.recall = Recall(**recall)
        self.fragments = list(data.get_fragments())
        table = data.to_table(columns=["path", "height", "width"])
        count = _committed(path, len(table))
        self.paths = table.column("path").to_pylist()[:count]
        sizes = [table.column(name).to_numpy() for name in ("height", "width")]
        self.image_hw = np.stack(sizes, axis=1)[:count]
        self.counts = [fragment.count_rows() for fragment in self.fragments]
        self.matrix = lru_cache(2)(self._matrix)

    def _matrix(self, number: int) -> Tensor:
        table = self.fragments[number].to_table(columns=["vector", *(["scale"] if self.quantized else [])])
        vectors = matrix_of(table.column("vector"))
        if not self.quantized:
            return vectors
        return dequantize(vectors, torch.from_numpy(table.column("scale").to_numpy().copy()))

    def part(self, number: int, first: int, end: int) -> list[dict[str, Tensor]]:
        """The vectors of successive pictures of one file."""
        return [{"vector": vector} for vector in self.matrix(number)[first:end]]


class TensorStore(_Parts):
    """Safetensors, which are mapped into memory: one file, or part files."""

    def __init__(self, path: str):
        from safetensors import safe_open

        self.path = path
        names = _parts(path, ".safetensors")
        self.files = [safe_open(name, "pt") for name in names]
        described = [file.metadata() for file in self.files]
        listed = [json.loads(each["files"]) for each in described]
        paths, sizes = [name for part in listed for name in part], [json.loads(each["image_hw"]) for each in described]
        count = _committed(path, len(paths))
        self.paths, self.image_hw = paths[:count], np.concatenate([np.array(part) for part in sizes])[:count]
        self.counts = [len(part) for part in listed]
        self.made_by = {key: _value(text) for key, text in described[0].items() if key not in ("files", "image_hw")}

    def part(self, number: int, first: int, end: int) -> list[dict[str, Tensor]]:
        """The arrays of successive pictures of one file."""
        file = self.files[number]
        return _unstacked(list(file.keys()), lambda name: file.get_slice(name)[first:end], file.get_tensor, first, end)


class ArchiveStore(FeatureStore):
    """One .npz file, of which arrays are in memory once they are asked for."""

    def __init__(self, path: str):
        self.path = path
        self.file = np.load(path, allow_pickle=False)
        self.paths, self.image_hw = self.file["files"].tolist(), self.file["image_hw"]
        self.arrays = [name for name in self.file.files if name.rpartition("/")[2].startswith(("spatial", "prefix"))]
        texts = set(self.file.files) - {"files", "image_hw", *self.arrays}
        self.made_by = {name: _value(str(self.file[name])) for name in texts}
        self.tensor = lru_cache(None)(lambda name: torch.from_numpy(self.file[name]))

    def rows(self, first: int, end: int) -> list[dict[str, Tensor]]:
        """The arrays of successive pictures."""
        return _unstacked(self.arrays, lambda name: self.tensor(name)[first:end], self.tensor, first, end)


class MapStore(FeatureStore):
    """Zarr: maps in compressed chunks, local or remote."""

    def __init__(self, path: str):
        zarr = open_zarr()
        store: Any = zarr.storage.FsspecStore.from_url(path, read_only=True) if is_remote(path) else path
        self.path, self.group = path, zarr.open_group(store, mode="r")
        if "seen" in self.group:
            raise S2WrapError(
                f"{path} is the map of one scene; xarray.open_zarr({path!r}, consolidated=False) opens it"
            )
        description = dict(self.group.attrs)
        self.arrays = description.pop("arrays")
        self.made_by = description
        count = _committed(path, self.group["path"].shape[0])
        self.paths = [str(name) for name in self.group["path"][:count]]
        self.image_hw = np.asarray(self.group["image_hw"][:count])

    def rows(self, first: int, end: int) -> list[dict[str, Tensor]]:
        """The arrays of successive pictures."""
        parts = {name: torch.from_numpy(np.asarray(self.group[name][first:end])) for name in self.arrays}
        return [{name: part[number] for name, part in parts.items()} for number in range(end - first)]


KINDS = {".parquet": VectorStore, ".zarr": MapStore, ".safetensors": TensorStore, ".npz": ArchiveStore}


def open(path: str | Path) -> FeatureStore:
    """The features that `s2wrap features` wrote: pictures by path, batches, tables, search.

    Args:
        path: a store or file of features; `.parquet` and `.zarr` also as URLs for fsspec, such as s3://….

    Raises:
        S2WrapError: nothing is there, or no features; the store of a run that was not finished can be opened, and has
            what was committed.
        MissingExtraError: the package for the format is not installed.
    """
    address = str(path)
    kind_of_store = KINDS.get(Path(address).suffix)
    if kind_of_store is None:
        raise S2WrapError(f"cannot open {address}: the ending must be {', '.join(KINDS)}")
    if kind(address) is None:
        raise S2WrapError(f"{address}: there is no such store of features")
    if is_remote(address) and kind_of_store not in (VectorStore, MapStore):
        raise S2WrapError(f"{address}: files of this kind are mapped into memory; copy it to this machine")
    try:
        return kind_of_store(address)
    except S2WrapError:
        raise
    except Exception as error:  # each library raises error types of its own
        raise S2WrapError(f"{address} cannot be read as features ({first_line(error)})") from error


def _parts(address: str, ending: str) -> list[str]:
    """The part files of a store in order; the file itself if it is one."""
    if kind(address) == "file":
        return [address]
    names = [name for name in list_folder(address) if re.search(rf"part-[0-9]+{re.escape(ending)}$", name)]
    if not names:
        raise S2WrapError(f"{address} has no part files; it is no store of features, or nothing was committed yet")
    return names


def _committed(address: str, count: int) -> int:
    """How many pictures of a store were committed; rows behind them are those of a run that was killed."""
    state = _control_file(address, "store.json") if is_remote(address) else read_state(Path(address))
    if state is None:
        return count
    rows = state.rows if isinstance(state, State) else state["rows"]
    if rows > count:
        raise S2WrapError(f"{address} has {count} pictures, and {rows} were written; bring back what is missing")
    return rows


def _control_file(address: str, name: str) -> dict[str, Any] | None:
    """The content of one of a store's control files; None where there is none."""
    path = f"{address.rstrip('/')}{SUFFIX}/{name}" if is_remote(address) else str(control_folder(Path(address)) / name)
    if kind(address) == "file" or kind(path) is None:
        return None
    with opened(path) as stream:
        return json.loads(stream.read())


def _unstacked(
    names: Sequence[str], some: Callable[[str], Tensor], whole: Callable[[str], Tensor], first: int, end: int
) -> list[dict[str, Tensor]]:
    """The arrays of pictures, from arrays that are stacked, or numbered as 0/spatial where their shapes differ."""
    if any("/" in name for name in names):
        own = {number: [name for name in names if name.startswith(f"{number}/")] for number in range(first, end)}
        return [{name.partition("/")[2]: whole(name) for name in own[number]} for number in range(first, end)]
    stacked = {name: some(name) for name in names}
    return [{name: array[number] for name, array in stacked.items()} for number in range(end - first)]


def _value(text: str) -> Any:
    """A value of the description from its text: JSON, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
