"""The options that name a model: the same words in every command."""

from pathlib import Path
from typing import Annotated

import typer

SPEC_HELP = "FAMILY:NAME@SCALES, such as sample:dinov2_s14@1,2,3 or timm:resnet50.a1_in1k@1,448px."

ImageSize = Annotated[int | None, typer.Option(help="Build the model for this input size in pixels.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="A .safetensors or torch file with the weights, instead of a download.")
]
Fuse = Annotated[str, typer.Option(help="How scales are fused: concat, mean, sum, max, weighted or pyramid.")]
Weights = Annotated[str | None, typer.Option(help="For --fuse weighted: one factor a scale, such as 0.5,0.3,0.2.")]
Prefix = Annotated[str, typer.Option(help="Prefix tokens: area (averaged), base (of the smallest scale) or drop.")]
TileBatch = Annotated[int | None, typer.Option(help="Most tiles in one backbone call (default: 4 on a CPU, else 32).")]
