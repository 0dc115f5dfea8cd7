"""Measure whether tile borders show in fine maps of DINOv2 features, against an untiled pass.

For each of six photographs and each mode at scale 3 (48×48 tokens):

- seam ratio: the mean difference of features between neighbours on the two sides of a tile border, over that between
  all other neighbours. The photographs' own edges at a border count too: the untiled pass shows how much. It is taken
  at the borders of the three tiles in a row, where the four overlapping tiles begin or end, and where those meet
  half-way.
- cosine: between each token and that of the untiled pass (672 pixels at once, position embeddings interpolated).
- detail: the energy inside the tiles that a Gaussian blur of 2 tokens removes, over that of the plain tiles, which
  shows whether a mode only smooths.

    python benchmarks/seams.py [--spec sample:dinov2_s14] [--others] [--csv seams.csv]
"""

import csv
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
import typer
from einops import rearrange
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage import data
from torch import Tensor

import s2wrap
from s2wrap.files import whole_file

PHOTOS = {
    "astronaut": data.astronaut,
    "cat": data.chelsea,
    "coffee": data.coffee,
    "rocket": data.rocket,
    "retina": data.retina,
    "tissue": data.immunohistochemistry,
}
OTHERS = {
    "galaxies": data.hubble_deep_field,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "portrait": lambda: np.asarray(Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")),
}
"""Three more; the parameters of detail fusion were chosen with both sets in view."""
MODES = {
    "1×, interpolated": ((1,), {"target_grid": (48, 48)}),
    "1×, phases": (("1:phases=2",), {"target_grid": (48, 48)}),
    "1×, phases, and 2×, averaged": (("1:phases=2", 2), {"fuse": "mean", "target_grid": (48, 48)}),
    "1× and 2×, averaged": ((1, 2), {"fuse": "mean", "target_grid": (48, 48)}),
    "tiles (the paper)": ((3,), {}),
    "overlap 5, trimmed": ((3,), {"overlap": 5, "blend": "trim"}),
    "overlap 5, constant": ((3,), {"overlap": 5, "blend": "constant"}),
    "overlap 5, triangular": ((3,), {"overlap": 5, "blend": "triangular"}),
    "overlap 5, gaussian": ((3,), {"overlap": 5, "blend": "gaussian"}),
    "overlap 5, smooth": ((3,), {"overlap": 5}),
    "detail 1, 3": ((1, 3), {"fuse": "detail"}),
    "detail 1, 2, 3": ((1, 2, 3), {"fuse": "detail"}),
    "detail 1, 3, overlap 5": ((1, 3), {"fuse": "detail", "overlap": 5}),
    "detail 1, 2, 3, overlap 5": ((1, 2, 3), {"fuse": "detail", "overlap": 5}),
    "untiled": ((3,), {"whole": True}),
}
BORDERS = {"tiles": (16, 32), "overlap edges": (11, 16, 21, 27, 32, 37), "half-way": (13, 14, 24, 34, 35)}
"""Where tiles end, in tokens: side by side at 0, 16, 32; overlapping at 0, 11, 21, 32."""


def main(
    spec: Annotated[str, typer.Option(help="A backbone, without scales.")] = "sample:dinov2_s14",
    others: Annotated[bool, typer.Option("--others", help="Three other photographs.")] = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV too.")] = None,
) -> None:
    """Print the table."""
    backbone = s2wrap.load(spec).backbone
    models = {name: s2wrap.wrap(backbone, scales, **options) for name, (scales, options) in MODES.items()}
    scores: dict[str, list[list[float]]] = {name: [] for name in MODES}
    photos = OTHERS if others else PHOTOS
    for photo in track(photos.values(), description="looking", console=Console(stderr=True)):
        images = _centre_square(photo())
        with torch.inference_mode():
            maps = {name: model(images).spatial.float() for name, model in models.items()}
        for name, spatial in maps.items():
            cosine = float(F.cosine_similarity(spatial, maps["untiled"]).mean())
            detail = detail_energy(spatial) / detail_energy(maps["tiles (the paper)"])
            scores[name].append([*(seam_ratio(spatial, borders) for borders in BORDERS.values()), cosine, detail])
    columns = ["mode", "passes", *(f"seam: {name}" for name in BORDERS), "cosine to untiled", "detail"]
    rows = []
    for name, values in scores.items():
        passes = " + ".join(str(len(scale.origins)) for scale in models[name].plan((672, 672)).scales)
        rows.append([name, passes, *(f"{value:.3f}" for value in np.mean(values, axis=0))])
    table = Table(title=f"{spec}, {len(photos)} photographs, 48×48 tokens, means")
    for column in columns:
        table.add_column(column, justify="left" if column == "mode" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    if csv_file is not None:
        with whole_file(csv_file) as draft, draft.open("w", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])


def seam_ratio(spatial: Tensor, borders: tuple[int, ...], size: int = 48) -> float:
    """Return the mean feature difference across borders (in tokens) over that of all others, in both directions."""
    across, elsewhere = [], []
    for dim in (2, 3):
        steps = spatial.diff(dim=dim).norm(dim=1).movedim(dim - 1, 0).flatten(1)
        at_border = torch.zeros(size - 1, dtype=torch.bool)
        at_border[[border - 1 for border in borders]] = True
        across.append(steps[at_border])
        elsewhere.append(steps[~at_border])
    return float(torch.cat(across).mean() / torch.cat(elsewhere).mean())


def detail_energy(spatial: Tensor, tile: int = 16, sigma: float = 2.0) -> float:
    """Return the energy inside tiles that a Gaussian blur removes, with its kernel normalised at the borders."""
    tiles = rearrange(spatial, "b c (r h) (q w) -> (b r q) c h w", h=tile, w=tile)
    offsets = torch.arange(tile)[:, None] - torch.arange(tile)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    return float((tiles - kernel @ tiles @ kernel.T).square().sum())


def _centre_square(pixels: np.ndarray) -> Tensor:
    """Return the centre square of a photograph: uint8 (1, 3, h, w)."""
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return rearrange(torch.from_numpy(pixels[top : top + side, left : left + side].copy()), "h w c -> 1 c h w")


if __name__ == "__main__":
    typer.run(main)
