"""`s2wrap models`: what can be wrapped by name."""

import csv
import fnmatch
import json
from importlib.resources import files
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from s2wrap.backbones.registry import FAMILIES
from s2wrap.errors import MissingExtraError, S2WrapError

COLUMNS = {
    "input_hw": "input",
    "layout": "layout",
    "grid_hw": "grid",
    "prefix_tokens": "prefix",
    "channels": "channels",
}


def list_models(
    pattern: Annotated[
        str, typer.Argument(help="Names, such as 'dinov2', 'timm:vit_*' or 'open_clip:*SigLIP*'.")
    ] = "*",
    *,
    refused: Annotated[
        bool, typer.Option("--refused", help="Show those that cannot be wrapped, with the reason.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List what can be wrapped by name.

    Input size, layout, grid, prefix tokens and channels are those of the versions that s2wrap was checked with
    (benchmarks/zoo.py); models that are new since are listed without.
    """
    known = {f"{row['library']}:{row['model']}": row for row in checked()}
    found = [spec for spec in specs() if matches(spec, pattern)]
    if not found:
        raise S2WrapError(f"no model is named like {pattern!r}; try part of a name, such as dinov2, or timm:vit_*")
    rows = [(spec, known.get(spec, {})) for spec in found]
    rows = [(spec, row) for spec, row in rows if (row.get("result") == "refused") == refused]
    columns = {"reason": "reason"} if refused else COLUMNS
    if as_json:
        print(json.dumps([{"model": spec} | {key: row.get(key) for key in columns} for spec, row in rows], indent=2))
        return
    table = Table(Column("model", overflow="fold"), *columns.values())
    for spec, row in rows:
        table.add_row(spec, *(row.get(key, "–").replace("x", "×") if key != "reason" else row[key] for key in columns))
    Console().print(table)


def checked() -> list[dict[str, Any]]:
    """The table of benchmarks/zoo.py."""
    with (files("s2wrap") / "zoo.csv").open() as stream:
        return list(csv.DictReader(stream))


def specs() -> list[str]:
    """Every name of every family, without the tags of weights; of libraries that are installed."""
    found = []
    for name, family in FAMILIES.items():
        try:
            names = list(family.names())
        except MissingExtraError:
            continue
        plain = {each.partition("/")[0] if name == "open_clip" else each for each in names}
        if name == "timm":
            plain = {each for each in plain if "." not in each}
        found += [f"{name}:{each}" for each in sorted(plain)]
    return found


def matches(spec: str, pattern: str) -> bool:
    """Whether a spec, or its name alone, is like a pattern; plain words may stand anywhere in it."""
    pattern = pattern if "*" in pattern or "?" in pattern else f"*{pattern}*"
    return fnmatch.fnmatch(spec.lower(), pattern.lower()) or fnmatch.fnmatch(
        spec.partition(":")[2].lower(), pattern.lower()
    )
