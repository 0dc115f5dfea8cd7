"""Freed memory that a process keeps, instead of giving it back and asking for it again."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of `mallopt`'s parameters."""
LARGEST = 2**25
"""The largest block that is kept, in bytes; glibc takes no more."""


def keep_freed_memory() -> None:
    """Let glibc keep what is freed, up to the most that was in use; elsewhere, do nothing.

    It returns large blocks to the system, which gives them back page by page, zeroed: on a CPU, layer after layer of
    a small convolutional network waits for that, a third of its time and more. For programs: a library leaves such
    settings to the program that uses it (or to `MALLOC_TRIM_THRESHOLD_` and `MALLOC_MMAP_THRESHOLD_`).
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # musl has none
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(MMAP_THRESHOLD, LARGEST)
