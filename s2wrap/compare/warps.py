"""Known changes of a picture: random homographies and lightings, the same for every model."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

from s2wrap.compare.extract import UnableError, check_finite
from s2wrap.resample import resize
from s2wrap.wrapper import MultiScale


@dataclass(frozen=True)
class Strength:
    """The largest changes that are drawn.

    Attributes:
        rotation: degrees, to both sides.
        scale: the smallest and the largest enlargement.
        perspective: how much an edge of the picture comes nearer or goes away, as a share.
        shift: parts of the side, to all sides.
        light: contrast is changed by this share, and brightness by this part of the range of values.
    """

    rotation: float
    scale: tuple[float, float]
    perspective: float
    shift: float
    light: float


STRENGTHS = {
    "easy": Strength(7.5, (0.9, 1.1), 0.05, 0.03, 0.1),
    "medium": Strength(15, (0.8, 1.15), 0.1, 0.05, 0.2),
    "hard": Strength(30, (0.65, 1.4), 0.2, 0.1, 0.35),
}
TO_CENTRE = np.array([[2.0, 0, -1], [0, 2, -1], [0, 0, 1]])
"""Maps coordinates in 0…1 to coordinates in -1…1."""


@dataclass(frozen=True)
class Warp:
    """A homography and a lighting.

    Attributes:
        homography: (3, 3), float64. Maps where something is in the picture, (down, across, 1) with 0…1 from edge to
            edge, to where it is in the warped picture.
        contrast: what the distances of values from the middle grey are multiplied by.
        brightness: what is added to values in 0…1.
    """

    homography: Tensor
    contrast: float = 1.0
    brightness: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """Return images (b, c, h, w) of values in 0…1 as they look then; outside of a picture is its mean colour."""
        height, width = images.shape[-2:]
        points = move(self.homography.inverse(), centres((height, width)))
        grid = (2 * points.flip(-1) - 1).reshape(1, height, width, 2).to(images)
        mean = images.mean(dim=(-2, -1), keepdim=True)
        warped = F.grid_sample(images - mean, grid.expand(len(images), -1, -1, -1), align_corners=False) + mean
        return ((warped - 0.5) * self.contrast + 0.5 + self.brightness).clamp(0, 1)


def draw_warps(strength: str, count: int, content: str = "0") -> list[Warp]:
    """Return random warps.

    Args:
        strength: "easy", "medium" or "hard", see `STRENGTHS`.
        count: how many.
        content: the hash of a picture, which makes its warps its own, and the same on every call.
    """
    limits = STRENGTHS[strength]
    rng = np.random.default_rng([int(content[:12], 16), list(STRENGTHS).index(strength)])
    return [_draw(limits, rng) for _ in range(count)]


def _draw(limits: Strength, rng: np.random.Generator) -> Warp:
    angle = math.radians(rng.uniform(-limits.rotation, limits.rotation))
    scale = math.exp(rng.uniform(*np.log(limits.scale)))
    turned = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = turned
    matrix[:2, 2] = 2 * rng.uniform(-limits.shift, limits.shift, 2)
    matrix[2, :2] = rng.uniform(-limits.perspective, limits.perspective, 2)
    contrast, brightness = 1 + rng.uniform(-limits.light, limits.light), rng.uniform(-limits.light, limits.light)
    return Warp(torch.from_numpy(np.linalg.inv(TO_CENTRE) @ matrix @ TO_CENTRE), contrast, brightness)


def centres(grid_hw: tuple[int, int]) -> Tensor:
    """Return where the centres of a grid's cells lie, row by row: (h · w, 2), down and across, 0…1 from edge to edge.

    >>> centres((1, 2)).tolist()
    [[0.5, 0.25], [0.5, 0.75]]
    """
    axes = [(torch.arange(count, dtype=torch.float64) + 0.5) / count for count in grid_hw]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)


def move(homography: Tensor, points: Tensor) -> Tensor:
    """Return where a homography (3, 3) puts points (n, 2)."""
    moved = torch.cat([points, torch.ones_like(points[:, :1])], dim=1) @ homography.to(points).T
    return moved[:, :2] / moved[:, 2:]


def load_square(path: Path, model: MultiScale, side: int) -> Tensor:
    """Return a picture as a model reads it, resized (antialiased) to a square: (1, c, side, side), in 0…1."""
    from s2wrap.images import as_image

    image = as_image(path, model.input.channels, model.input.value_range)
    low, high = model.input.range_of(image.dtype) or (0, 1)
    return ((resize(image[None], (side, side)) - low) / (high - low)).clamp(0, 1)


def maps_of_values(model: MultiScale, images: Tensor, path: Path) -> Tensor:
    """Return a model's maps (b, c, h, w), float32 on the CPU, of images of values in 0…1; as 8 bits, as pictures are.

    Raises:
        UnableError: a model with several maps.
        S2WrapError: features that are not finite; `path` names the picture.
    """
    bounds = model.input.value_range
    given = (255 * images).round().byte() if bounds is None else images * (bounds[1] - bounds[0]) + bounds[0]
    with torch.inference_mode():
        features = model(given.to(model.device))
    if len(features.maps) != 1:
        raise UnableError(f"{len(features.maps)} maps a picture; this task needs one: use another fuse than 'pyramid'")
    check_finite(features.maps, path, model)
    return features.spatial.float().cpu()


def chunks(count: int, size: int) -> Iterator[slice]:
    """Return slices of at most `size` that cover `count` things."""
    return (slice(start, start + size) for start in range(0, count, size))
