"""File addresses: local paths, and URLs that fsspec opens, such as s3://bucket/key."""

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import RawIOBase
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any, TypeVar, cast

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.images.folders import LeftOut, is_hidden, is_picture, walk_folder

LONGEST_NAME = 255
"""The most bytes that a file name has on any common file system."""
ANSWER_SECONDS = 120.0
"""Seconds that a server may take for the content of a file, or for a piece of a longer one."""
LISTING_SECONDS = 600.0
"""Seconds that a server may take to list a folder: a million names come in a thousand answers."""
TRIES = 4
"""Attempts at a server that breaks off, with pauses of about half a second, one and two in between."""
PATIENCE_SECONDS = 30.0
"""Seconds after which no further attempt is begun: file systems such as S3's make several of their own in each."""
FOR_GOOD = (S2WrapError, ValueError, IsADirectoryError, NotImplementedError)
"""Errors that another attempt would meet as well."""
Result = TypeVar("Result")


def is_remote(address: str) -> bool:
    """Whether an address is opened by fsspec rather than by the local file system."""
    return "://" in address


@contextmanager
def opened(address: str) -> Iterator[IO[bytes]]:
    """A binary stream of the file at an address, closed at the end of the block.

    Raises:
        TimeoutError: a server gives no answer to a read for `ANSWER_SECONDS`.
    """
    if not is_remote(address):
        with open(address, "rb") as stream:
            yield stream
        return
    file_system, path = _file_system(address)
    with within(ANSWER_SECONDS, partial(file_system.open, path, "rb")) as stream:
        yield cast(IO[bytes], _PatientStream(stream))


def can_be_read(address: str) -> bool:
    """Whether the file at an address can be opened and read now."""
    try:
        with opened(address) as stream:
            return stream.read(1) is not None
    except Exception:  # every fsspec file system raises error types of its own
        return False


def kind(address: str) -> str | None:
    """What an address names: "folder", "file", or None if nothing is there.

    Raises:
        S2WrapError: fsspec does not know the protocol, or the server does not answer.
        MissingExtraError: the package for the protocol is not installed.
    """
    if not is_remote(address):
        name = os.path.basename(address)
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise S2WrapError(f"{name[:40]}…: no file has a name of {len(name)} characters")
        return "folder" if os.path.isdir(address) else "file" if os.path.exists(address) else None
    file_system, path = _file_system(address)

    def look() -> str:
        if file_system.isdir(path):
            return "folder"
        if file_system.exists(path):
            return "file"
        raise FileNotFoundError  # is asked for again, as a server may miss a file once

    try:
        return patiently(partial(within, LISTING_SECONDS, look))
    except FileNotFoundError:
        return None
    except S2WrapError:
        raise
    except Exception as error:
        raise S2WrapError(f"{address} cannot be read: {first_line(error)}") from error


def file_facts(address: str) -> dict[str, Any]:
    """What a remote file system says of a file: its size, and more under names of its own."""
    file_system, path = _file_system(address)
    return asked(address, file_system.info, path)


def file_system_of(address: str) -> Any:
    """The file system of fsspec that opens an address."""
    return _file_system(address)[0]


def list_folder(address: str) -> list[str]:
    """What lies in a folder, sorted: paths, or for a remote one what its file system calls them."""
    if not is_remote(address):
        return sorted(os.path.join(address, name) for name in os.listdir(address))
    file_system, path = _file_system(address)
    return sorted(asked(address, partial(file_system.ls, detail=False), path))


def fetch(address: str) -> bytes:
    """The content of a remote file, read in one request.

    Raises:
        TimeoutError: the server gives no whole answer for `ANSWER_SECONDS`.
    """
    file_system, path = _file_system(address)
    return within(ANSWER_SECONDS, partial(file_system.cat_file, path))


