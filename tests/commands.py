"""Command lines that tests run in their own process."""

import sys

import pytest

from s2wrap import cli


def run(*words):
    """Run `s2wrap` with these words, and return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["s2wrap", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            sys.exit(0)
    return stop.value.code or 0
