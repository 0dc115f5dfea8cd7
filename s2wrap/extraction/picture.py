"""A picture at each stage of a run: to be read, encoded, or failed; and positions in the sources."""

from dataclasses import dataclass

from torch import Tensor

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Mark:
    """A position in the sources: all pictures up to and including this one are done.

    Attributes:
        section: index of the current section.
        inside: number of pictures done in that section.
        digest: hash of all names up to here, to detect that the sources have changed.
    """

    section: int = 0
    inside: int = 0
    digest: str = ""


START = Mark()


@dataclass(frozen=True)
class Picture:
    """A picture to be read.

    Attributes:
        name: unique within a store; the address of the file, unless `content` is set.
        content: the bytes of the file, for a member of a tar.
        problem: why the picture cannot be read, if that is already known.
        mark: the position of a run once this picture is done.
    """

    name: str
    content: bytes | None = None
    problem: str | None = None
    mark: Mark = START


@dataclass(frozen=True)
class Row:
    """An encoded picture: its height and width in pixels, and its named feature arrays, without a batch axis.

    Attributes:
        footprint: the outline of a georeferenced picture, as WKB in longitude and latitude.
    """

    name: str
    height: int
    width: int
    arrays: Arrays
    mark: Mark = START
    footprint: bytes | None = None


@dataclass(frozen=True)
class Failure:
    """A picture that could not be read.

    Attributes:
        name: of the picture.
        reason: why.
        mark: the position of a run once this picture is done.
        again: whether it may be read at another time: a server, a disk or the memory failed, or it is missing.
        gone: whether the file is missing, or access to it denied.
        offline: whether its server or disk gave no answer, or one cut short.
    """

    name: str
    reason: str
    mark: Mark = START
    again: bool = False
    gone: bool = False
    offline: bool = False
