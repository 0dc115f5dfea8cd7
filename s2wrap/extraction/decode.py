"""Pictures read and decoded, in worker processes that stay a little ahead."""

import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.addresses import is_remote, opened
from s2wrap.extraction.picture import START, Mark, Picture
from s2wrap.images import decode_image, load_image

AHEAD = 4
"""Pictures that each worker holds ready, at most."""
TRIES = 4
"""Times that a server is asked for a picture; between them one second, then two, then four."""
CRASH = "exited unexpectedly"
"""How a DataLoader says that a worker was killed."""


@dataclass(frozen=True)
class Decoded:
    """A picture in memory, (3, height, width) in 0…255; or why there is none.

    Attributes:
        lost: whether the server gave no answer: the picture may be fine, and the run is to stop.
    """

    name: str
    image: Tensor | None = None
    problem: str = ""
    lost: bool = False
    mark: Mark = START

    def pin_memory(self) -> "Decoded":
        """The same in memory that a GPU reads by itself; a DataLoader calls this."""
        return self if self.image is None else replace(self, image=self.image.pin_memory())


def decode(picture: Picture) -> Decoded:
    """A picture in memory, or why there is none: every damage is told, none raised."""
    known = Decoded(picture.name, mark=picture.mark)
    if picture.problem is not None:
        return replace(known, problem=picture.problem)
    try:
        if picture.content is not None:
            return replace(known, image=decode_image(picture.content, picture.name))
        if is_remote(picture.name):
            return replace(known, image=decode_image(_fetch(picture.name), picture.name))
        return replace(known, image=load_image(picture.name))
    except S2WrapError as error:
        return replace(known, problem=str(error))
    except ConnectionError as error:
        return replace(known, problem=str(error), lost=True)


def decode_all(pictures: Iterable[Picture], *, workers: int, pin: bool = False) -> Iterator[Decoded]:
    """The pictures decoded, in their order.

    Args:
        pictures: asked for one after the other, a few ahead of what is taken here.
        workers: processes that decode; 0: this one does.
        pin: whether the pixels go to a GPU.

    Raises:
        S2WrapError: a server that gives no answer.
    """
    for decoded in map(decode, pictures) if workers == 0 else _by_workers(iter(pictures), workers, pin):
        if decoded.lost:
            raise S2WrapError(f"{decoded.problem}; the same command again goes on from here")
        yield decoded


def _by_workers(pictures: Iterator[Picture], workers: int, pin: bool) -> Iterator[Decoded]:
    """A worker may crash, or be killed for its memory: each picture that it may have had is then tried alone."""
    given: deque[Picture] = deque()

    def give() -> Iterator[Picture]:
        for picture in pictures:
            given.append(picture)
            yield picture

    while True:
        try:
            for decoded in _decoded(give(), workers, pin):
                given.popleft()
                yield decoded
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_crash(error):
                raise
        while given:
            yield _alone(given.popleft())


def _alone(picture: Picture) -> Decoded:
    """A picture decoded in a process of its own, so that a crash is known to be its doing."""
    try:
        (decoded,) = _decoded(iter([picture]), 1, pin=False)
    except (RuntimeError, OSError, EOFError) as error:
        if not _is_crash(error):
            raise
        problem = f"{picture.name}: the process that decoded it crashed, or was killed for its memory"
        return Decoded(picture.name, problem=problem, mark=picture.mark)
    return decoded


def _is_crash(error: Exception) -> bool:
    """Whether a DataLoader's error means that a worker has died, or is dying and cannot hand over what it has."""
    return isinstance(error, ConnectionError | EOFError | FileNotFoundError) or CRASH in str(error)


class _Decoder(Dataset):
    """What a DataLoader asks for pictures; its "index" is the picture that is to be read."""

    def __getitem__(self, picture: Picture) -> Decoded:
        return decode(picture)


def _as_it_is(decoded: Any) -> Any:
    return decoded


def _decoded(pictures: Iterator[Picture], workers: int, pin: bool) -> Iterator[Decoded]:
    """The pictures by a DataLoader, which is to raise where it is asked for the next one and a worker has died.

    It has a handler of the signal too, which raises in the midst of whatever this thread does then, such as encoding.
    Without that it looks every 5 seconds, while it waits.
    """
    loader = DataLoader(
        _Decoder(),
        sampler=pictures,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        pin_memory=pin,
    )
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)  # there it has no handler
    before = signal.getsignal(signal.SIGCHLD)
    decoded = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return decoded


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
        with opened(address) as stream:
            return stream.read()
    except FileNotFoundError as error:
        raise S2WrapError(f"{address}: there is no such file") from error
    except (PermissionError, IsADirectoryError) as error:
        raise S2WrapError(f"{address}: cannot be opened: {first_line(error)}") from error
