"""`s2wrap show`: what a model sees, as one picture."""

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from s2wrap.cli import model as flags
from s2wrap.cli.output import Overwrite, check_overwrite, notes, print_line
from s2wrap.errors import S2WrapError
from s2wrap.files import whole_file


@flags.model_options()
def show(
    photos: Annotated[list[Path], typer.Argument(help="Pictures; each is a row.")],
    *,
    model: Annotated[str, typer.Option(help=flags.SPEC_HELP)] = "sample:dinov2_s14@1,2,3",
    other: Annotated[str | None, typer.Option("--with", help="A second model, side by side with the first.")] = None,
    point: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="Show how alike everything is to what lies at this pixel of the first photo."),
    ] = None,
    output: Annotated[Path, typer.Option(help="The .png to write.")] = Path("show.png"),
    overwrite: Overwrite = False,
    device: flags.Device = "cpu",
    options: dict[str, Any],
) -> None:
    """Draw what a model sees in photographs, at every scale and fused.

    Red, green and blue are the first three principal components of the features: like colours, like features. All
    photographs and scales have them in common; a fused map has its own. With --point, every cell is as bright as its
    features are alike (their cosine) to those at one pixel of the first photograph, in all photographs. Options are
    those of both models.
    """
    import torch
    from rich.progress import track

    from s2wrap.factory import load
    from s2wrap.images import load_image
    from s2wrap.look import draw, every_scale, place_of

    if output.suffix.lower() != ".png":
        raise S2WrapError(f"--output {output} is no .png; name it such as {output.stem or 'show'}.png")
    check_overwrite([output], overwrite)
    console = notes()
    place = flags.device(device)
    pictures = [load_image(_file(path)) for path in photos]
    marked = None if point is None else _point(point)
    if marked is not None:
        place_of(marked, (pictures[0].shape[1], pictures[0].shape[2]))  # before the work
    specs = [model] if other is None else [model, other]
    with whole_file(output) as draft:
        models = [every_scale(load(spec, **options).to(place)) for spec in specs]
        looks = []
        for picture in track(pictures, "looking", console=console, transient=True, disable=not console.is_terminal):
            with torch.inference_mode():
                looks.append([[each.encode(picture)[0].cpu() for each in ways] for ways in models])
        maps = [sum(len(features.maps) for features in seen) for seen in looks[0]]
        heads = list(zip(specs, maps, strict=True))
        draw(pictures, [list(chain(*seen)) for seen in looks], marked, heads).save(draft, "PNG")
    print_line(f"wrote {output}")


def _file(path: Path) -> Path:
    """A photograph's path; S2WrapError for a folder."""
    if path.is_dir():
        raise S2WrapError(f"{path} is a folder; name its photographs, such as {path}/*.jpg")
    return path


def _point(text: str) -> tuple[float, float]:
    """Across and down, in pixels, from their text."""
    try:
        across, down = map(float, text.split(","))
    except ValueError as error:
        raise S2WrapError(
            f"--point {text!r} is no point; write pixels from the left and from the top as 230,100"
        ) from error
    return across, down
