"""Time the wrapper against the backbone alone, and engines against PyTorch, for small, base and large ViTs on a GPU.

Three calls are timed with every backend (eager in half precision and channels_last, torch.compile, CUDA graph,
TensorRT): the wrapped model on a batch, the backbone alone on as many tiles, and the wrapped model on one image. All
take turns in rounds by the rules of `s2wrap bench`; ratios are medians over the rounds. Reasons why calls
cannot run are printed, and whether TensorRT-RTX runs on this GPU. Weights are random: they do not change the time.

    python benchmarks/gpu.py [--batch 8] [--seconds 3] [--precision fp16]
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from s2wrap import MultiScale, load
from s2wrap.errors import S2WrapError, first_line
from s2wrap.timing import Timing, describe_device, time_calls, torch_call

MODELS = "vit_small_patch16_224,vit_base_patch16_224,vit_large_patch16_224"
SCALES = "1,2 1,2,3"
ENGINES = {"tensorrt": False, "tensorrt + graph": True}
WAYS = ("eager", "compile", "cuda-graph", *ENGINES)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Call = Callable[[], object]


def main(
    models: Annotated[str, typer.Option(help="timm's names, with commas.")] = MODELS,
    scales: Annotated[str, typer.Option(help="Scales, with spaces.")] = SCALES,
    ways: Annotated[str, typer.Option(help="How to run, with commas; max-autotune too.")] = ",".join(WAYS),
    batch: Annotated[int, typer.Option(min=1, help="Images.")] = 8,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp16",
    seconds: Annotated[float, typer.Option(help="Time each call for so long.")] = 3.0,
) -> None:
    """Print a table for every model and scales."""
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was timed.")
        return
    console, device = Console(width=130), torch.device("cuda")
    console.print(", ".join(f"{name} {value}" for name, value in describe_device(device).items()), highlight=False)
    for name in models.split(","):
        for scale_list in scales.split():
            torch.compiler.reset()  # it keeps only a few variants of one function
            model = load(f"timm:{name}@{scale_list}", pretrained=False)
            with tempfile.TemporaryDirectory() as folder:
                measure(model, ways.split(","), batch, precision, seconds, device, Path(folder), console)
    console.print(f"TensorRT-RTX on this GPU: {try_rtx()}", markup=False, highlight=False)


def measure(
    model: MultiScale,
    ways: list[str],
    batch: int,
    precision: str,
    seconds: float,
    device: torch.device,
    folder: Path,
    console: Console,
) -> None:
    """Time one model with every backend, and print its table."""
    image_hw = model.scales[-1].box_hw
    count = model.plan(image_hw).num_tiles
    options = replace(model.options, tile_batch=batch * count)  # one call, as for the backbone alone
    model = MultiScale(model.backbone, options).to(device, DTYPES[precision]).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, *image_hw, device=device)
    tiles = torch.randn(batch * count, 3, *model.backbone.image_hw, device=device)
    calls: dict[str, Call] = {}
    for way in ways:
        make = partial(engine_calls, folder, precision) if way in ENGINES else partial(torch_calls, DTYPES[precision])
        make_once = cache(partial(make, way, model, images, tiles))
        for number, kind in enumerate(("wrapped", "alone", "one")):
            calls[f"{way} {kind}"] = partial(_run, make_once, number)
    with console.status(f"timing {model.backbone.name}"), torch.inference_mode():
        timings = {timing.name: timing for timing in time_calls(calls, seconds=seconds, device=device)}
    height, width = image_hw
    title = f"{model.backbone.name}, {precision}, scales {','.join(map(str, model.scales))}: {batch} images of "
    table = Table(title=f"{title}{height}×{width} pixels, {batch * count} tiles, ≥ {seconds:g} s a call")
    for column in (
        "images/s",
        "ms",
        "tiles/s",
        "backbone alone, ms",
        "÷ backbone's tiles/s",
        "time ÷ eager",
        "1 image, ms",
    ):
        table.columns.append(Column(column, justify="right"))
    table.columns.insert(0, Column("way", overflow="fold"))
    for way in ways:
        table.add_row(*_cells(way, timings, batch, batch * count))
    console.print(table)
    for timing in timings.values():
        for warning in [timing.reason] if timing.reason else timing.warnings():
            console.print(f"{timing.name}: {warning}", markup=False, highlight=False)


def _run(make_once: Callable[[], tuple[Call, Call, Call]], number: int) -> object:
    """Run one of a backend's three calls, which are all made when the first is run."""
    return make_once()[number]()


