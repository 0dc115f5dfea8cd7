"""Measure detection and false alarms of scaling attacks, and how s2wrap's own resize responds to them.

Each photograph is changed as little as possible (least squares, 0…255) so that a downscale without antialiasing gives
another photograph, to about 2 grey levels a pixel. Ratios are between the picture, at its own pixels, and the size
that is attacked: photographs are not enlarged first, which would make them smooth and attacks easy to see.

- by score: the detected share of attacks, or the false alarms of clean pictures, by each score and by two of three;
  `round trip` decides.
- nearest: the round trip that is nearest to the threshold: the least of the attacks, the largest of the clean pictures.
- to target, to source: mean grey levels from the attacked kernel's output to the target, and from the output of
  s2wrap's antialiased resize to the source, in percent of the levels between target and source.

    python benchmarks/scaling_attacks.py [--tuning] [--csv scaling_attacks.csv]
"""

import csv
import io
import random
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
import typer
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage import data
from sklearn.datasets import load_sample_image
from torch import Tensor

from s2wrap.files import whole_file
from s2wrap.images import as_image, load_image
from s2wrap.resample import resize
from s2wrap.scaling_attacks import KERNELS, MINIMUM_FILTER, PEAKS, ROUND_TRIP, ScalingAttack, find_scaling_attack

TUNING = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "moon", "brick")
"""Photographs on which the thresholds were chosen."""
HELD_OUT = (
    "camera",
    "hubble_deep_field",
    "retina",
    "gravel",
    "grass",
    "cell",
    "motorcycle",
    "china",
    "flower",
    "hopper",
)
Result = tuple[ScalingAttack, float, float]
"""The scores of a picture, and the distances to target and source."""
RATIOS = (2, 2.5, 3, 4, 4.57, 5, 6)
SCORES = ("round trip", "minimum filter", "spectrum", "two of three")
COLUMNS = ("picture", "looked at", *SCORES, "nearest", "to target", "to source")


def photograph(name: str) -> Tensor:
    """Return a photograph: uint8 (3, height, width)."""
    if name == "hopper":
        return as_image(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    if name in ("china", "flower"):
        return as_image(np.array(load_sample_image(f"{name}.jpg")))
    return as_image(data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)())


