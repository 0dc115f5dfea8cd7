"""Measure the peak memory of a forward pass beyond weights and input: flat over scales here, growing in the original.

Counts PyTorch's allocations on the CPU (its profiler's memory events), with one tile a backbone call. The image has the
backbone's own size, as in the paper. The resized image of the largest scale and the result, which have to grow, have
columns of their own, and so has the rest.

    python benchmarks/memory.py [--spec sample:dinov2_s14] [--largest 8]
"""

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from restated import original_forward
from rich.console import Console
from rich.progress import track
from rich.table import Table

from s2wrap import load, wrap
from s2wrap.backbones import load_backbone, parse_spec
from s2wrap.compare.memory import peak_bytes

MIB = 2**20


def main(
    spec: Annotated[str, typer.Option(help="A backbone, without scales.")] = "sample:dinov2_s14",
    largest: Annotated[int, typer.Option(help="Scales go from 1,2 to 1…LARGEST.")] = 8,
) -> None:
    """Print the table."""
    backbone = load_backbone(parse_spec(spec))
    load(spec)  # warm up caches
    table = Table(title=f"{spec}, CPU, float32, one image, tile_batch=1: peak MiB beyond weights and input")
    for column in ("scales", "tiles", "s2wrap", "resized image", "result", "the rest", "original", "original, split"):
        table.add_column(column, justify="right")
    side, layout = backbone.image_hw[0], backbone.layout
    for scale in track(range(2, largest + 1), description="measuring", console=Console(stderr=True)):
        scales = list(range(1, scale + 1))
        model = wrap(backbone, scales, tile_batch=1)
        images = torch.rand(1, 3, side, side)
        arguments = {"num_prefix_token": layout.num_prefix_tokens, "output_shape": layout.order, "max_split_size": side}
        sizes = [side * k for k in scales]

        def original(split: bool, images=images, sizes=sizes, arguments=arguments) -> object:
            return original_forward(backbone.call, images, img_sizes=sizes, split_forward=split, **arguments)

        result = model.num_features * layout.grid_hw[0] * layout.grid_hw[1] * 4 / MIB
        whole = peak_mib(lambda model=model, images=images: model(images))
        resized = 3 * sizes[-1] ** 2 * 4 / MIB
        table.add_row(
            f"1…{scale}",
            str(model.plan((side, side)).num_tiles),
            *(f"{value:.1f}" for value in (whole, resized, result, whole - resized - result)),
            f"{peak_mib(lambda: original(False)):.1f}",
            f"{peak_mib(lambda: original(True)):.1f}",
        )
    Console(width=120).print(table)


@torch.inference_mode()
def peak_mib(run: Callable[[], object]) -> float:
    """Return the peak MiB that a call allocates on the CPU."""
    return (peak_bytes(run, torch.device("cpu")) or 0) / MIB


if __name__ == "__main__":
    typer.run(main)
