"""Draw photographs beside the PCA of their features at 1×, 2×, 3× and fused, as one picture.

    pip install -c constraints.txt -e ".[demo]" && python demos/first_look.py

The first three principal components of the features of one map are shown as red, green and blue: parts of the picture
with similar features have similar colours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from einops import rearrange
from photos import photo
from rich.progress import track
from torch import Tensor

import s2wrap
from s2wrap.files import whole_file

PHOTOS = ("astronaut", "cat", "coffee")


def main(
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("first_look.png"),
    model: Annotated[str, typer.Option(help="FAMILY:NAME@SCALES.")] = "sample:dinov2_s14@1,2,3",
) -> None:
    """Write the picture."""
    fused = s2wrap.load(model)
    pyramid = s2wrap.wrap(fused.backbone, fused.options.scales, fuse="pyramid")
    names = [
        f"{scale}×: {rows}×{cols} tokens"
        for scale, (rows, cols) in zip(fused.options.scales, pyramid.grids_hw, strict=True)
    ]
    rows, cols = min(fused.grids_hw)
    names = ["photograph", *names, f"fused: {rows}×{cols} tokens"]
    figure, axes = plt.subplots(
        len(PHOTOS), len(names), figsize=(2.6 * len(names), 2.75 * len(PHOTOS)), layout="constrained", squeeze=False
    )
    figure.suptitle(
        f"{model}: one frozen backbone at several scales (principal components of its features)", fontsize=13
    )
    for row, name in zip(axes, track(PHOTOS, description="encoding"), strict=True):
        pixels = photo(name)
        images = rearrange(torch.from_numpy(pixels), "h w c -> 1 c h w")
        with torch.inference_mode():
            pictures = [pixels, *pca_pictures(pyramid(images).maps), *pca_pictures(fused(images).maps)]
        for axis, title, picture in zip(row, names, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            axis.set_title(title, fontsize=11)
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=90)
    print(f"wrote {output}")


def pca_pictures(maps: Sequence[Tensor]) -> list[np.ndarray]:
    """Return the first three common principal components of maps (1, c, h, w) as RGB pictures (h, w, 3) in 0…1."""
    tokens = [rearrange(spatial.float(), "1 c h w -> (h w) c") for spatial in maps]
    mean = torch.cat(tokens).mean(dim=0)
    weighted = [(each - mean) / len(each) ** 0.5 for each in tokens]  # every map has the same weight
    _, _, directions = torch.linalg.svd(torch.cat(weighted), full_matrices=False)
    directions = directions[:3]
    # the sign of a component is arbitrary: make its largest weight positive
    signs = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    pictures = []
    for each, spatial in zip(tokens, maps, strict=True):
        values = each @ (signs * directions).T
        low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
        colours = ((values - low) / (high - low)).clamp(0, 1)
        pictures.append(rearrange(colours, "(h w) c -> h w c", h=spatial.shape[-2]).numpy())
    return pictures


if __name__ == "__main__":
    typer.run(main)