def shrink(image: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Return a picture scaled down by s2wrap's antialiased resize, in 0…255."""
    return resize(image[None].float(), image_hw)[0].clamp(0, 255)


def shrink_badly(image: Tensor, image_hw: tuple[int, int], kernel: str) -> Tensor:
    """Return a picture scaled down without antialiasing."""
    return F.interpolate(image[None].float(), size=image_hw, mode=kernel)[0]


def craft(image: Tensor, target: Tensor, kernel: str, *, tolerance: float = 2.0, steps: int = 40) -> Tensor:
    """Return the picture nearest to `image` that `kernel` scales down to `target`, to `tolerance` grey levels.

    A downscale is L·x·Rᵀ, with the columns of L and R zero for pixels that it does not read. The picture nearest to x
    that satisfies |L·z·Rᵀ - target| ≤ tolerance and 0 ≤ z ≤ 255 is computed by alternating projections, each corrected
    by its last step (Dykstra's algorithm, Boyle and Dykstra 1986); exactly where no two outputs read the same pixel
    (bilinear from ratio 2, bicubic from ratio 4).
    """
    rows, columns = (_matrix(*sizes, kernel) for sizes in zip(image.shape[-2:], target.shape[-2:], strict=True))
    read = torch.meshgrid(rows.any(dim=0).nonzero()[:, 0], columns.any(dim=0).nonzero()[:, 0], indexing="ij")
    left, right = rows[:, rows.any(dim=0)], columns[:, columns.any(dim=0)].T
    inverse_left, inverse_right = torch.linalg.pinv(left), torch.linalg.pinv(right)
    pixels = image[:, *read].float()
    target_step, range_step = torch.zeros_like(pixels), torch.zeros_like(pixels)
    for _ in range(steps):
        corrected = pixels + target_step
        error = left @ corrected @ right - target
        projected = corrected - inverse_left @ (error - error.clamp(-tolerance, tolerance)) @ inverse_right
        target_step = corrected - projected
        pixels = (projected + range_step).clamp(0, 255)
        range_step = projected + range_step - pixels
    attacked = image.clone()
    attacked[:, *read] = pixels.round().to(torch.uint8)
    return attacked


def _matrix(old: int, new: int, kernel: str) -> Tensor:
    """Return the (new, old) matrix of a downscale along one axis, which is its result on the identity."""
    return shrink_badly(torch.eye(old)[None], (new, old), kernel)[0]


def changed(image: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a clean photograph and changed versions that may be taken for attacks, with their kinds."""
    generator = torch.Generator().manual_seed(0)
    height, width = image.shape[-2:]
    picture = Image.fromarray(rearrange(image, "c h w -> h w c").numpy())
    yield "as it is", image
    yield "JPEG 90", jpeg(image, 90)
    yield "JPEG 50", jpeg(image, 50)
    yield "sharpened", as_image(picture.filter(ImageFilter.UnsharpMask(2, 200, 0)))
    noise = torch.randn(image.shape, generator=generator)
    yield "noise, 25 grey levels", (image + 25 * noise).round().clamp(0, 255).to(torch.uint8)
    draw = torch.rand(image.shape[1:], generator=generator)
    yield "salt and pepper, 3 %", torch.where(draw < 0.015, 0, torch.where(draw > 0.985, 255, image)).to(torch.uint8)
    yield "enlarged twice", shrink(image, (2 * height, 2 * width)).round().to(torch.uint8)
    blocks = shrink(image, (height // 4, width // 4)).round().to(torch.uint8)
    yield "blocks of 4×4", repeat(blocks, "c h w -> c (h a) (w b)", a=4, b=4)
    yield "every 4th line dark", torch.where(torch.arange(height)[:, None] % 4 == 0, image // 2, image)
    yield "error diffusion", as_image(picture.convert("1").convert("RGB"))
    yield "halftone, 45°, 5 pixels", halftone(image, 5, turned=True)
    yield "halftone, 6 pixels", halftone(image, 6)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Return the picture after JPEG compression."""
    stream = io.BytesIO()
    Image.fromarray(rearrange(image, "c h w -> h w c").numpy()).save(stream, "JPEG", quality=quality)
    return as_image(Image.open(stream))


def halftone(image: Tensor, period: float, *, turned: bool = False) -> Tensor:
    """Return a print of the picture in black dots on white, `period` pixels apart."""
    y, x = torch.meshgrid(
        *(torch.arange(length) * (2 * torch.pi / period) for length in image.shape[-2:]), indexing="ij"
    )
    y, x = ((y + x) / 2**0.5, (y - x) / 2**0.5) if turned else (y, x)
    white = image.float().mean(dim=0) > 127.5 + 63.75 * (y.cos() + x.cos())
    return repeat(white.to(torch.uint8) * 255, "h w -> 3 h w")


def text_page(seed: int) -> Tensor:
    """Return a page of random letters, 640 × 480 pixels."""
    generator, page = random.Random(seed), Image.new("RGB", (480, 640), "white")
    size = 9 + seed % 10
    letters = "etaoinshrdlu     "
    for top in range(10, 630, round(size * 1.3)):
        line = "".join(generator.choice(letters) for _ in range(1000 // size))
        ImageDraw.Draw(page).text((12, top), line, fill="black", font=ImageFont.load_default(size))
    return as_image(page)


def textiles(count: int) -> list[Tensor]:
    """Return photographs of cloth, 250 × 250 pixels, evenly spread over the package conformal_clip_data."""
    with as_file(files("conformal_clip_data")) as folder:
        paths = sorted(folder.rglob("*.jpg"))
        return [load_image(path) for path in paths[:: len(paths) // count][:count]]


def attacks(names: tuple[str, ...]) -> Iterator[tuple[str, Result]]:
    """Yield each attack's kind and result, with distances in percent."""
    for number, name in enumerate(track(names, description="attacks", console=Console(stderr=True))):
        image, targets = photograph(name), [photograph(names[(number + k) % len(names)]) for k in (1, 4)]
        height, width = image.shape[-2:]
        sizes = {f"ratio {ratio:g}": (int(height / ratio), int(width / ratio)) for ratio in RATIOS}
        for size, image_hw in (sizes | {"224², size not given": (224, 224)}).items():
            searched_hw, source = None if "not given" in size else image_hw, shrink(image, image_hw)
            for index, kernel in enumerate(KERNELS):
                target = shrink(targets[index % 2], image_hw)
                attacked, percent = craft(image, target, kernel), float((source - target).abs().mean()) / 100
                kinds = {f"{kernel}, {size}": attacked}
                if size == "ratio 4.57":
                    kinds[f"{kernel}, {size}, then JPEG 90"] = jpeg(attacked, 90)
                for kind, picture in kinds.items():
                    to_target = float((shrink_badly(picture, image_hw, kernel) - target).abs().mean()) / percent
                    to_source = float((shrink(picture, image_hw) - source).abs().mean()) / percent
                    yield kind, (find_scaling_attack(picture, image_hw=searched_hw), to_target, to_source)


def clean(names: tuple[str, ...]) -> Iterator[tuple[str, Result]]:
    """Yield each clean picture's kind and result, at every ratio and without a given size."""
    pictures = [(kind, image) for name in names for kind, image in changed(photograph(name))]
    pictures += [("text page", text_page(seed)) for seed in range(20)]
    pictures += [("cloth", image) for image in textiles(100)]
    for kind, image in track(pictures, description="clean", console=Console(stderr=True)):
        for ratio in RATIOS:
            image_hw = (int(image.shape[-2] / ratio), int(image.shape[-1] / ratio))
            yield kind, (find_scaling_attack(image, image_hw=image_hw), 0, 0)
            if kind == "as it is" and ratio >= 3:
                dots = halftone(image, ratio)
                yield "halftone, period = ratio", (find_scaling_attack(dots, image_hw=image_hw), 0, 0)
        if kind != "cloth":  # smaller than all sizes that are tried
            yield f"{kind}, size not given", (find_scaling_attack(image), 0, 0)


def table_row(kind: str, results: list[Result], *, attacked: bool) -> list[str]:
    """Return one row of the table."""
    scores = [score for score, _, _ in results]
    flags = np.array([(s.is_attack, s.minimum_filter >= MINIMUM_FILTER, s.peaks >= PEAKS, s.votes > 1) for s in scores])
    nearest = (min if attacked else max)(score.round_trip for score in scores)
    means = np.mean([distances for _, *distances in results], axis=0)
    levels = [f"{mean:.0f} %" for mean in means] if attacked else ["", ""]
    return [kind, str(len(results)), *(f"{100 * rate:.1f} %" for rate in flags.mean(axis=0)), f"{nearest:.2f}", *levels]


def main(
    tuning: Annotated[bool, typer.Option("--tuning", help="The pictures that the thresholds were chosen on.")] = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the table as CSV too.")] = None,
) -> None:
    """Print the table."""
    names, rows = TUNING if tuning else HELD_OUT, []
    for attacked, pictures in ((True, attacks(names)), (False, clean(names))):
        by_kind: dict[str, list[Result]] = {}
        for kind, result in pictures:
            by_kind.setdefault(kind, []).append(result)
        rows += [table_row(kind, results, attacked=attacked) for kind, results in by_kind.items()]
        everything = [result for results in by_kind.values() for result in results]
        rows.append(table_row("all attacks" if attacked else "all clean pictures", everything, attacked=attacked))
    table = Table(title=f"{len(names)} photographs; attack from round trip {ROUND_TRIP}")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "picture" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
    if csv_file is not None:
        with whole_file(csv_file) as draft, draft.open("w", newline="") as stream:
            csv.writer(stream).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    typer.run(main)
