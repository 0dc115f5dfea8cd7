"""Addresses of files: paths of this machine, and those of fsspec such as s3://bucket/key."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.images import SUFFIXES

LONGEST_NAME = 255
"""Bytes of a file's name on every usual file system."""


def is_remote(address: str) -> bool:
    """Whether fsspec opens it, instead of this machine's file system."""
    return "://" in address


def is_picture(name: str) -> bool:
    """Whether a name ends as that of a picture; ._NAME is what macOS keeps about another file."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not os.path.basename(name).startswith("._")


@contextmanager
def opened(address: str) -> Iterator[IO[bytes]]:
    """A stream of the bytes at an address, from the first to the last."""
    if not is_remote(address):
        with open(address, "rb") as stream:
            yield stream
        return
    files, path = _files(address)
    with files.open(path, "rb") as stream:
        yield cast(IO[bytes], stream)


def kind(address: str) -> str | None:
    """Whether there is a "folder" or a "file" at an address; None if nothing.

    Raises:
        S2WrapError: a protocol that fsspec does not know, or a server that does not answer.
        MissingExtraError: a protocol whose package is not installed.
    """
    if not is_remote(address):
        name = os.path.basename(address)
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise S2WrapError(f"{name[:40]}…: no file has a name of {len(name)} characters")
        return "folder" if os.path.isdir(address) else "file" if os.path.exists(address) else None
    with answers(address):
        files, path = _files(address)
        return "folder" if files.isdir(path) else "file" if files.exists(path) else None


def fetch(address: str) -> bytes:
    """The bytes at an address of a server, in one request."""
    files, path = _files(address)
    return files.cat_file(path)


def expand(pattern: str) -> list[str]:
    """The addresses that a pattern with *, ? or [ ] names, sorted; ** goes through folders of any depth."""
    if not is_remote(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    with answers(pattern):
        files, path = _files(pattern)
        return sorted(files.unstrip_protocol(found) for found in files.glob(path))


def walk(folder: str) -> Iterator[str]:
    """The addresses of the pictures in a folder, all the way down, in the order of their names.

    One folder's list is held at a time. Links to folders are not followed: they may lead in circles.

    Raises:
        S2WrapError: a folder that cannot be listed.
    """
    with answers(folder):
        if not is_remote(folder):
            yield from _walk_local(str(Path(folder)))
        else:
            files, path = _files(folder)
            for found in _walk_remote(files, path):
                yield folder.rstrip("/") + found.removeprefix(path.rstrip("/"))


def _walk_local(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_local(entry.path)
        elif is_picture(entry.name) and entry.is_file():
            yield entry.path


def _walk_remote(files: Any, folder: str) -> Iterator[str]:
    for entry in sorted(files.ls(folder, detail=True), key=lambda entry: entry["name"]):
        if entry["name"].rstrip("/") == folder.rstrip("/"):
            if entry.get("StorageClass") == "DIRECTORY":  # S3's word for names that go on
                raise S2WrapError(f"{folder} has names with //, which cannot be searched; give a list of the pictures")
            continue  # a marker that some tools leave in object stores
        if entry["type"] == "directory":
            yield from _walk_remote(files, entry["name"])
        elif is_picture(entry["name"]):
            yield entry["name"]


def _files(address: str) -> tuple[Any, str]:
    """The file system of an address, and its path there."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(address, use_listings_cache=False)  # a cache of 100 million names would fill the memory
    except ImportError as error:
        raise MissingExtraError(f"what fsspec needs for {address.partition('://')[0]}://", "features") from error


@contextmanager
def answers(address: str) -> Iterator[None]:
    """Say at which address a file system gave no answer, and why: what it raises becomes an S2WrapError."""
    try:
        yield
    except S2WrapError:
        raise
    except Exception as error:  # every file system of fsspec has errors of its own
        raise S2WrapError(f"{address} cannot be read: {first_line(error)}") from error
