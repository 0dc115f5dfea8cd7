"""Files and folders are written whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from s2wrap.errors import S2WrapError

try:
    import fcntl
except ImportError:  # Windows, where what a killed run leaves behind is not swept
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole_file(path: str | Path, *, drafts: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to it if the block succeeds, and removed otherwise.

    The temporary file is made at once, so that a folder without write access fails before the work, not after.

    Args:
        path: the file to write.
        drafts: a folder on the same disk for the temporary file, if it would disturb readers of `path`'s folder.

    Raises:
        S2WrapError: the folder is missing or read-only, or the disk is full.
    """
    path = Path(path)
    target = path.resolve()  # links are kept: the file that they point to is written
    if path.is_dir():
        raise S2WrapError(f"cannot write {path}: it is a folder; name a file")
    with temporary(path, where=drafts) as draft:
        yield draft
        with disk_errors(path):
            with draft.open("rb") as stream:
                os.fsync(stream.fileno())
            draft.chmod(0o666 & ~umask())
            draft.replace(target)
            sync_folder(target.parent)


@contextmanager
def whole_folder(folder: str | Path, *, replace: bool = False, drafts: Path | None = None) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its name when the block ends well, and is removed otherwise.

    The temporary folder is made at once, so a disk that cannot be written to is found before the work, not after.

    Args:
        folder: its name in the end; folders above it are made. An empty folder of that name is taken.
        replace: what is there already is removed once the new folder is complete, and stays if it is not.
        drafts: a folder on the same disk for the temporary one, if it would disturb readers of the folder above.

    Raises:
        S2WrapError: something is there already, the disk is full or read-only.
    """
    folder = Path(folder)
    target = folder.resolve()
    if not replace:
        check_free(folder)
    with disk_errors(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
    with temporary(folder, where=drafts, folder=True) as work:
        if not replace:
            check_free(folder)  # which a run that was killed while it replaced it may have given back
        draft, old = work / "new", work / "old"
        with disk_errors(folder):
            draft.mkdir()  # with the permissions of any new folder; the temporary one is its owner's alone
            yield draft
            for file in draft.rglob("*"):
                if file.is_file():
                    with file.open("rb") as stream:
                        os.fsync(stream.fileno())
            if target.exists():
                target.rename(old)
            try:
                draft.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
            sync_folder(target.parent)


@contextmanager
def temporary(path: Path, *, where: Path | None = None, folder: bool = False) -> Iterator[Path]:
    """A temporary file for `path`, removed at the end; those that killed runs left behind are removed first.

    A lock, which the system releases when a process ends, tells one that is being written from one that was left.

    Args:
        path: what it is for.
        where: the folder to make it in, on the same disk; None: beside `path`, or beside what it is a link to.
        folder: make a folder instead of a file.

    Raises:
        S2WrapError: the folder is missing or read-only, or the disk is full.
    """
    target = path.resolve()
    where = where or target.parent
    called = os.path.relpath(target, where.resolve())  # drafts for several folders may lie in one
    prefix = f".s2wrap-{hashlib.blake2b(os.fsencode(called), digest_size=8).hexdigest()}-"
    with disk_errors(path):
        for left in where.glob(f"{prefix}*"):
            with suppress(OSError):  # another process is writing it
                if (handle := _lock(left)) is not None:
                    if (left / "old").exists() and not target.exists():
                        (left / "old").rename(target)  # a run that was to replace it was killed midway
                    _remove(left)
                    os.close(handle)
        if folder:
            draft = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
        else:
            handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=where)
            os.close(handle)
            draft = Path(name)
    try:
        with disk_errors(path):
            handle = _lock(draft)
        try:
            yield draft
        finally:
            if handle is not None:
                os.close(handle)
    finally:
        _remove(draft)


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)


def _lock(path: Path) -> int | None:
    """Lock a file or folder until the result is closed, or this process ends; OSError if another one has it."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def check_free(folder: Path) -> None:
    """Raise S2WrapError where there is something already, other than an empty folder."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise S2WrapError(f"{folder} exists already, and is not replaced unasked; give another name, or remove it")


def same_disk(path: Path, other: Path) -> bool:
    """Whether files can be renamed from one folder to another."""
    return path.stat().st_dev == other.stat().st_dev


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing if there is none.

    Raises:
        S2WrapError: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise S2WrapError(f"{folder} cannot be listed: {error.strerror}") from error


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, since a power cut may undo a renaming otherwise."""
    if os.name == "posix":  # Windows cannot open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError, such as of a full or read-only disk, into an S2WrapError that names the file and the reason."""
    try:
        yield
    except OSError as error:
        raise S2WrapError(f"cannot write {path}: {error.strerror or error}") from error


def umask() -> int:
    """Return the permissions that new files do not get."""
    mask = os.umask(0)  # it can be read only by setting it
    os.umask(mask)
    return mask
