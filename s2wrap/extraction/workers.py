"""Worker processes that map a function over items, in order; a crash loses only the item that caused it."""

import multiprocessing
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

from s2wrap.errors import S2WrapError, first_line

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

CRASH = "exited unexpectedly"
"""The words with which a DataLoader reports that a worker was killed."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def by_workers(
    items: Iterator[Item],
    work: Callable[[Item], Result],
    crashed: Callable[[Item], Result],
    *,
    workers: int,
    ahead: int,
    pin: bool = False,
    fork: bool = False,
) -> Iterator[Result]:
    """The result of `work` for each item, in order.

    Args:
        items: read lazily, at most `ahead` per worker before their results are taken. If reading them raises an error,
            it is raised after the results of the items before it.
        work: called in a worker, with a single torch thread. Results must pickle to at most 4 kB, beside tensors in
            shared memory: they go through a pipe, which hangs if a worker dies halfway through a longer message.
        crashed: gives the result of an item whose work, alone in a process of its own, kills that process; called in
            this process.
        workers: number of processes, at least 1.
        ahead: the most items assigned to a worker at a time.
        pin: whether to move results to page-locked memory, by their method `pin_memory`.
        fork: whether to fork the workers from this process, so that `work` need not be pickled.

    Raises:
        S2WrapError: the system lacks what so many workers need.
    """
    _check_system(workers, ahead)
    pending: deque[Item] = deque()
    source_errors: list[Exception] = []
    child_signal = _ChildSignal()

    def feed() -> Iterator[Item]:
        child_signal.restore()
        try:
            for item in items:
                pending.append(item)
                yield item
        except Exception as error:
            source_errors.append(error)

    def feed_one(item: Item) -> Iterator[Item]:
        child_signal.restore()
        yield item

    while True:
        try:
            for result in _run(work, feed(), workers, ahead, pin, fork):
                pending.popleft()
                yield result
            break
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_crash(error) or not pending:
                raise
        while pending:  # any of them may have caused the crash, so each runs in a process of its own
            item = pending.popleft()
            try:
                (result,) = _run(work, feed_one(item), 1, ahead, False, fork)
            except (RuntimeError, OSError, EOFError) as error:
                if not _is_crash(error):
                    raise
                result = crashed(item)
            yield result
    if source_errors:
        raise source_errors[0]


def _check_system(workers: int, ahead: int) -> None:
    """Raise S2WrapError where the system lacks what so many workers need: open files, or memory for semaphores."""
    if resource is not None:
        needed, allowed = 24 + workers * (4 + ahead), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if allowed != resource.RLIM_INFINITY and allowed < needed:
            raise S2WrapError(
                f"{workers} worker processes need {needed} open files, and the system allows {allowed}; raise that by "
                f"`ulimit -n {needed}`, or use fewer --workers, or 0"
            )
    try:
        for queue in [multiprocessing.Queue() for _ in range(2 * workers + 2)]:  # as many as a DataLoader makes
            queue.close()
    except OSError as error:
        raise S2WrapError(
            f"{workers} worker processes cannot be started ({first_line(error)}); see whether /dev/shm is full, or use "
            f"fewer --workers, or 0"
        ) from error


def _run(
    work: Callable[[Item], Result], items: Iterator[Item], workers: int, ahead: int, pin: bool, fork: bool
) -> Iterator[Result]:
    """The results of a DataLoader, in order; a worker that dies ends it with an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than processors
        loader = DataLoader(
            _Work(work),
            sampler=items,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead,
            collate_fn=_identity,
            worker_init_fn=_start_worker,
            pin_memory=pin,
            multiprocessing_context="fork" if fork else None,
        )
        return iter(loader)


def grouped(items: Iterable[Item], size: Callable[[Item], int], *, count: int, most: int) -> Iterator[list[Item]]:
    """Lists of successive items: at most `count`, and at most `most` bytes by `size`, but at least one item."""
    group: list[Item] = []
    total = 0
    for item in items:
        if group and total + size(item) > most:
            yield group
            group, total = [], 0
        group.append(item)
        total += size(item)
        if len(group) == count:
            yield group
            group, total = [], 0
    if group:
        yield group


def portable(error: Exception) -> Exception:
    """An equivalent of an error that every process can unpickle."""
    if isinstance(error, S2WrapError):
        return S2WrapError(str(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return MemoryError(str(error))
    return RuntimeError("".join(traceback.format_exception(error)))


def _is_crash(error: Exception) -> bool:
    """Whether a DataLoader's error means that a worker died, perhaps while sending a result."""
    return isinstance(error, ConnectionError | EOFError | FileNotFoundError) or CRASH in str(error)


class _Work(Dataset):
    """A data set whose "index" is the item to work on, and whose element is the result."""

    def __init__(self, work: Callable[[Any], Any]):
        self.work = work

    def __getitem__(self, item: object) -> Any:
        return self.work(item)


def _identity(result: object) -> Any:
    return result


def _start_worker(_worker: int) -> None:
    """Prepare a new worker process."""
    from s2wrap.images import silence_decoders

    def exit_with_parent() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    # a DataLoader's worker outlives a parent that is killed while the worker starts
    threading.Thread(target=exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one handles it
    sys.excepthook = lambda *_: None  # what hands tensors over complains of every process that ended before it took one
    # a progress bar may have replaced these; in a forked process its lock may stay locked forever
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    silence_decoders()


class _ChildSignal:
    """The SIGCHLD handler of this process, to be restored after a DataLoader has installed its own.

    The DataLoader's handler raises an error in whatever the main thread is doing, such as encoding or reading a tar.
    Without it, a waiting DataLoader still notices dead workers within 5 seconds. It installs the handler just before
    it asks for the first item.
    """

    def __init__(self) -> None:
        self.is_main = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        self.handler = signal.getsignal(signal.SIGCHLD) if self.is_main else None

    def restore(self) -> None:
        if self.is_main and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, self.handler)
