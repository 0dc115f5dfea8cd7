"""Do tile borders show? A photograph beside the PCA of its 1×, tiled, overlapped, detail and untiled maps. Look at it.

    pip install -c constraints.txt -e ".[demo]" && python demos/seamless.py

Red, green and blue are the first three principal components of all maps of a photograph together, every map counting
alike, with one colour range: the same feature has the same colour in every panel of a row. A basis of the untiled map
alone would not show what the tiles add to it, borders among them; a colour range for each panel would hide a shift.
The ticks on the left of and below a panel are where its tiles meet, half-way where they overlap.
"""

from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
import typer
from einops import rearrange
from matplotlib.axes import Axes
from rich.progress import track
from skimage import data
from torch import Tensor

import s2wrap
from s2wrap.features import Features
from s2wrap.files import whole_file

PHOTOS = {
    "astronaut": data.astronaut,
    "cat": data.chelsea,
    "coffee": data.coffee,
    "rocket": data.rocket,
    "retina": data.retina,
}
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
    photos: Annotated[int, typer.Option(min=1, max=len(PHOTOS), help="How many photographs.")] = len(PHOTOS),
) -> None:
    """Write the picture."""
    backbone = s2wrap.load("sample:dinov2_s14").backbone
    models = [s2wrap.wrap(backbone, scales, **options) for scales, options in MODES.values()]
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
    for row, photo in zip(axes, track(list(PHOTOS.values())[:photos], description="looking"), strict=True):
        pixels = _square(photo())
        images = rearrange(torch.from_numpy(pixels), "h w c -> 1 c h w")
        with torch.inference_mode():
            looks = [model(images) for model in models]
        row[0].imshow(pixels)
        pictures = pca_pictures([look.spatial for look in looks])
        for axis, look, picture in zip(row[1:], looks, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            mark_borders(axis, look)
        for axis, title in zip(row, ["photograph\n", *map(_title, MODES, looks)], strict=True):
            axis.tick_params(labelbottom=False, labelleft=False)
            axis.spines[:].set_visible(False)
            if axis in axes[0]:
                axis.set_title(title, fontsize=10)
        row[0].set(xticks=[], yticks=[])
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=80)
    print(f"wrote {output}")


def pca_pictures(maps: list[Tensor]) -> list[np.ndarray]:
    """The principal components that maps (1, c, h, w) share, as RGB pictures (h, w, 3) in 0…1 of one colour range."""
    finest = max(level.shape[-1] for level in maps)
    enlarged = [F.interpolate(level.float(), size=finest) for level in maps]  # so many tokens: every map counts alike
    tokens = torch.cat([rearrange(level, "1 c h w -> (h w) c") for level in enlarged])
    mean = tokens.mean(dim=0)
    directions = torch.linalg.svd(tokens - mean, full_matrices=False)[2][:3]
    # the sign of a component is arbitrary: let its largest weight be positive
    directions = directions * directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    values = (tokens - mean) @ directions.T
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    pictures = []
    for level in maps:
        parts = (rearrange(level.float(), "1 c h w -> h w c") - mean) @ directions.T
        pictures.append(((parts - low) / (high - low)).clamp(0, 1).numpy())
    return pictures


def mark_borders(axis: Axes, look: Features) -> None:
    """Ticks where the tiles of the largest scale meet."""
    assert look.plan is not None  # no traced model
    scale = look.plan.scales[-1]
    rows, cols = look.spatial.shape[-2:]
    axis.set_yticks([end / scale.rows.content * rows - 0.5 for _, end in scale.rows.owned[:-1]])
    axis.set_xticks([end / scale.cols.content * cols - 0.5 for _, end in scale.cols.owned[:-1]])
    axis.tick_params(length=6, width=1.5)


def _title(name: str, look: Features) -> str:
    """The name of a mode, what its map is like and what it costs."""
    assert look.plan is not None  # no traced model
    rows, cols = look.spatial.shape[-2:]
    height, width = look.plan.scales[-1].tile_hw
    passes = look.plan.num_tiles
    many = "1 pass" if passes == 1 else f"{passes} passes"
    return f"{name}\n{rows}×{cols} tokens, {many}\nof {height}×{width} pixels"


def _square(pixels: np.ndarray) -> np.ndarray:
    """The middle of a photograph, cut to a square."""
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


if __name__ == "__main__":
    typer.run(main)
