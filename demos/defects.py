"""Classify small defects in pictures of a textile, where detail decides, from the features of frozen backbones.

    pip install -c constraints.txt -e ".[demo]" && python demos/defects.py

The pictures are simulated (Megahed et al., arXiv 2501.12596; package conformal-clip-data): 250×250 pixels, without a
defect ("nominal"), with a torn spot of a few pixels ("local"), or woven a little differently all over ("global"). Such
small pictures have no further detail at 2× and 3×: a backbone of 224 pixels sees the same pixels enlarged. No two
pictures are alike, so neighbours in a folder are no near-duplicates.

The table: a picture's vector is the mean and the maximum over the tokens of each scale, at the scale's own grid
(`fuse="pyramid"`): the mean detects global differences, the maximum local ones. A logistic regression on standardised
vectors classifies the three kinds, 5-fold; "local" and "global" are how well it ranks such pictures above nominal ones
(area under the ROC curve, chance is 0.5). "S²" uses tiles (for convolutional networks `whole=False`), "whole" the whole
enlarged picture in one pass. "Two numbers" needs no backbone: the roughness of a picture's roughest spot, and the
correlation of adjacent pixels. It shows that the task is easy with knowledge of the defects, which the backbones lack.

The picture (of the first backbone): the distance of each token to the nearest one of nominal pictures (as in PatchCore,
arXiv 2106.08265), after a middle and after the last layer, in units of the 99 % quantile of the tokens of a further
nominal picture (the median over such pictures). The ring is around the roughest spot, found by a pixel filter. Whether
the farthest token is in the ring is counted over more local defects than are shown. None is hand-picked.
"""

import csv
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from command import start
from einops import rearrange, reduce
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Circle
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import s2wrap
from s2wrap.backbones import Backbone
from s2wrap.cost import count_cost
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.files import whole_file

KINDS = ("nominal", "local", "global")
WAYS = {
    "1×": ("1",),
    "S² 1, 2": ("1", "2:tiled"),
    "S² 1, 2, 3": ("1", "2:tiled", "3:tiled"),
    "whole 2×": ("2:whole",),
    "S² 1, 2 whole": ("1", "2:whole"),
}
WAYS_OF_CONVOLUTIONS = {
    "whole 3×": ("3:whole",),
    "S² 1, 2, 3 whole": ("1", "2:whole", "3:whole"),
}
"""For backbones where they cost no more than tiles; a transformer's attention is quadratic in the pixels."""
COSTS = ("backbone", "scales", "passes", "G multiply-adds", "M weights")
SCORES = ("accuracy", "local", "global")
FOLDS = 5
MOST_PICTURES, HELD_OUT = 20, 6
"""Most nominal pictures to measure distances to, and most local defects; nominal pictures to measure the unit on."""
TOKENS = 500
"""Random tokens of each nominal picture that distances are measured to."""
RING = 20
"""Radius in pixels within which a defect counts as found; the chance level is 1 in 50."""
WAYS_DRAWN = ("1×", "S² 1, 2, 3")
LAYER_NAMES = ("middle layer", "last layer")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Row:
    """A row of the table: the values of `COSTS`, and mean and deviation (2, 3) of `SCORES`."""

    costs: tuple[str, ...]
    scores: np.ndarray


def main(
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("defects.png"),
    pictures: Annotated[int, typer.Option(min=FOLDS, max=500, help="Pictures of each kind.")] = 40,
    backbones: Annotated[str, typer.Option(help="Names after sample:, with commas.")] = (
        "dinov2_s14,efficientnet_lite0,efficientnet_lite1,efficientnet_lite2"
    ),
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV too.")] = None,
) -> None:
    """Print the table and write the picture."""
    check_installed()
    names = [name.strip() for name in backbones.split(",")]
    loaded = {name: s2wrap.load(f"sample:{name}").backbone for name in names}
    chosen = {kind: spread(textiles(kind), pictures) for kind in KINDS}
    with ExitStack() as stack:  # fails now if a file cannot be written
        picture = stack.enter_context(whole_file(output))
        table = stack.enter_context(whole_file(csv_file)) if csv_file else None
        rows = [Row(("none", "two numbers", "0", "0", "0"), evaluate(two_numbers(chosen)))]
        for name, backbone in loaded.items():
            rows += evaluate_backbone(name, backbone, chosen)
        show_table(rows, pictures)
        if table is not None:
            head = [*COSTS, *(f"{score} {what}" for score in SCORES for what in ("mean", "deviation"))]
            with table.open("w", newline="") as stream:
                csv.writer(stream).writerows([head, *([*row.costs, *row.scores.T.ravel()] for row in rows)])
        draw(names[0], loaded[names[0]], min(MOST_PICTURES, pictures), picture)
    print(f"wrote {output}")


def check_installed() -> None:
    """Raise MissingExtraError unless the pictures and scikit-learn are installed."""
    for package, use in (("conformal_clip_data", "which holds the pictures"), ("sklearn", "which tells them apart")):
        if find_spec(package) is None:
            raise MissingExtraError(f"the package {package}, {use},", "demo")


