"""Write files whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2wrap.errors import S2WrapError


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
    with disk_errors(path):
        handle, name = tempfile.mkstemp(prefix=".s2wrap-", suffix=path.suffix, dir=drafts or target.parent)
        os.close(handle)
    draft = Path(name)
    try:
        yield draft
        with disk_errors(path):
            with draft.open("rb") as stream:
                os.fsync(stream.fileno())
            draft.chmod(0o666 & ~umask())
            draft.replace(target)
            sync_folder(target.parent)
    finally:
        draft.unlink(missing_ok=True)


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
