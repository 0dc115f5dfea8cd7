"""Search by picture: the nearest pictures at one scale and at several scales, side by side.

    pip install -c constraints.txt -e ".[demo]" && python demos/search.py [FOLDER]

The pictures of a folder become two stores of vectors, as `s2wrap features --output NAME.parquet` writes them: one of
the model at 1×, one at several scales. With `--stores` they are kept: a second run searches at once, and an interrupted
one continues. `s2wrap.open(store).search` finds for each picture those with the largest cosine; nothing is trained.

Where a folder has sub-folders, each is a class, and a result is correct if it is of the query's class. The table has
the correct share with every picture as the query, not only the random few that are drawn.

Without FOLDER, one of two examples is used, so that both extremes can be seen:

- photographs: squares cut from the photographs that come with scikit-image, a class each. They do not overlap: results
  are other parts of the same photograph, though neighbours may share an edge.
- textiles (`--example textiles`): pictures of a woven textile (package conformal-clip-data; simulated), without a
  defect, with a torn spot of a few pixels, or woven differently all over; these are the classes.
"""

import csv
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from command import start
from defects import KINDS, check_installed, spread, textiles
from matplotlib.axes import Axes
from photos import cut_squares
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import s2wrap
from s2wrap.compare.score import mean_score
from s2wrap.extraction import extract_features
from s2wrap.files import whole_file

CORRECT, WRONG = "#0072b2", "#d55e00"
"""Blue and orange, which colour-blind people can distinguish; a mark shows it too."""
TEXTILES = 40
"""Textile pictures of each class."""
SIDE = 160
"""Side of the drawn pictures in pixels."""


@dataclass(frozen=True)
class Results:
    """The nearest pictures of each picture by one model.

    Attributes:
        spec: the model's spec.
        names: names of all pictures.
        nearest: (pictures, k) indices, the nearest first, without the picture itself.
        cosines: (pictures, k) in −1…1.
    """

    spec: str
    names: list[str]
    nearest: np.ndarray
    cosines: np.ndarray

    def correct(self) -> np.ndarray:
        """Return for each result whether it is of the query's class: (pictures, k)."""
        classes = np.array([str(Path(name).parent) for name in self.names])
        return classes[self.nearest] == classes[:, None]


def main(
    folder: Annotated[Path | None, typer.Argument(help="Pictures; a sub-folder a class, if there are some.")] = None,
    *,
    example: Annotated[str, typer.Option(help="Without FOLDER: photographs or textiles.")] = "photographs",
    model: Annotated[str, typer.Option(help="FAMILY:NAME.")] = "sample:dinov2_s14",
    scales: Annotated[str, typer.Option(help="The scales beside 1.")] = "1,2",
    query: Annotated[list[str] | None, typer.Option(help="Show this picture of the folder; may be repeated.")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Pictures that are shown, drawn by chance.")] = 6,
    nearest: Annotated[int, typer.Option(min=1, help="How many are found for each.")] = 5,
    stores: Annotated[Path | None, typer.Option(help="Where the vectors are kept (default: nowhere).")] = None,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("search.png"),
    as_csv: Annotated[
        Path | None, typer.Option("--csv", help="Where to list what is nearest to every picture.")
    ] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Do not load trained weights.")] = False,
) -> None:
    """Write the picture, and print how often results are of the query's class."""
    with tempfile.TemporaryDirectory() as scratch:
        stores = Path(scratch) if stores is None else stores
        stores.mkdir(parents=True, exist_ok=True)
        folder = write_example(example, stores / example) if folder is None else folder
        specs = [f"{model}@1", f"{model}@{scales}"]
        paths = [stores / f"{number}.parquet" for number in (1, 2)]
        for spec, path in zip(specs, paths, strict=True):
            write_vectors(folder, path, spec, pretrained=not random_weights)
        results = [search(path, spec, nearest) for spec, path in zip(specs, paths, strict=True)]
        if results[0].names != results[1].names:
            raise s2wrap.S2WrapError(f"the stores in {stores} are of different pictures; remove them")
        print_table(results)
        if as_csv is not None:
            write_csv(results, as_csv)
        draw(results, choose(results[0].names, query or [], queries), folder, output)
    print(f"wrote {output}")


def write_example(example: str, folder: Path) -> Path:
    """Write the pictures of an example, a sub-folder a class, and return the folder."""
    if example == "photographs":
        return cut_squares(folder)
    if example != "textiles":
        raise s2wrap.S2WrapError(f"--example {example} is unknown; use textiles or photographs")
    check_installed()
    for kind in KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for path in spread(textiles(kind), TEXTILES):
            (folder / kind / path.name).write_bytes(path.read_bytes())
    return folder


def write_vectors(folder: Path, store: Path, spec: str, *, pretrained: bool) -> None:
    """Write a store with the vector of each picture. Raises S2WrapError where it holds those of another model."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(spec)
        outcome = extract_features(
            [str(folder)],
            store,
            load=partial(load_model, spec, pretrained),
            spec=spec,
            options={},
            tell=lambda state: progress.update(task, completed=state.done, total=state.expected),
        )
    if outcome.failed:
        print(f"{outcome.failed} pictures could not be read; {store}.s2wrap/failures.jsonl has them")


def load_model(spec: str, pretrained: bool) -> s2wrap.MultiScale:
    """Return the model; random weights are the same every time."""
    torch.manual_seed(0)
    return s2wrap.load(spec, pretrained=pretrained)


def search(path: Path, spec: str, count: int) -> Results:
    """Return the nearest pictures of each picture, by the cosine between vectors."""
    store = s2wrap.open(path)
    if len(store) <= count:
        raise s2wrap.S2WrapError(f"{len(store)} pictures, and {count} are to be found for each: give --nearest below")
    numbers = {name: number for number, name in enumerate(store.paths)}
    found = store.search(torch.cat([arrays["vector"] for _, arrays in store.batches()]), count + 1)
    nearest = np.array([[numbers[each.path] for each in row] for row in found])
    cosines = np.array([[each.cosine for each in row] for row in found])
    itself = nearest == np.arange(len(store))[:, None]
    itself[~itself.any(axis=1), -1] = True  # with many copies of a picture, it may be missing itself
    shape = (len(store), count)
    return Results(spec, list(store.paths), nearest[~itself].reshape(shape), cosines[~itself].reshape(shape))


def choose(names: list[str], endings: list[str], count: int) -> list[int]:
    """Return the pictures to draw: those that are named, or else random ones, the same every time."""
    if not endings:
        return sorted(np.random.default_rng(0).permutation(len(names))[:count].tolist())
    chosen = []
    for ending in endings:
        matches = [number for number, name in enumerate(names) if name.endswith(ending)]
        if (total := len(matches)) != 1:
            raise s2wrap.S2WrapError(f"--query {ending}: {total} pictures of the folder end so; name one of them")
        chosen += matches
    return chosen


def print_table(results: list[Results]) -> None:
    """Print the share of results of the query's class, and the confidence interval of the difference."""
    console = Console()
    classes = {str(Path(name).parent) for name in results[0].names}
    if len(classes) < 2:
        console.print("no sub-folders: what is right is left to your eyes")
        return
    table = Table("way", title=f"{len(results[0].names)} pictures of {len(classes)} classes, each as the query")
    counts = sorted({1, results[0].nearest.shape[1]})
    scores = {k: [mean_score(result.correct()[:, :k].mean(axis=1)) for result in results] for k in counts}
    for k in counts:
        table.add_column(f"of the first {k} right, %" if k > 1 else "the nearest right, %", justify="right")
    for number, result in enumerate(results):
        table.add_row(result.spec, *(f"{100 * scores[k][number].value:.1f}" for k in counts))
    differences = [tuple(100 * part for part in scores[k][1].difference(scores[k][0])) for k in counts]
    table.add_row(
        "difference (95 %)", *(f"{value:+.1f} ({low:+.1f} to {high:+.1f})" for value, low, high in differences)
    )
    console.print(table)


def write_csv(results: list[Results], path: Path) -> None:
    """Write a row for each result: query, way, rank, picture, cosine."""
    with whole_file(path) as draft, draft.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["query", "way", "rank", "picture", "cosine"])
        for result in results:
            for number, name in enumerate(result.names):
                neighbours = zip(result.nearest[number], result.cosines[number], strict=True)
                for rank, (other, cosine) in enumerate(neighbours, 1):
                    rows.writerow([name, result.spec, rank, result.names[other], f"{cosine:.6f}"])


