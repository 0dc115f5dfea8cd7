"""Have a process keep freed memory, instead of returning it to the system and requesting it again."""

import ctypes
import os
import sys

PARAMETERS = {"MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1), "MALLOC_MMAP_THRESHOLD_": (-3, 2**25)}
"""Numbers of `mallopt`'s parameters and their values in bytes, the largest that glibc accepts, by environment name."""


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks below 32 MB, up to 2 GB of them at the end of its heap; elsewhere, do nothing.

    By default it returns large blocks to the system, which hands them out again page by page, zeroed: on a CPU, every
    layer of a small convolutional network waits for that. Only programs should call this: a library leaves such
    settings to the program that uses it. Values from the environment take precedence.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # musl has none
        for name, (parameter, value) in PARAMETERS.items():
            if name not in os.environ:
                library.mallopt(parameter, value)