def torch_calls(
    dtype: torch.dtype, way: str, model: MultiScale, images: Tensor, tiles: Tensor
) -> tuple[Call, Call, Call]:
    """Return calls of the wrapped model on a batch, of the backbone on the tiles, and of the model on one image."""
    images = images.to(memory_format=torch.channels_last)
    tiles = tiles.to(dtype, memory_format=torch.channels_last)
    return (
        torch_call(way, model, images),
        torch_call(way, model.backbone, tiles),
        torch_call(way, model, images[:1].contiguous(memory_format=torch.channels_last)),
    )


def engine_calls(
    folder: Path, precision: str, way: str, model: MultiScale, images: Tensor, tiles: Tensor
) -> tuple[Call, Call, Call]:
    """Return the calls of `torch_calls` for TensorRT engines: built once, run with or without CUDA graphs."""
    from s2wrap.export import export
    from s2wrap.export import load as load_engine

    hw, batch, count = (images.shape[2], images.shape[3]), len(images), len(tiles)
    whole, alone = folder / "model.plan", folder / "tiles.plan"
    settings: dict[str, Any] = {"precision": precision, "verify": False}
    if not alone.exists():
        with torch.inference_mode(False), torch.no_grad():  # no graph is traced in inference mode
            export(model, whole, batch=(1, batch, batch), image_hw=hw, **settings)
            export(model, alone, batch=(1, count, count), tiles=True, **settings)
    engine, backbone = (load_engine(file, device=images.device, cuda_graph=ENGINES[way]) for file in (whole, alone))
    one = images[:1].clone()
    return lambda: engine(images), lambda: backbone.session.run({"tiles": tiles}), lambda: engine(one)


def _cells(way: str, timings: dict[str, Timing], batch: int, count: int) -> list[str]:
    """Return the cells of a row, empty where a call could not run."""
    wrapped, alone, one = (timings[f"{way} {kind}"] for kind in ("wrapped", "alone", "one"))
    if any(timing.reason for timing in (wrapped, alone, one)):
        return [way, "see below"]
    figures, eager = wrapped.figures(batch), timings.get("eager wrapped")
    return [
        way,
        f"{figures['images_per_second']:.1f}",
        f"{figures['median_ms']:.2f}",
        f"{figures['images_per_second'] / batch * count:.0f}",
        f"{alone.figures(1)['median_ms']:.2f}",
        f"{alone.ratio(wrapped):.3f}",
        "–" if eager is None or eager.reason is not None else f"{wrapped.ratio(eager):.3f}",
        f"{one.figures(1)['median_ms']:.2f}",
    ]


def try_rtx() -> str:
    """Return whether TensorRT-RTX builds and runs a small model on this GPU, in words, or its error's message."""
    from s2wrap.export import export
    from s2wrap.export import load as load_engine

    model, images = load("timm:test_vit@1,2", pretrained=False), torch.randn(1, 3, 160, 160)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test_vit.rtx"
        try:
            export(model, file, verify=False)
            difference = load_engine(file)(images.cuda()).spatial.float().cpu() - model(images).spatial
        except Exception as error:  # whatever it raises is reported
            return str(error) if isinstance(error, S2WrapError) else first_line(error)
    return f"it runs; largest difference to PyTorch on the CPU: {difference.abs().max():.1e}"


if __name__ == "__main__":
    typer.run(main)
