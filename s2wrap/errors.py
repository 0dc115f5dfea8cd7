"""The two errors that s2wrap raises for a call that cannot work, and how it warns."""

import sys
import warnings

OTHERS = ("s2wrap", "torch", "jaxtyping", "beartype")
"""Packages whose lines no warning points at: calls of a model go through them."""


class S2WrapError(ValueError):
    """A call that cannot work: says what was asked, with its values, and what would work."""


def printable(text: str) -> str:
    """A text without control characters, which a terminal would obey; line breaks stay."""
    return "".join("?" if (ord(char) < 32 and char != "\n") or 127 <= ord(char) < 160 else char for char in text)


def first_line(error: BaseException) -> str:
    """The kind and the first line of another library's error, to be told in one of ours."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def warn(text: str) -> None:
    """Warn at the line of the caller: the first that is none of `OTHERS`."""
    frame, level = sys._getframe(), 1
    while frame and frame.f_globals.get("__name__", "").partition(".")[0] in OTHERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


class MissingExtraError(S2WrapError, ImportError):
    """An optional package is missing: names the pip line that installs it."""

    def __init__(self, package: str, extra: str):
        super().__init__(f'{package} is not installed; install it with: pip install "s2wrap[{extra}]"')
