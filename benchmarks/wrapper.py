"""Measure the wrapper's time relative to the backbone's own, and to the original algorithm's.

Every round times four methods one after the other on the same images, so that a noisy machine disturbs all alike;
the ratios are medians over rounds of the ratio inside a round.

    python benchmarks/wrapper.py [--rounds 15] [--device cuda] [--batch 1]
"""

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from restated import original_forward
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from s2wrap import MultiScale, load
from s2wrap.compat import forward as compat_forward
from s2wrap.timing import wait_for

SPECS = (
    "sample:dinov2_s14@1,2",
    "sample:dinov2_s14@1,2,3",
    "timm:resnet50@1,2",
    "timm:resnet50@1,2,3",
    "sample:efficientnet_lite0@1,2",
    "sample:efficientnet_lite0@1,2,3",
)


def main(
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 15,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch: Annotated[int, typer.Option(help="Images.")] = 1,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels (default: largest scale).")
    ] = None,
) -> None:
    """Print the table."""
    side = f"{image_size} pixels" if image_size else "the largest scale"
    title = (
        f"{_device_name(device)}, torch {torch.__version__}, float32, batch {batch}, image side {side}, {rounds} rounds"
    )
    table = Table(title=title)
    for column in (
        "model",
        "tiles",
        "backbone alone",
        "s2wrap",
        "s2wrap ÷ backbone",
        "÷ original",
        "compat ÷ original",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for spec in track(SPECS, description="timing", console=Console(stderr=True)):
        # weights do not change the time; all in tiles, as the original
        model = load(spec, pretrained=not spec.startswith("timm"), whole=False).to(device)
        pixels = image_size or model.scales[-1].box_hw[0]
        images = torch.rand(batch, 3, pixels, pixels, device=device)
        table.add_row(spec, *_measure(model, images, rounds))
    Console(width=120).print(table)


@torch.inference_mode()
def _measure(model: MultiScale, images: Tensor, rounds: int) -> list[str]:
    backbone, plan = model.backbone, model.plan((images.shape[-2], images.shape[-1]))
    call: Any = backbone.call
    # the backbone alone runs on as many tiles, in batches of the same sizes
    tile_batch = model.tile_batch_for(len(images), images.device)
    counts = []
    for batch in images.split(tile_batch):
        step = tile_batch // len(batch)
        counts += [min(step, plan.num_tiles - first) * len(batch) for first in range(0, plan.num_tiles, step)]
    batches = [torch.rand(count, 3, *backbone.image_hw, device=images.device) for count in counts]
    original = {
        "scales": [scale.box_hw[0] / images.shape[-1] for scale in model.scales],
        "max_split_size": backbone.image_hw[0],
        "num_prefix_token": backbone.layout.num_prefix_tokens,
        "output_shape": backbone.layout.order,
    }
    methods: dict[str, Callable[[], object]] = {
        "alone": lambda: [backbone(tiles) for tiles in batches],
        "s2wrap": lambda: model(images),
        "original": lambda: original_forward(call, images, **original),
        "compat": lambda: compat_forward(call, images, **original),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 2):
        for name, run in methods.items():
            seconds = _seconds(run, images.device)
            if turn >= 2:  # the first two are warm-ups
                times[name].append(seconds)

    def ratio(name: str, other: str) -> str:
        pairs = zip(times[name], times[other], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.3f}"

    return [
        str(plan.num_tiles),
        f"{statistics.median(times['alone']) * 1e3:.1f} ms",
        f"{statistics.median(times['s2wrap']) * 1e3:.1f} ms",
        ratio("s2wrap", "alone"),
        ratio("s2wrap", "original"),
        ratio("compat", "original"),
    ]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def _device_name(device: str) -> str:
    return (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    typer.run(main)
