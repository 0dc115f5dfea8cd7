"""Pictures from folders, patterns, lists, tars and files, in an order that is the same every time."""

import codecs
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.extraction.addresses import answers, expand, is_remote, kind, opened, walk
from s2wrap.extraction.control import SUFFIX as CONTROL
from s2wrap.extraction.picture import START, Mark, Picture
from s2wrap.extraction.tars import is_tar, read_tar
from s2wrap.images.folders import SUFFIXES, LeftOut, is_picture

LISTS = (".txt", ".parquet")
WILD = frozenset("*?[")
Piece = Callable[[], Iterator[Picture]]
"""Reads a group of pictures, in any process."""


@dataclass(frozen=True)
class Section:
    """A part of the sources: one tar, folder or list, or a sequence of single files.

    Attributes:
        address: the address of the tar, folder or list; empty for files.
        read: yields the pictures, in the same order every time.
        tar: whether it is a tar, whose pictures are only known by reading it from the start.
        left_out: the files of a folder that are no pictures, counted anew whenever it is read.
    """

    address: str
    read: Callable[[], Iterator[Picture]]
    tar: bool = False
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)


def find_sections(addresses: Iterable[str]) -> list[Section]:
    """The sections that addresses name, in order.

    Args:
        addresses: folders (searched with their subfolders), patterns with * ? [ ], lists (.txt: a path per
            line; .parquet: column "path"), tars, and single pictures; local, or as URLs for fsspec such as s3://….
            Paths in a list are relative to the current folder.

    Raises:
        S2WrapError: nothing exists at an address.
    """
    sections: list[Section] = []
    files: list[str] = []
    for address in _expand_patterns(addresses):
        section = _section(address)
        if section is None:
            files.append(address)
            continue
        if files:
            sections.append(_files(files))
            files = []
        sections.append(section)
    return [*sections, _files(files)] if files else sections


def count_pictures(sections: list[Section]) -> int | None:
    """The number of pictures; None if there are tars, which would have to be read.

    Raises:
        S2WrapError: there is no picture, or a picture or tar is named twice: names in a store are unique.
    """
    tars: set[str] = set()
    for section in sections:
        if section.address in tars:
            raise S2WrapError(f"{section.address} is named twice; name each tar once")
        tars |= {section.address} if section.tar else set()
    countable = [section for section in sections if not section.tar]
    hashes = array("q", (hash(picture.name) for section in countable for picture in section.read()))
    if not hashes and not tars:
        places = ", ".join(section.address for section in sections) or "nothing"
        endings = ", ".join(SUFFIXES)
        left_out = str(files_left_out(sections)) or "none"
        raise S2WrapError(
            f"no picture in {places}; endings read: {endings}; left out: {left_out}; tars in a folder are named as "
            f"x/*.tar"
        )
    _check_unique(countable, np.array(hashes))
    return None if tars else len(hashes)


def files_left_out(sections: list[Section]) -> LeftOut:
    """The files of all folders that are no pictures, once these were read."""
    return LeftOut(sum((section.left_out for section in sections), LeftOut()))


def sections_of(sections: list[Section], names: list[str]) -> list[Section]:
    """The sections of some pictures of the sources, by name: of tars those members, and all others as files."""
    tars = {section.address: section for section in sections if section.tar}
    wanted: dict[str, set[str]] = {}
    for name in names:
        wanted.setdefault(tar_of(sections, name) or "", set()).add(name)
    files = [name for name in names if name in wanted.get("", ())]
    found = [_files(files)] if files else []
    return found + [
        Section(address, partial(_members, tars[address], frozenset(some)), tar=True)
        for address, some in wanted.items()
        if address
    ]


def tar_of(sections: list[Section], name: str) -> str | None:
    """The address of the tar among the sources that holds a picture, by the picture's name; None for a file."""
    found = [section.address for section in sections if section.tar and name.startswith(f"{section.address}/")]
    return max(found, key=len, default=None)


def _members(tar: Section, names: frozenset[str]) -> Iterator[Picture]:
    return (picture for picture in tar.read() if picture.name in names)


def pictures_after(sections: list[Section], mark: Mark) -> Iterator[Picture]:
    """The pictures after a mark, each with its own mark.

    Tars that are done are not read again; in the tar of the mark, the pictures up to the mark are skipped.

    Raises:
        S2WrapError: the pictures up to the mark have changed.
    """
    for read_piece in pieces_after(sections, mark, files=1):
        yield from read_piece()


def pieces_after(sections: list[Section], mark: Mark, *, files: int) -> Iterator[Piece]:
    """The pictures of `pictures_after`, in pieces that other processes can read.

    A piece is a tar, or at most `files` files, of which only the names are read here.

    Raises:
        S2WrapError: the files up to the mark have changed; for a tar, reading its piece raises this.
    """
    digest = ""
    for number, section in enumerate(sections):
        start = Mark(number, 0, _chain(digest, section.address))
        digest = start.digest
        if section.tar:  # only its address counts in the digest, which must not depend on whether the tar is read
            if number >= mark.section:
                yield partial(_read_section, section, start, mark)
            continue
        pictures = _read_section(section, start, mark) if number >= mark.section else _marked(section, start)
        while group := list(islice(pictures, files)):
            digest = group[-1].mark.digest
            if number >= mark.section:
                yield partial(iter, group)
        if number == mark.section and digest == start.digest:
            digest = mark.digest or digest  # the mark is at the end of the section
    if mark.section >= len(sections) and mark != START:
        raise _changed("there are fewer now")


