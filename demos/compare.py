"""Compare larger models, larger inputs, smaller patches and several scales, on a textile and on photographs.

    pip install -c constraints.txt -e ".[demo]" && python demos/compare.py

Comparisons of `s2wrap compare`, each printed as a table with its verdict and written as one page:

- `textile.html`: pictures of a woven textile (Megahed et al., arXiv 2501.12596; package conformal-clip-data;
  simulated, 250×250 pixels), without a defect, with a torn spot of a few pixels, or woven differently all over.
  EfficientNet-Lite0, 1 and 2 are a family from small to large with ImageNet weights; DINOv2 ViT-S/14 is a transformer.
  A picture's vector is the mean and the maximum over the tokens of each scale, at the scale's own grid
  (`fuse="pyramid"`): the mean detects global differences, the maximum local ones.
- `mosaics.html`: linear segmentation of mosaics of four textures of scikit-image, trained on the upper halves of the
  textures and tested on the lower ones.
- `photographs_1.html`, `photographs_2.html`: no labels. How much of the features of a larger EfficientNet a linear map
  recovers from those of smaller ones at one or several scales (section 4 of the paper), on squares cut from the
  photographs that come with scikit-image: trained on the left of each, tested on the right.

Features are cached in the user's cache folder, so that a second run is quick.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from command import start
from defects import KINDS, check_installed, spread, textiles
from photos import FILES, PIECES, squares
from PIL import Image
from rich.console import Console
from skimage import data

from s2wrap.compare import compare, write_report
from s2wrap.compare.table import print_table

LITES = [f"sample:efficientnet_lite{size}" for size in range(3)]
TEXTILE = [
    *(f"{lite}@{scales}" for scales in ("1", "1,2") for lite in LITES),
    f"{LITES[0]}@1,2,3",
    f"{LITES[0]}@1,2:tiled",
    f"{LITES[0]}@2:whole",
    *(f"sample:dinov2_s14{way}" for way in ("@1", "@1,2", "@1,2,3", "@2:whole", ":patch=7@1")),
]
SMALLER = [f"{lite}@{scales}" for lite in LITES[:2] for scales in ("1", "1,2")] + [f"{LITES[2]}@1"]
MOSAICS = [f"{LITES[0]}{way}" for way in ("@1", "@1,2", "@2:whole")]
MOSAICS += [f"sample:dinov2_s14{way}" for way in ("@1", "@1,2", "@2:whole")]
TEXTURES = ("brick", "grass", "gravel", "moon")
COUNTS, SIDE, REGIONS = {"train": 40, "val": 24}, 224, 6
"""Number of training and test mosaics, their side in pixels, and the regions of each."""
LARGER = "sample:dinov2_s14@1"
"""A model larger than the largest EfficientNet, though of another kind."""


def main(
    folder: Annotated[Path, typer.Option(help="Where the pages go.")] = Path(),
    pictures: Annotated[int, typer.Option(min=4, max=500, help="Textile pictures of each kind.")] = 60,
    seconds: Annotated[float, typer.Option(help="Time each model for so long; 0 for not at all.")] = 1.0,
    cache: Annotated[Path | None, typer.Option(help="Where features are kept.")] = None,
) -> None:
    """Print the comparisons and write their pages."""
    check_installed()
    common: dict[str, Any] = {"console": Console(stderr=True), "cache": True if cache is None else cache}
    with tempfile.TemporaryDirectory() as scratch:
        data = write_textiles(Path(scratch) / "textile", pictures)
        options = {"fuse": "pyramid", "pool": "mean,max", "backends": ("eager",) if seconds else (), "seconds": seconds}
        comparison = compare(TEXTILE, data=data, **options, **common)
        print_table(comparison, Console())
        write_report(comparison, folder / "textile.html")
        write_report(comparison, folder / "compare.png")
        data = write_mosaics(Path(scratch) / "mosaics")
        comparison = compare(MOSAICS, data=data, backends=(), **common)
        print_table(comparison, Console())
        write_report(comparison, folder / "mosaics.html")
        data = write_squares(Path(scratch) / "photographs")
        for number, target in enumerate([f"{LITES[1]}@1", f"{LITES[2]}@1"]):
            comparison = compare([*SMALLER, LARGER], data=data, target=target, backends=(), **common)
            print_table(comparison, Console())
            write_report(comparison, folder / f"photographs_{number + 1}.html")


def write_textiles(folder: Path, count: int) -> Path:
    """Copy `count` pictures of each kind into a sub-folder a kind, and return the folder."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for path in spread(textiles(kind), count):
            (folder / kind / path.name).write_bytes(path.read_bytes())
    return folder


def write_mosaics(folder: Path) -> Path:
    """Write mosaics of Voronoi cells, each filled with a texture, and their masks into train/ and val/."""
    rng = np.random.default_rng(0)
    textures = np.stack([getattr(data, name)() for name in TEXTURES])
    half = textures.shape[1] // 2
    for part, count in COUNTS.items():
        for name in ("images", "masks"):
            (folder / part / name).mkdir(parents=True)
        rows = textures[:, :half] if part == "train" else textures[:, half:]
        for number in range(count):
            centres, kinds = rng.uniform(0, SIDE, (REGIONS, 2)), rng.integers(len(TEXTURES), size=REGIONS)
            positions = np.stack(np.meshgrid(*[np.arange(SIDE)] * 2, indexing="ij"), axis=-1)[:, :, None]
            mask = kinds[np.square(positions - centres).sum(axis=-1).argmin(axis=-1)].astype(np.uint8)
            top, left = (int(rng.integers(length - SIDE + 1)) for length in rows.shape[1:])
            pixels = np.choose(mask, rows[:, top : top + SIDE, left : left + SIDE])
            Image.fromarray(pixels).save(folder / part / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / part / "masks" / f"{number}.png")
    return folder


def write_squares(folder: Path) -> Path:
    """Write squares of each photograph that do not overlap, those on the left into train/, on the right into val/."""
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
    for file in FILES:
        for row, column, columns, piece in squares(file):
            part = "train" if column < columns - columns // PIECES else "val"
            piece.save(folder / part / f"{Path(file).stem}_{row}_{column}.png")
    return folder


if __name__ == "__main__":
    start(main)
