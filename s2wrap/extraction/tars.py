"""The pictures of a tar (as WebDataset's shards are), one after the other; nothing is unpacked to a disk."""

import lzma
import zlib
from collections.abc import Iterator
from tarfile import (
    GNUTYPE_LONGLINK,
    GNUTYPE_LONGNAME,
    SOLARIS_XHDTYPE,
    XGLTYPE,
    XHDTYPE,
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
LARGEST_HEADER = 1 << 20
"""Bytes of the largest header of a member, such as its long name: the library takes them into memory whole."""
DAMAGE = (TarError, EOFError, zlib.error, lzma.LZMAError)


def is_tar(address: str) -> bool:
    """Whether an address ends as that of a tar."""
    return address.lower().endswith(ENDINGS)


def container(name: str) -> str:
    """The tar that a picture is in, by its name; the picture's own address if it is in none."""
    for ending in ENDINGS:
        tar, found, _ = name.partition(f"{ending}/")
        if found:
            return tar + ending
    return name


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
            _check_end(tar)
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


def _check_end(tar: TarFile) -> None:
    """Raise ReadError where something follows behind the end, as in joined tars, which the library does not read."""
    while block := tar.fileobj.read(1 << 20):  # type: ignore[union-attr] (it is open)
        if block.strip(b"\0"):
            raise ReadError("more follows behind its end; give joined tars one by one")


class _StrictInfo(TarInfo):
    """A header that cannot be read, is missing or huge is an error, where the library takes it for the end, or in."""

    def _proc_member(self, tarfile: TarFile) -> TarInfo:
        special = self.type in (GNUTYPE_LONGNAME, GNUTYPE_LONGLINK, XHDTYPE, XGLTYPE, SOLARIS_XHDTYPE)
        if special and self.size > LARGEST_HEADER:
            raise ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tarfile)  # type: ignore[misc] (not in its stubs)

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> TarInfo:
        """The next header."""
        try:
            return super().fromtarfile(tarfile)
        except (EmptyHeaderError, TruncatedHeaderError, InvalidHeaderError) as error:
            raise ReadError(str(error)) from error
