"""From folders, patterns, lists, tars and files to pictures, in an order that is the same every time."""

import codecs
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.extraction.addresses import answers, expand, is_picture, is_remote, kind, opened, walk
from s2wrap.extraction.picture import START, Mark, Picture
from s2wrap.extraction.tars import is_tar, read_tar
from s2wrap.extraction.writer import CONTROL
from s2wrap.images import SUFFIXES

LISTS = (".txt", ".parquet")
WILD = frozenset("*?[")
Piece = Callable[[], Iterator[Picture]]
"""Reads pictures that come together, in any process."""


@dataclass(frozen=True)
class Section:
    """Pictures that come together: those of one tar, folder or list, or files one by one.

    Attributes:
        address: of the tar, folder or list; empty for files.
        read: gives its pictures, in the same order every time.
        tar: whether its pictures are only known by reading it from its beginning.
    """

    address: str
    read: Callable[[], Iterator[Picture]]
    tar: bool = False


def find_sections(addresses: Iterable[str]) -> list[Section]:
    """The sections that addresses name, in their order.

    Args:
        addresses: folders (searched all the way down for pictures), patterns with * ? [ ], lists (.txt: a path a line;
            .parquet: column "path"), tars, and single pictures; on this machine or, as s3://…, where fsspec finds them.
            Paths in a list are taken as they stand, from the current folder.

    Raises:
        S2WrapError: nothing is there.
    """
    sections: list[Section] = []
    files: list[str] = []
    for address in _expanded(addresses):
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
    """How many pictures there are; None if that is not known, as for tars.

    Raises:
        S2WrapError: no picture at all, or one that is named twice: a name stands for one picture of a store.
    """
    tars: set[str] = set()
    for section in sections:
        if section.address in tars:
            raise S2WrapError(f"{section.address} is named twice; name each tar once")
        tars |= {section.address} if section.tar else set()
    loose = [section for section in sections if not section.tar]
    hashes = array("q", (hash(picture.name) for section in loose for picture in section.read()))
    if not hashes and not tars:
        places = ", ".join(section.address for section in sections) or "nothing"
        endings = ", ".join(SUFFIXES)
        raise S2WrapError(f"no picture in {places}; endings read: {endings}; tars in a folder are named as x/*.tar")
    _refuse_doubles(loose, np.array(hashes))
    return None if tars else len(hashes)


def pictures_after(sections: list[Section], mark: Mark) -> Iterator[Picture]:
    """The pictures that come after a mark, each with a mark of its own.

    Tars that are done are not read again; of the one it was in, what comes before the mark is passed over.

    Raises:
        S2WrapError: the pictures up to the mark are not those that they were.
    """
    for read in pieces_after(sections, mark, files=1):
        yield from read()


def pieces_after(sections: list[Section], mark: Mark, *, files: int) -> Iterator[Piece]:
    """The pictures of `pictures_after`, in pieces that other processes may read.

    A piece is a tar, or so many files at most, of which only the names are read here.

    Raises:
        S2WrapError: the files up to the mark are not those that they were; for a tar, its piece raises this.
    """
    digest = ""
    for number, section in enumerate(sections):
        start = Mark(number, 0, _chain(digest, section.address))
        digest = start.digest
        if section.tar:  # adds its address to the digest, and no more: the same whether it is read or passed over
            if number >= mark.section:
                yield partial(_read_section, section, start, mark)
            continue
        pictures = _read_section(section, start, mark) if number >= mark.section else _marked(section, start)
        while group := list(islice(pictures, files)):
            digest = group[-1].mark.digest
            if number >= mark.section:
                yield partial(iter, group)
        if number == mark.section and digest == start.digest:
            digest = mark.digest or digest  # no picture of it is behind the mark
    if mark.section >= len(sections) and mark != START:
        raise _others("there are fewer now")


def _read_section(section: Section, start: Mark, mark: Mark) -> Iterator[Picture]:
    """The pictures of a section that come after a mark."""
    found = mark == START or mark.section < start.section
    for picture in _marked(section, start):
        if found:
            yield picture
        elif picture.mark.inside == mark.inside:
            if picture.mark.digest != mark.digest:
                raise _others(f"up to {picture.name} they are not")
            found = True
    if not found:
        raise _others("there are fewer now")


def _marked(section: Section, start: Mark) -> Iterator[Picture]:
    """The pictures of a section, each with its mark."""
    digest = start.digest
    for inside, picture in enumerate(section.read(), start=1):
        digest = _chain(digest, picture.name)
        yield replace(picture, mark=Mark(start.section, inside, digest))


def _others(what: str) -> S2WrapError:
    return S2WrapError(
        f"the pictures are not those that the store was begun with: {what}; give the same sources (new ones may "
        f"follow at the end), or another --output"
    )


def _chain(digest: str, name: str) -> str:
    return blake2b((digest + name).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _expanded(addresses: Iterable[str]) -> Iterator[str]:
    """Patterns as what they stand for; a file may well be called a[1].png."""
    for address in addresses:
        if WILD.intersection(address) and kind(address) is None:
            found = [match for match in expand(address) if _is_source(match, address)]
            if not found:
                raise S2WrapError(f"{address}: the pattern names no picture, tar or folder")
            yield from found
        else:
            yield address if is_remote(address) else os.path.normpath(address)


def _is_source(match: str, pattern: str) -> bool:
    """Whether what a pattern names is meant: not other files beside the pictures, lists by their ending, or stores."""
    ending = os.path.splitext(match)[1].lower()
    if ending in LISTS and not os.path.isdir(match):
        return pattern.lower().endswith(ending)
    if os.path.isdir(os.path.join(match, CONTROL)):
        return False
    return is_picture(match) or is_tar(match) or kind(match) == "folder"


def _section(address: str) -> Section | None:
    """The section at an address; None for a single picture."""
    there = kind(address)
    if there is None:
        raise S2WrapError(f"{address}: there is no such file or folder")
    if there == "folder":
        return Section(address, lambda: map(Picture, walk(address)))
    if is_tar(address):
        return Section(address, partial(read_tar, address), tar=True)
    ending = Path(address).suffix.lower()
    if ending == ".txt":
        return Section(address, partial(_read_lines, address))
    return Section(address, partial(_read_column, address)) if ending == ".parquet" else None


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
        found = table.schema_arrow.field("path").type
        if not (pyarrow.types.is_string(found) or pyarrow.types.is_large_string(found)):
            raise S2WrapError(f"{address} has a column path of {found}; a list needs texts")
        for batch in table.iter_batches(columns=["path"]):
            yield from (Picture(name) for name in batch.column(0).to_pylist() if name)


def _refuse_doubles(sections: list[Section], hashes: np.ndarray) -> None:
    """Raise S2WrapError for a name that is there twice; of 100 million names, only eight bytes each are held."""
    ordered = np.sort(hashes)
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: set[str] = set()
    if suspects:
        for picture in (picture for section in sections for picture in section.read()):
            if picture.name in seen:
                raise S2WrapError(f"{picture.name} is named twice; name each picture once")
            if hash(picture.name) in suspects:
                seen.add(picture.name)
