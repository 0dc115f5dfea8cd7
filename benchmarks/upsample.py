"""Measure whether maps that an image guides follow the borders of its regions better than linear ones.

Made-up pictures (demos/scenes.py) of six regions, each of another texture, with exact masks: with two colours a region,
and with the same two greys for all, where colours say nothing of regions. In each picture a pixel gets the region whose
mean feature, over the cells that lie nine tenths within it, is nearest. IoU is averaged over a picture's regions, in a
band of 2 % of the side around borders, and everywhere; then over pictures, ± standard error; gains are paired. Regions
without such a cell are left out.

    python benchmarks/upsample.py [--spec sample:dinov2_s14] [--pictures 12] [--csv upsample.csv]
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
import typer
from einops import rearrange
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import s2wrap
from s2wrap.files import whole_file
from s2wrap.guided import guided_upsample
from s2wrap.upsample import upsample

sys.path.insert(0, str(Path(__file__).parent.parent / "demos"))
from scenes import TEXTURES, boundary_band, make_scene  # pyright: ignore[reportMissingImports] (found in demos/)

SIDE, BAND, FIRST = 448, 0.02, 200
"""Pixels of a side, the band as a share of it, and the first seed: the widths of `guided` were chosen on lower ones."""
MODELS = {"1×, 16×16 cells": {"scales": (1,)}, "detail 1, 2, 32×32 cells": {"scales": (1, 2), "fuse": "detail"}}
WAYS: dict[str, Callable[[Tensor, Tensor, tuple[int, int]], Tensor]] = {
    "nearest": lambda image, features, size: F.interpolate(features, size=size, mode="nearest-exact"),
    "linear": lambda image, features, size: upsample(features, size),
    "guided": guided_upsample,
}


def main(
    spec: Annotated[str, typer.Option(help="A backbone, without scales.")] = "sample:dinov2_s14",
    pictures: Annotated[int, typer.Option(min=2, help="How many of each kind.")] = 12,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV too.")] = None,
) -> None:
    """Print the table."""
    columns = ["regions differ in", "map", "way", "IoU at borders", "gain over linear", "IoU everywhere", "gain"]
    rows = []
    for kind, coloured in (("texture and colour", True), ("texture alone", False)):
        scenes = [make_scene(seed, SIDE, coloured=coloured) for seed in range(FIRST, FIRST + pictures)]
        for name, options in MODELS.items():
            model = s2wrap.load(spec, **options)
            scores = np.array([evaluate(model, *scene) for scene in track(scenes, name, console=Console(stderr=True))])
            gains = scores - scores[:, [list(WAYS).index("linear")]]
            for k, way in enumerate(WAYS):
                cells = [_mean(values[:, k, where]) for where in (0, 1) for values in (scores, gains)]
                rows.append([kind, name, way, *cells])
    title = f"{spec}, {pictures} pictures of {SIDE}×{SIDE} pixels (seeds from {FIRST}), mean ± standard error"
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column in columns[3:] else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)
    if csv_file is not None:
        with whole_file(csv_file) as draft, draft.open("w", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])


def evaluate(model: s2wrap.MultiScale, pixels: np.ndarray, mask: np.ndarray) -> list[list[float]]:
    """Return, for each of `WAYS`, the IoU of a picture's regions at their borders, and everywhere."""
    image = rearrange(torch.from_numpy(pixels), "h w c -> 1 c h w")
    with torch.inference_mode():
        spatial = model(image).spatial
        scores, known = region_scores(spatial, mask)
        band = boundary_band(mask, BAND * len(mask))
        found = [way(image, scores, (SIDE, SIDE))[0].argmax(dim=0).numpy() for way in WAYS.values()]
    counted = np.isin(mask, known)
    return [[iou(labels, mask, counted & where) for where in (band, np.ones_like(band))] for labels in found]


def region_scores(spatial: Tensor, mask: np.ndarray) -> tuple[Tensor, list[int]]:
    """Return a map (1, regions, h, w) whose largest channel is the nearest region, and the regions that have cells.

    f·m - m²/2 for the mean m of a region: it is linear in the features f, so that up-sampling it is up-sampling them.
    """
    shares = F.one_hot(torch.from_numpy(mask).long(), len(TEXTURES)).permute(2, 0, 1)[None].float()
    shares = F.adaptive_avg_pool2d(shares, (spatial.shape[2], spatial.shape[3]))[0]
    known = [k for k in range(len(TEXTURES)) if bool((shares[k] > 0.9).any())]
    scores = torch.full((1, len(TEXTURES), *spatial.shape[2:]), -1e9)
    for k in known:
        mean = spatial[0][:, shares[k] > 0.9].mean(dim=1)
        scores[0, k] = torch.einsum("c,chw->hw", mean, spatial[0]) - mean.square().sum() / 2
    return scores, known


def iou(found: np.ndarray, mask: np.ndarray, where: np.ndarray) -> float:
    """Return the intersection over union of two label maps at some pixels, averaged over the labels of the second."""
    pairs = [((found == k) & where, (mask == k) & where) for k in np.unique(mask[where])]
    return float(np.mean([(ours & theirs).sum() / (ours | theirs).sum() for ours, theirs in pairs]))


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    typer.run(main)
