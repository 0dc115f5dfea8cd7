"""Draw photographs beside the PCA of their features at 1×, 2×, 3× and fused, as one picture.

    pip install -c constraints.txt -e ".[demo]" && python demos/first_look.py

The first three principal components of the features are shown as red, green and blue, common to the scales of one
photograph: parts of the picture with similar features have similar colours. `s2wrap show` does it for any photograph.
"""

from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import typer
from einops import rearrange
from photos import photo
from rich.progress import track

import s2wrap
from s2wrap.components import principal_components
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
            of_scales, of_fused = (principal_components(each(images).maps) for each in (pyramid, fused))
            pictures = [pixels, *(colours[0] for colours in (*of_scales, *of_fused))]
        for axis, title, picture in zip(row, names, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            axis.set_title(title, fontsize=11)
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=90)
    print(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
