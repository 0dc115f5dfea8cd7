"""What is known of a picture on its way: before it is read, and after."""

from dataclasses import dataclass

from torch import Tensor

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Mark:
    """How far a run is: pictures up to and with this one are done.

    Attributes:
        section: the index of the section that it is in.
        inside: how many pictures of that section are done.
        digest: of the names up to here, to notice that the pictures are others than before.
    """

    section: int = 0
    inside: int = 0
    digest: str = ""


START = Mark()


@dataclass(frozen=True)
class Picture:
    """A picture that is to be read.

    Attributes:
        name: unique in a store; its address, unless it has `content`.
        content: the bytes of its file, for those inside of a tar.
        problem: why it cannot be read, where that is known already.
        mark: how far a run is that has done it.
    """

    name: str
    content: bytes | None = None
    problem: str | None = None
    mark: Mark = START


@dataclass(frozen=True)
class Row:
    """A picture that was seen: its height and width in pixels, and its features by name, without a batch axis."""

    name: str
    height: int
    width: int
    arrays: Arrays
    mark: Mark = START


@dataclass(frozen=True)
class Failure:
    """A picture that could not be read, and why; `gone` where nothing is there, or may be read."""

    name: str
    reason: str
    mark: Mark = START
    gone: bool = False
