"""What every demo does with its command line."""

import sys
from collections.abc import Callable
from typing import Any

import typer

from s2wrap.errors import S2WrapError


def start(main: Callable[..., Any]) -> None:
    """Run a demo by the words of its command line; what s2wrap refuses is one line of error, and exit code 2."""
    try:
        typer.run(main)
    except S2WrapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
