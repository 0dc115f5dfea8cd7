"""The command line: one module a command, plain typed functions that typer turns into commands when they are run."""

import signal
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup

from s2wrap.errors import S2WrapError, printable

COMMANDS = {
    "compare": ("compare:compare_models", "Compare models: what an image costs, what they know; say which wins."),
    "show": ("show:show", "Draw what a model sees in photographs, at every scale and fused."),
    "play": ("play:play", "Open a page in the browser that shows what models see in your photographs."),
    "features": ("features:extract", "Write the features of pictures, as many as there are."),
    "inspect": ("inspect:describe", "Show what is known of a model and what an image costs; nothing is downloaded."),
    "export": ("export:export_model", "Compile a wrapped model for serving, and prove that it computes the same."),
    "verify": (
        "export:verify_file",
        "Compare an exported file with PyTorch once more.",
    ),
    "bench": ("bench:bench", "Time models in PyTorch and exported files, one beside the other."),
    "models": (
        "models:list_models",
        "List what can be wrapped by name.",
    ),
}
"""The module and function of every command, and what `s2wrap --help` says of it."""


class LazyGroup(TyperGroup):
    """Commands whose modules, and torch with them, are imported when they are run, or asked for their own help."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name of the command that is called, the command, and its arguments."""
        from s2wrap.images import silence_decoders

        name, _, rest = super().resolve_command(ctx, args)
        silence_decoders()
        return name, _command(name or ""), rest


def _command(name: str) -> Any:
    """The command of a name, from its module."""
    module, function = COMMANDS[name][0].split(":")
    app = typer.Typer(rich_markup_mode="markdown", add_completion=False, pretty_exceptions_enable=False)
    app.command(name)(getattr(import_module(f"s2wrap.cli.{module}"), function))
    return typer.main.get_command(app)


app = typer.Typer(
    name="s2wrap",
    cls=LazyGroup,
    help="Multi-scale features from any frozen vision backbone (Scaling on Scales).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, (_, _help) in COMMANDS.items():
    app.command(_name, help=_help)(lambda: None)


def main() -> None:
    """Run the command line; a call that cannot work is one line and exit code 2."""
    for name in ("SIGTERM", "SIGHUP"):  # end as an exception does: drafts of files are removed
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × gets ?
    try:
        app()
    except S2WrapError as error:
        print(f"s2wrap: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        print(
            "s2wrap: out of memory; try fewer or smaller scales, fewer --workers or a smaller --tile-batch",
            file=sys.stderr,
        )
        sys.exit(2)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory is what lacks, on the CPU or a GPU: torch raises a RuntimeError there."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
