"""A larger model, a larger input, smaller patches or several scales? On pictures of a textile, and on photographs.

    pip install -c constraints.txt -e ".[demo]" && python demos/compare.py

Comparisons as `s2wrap compare` makes them, each printed as a table with its verdict and written as one page:

- `textile.html`: pictures of a woven textile (Megahed et al., arXiv 2501.12596; package conformal-clip-data;
  simulated, 250×250 pixels), without a defect, with a torn spot of a few pixels, or woven differently all over.
  EfficientNet-Lite0, 1 and 2 are a family from small to large with ImageNet weights; DINOv2 ViT-S/14 is a transformer.
  A picture's vector is the mean and the maximum over the tokens of each scale, at the scale's own grid
  (`fuse="pyramid"`): the mean for what is everywhere, the maximum for what is in one place.
- `mosaics.html`: where each of four textures of scikit-image is in mosaics of them, by a linear segmentation; trained
  on the upper halves of the textures, tested on the lower ones.
- `photographs_1.html`, `photographs_2.html`: no labels. How much of the features of a larger EfficientNet a linear map
  recovers from those of smaller ones at one or several scales (section 4 of the paper), on squares cut from the
  photographs that come with scikit-image: fitted on the left of each, tested on the right.

Features are kept in the user's cache folder, so that a second run is quick.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from defects import KINDS, check_installed, spread, textiles
from photos import FILES, PIECES, squares
from PIL import Image
from rich.console import Console
from skimage import data

from s2wrap.compare import compare
from s2wrap.compare.table import print_table
from s2wrap.errors import S2WrapError

LITES = [f"sample:efficientnet_lite{size}" for size in range(3)]
TEXTILE = [
    *(f"{lite}@{scales}" for scales in ("1", "1,2") for lite in LITES),
    f"{LITES[0]}@1,2,3",
    f"{LITES[0]}@1,2:tiled",
    f"{LITES[0]}@2:whole",
    *(f"sample:dinov2_s14{way}" for way in ("@1", "@1,2", "@1,2,3", "@2:whole", ":patch=7@1")),
]
SEEN = [f"{lite}@{scales}" for lite in LITES[:2] for scales in ("1", "1,2")] + [f"{LITES[2]}@1"]
MOSAICS = [f"{LITES[0]}{way}" for way in ("@1", "@1,2", "@2:whole")]
MOSAICS += [f"sample:dinov2_s14{way}" for way in ("@1", "@1,2", "@2:whole")]
TEXTURES = ("brick", "grass", "gravel", "moon")
COUNTS, SIDE, SPOTS = {"train": 40, "val": 24}, 224, 6
"""Mosaics of each part, their side in pixels, and the pieces that each has."""
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
    console, kept = Console(stderr=True), True if cache is None else cache
    with tempfile.TemporaryDirectory() as place:
        lay_out_textiles(Path(place) / "textile", pictures)
        found = compare(
            TEXTILE,
            data=Path(place) / "textile",
            fuse="pyramid",
            pool="mean,max",
            backends=("eager",) if seconds else (),
            seconds=seconds,
            console=console,
            cache=kept,
        )
        print_table(found, Console())
        found.write(folder / "textile.html")
        found.write(folder / "compare.png")
        lay_mosaics(Path(place) / "mosaics")
        found = compare(MOSAICS, data=Path(place) / "mosaics", backends=(), console=console, cache=kept)
        print_table(found, Console())
        found.write(folder / "mosaics.html")
        cut_photographs(Path(place) / "photographs")
        for number, (target, reference) in enumerate([(f"{LITES[1]}@1", f"{LITES[2]}@1"), (f"{LITES[2]}@1", LARGER)]):
            found = compare(
                SEEN,
                data=Path(place) / "photographs",
                target=target,
                reference=reference,
                backends=(),
                console=console,
                cache=kept,
            )
            print_table(found, Console())
            found.write(folder / f"photographs_{number + 1}.html")


def lay_out_textiles(folder: Path, count: int) -> None:
    """So many pictures of each kind, as a folder a kind."""
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for path in spread(textiles(kind), count):
            (folder / kind / path.name).write_bytes(path.read_bytes())


def lay_mosaics(folder: Path) -> None:
    """Mosaics whose pieces are what is nearest to one of some spots, each filled with a texture; in train/ and val/."""
    rng = np.random.default_rng(0)
    textures = np.stack([getattr(data, name)() for name in TEXTURES])
    half = textures.shape[1] // 2
    for part, count in COUNTS.items():
        for name in ("images", "masks"):
            (folder / part / name).mkdir(parents=True)
        rows = textures[:, :half] if part == "train" else textures[:, half:]
        for number in range(count):
            spots, kinds = rng.uniform(0, SIDE, (SPOTS, 2)), rng.integers(len(TEXTURES), size=SPOTS)
            places = np.stack(np.meshgrid(*[np.arange(SIDE)] * 2, indexing="ij"), axis=-1)[:, :, None]
            mask = kinds[np.square(places - spots).sum(axis=-1).argmin(axis=-1)].astype(np.uint8)
            top, left = (int(rng.integers(length - SIDE + 1)) for length in rows.shape[1:])
            pixels = np.choose(mask, rows[:, top : top + SIDE, left : left + SIDE])
            Image.fromarray(pixels).save(folder / part / "images" / f"{number}.png")
            Image.fromarray(mask).save(folder / part / "masks" / f"{number}.png")


def cut_photographs(folder: Path) -> None:
    """Each photograph in squares that do not overlap: those on the left in train/, those on the right in val/."""
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
    for file in FILES:
        for row, column, columns, piece in squares(file):
            part = "train" if column < columns - columns // PIECES else "val"
            piece.save(folder / part / f"{Path(file).stem}_{row}_{column}.png")


if __name__ == "__main__":
    try:
        typer.run(main)
    except S2WrapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
