"""Write the features of one large GeoTIFF window by window, and draw their principal components over the whole of it.

    pip install -c constraints.txt -e ".[demo,images]" && python demos/scene.py

The scene, 4,096 × 6,144 pixels, is six photographs beside each other, as a tiled GeoTIFF whose pixels are half a metre.
Few windows are in memory at a time. In the middle of the picture windows lie side by side, and their
borders show; on the right they share half of their cells, and are blended there.
"""

from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import rasterio
import torch
import typer
import zarr
from PIL import Image
from rasterio.transform import from_origin
from skimage import data

import s2wrap
from s2wrap.components import principal_components
from s2wrap.extraction.scene import WindowOptions, extract_scene
from s2wrap.files import whole_file
from s2wrap.images.options import USUAL

PHOTOGRAPHS = (data.astronaut, data.coffee, data.chelsea, data.rocket, data.immunohistochemistry, data.retina)
SPEC = "sample:dinov2_s14@1"


def make_scene(path: Path, side: int) -> None:
    """A tiled GeoTIFF of the photographs in two rows of three, each a square of `side` pixels."""
    squares = []
    for photograph in PHOTOGRAPHS:
        picture = Image.fromarray(photograph())
        short = min(picture.size)
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        box = (left, top, left + short, top + short)
        squares.append(np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box)))
    pixels = np.concatenate([np.concatenate(squares[:3], axis=1), np.concatenate(squares[3:], axis=1)])
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=3,
        dtype="uint8",
        photometric="rgb",
        tiled=True,
        compress="deflate",
        crs="EPSG:32633",
        transform=from_origin(500_000, 4_600_000, 0.5, 0.5),
    ) as file:
        file.write(pixels.transpose(2, 0, 1))


def main(
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("scene.png"),
    side: Annotated[int, typer.Option(help="Pixels of a photograph's side.")] = 2048,
    folder: Annotated[Path, typer.Option(help="Where the scene and its maps are written.")] = Path("scene"),
) -> None:
    """Write the scene, two maps of it and the picture."""
    folder.mkdir(exist_ok=True)
    make_scene(folder / "scene.tif", side)
    model = s2wrap.load(SPEC)
    maps = []
    for overlap in (0, 8):
        store = folder / f"overlap_{overlap}.zarr"
        windows = WindowOptions(window=448, window_overlap=overlap)
        extract_scene(
            str(folder / "scene.tif"),
            store,
            load=lambda: model,
            spec=SPEC,
            options={},
            windows=windows,
            reading=USUAL,
            overwrite=True,
        )
        maps.append(torch.from_numpy(zarr.open_array(store / "spatial", mode="r")[:])[None])
    colours = principal_components(maps)
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.1), layout="constrained")
    with Image.open(folder / "scene.tif") as scene:
        scene.thumbnail((1200, 1200))
        axes[0].imshow(scene)
    axes[0].set_title(f"a GeoTIFF of {2 * side:,} × {3 * side:,} pixels")
    for axis, picture, title in zip(
        axes[1:], colours, ("windows side by side", "windows that share 8 of 16 cells"), strict=True
    ):
        axis.imshow(picture[0], interpolation="nearest")
        axis.set_title(f"{title}: {picture.shape[1]} × {picture.shape[2]} cells")
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(
        "Features of one large picture, window by window (DINOv2 ViT-S/14, --window 448): principal components"
    )
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=100, format="png")
    print(f"wrote {output}")


if __name__ == "__main__":
    typer.run(main)
