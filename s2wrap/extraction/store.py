"""A folder of features that can be resumed after a kill: rows are written first, their count is committed last."""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.control import Log, State, control_folder, read_log, read_state, write_state
from s2wrap.extraction.picture import START, Failure, Row
from s2wrap.extraction.writer import Writer
from s2wrap.files import disk_errors, file_sha256

COMMIT_SECONDS = 30.0
"""Seconds between commits, and so of work that a killed run loses at most, about."""
LOCK_SECONDS = 5.0
"""Seconds that another run is waited for: the workers of one that was killed hold its lock until they end."""
BEGIN_ANEW = "choose another --output, or add --overwrite to begin anew"


class Store:
    """A store that is being written; open it with `opened_store`.

    Args:
        folder: the folder of the store.
        writer: the writer for its format.
        description: what makes the features; the same for all rows.

    Attributes:
        rows: number of pictures with features, committed or not.
        failed: number of pictures that could not be read.
        mark: the position of the last of them.
        again: pictures that could not be read, and may be later, by name; True for those of earlier runs.
        last: the name of a picture that could be read, if one is known.

    Raises:
        S2WrapError: the store was begun with another description, or is damaged.
    """

    def __init__(self, folder: Path, writer: Writer, description: Mapping[str, object]):
        self.folder, self.writer = folder, writer
        self.state, finished = _opened_state(folder, writer, json.loads(json.dumps(description)))
        write_state(folder, self.state)  # before any row: where it is missing beside rows, it was removed
        self.failures = Log(control_folder(folder) / "failures.jsonl", self.state.failure_bytes)
        self.files = Log(control_folder(folder) / "files.jsonl", self.state.file_bytes)
        self.again = {name: True for name, failure in read_failures(folder, self.state).items() if failure["try_again"]}
        with _library_errors("cannot go on with", folder):
            self.block = writer.start(self.state.rows, description)
        self.rows, self.failed, self.mark = self.state.rows, self.state.failed, self.state.mark
        self.trimmed = bool(self.block) and not finished  # a run that was killed may have written more of this block
        names = [row.name for row in self.block if r"\udc" not in row.name]  # so are bytes written that are no UTF-8
        self.last = names[-1] if names else None
        self.committed_at, self.commit_seconds = time.monotonic(), 0.0

    def add(self, item: Row | Failure) -> None:
        """Add the next picture, or one that is tried again, and commit from time to time.

        Raises:
            S2WrapError: the disk is full, or the format cannot hold the row.
        """
        if isinstance(item, Failure):
            self.failed += item.name not in self.again
            self.failures.add(path=item.name, reason=item.reason, try_again=item.again)
        else:
            if self.rows == 0:
                with _library_errors("cannot write", self.folder):
                    self.writer.size_block(item)
            self.rows += 1
            self.block.append(replace(item, mark=START))
            if item.name in self.again:
                self.failed -= 1
                self.failures.add(path=item.name, read=True)
        self.again.pop(item.name, None)
        if isinstance(item, Failure) and item.again:
            self.again[item.name] = False
        self.mark = item.mark
        full = isinstance(item, Row) and len(self.block) == self.writer.block
        if full or time.monotonic() - self.committed_at > max(COMMIT_SECONDS, 10 * self.commit_seconds):
            self.commit()

    def commit(self, *, finished: bool = False) -> None:
        """Write all pictures so far to disk: first the rows, then what failed, then how many there are."""
        start = time.monotonic()
        if self.rows > self.state.rows or self.trimmed:
            whole = len(self.block) == self.writer.block
            with _library_errors("cannot write", self.folder):
                for path in self.writer.write(self.rows - len(self.block), self.block):
                    self._log_file(path, whole)
                for path in self.writer.metadata_files():
                    self._log_file(path, False)
            self.trimmed = False
        lengths = self.failures.flush(), self.files.flush()
        self.state = State(self.state.made_by, self.rows, self.failed, *lengths, self.mark, finished)
        write_state(self.folder, self.state)
        self.committed_at = time.monotonic()
        self.commit_seconds = self.committed_at - start  # slow commits must be rare: each rewrites the whole block
        if self.rows and len(self.block) == self.writer.block:
            self.block = []

    def _log_file(self, path: Path, whole: bool) -> None:
        """Keep what a file is like; `whole` if no later rows will change it."""
        name, size = path.relative_to(self.folder).as_posix(), path.stat().st_size
        self.files.add(file=name, whole=whole, rows=self.rows, bytes=size, sha256=file_sha256(path))

    def unread(self) -> list[dict[str, Any]]:
        """The committed failures: path, reason, and whether the next run tries again."""
        return list(read_failures(self.folder, self.state).values())

    def close(self) -> None:
        """Close the logs; what counts was committed before."""
        for log in (self.failures, self.files):
            with suppress(OSError):  # such as a full disk
                log.stream.close()


@contextmanager
def opened_store(
    folder: Path, writer: Writer, description: Mapping[str, object], overwrite: bool = False
) -> Iterator[Store]:
    """A store, created if missing, emptied if it is to be overwritten, and locked against other runs.

    Raises:
        S2WrapError: the folder holds something else, another run is writing to it, or as for `Store`.
    """
    check_place(folder, writer.own())
    control = control_folder(folder)
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    with disk_errors(control):
        control.mkdir(exist_ok=True)
        lock = FileLock(control / "lock")
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise S2WrapError(f"{folder} is being written by another run; wait for its end") from error
    try:
        if overwrite:
            _empty(folder, writer)
        store = Store(folder, writer, description)
        try:
            yield store
        finally:
            store.close()
    finally:
        lock.release()


