"""Measure models on all tasks of `s2wrap compare`, on made-up pictures and photographs that need no download.

    pip install -c constraints.txt -e ".[demo]" && python benchmarks/tasks.py --quick

prints one table in Markdown, with the pictures, the seed and the commit that made it, and the verdicts below it.
Models are named as in `s2wrap compare`, with options of their own behind the spec. `--quick` is a few minutes on a CPU:
six pictures a set and EfficientNet-Lite0. Features are cached: a second run, or one with more models, is quick.
"""

import subprocess
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tasks_data import WRITERS

from s2wrap.compare import Comparison, compare
from s2wrap.compare.comparison import unit_of
from s2wrap.compare.table import facts_line

MODELS = ["@1", "@3:whole", "@1,2,3", "@1,2,3 fuse=detail", "@1,3 fuse=detail overlap=5"]
MODELS = [f"sample:dinov2_s14{way}" for way in MODELS]
QUICK = [f"sample:efficientnet_lite0{way}" for way in ("@1", "@2:whole", "@1,2:tiled", "@1,2:tiled fuse=detail")]
SETS = {
    "photographs": ["correspondence", "stability"],
    "scenes": ["segmentation", "neighbours"],
    "defects": ["anomaly"],
    "relief": ["regression"],
}
"""The sets of pictures, and the tasks on each."""


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Models, as for s2wrap compare.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few pictures, and small models.")] = False,
    pictures: Annotated[int | None, typer.Option(min=4, help="Pictures of each set (default: 25; quick: 6).")] = None,
    sets: Annotated[str, typer.Option(help="Which sets, with commas.")] = ",".join(SETS),
    seed: int = 0,
    device: str = "cpu",
    cache: Annotated[Path | None, typer.Option(help="Where features are kept.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the table there too.")] = None,
) -> None:
    """Print the table of all tasks."""
    names = models or (QUICK if quick else MODELS)
    count, found = pictures or (6 if quick else 25), {}
    for name in sets.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = compare(
                names, data=WRITERS[name](Path(scratch) / name, count, seed), tasks=SETS[name], backends=(),
                device=device, cache=True if cache is None else cache, console=Console(stderr=True),
            )  # fmt: skip
    text = "\n".join([*table(found), "", *notes(found, count, seed)])
    print(text)
    if output is not None:
        output.write_text(text + "\n", "utf-8")


def table(found: dict[str, Comparison]) -> list[str]:
    """Return the lines of one table of all comparisons: a column a measure, values with half their intervals."""
    columns = [(comparison, measure) for comparison in found.values() for measure in comparison.measures]
    headings = [f"{measure}, {unit_of(measure).sign}".removesuffix(", ") for _, measure in columns]
    lines = ["| " + " | ".join(["model", "G multiply-adds", *headings]) + " |", "|---" * (len(columns) + 2) + "|"]
    for number, row in enumerate(next(iter(found.values())).rows):
        cells = [cell(comparison, number, measure) for comparison, measure in columns]
        lines.append("| " + " | ".join([f"`{row.spec}`", f"{row.cost.multiply_adds / 1e9:.3g}", *cells]) + " |")
    return lines


def cell(comparison: Comparison, number: int, measure: str) -> str:
    """Return a value and half the width of its interval, such as "31.3 ± 9.8"; in bold the largest that decides."""
    row, (factor, _, digits) = comparison.rows[number], unit_of(measure)
    if measure not in row.scores:
        return "–"
    low, high = row.scores[measure].interval()
    text = f"{factor * row.scores[measure].value:.{digits}f} ± {factor * (high - low) / 2:.{digits}f}"
    values = [other.scores[measure].value for other in comparison.rows if measure in other.scores]
    best = measure in comparison.deciding and row.scores[measure].value == max(values)
    return f"**{text}**" if best else text


def notes(found: dict[str, Comparison], count: int, seed: int) -> list[str]:
    """Return how the table was made, and the verdict of each set."""
    lines = [f"`benchmarks/tasks.py`, commit {commit()}, {count} pictures a set, seed {seed}.", ""]
    for name, comparison in found.items():
        lines += [f"- **{name}**: {facts_line(comparison)}."]
        lines += [f"    - {sentence}" for sentence in comparison.verdict]
    return lines


def commit() -> str:
    """Return the commit that is checked out, with "-dirty" where files differ from it."""
    describe = ["git", "describe", "--always", "--dirty"]
    git = subprocess.run(describe, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return git.stdout.strip() or "unknown"


if __name__ == "__main__":
    typer.run(main)
