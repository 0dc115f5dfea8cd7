"""The command line: one module a command, plain typed functions that typer turns into commands when they are run."""

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from inspect import signature
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from s2wrap.cli.output import print_error, with_parameters, with_quiet
from s2wrap.errors import S2WrapError

COMMANDS = {
    "compare": ("compare:compare_models", "Compare models: what an image costs, what they know; say which wins."),
    "show": ("show:show", "Draw what a model sees in photographs, at every scale and fused."),
    "play": ("play:play", "Open a page in the browser that shows what models see in your photographs."),
    "features": ("features:extract", "Write the features of pictures, as many as there are."),
    "search": ("search:search", "Find the pictures of a store of features that are most alike to others."),
    "check": ("check:check", "Read whole stores of features, and compare them with what was written."),
    "inspect": (
        "inspect:describe",
        "Show what is known of a model and what an image costs; no weights are downloaded.",
    ),
    "export": ("export:export_model", "Compile a wrapped model for serving, and prove that it computes the same."),
    "verify": (
        "export:verify_file",
        "Compare an exported file with PyTorch once more.",
    ),
    "serve": ("serve:serve", "Serve a model or an exported file over HTTP: pictures in, features out."),
    "bench": ("bench:bench", "Time models in PyTorch and exported files, one beside the other."),
    "models": (
        "models:list_models",
        "List what can be wrapped by name.",
    ),
    "doctor": ("doctor:examine", "Show what works here, and what to install for the rest."),
}
"""The module and function of every command, and what `s2wrap --help` says of it."""
UsageError: Any = typer.BadParameter.__base__  # click's, of which some versions of typer have a copy


class LazyGroup(TyperGroup):
    """Commands whose modules are imported when they are run, or asked for their own help."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name of the command that is called, the command, and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, _command(name) if name in COMMANDS else command, rest


def _command(name: str) -> Any:
    """The command of a name, from its module."""
    module, function = COMMANDS[name][0].split(":")
    command = with_quiet(getattr(import_module(f"s2wrap.cli.{module}"), function))
    app = typer.Typer(rich_markup_mode="markdown", add_completion=False, pretty_exceptions_enable=False)
    app.command(name)(command if name == "doctor" else _with_silent_decoders(command))
    return typer.main.get_command(app)


def _with_silent_decoders(command: Callable[..., None]) -> Callable[..., None]:
    """The command, before which PIL and libtiff are silenced: that imports torch, without which doctor has to run."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        from s2wrap.images import silence_decoders

        silence_decoders()
        command(**arguments)

    return with_parameters(run, [*signature(command).parameters.values()])


app = typer.Typer(
    name="s2wrap",
    cls=LazyGroup,
    help="Multi-scale features from any frozen vision backbone (Scaling on Scales).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for _name, (_, _help) in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def _print_version(asked: bool) -> bool:
    if asked:
        from s2wrap.version import __version__

        print(f"s2wrap {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a call that cannot work is one line and exit code 2."""
    for name in ("SIGTERM", "SIGHUP"):  # end as an exception does: drafts of files are removed
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="s2wrap")  # a terminal without × gets x
    try:
        code = app(prog_name="s2wrap", standalone_mode=False)
        sys.stdout.flush()
    except UsageError as error:
        if error.format_message():  # without one, the help was printed
            print_error(_usage(error))
        code = 2
    except S2WrapError as error:
        print_error(str(error))
        code = 2
    except BrokenPipeError:  # the reader has enough, as in `s2wrap models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        code = 130
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        print_error("out of memory; try fewer or smaller scales, fewer --workers or a smaller --tile-batch")
        code = 2
    sys.exit(code)


def _usage(error: Any) -> str:
    """A wrong command, flag or argument in one line, with the way to the help."""
    path = error.ctx.command_path if error.ctx else "s2wrap"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text}{' See' if text.endswith('?') else '; see'} `{path} --help`"


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory is what lacks, on the CPU or a GPU: torch raises a RuntimeError there."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
