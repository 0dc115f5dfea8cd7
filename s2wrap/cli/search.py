"""`s2wrap search`: the pictures of a store that are most alike to others."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2wrap.cli import model as flags
from s2wrap.cli import output as out
from s2wrap.errors import S2WrapError

if TYPE_CHECKING:
    from s2wrap.extraction.reader import Found

SIDE = 160
"""Side of the drawn pictures in pixels."""


def search(
    store: Annotated[str, typer.Argument(help="What s2wrap features wrote; .parquet and .zarr also as URLs.")],
    pictures: Annotated[list[str], typer.Argument(help="Pictures to find others like them.")],
    *,
    nearest: Annotated[int, typer.Option("-k", "--nearest", min=1, help="How many are found for each.")] = 5,
    picture: Annotated[
        Path | None, typer.Option("--output", help="A .png to write: each picture beside the nearest ones.")
    ] = None,
    device: flags.Device = "cpu",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="The store was made with random weights: draw them again.")
    ] = False,
    as_json: out.Json = False,
    overwrite: out.Overwrite = False,
) -> None:
    """Find the pictures of a store of features that are most alike to others.

    What counts is the cosine of their vectors; where the store has maps, vectors are their means. The model that made
    the store encodes the pictures. The search is exact: it reads the whole store once, a few pictures at a time.
    """
    from s2wrap.extraction.opening import open as open_store

    if picture is not None:
        if picture.suffix.lower() != ".png":
            raise S2WrapError(f"--output {picture} is no .png; name it such as {picture.stem or 'search'}.png")
        out.check_overwrite([picture], overwrite)
    place, opened = flags.device(device), open_store(store)
    with out.notes().status(f"Searching {len(opened)} pictures"):
        model = opened.load_model(pretrained=not random_weights).to(place)
        found = opened.search(pictures, nearest, model=model)
    if picture is not None:
        _draw(pictures, found, picture)
    if as_json:
        nearest_of = ([each._asdict() for each in row] for row in found)
        rows = [{"picture": query, "nearest": row} for query, row in zip(pictures, nearest_of, strict=True)]
        out.print_json({"store": store, "found": rows})
        return
    pairs = [(query, each) for query, row in zip(pictures, found, strict=True) for each in row]
    columns = {
        "picture": [query for query, _ in pairs],
        "like it": [each.path for _, each in pairs],
        "cosine": [f"{each.cosine:.4f}" for _, each in pairs],
    }
    out.print_table(columns, kept=3)
    if picture is not None:
        out.print_line(f"wrote {picture}", out.notes())


def _draw(pictures: list[str], found: "list[list[Found]]", output: Path) -> None:
    """Write a row for each picture: itself, a gap, and the nearest ones with their cosines."""
    from PIL import Image, ImageDraw, ImageOps

    from s2wrap.extraction.decode import decode
    from s2wrap.extraction.picture import Picture
    from s2wrap.files import whole_file

    columns, gap, line = 1 + max(map(len, found)), 24, 18
    sheet = Image.new("RGB", (columns * SIDE + gap, len(pictures) * (SIDE + line)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (query, nearest) in enumerate(zip(pictures, found, strict=True)):
        shown = [(query, "searched"), *((each.path, f"{each.cosine:.4f}") for each in nearest)]
        for column, (name, words) in enumerate(shown):
            left, top = column * SIDE + (gap if column else 0), row * (SIDE + line)
            image = decode(Picture(name)).image
            if image is None or len(image) != 3 or image.element_size() != 1:
                pen.text((left + 4, top + SIDE // 2), "cannot be drawn", fill="black")
            else:
                tile = ImageOps.contain(Image.fromarray(image.permute(1, 2, 0).numpy()), (SIDE - 6, SIDE - 6))
                sheet.paste(tile, (left + (SIDE - tile.width) // 2, top + (SIDE - tile.height) // 2))
            pen.text((left + 4, top + SIDE), words, fill="black")
    with whole_file(output) as draft:
        sheet.save(draft, "PNG")
