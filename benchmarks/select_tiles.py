"""What are chosen tiles worth? Accuracy against tiles run, from none to all, on pictures of a textile.

Simulated pictures of a woven textile, of three kinds: without a defect, with a small local one, with another weave all
over (package conformal-clip-data). For every number of tiles and every way to choose them, `select=` runs;
an image's vector is the mean and the maximum of its tokens, and a logistic regression tells the three kinds apart
(5-fold). The ways to choose:

- saliency, detail: what s2wrap knows without training.
- random: a baseline, other tiles for every picture; same places: another, drawn once for all pictures, so that where
  tiles were left out does not differ between pictures. Each is the mean of several draws.
- unlike nominal: the distance of each token of the smallest scale to the nearest one of 20 more pictures without a
  defect: what an inspector who has such pictures would use.

The pictures have a bright line along their right and bottom edges, which would draw every choice to it: it is cut off.

The backbone's answers are remembered by the bytes of a tile, so that each tile is seen once.

    pip install scikit-learn && pip install --no-deps conformal-clip-data
    python benchmarks/select_tiles.py [--scales 1,3] [--pictures 60] [--output select.png] [--csv select.csv]
"""

import csv
import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from einops import rearrange, reduce
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import s2wrap
from s2wrap import Features, MultiScale, S2WrapError
from s2wrap.files import whole_file

KINDS = ("nominal", "local", "global")
BASELINES = ("same places", "random")
SIDE = 248
"""Pixels that are left of a picture without its bright edges: whole blocks of the JPEG file."""
KNOWN = 20
"""Pictures without a defect that "unlike nominal" knows; they are not among those told apart."""
FOLDS = 5


class Remembering:
    """A backbone call that looks at each tile once."""

    def __init__(self, call: Callable[[Tensor], Tensor]):
        self.call = call
        self.answers: dict[bytes, Tensor] = {}

    def __call__(self, tiles: Tensor) -> Tensor:
        """The tokens (b, n, c) of tiles (b, 3, h, w)."""
        keys = [hashlib.sha1(tile.numpy().tobytes()).digest() for tile in tiles]
        new = {key: i for i, key in enumerate(keys) if key not in self.answers}
        if new:
            self.answers.update(zip(new, self.call(tiles[list(new.values())]), strict=True))
        return torch.stack([self.answers[key] for key in keys])


def main(
    scales: Annotated[str, typer.Option(help="Scales with commas, the smallest first.")] = "1,3",
    pictures: Annotated[int, typer.Option(min=FOLDS, max=480, help="Pictures of each kind.")] = 60,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each baseline.")] = 2,
    output: Annotated[Path, typer.Option(help="The plot to write.")] = Path("select.png"),
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV too.")] = None,
) -> None:
    """Print the table and write the plot."""
    model, remembering = remembering_model(f"sample:dinov2_s14@{scales}")
    images = torch.cat([textiles(kind, 0, pictures) for kind in KINDS])
    kinds = np.repeat(np.arange(len(KINDS)), pictures)
    ways: dict[str, list[Any]] = {
        "unlike nominal": [unlike(model, textiles("nominal", pictures, pictures + KNOWN))],
        "detail": ["detail"],
        "saliency": ["saliency"],
        "same places": [random_heat(seed, same=True) for seed in range(draws)],
        "random": [random_heat(seed) for seed in range(draws)],
    }
    tiles = model.plan(model.backbone.image_hw).num_tiles - 1
    right, saved = tell_apart(model, images, kinds, ways, tiles)
    title = (
        f"sample:dinov2_s14@{scales}: accuracy ± standard error over {FOLDS} folds, {pictures} pictures of each of "
        f"{len(KINDS)} kinds, baselines: mean of {draws} draws; {len(remembering.answers)} tiles seen"
    )
    columns, lines = as_lines(right, saved)
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*line)
    console = Console(width=120)
    console.print(table)
    for name in ways:
        if name not in BASELINES:
            console.print(_compared(name, right, range(1, tiles)))
    plot(right, saved, f"DINOv2 ViT-S/14 at {scales}, {len(kinds)} textile pictures", output)
    console.print(f"wrote {output}")
    if csv_file is not None:
        with whole_file(csv_file) as draft, draft.open("w", newline="") as stream:
            csv.writer(stream).writerows([columns, *lines])


def remembering_model(spec: str) -> tuple[MultiScale, Remembering]:
    """A loaded model whose backbone remembers."""
    loaded = s2wrap.load(spec)
    backbone = loaded.backbone
    remembering = Remembering(backbone.call)
    model = s2wrap.wrap(
        remembering,
        loaded.scales,
        image_size=backbone.image_hw,
        layout=backbone.layout.order,
        num_prefix_tokens=backbone.layout.num_prefix_tokens,
        mean=backbone.mean,
        std=backbone.std,
        interpolation=backbone.interpolation,
        name=backbone.name,
    )
    remembering.answers.clear()  # what looking for the layout left
    return model, remembering


