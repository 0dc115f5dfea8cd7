"""The interface of a store's format, and the base class of formats with part files."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.control import control_folder
from s2wrap.extraction.encode import Keep, whole_maps
from s2wrap.extraction.picture import Arrays, Row
from s2wrap.files import entries, same_disk, whole_file

PART = re.compile(r"part-\d{6}")
Content = TypeVar("Content")


class Writer(ABC):
    """Writes rows to files of one format in a folder, block by block.

    A block may be written several times, each time with more rows; if a write is killed, the rows written before must
    stay intact.

    Attributes:
        keep: picks the arrays to store from the features of one picture.
        block: number of rows in a block.
    """

    keep: Keep = staticmethod(whole_maps)
    block: int

    def __init__(self, folder: Path, dtype: str):
        self.folder, self.dtype = folder, dtype

    @abstractmethod
    def start(self, rows: int, description: Mapping[str, object]) -> list[Row]:
        """Discard all rows but the first `rows`; those of the last block are returned if it is not full."""

    @abstractmethod
    def write(self, first: int, rows: Sequence[Row]) -> Iterable[Path]:
        """Write the rows of a block so far to the disk, and name the files; `first` is the index of its first row."""

    def metadata_files(self) -> Iterable[Path]:
        """The files that say how the rows lie, and grow with them; part files say it themselves."""
        return ()

    @abstractmethod
    def own(self) -> list[Path]:
        """The files and folders of the store that this format writes; all others are somebody else's."""

    @abstractmethod
    def made_by(self, own: Sequence[Path]) -> dict[str, Any]:
        """The spec and the hash of the weights as files of a store have them; empty if they do not say."""

    def size_block(self, row: Row) -> None:  # noqa: B027 (most formats have a fixed block size)
        """Choose the number of rows in a block by the first row of the store."""


class PartWriter(Writer):
    """Writes each block to a file part-000000.ENDING, which is replaced as a whole by one with more rows."""

    ending: str

    def __init__(self, folder: Path, dtype: str, block: int):
        super().__init__(folder, dtype)
        self.block = block
        self.description: Mapping[str, Any] = {}

    @abstractmethod
    def write_part(self, rows: Sequence[Row], path: Path) -> None:
        """Write rows to a part file."""

    @abstractmethod
    def read_part(self, path: Path) -> list[Row]:
        """The rows of a part file."""

    @abstractmethod
    def read_metadata(self, path: Path) -> dict[str, str]:
        """The description in a part file."""

    def start(self, rows: int, description: Mapping[str, object]) -> list[Row]:
        """Discard all rows but the first `rows`; those of the last part file are returned if it is not full."""
        self.description = description
        full, rest = divmod(rows, self.block)
        expected = {self._path(number) for number in range(full + (rest > 0))}
        for path in self.own():
            if path not in expected:
                path.unlink()
        for path in sorted(expected):
            if not path.is_file():
                raise S2WrapError(f"{path} is missing, though {rows} rows were written; bring it back, or begin anew")
        last = self._read(self._path(full), self.read_part) if rest else []
        if len(last) < rest:
            raise S2WrapError(f"{self._path(full)} has {len(last)} rows, and {rest} were written; bring it back")
        if len(last) > rest:  # a run was killed between write and commit; the extra rows are computed again
            self.write(full * self.block, last[:rest])
        return last[:rest]

    def write(self, first: int, rows: Sequence[Row]) -> list[Path]:
        """Write the part file of a block."""
        path = self._path(first // self.block)
        control = control_folder(self.folder)  # where a draft is in no reader's way, unless that is another disk
        with whole_file(path, drafts=control if same_disk(control, self.folder) else None) as draft:
            self.write_part(rows, draft)
        return [path]

    def own(self) -> list[Path]:
        """The part files of the store."""
        return [path for path in entries(self.folder) if PART.fullmatch(path.stem) and path.suffix == self.ending]

    def made_by(self, own: Sequence[Path]) -> dict[str, Any]:
        """The spec and the hash of the weights as the last part file has them."""
        texts = self._read(own[-1], self.read_metadata)
        return {key: texts[key] for key in ("spec", "weights_sha256") if key in texts}

    def _read(self, path: Path, read: Callable[[Path], Content]) -> Content:
        with intact(path):
            return read(path)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}{self.ending}"


@contextmanager
def intact(path: Path) -> Iterator[None]:
    """Raise S2WrapError if what is read in the block is damaged, or cannot be read."""
    try:
        yield
    except (S2WrapError, ImportError):
        raise
    except Exception as error:  # each library raises error types of its own
        what = "cannot be read" if isinstance(error, PermissionError) else "is damaged"
        raise S2WrapError(f"{path} {what} ({first_line(error)}); bring it back, or begin anew") from error


def check_same_shapes(arrays: Arrays, row: Row, remedy: str) -> None:
    """Raise S2WrapError if the arrays of a row have other names or shapes than `arrays`."""
    for name, array in row.arrays.items():
        if name not in arrays or arrays[name].shape != array.shape:
            expected = tuple(arrays[name].shape) if name in arrays else "none"
            raise S2WrapError(
                f"{row.name} ({row.height}×{row.width} pixels) makes {name} {tuple(array.shape)}, the pictures before "
                f"{expected}, and these files hold one shape; {remedy}"
            )