def _read_section(section: Section, start: Mark, mark: Mark) -> Iterator[Picture]:
    """The pictures of a section that come after a mark."""
    is_after = mark == START or mark.section < start.section
    for picture in _marked(section, start):
        if is_after:
            yield picture
        elif picture.mark.inside == mark.inside:
            if picture.mark.digest != mark.digest:
                raise _changed(f"up to {picture.name} they are not")
            is_after = True
    if not is_after:
        raise _changed("there are fewer now")


def _marked(section: Section, start: Mark) -> Iterator[Picture]:
    """The pictures of a section, each with its mark."""
    digest = start.digest
    for inside, picture in enumerate(section.read(), start=1):
        digest = _chain(digest, picture.name)
        yield replace(picture, mark=Mark(start.section, inside, digest))


def _changed(how: str) -> S2WrapError:
    return S2WrapError(
        f"the pictures are not those that the store was begun with: {how}; give the same sources (new ones may "
        f"follow at the end), or another --output"
    )


def _chain(digest: str, name: str) -> str:
    return blake2b((digest + name).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _expand_patterns(addresses: Iterable[str]) -> Iterator[str]:
    """The addresses, with patterns replaced by their matches, unless a file of that name exists, such as a[1].png."""
    for address in addresses:
        if WILD.intersection(address) and kind(address) is None:
            matches = [match for match in expand(address) if _is_source(match, address)]
            if not matches:
                raise S2WrapError(f"{address}: the pattern names no picture, tar or folder")
            yield from matches
        else:
            yield address if is_remote(address) else os.path.normpath(address)


def _is_source(match: str, pattern: str) -> bool:
    """Whether a match is a source: a picture, tar or folder, not a store; a list only if the pattern has its suffix."""
    suffix = os.path.splitext(match)[1].lower()
    if suffix in LISTS and not os.path.isdir(match):
        return pattern.lower().endswith(suffix)
    if match.endswith(CONTROL) or os.path.isdir(match + CONTROL):
        return False
    return is_picture(match) or is_tar(match) or kind(match) == "folder"


def _section(address: str) -> Section | None:
    """The section at an address; None for a single picture."""
    address_kind = kind(address)
    if address_kind is None:
        raise S2WrapError(f"{address}: there is no such file or folder")
    if address_kind == "folder":
        left_out = LeftOut()
        return Section(address, partial(_read_folder, address, left_out), left_out=left_out)
    if is_tar(address):
        return Section(address, partial(read_tar, address), tar=True)
    suffix = Path(address).suffix.lower()
    if suffix == ".txt":
        return Section(address, partial(_read_lines, address))
    return Section(address, partial(_read_column, address)) if suffix == ".parquet" else None


def _read_folder(address: str, left_out: LeftOut) -> Iterator[Picture]:
    left_out.clear()
    for name, problem in walk(address, left_out):
        yield Picture(name, problem=problem)


def _files(files: list[str]) -> Section:
    return Section("", lambda: map(Picture, files))


def _read_lines(address: str) -> Iterator[Picture]:
    with answers(address), opened(address) as stream:
        for number, line in enumerate(stream):
            if number == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise S2WrapError(f"{address} is UTF-16; save the list as UTF-8")
            name = os.fsdecode(line.removeprefix(codecs.BOM_UTF8 if number == 0 else b"").strip(b"\r\n"))
            if name:
                yield Picture(name)


def _read_column(address: str) -> Iterator[Picture]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError("pyarrow", "features") from error
    with answers(address), opened(address) as stream:
        table = ParquetFile(stream)
        if "path" not in table.schema_arrow.names:
            raise S2WrapError(f'{address} has columns {", ".join(table.schema_arrow.names)}; a list needs one "path"')
        column_type = table.schema_arrow.field("path").type
        if not (pyarrow.types.is_string(column_type) or pyarrow.types.is_large_string(column_type)):
            raise S2WrapError(f"{address} has a column path of {column_type}; a list needs texts")
        for batch in table.iter_batches(columns=["path"]):
            yield from (Picture(name) for name in batch.column(0).to_pylist() if name)


def _check_unique(sections: list[Section], hashes: np.ndarray) -> None:
    """Raise S2WrapError if a name occurs twice; only hashes are in memory: 8 bytes for each of 100 million names."""
    hashes = np.sort(hashes)
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    if repeated:
        for picture in (picture for section in sections for picture in section.read()):
            if picture.name in seen:
                raise S2WrapError(f"{picture.name} is named twice; name each picture once")
            if hash(picture.name) in repeated:
                seen.add(picture.name)
