"""`s2wrap features`: pictures in, one file of features out."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from s2wrap.cli import model as options
from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.files import disk_errors, whole_file
from s2wrap.images import find_images, load_image
from s2wrap.wrapper import MultiScale, load

Arrays = dict[str, Tensor]


def extract(
    photos: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    *,
    model: Annotated[str, typer.Option(help=options.SPEC_HELP)],
    output: Annotated[Path, typer.Option(help="A .safetensors or .npz file.")],
    fit: options.Fit = "stretch",
    whole: options.Whole = None,
    overlap: options.Overlap = 0,
    blend: options.Blend = "smooth",
    norm: options.Norm = "none",
    target_grid: options.TargetGrid = None,
    fuse: options.Fuse = "concat",
    weights: options.Weights = None,
    prefix: options.Prefix = "area",
    tile_batch: options.TileBatch = None,
    image_size: options.ImageSize = None,
    checkpoint: options.Checkpoint = None,
    random_weights: options.RandomWeights = False,
    device: options.Device = "cpu",
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Go on after a picture that cannot be read.")
    ] = False,
) -> None:
    """Write the features of pictures to one file.

    The file holds `spatial` (pictures, channels, rows, columns) and `prefix` (pictures, tokens, channels), both
    float32 (numbered, one a scale, for a pyramid), the pictures' names, the model's spec and s2wrap's version. Where
    the pictures' shapes give them grids of different sizes (fit aspect or pad), each has arrays of its own, under its
    number: `0/spatial`, `0/prefix`, `1/spatial`, …
    """
    asked: dict[str, Any] = {"fit": fit, "whole": whole, "overlap": overlap, "blend": blend, "norm": norm}
    asked |= {"fuse": fuse, "prefix": prefix}
    write, place, factors = _writer(output), options.device(device), options.weights(weights)
    files = find_images(photos)
    with whole_file(output) as draft:
        wrapped = load(
            model,
            pretrained=not random_weights,
            image_size=image_size,
            checkpoint=checkpoint,
            tile_batch=tile_batch,
            weights=factors,
            target_grid=options.target_grid(target_grid),
            **asked,
        ).to(place)
        done, rows = _features_of(wrapped, files, skip_errors=skip_errors, folder=draft.parent)
        metadata = {
            "files": json.dumps([str(file) for file in done]),
            "spec": model,
            "options": json.dumps(asked | {"weights": weights, "target_grid": target_grid, "image_size": image_size}),
            "s2wrap_version": version("s2wrap"),
        }
        arrays = _joined(rows)
        with disk_errors(output):
            write(arrays, metadata, draft)
    failed = len(files) - len(done)
    shape = " + ".join(str(tuple(tensor.shape[1:])) for name, tensor in rows[0].items() if name.startswith("spatial"))
    shape = f"{shape} each" if len(arrays) == len(rows[0]) else "each on a grid of its own"
    unread = f"; {failed} could not be read" if failed else ""
    _say(Console(stderr=True), f"{len(done)} pictures, {shape} → {output}{unread}")


@torch.inference_mode()
def _features_of(
    model: MultiScale, files: list[Path], *, skip_errors: bool, folder: Path
) -> tuple[list[Path], list[Arrays]]:
    """The pictures that could be read, and the arrays of each."""
    done: list[Path] = []
    rows: list[Arrays] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for file in progress.track(files, description="features"):
            try:
                image = load_image(file)
            except S2WrapError as error:
                if not skip_errors:
                    raise
                _say(progress.console, f"skipped {error}", style="yellow")
                continue
            rows.append(_arrays(model(image[None].to(model.backbone.device))))
            if not done:
                _check_room(rows[0], len(files), folder)
            done.append(file)
    if not done:
        raise S2WrapError(f"none of {len(files)} pictures could be read; nothing was written")
    return done, rows


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is: names of files may look like markup."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _arrays(result: Features) -> Arrays:
    """The tensors of one picture by name; numbered for a pyramid."""
    named = {}
    for k, (spatial, prefix) in enumerate(zip(result.maps, result.prefixes, strict=True)):
        number = f"_{k}" if len(result.maps) > 1 else ""
        named["spatial" + number] = spatial.float().cpu()
        named["prefix" + number] = prefix.float().cpu()
    return named


def _joined(rows: list[Arrays]) -> Arrays:
    """The arrays of all pictures as one each, or numbered where their shapes differ."""
    if all(row[name].shape == rows[0][name].shape for row in rows for name in rows[0]):
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    return {f"{number}/{name}": tensor[0] for number, row in enumerate(rows) for name, tensor in row.items()}


def _check_room(row: Arrays, count: int, folder: Path) -> None:
    """Refuse before the work what the disk cannot hold after it."""
    needed = count * sum(tensor.nbytes for tensor in row.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise S2WrapError(f"{count} pictures make {needed / 1e6:.1f} MB, but the disk has {free / 1e6:.1f} MB left")


def _writer(output: Path) -> Callable[[Arrays, dict[str, str], Path], None]:
    """What writes a file with this ending."""
    writers = {".safetensors": _write_safetensors, ".npz": _write_npz}
    if output.suffix not in writers:
        raise S2WrapError(f"cannot write {output}: the ending must be {' or '.join(writers)}")
    return writers[output.suffix]


def _write_safetensors(arrays: Arrays, metadata: dict[str, str], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.contiguous() for name, tensor in arrays.items()}, path, metadata)
    except SafetensorError as error:  # the library's own word for a full disk
        raise OSError(str(error)) from error


def _write_npz(arrays: Arrays, metadata: dict[str, str], path: Path) -> None:
    texts = {name: np.array(json.loads(text) if name == "files" else text) for name, text in metadata.items()}
    named: dict[str, Any] = {name: tensor.numpy() for name, tensor in arrays.items()} | texts
    np.savez(path, **named)
