"""A folder of features that a killed run goes on with: rows are written first, their count is committed last.

Beside the features stand, in the folder `_s2wrap`: `s2wrap.json` (what the run is), `progress.json` (how far it is,
replaced whole) and `failures.jsonl` (the pictures that could not be read; what is behind the committed length does not
count). Whatever ends a run, the next begins where `progress.json` says, and writes over what lies behind that.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from io import BufferedWriter
from pathlib import Path
from typing import Any

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.picture import START, Failure, Mark, Row
from s2wrap.extraction.writer import CONTROL, DRAFT, Writer
from s2wrap.files import disk_errors, whole_file

COMMIT_SECONDS = 30.0
"""The most work that a killed run loses, about, in seconds."""


@dataclass(frozen=True)
class Progress:
    """How far a store is.

    Attributes:
        rows: pictures whose features are written.
        failed: pictures that could not be read.
        failure_bytes: the length of `failures.jsonl`.
        mark: up to which picture that is.
        finished: whether the sources had no more.
    """

    rows: int = 0
    failed: int = 0
    failure_bytes: int = 0
    mark: Mark = START
    finished: bool = False


class Store:
    """A store that is being written. Use `opened_store`.

    Args:
        folder: of the store.
        writer: of its format.
        description: what must be the same for all its rows.

    Raises:
        S2WrapError: the folder holds something else, or rows made with another description.
    """

    def __init__(self, folder: Path, writer: Writer, description: Mapping[str, Any]):
        self.folder, self.writer = folder, writer
        for draft in (folder / CONTROL).glob(DRAFT):
            draft.unlink()
        _check_description(folder, description)
        self.progress = _read_progress(folder)
        self.failures = self._open_failures()
        self.block = self.writer.start(self.progress.rows, description)
        self.rows, self.failed, self.mark = self.progress.rows, self.progress.failed, self.progress.mark
        self.committed, self.took = time.monotonic(), 0.0

    def add(self, item: Row | Failure) -> None:
        """Take the next picture; it is safe once it is committed, which happens by the way.

        Raises:
            S2WrapError: the disk is full, or the format cannot hold the row.
        """
        self.mark = item.mark
        if isinstance(item, Failure):
            self.failed += 1
            with disk_errors(self.folder):
                self.failures.write(json.dumps({"path": item.name, "reason": item.reason}).encode() + b"\n")
        else:
            if self.rows == 0:
                self.writer.size_block(item)
            self.rows += 1
            self.block.append(replace(item, mark=START))
            if len(self.block) == self.writer.block:
                self.commit()
        if time.monotonic() - self.committed > max(COMMIT_SECONDS, 10 * self.took):
            self.commit()

    def commit(self, *, finished: bool = False) -> None:
        """Make all pictures so far safe: first their rows, then their failures, then the count of both."""
        start = time.monotonic()
        with disk_errors(self.folder):
            if self.rows > self.progress.rows:
                self.writer.write(self.rows - len(self.block), self.block)
            self.failures.flush()
            os.fsync(self.failures.fileno())
            length = self.failures.tell()
        self.progress = Progress(self.rows, self.failed, length, self.mark, finished)
        _write_json(_control(self.folder, "progress.json"), asdict(self.progress))
        self.committed = time.monotonic()
        self.took = self.committed - start  # a growing part is written anew each time: seldom, where that takes long
        if self.rows and len(self.block) == self.writer.block:
            self.block = []

    def copy_failures(self, path: Path) -> None:
        """Write the list of the committed failures to a file, whole or not at all."""
        with whole_file(path) as draft, disk_errors(path):
            shutil.copyfile(_control(self.folder, "failures.jsonl"), draft)
            os.truncate(draft, self.progress.failure_bytes)

    def _open_failures(self) -> BufferedWriter:
        path = _control(self.folder, "failures.jsonl")
        with disk_errors(path):
            path.touch()
            os.truncate(path, self.progress.failure_bytes)
            return path.open("ab")


@contextmanager
def opened_store(folder: Path, writer: Writer, description: Mapping[str, Any]) -> Iterator[Store]:
    """A store, made unless it is there, while no other run may write to it.

    Raises:
        S2WrapError: as for `Store`, or another run is writing to it.
    """
    _check_ours(folder)
    with disk_errors(folder):
        (folder / CONTROL).mkdir(parents=True, exist_ok=True)
    with _locked(_control(folder, "lock")):
        store = Store(folder, writer, description)
        try:
            yield store
        finally:
            with suppress(OSError):  # of a full disk; what counts was written by the commit
                store.failures.close()


def check_place(folder: Path) -> None:
    """Raise S2WrapError where no store can be, before the work."""
    _check_ours(folder)
    check_parent(folder / CONTROL if folder.is_dir() else folder)


def check_parent(path: Path) -> None:
    """Raise S2WrapError where the folder that a file or folder is to be in is missing or read-only."""
    if not path.parent.is_dir():
        raise S2WrapError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise S2WrapError(f"cannot write {path}: {path.parent} is read-only")


def _check_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise S2WrapError(f"cannot write {folder}: it is a file, and a store is a folder; choose another name")
    if folder.is_dir() and not (folder / CONTROL).is_dir() and any(folder.iterdir()):
        raise S2WrapError(f"cannot write {folder}: it holds something else than features; choose another name")


def _check_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the description of a new store; compare it with that of one which is there."""
    path, asked = _control(folder, "s2wrap.json"), json.loads(json.dumps(description))
    if not path.exists():
        _write_json(path, asked)
        return
    there = _read_json(path)
    for key in sorted(there.keys() | asked.keys()):
        if there.get(key) != asked.get(key):
            raise S2WrapError(
                f"{folder} holds features with {key} {there.get(key)!r}, and {asked.get(key)!r} is asked for; they "
                f"cannot stand in one store: choose another --output"
            )


def _read_progress(folder: Path) -> Progress:
    path = _control(folder, "progress.json")
    if not path.exists():
        return Progress()
    there = _read_json(path)
    there["mark"] = Mark(**there["mark"])
    progress = Progress(**there)
    return Progress() if progress.finished and progress.rows == 0 else progress  # nothing could be read: try again


def _control(folder: Path, name: str) -> Path:
    return folder / CONTROL / name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise S2WrapError(f"{path} is damaged ({first_line(error)}); remove the store and begin anew") from error


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with whole_file(path) as draft:
        draft.write_text(json.dumps(content, indent=1))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when this process ends, however it does; worker processes do not have it.

    Raises:
        S2WrapError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    with path.open("w") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise S2WrapError(f"{path.parent.parent} is being written by another run; wait for its end") from error
        yield
