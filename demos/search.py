"""Search by picture: what is nearest at one scale, and what at several, side by side.

    pip install -c constraints.txt -e ".[demo]" && python demos/search.py [FOLDER]

The pictures of a folder become two stores of vectors, as `s2wrap features --output NAME.parquet` writes them: one of
the model at 1×, one at several scales. With `--stores` they are kept: a second run searches at once, and an interrupted
one goes on. FAISS finds for each picture those with the largest cosine; nothing is trained.

Where a folder has sub-folders, each is a class, and what is found is right if it is of the query's class. The table has
the share that is right for every picture as the query, not only for the few in the picture; these are drawn by chance.

Without FOLDER, one of two sets, so that both ends can be seen:

- photographs: squares cut from the photographs that come with scikit-image, a class each. They do not overlap: what is
  found is another part of the same photograph, though a neighbour may share an edge with it.
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
import pyarrow.dataset
import torch
import typer
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

RIGHT, WRONG = "#0072b2", "#d55e00"
"""Blue and orange, which the colour-blind tell apart; a mark says it too."""
TEXTILES = 40
"""Textile pictures of each class."""
SIDE = 160
"""Pixels of a picture that is shown."""


@dataclass(frozen=True)
class Found:
    """What is nearest to each picture, at some scales.

    Attributes:
        way: the model's spec.
        names: of all pictures.
        nearest: (pictures, k) indices, the nearest first; never the picture itself.
        cosines: (pictures, k) in −1…1.
    """

    way: str
    names: list[str]
    nearest: np.ndarray
    cosines: np.ndarray

    def right(self) -> np.ndarray:
        """(pictures, k): whether what is found is of the query's class."""
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
    """Write the picture, and print how often what is found is of the query's class."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) if stores is None else stores
        kept.mkdir(parents=True, exist_ok=True)
        folder = lay_out(example, kept / example) if folder is None else folder
        ways = [f"{model}@1", f"{model}@{scales}"]
        paths = [kept / f"{number}.parquet" for number in (1, 2)]
        for way, path in zip(ways, paths, strict=True):
            write_vectors(folder, path, way, pretrained=not random_weights)
        found = [search(path, way, nearest) for way, path in zip(ways, paths, strict=True)]
        if found[0].names != found[1].names:
            raise s2wrap.S2WrapError(f"the stores in {kept} are of different pictures; remove them")
        print_table(found)
        if as_csv is not None:
            write_csv(found, as_csv)
        draw(found, choose(found[0].names, query or [], queries), folder, output)
    print(f"wrote {output}")


def lay_out(example: str, folder: Path) -> Path:
    """The pictures of an example, a sub-folder a class; gives the folder."""
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
    """A store with the vector of each picture; S2WrapError where it holds those of another model."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(spec)
        outcome = extract_features(
            [str(folder)],
            store,
            load=partial(load, spec, pretrained),
            spec=spec,
            options={},
            tell=lambda state: progress.update(task, completed=state.done, total=state.expected),
        )
    if outcome.failed:
        print(f"{outcome.failed} pictures could not be read; {store}/_s2wrap/failures.jsonl has them")


def load(spec: str, pretrained: bool) -> s2wrap.MultiScale:
    """The model; with random weights, the same every time."""
    torch.manual_seed(0)
    return s2wrap.load(spec, pretrained=pretrained)


