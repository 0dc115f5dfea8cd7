"""`s2wrap models`: what can be wrapped by name."""

import csv
import fnmatch
import sys
from collections.abc import Iterator
from importlib.resources import files
from typing import Annotated, Any

import typer

from s2wrap.cli import output
from s2wrap.errors import MissingExtraError, S2WrapError

COLUMNS = {
    "model": "model",
    "weights": "weights",
    "input_hw": "input",
    "channels": "channels",
    "grid_hw": "grid",
    "prefix_tokens": "prefix",
    "layout": "layout",
}
"""What is listed of a model, the most important first, and its heading."""


def list_models(
    pattern: Annotated[
        str, typer.Argument(help="Names, such as 'dinov2', 'timm:vit_*' or 'open_clip:*siglip*', in any case.")
    ] = "*",
    *,
    tags: Annotated[
        bool, typer.Option("--tags", help="Names of pretrained weights: timm:NAME.TAG, open_clip:NAME/TAG, …")
    ] = False,
    refused: Annotated[
        bool, typer.Option("--refused", help="Show those that cannot be wrapped, with the reason.")
    ] = False,
    as_json: output.Json = False,
) -> None:
    """List what can be wrapped by name.

    Where stdout is no terminal, one name a line. Weights are cached (on this disk), in a package that is installed or
    not (no package), or are downloaded when they are asked for; – means that the name has none.

    Input size, channels, grid, prefix tokens and layout are those of the versions that s2wrap was checked with
    (benchmarks/zoo.py); models that are new since are listed without.
    """
    known = {f"{row['library']}:{row['model']}": row for row in checked()}
    rows = {spec: known.get(architecture, {}) for spec, architecture in specs(pattern, tags)}
    if not rows:
        raise S2WrapError(f"no model is named like {pattern!r}; try part of a name, such as dinov2, or timm:vit_*")
    rows = {spec: row for spec, row in rows.items() if (row.get("result") == "refused") == refused}
    if not as_json and not sys.stdout.isatty() and not refused:
        print(*rows, sep="\n")
        return
    columns = {"model": "model", "reason": "reason"} if refused else COLUMNS
    found = [{key: row.get(key) for key in columns} | {"model": spec} for spec, row in rows.items()]
    for row in found if not refused else ():
        row["weights"] = _weights(str(row["model"]))
    if as_json:
        output.print_json(found)
        return
    if refused:
        for row in found:
            output.print_line(f"{row['model']}: {row['reason']}")
        return
    output.print_table({heading: [_text(row[key], key) for row in found] for key, heading in columns.items()})


def checked() -> list[dict[str, Any]]:
    """The table of benchmarks/zoo.py."""
    with (files("s2wrap") / "zoo.csv").open() as stream:
        return list(csv.DictReader(stream))


def specs(pattern: str = "*", tags: bool = False) -> Iterator[tuple[str, str]]:
    """The names that are like a pattern, and the same without tags; of libraries that are installed.

    Args:
        pattern: see `matches`.
        tags: names of pretrained weights, instead of names without their tags.
    """
    from s2wrap.backbones.registry import FAMILIES

    for family, adapter in FAMILIES.items():
        if ":" in pattern and not fnmatch.fnmatch(family, pattern.lower().partition(":")[0]):
            continue  # its library need not be imported
        try:
            names = sorted(set(adapter.names()))
        except MissingExtraError:
            continue
        for name in names:
            plain = name.partition(adapter.tag_mark)[0] if adapter.tag_mark else name
            tagged = plain != name if adapter.tag_mark or not tags else adapter.weights(name) is not None
            if tagged == tags and matches(f"{family}:{name}", pattern):
                yield f"{family}:{name}", f"{family}:{plain}"


def matches(spec: str, pattern: str) -> bool:
    """Whether a spec, or its name alone, is like a pattern in any case; plain words may stand anywhere in it."""
    pattern = pattern.lower() if "*" in pattern or "?" in pattern else f"*{pattern.lower()}*"
    return any(fnmatch.fnmatchcase(text, pattern) for text in (spec.lower(), spec.lower().partition(":")[2]))


def _weights(spec: str) -> str | None:
    """Where the weights of a spec are."""
    from s2wrap.backbones.registry import FAMILIES

    family, _, name = spec.partition(":")
    return FAMILIES[family].weights(name)


def _text(value: str | None, key: str) -> str:
    """A cell of the table."""
    return "–" if value is None else value.replace("x", "×") if key.endswith("_hw") else value
