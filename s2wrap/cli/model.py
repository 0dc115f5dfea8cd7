"""The options that name a model: the same words in every command."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from s2wrap.errors import S2WrapError

SPEC_HELP = "FAMILY:NAME@SCALES, such as sample:dinov2_s14@1,2,3 or timm:resnet50.a1_in1k@1,448px."

FILE_ENDINGS = (".onnx", ".plan", ".engine", ".rtx")
"""Of exported files, which some commands take in a model's place."""

ImageSize = Annotated[int | None, typer.Option(help="Build the model for this input size in pixels.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="A .safetensors or torch file with the weights, instead of a download.")
]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Do not load trained weights.")]
Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps.")]
Fit = Annotated[str | None, typer.Option(help="How images meet the scales: stretch (default), aspect or pad.")]
Whole = Annotated[
    bool | None,
    typer.Option("--whole/--tiled", help="Scales in one pass each, or in tiles (default: convolutional ones whole)."),
]
Overlap = Annotated[int | None, typer.Option(help="Tokens that neighbouring tiles share (default: 0).")]
Blend = Annotated[
    str | None,
    typer.Option(help="What becomes of them: smooth (default), trim, constant, triangular or gaussian."),
]
Norm = Annotated[str | None, typer.Option(help="The scales on one footing: none (default), l2, layer or std.")]
TargetGrid = Annotated[
    str | None, typer.Option(help="Rows and columns of the result: coarsest, finest, the index of a scale, or 48x64.")
]
Fuse = Annotated[
    str | None,
    typer.Option(help="How scales are fused: concat (default), mean, sum, max, weighted, detail or pyramid."),
]
Weights = Annotated[str | None, typer.Option(help="For --fuse weighted: one factor a scale, such as 0.5,0.3,0.2.")]
Prefix = Annotated[
    str | None,
    typer.Option(help="Prefix tokens: area (averaged; default), base (of the smallest scale) or drop."),
]
Image = Annotated[str | None, typer.Option(help="Height and width of the images in pixels, as 480x640.")]
TileBatch = Annotated[int | None, typer.Option(help="Most tiles in one backbone call (default: 4 on a CPU, else 32).")]


def given(**named: Any) -> dict[str, Any]:
    """The options that were given; the others are left to the defaults of `MultiScale`."""
    return {name: value for name, value in named.items() if value is not None}


def target_grid(text: str | None) -> Any:
    """A target grid as `MultiScale` takes it, from its text; what cannot be read is left for its error."""
    rows, by, cols = (text or "").partition("x")
    if by and rows.isdecimal() and cols.isdecimal():
        return int(rows), int(cols)
    return int(text) if text is not None and text.removeprefix("-").isdecimal() else text


def weights(text: str | None) -> tuple[float, ...] | None:
    """The factors of `--fuse weighted`, from their text."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise S2WrapError(f"--weights {text!r} are no numbers; write one a scale, such as 0.5,0.3,0.2") from error


def image_hw(text: str) -> tuple[int, int]:
    """Height and width from their text."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise S2WrapError(f"--image {text!r} is no size; write height and width as 480x640")
    return int(height), int(width)


def device(name: str) -> torch.device:
    """A device that is there."""
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise S2WrapError(f"device {name!r} is unknown; try cpu, cuda, cuda:1 or mps")
    try:
        place = torch.device(name)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise S2WrapError(f"device {name!r} cannot be used: {str(error).partition(chr(10))[0]}; try cpu") from error
    return place
