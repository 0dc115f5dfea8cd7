"""The pictures of a tar (as WebDataset's shards are), one after the other; nothing is unpacked to a disk."""

import lzma
import zlib
from collections.abc import Iterator
from tarfile import (
    EmptyHeaderError,  # type: ignore[attr-defined] (not in its stubs)
    InvalidHeaderError,  # type: ignore[attr-defined] (not in its stubs)
    ReadError,
    TarError,
    TarFile,
    TarInfo,
    TruncatedHeaderError,  # type: ignore[attr-defined] (not in its stubs)
)

from s2wrap.errors import first_line
from s2wrap.extraction.addresses import answers, is_picture, opened
from s2wrap.extraction.picture import Picture

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST = 1 << 30
"""Bytes of the largest picture file that is taken into memory."""
DAMAGE = (TarError, EOFError, zlib.error, lzma.LZMAError)


def is_tar(address: str) -> bool:
    """Whether an address ends as that of a tar."""
    return address.lower().endswith(ENDINGS)


def read_tar(address: str) -> Iterator[Picture]:
    """The pictures of a tar in its order, named ADDRESS/MEMBER.

    Members are taken for what they are called, never as paths: links, devices and folders are passed over. A damaged
    tar gives the pictures before the damage, and one problem under its own name.

    Raises:
        S2WrapError: the tar is gone, or its server gives no answer: pictures would be missing without damage.
    """
    with answers(address):
        yield from _read_members(address)


def _read_members(address: str) -> Iterator[Picture]:
    seen: set[str] = set()
    try:
        with opened(address) as stream, TarFile.open(fileobj=stream, mode="r|*", tarinfo=_StrictInfo) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined] (the library keeps every header otherwise)
                if member.isreg() and is_picture(member.name):
                    yield _member(tar, member, address, seen)
    except DAMAGE as error:
        problem = f"{address}: damaged or cut short after {len(seen)} pictures: {first_line(error)}"
        yield Picture(address, problem=problem)


def _member(tar: TarFile, member: TarInfo, address: str, seen: set[str]) -> Picture:
    name = f"{address}/{member.name}"
    if member.name in seen:
        again = f"{name} at byte {member.offset}"
        return Picture(again, problem=f"{name}: is in the tar a second time; the first was taken")
    if member.size > LARGEST:
        return Picture(name, problem=f"{name}: {member.size} bytes, more than the {LARGEST} that are safe to take in")
    stream = tar.extractfile(member)
    content = stream.read() if stream else b""
    seen.add(member.name)
    return Picture(name, content=content)


class _StrictInfo(TarInfo):
    """A header that cannot be read, or is missing, is an error, where the library takes it for the tar's end."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> TarInfo:
        """The next header."""
        try:
            return super().fromtarfile(tarfile)
        except (EmptyHeaderError, TruncatedHeaderError, InvalidHeaderError) as error:
            raise ReadError(str(error)) from error