def draw(results: list[Results], queries: list[int], folder: Path, output: Path) -> None:
    """Draw a row for each query: the query, then the nearest pictures by each model."""
    count, several = results[0].nearest.shape[1], len({Path(name).parent for name in results[0].names}) > 1
    gap = 0.25
    widths = [1, *([gap, *[1] * count] * len(results))]
    size = (1.25 * sum(widths) + 0.2, 1.5 * len(queries) + 0.9)
    figure, axes = plt.subplots(
        len(queries), len(widths), figsize=size, width_ratios=widths, squeeze=False, layout="constrained"
    )
    for row, query in zip(axes, queries, strict=True):
        show_picture(row[0], results[0].names[query])
        row[0].set_xlabel(short_name(results[0].names[query], folder), fontsize=7)
        for number, result in enumerate(results):
            first = 1 + number * (count + 1)
            row[first].set_axis_off()
            correct = result.correct()[query]
            for rank, axis in enumerate(row[first + 1 : first + 1 + count]):
                show_picture(axis, result.names[result.nearest[query, rank]])
                mark = ("✓ " if correct[rank] else "✗ ") if several else ""
                axis.set_xlabel(f"{mark}{result.cosines[query, rank]:.3f}", fontsize=8)
                if several:
                    colour = CORRECT if correct[rank] else WRONG
                    axis.xaxis.label.set_color(colour)
                    for spine in axis.spines.values():
                        spine.set(color=colour, linewidth=2.5)
    axes[0][0].set_title("query", fontsize=11, loc="left")
    for number, result in enumerate(results):
        axis = axes[0][2 + number * (count + 1)]
        heading = axis.text(0, 1.06, f"nearest with {result.spec}", transform=axis.transAxes, fontsize=11)
        heading.set_in_layout(False)  # it extends over the columns beside it
    legend = "; ✓ blue: of the query's class, ✗ orange: of another" if several else ""
    figure.suptitle(f"Nearest of {len(results[0].names)} pictures, with their cosine{legend}", fontsize=12)
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=80)


def show_picture(axis: Axes, path: str) -> None:
    """Draw the centre of a picture as a small square."""
    with Image.open(path) as image:
        axis.imshow(ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (SIDE, SIDE)))
    axis.set_xticks([])
    axis.set_yticks([])


def short_name(name: str, folder: Path) -> str:
    """Return a name within the folder, with a line for its class and one for its file, both cut to their ends."""
    parts = Path(name.removeprefix(f"{folder}/")).parts
    return "\n".join(part if len(part) <= 18 else f"…{part[-17:]}" for part in parts[-2:])


if __name__ == "__main__":
    start(main)
