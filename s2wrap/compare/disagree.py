"""Find the pictures on which two models disagree most, and draw them small."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s2wrap.compare.comparison import Comparison
from s2wrap.errors import S2WrapError
from s2wrap.images import Reading, load_image

SIDE, MOST_BYTES = 160, 14_000
"""The largest side of a drawn picture in pixels, and its largest file: base64 makes it a third longer."""


@dataclass(frozen=True)
class Disagreement:
    """A tested picture, and what a measure is on it alone for two models."""

    picture: str
    one: float
    other: float


def two_best(comparison: Comparison, measure: str) -> tuple[str, ...]:
    """Return the specs of the models with the largest scores in a measure: two, or fewer where fewer have a score."""
    scored = [row for row in comparison.rows if measure in row.scores]
    return tuple(row.spec for row in sorted(scored, key=lambda row: -row.scores[measure].value)[:2])


def disagreements(
    comparison: Comparison, measure: str, models: tuple[str, ...] | None = None, count: int = 4
) -> list[Disagreement]:
    """Return the tested pictures on which two models differ most in a measure, the largest difference first.

    Args:
        comparison: a comparison on pictures.
        measure: one of its measures.
        models: specs of two models; by default the two best.
        count: most pictures; those on which the models agree are never among them.

    Raises:
        S2WrapError: a model without a score in the measure.
    """
    models = models or two_best(comparison, measure)
    scores = {row.spec: row.scores[measure] for row in comparison.rows if measure in row.scores}
    if unknown := [spec for spec in models if spec not in scores]:
        raise S2WrapError(f"{unknown[0]!r} has no score in {measure!r}; models that have are {', '.join(scores)}")
    if len(models) < 2:
        return []
    one, other = (scores[spec].each for spec in models)
    pictures = comparison.pictures if len(one) == len(comparison.pictures) else comparison.tested
    gaps = np.nan_to_num(np.abs(one - other))
    order = [index for index in np.argsort(-gaps, kind="stable")[:count] if gaps[index] > 0]
    return [Disagreement(pictures[index], float(one[index]), float(other[index])) for index in order]


def thumbnail(path: str) -> str:
    """Return a picture as a JPEG data URI of 20 kB at most, its largest side 160 pixels; "" where its file is gone."""
    from PIL import Image

    if not Path(path).is_file():
        return ""
    pixels = load_image(path, Reading(value_range=(0, 1)))
    pixels = pixels[: 3 if len(pixels) >= 3 else 1].permute(1, 2, 0).numpy()
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = (255 * (pixels - low) / ((high - low) or 1)).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((SIDE, SIDE))
    for quality in (85, 60, 30):
        image.save(stream := io.BytesIO(), "JPEG", quality=quality)
        if stream.tell() <= MOST_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
