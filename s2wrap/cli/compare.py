"""`s2wrap compare`: a larger model, a larger image, smaller patches or several scales?"""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from s2wrap.cli import model as flags
from s2wrap.cli import output
from s2wrap.errors import S2WrapError

SPEC_HELP = (
    "Models: FAMILY:NAME@SCALES; …@2:whole is a larger input in one pass, NAME:patch=7@1 has smaller patches "
    "(ViTs of timm), NAME:size=448@1 is built for another input size; 'SPEC fuse=detail' has its own options."
)


def _clear_cache(asked: bool) -> bool:
    """Delete the features that comparisons kept, say how many, and end."""
    if asked:
        from s2wrap.compare.extract import default_folder, trim

        count, size = trim(default_folder(), 0)
        output.print_line(f"deleted {count} files of {default_folder()}, {size / 2**20:,.0f} MiB", output.notes())
        raise typer.Exit
    return asked


@flags.model_options()
def compare_models(
    specs: Annotated[list[str], typer.Argument(help=SPEC_HELP)],
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder: CLASS/…, or images/ and masks/, or pictures without labels; any of them also in train/ and "
            "val/."
        ),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="What is measured, with commas; by default what the folder is for: see the docs.")
    ] = None,
    report: Annotated[
        list[Path] | None, typer.Option(help="Write it too: .html (one page), .csv, .json, .png or .svg. Repeatable.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Propose models of no more multiply-adds an image, such as 20GMAC, and compare those."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="The larger model whose features the others are to reconstruct (paper, §4).")
    ] = None,
    pool: Annotated[str, typer.Option(help="What a picture's vector is: some of mean, max, cls.")] = "mean",
    backend: Annotated[
        str,
        typer.Option(
            help="Timed, with commas: eager, compile, max-autotune, cuda-graph, onnx, tensorrt, tensorrt-rtx; or none."
        ),
    ] = "eager",
    seconds: Annotated[float, typer.Option(help="Time each for so long, and ten runs at least.")] = 2.0,
    batch: Annotated[int, typer.Option(min=1, help="Images in a call that is timed.")] = 1,
    image: flags.Image = None,
    device: flags.Device = "cpu",
    cache: Annotated[
        Path | None, typer.Option(help="Where features are kept (default: the user's cache folder).")
    ] = None,
    clear_cache: Annotated[
        bool,
        typer.Option("--clear-cache", callback=_clear_cache, is_eager=True, help="Delete all features kept, and end."),
    ] = False,
    skip_errors: Annotated[bool, typer.Option("--skip-errors", help="Leave out pictures that cannot be read.")] = False,
    as_json: output.Json = False,
    overwrite: output.Overwrite = False,
    options: dict[str, Any],
) -> None:
    """Compare models: what an image costs, what they know; say which wins.

    With classes: accuracy of logistic regression and k-NN. With masks: mIoU of linear segmentation.
    Without labels: whether a place is found again in a warped picture. With --target: how much of its features a
    linear map recovers. Without --data: costs only, with random weights. Features are kept on disk; an interrupted
    comparison goes on where it stopped.
    """
    from s2wrap.backbones import parse_spec
    from s2wrap.compare import compare, propose
    from s2wrap.compare.report import check_ending, to_json, write_report
    from s2wrap.compare.table import print_table

    for path in report or []:
        check_ending(path)
        if not path.absolute().parent.is_dir():
            raise S2WrapError(f"cannot write {path}: there is no such folder")
        if data is None and path.suffix.lower() in (".png", ".svg"):
            raise S2WrapError(f"cannot write {path}: costs only are no plot; give a folder of pictures (--data)")
    output.check_overwrite(report or [], overwrite)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise PyTorch's profiler writes to stderr for every model
    place = flags.device(device)
    backends = () if backend == "none" else tuple(part.strip() for part in backend.split(","))
    console, image_hw = output.notes(), flags.image_hw(image) if image else None
    if budget is not None:
        proposed = propose(
            specs,
            budget,
            image_hw=image_hw,
            progress=lambda names: track(
                names, "proposing", console=console, transient=True, disable=not console.is_interactive
            ),
            **options,
        )
        for spec in sorted({str(parse_spec(spec)) for spec in specs} - proposed.keys()):
            output.print_line(f"above the budget: {spec}", console, "yellow")
        specs = list(proposed)
    found = compare(
        specs,
        data=data,
        tasks=None if tasks is None else [name.strip() for name in tasks.split(",")],
        target=target,
        pool=pool,
        backends=backends,
        seconds=seconds,
        batch=batch,
        image_hw=image_hw,
        device=place,
        skip_errors=skip_errors,
        console=console,
        cache=True if cache is None else cache,
        **options,
    )
    if as_json:
        print(to_json(found))
    else:
        print_table(found, output.results())
    for path in report or []:
        write_report(found, path)
        output.print_line(f"wrote {path}", console)
