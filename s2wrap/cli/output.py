"""What commands print, and where: results on stdout, progress, notes and errors on stderr."""

import codecs
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
from rich.markup import escape
from rich.table import Table

from s2wrap.errors import S2WrapError, printable
from s2wrap.standard_json import dump_json

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
    print(dump_json(value))


def print_line(text: str, console: Console | None = None, style: str | None = None) -> None:
    """Print a line as it is: names of files may look like markup, or hold what a terminal would obey."""
    (console or results()).print(printable(text), style=style, highlight=False, markup=False, soft_wrap=True)


def print_error(text: str) -> None:
    """Print an error as one line."""
    print(f"s2wrap: {printable(text)}", file=sys.stderr)


def print_table(columns: Mapping[str, Sequence[str]], *, kept: int = 1, title: str | None = None) -> None:
    """Print a table whose texts are never broken: columns that do not fit the terminal are left out.

    Args:
        columns: the texts of each by heading, the most important first.
        kept: number of columns that are shown anyhow.
        title: a line above.
    """
    console = results()
    widths = [2 + max(map(len, (heading, *texts))) for heading, texts in columns.items()]
    fitting = [number for number in range(len(widths)) if sum(widths[: number + 1]) - 2 <= console.width]
    shown = list(columns)[: max(kept, len(fitting))]
    console.width = max(console.width, sum(widths[: len(shown)]))  # a longer line is broken by the terminal alone
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, title=title)
    for number, heading in enumerate(shown):
        table.add_column(heading, no_wrap=True, justify="left" if number < kept else "right")
    for row in zip(*(columns[heading] for heading in shown), strict=True):
        table.add_row(*map(escape, row))
    console.print(table)


def check_overwrite(paths: Sequence[Path], overwrite: bool) -> None:
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