def textiles(kind: str, first: int, last: int) -> Tensor:
    """Pictures of a kind: uint8 (n, 3, 248, 248)."""
    found = find_spec("conformal_clip_data")
    if found is None or not found.submodule_search_locations:
        raise S2WrapError("the pictures are missing: pip install --no-deps conformal-clip-data")
    folder = Path(found.submodule_search_locations[0], "data", "textile_images", "simulated", kind)
    pixels = [np.array(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.jpg"))[first:last]]
    return rearrange(torch.from_numpy(np.stack(pixels)[:, :SIDE, :SIDE]), "n h w c -> n c h w")


def unlike(model: MultiScale, known: Tensor) -> Callable[[Tensor, Features], Tensor]:
    """Heat: the distance of each token to the nearest token of known pictures, both of the smallest scale."""
    base = s2wrap.wrap(model.backbone, model.scales[:1])
    with torch.inference_mode():
        tokens = rearrange(base(known).tokens, "n t c -> (n t) c")

    def heat(images: Tensor, features: Features) -> Tensor:
        spatial = features.spatial
        distances = torch.cdist(rearrange(spatial, "b c h w -> (b h w) c"), tokens).amin(dim=1)
        return rearrange(distances, "(b h w) -> b h w", b=len(spatial), h=spatial.shape[2])

    return heat


def random_heat(seed: int, same: bool = False) -> Callable[[Tensor, Features], Tensor]:
    """Heat that means nothing: other heat for every image, or the same."""
    generator = torch.Generator().manual_seed(seed)

    def heat(images: Tensor, features: Features) -> Tensor:
        if same:
            generator.manual_seed(seed)
            return torch.rand(1, *features.spatial.shape[2:], generator=generator).expand(len(images), -1, -1)
        return torch.rand(len(images), *features.spatial.shape[2:], generator=generator)

    return heat


def tell_apart(
    model: MultiScale, images: Tensor, kinds: np.ndarray, ways: dict[str, list[Any]], tiles: int
) -> tuple[dict[str, np.ndarray], list[float]]:
    """For each way, which images were told right (tiles + 1, images), the mean of its draws; and the share saved."""
    right = {name: np.zeros((tiles + 1, len(images))) for name in ways}
    saved = [0.0] * (tiles + 1)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("looking", total=2 + (tiles - 1) * sum(map(len, ways.values())))
        for select in [tiles, *range(tiles)]:  # all first: the slow one
            if select in (0, tiles):  # there is nothing to choose
                vectors, saved[select] = look(model, images, select, "saliency")
                told = told_right(vectors, kinds)
                for scores in right.values():
                    scores[select] = told
                progress.advance(task)
            else:
                for name, draws in ways.items():
                    for by in draws:
                        vectors, saved[select] = look(model, images, select, by)
                        right[name][select] += told_right(vectors, kinds) / len(draws)
                        progress.advance(task)
    return right, saved


def look(model: MultiScale, images: Tensor, select: int, by: Any) -> tuple[np.ndarray, float]:
    """Mean and maximum over the tokens of each image (n, 2c), and the share of backbone work saved."""
    vectors, share = [], 0.0
    for part in images.split(20):
        with torch.inference_mode():
            features = model(part, select=select, by=by)
        share = features.saved
        vectors.append(torch.cat([features.pooled, reduce(features.spatial, "b c h w -> b c", "max")], dim=1))
    return torch.cat(vectors).numpy(), share


def told_right(vectors: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Which images a logistic regression tells right that has not seen them: 0 or 1 each."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    told = np.asarray(cross_val_predict(classifier, vectors, kinds, cv=_folds()))
    return (told == kinds).astype(float)


def as_lines(right: dict[str, np.ndarray], saved: list[float]) -> tuple[list[str], list[list[str]]]:
    """The table: a line for each number of tiles."""
    lines = []
    for select, share in enumerate(saved):
        found = [by_fold(scores[select]) for scores in right.values()]
        lines.append(
            [str(select), f"{100 * share:.0f} %", *(f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in found)]
        )
    return ["tiles run", "work saved", *right], lines


def by_fold(right: np.ndarray) -> tuple[float, float]:
    """Mean accuracy over folds, and its standard error."""
    kinds = np.repeat(np.arange(len(KINDS)), len(right) // len(KINDS))
    folds = [right[test].mean() for _, test in _folds().split(right, kinds)]
    return float(np.mean(folds)), float(np.std(folds, ddof=1) / len(folds) ** 0.5)


def plot(right: dict[str, np.ndarray], saved: list[float], title: str, output: Path) -> None:
    """Accuracy with its standard error against tiles run."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, scores in right.items():
        means, errors = (100 * np.array(values) for values in zip(*map(by_fold, scores), strict=True))
        (line,) = axis.plot(means, marker="o", label=name, linestyle="--" if name in BASELINES else "-")
        axis.fill_between(range(len(means)), means - errors, means + errors, color=line.get_color(), alpha=0.12)
    axis.set_xticks(
        range(len(saved)), [f"{select}\n{100 * share:.0f} %" for select, share in enumerate(saved)], fontsize=9
    )
    axis.set_xlabel("fine tiles run of each picture, and backbone work saved")
    axis.set_ylabel("accuracy, % (band: standard error over folds)")
    axis.set_title(title)
    axis.grid(alpha=0.3)
    axis.legend()
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=100)
    plt.close(figure)


def _folds() -> StratifiedKFold:
    return StratifiedKFold(FOLDS, shuffle=True, random_state=0)


def _compared(name: str, right: dict[str, np.ndarray], between: range) -> str:
    """A way beside the baselines, image by image, over all numbers of tiles between none and all."""
    found = []
    for baseline in BASELINES:
        gains = 100 * (right[name][between] - right[baseline][between]).mean(axis=0)
        found.append(f"{gains.mean():+.1f} ± {_error(gains):.1f} points over {baseline}")
    return f"{name}, mean over 1 … {between.stop - 1} tiles: {', '.join(found)}"


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    typer.run(main)
