"""`s2wrap export` and `s2wrap verify`: a wrapped model as a file that other runtimes read, and the proof."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from s2wrap.cli import model as flags
from s2wrap.errors import S2WrapError
from s2wrap.factory import load

Pictures = Annotated[
    list[Path] | None,
    typer.Option(help="Compare on the first three of these pictures or folders (default: of scikit-image)."),
]

Gate = Annotated[
    str | None, typer.Option(help="Mean cosine, 1st percentile and relative error to reach, as 0.999,0.995,0.01.")
]


@flags.model_options()
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
    image: flags.Image = None,
    batch: Annotated[str, typer.Option(help="Images in a call: MIN:OPT:MAX, or one number.")] = "1:8:32",
    precision: Annotated[str, typer.Option(help="Of the backbone: fp32, fp16 or bf16.")] = "fp32",
    pixels: Annotated[
        str, typer.Option(help="What it takes: float32, normalised (b, 3, h, w); or uint8, RGB (b, h, w, 3).")
    ] = "float32",
    outputs: Annotated[
        str | None, typer.Option(help="Some of spatial,tokens,prefix,pooled (default: spatial and prefix).")
    ] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="The backbone alone; s2wrap.export.load takes pictures of any size then.")
    ] = False,
    fp32_layers: Annotated[
        str | None, typer.Option(help="Modules of the backbone that stay float32, such as 'blocks.11.*,norm'.")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Of the ONNX operators, 20 to 23.")] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="A ready ONNX file to take instead, such as a quantised one with Q/DQ.")
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="GPU generations of an .rtx file, such as sm80,sm89,sm120.")
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="The most scratch memory of an engine, in MiB.")] = None,
    optimization_level: Annotated[int | None, typer.Option(help="Of the builder: 0 (quick build) to 5.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="A file that makes later TensorRT builds faster.")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="The engine loads in later TensorRT versions too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="The engine runs on every GPU since Ampere.")
    ] = False,
    triton: Annotated[
        Path | None, typer.Option(help="Also lay a Triton Inference Server model repository into this folder.")
    ] = None,
    triton_name: Annotated[str | None, typer.Option(help="The model's name there (default: the file's).")] = None,
    instances: Annotated[int, typer.Option(help="How many copies of it Triton runs.")] = 1,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Triton records CUDA graphs of it.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare the file with PyTorch before it gets its name.")
    ] = True,
    gate: Gate = None,
    pictures: Pictures = None,
    options: dict[str, Any],
) -> None:
    """Compile a wrapped model for serving, and prove that it computes the same.

    The file is compared with the model in float32 before it gets its name; when it fails, nothing is written and the
    exit code is 1. A manifest, OUTPUT.json, is written beside it.
    """
    from s2wrap.export.manifest import kind_of
    from s2wrap.export.pipeline import export
    from s2wrap.export.ports import check_batch
    from s2wrap.export.triton import check_repository, write_repository

    kind, profile = kind_of(output), check_batch(_batch(batch))
    build: dict[str, Any] = {
        "targets": _words(targets) or None,
        "workspace_mib": workspace,
        "optimization_level": optimization_level,
        "timing_cache": timing_cache,
        "version_compatible": version_compatible or None,
        "hardware_compatible": hardware_compatible or None,
    }
    if triton is None and (triton_name is not None or instances != 1 or cuda_graphs):
        raise S2WrapError("--triton-name, --instances and --cuda-graphs are for --triton DIR, which is not given")
    served: dict[str, Any] = {"name": triton_name, "instances": instances, "cuda_graphs": cuda_graphs}
    if triton is not None:
        dtype = {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32")
        check_repository(output, triton, kind=kind, batch=profile, dtype=dtype, **served)
    if not options.get("pretrained", True):
        torch.manual_seed(0)  # so that `s2wrap verify` draws them again
    model = load(spec, **options)
    console = Console(stderr=True)
    with _exit_1_where_it_fails(console):
        manifest = export(
            model,
            output,
            image_hw=flags.image_hw(image) if image else None,
            batch=profile,
            precision=precision,
            pixels=pixels,
            outputs=_words(outputs) or None,
            tiles=tiles,
            fp32_layers=_words(fp32_layers),
            opset=opset,
            onnx=onnx,
            verify=verify,
            gate=_numbers(gate),
            pictures=pictures,
            console=console,
            **{name: value for name, value in build.items() if value is not None},
        )
    size = output.stat().st_size / 1e6
    shapes = ", ".join(f"{port['name']} {'×'.join(map(str, port['shape']))}" for port in manifest["outputs"])
    console.print(f"{output} ({kind}, {precision}, {size:.1f} MB): {shapes}", highlight=False, soft_wrap=True)
    if triton is not None:
        folder = write_repository(output, triton, **served)
        console.print(f"{folder}: a model of a Triton repository", highlight=False, soft_wrap=True)


def verify_file(
    file: Annotated[Path, typer.Argument(help="An exported file; its manifest lies beside it.")],
    *,
    gate: Gate = None,
    pictures: Pictures = None,
) -> None:
    """Compare an exported file with PyTorch once more.

    The exit code is 1 if it computes something else.
    """
    from s2wrap.export.proof import verify

    console = Console(stderr=True)
    with _exit_1_where_it_fails(console):
        verify(file, gate=_numbers(gate), pictures=pictures, console=console)


@contextmanager
def _exit_1_where_it_fails(console: Console) -> Iterator[None]:
    """A file that computes something else is no wrong call (2): say so, and end with 1."""
    from s2wrap.export.proof import VerificationError

    try:
        yield
    except VerificationError as error:
        console.print(f"s2wrap: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _batch(text: str) -> tuple[int, ...]:
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isdecimal() for part in parts):
        raise S2WrapError(f"--batch {text!r} is no profile; write MIN:OPT:MAX as 1:8:32, or one number")
    numbers = tuple(int(part) for part in parts)
    return numbers * 3 if len(numbers) == 1 else numbers


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return tuple(float(word) for word in text.split(",")) if text else None
    except ValueError as error:
        raise S2WrapError(f"--gate {text!r} are no numbers; write three, such as 0.999,0.995,0.01") from error


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text else ()
