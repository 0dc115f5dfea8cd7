"""Detect pictures that hide another picture, which appears when they are scaled down without antialiasing.

Such a downscale reads few of the pixels, so a picture can show one thing to people and another to a model (Xiao et al.,
"Seeing is Not Believing: Camouflage Attacks on Image Scaling Algorithms", USENIX Security 2019). s2wrap's own resizing
is antialiased: it reads every pixel and is not fooled. Data that other tools have scaled, or will scale, may be.

The three scores are those of "Decamouflage" (Kim et al., arXiv 2010.03735), each made relative to the picture itself:
a photograph has the same statistics on the grid of pixels that a downscale reads as beside it, and a picture that hides
another has not. The thresholds were chosen on seven pictures; benchmarks/scaling_attacks.py measures on ten others.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from jaxtyping import Float, UInt8
from torch import Tensor

from s2wrap.errors import S2WrapError

KERNELS = ("nearest", "nearest-exact", "bilinear", "bicubic")
"""The downscales without antialiasing that are tried; nearest is OpenCV's, nearest-exact PIL's."""
SIDES = (224, 240, 256, 260, 288, 299, 300, 320, 336, 378, 384, 448, 512, 518)
"""The sizes that are tried by default: those of common backbones, and those resized to before a crop of 224."""
MIN_RATIO = 1.5
"""Least ratio of picture to size; a downscale by less reads most pixels, and nothing can hide there."""
ROUND_TRIP, MINIMUM_FILTER, PEAKS = 1.5, 2.5, 3
"""Least suspicious value of each score."""
PHASES = 4
"""Number of parts of a cell along each axis, for which the minimum filter's errors are averaged separately."""
CENTRE, RING = 1, range(6, 13)
"""Distances in bins of the spectrum from a peak's centre: of the peak itself, and of the ring it is compared with."""
DEVIATIONS = 1.2
"""Standard deviations of the log spectrum in the ring by which a peak must exceed it."""


@dataclass(frozen=True)
class ScalingAttack:
    """How much a picture looks like a scaling attack on one size; a picture that hides nothing scores 1, 1, 0.

    Attributes:
        image_hw: the size (height, width) in pixels that the attack would aim at.
        kernel: the downscale, of `KERNELS`, with the largest round trip error.
        round_trip: squared error of scaling down without antialiasing and up again, over the same error after the
            picture was shifted by half a cell. Photographs have at most 1.1, attacks mostly 2 to 20.
        minimum_filter: squared error of the 2×2 minimum filter in the part of the cells where it is largest, over its
            average.
        peaks: how many of the four nearest copies of the spectrum, which reading one pixel a cell makes, show as peaks.
    """

    image_hw: tuple[int, int]
    kernel: str
    round_trip: float
    minimum_filter: float
    peaks: int

    @property
    def is_attack(self) -> bool:
        """Whether the round trip is suspicious; alone it detects as much as a majority, with fewer false alarms."""
        return self.round_trip >= ROUND_TRIP

    @property
    def votes(self) -> int:
        """How many of the three scores are suspicious."""
        return (self.round_trip >= ROUND_TRIP) + (self.minimum_filter >= MINIMUM_FILTER) + (self.peaks >= PEAKS)


