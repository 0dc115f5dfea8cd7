"""The command line: one file a command, plain typed functions that typer turns into commands."""

import os
import sys

import typer

from s2wrap.cli import features, inspect
from s2wrap.errors import S2WrapError

app = typer.Typer(
    name="s2wrap",
    help="Multi-scale features from any frozen vision backbone (Scaling on Scales).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("features")(features.extract)
app.command("inspect")(inspect.describe)


def main() -> None:
    """Run the command line; a call that cannot work is one line and exit code 2."""
    try:
        app()
    except S2WrapError as error:
        print(f"s2wrap: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("s2wrap: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing more to say
        sys.exit(1)
