"""What a store's format must bring, and the format of part files."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.encode import Keep, whole_maps
from s2wrap.extraction.picture import Arrays, Row
from s2wrap.files import whole_file

CONTROL = "_s2wrap"
"""The folder inside a store with what a run must know of it; readers of data sets pass over names with this _."""
DRAFT = ".s2wrap-*"
"""The files of `whole_file` that a killed run leaves."""


class Writer(ABC):
    """Rows in blocks, in files of one format below a folder.

    A block may be written several times, each time with more rows; a kill in between must leave the rows of the time
    before as they were.

    Attributes:
        keep: what of a picture's features becomes a row.
        block: rows of a block.
    """

    keep: Keep = staticmethod(whole_maps)
    block: int

    def __init__(self, folder: Path, dtype: str):
        self.folder, self.dtype = folder, dtype

    @abstractmethod
    def start(self, rows: int, description: Mapping[str, Any]) -> list[Row]:
        """Forget what was written behind so many rows. Gives those of the last block, where that is not full."""

    @abstractmethod
    def write(self, first: int, rows: Sequence[Row]) -> None:
        """Write the rows of a block up to now; `first` is the number of its first row."""

    def size_block(self, row: Row) -> None:  # noqa: B027 (most formats know their block beforehand)
        """Choose the rows of a block by the first row of all."""


class PartWriter(Writer):
    """A block is a file part-000000.ENDING, replaced whole by one with more rows."""

    ending: str

    def __init__(self, folder: Path, dtype: str, block: int):
        super().__init__(folder, dtype)
        self.block = block
        self.description: Mapping[str, Any] = {}

    @abstractmethod
    def write_part(self, rows: Sequence[Row], path: Path) -> None:
        """Write a file of these rows."""

    @abstractmethod
    def read_part(self, path: Path) -> list[Row]:
        """The rows of such a file."""

    def start(self, rows: int, description: Mapping[str, Any]) -> list[Row]:
        """Forget what was written behind so many rows. Gives those of the last part, where that is not full."""
        self.description = description
        full, left = divmod(rows, self.block)
        kept = {self._path(number) for number in range(full + (left > 0))}
        for path in [*self.folder.glob(f"part-{'[0-9]' * 6}{self.ending}"), *self.folder.glob(DRAFT)]:
            if path not in kept:
                path.unlink()
        for path in sorted(kept):
            if not path.is_file():
                raise S2WrapError(f"{path} is missing, though {rows} rows were written; bring it back, or begin anew")
        there = self._read(self._path(full)) if left else []
        if len(there) > left:  # a run was killed between a part and its count; those pictures may fail this time
            self.write(full * self.block, there[:left])
        return there[:left]

    def write(self, first: int, rows: Sequence[Row]) -> None:
        """Write the part of a block."""
        with whole_file(self._path(first // self.block), drafts=self.folder / CONTROL) as draft:
            self.write_part(rows, draft)

    def _read(self, path: Path) -> list[Row]:
        try:
            return self.read_part(path)
        except Exception as error:  # each format's library has errors of its own
            raise S2WrapError(f"{path} is damaged ({first_line(error)}); remove the store and begin anew") from error

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}{self.ending}"


def check_same_shapes(arrays: Arrays, row: Row, remedy: str) -> None:
    """Raise S2WrapError where a row's arrays have other names or shapes than those before."""
    for name, array in row.arrays.items():
        if name not in arrays or arrays[name].shape != array.shape:
            expected = tuple(arrays[name].shape) if name in arrays else "none"
            raise S2WrapError(
                f"{row.name} ({row.height}×{row.width} pixels) makes {name} {tuple(array.shape)}, the pictures before "
                f"{expected}, and these files hold one shape; {remedy}"
            )
