"""Pictures read and decoded, in worker processes that stay a little ahead."""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.extraction.addresses import fetch, is_remote
from s2wrap.extraction.picture import START, Mark, Picture
from s2wrap.extraction.workers import by_workers
from s2wrap.images import decode_image, load_image

AHEAD = 4
"""Pictures that each worker holds ready, at most."""
TRIES = 4
"""Times that a server is asked for a picture; between them one second, then two, then four."""
PASSING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
"""What the system says of itself, not of a file."""


@dataclass(frozen=True)
class Decoded:
    """A picture in memory, (3, height, width) in 0…255; or why there is none.

    Attributes:
        gone: whether nothing is there, or may be read: so may it be for all pictures, once their disk is gone.
        lost: whether the server, the disk or the memory failed: the picture may be fine, and the run is to stop.
    """

    name: str
    image: Tensor | None = None
    problem: str = ""
    gone: bool = False
    lost: bool = False
    mark: Mark = START

    def pin_memory(self) -> "Decoded":
        """The same in memory that a GPU reads by itself; a DataLoader calls this."""
        return self if self.image is None else replace(self, image=self.image.pin_memory())


def decode(picture: Picture, *, reject_attacks: bool = False) -> Decoded:
    """A picture in memory, or why there is none: every damage is told, none raised.

    Args:
        picture: to be read.
        reject_attacks: whether to refuse what looks like an attack on image scaling, see `s2wrap.scaling_attacks`.
    """
    known = Decoded(picture.name, mark=picture.mark)
    if picture.problem is not None:
        return replace(known, problem=picture.problem)
    try:
        image = _image(picture)
        if reject_attacks:
            _refuse_attack(image, picture.name)
        return replace(known, image=image)
    except MissingExtraError as error:
        return replace(known, problem=str(error), lost=True)
    except S2WrapError as error:
        cause = error.__cause__
        lost = isinstance(cause, MemoryError) or getattr(cause, "errno", None) in PASSING
        return replace(known, problem=str(error), gone=_is_gone(picture, cause), lost=lost)
    except ConnectionError as error:
        return replace(known, problem=str(error), lost=True)


def _image(picture: Picture) -> Tensor:
    if picture.content is not None:
        return decode_image(picture.content, picture.name)
    return decode_image(_fetch(picture.name), picture.name) if is_remote(picture.name) else load_image(picture.name)


def _is_gone(picture: Picture, cause: BaseException | None) -> bool:
    if picture.content is not None:
        return False
    absent = not is_remote(picture.name) and not os.path.exists(picture.name)
    return absent or isinstance(cause, FileNotFoundError | PermissionError)


def _refuse_attack(image: Tensor, name: str) -> None:
    from s2wrap.scaling_attacks import find_scaling_attack

    found = find_scaling_attack(image)
    if found.is_attack:
        height, width = found.image_hw
        raise S2WrapError(
            f"{name}: may hide another picture, which a {found.kernel} downscale to {height}×{width} shows (score "
            f"{found.round_trip:.1f}; regular patterns score as much)"
        )


def decode_all(
    pictures: Iterable[Picture], *, workers: int, pin: bool = False, reject_attacks: bool = False
) -> Iterator[Decoded]:
    """The pictures decoded, in their order.

    Args:
        pictures: asked for one after the other, a few ahead of what is taken here.
        workers: processes that decode; 0: this one does.
        pin: whether the pixels go to a GPU.
        reject_attacks: as for `decode`.

    Raises:
        S2WrapError: a server that gives no answer.
    """
    read = partial(decode, reject_attacks=reject_attacks)
    if workers == 0:
        found = map(read, pictures)
    else:
        work = partial(_hand_over, read)
        found = by_workers(iter(pictures), work, _crashed, workers=workers, ahead=AHEAD, pin=pin)
    for decoded in found:
        if decoded.lost:
            raise S2WrapError(f"{decoded.problem}; the same command again goes on from here")
        yield decoded


def _hand_over(read: Callable[[Picture], Decoded], picture: Picture) -> Decoded:
    """A picture decoded, in memory that the process which asked for it sees too."""
    decoded = read(picture)
    try:
        if decoded.image is not None:
            decoded.image.share_memory_()  # as the loader does out of sight, where an error is a wait without end
    except RuntimeError as error:
        full = f"{picture.name}: no shared memory to hand it over ({first_line(error)}); use fewer --workers, or 0"
        return replace(decoded, image=None, problem=full, lost=True)
    return decoded


def _crashed(picture: Picture) -> Decoded:
    problem = f"{picture.name}: the process that decoded it crashed, or was killed for its memory"
    return Decoded(picture.name, problem=problem, mark=picture.mark)


def _fetch(address: str) -> bytes:
    """The bytes at an address of a server, asked again where it gives no answer; ConnectionError if it never does."""
    for wait in [2**number for number in range(TRIES - 1)]:
        try:
            return _read(address)
        except S2WrapError:
            raise
        except Exception:  # every file system of fsspec has errors of its own
            time.sleep(wait)
    try:
        return _read(address)
    except S2WrapError:
        raise
    except Exception as error:
        raise ConnectionError(f"{address}: no answer, {TRIES} times: {first_line(error)}") from error


def _read(address: str) -> bytes:
    try:
        return fetch(address)
    except FileNotFoundError as error:
        raise S2WrapError(f"{address}: there is no such file") from error
    except (PermissionError, IsADirectoryError, ValueError) as error:  # ValueError: no such protocol, no such address
        raise S2WrapError(f"{address}: cannot be opened: {first_line(error)}") from error
