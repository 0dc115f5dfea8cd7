"""Freed memory that a process keeps, instead of giving it back and asking for it again."""

import ctypes
import os
import sys

PARAMETERS = {"MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1), "MALLOC_MMAP_THRESHOLD_": (-3, 2**25)}
"""Of `mallopt`, their numbers and what they are set to: bytes, and the most that glibc takes."""


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks below 32 MB, up to 2 GB of them at the end of its heap; elsewhere, do nothing.

    It returns large blocks to the system, which gives them back page by page, zeroed: on a CPU, layer after layer of
    a small convolutional network waits for that. For programs: a library leaves such settings to the program that
    uses it, or to the environment, which is heeded here too.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # musl has none
        for name, (parameter, value) in PARAMETERS.items():
            if name not in os.environ:
                library.mallopt(parameter, value)