def search(store: Path, way: str, count: int) -> Found:
    """The nearest pictures of each, by the cosine between vectors."""
    import faiss

    table = pyarrow.dataset.dataset(store).to_table()
    names, vectors = table["path"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32)
    if len(names) <= count:
        raise s2wrap.S2WrapError(f"{len(names)} pictures, and {count} are to be found for each: give --nearest below")
    faiss.normalize_L2(vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    cosines, nearest = index.search(vectors, count + 1)
    itself = nearest == np.arange(len(names))[:, None]
    itself[~itself.any(axis=1), -1] = True  # a picture that is there more often than is found hides itself
    shape = (len(names), count)
    return Found(way, names, nearest[~itself].reshape(shape), cosines[~itself].reshape(shape))


def choose(names: list[str], asked: list[str], count: int) -> list[int]:
    """The pictures to show: those asked for, or some by chance, always the same."""
    if not asked:
        return sorted(np.random.default_rng(0).permutation(len(names))[:count].tolist())
    chosen = []
    for query in asked:
        fitting = [number for number, name in enumerate(names) if name.endswith(query)]
        if len(fitting) != 1:
            raise s2wrap.S2WrapError(f"--query {query}: {len(fitting)} pictures of the folder end so; name one of them")
        chosen += fitting
    return chosen


def print_table(found: list[Found]) -> None:
    """Print the share of what is found that is of the query's class, and how sure the difference is."""
    console = Console()
    classes = {str(Path(name).parent) for name in found[0].names}
    if len(classes) < 2:
        console.print("no sub-folders: what is right is left to your eyes")
        return
    table = Table("way", title=f"{len(found[0].names)} pictures of {len(classes)} classes, each as the query")
    counts = sorted({1, found[0].nearest.shape[1]})
    scores = {k: [mean_score(way.right()[:, :k].mean(axis=1)) for way in found] for k in counts}
    for k in counts:
        table.add_column(f"of the first {k} right, %" if k > 1 else "the nearest right, %", justify="right")
    for number, way in enumerate(found):
        table.add_row(way.way, *(f"{100 * scores[k][number].value:.1f}" for k in counts))
    differences = [tuple(100 * part for part in scores[k][1].difference(scores[k][0])) for k in counts]
    table.add_row(
        "difference (95 %)", *(f"{value:+.1f} ({low:+.1f} to {high:+.1f})" for value, low, high in differences)
    )
    console.print(table)


def write_csv(found: list[Found], path: Path) -> None:
    """A row for each picture that is found: query, way, rank, picture, cosine."""
    with whole_file(path) as draft, draft.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["query", "way", "rank", "picture", "cosine"])
        for way in found:
            for number, name in enumerate(way.names):
                for rank, (other, cosine) in enumerate(zip(way.nearest[number], way.cosines[number], strict=True), 1):
                    rows.writerow([name, way.way, rank, way.names[other], f"{cosine:.6f}"])


def draw(found: list[Found], queries: list[int], folder: Path, output: Path) -> None:
    """A row a query: the query, then what is nearest in each way."""
    count, several = found[0].nearest.shape[1], len({Path(name).parent for name in found[0].names}) > 1
    gap = 0.25
    widths = [1, *([gap, *[1] * count] * len(found))]
    size = (1.25 * sum(widths) + 0.2, 1.5 * len(queries) + 0.9)
    figure, axes = plt.subplots(
        len(queries), len(widths), figsize=size, width_ratios=widths, squeeze=False, layout="constrained"
    )
    for row, query in zip(axes, queries, strict=True):
        show(row[0], found[0].names[query])
        row[0].set_xlabel(shortened(found[0].names[query], folder), fontsize=7)
        for number, way in enumerate(found):
            first = 1 + number * (count + 1)
            row[first].set_axis_off()
            right = way.right()[query]
            for rank, axis in enumerate(row[first + 1 : first + 1 + count]):
                show(axis, way.names[way.nearest[query, rank]])
                mark = ("✓ " if right[rank] else "✗ ") if several else ""
                axis.set_xlabel(f"{mark}{way.cosines[query, rank]:.3f}", fontsize=8)
                if several:
                    colour = RIGHT if right[rank] else WRONG
                    axis.xaxis.label.set_color(colour)
                    for spine in axis.spines.values():
                        spine.set(color=colour, linewidth=2.5)
    axes[0][0].set_title("query", fontsize=11, loc="left")
    for number, way in enumerate(found):
        axis = axes[0][2 + number * (count + 1)]
        heading = axis.text(0, 1.06, f"nearest with {way.way}", transform=axis.transAxes, fontsize=11)
        heading.set_in_layout(False)  # it reaches over the columns beside it
    right = "; ✓ blue: of the query's class, ✗ orange: of another" if several else ""
    figure.suptitle(f"Nearest of {len(found[0].names)} pictures, with their cosine{right}", fontsize=12)
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=80)


def show(axis: Axes, path: str) -> None:
    """The middle of a picture, as a small square."""
    with Image.open(path) as image:
        axis.imshow(ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (SIDE, SIDE)))
    axis.set_xticks([])
    axis.set_yticks([])


def shortened(name: str, folder: Path) -> str:
    """A name within the folder, a line for its class and one for its file; the end of what is long."""
    parts = Path(name.removeprefix(f"{folder}/")).parts
    return "\n".join(part if len(part) <= 18 else f"…{part[-17:]}" for part in parts[-2:])


if __name__ == "__main__":
    try:
        typer.run(main)
    except s2wrap.S2WrapError as error:
        raise SystemExit(f"error: {error}") from error