def textiles(kind: str) -> list[Path]:
    """Return the paths of all pictures of a kind, without importing their package."""
    package = find_spec("conformal_clip_data")
    assert package is not None  # checked before
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0], "data", "textile_images", "simulated", kind)
    if not (paths := sorted(folder.glob("*.jpg"))):
        raise S2WrapError(f"no pictures in {folder}; reinstall them: pip install --force-reinstall conformal-clip-data")
    return paths


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` items, evenly spread over all."""
    return [items[i * len(items) // count] for i in range(count)]


def two_numbers(chosen: dict[str, list[Path]]) -> np.ndarray:
    """Return the roughness of each picture's roughest spot, and the correlation of its adjacent pixels: (n, 2)."""
    rows = []
    for path in (path for paths in chosen.values() for path in paths):
        rough, pixels = roughness(path), grey(path)
        correlation = np.corrcoef(pixels[:, 1:].ravel(), pixels[:, :-1].ravel())[0, 1]
        rows.append([rough.max() / np.median(rough), correlation])
    return np.array(rows)


def roughness(path: Path, spot: int = 9) -> np.ndarray:
    """Return the mean squared Laplacian in the square of `spot` pixels around each pixel, without the border."""
    pixels = grey(path)
    laplacian = 4 * pixels[1:-1, 1:-1] - pixels[2:, 1:-1] - pixels[:-2, 1:-1] - pixels[1:-1, 2:] - pixels[1:-1, :-2]
    return reduce(np.lib.stride_tricks.sliding_window_view(laplacian**2, (spot, spot)), "h w r q -> h w", "mean")


def grey(path: Path) -> np.ndarray:
    """Return a picture's pixels (height, width), 0…255; the textiles are grey."""
    return np.asarray(Image.open(path).convert("L"), dtype=np.float64)


def evaluate_backbone(name: str, backbone: Backbone, chosen: dict[str, list[Path]]) -> list[Row]:
    """Return the table's rows of a backbone, which encodes each picture once at every scale that some row needs."""
    ways = WAYS | (WAYS_OF_CONVOLUTIONS if backbone.convolutional else {})
    scales = list(dict.fromkeys(scale for way in ways.values() for scale in way))
    model = s2wrap.wrap(backbone, scales, fuse="pyramid")
    pooled: dict[str, list[np.ndarray]] = {scale: [] for scale in scales}
    paths = [path for of_kind in chosen.values() for path in of_kind]
    for path in track(paths, description=name, console=Console(stderr=True)):
        with torch.inference_mode():
            (features,) = model.encode([path])
        for scale, spatial in zip(scales, features.maps, strict=True):
            pooled[scale].append(torch.cat([reduce(spatial, "1 c h w -> c", how) for how in ("mean", "max")]).numpy())
    rows = []
    for way, of_way in ways.items():
        cost = count_cost(s2wrap.wrap(backbone, of_way))
        costs = f"{cost.tiles}", f"{cost.multiply_adds / 1e9:.1f}", f"{cost.parameters / 1e6:.1f}"
        vectors = np.concatenate([np.stack(pooled[scale]) for scale in of_way], axis=1)
        rows.append(Row((name, way, *costs), evaluate(vectors)))
    return rows


def evaluate(vectors: np.ndarray) -> np.ndarray:
    """Return mean and standard deviation over folds of the three `SCORES` (2, 3), for equally many vectors a kind.

    They are the accuracy, and the area under the ROC curve of local, and of global, against nominal pictures.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kinds = np.repeat(np.arange(len(KINDS)), len(vectors) // len(KINDS))
    scores = []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(vectors, kinds):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        logits: Any = model.fit(vectors[train], kinds[train]).decision_function(vectors[test])
        labels = kinds[test]
        fold_scores = [float(np.mean(logits.argmax(axis=1) == labels))]
        for kind in (1, 2):
            pair = np.isin(labels, (0, kind))
            fold_scores.append(float(roc_auc_score(labels[pair] == kind, logits[pair, kind] - logits[pair, 0])))
        scores.append(fold_scores)
    return np.stack([np.mean(scores, axis=0), np.std(scores, axis=0)])


def show_table(rows: list[Row], pictures: int) -> None:
    """Print the table."""
    count = pictures * len(KINDS)
    table = Table(
        title=f"{count} pictures, {pictures} of each kind; mean ± standard deviation over {FOLDS} folds",
        caption=f"An accuracy of 0.9 on {count} pictures has a standard error of {(0.09 / count) ** 0.5:.3f}: "
        "differences of that order are none.",
    )
    for column in (*COSTS, *SCORES):
        is_name = column in ("backbone", "scales")
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name or column in SCORES)
    for number, row in enumerate(rows):
        if number and row.costs[0] != rows[number - 1].costs[0]:
            table.add_section()
        table.add_row(*row.costs, *(f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in row.scores.T))
    Console(width=120).print(table)


def draw(name: str, backbone: Backbone, count: int, output: Path) -> None:
    """Write the picture: textiles above their tokens' distances to `count` nominal ones, by scales and layer."""
    nominal = spread(textiles("nominal"), count + HELD_OUT + 1)
    local, other = spread(textiles("local"), count), spread(textiles("global"), 1)
    shown = {"local defect": local[:3], "global defect": other, "no defect": nominal[-1:]}
    titles = {path: title for title, paths in shown.items() for path in paths}
    colours = ScalarMappable(Normalize(0.5, 2), "inferno")
    rows = [(way, layer) for way in WAYS_DRAWN for layer in range(len(LAYER_NAMES))]
    figure, axes = plt.subplots(2 + len(rows), len(titles), figsize=(10.6, 13.2), layout="constrained")
    figure.suptitle(
        f"{name}: distance of each token to the nearest one of {count} textiles without a defect\n"
        "(1: as far as the oddest 1 % of the tokens of a further textile without a defect).\n"
        "Ring: the local defect, as a pixel filter finds it.",
        fontsize=12,
    )
    axes[0, 0].set_ylabel("textile\n250×250 pixels", fontsize=9)
    axes[1, 0].set_ylabel(f"enlarged: the ring\nor the middle, {2 * RING}×{2 * RING}", fontsize=9)
    for axis, title in zip(axes[0], titles.values(), strict=True):
        axis.set_title(title, fontsize=12)
    others = [*nominal[count:], *local, *other]
    distances = {way: token_distances(name, backbone, way, nominal[:count], others) for way in WAYS_DRAWN}
    for (way, layer), row in zip(rows, axes[2:], strict=True):
        maps = {path: layers[layer] for path, layers in distances[way].items()}
        unit = np.median([np.quantile(maps[path], 0.99) for path in nominal[count:-1]])
        hits = sum(peak_in_ring(maps[path], roughest(path)) for path in local)
        for axis, path in zip(row, titles, strict=True):
            scaled = maps[path] / unit
            axis.imshow(scaled, cmap=colours.cmap, norm=colours.norm, extent=(0, 250, 250, 0), zorder=2, alpha=0.8)
            axis.set_xlabel(f"peak {scaled.max():.1f}", fontsize=9)
        height, width = maps[local[0]].shape
        row[0].set_ylabel(
            f"{way}, {LAYER_NAMES[layer]}\n{height}×{width} tokens\npeak in the ring: {hits} of {count}", fontsize=9
        )
    figure.colorbar(colours, ax=axes, label="distance", extend="both", location="bottom", shrink=0.5, aspect=50)
    for column, path in zip(axes.T, titles, strict=True):
        col, row = roughest(path) if path in local else (125, 125)
        column[1].set(xlim=(col - RING, col + RING), ylim=(row + RING, row - RING), facecolor="white")
        for axis in column:
            axis.imshow(grey(path), cmap="gray", vmin=0, vmax=255, extent=(0, 250, 250, 0))
            axis.set(xticks=[], yticks=[])
            if path in local:
                axis.add_patch(Circle((col, row), RING, fill=False, edgecolor="cyan", linewidth=1.3, zorder=3))
    figure.savefig(output, dpi=66)
    plt.close(figure)


def token_distances(
    name: str, backbone: Backbone, way: str, nominal: list[Path], others: list[Path]
) -> dict[Path, list[np.ndarray]]:
    """Return the distance of each token of the other pictures to the nearest nominal one: a map (h, w) a layer."""
    layers = (-2, -1) if backbone.convolutional else (-4, -1)
    model = s2wrap.load(
        f"sample:{name}", scales=WAYS[way], layers=layers, join_layers=False, target_grid="finest", prefix="drop"
    )
    generator = torch.Generator().manual_seed(0)
    banks: list[list[Tensor]] = [[] for _ in layers]
    distances = {}
    for number, path in enumerate(track([*nominal, *others], f"{name}, {way}", console=Console(stderr=True))):
        with torch.inference_mode():
            (features,) = model.encode([path])
        tokens = [rearrange(spatial, "1 c h w -> (h w) c") for spatial in features.maps]
        if number < len(nominal):
            for bank, of_layer in zip(banks, tokens, strict=True):
                bank.append(of_layer[torch.randperm(len(of_layer), generator=generator)[:TOKENS]])
            continue
        nearest = [torch.cdist(part, torch.cat(bank)).amin(dim=1) for part, bank in zip(tokens, banks, strict=True)]
        distances[path] = [
            values.unflatten(0, spatial.shape[2:]).numpy()
            for values, spatial in zip(nearest, features.maps, strict=True)
        ]
    return distances


def peak_in_ring(distances: np.ndarray, spot: tuple[float, float], side: int = 250) -> bool:
    """Return whether the centre of the farthest token is at most `RING` pixels from a spot (column, row)."""
    row, col = np.unravel_index(distances.argmax(), distances.shape)
    height, width = distances.shape
    return math.dist(((col + 0.5) / width * side, (row + 0.5) / height * side), spot) <= RING


def roughest(path: Path, spot: int = 9) -> tuple[float, float]:
    """Return column and row of the centre of a picture's roughest spot, in pixels."""
    rough = roughness(path, spot)
    row, col = np.unravel_index(rough.argmax(), rough.shape)
    return float(col) + 1 + spot // 2, float(row) + 1 + spot // 2


if __name__ == "__main__":
    start(main)
