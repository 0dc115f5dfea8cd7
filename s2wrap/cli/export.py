"""`s2wrap export` and `s2wrap verify`: a wrapped model as a file that other runtimes read, and its verification."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from s2wrap.cli import model as flags
from s2wrap.errors import S2WrapError
from s2wrap.export.manifest import kind_of
from s2wrap.export.options import ExportOptions, GraphOptions, TritonOptions, VerifyOptions
from s2wrap.export.pipeline import export
from s2wrap.export.proof import VerificationError, verify
from s2wrap.export.triton import check_repository, write_repository
from s2wrap.factory import load
from s2wrap.options import option_help, part_of

Pictures = Annotated[list[Path] | None, typer.Option(help=option_help(VerifyOptions)["pictures"])]
TRITON_FLAGS = {"name": "--triton-name"}


@flags.model_options()
@flags.option_flags(TritonOptions, "triton_options", flag_names=TRITON_FLAGS)
@flags.option_flags(ExportOptions, "export_options")
def export_model(
    spec: Annotated[str, typer.Argument(help=flags.SPEC_HELP)],
    output: Annotated[
        Path,
        typer.Argument(
            help="The ending says what: .onnx; .plan or .engine (TensorRT, needs the GPU that will run it); "
            ".rtx (TensorRT-RTX, needs none)."
        ),
    ],
    *,
    pictures: Pictures = None,
    triton: Annotated[
        Path | None, typer.Option(help="Also add it to a Triton Inference Server model repository in this folder.")
    ] = None,
    export_options: dict[str, Any],
    triton_options: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Compile a wrapped model for serving, and prove that it computes the same.

    The file is compared with the model in float32 before it gets its name; when it fails, nothing is written and the
    exit code is 1. A manifest, OUTPUT.json, is written beside it.
    """
    console = Console(stderr=True)
    _repeat_one_number(export_options)
    chosen = ExportOptions(**export_options, pictures=pictures, console=console)
    kind, served = kind_of(output), TritonOptions(**triton_options)
    if triton is None and triton_options:
        names = ", ".join(TRITON_FLAGS.get(name, flags.flag_name(name, TritonOptions)) for name in triton_options)
        raise S2WrapError(f"{names}: for --triton DIR, which is not given")
    if triton is not None:
        check_repository(output, triton, part_of(GraphOptions, chosen), served)
    if not options.get("pretrained", True):
        torch.manual_seed(0)  # so that `s2wrap verify` draws them again
    model = load(spec, **options)
    with _exit_1_where_it_fails(console):
        manifest = export(model, output, **chosen.changed())
    size = output.stat().st_size / 1e6
    shapes = ", ".join(f"{port['name']} {'×'.join(map(str, port['shape']))}" for port in manifest["outputs"])
    text = f"{output} ({kind}, {chosen.precision}, {size:.1f} MB): {shapes}"
    console.print(text, highlight=False, soft_wrap=True)
    if triton is not None:
        folder = write_repository(output, triton, **served.changed())
        console.print(f"{folder}: a model of a Triton repository", highlight=False, soft_wrap=True)


@flags.option_flags(VerifyOptions, "verify_options")
def verify_file(
    file: Annotated[Path, typer.Argument(help="An exported file; its manifest lies beside it.")],
    *,
    pictures: Pictures = None,
    verify_options: dict[str, Any],
) -> None:
    """Compare an exported file with PyTorch once more.

    The exit code is 1 if it computes something else.
    """
    console = Console(stderr=True)
    with _exit_1_where_it_fails(console):
        verify(file, gate=verify_options.get("gate"), pictures=pictures, console=console)


@contextmanager
def _exit_1_where_it_fails(console: Console) -> Iterator[None]:
    """A file that computes something else is no wrong call (2): say so, and end with 1."""
    try:
        yield
    except VerificationError as error:
        console.print(f"s2wrap: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _repeat_one_number(options: dict[str, Any]) -> None:
    """Take one number as a profile of that batch size alone."""
    batch = options.get("batch")
    if isinstance(batch, tuple) and len(batch) == 1:
        options["batch"] = batch * 3
