"""A larger model, a larger input, smaller patches or several scales? On pictures of a textile, and on photographs.

    pip install -c constraints.txt -e ".[demo]" && python demos/compare.py

Two comparisons, as `s2wrap compare` makes them, each printed as a table with its verdict and written as one page:

- `textile.html`: pictures of a woven textile (Megahed et al., arXiv 2501.12596; package conformal-clip-data;
  simulated, 250×250 pixels), without a defect, with a torn spot of a few pixels, or woven differently all over.
  EfficientNet-Lite0, 1 and 2 are a family from small to large with ImageNet weights; DINOv2 ViT-S/14 is a transformer.
  A picture's vector is the mean and the maximum over the tokens of each scale, at the scale's own grid
  (`fuse="pyramid"`): the mean for what is everywhere, the maximum for what is in one place.
- `photographs_1.html`, `photographs_2.html`: no labels. How much of the features of a larger EfficientNet a linear map
  recovers from those of smaller ones at one or several scales (section 4 of the paper), on cuttings of photographs
  that come with scikit-image; the maps are fitted on some photographs and tested on others.

Features are kept in the user's cache folder, so that a second run is quick.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from defects import KINDS, check_installed, spread, textiles
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
SEEN = [f"{LITES[0]}@1", f"{LITES[0]}@1,2", f"{LITES[0]}@1,2,3", f"{LITES[1]}@1", f"{LITES[1]}@1,2", f"{LITES[2]}@1"]
TRAINING = ("astronaut", "coffee", "rocket", "motorcycle_left", "brick", "gravel", "coins", "moon", "ihc", "page")
HELD_OUT = ("chelsea", "retina", "grass", "camera")
SUFFIXES = (".png", ".jpg")
CUTTINGS = 12
"""Of each photograph."""


def main(
    folder: Annotated[Path, typer.Option(help="Where the pages go.")] = Path(),
    pictures: Annotated[int, typer.Option(min=4, max=500, help="Textile pictures of each kind.")] = 60,
    seconds: Annotated[float, typer.Option(help="Time each model for so long; 0 for not at all.")] = 1.0,
    cache: Annotated[Path | None, typer.Option(help="Where features are kept.")] = None,
) -> None:
    """Print both comparisons and write their pages."""
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
        cut_photographs(Path(place) / "photographs")
        for number, (target, reference) in enumerate([(f"{LITES[1]}@1", f"{LITES[2]}@1"), (f"{LITES[2]}@1", None)]):
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


def cut_photographs(folder: Path) -> None:
    """Squares of other sizes and places of each photograph: in train/ and val/, no photograph in both."""
    rng, here = np.random.default_rng(0), Path(data.__file__).parent
    for part, names in (("train", TRAINING), ("val", HELD_OUT)):
        (folder / part).mkdir(parents=True)
        for name in names:
            path = next(here / (name + suffix) for suffix in SUFFIXES if (here / (name + suffix)).is_file())
            photograph = Image.open(path).convert("RGB")
            for number in range(CUTTINGS):
                side = round(min(photograph.size) * rng.uniform(0.5, 1))
                left, top = (int(rng.integers(length - side + 1)) for length in photograph.size)
                cutting = photograph.crop((left, top, left + side, top + side))
                cutting.save(folder / part / f"{name}_{number}.png")


if __name__ == "__main__":
    try:
        typer.run(main)
    except S2WrapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
