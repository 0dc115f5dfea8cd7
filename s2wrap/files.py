"""Files are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2wrap.errors import S2WrapError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name when the block ends well, and is removed otherwise.

    The temporary file is made at once, so a folder that cannot be written to is found before the work, not after.

    Raises:
        S2WrapError: the folder is missing or read-only, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise S2WrapError(f"cannot write {path}: it is a folder; name a file")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise S2WrapError(f"cannot write {path}: {error.strerror or error}") from error
    draft = Path(name)
    try:
        yield draft
        with draft.open("rb") as stream:
            os.fsync(stream.fileno())
        draft.chmod(0o666 & ~_umask())
        draft.replace(path)
    except OSError as error:
        raise S2WrapError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _umask() -> int:
    """The permissions that new files do not get; there is no way to ask but to set."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