def find_scaling_attack(image: Tensor, *, image_hw: tuple[int, int] | None = None) -> ScalingAttack:
    """Return the scores of the size at which the picture looks most like an attack.

    Attacks are detected from a ratio of 2.5 between picture and size on, and on nearest from 2. Bilinear and bicubic
    attacks at ratio 2 change most pixels: people see the target too. An attacker who knows these scores can evade them.

    Sizes are skipped unless the picture is at least `MIN_RATIO` times as high and wide. If none is left the scores are
    1, 1, 0, for the picture's own size if none was given. Patterns whose period is a cell, such as halftone screens or
    graph paper, do turn into another picture when they are scaled down, and are reported.

    Args:
        image: RGB (3, height, width), uint8: the file's pixels as `load_image` returns them, not resized before.
        image_hw: the height and width in pixels that the picture will be scaled to. If None, `SIDES` are tried, both
            as squares and as the shorter side of a picture that keeps its aspect ratio.

    Raises:
        S2WrapError: an image of another shape or type, or a size below 1.

    >>> find_scaling_attack(torch.zeros(3, 896, 896, dtype=torch.uint8), image_hw=(224, 224)).is_attack
    False
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        raise S2WrapError(
            f"an image {tuple(image.shape)} of {image.dtype}; give the file's pixels, uint8 (3, height, width), "
            f"as s2wrap.images.load_image reads them"
        )
    if image_hw is not None and min(image_hw) < 1:
        raise S2WrapError(f"image_hw={image_hw} is no size; give the height and width in pixels, such as (224, 224)")
    height, width = image.shape[-2:]
    sizes = _common_sizes(height, width) if image_hw is None else [image_hw]
    shrinking = [size for size in sizes if height >= MIN_RATIO * size[0] and width >= MIN_RATIO * size[1]]
    scores = [(round_trip, size, kernel) for size in shrinking for kernel, round_trip in _round_trips(image, size)]
    if not scores:
        return ScalingAttack(image_hw or (height, width), KERNELS[0], 1.0, 1.0, 0)
    round_trip, size, kernel = max(scores)
    grey = image.float().mean(dim=0)
    return ScalingAttack(size, kernel, round_trip, _minimum_filter(grey, size), _peaks(grey, size))


def _common_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return `SIDES` as squares, and as the shorter side of the picture's shape, with the longer one rounded down."""
    short = min(height, width)
    scaled = [(height * side // short, width * side // short) for side in SIDES]
    return list(dict.fromkeys([*((side, side) for side in SIDES), *scaled]))


def _round_trips(image: UInt8[Tensor, "3 height width"], image_hw: tuple[int, int]) -> Iterable[tuple[str, float]]:
    """Return each kernel's squared error of scaling down and up, over that of the picture shifted by half a cell."""
    half_cell = tuple(round(old / new / 2) for old, new in zip(image.shape[-2:], image_hw, strict=True))
    errors = torch.zeros(len(KERNELS), 2)
    for channel in image:  # one at a time: three would need three times the memory
        pixels = channel.float()[None, None]
        for column, original in enumerate((pixels, pixels.roll(half_cell, dims=(-2, -1)))):
            for row, kernel in enumerate(KERNELS):
                small = F.interpolate(original, size=image_hw, mode=kernel)
                restored = F.interpolate(small, size=image.shape[-2:], mode="bilinear")
                errors[row, column] += F.mse_loss(restored, original)
    unshifted, shifted = (errors + 1).unbind(dim=1)  # plus one grey level, so that rounding alone makes no difference
    return zip(KERNELS, (unshifted / shifted).tolist(), strict=True)


def _minimum_filter(grey: Float[Tensor, "height width"], image_hw: tuple[int, int]) -> float:
    """Return the 2×2 minimum filter's squared error in the worst part of the cells over its average."""
    inner = grey[:-1, :-1]
    errors = (inner + F.max_pool2d(-grey[None], 2, stride=1)[0]).square() + 1
    rows, columns = (_phase_means(*sizes) for sizes in zip(inner.shape, grey.shape, image_hw, strict=True))
    return float((rows @ errors @ columns.T).max() / errors.mean())


def _phase_means(count: int, old: int, new: int) -> Float[Tensor, "phases count"]:
    """Return the matrix that averages `count` of `old` pixels over each part of the cells of `new` pixels."""
    phases = ((torch.arange(count) + 0.5) * new / old % 1 * PHASES).long()
    members = F.one_hot(phases, PHASES).float().T
    return members / members.sum(dim=1, keepdim=True).clamp_min(1)


def _peaks(grey: Float[Tensor, "height width"], image_hw: tuple[int, int]) -> int:
    """Return how many of the four copies of the spectrum at multiples of `image_hw` exceed their surroundings."""
    window = [torch.hann_window(length, periodic=False) for length in grey.shape]  # borders would draw a cross
    spectrum = torch.fft.fft2((grey - grey.mean()) * window[0][:, None] * window[1]).abs().clamp_min(1e-3).log()
    offsets = torch.arange(-RING[-1], RING[-1] + 1)
    distance = torch.maximum(offsets.abs()[:, None], offsets.abs())
    count = 0
    for row, column in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows, columns = (row * image_hw[0] + offsets) % grey.shape[0], (column * image_hw[1] + offsets) % grey.shape[1]
        region = spectrum[rows[:, None], columns]
        centre, ring = region[distance <= CENTRE], region[distance >= RING[0]]
        count += int(centre.mean() - ring.mean() > DEVIATIONS * ring.std())
    return count
