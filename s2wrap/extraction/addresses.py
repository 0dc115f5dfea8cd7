"""File addresses: local paths, and URLs that fsspec opens, such as s3://bucket/key."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.images.folders import LeftOut, is_hidden, is_picture, walk_folder

LONGEST_NAME = 255
"""The most bytes that a file name has on any common file system."""


def is_remote(address: str) -> bool:
    """Whether an address is opened by fsspec rather than by the local file system."""
    return "://" in address


@contextmanager
def opened(address: str) -> Iterator[IO[bytes]]:
    """A binary stream of the file at an address, closed at the end of the block."""
    if not is_remote(address):
        with open(address, "rb") as stream:
            yield stream
        return
    file_system, path = _file_system(address)
    with file_system.open(path, "rb") as stream:
        yield cast(IO[bytes], stream)


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
    with answers(address):
        file_system, path = _file_system(address)
        return "folder" if file_system.isdir(path) else "file" if file_system.exists(path) else None


def file_facts(address: str) -> dict[str, Any]:
    """What a remote file system says of a file: its size, and more under names of its own."""
    with answers(address):
        file_system, path = _file_system(address)
        return file_system.info(path)


def file_system_of(address: str) -> Any:
    """The file system of fsspec that opens an address."""
    return _file_system(address)[0]


def list_folder(address: str) -> list[str]:
    """What lies in a folder, sorted: paths, or for a remote one what its file system calls them."""
    if not is_remote(address):
        return sorted(os.path.join(address, name) for name in os.listdir(address))
    with answers(address):
        file_system, path = _file_system(address)
        return sorted(file_system.ls(path, detail=False))


def fetch(address: str) -> bytes:
    """The content of a remote file, read in one request."""
    file_system, path = _file_system(address)
    return file_system.cat_file(path)


def expand(pattern: str) -> list[str]:
    """The addresses that match a pattern with *, ? or [ ], sorted; ** matches folders of any depth."""
    if not is_remote(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    with answers(pattern):
        file_system, path = _file_system(pattern)
        return sorted(map(file_system.unstrip_protocol, file_system.glob(path)))


def walk(folder: str, left_out: LeftOut) -> Iterator[str]:
    """The addresses of all pictures in a folder and its subfolders, sorted by name.

    Only the folders on the way to the current one are listed at a time, so memory stays small. Links to folders are not
    followed, as they may form cycles; other files are counted in `left_out`.

    Raises:
        S2WrapError: a folder cannot be listed.
    """
    with answers(folder):
        if not is_remote(folder):
            yield from walk_folder(str(Path(folder)), left_out)
        else:
            file_system, root = _file_system(folder)
            for path in _walk_remote(file_system, root, left_out):
                yield folder.rstrip("/") + path.removeprefix(root.rstrip("/"))


def _walk_remote(file_system: Any, folder: str, left_out: LeftOut) -> Iterator[str]:
    for entry in sorted(file_system.ls(folder, detail=True), key=lambda entry: entry["name"]):
        if entry["name"].rstrip("/") == folder.rstrip("/"):
            if entry.get("StorageClass") == "DIRECTORY":  # s3fs marks a key prefix so
                raise S2WrapError(f"{folder} has names with //, which cannot be searched; give a list of the pictures")
            continue  # an empty object that some tools create to represent the folder itself
        if entry["type"] == "directory":
            if not is_hidden(os.path.basename(entry["name"].rstrip("/"))):
                yield from _walk_remote(file_system, entry["name"], left_out)
        elif is_picture(entry["name"]):
            yield entry["name"]
        else:
            left_out.add(entry["name"])


def _file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path within it."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(address, use_listings_cache=False)  # a cache of 100 million names would exhaust memory
    except ImportError as error:
        raise MissingExtraError(f"what fsspec needs for {address.partition('://')[0]}://", "features") from error


@contextmanager
def answers(address: str) -> Iterator[None]:
    """Turn any error that a file system raises in the block into an S2WrapError that names the address."""
    try:
        yield
    except S2WrapError:
        raise
    except Exception as error:  # every fsspec file system raises error types of its own
        raise S2WrapError(f"{address} cannot be read: {first_line(error)}") from error
