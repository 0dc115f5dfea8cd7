"""The command line: one file a command, plain typed functions that typer turns into commands."""

import signal
import sys
from io import TextIOWrapper

import torch
import typer

from s2wrap.cli import bench, compare, export, features, inspect, models
from s2wrap.errors import S2WrapError, printable

app = typer.Typer(
    name="s2wrap",
    help="Multi-scale features from any frozen vision backbone (Scaling on Scales).",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("compare")(compare.compare_models)
app.command("features")(features.extract)
app.command("inspect")(inspect.describe)
app.command("export")(export.export_model)
app.command("verify")(export.verify_file)
app.command("bench")(bench.bench)
app.command("models")(models.list_models)


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
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        print(
            "s2wrap: out of memory; try fewer or smaller scales, fewer --workers or a smaller --tile-batch (features)",
            file=sys.stderr,
        )
        sys.exit(2)