def read_failures(folder: Path, state: State) -> dict[str, dict[str, Any]]:
    """The pictures of a store that could not be read, by name; of each its last failure, unless it was read later."""
    found: dict[str, dict[str, Any]] = {}
    for entry in read_log(control_folder(folder) / "failures.jsonl", state.failure_bytes):
        if entry.get("read"):
            found.pop(str(entry.get("path")), None)
        else:
            name = str(entry.get("path"))
            found[name] = {"path": name, "reason": entry.get("reason"), "try_again": bool(entry.get("try_again"))}
    return found


def find_damage(folder: Path, state: State, *, whole: bool = False) -> Iterator[str]:
    """What of a store is not as it was written, in words.

    Of a run that was not finished, the last block is left out: it may hold more rows than were committed. Whoever reads
    it finds whether it holds those.

    Args:
        folder: the store.
        state: its committed state.
        whole: whether to read every file, and not only ask for its size.
    """
    entries = read_log(control_folder(folder) / "files.jsonl", state.file_bytes)
    last = {str(entry.get("file")): entry for entry in entries}
    rows = max((int(entry.get("rows") or 0) for entry in last.values()), default=0)
    if rows > state.rows:
        yield f"{control_folder(folder) / 'store.json'} says {state.rows} rows, and {rows} were written"
    for name, entry in last.items():
        path = folder / name
        if not (entry.get("whole") or state.finished):
            continue
        try:
            size = path.stat().st_size
            if size != entry.get("bytes"):
                yield f"{path} has {size} bytes, and {entry.get('bytes')} were written"
            elif whole and file_sha256(path) != entry.get("sha256"):
                yield f"{path} has another SHA-256 than what was written"
        except (FileNotFoundError, NotADirectoryError):
            yield f"{path} is missing"
        except OSError as error:
            yield f"{path} cannot be read ({error.strerror})"


def check_place(folder: Path, own: Sequence[Path]) -> None:
    """Raise S2WrapError if no store can be written to a folder, of which `own` are the files that a store has."""
    if folder.exists() and not folder.is_dir():
        raise S2WrapError(f"cannot write {folder}: it is a file, and a store is a folder; choose another name")
    if folder.is_dir() and not control_folder(folder).is_dir() and not own and any(folder.iterdir()):
        raise S2WrapError(f"cannot write {folder}: it holds something else than features; choose another name")
    control = control_folder(folder)
    check_parent(control / "store.json" if control.is_dir() else folder)
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise S2WrapError(f"cannot write {folder}: it is read-only")


def check_parent(path: Path) -> None:
    """Raise S2WrapError if the parent folder of a path is missing or read-only."""
    if not path.parent.is_dir():
        raise S2WrapError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise S2WrapError(f"cannot write {path}: {path.parent} is read-only")


def _opened_state(folder: Path, writer: Writer, description: dict[str, Any]) -> tuple[State, bool]:
    """The state that a run starts from, once it is certain that what is there is as it was written, and of one kind.

    Beside it: whether the run before finished.
    """
    state, own = read_state(folder), writer.own()
    if state is None and own:
        raise S2WrapError(
            f"{folder} holds {own[0].name}, but {control_folder(folder) / 'store.json'} is missing, which says what "
            f"that is; bring it back, {BEGIN_ANEW}"
        )
    if state is None or (state.finished and state.rows == 0):  # new, or no picture could be read
        return State(description), False
    if state.rows and not own:
        raise S2WrapError(
            f"{folder} is empty, and {control_folder(folder) / 'store.json'} says that {state.rows} pictures were "
            f"written; bring them back, {BEGIN_ANEW}"
        )
    _check_same(folder, state.made_by, description)
    if damage := list(islice(find_damage(folder, state), 3)):
        raise S2WrapError(f"{folder} is not as it was written: {'; '.join(damage)}; bring that back, {BEGIN_ANEW}")
    inside = writer.made_by(own) if own else {}  # what is beside them may be that of another store
    _check_same(folder, inside, {key: description.get(key) for key in inside})
    return replace(state, finished=False), state.finished


def _check_same(folder: Path, existing: Mapping[str, object], requested: Mapping[str, object]) -> None:
    """Raise S2WrapError if features were made by something else than what is asked for."""
    if differences := list(_differences(existing, requested)):
        raise S2WrapError(
            f"{folder} holds features with {'; '.join(differences)}; they cannot stand in one store: {BEGIN_ANEW}"
        )


def _differences(existing: object, requested: object, name: str = "") -> Iterator[str]:
    """What differs between two descriptions, in words; of descriptions in them, each part that differs."""
    if isinstance(existing, dict) and isinstance(requested, dict):
        for key in sorted(existing.keys() | requested.keys()):
            yield from _differences(existing.get(key), requested.get(key), key)
    elif existing != requested:
        yield f"{name} {existing!r}, and {requested!r} is asked for"


def _empty(folder: Path, writer: Writer) -> None:
    """Remove what a store holds, and nothing else; how many rows it has first, so that a kill leaves no false claim."""
    control, own = control_folder(folder), writer.own()
    if own and not (control / "store.json").exists() and not writer.made_by(own):
        raise S2WrapError(f"cannot write {folder}: {own[0].name} in it is not of s2wrap; choose another name")
    with disk_errors(folder):
        (control / "store.json").unlink(missing_ok=True)
        for path in (*own, *(path for path in control.iterdir() if path.name != "lock")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _library_errors(what: str, folder: Path) -> Iterator[None]:
    """Make one S2WrapError of whatever the library of a format raises, such as for a disk that is full or gone."""
    try:
        yield
    except Exception as error:  # each library raises error types of its own
        if isinstance(error, S2WrapError) and folder.is_dir():
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise S2WrapError(f"{what} {folder}: {why if folder.is_dir() else 'the folder is gone'}") from error
