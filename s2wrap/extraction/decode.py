"""Reading and decoding of pictures, in worker processes that work a few pictures ahead."""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO

from torch import Tensor

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.extraction.addresses import fetch, is_remote
from s2wrap.extraction.picture import START, Mark, Picture
from s2wrap.extraction.workers import by_workers
from s2wrap.images import decode_image, load_image
from s2wrap.images.ground import ENDINGS, read_footprint
from s2wrap.images.options import USUAL, Reading

AHEAD = 4
"""The most pictures that each worker decodes ahead."""
TRIES = 4
"""Attempts to fetch a picture from a server, with pauses of one, two and four seconds in between."""
PASSING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
"""Error numbers that blame the system rather than the file, so that a later run may succeed."""


@dataclass(frozen=True)
class Decoded:
    """A decoded picture, (channels, height, width), or the problem that prevented it.

    Attributes:
        gone: whether the file is missing or access is denied; if all are, their disk or server is probably offline.
        footprint: the outline of a georeferenced TIFF, see `read_footprint`, where `Reading.footprints` asks for it.
        lost: whether the server, the disk or the memory failed: the picture may be fine, so the run must stop.
    """

    name: str
    image: Tensor | None = None
    problem: str = ""
    gone: bool = False
    lost: bool = False
    mark: Mark = START
    footprint: bytes | None = None

    def pin_memory(self) -> "Decoded":
        """The same picture in page-locked memory; called by the DataLoader."""
        return self if self.image is None else replace(self, image=self.image.pin_memory())


def decode(picture: Picture, reading: Reading = USUAL) -> Decoded:
    """The decoded picture, or its problem: errors of reading and decoding are returned, not raised.

    Args:
        picture: the picture to read.
        reading: how.
    """
    result = Decoded(picture.name, mark=picture.mark)
    if picture.problem is not None:
        return replace(result, problem=picture.problem)
    try:
        image, footprint = _load(picture, reading)
        return replace(result, image=image, footprint=footprint)
    except MissingExtraError as error:
        return replace(result, problem=str(error), lost=True)
    except S2WrapError as error:
        cause = error.__cause__
        lost = isinstance(cause, MemoryError) or getattr(cause, "errno", None) in PASSING
        return replace(result, problem=str(error), gone=_is_gone(picture, cause), lost=lost)
    except ConnectionError as error:
        return replace(result, problem=str(error), lost=True)


def _load(picture: Picture, reading: Reading) -> tuple[Tensor, bytes | None]:
    """The pixels, and the footprint if one is asked for."""
    name, content, footprint = picture.name, picture.content, None
    if content is None and not is_remote(name):
        image = load_image(name, reading)
        if reading.footprints and name.lower().endswith(ENDINGS):
            with open(name, "rb") as file:
                footprint = read_footprint(file, name)
        return image, footprint
    content = _fetch(name) if content is None else content
    image = decode_image(content, name, reading)
    return image, read_footprint(BytesIO(content), name) if reading.footprints else None


def _is_gone(picture: Picture, cause: BaseException | None) -> bool:
    if picture.content is not None:
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
        S2WrapError: a server, the disk or the memory failed; see `Decoded.lost`.
    """
    decode_one = partial(decode, reading=reading)
    if workers == 0:
        results = map(decode_one, pictures)
    else:
        work = partial(_decode_to_shared_memory, decode_one)
        results = by_workers(iter(pictures), work, _crashed, workers=workers, ahead=AHEAD, pin=pin)
    for decoded in results:
        if decoded.lost:
            raise S2WrapError(f"{decoded.problem}; the same command again goes on from here")
        yield decoded


def _decode_to_shared_memory(decode_one: Callable[[Picture], Decoded], picture: Picture) -> Decoded:
    """The decoded picture, with its pixels in shared memory."""
    decoded = decode_one(picture)
    try:
        if decoded.image is not None:
            decoded.image.share_memory_()  # the DataLoader would do this too, but hang if it fails
    except RuntimeError as error:
        problem = f"{picture.name}: no shared memory to hand it over ({first_line(error)}); use fewer --workers, or 0"
        return replace(decoded, image=None, problem=problem, lost=True)
    return decoded


def _crashed(picture: Picture) -> Decoded:
    problem = f"{picture.name}: the process that decoded it crashed, or was killed for its memory"
    return Decoded(picture.name, problem=problem, mark=picture.mark)


def _fetch(address: str) -> bytes:
    """The content of a remote file; after `TRIES` attempts without an answer, ConnectionError is raised."""
    attempt = 1
    while True:
        try:
            return _read(address)
        except S2WrapError:
            raise
        except Exception as error:  # every fsspec file system raises error types of its own
            if attempt == TRIES:
                raise ConnectionError(f"{address}: no answer, {TRIES} times: {first_line(error)}") from error
        time.sleep(2 ** (attempt - 1))
        attempt += 1


def _read(address: str) -> bytes:
    """The content of a remote file; S2WrapError if another attempt would fail as well."""
    try:
        return fetch(address)
    except FileNotFoundError as error:
        raise S2WrapError(f"{address}: there is no such file") from error
    except (PermissionError, IsADirectoryError, ValueError) as error:  # ValueError: invalid protocol or address
        raise S2WrapError(f"{address}: cannot be opened: {first_line(error)}") from error
