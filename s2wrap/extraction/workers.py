"""Work done by processes beside this one, in order, a few things ahead; one that crashes takes only what crashed it."""

import os
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
        items: asked for one after the other, `ahead` a worker before what is taken here. An error of theirs is raised
            after what was made of those before.
        work: done by a worker, with one thread of torch. What it makes travels through a pipe, where a worker that dies
            in the midst of it is waited for without end: no more than 4 kB, beside tensors in shared memory.
        crashed: called here for an item whose work, alone in a process of its own, ends that process.
        workers: processes, 1 or more.
        ahead: items that each worker has, at most.
        pin: whether what is made is moved to memory that a GPU reads by itself, by its `pin_memory()`.
        fork: whether workers are copies of this process, so that nothing of `work` has to travel.
    """
    given: deque[Given] = deque()
    failed: list[Exception] = []
    before = _Signal()

    def give() -> Iterator[Given]:
        before.restore()
        try:
            for item in items:
                given.append(item)
                yield item
        except Exception as error:
            failed.append(error)

    def started(items: Iterator[Given], count: int, pin: bool) -> Iterator[Made]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than processors
            return iter(
                DataLoader(
                    _Work(work),
                    sampler=items,
                    batch_size=None,
                    num_workers=count,
                    prefetch_factor=ahead,
                    collate_fn=_as_it_is,
                    worker_init_fn=_set_up,
                    pin_memory=pin,
                    multiprocessing_context="fork" if fork else None,
                )
            )

    def alone(item: Given) -> Iterator[Given]:
        before.restore()
        yield item

    while True:
        try:
            for made in started(give(), workers, pin):
                given.popleft()
                yield made
            break
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_crash(error) or not given:
                raise
        while given:  # any of them may be to blame: each alone
            item = given.popleft()
            try:
                (made,) = started(alone(item), 1, False)
            except (RuntimeError, OSError, EOFError) as error:
                if not _is_crash(error):
                    raise
                made = crashed(item)
            yield made
    if failed:
        raise failed[0]


def grouped(items: Iterable[Given], size: Callable[[Given], int], *, count: int, most: int) -> Iterator[list[Given]]:
    """Items as lists of `count`, or of fewer where more would be above `most` bytes; `size` gives those of one."""
    group: list[Given] = []
    held = 0
    for item in items:
        if group and held + size(item) > most:
            yield group
            group, held = [], 0
        group.append(item)
        held += size(item)
        if len(group) == count:
            yield group
            group, held = [], 0
    if group:
        yield group


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


def _set_up(_worker: int) -> None:
    """What a worker does first."""

    def end_with_the_run() -> None:
        if (run := parent_process()) is not None:
            run.join()
            os._exit(1)

    # by itself it would not notice a run that is killed while it starts, and stay
    threading.Thread(target=end_with_the_run, daemon=True).start()
    # a progress bar stands in for these, with a lock that a copied process may find held for good
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


class _Signal:
    """What this process does when a child of it ends, to be restored once a DataLoader has put its own in place.

    That raises in the midst of whatever this thread does then, such as encoding, or reading a tar. Without it, a
    DataLoader that waits looks for workers that have died every 5 seconds. It puts it in place, and asks for the first
    item then.
    """

    def __init__(self) -> None:
        self.is_ours = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        self.handler = signal.getsignal(signal.SIGCHLD) if self.is_ours else None

    def restore(self) -> None:
        if self.is_ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, self.handler)
