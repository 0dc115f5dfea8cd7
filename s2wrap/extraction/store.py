"""A folder of features that can be resumed after a kill: rows are written first, their count is committed last.

The subfolder `_s2wrap` holds `s2wrap.json` (model and options), `progress.json` (the committed position, replaced as a
whole) and `failures.jsonl` (pictures that could not be read; bytes beyond the committed length are ignored). However a
run ends, the next one starts from `progress.json` and overwrites whatever was written after it.
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
"""Seconds between commits, and so of work that a killed run loses at most, about."""


@dataclass(frozen=True)
class Progress:
    """The committed state of a store.

    Attributes:
        rows: number of pictures whose features are written.
        failed: number of pictures that could not be read.
        failure_bytes: length of `failures.jsonl`.
        mark: the position of the last picture counted.
        finished: whether all pictures of the sources are done.
    """

    rows: int = 0
    failed: int = 0
    failure_bytes: int = 0
    mark: Mark = START
    finished: bool = False


class Store:
    """A store that is being written; open it with `opened_store`.

    Args:
        folder: the folder of the store.
        writer: the writer for its format.
        description: the settings that must be the same for all rows.

    Raises:
        S2WrapError: the store was begun with another description, or is damaged.
    """

    def __init__(self, folder: Path, writer: Writer, description: Mapping[str, Any]):
        self.folder, self.writer = folder, writer
        for draft in (folder / CONTROL).glob(DRAFT):
            draft.unlink()
        _check_control(folder)
        _check_description(folder, description)
        self.progress = _read_progress(folder)
        _write_progress(folder, self.progress)  # before any row: where it is missing beside rows, it was removed
        self.failures = self._open_failures()
        self.block = self.writer.start(self.progress.rows, description)
        self.rows, self.failed, self.mark = self.progress.rows, self.progress.failed, self.progress.mark
        self.committed_at, self.commit_seconds = time.monotonic(), 0.0

    def add(self, item: Row | Failure) -> None:
        """Add the next picture, and commit from time to time.

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
        if time.monotonic() - self.committed_at > max(COMMIT_SECONDS, 10 * self.commit_seconds):
            self.commit()

    def commit(self, *, finished: bool = False) -> None:
        """Write all pictures so far to disk: first the rows, then the failures, then the progress."""
        start = time.monotonic()
        with disk_errors(self.folder):
            if self.rows > self.progress.rows:
                self.writer.write(self.rows - len(self.block), self.block)
            self.failures.flush()
            os.fsync(self.failures.fileno())
            length = self.failures.tell()
        self.progress = Progress(self.rows, self.failed, length, self.mark, finished)
        _write_progress(self.folder, self.progress)
        self.committed_at = time.monotonic()
        self.commit_seconds = self.committed_at - start  # slow commits must be rare: each rewrites the whole block
        if self.rows and len(self.block) == self.writer.block:
            self.block = []

    def write_note(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a small JSON file beside the progress, whole."""
        _write_json(_control(self.folder, name), content)

    def copy_failures(self, path: Path) -> None:
        """Write the committed failures to a file as JSON lines, whole or not at all."""
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
def opened_store(
    folder: Path, writer: Writer, description: Mapping[str, Any], overwrite: bool = False
) -> Iterator[Store]:
    """A store, created if missing, emptied if it is to be overwritten, and locked against other runs.

    Raises:
        S2WrapError: the folder holds something else, another run is writing to it, or as for `Store`.
    """
    _check_is_store(folder)
    with disk_errors(folder):
        (folder / CONTROL).mkdir(parents=True, exist_ok=True)
    with _locked(_control(folder, "lock")):
        if overwrite:
            _empty(folder)
        store = Store(folder, writer, description)
        try:
            yield store
        finally:
            with suppress(OSError):  # a full disk; all that counts was written by the commit
                store.failures.close()


def _empty(folder: Path) -> None:
    """Remove what a store holds; its progress first, so that a kill in between leaves nothing that claims rows."""
    _control(folder, "progress.json").unlink(missing_ok=True)
    kept = _control(folder, "lock")
    with disk_errors(folder):
        for path in (*folder.iterdir(), *(folder / CONTROL).iterdir()):
            if path not in (folder / CONTROL, kept):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_place(folder: Path) -> None:
    """Raise S2WrapError if no store can be written to a folder."""
    _check_is_store(folder)
    check_parent(folder / CONTROL if folder.is_dir() else folder)


def check_parent(path: Path) -> None:
    """Raise S2WrapError if the parent folder of a path is missing or read-only."""
    if not path.parent.is_dir():
        raise S2WrapError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise S2WrapError(f"cannot write {path}: {path.parent} is read-only")


def _check_is_store(folder: Path) -> None:
    """Raise S2WrapError if a folder exists and is neither empty nor a store."""
    if folder.exists() and not folder.is_dir():
        raise S2WrapError(f"cannot write {folder}: it is a file, and a store is a folder; choose another name")
    if folder.is_dir() and not (folder / CONTROL).is_dir() and any(folder.iterdir()):
        raise S2WrapError(f"cannot write {folder}: it holds something else than features; choose another name")


def _check_control(folder: Path) -> None:
    """Raise S2WrapError if there are features, and not what says which and how many they are."""
    missing = [name for name in ("s2wrap.json", "progress.json") if not _control(folder, name).exists()]
    others = [path.name for path in folder.iterdir() if path.name != CONTROL]
    if missing and others:
        lost = " and ".join(str(_control(folder, name)) for name in missing)
        raise S2WrapError(
            f"{folder} holds {others[0]}, but {lost} is missing, which says what that is; bring it back, choose "
            f"another --output, or add --overwrite to begin anew"
        )


def _check_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write the description of a new store; raise S2WrapError if an existing one has another."""
    path, requested = _control(folder, "s2wrap.json"), json.loads(json.dumps(description))
    if not path.exists():
        _write_json(path, requested)
        return
    existing = _read_json(path)
    if differences := list(_differences(existing, requested)):
        raise S2WrapError(
            f"{folder} holds features with {'; '.join(differences)}; they cannot stand in one store: choose another "
            f"--output, or add --overwrite to begin it anew"
        )


def _differences(existing: Any, requested: Any, name: str = "") -> Iterator[str]:
    """What differs between two descriptions, in words; of descriptions in them, each part that differs."""
    if isinstance(existing, dict) and isinstance(requested, dict):
        for key in sorted(existing.keys() | requested.keys()):
            yield from _differences(existing.get(key), requested.get(key), key)
    elif existing != requested:
        yield f"{name} {existing!r}, and {requested!r} is asked for"


def _read_progress(folder: Path) -> Progress:
    path = _control(folder, "progress.json")
    if not path.exists():
        return Progress()
    content = _read_json(path)
    content["mark"] = Mark(**content["mark"])
    progress = Progress(**content)
    return Progress() if progress.finished and progress.rows == 0 else progress  # no picture could be read: start over


def _write_progress(folder: Path, progress: Progress) -> None:
    _write_json(_control(folder, "progress.json"), asdict(progress))


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
    """Hold a file lock, which the system releases when this process ends; workers do not inherit it.

    Raises:
        S2WrapError: another process holds the lock.
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
