"""What commands print, and where: results on stdout, progress, notes and errors on stderr."""

import codecs
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from s2wrap.errors import S2WrapError, printable

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, notes and warnings: result and errors only.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
PIPED_WIDTH = 1000
"""Characters of a line where stdout is no terminal: then nothing is broken."""
ASCII = {"×": "x", "÷": "/", "–": "-", "−": "-", "…": "...", "→": "->", "●": "*"}
"""What is printed instead where the encoding lacks a character; a question mark for others."""
_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


def with_quiet(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag --quiet, which `notes` follows."""

    @wraps(command)
    def run(*, quiet: bool = False, **arguments: Any) -> None:
        token = _quiet.set(quiet)
        try:
            with warnings.catch_warnings():
                if quiet:
                    warnings.simplefilter("ignore")
                command(**arguments)
        finally:
            _quiet.reset(token)

    return with_parameters(
        run,
        [
            *signature(command).parameters.values(),
            Parameter("quiet", Parameter.KEYWORD_ONLY, default=False, annotation=Quiet),
        ],
    )


def with_parameters(command: Callable[..., None], parameters: Sequence[Parameter]) -> Callable[..., None]:
    """The command, which says of itself that it has these parameters: typer makes arguments and flags of them."""
    command.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess] (functions may)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def notes() -> Console:
    """Where progress and notes go: stderr, or nowhere with --quiet; bars only where that is a terminal."""
    terminal = sys.stderr.isatty()
    return Console(stderr=True, quiet=_quiet.get(), force_interactive=None if terminal else False)


def results() -> Console:
    """Where results go: stdout, whose lines are as long as they need to be where it is no terminal."""
    console = Console()
    if not sys.stdout.isatty():
        console.width = PIPED_WIDTH
    return console


def print_json(value: Any) -> None:
    """Print a result as JSON."""
    print(json.dumps(value, indent=2))


def print_line(text: str, console: Console | None = None, style: str | None = None) -> None:
    """Print a line as it is: names of files may look like markup, or hold what a terminal would obey."""
    (console or results()).print(printable(text), style=style, highlight=False, markup=False, soft_wrap=True)


def print_error(text: str) -> None:
    """Print an error as one line."""
    print(f"s2wrap: {printable(text)}", file=sys.stderr)


def make_table(names: Column, rows: Sequence[str], columns: Mapping[str, Sequence[str]], width: int) -> Table:
    """A table with names at the left, which are never broken; columns that do not fit beside them are left out.

    Args:
        names: the column of names.
        rows: the names.
        columns: the texts of the others by heading, the most important first.
        width: of the terminal, in characters.
    """
    used, shown = max(map(len, (str(names.header), *rows))), {}
    for heading, texts in columns.items():
        used += 2 + max(map(len, (heading, *texts)))
        if used > width:
            break
        shown[heading] = texts
    table = Table(names, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in shown:
        table.add_column(heading, no_wrap=True)
    for row in zip(rows, *shown.values(), strict=True):
        table.add_row(*row)
    return table


def check_free(paths: Sequence[Path], overwrite: bool) -> None:
    """Raise S2WrapError for a file that is there already, unless it may be replaced."""
    for path in () if overwrite else paths:
        if path.exists():
            raise S2WrapError(f"{path} exists already; add --overwrite to replace it, or give another name")


def as_ascii(error: UnicodeError) -> tuple[str, int]:
    """What is printed instead of characters that the encoding lacks: an error handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(ASCII.get(char, "?") for char in error.object[error.start : error.end]), error.end


codecs.register_error("s2wrap", as_ascii)
