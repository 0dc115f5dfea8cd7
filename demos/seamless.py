"""Draw photographs beside the PCA of their 1×, tiled, overlapped, detail and untiled maps, to see if tile borders show.

    pip install -c constraints.txt -e ".[demo]" && python demos/seamless.py

Red, green and blue are the first three principal components of all maps of a photograph together, with equal weights
and one colour range: the same feature has the same colour in every panel of a row. A basis of the untiled map alone
would not show what tiles add to it, such as borders; a colour range for each panel would hide a shift. The ticks on the
left of and below a panel show where its tiles meet, half-way where they overlap.
"""

from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from einops import rearrange
from matplotlib.axes import Axes
from photos import NAMES, photo
from rich.progress import track

import s2wrap
from s2wrap.components import principal_components
from s2wrap.files import whole_file
from s2wrap.plan import Plan, ScalePlan

MODES = {
    "1×": ((1,), {}),
    "3× tiles (the paper)": ((3,), {}),
    "3× overlap 5": ((3,), {"overlap": 5}),
    "detail 1, 2, 3": ((1, 2, 3), {"fuse": "detail"}),
    "detail 1, 3, overlap 5": ((1, 3), {"fuse": "detail", "overlap": 5}),
    "untiled": ((3,), {"whole": True}),
}


def main(
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("seamless.png"),
    photos: Annotated[int, typer.Option(min=1, max=len(NAMES), help="How many photographs.")] = len(NAMES),
) -> None:
    """Write the picture."""
    backbone = s2wrap.load("sample:dinov2_s14").backbone
    models = [s2wrap.wrap(backbone, scales, **options) for scales, options in MODES.values()]
    plans = [model.plan(backbone.image_hw) for model in models]
    figure, axes = plt.subplots(
        photos,
        1 + len(models),
        figsize=(14.4, 1.98 * photos + 1),
        layout="constrained",
        squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.04},
    )
    figure.suptitle(
        "Do tile borders show? First three principal components of the features of one frozen DINOv2 ViT-S/14. "
        "In a row, like colours are like features; ticks: where 3× tiles meet.",
        fontsize=12,
    )
    for row, name in zip(axes, track(list(NAMES)[:photos], description="encoding"), strict=True):
        pixels = photo(name)
        images = rearrange(torch.from_numpy(pixels), "h w c -> 1 c h w")
        with torch.inference_mode():
            colours = principal_components([model(images).spatial for model in models])
        pictures = [each[0] for each in colours]
        row[0].imshow(pixels)
        for axis, plan, picture in zip(row[1:], plans, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            mark_borders(axis, plan.scales[-1], len(picture))
        for axis, title in zip(row, ["photograph\n", *map(_title, MODES, plans, pictures)], strict=True):
            axis.tick_params(labelbottom=False, labelleft=False)
            axis.spines[:].set_visible(False)
            if axis in axes[0]:
                axis.set_title(title, fontsize=10)
        row[0].set(xticks=[], yticks=[])
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=80)
    print(f"wrote {output}")


def mark_borders(axis: Axes, scale: ScalePlan, tokens: int) -> None:
    """Draw ticks where the tiles of a scale meet, on a picture with a number of tokens a side."""
    axis.set_yticks([end / scale.rows.content * tokens - 0.5 for _, end in scale.rows.owned[:-1]])
    axis.set_xticks([end / scale.cols.content * tokens - 0.5 for _, end in scale.cols.owned[:-1]])
    axis.tick_params(length=6, width=1.5)


def _title(name: str, plan: Plan, picture: np.ndarray) -> str:
    """Return a panel's title: the mode, its grid and its backbone passes."""
    rows, cols = picture.shape[:2]
    height, width = plan.scales[-1].tile_hw
    passes = "1 pass" if plan.num_tiles == 1 else f"{plan.num_tiles} passes"
    return f"{name}\n{rows}×{cols} tokens, {passes}\nof {height}×{width} pixels"


if __name__ == "__main__":
    typer.run(main)
