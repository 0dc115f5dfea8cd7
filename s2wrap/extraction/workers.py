"""Work done by processes beside this one, in order, a few things ahead; one that crashes takes only what crashed it."""

import os
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import parent_process
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from s2wrap.errors import S2WrapError

CRASH = "exited unexpectedly"
"""How a DataLoader says that a worker was killed."""
Given = TypeVar("Given")
Made = TypeVar("Made")


def by_workers(
    items: Iterator[Given],
    work: Callable[[Given], Made],
    crashed: Callable[[Given], Made],
    *,
    workers: int,
    ahead: int,
    pin: bool = False,
    fork: bool = False,
) -> Iterator[Made]:
    """What the work makes of each item, in their order.

    Args:
        items: asked for one after the other, `ahead` a worker before what is taken here.
        work: done by a worker, with one thread of torch.
        crashed: called here for an item whose work, alone in a process of its own, ends that process.
        workers: processes, 1 or more.
        ahead: items that each worker has, at most.
        pin: whether what is made is moved to memory that a GPU reads by itself, by its `pin_memory()`.
        fork: whether workers are copies of this process, so that nothing of `work` has to travel.
    """
    given: deque[Given] = deque()

    def give() -> Iterator[Given]:
        for item in items:
            given.append(item)
            yield item

    def started(items: Iterator[Given], count: int, pin: bool) -> Iterator[Made]:
        with warnings.catch_warnings(category=UserWarning, action="ignore"):  # of more workers than processors
            loader = DataLoader(
                _Work(work),
                sampler=items,
                batch_size=None,
                num_workers=count,
                prefetch_factor=ahead,
                collate_fn=_as_it_is,
                worker_init_fn=_end_with_the_run,
                pin_memory=pin,
                multiprocessing_context="fork" if fork else None,
            )
            return _started(loader)

    while True:
        try:
            for made in started(give(), workers, pin):
                given.popleft()
                yield made
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_crash(error):
                raise
        while given:  # any of them may be to blame: each alone
            item = given.popleft()
            try:
                (made,) = started(iter([item]), 1, False)
            except (RuntimeError, OSError, EOFError) as error:
                if not _is_crash(error):
                    raise
                made = crashed(item)
            yield made


def portable(error: Exception) -> Exception:
    """The same error, as one that every process can read."""
    if isinstance(error, S2WrapError):
        return S2WrapError(str(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return MemoryError(str(error))
    return RuntimeError("".join(traceback.format_exception(error)))


def _is_crash(error: Exception) -> bool:
    """Whether a DataLoader's error means that a worker has died, or is dying and cannot hand over what it has."""
    return isinstance(error, ConnectionError | EOFError | FileNotFoundError) or CRASH in str(error)


class _Work(Dataset):
    """What a DataLoader asks for items; its "index" is the item that is to be worked on."""

    def __init__(self, work: Callable[[Any], Any]):
        self.work = work

    def __getitem__(self, item: Any) -> Any:
        return self.work(item)


def _as_it_is(made: Any) -> Any:
    return made


def _end_with_the_run(_worker: int) -> None:
    """Let a worker end as soon as its run is killed; by itself it would not notice that while it starts, and stay."""

    def wait() -> None:
        if (run := parent_process()) is not None:
            run.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _started(loader: DataLoader) -> Iterator[Any]:
    """What a DataLoader gives, which is to raise where it is asked for the next one and a worker has died.

    It has a handler of the signal too, which raises in the midst of whatever this thread does then, such as encoding.
    Without that it looks every 5 seconds, while it waits.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return iter(loader)  # there it has no handler
    before = signal.getsignal(signal.SIGCHLD)
    made = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return made
