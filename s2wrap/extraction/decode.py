"""Reading and decoding of pictures, in worker processes that work a few pictures ahead."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO

from torch import Tensor

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.extraction.addresses import FOR_GOOD, fetch, file_facts, is_remote, patiently
from s2wrap.extraction.picture import START, Failure, Mark, Picture
from s2wrap.extraction.workers import by_workers
from s2wrap.images import decode_image, load_image
from s2wrap.images.ground import ENDINGS, read_footprint
from s2wrap.images.options import USUAL, Reading

AHEAD = 4
"""The most pictures that each worker decodes ahead."""
PASSING = (errno.EIO, errno.ENOMEM, errno.ESTALE)
"""Error numbers that blame the disk or the memory rather than the file, so that another run may succeed."""
LACKING = (errno.EMFILE, errno.ENFILE)
"""Error numbers that every picture would meet: no more files can be opened."""


@dataclass(frozen=True)
class Decoded:
    """A decoded picture, (channels, height, width), or why there is none.

    Attributes:
        failure: why there is none.
        lost: whether the system lacks what every picture needs, such as files that it may open: the run must stop.
        footprint: the outline of a georeferenced TIFF, see `read_footprint`, where `Reading.footprints` asks for it.
    """

    name: str
    image: Tensor | None = None
    failure: Failure | None = None
    lost: bool = False
    mark: Mark = START
    footprint: bytes | None = None

    def pin_memory(self) -> "Decoded":
        """The same picture in page-locked memory; called by the DataLoader."""
        return self if self.image is None else replace(self, image=self.image.pin_memory())


class NoAnswerError(S2WrapError):
    """A server gave no answer, or not what it has."""


def decode(picture: Picture, reading: Reading = USUAL) -> Decoded:
    """The decoded picture, or why there is none: errors of reading and decoding are returned, not raised.

    Args:
        picture: the picture to read.
        reading: how.
    """
    try:
        if picture.problem is not None:
            raise S2WrapError(picture.problem)
        image, footprint = _load(picture, reading)
        return Decoded(picture.name, image, mark=picture.mark, footprint=footprint)
    except S2WrapError as error:
        gone, offline = _is_gone(picture, error.__cause__), isinstance(error, NoAnswerError)
        system = isinstance(error, MissingExtraError) or isinstance(error.__cause__, MemoryError)
        number = getattr(error.__cause__, "errno", None)
        again = gone or offline or system or number in PASSING
        failure = Failure(picture.name, str(error), picture.mark, again=again, gone=gone, offline=offline)
        return Decoded(picture.name, failure=failure, lost=number in LACKING, mark=picture.mark)


def _load(picture: Picture, reading: Reading) -> tuple[Tensor, bytes | None]:
    """The pixels, and the footprint if one is asked for."""
    if picture.content is not None:
        return _decode(picture.content, picture.name, reading)
    if not is_remote(picture.name):
        image, footprint = load_image(picture.name, reading), None
        if reading.footprints and picture.name.lower().endswith(ENDINGS):
            with open(picture.name, "rb") as file:
                footprint = read_footprint(file, picture.name)
        return image, footprint
    try:
        return patiently(partial(_fetch_and_decode, picture.name, reading))
    except S2WrapError:
        raise
    except FileNotFoundError as error:
        raise S2WrapError(f"{picture.name}: there is no such file") from error
    except (PermissionError, *FOR_GOOD) as error:
        raise S2WrapError(f"{picture.name}: cannot be opened: {first_line(error)}") from error
    except Exception as error:  # every fsspec file system raises error types of its own
        raise NoAnswerError(f"{picture.name}: no whole answer, after several attempts: {first_line(error)}") from error


def _fetch_and_decode(address: str, reading: Reading) -> tuple[Tensor, bytes | None]:
    """The picture at an address of a server; ConnectionError if its content is not what the server has."""
    content = fetch(address)
    try:
        return _decode(content, address, reading)
    except S2WrapError:
        size = file_facts(address).get("size")
        if size is not None and size != len(content):
            raise ConnectionError(f"{len(content)} of {size} bytes came") from None
        if fetch(address) != content:
            raise ConnectionError("its content came out differently, twice") from None
        raise


def _decode(content: bytes, name: str, reading: Reading) -> tuple[Tensor, bytes | None]:
    image = decode_image(content, name, reading)
    return image, read_footprint(BytesIO(content), name) if reading.footprints else None


def _is_gone(picture: Picture, cause: BaseException | None) -> bool:
    if picture.content is not None or picture.problem is not None:
        return False
    missing = not is_remote(picture.name) and not os.path.exists(picture.name)
    return missing or isinstance(cause, FileNotFoundError | PermissionError)


def decode_all(
    pictures: Iterable[Picture], reading: Reading = USUAL, *, workers: int, pin: bool = False
) -> Iterator[Decoded]:
    """The decoded pictures, in order.

    Args:
        pictures: read lazily, a few pictures ahead of the output.
        reading: how.
        workers: number of decoding processes; 0 decodes in this process.
        pin: whether to put the pixels in page-locked memory, for a GPU.

    Raises:
        S2WrapError: the system lacks what every picture needs; see `Decoded.lost`.
    """
    decode_one = partial(decode, reading=reading)
    if workers == 0:
        results = map(decode_one, pictures)
    else:
        work = partial(_decode_to_shared_memory, decode_one)
        results = by_workers(iter(pictures), work, _crashed, workers=workers, ahead=AHEAD, pin=pin)
    for decoded in results:
        if decoded.lost and decoded.failure is not None:
            raise S2WrapError(f"{decoded.failure.reason}; the same command again goes on from here")
        yield decoded


def _decode_to_shared_memory(decode_one: Callable[[Picture], Decoded], picture: Picture) -> Decoded:
    """The decoded picture, with its pixels in shared memory."""
    decoded = decode_one(picture)
    try:
        if decoded.image is not None:
            decoded.image.share_memory_()  # the DataLoader would do this too, but hang if it fails
    except RuntimeError as error:
        reason = f"{picture.name}: no shared memory to hand it over ({first_line(error)}); use fewer --workers, or 0"
        return replace(decoded, image=None, failure=Failure(picture.name, reason, picture.mark, again=True), lost=True)
    return decoded


def _crashed(picture: Picture) -> Decoded:
    reason = f"{picture.name}: the process that decoded it crashed, or was killed for its memory"
    return Decoded(picture.name, failure=Failure(picture.name, reason, picture.mark), mark=picture.mark)
