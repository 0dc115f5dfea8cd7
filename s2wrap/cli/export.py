"""`s2wrap export` and `s2wrap verify`: a wrapped model as a file that other runtimes read, and its verification."""

from pathlib import Path
from typing import Annotated, Any

import typer

import s2wrap
from s2wrap.cli import model as flags
from s2wrap.cli import output as out
from s2wrap.errors import S2WrapError
from s2wrap.export.options import ExportOptions, GraphOptions, TritonOptions, VerifyOptions
from s2wrap.options import LoadOptions, option_help, part_of

Pictures = Annotated[list[Path] | None, typer.Option(help=option_help(VerifyOptions)["pictures"])]
TRITON_FLAGS = {
    "name": "--triton-name",
    "backend": "--triton-backend",
    "version": "--triton-version",
    "max_pixels": "--triton-max-pixels",
}


@flags.model_options()
@flags.option_flags(TritonOptions, "triton_options", flag_names=TRITON_FLAGS)
@flags.option_flags(ExportOptions, "export_options")
def export_model(
    spec: Annotated[str, typer.Argument(help=flags.SPEC_HELP)],
    output: Annotated[
        Path,
        typer.Argument(
            help="The ending says what: .onnx; .plan or .engine (TensorRT, needs the GPU that will run it); "
            ".rtx (TensorRT-RTX, needs none); .pt2 (PyTorch's AOTInductor, needs a C++ compiler)."
        ),
    ],
    *,
    pictures: Pictures = None,
    triton: Annotated[
        Path | None, typer.Option(help="Also add it to a Triton Inference Server model repository in this folder.")
    ] = None,
    as_json: out.Json = False,
    overwrite: out.Overwrite = False,
    export_options: dict[str, Any],
    triton_options: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Compile a wrapped model for serving, and prove that it computes the same.

    The file is compared with the model in float32 before it gets its name; when it fails, nothing is written and the
    exit code is 1. A manifest, OUTPUT.json, is written beside it.
    """
    import torch

    from s2wrap.export.manifest import kind_of
    from s2wrap.export.pipeline import check_unwritten, export
    from s2wrap.export.proof import VerificationError
    from s2wrap.export.triton import check_repository, check_stretched, write_repository

    console = out.notes()
    _repeat_one_number(export_options)
    chosen = ExportOptions(**export_options, pictures=pictures, console=console, overwrite=overwrite)
    replaced = overwrite and triton_options.get("version") != "new"  # the file alone, then
    kind, served = kind_of(output), TritonOptions(**triton_options, overwrite=replaced)
    check_unwritten(output, overwrite)
    if triton is None and triton_options:
        names = ", ".join(TRITON_FLAGS.get(name, flags.flag_name(name, TritonOptions)) for name in triton_options)
        raise S2WrapError(f"{names}: for --triton DIR, which is not given")
    if triton is not None:
        check_repository(output, triton, part_of(GraphOptions, chosen), served)
    if not options.get("pretrained", True):
        torch.manual_seed(0)  # so that `s2wrap verify` draws them again
    model = s2wrap.load(spec, **options)
    if triton is not None and served.backend == "python" and not chosen.tiles:
        check_stretched(output, [scale.fit for scale in model.scales])
    try:
        manifest = export(model, output, **chosen.changed())
    except VerificationError as error:  # no wrong call, which ends with 2
        out.print_error(str(error))
        raise typer.Exit(1) from error
    folder = None
    if triton is not None:
        folder = write_repository(output, triton, **served.changed())
    if as_json:
        out.print_json({"path": str(output), "triton": folder and str(folder), **manifest})
        return
    size = output.stat().st_size / 1e6
    shapes = ", ".join(f"{port['name']} {'×'.join(map(str, port['shape']))}" for port in manifest["outputs"])
    out.print_line(f"{output} ({kind}, {chosen.precision}, {size:.1f} MB): {shapes}")
    if folder is not None:
        out.print_line(f"{folder}: a model of a Triton repository")


@flags.option_flags(LoadOptions, "options", unless="checkpoint", flag_names={"layers": "--against-layers"})
@flags.option_flags(VerifyOptions, "verify_options")
def verify_file(
    file: Annotated[Path, typer.Argument(help="An exported file; one that others built has no manifest beside it.")],
    *,
    against: Annotated[
        str | None, typer.Option(help=f"The model to compare with, for files without a manifest. {flags.SPEC_HELP}")
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Look inside an .onnx file for the first layer whose values depart.")
    ] = False,
    pictures: Pictures = None,
    as_json: out.Json = False,
    verify_options: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Compare an exported file with PyTorch once more.

    The exit code is 1 if it computes something else. Options of a model are for --against.
    """
    import torch

    from s2wrap.export.proof import VerificationError, verify

    if against is None and options:
        raise S2WrapError(f"{', '.join(map(flags.flag_name, options))}: for --against SPEC, which is not given")
    if not options.get("pretrained", True):
        torch.manual_seed(0)  # the weights that `s2wrap export --random-weights` draws
    model, error = None if against is None else s2wrap.load(against, **options), None
    gate, console = verify_options.get("gate"), out.notes()
    try:
        report = verify(file, model=model, gate=gate, pictures=pictures, layers=layers, console=console)
    except VerificationError as failure:
        report, error = failure.report, failure
    if as_json:
        out.print_json({"path": str(file), **report.facts()})
    else:
        report.show(out.results())
    if error is not None:
        out.print_error(str(error))
        raise typer.Exit(1)


def _repeat_one_number(options: dict[str, Any]) -> None:
    """Take one number as a profile of that batch size alone."""
    batch = options.get("batch")
    if isinstance(batch, tuple) and len(batch) == 1:
        options["batch"] = batch * 3