def expand(pattern: str) -> list[str]:
    """The addresses that match a pattern with *, ? or [ ], sorted; ** matches folders of any depth."""
    if not is_remote(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    file_system, path = _file_system(pattern)
    return sorted(map(file_system.unstrip_protocol, asked(pattern, file_system.glob, path)))


def walk(folder: str, left_out: LeftOut) -> Iterator[tuple[str, str | None]]:
    """The addresses of all pictures in a folder and its subfolders, and of subfolders that cannot be listed, with why.

    They are sorted by name within each folder. Only the folders on the way to the current one are listed at a time, so
    memory stays small. Links to folders are not followed, as they may form cycles; other files are counted in
    `left_out`.

    Raises:
        S2WrapError: the folder itself cannot be listed.
    """
    if is_remote(folder):
        yield from _walk_remote(folder, left_out)
        return
    with answers(folder):
        for path, error in walk_folder(str(Path(folder)), left_out):
            reason = error and f"{path}: the folder cannot be listed ({error.strerror}); its pictures are left out"
            yield path, reason


def _walk_remote(folder: str, left_out: LeftOut) -> Iterator[tuple[str, str | None]]:
    file_system, root = _file_system(folder)
    stack = [iter([{"name": root, "type": "directory"}])]  # of folders that are being searched
    while stack:
        entry: dict[str, Any] | None = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        name = entry["name"].rstrip("/")
        address = folder.rstrip("/") + name.removeprefix(root.rstrip("/"))
        if entry.get("below") == name:  # an empty object that some tools create to represent the folder itself
            if entry.get("StorageClass") == "DIRECTORY":  # as s3fs calls a prefix of keys
                yield f"{address}//", f"{address}//: names with // cannot be listed; give a list of these pictures"
        elif entry["type"] == "directory":
            if name == root.rstrip("/") or not is_hidden(os.path.basename(name)):
                entries = asked(address, partial(file_system.ls, detail=True), entry["name"])
                stack.append(iter(sorted(({**each, "below": name} for each in entries), key=lambda each: each["name"])))
        elif is_picture(name):
            yield address, None
        else:
            left_out.add(name)


def _file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path within it."""
    from fsspec import get_filesystem_class
    from fsspec.core import url_to_fs

    protocol, _, rest = address.partition("://")
    options = {"use_listings_cache": False}  # a cache of 100 million names would exhaust memory
    try:
        if "::" in rest and not all("://" in part for part in rest.split("::")[1:]):  # a name, and no chain of systems
            file_system = get_filesystem_class(protocol)(**options)
            return file_system, file_system._strip_protocol(address)
        return url_to_fs(address, **options)
    except ImportError as error:
        raise MissingExtraError(f"what fsspec needs for {protocol}://", "features") from error
    except ValueError as error:
        raise S2WrapError(f"{address} cannot be read: {first_line(error)}") from error


def asked(address: str, call: Callable[..., Result], *arguments: object) -> Result:
    """The answer of a file system, after several attempts; S2WrapError that names the address if none comes."""
    with answers(address):
        return patiently(partial(within, LISTING_SECONDS, partial(call, *arguments)))


def patiently(call: Callable[[], Result]) -> Result:
    """The result of a call to a server, which is tried again after errors that may pass, with growing pauses.

    A server that misses a file or denies access, or does not answer at all, is asked twice, as that rarely passes; one
    that breaks off is asked `TRIES` times, as long as `PATIENCE_SECONDS` have not passed.
    """
    try:
        from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential
    except ImportError as error:
        raise MissingExtraError("tenacity", "features") from error

    def enough(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        rarely = isinstance(error, FileNotFoundError | PermissionError | TimeoutError)
        waited = state.seconds_since_start or 0.0
        return state.attempt_number >= (2 if rarely else TRIES) or waited > PATIENCE_SECONDS

    may_pass = retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, FOR_GOOD))
    return Retrying(retry=may_pass, stop=enough, wait=wait_random_exponential(0.5, max=8), reraise=True)(call)


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of a call that may take so long; then TimeoutError is raised, and its thread left to itself."""
    results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:
            results.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer for {seconds:.0f} seconds") from None
    if error is not None:
        raise error
    return result


class _PatientStream(RawIOBase):
    """A stream from a server, each of whose reads ends after `ANSWER_SECONDS`."""

    def __init__(self, stream: Any):
        self.stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.stream.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def read(self, size: int | None = -1) -> bytes:
        return within(ANSWER_SECONDS, partial(self.stream.read, size))

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


@contextmanager
def answers(address: str) -> Iterator[None]:
    """Turn any error that a file system raises in the block into an S2WrapError that names the address."""
    try:
        yield
    except S2WrapError:
        raise
    except Exception as error:  # every fsspec file system raises error types of its own
        raise S2WrapError(f"{address} cannot be read: {first_line(error)}") from error
