"""Choose what `fuse="auto"` stands for, on tasks, and write `s2wrap/best_fusion.json`.

    pip install -c constraints.txt -e ".[demo]" && python benchmarks/best_fusion.py

For each kind of backbone a model with trained weights is scored at 1× and 2× with every candidate, on five tasks of
`s2wrap compare`. A candidate gains a point for every other one and task in which it is ahead of it by more than the
noise of all pairs, and loses one where it is behind; the most points win, and of equal ones the largest mean score.
What won and the default are then compared on other pictures. It takes an hour on a CPU core.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tasks import cell, commit
from tasks_data import WRITERS

from s2wrap.best_fusion import FILE
from s2wrap.compare import Comparison, compare
from s2wrap.files import whole_file

BACKBONES = {"transformer": "sample:dinov2_s14", "convolutional": "sample:efficientnet_lite0"}
DEFAULT = {"fuse": "concat", "norm": "none", "target_grid": None}
CANDIDATES: list[dict[str, Any]] = [
    DEFAULT,
    {"fuse": "concat", "norm": "l2", "target_grid": "finest"},
    {"fuse": "mean", "norm": "l2", "target_grid": "finest"},
    {"fuse": "mean", "norm": "std", "target_grid": "finest"},
    {"fuse": "max", "norm": "l2", "target_grid": "finest"},
    {"fuse": "detail", "norm": "none", "target_grid": None},
]
SETS = {
    "scenes": ["segmentation", "neighbours"],
    "defects": ["anomaly"],
    "relief": ["regression"],
    "photographs": ["correspondence"],
}


def main(
    pictures: Annotated[int, typer.Option(min=4, help="Pictures of each set.")] = 16,
    kinds: Annotated[str, typer.Option(help="Which kinds of backbones, with commas.")] = ",".join(BACKBONES),
    cache: Annotated[Path | None, typer.Option(help="Where features are kept.")] = None,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path(__file__).parents[1] / "s2wrap" / FILE,
) -> None:
    """Print every candidate's scores, and write what won."""
    content = json.loads(output.read_text("utf-8")) if output.is_file() else {}
    for kind in kinds.split(","):
        scored = score(BACKBONES[kind], CANDIDATES, pictures, 0, cache)
        points = [points_of(scored, number) for number in range(len(CANDIDATES))]
        best = max(range(len(CANDIDATES)), key=lambda number: (points[number], mean_score(scored, number)))
        pair = sorted({0, best})
        told = score(BACKBONES[kind], [CANDIDATES[number] for number in pair], pictures, 1, cache)
        names = [flags(candidate) or "concat, the default" for candidate in CANDIDATES]
        show(f"{BACKBONES[kind]}@1,2: {pictures} pictures a set", names, scored, points)
        told_points = [points_of(told, number) for number in range(len(pair))]
        show("on other pictures", [names[number] for number in pair], told, told_points)
        content[kind] = {
            "options": CANDIDATES[best],
            "model": f"{BACKBONES[kind]}@1,2",
            "pictures": pictures,
            "commit": commit(),
            "points": dict(zip(names, points, strict=True)),
            "scores": {name: values(scored, number) for number, name in enumerate(names)},
            "scores on other pictures": {names[number]: values(told, place) for place, number in enumerate(pair)},
        }
    with whole_file(output) as draft:
        draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def score(
    backbone: str, candidates: list[dict[str, Any]], pictures: int, half: int, cache: Path | None
) -> list[Comparison]:
    """Return the comparison of the candidates on each set, on one of two halves that share no picture."""
    names = [f"{backbone}@1,2 {flags(candidate)}".strip() for candidate in candidates]
    found = []
    for name, tasks in SETS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            if name == "photographs":  # there are so many of them: every second one
                for path in sorted(WRITERS[name](folder, 2 * pictures, 0).iterdir())[1 - half :: 2]:
                    path.unlink()
            else:
                WRITERS[name](folder, pictures, half)
            found.append(
                compare(
                    names, data=folder, tasks=tasks, backends=(), cache=True if cache is None else cache,
                    console=Console(stderr=True),
                )
            )  # fmt: skip
    return found


def flags(candidate: dict[str, Any]) -> str:
    """Return a candidate as it stands behind a model's name: its options that are no defaults."""
    return " ".join(f"{name}={value}" for name, value in candidate.items() if value != DEFAULT[name])


def points_of(scored: list[Comparison], number: int) -> int:
    """Return in how many pairs and tasks a model is ahead by more than the noise, less those in which it is behind."""
    points = 0
    for comparison in scored:
        others = [row for row in comparison.rows if row is not comparison.rows[number]]
        level = 1 - 0.05 / (len(others) * len(comparison.rows) / 2)  # all pairs of a task hold together (Bonferroni)
        for measure in comparison.deciding:
            own = comparison.rows[number].scores[measure]
            ends = [own.difference(other.scores[measure], level)[1:] for other in others]
            points += sum((low > 0) - (high < 0) for low, high in ends)
    return points


def values(scored: list[Comparison], number: int) -> dict[str, float]:
    """Return a model's deciding measures."""
    rows = [(comparison.rows[number], measure) for comparison in scored for measure in comparison.deciding]
    return {measure: round(row.scores[measure].value, 4) for row, measure in rows}


def mean_score(scored: list[Comparison], number: int) -> float:
    """Return the mean of a model's deciding measures, all of which are shares."""
    found = values(scored, number).values()
    return sum(found) / len(found)


def show(title: str, names: list[str], scored: list[Comparison], points: list[int]) -> None:
    """Print scores with half their intervals."""
    columns = [(comparison, measure) for comparison in scored for measure in comparison.deciding]
    table = Table("candidate", *(measure for _, measure in columns), "points", title=title)
    for number, name in enumerate(names):
        cells = [cell(comparison, number, measure) for comparison, measure in columns]
        table.add_row(name, *cells, f"{points[number]:+d}")
    Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
