"""Pictures read from tars, such as WebDataset shards, as a stream, without unpacking to disk."""

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
from s2wrap.extraction.addresses import answers, opened
from s2wrap.extraction.picture import Picture
from s2wrap.images.folders import is_picture

ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST = 1 << 30
"""The largest picture file that is read into memory, in bytes."""
LARGEST_HEADER = 1 << 20
"""The largest extended header (such as a long name) of a member, in bytes: tarfile reads it into memory whole."""
DAMAGE = (TarError, EOFError, zlib.error, lzma.LZMAError)


def is_tar(address: str) -> bool:
    """Whether an address has the suffix of a tar."""
    return address.lower().endswith(ENDINGS)


def read_tar(address: str) -> Iterator[Picture]:
    """The pictures of a tar in order, named ADDRESS/MEMBER.

    Member names are only names, never used as paths; links, devices and folders are skipped. A damaged tar gives the
    pictures before the damage, then one picture with the name of the tar and a problem.

    Raises:
        S2WrapError: the tar is missing or its server does not answer, which must not be mistaken for damage.
    """
    with answers(address):
        yield from _read_members(address)


def _read_members(address: str) -> Iterator[Picture]:
    seen: set[str] = set()
    try:
        with opened(address) as stream, TarFile.open(fileobj=stream, mode="r|*", tarinfo=_StrictInfo) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined] (tarfile would keep every header)
                if member.isreg() and is_picture(member.name):
                    yield _member(tar, member, address, seen)
            _check_end(tar)
    except DAMAGE as error:
        problem = f"{address}: damaged or cut short after {len(seen)} pictures: {first_line(error)}"
        yield Picture(address, problem=problem)


def _member(tar: TarFile, member: TarInfo, address: str, seen: set[str]) -> Picture:
    """The picture of a member, whose name is added to `seen`; with a problem if it is a duplicate or too large."""
    name = f"{address}/{member.name}"
    if member.name in seen:
        return Picture(
            f"{name} at byte {member.offset}", problem=f"{name}: is in the tar a second time; the first was taken"
        )
    if member.size > LARGEST:
        return Picture(name, problem=f"{name}: {member.size} bytes, more than the {LARGEST} that are safe to take in")
    stream = tar.extractfile(member)
    content = stream.read() if stream else b""
    seen.add(member.name)
    return Picture(name, content=content)


def _check_end(tar: TarFile) -> None:
    """Raise ReadError if data follows the end of the archive, as in concatenated tars, where tarfile stops early."""
    while block := tar.fileobj.read(1 << 20):  # type: ignore[union-attr] (it is open)
        if block.strip(b"\0"):
            raise ReadError("more follows behind its end; give joined tars one by one")


class _StrictInfo(TarInfo):
    """A member header; damaged, missing and huge ones raise ReadError (tarfile would stop silently, or read them)."""

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
