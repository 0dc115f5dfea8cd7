"""`s2wrap check`: whether stores of features are whole."""

from functools import partial
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from s2wrap.cli import output as out
from s2wrap.errors import S2WrapError


def check(
    stores: Annotated[list[str], typer.Argument(help="What s2wrap features wrote; .parquet and .zarr also as URLs.")],
    *,
    as_json: out.Json = False,
) -> None:
    """Read whole stores of features, and compare them with what was written.

    The exit code is 1 where something is missing, changed, or cannot be read, and 2 where there is no such store.
    """
    from s2wrap.extraction.check import check as check_store

    console, found, refused = out.notes(), [], []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        for store in stores:
            task = bar.add_task(store, total=None)
            try:
                found.append(check_store(store, tell=partial(_move, bar, task)))
            except S2WrapError as error:  # the others are checked all the same
                refused.append(error)
    if as_json:
        out.print_json([each.to_json() for each in found])
    else:
        for each in found:
            unread = f", {each.failed} could not be read" if each.failed else ""
            unread += f" ({each.try_again} are tried again by the next run)" if each.try_again else ""
            state = "" if each.finished else "; the run was not finished"
            verdict = "; damaged:" if each.damage else "; whole"
            out.print_line(f"{each.store}: {each.rows} {each.counted}{unread}{state}{verdict}")
            for line in each.damage:
                out.print_line(f"  {line}")
    if refused:
        raise S2WrapError("; ".join(map(str, refused)))
    if any(each.damage for each in found):
        raise typer.Exit(1)


def _move(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)
