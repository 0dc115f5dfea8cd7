"""Pictures of features: their maps as coloured cells, beside the photograph."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from s2wrap.components import likeness, principal_components
from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.geometry import Geometry, Number
from s2wrap.images import as_image, as_pictures
from s2wrap.policies import Pair
from s2wrap.wrapper import MultiScale

SIDE, GAP, FONT = 256, 14, 15
"""The longer side of a panel, what lies between panels, and the height of letters, in pixels."""
RAMP = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)])
"""Colours from dark to bright in equal steps (matplotlib's inferno): from the least likeness to 1."""
COMPONENTS = (
    "Like colours, like features: red, green and blue are the first three principal components, which all scales and "
    "all photographs have in common; a fused map and each layer have their own. Straight edges are borders of tiles."
)
LIKENESS = (
    "The brighter, the more alike: the cosine between the features of each cell and of the cell at the ring, from the "
    "least (black; the titles say it) to 1 (pale yellow)."
)


@dataclass(frozen=True)
class Panel:
    """One map of one photograph as a picture.

    Attributes:
        title: at which size it was looked at; how many cells.
        cells: (rows, columns, 3) uint8: a colour for each.
    """

    title: tuple[str, str]
    cells: np.ndarray


def every_scale(model: MultiScale) -> list[MultiScale]:
    """What shows a model whole: a pyramid of its scales, and itself; or itself alone, where nothing is fused."""
    if model.options.fuse == "pyramid" or len(model.scales) == 1:
        return [model]
    pyramid = replace(model.options, fuse="pyramid", weights=None, target_grid=None)
    return [MultiScale(model.backbone, pyramid), model]


def panels(looks: Sequence[Sequence[Features]], place: Number | None = None) -> list[list[Panel]]:
    """A panel for every map of every photograph.

    Args:
        looks: for each photograph the features, of a batch of one, of the same models in the same order.
        place: a point of the first photograph, as shares (0…1) of its width and height: the maps of all photographs
            show how alike each cell is to the one there. None: principal components, which all photographs have in
            common, and all maps of one model and layer, but for fused ones, which have their own.

    Raises:
        S2WrapError: features without a view, or that are not finite.
    """
    maps = [
        [
            (number, features, geometry, spatial)
            for number, features in enumerate(of_photo)
            for geometry, spatial in zip(features.geometry, features.maps, strict=True)
        ]
        for of_photo in looks
    ]
    alike = defaultdict[tuple[int | None, ...], list[Pair]](list)  # photograph and column of maps of one kind
    for row, of_photo in enumerate(maps):
        for column, (number, _, geometry, _) in enumerate(of_photo):
            fused = geometry.scale is None
            alike[column if place else number, geometry.layer, fused].append((row, column))
    shown: dict[Pair, tuple[str, np.ndarray]] = {}
    for places in alike.values():
        spatials = [maps[row][column][3] for row, column in places]
        geometry = maps[0][places[0][1]][2]
        pictures = _components(spatials) if place is None else _likenesses(spatials, geometry, place)
        shown |= dict(zip(places, pictures, strict=True))
    return [
        [
            Panel((_size(features, geometry), _grid(geometry) + shown[row, column][0]), shown[row, column][1])
            for column, (_, features, geometry, _) in enumerate(of_photo)
        ]
        for row, of_photo in enumerate(maps)
    ]


def photographs(images: object, count: int) -> list[Tensor]:
    """Photographs of any kind as (3, h, w) in 0…255; S2WrapError unless there are as many as `count`."""
    photos = [as_image(image) for image in as_pictures(images)]
    for photo in photos:
        if photo.dtype != torch.uint8:
            raise S2WrapError(f"a photograph of {photo.dtype}; give it in uint8, a path or a PIL image")
    if len(photos) != count:
        raise S2WrapError(f"{len(photos)} photographs for the features of {count}; give one for each")
    return [photo.cpu() for photo in photos]


def place_of(point: Number, image_hw: Pair) -> Number:
    """A point, across and down in pixels, as shares of a photograph's width and height; S2WrapError if outside."""
    height, width = image_hw
    try:
        across, down = map(float, point)
    except (TypeError, ValueError) as error:
        raise S2WrapError(f"point={point!r} is no point; use (across, down) in pixels") from error
    if not (0 <= across < width and 0 <= down < height):
        raise S2WrapError(
            f"point {across:g},{down:g} lies outside the photograph of {height}×{width} pixels (height × width); use "
            f"0…{width - 1} across and 0…{height - 1} down"
        )
    return across / width, down / height


def draw(
    photos: Sequence[Tensor | Pair],
    looks: Sequence[Sequence[Features]],
    point: Number | None = None,
    heads: Sequence[tuple[str, int]] = (),
) -> Image.Image:
    """One picture of photographs, a row each, with the maps of their features beside them and a legend below.

    Args:
        photos: (3, h, w) in 0…255; or height and width of those that are not shown.
        looks: as for `panels`.
        point: across and down, in pixels of the first photograph; what is like it is shown, and a ring marks it.
        heads: what stands above the maps, from left to right: a text, and how many maps it stands above.

    Raises:
        S2WrapError: a point outside the photograph; as `panels`.
    """
    sizes: list[Pair] = [(photo.shape[-2], photo.shape[-1]) if isinstance(photo, Tensor) else photo for photo in photos]
    place = None if point is None else place_of(point, sizes[0])
    rows = []
    for number, (photo, (height, width), of_photo) in enumerate(zip(photos, sizes, panels(looks, place), strict=True)):
        shrunk = SIDE / max(height, width)
        size = (max(1, round(width * shrunk)), max(1, round(height * shrunk)))
        row = [(panel.title, Image.fromarray(panel.cells).resize(size, Image.Resampling.NEAREST)) for panel in of_photo]
        if isinstance(photo, Tensor):
            pixels = Image.fromarray(rearrange(photo, "c h w -> h w c").numpy())
            row.insert(0, (("photograph", f"{height} x {width} pixels"), pixels.resize(size, Image.Resampling.LANCZOS)))
        if point is not None and number == 0:
            for _, picture in row:
                _ring(picture, point[0] * shrunk, point[1] * shrunk)
        rows.append(row)
    return _table(rows, LIKENESS if point else COMPONENTS, heads)


def _components(spatials: Sequence[Tensor]) -> list[tuple[str, np.ndarray]]:
    """Maps of one photograph each as colours, and nothing to add to their titles."""
    return [("", np.round(255 * colours[0]).astype(np.uint8)) for colours in principal_components(spatials)]


def _likenesses(spatials: Sequence[Tensor], geometry: Geometry, place: Number) -> list[tuple[str, np.ndarray]]:
    """How alike the cells of maps are to the one at a place of the first, as colours; and the range, for the title."""
    (across, down), (height, width) = place, geometry.image_hw
    row, column = map(int, geometry.cell_at((down * height, across * width)))
    marked = spatials[0][0, :, row, column].float()
    cosines = [likeness(spatial.float(), marked)[0].detach().cpu().numpy() for spatial in spatials]
    least = min(float(values.min()) for values in cosines)
    steps = np.linspace(0, 1, len(RAMP))
    shares = [np.clip((values - least) / max(1 - least, 1e-6), 0, 1) for values in cosines]
    colours = [np.stack([np.interp(share, steps, channel) for channel in RAMP.T], axis=-1) for share in shares]
    return [(f", {least:.2f} to 1", np.round(each).astype(np.uint8)) for each in colours]


def _size(features: Features, geometry: Geometry) -> str:
    """At which sizes and in how many tiles a map's photograph was looked at."""
    layer = "" if geometry.layer is None else f", layer {geometry.layer}"
    scales = features.plan.scales
    if geometry.scale is None and len(scales) > 1:
        return f"{len(scales)} scales fused{layer}"
    scale = scales[geometry.scale or 0]
    tiles = f" in {_by(scale.block_size)} tiles" if len(scale.origins) > 1 else ""
    return f"{_by(scale.image_hw)} pixels{tiles}{layer}"


def _grid(geometry: Geometry) -> str:
    return f"{_by(geometry.grid)} cells"


def _by(pair: Pair) -> str:
    return f"{pair[0]} x {pair[1]}"  # Pillow's own font has no ×


def _ring(picture: Image.Image, x: float, y: float) -> None:
    """Draw a ring around a point that shows on any colour."""
    draw = ImageDraw.Draw(picture)
    draw.circle((x, y), 8, outline="black", width=5)
    draw.circle((x, y), 7, outline="white", width=2)


def _table(
    rows: Sequence[Sequence[tuple[tuple[str, str], Image.Image]]], legend: str, heads: Sequence[tuple[str, int]]
) -> Image.Image:
    """Titled pictures in rows and columns, what stands above the columns, and a legend below."""
    font = ImageFont.load_default(FONT)
    line = round(1.3 * FONT)
    widths = [
        max(max(picture.width, *(round(font.getlength(text)) for text in title)) for title, picture in column)
        for column in zip(*rows, strict=True)
    ]
    lefts = [GAP + sum(widths[:column]) + GAP * column for column in range(len(widths) + 1)]
    heights = [2 * line + max(picture.height for _, picture in row) + GAP for row in rows]
    top = GAP + (line + GAP // 2 if heads else 0)
    text = "\n".join(textwrap.wrap(legend, max(20, round((lefts[-1] - 2 * GAP) / (0.52 * FONT)))))
    bottom = top + sum(heights) + line * (1 + text.count("\n")) + GAP
    canvas = Image.new("RGB", (lefts[-1], bottom), "white")
    pen = ImageDraw.Draw(canvas)
    column = len(widths) - sum(count for _, count in heads)  # after the photographs
    for head, count in heads:
        pen.text((lefts[column], GAP), head, "black", font)
        column += count
    for row, height in zip(rows, heights, strict=True):
        for left, (title, picture) in zip(lefts, row, strict=False):
            for number, words in enumerate(title):
                pen.text((left, top + line * number), words, "#555555" if number else "black", font)
            canvas.paste(picture, (left, top + 2 * line))
        top += height
    pen.multiline_text((GAP, top), text, "#555555", font, spacing=line - FONT)
    return canvas
