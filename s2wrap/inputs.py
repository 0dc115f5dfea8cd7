"""What a model takes: channels, size, values, mean and std, and where each of these facts is known from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor

from s2wrap.errors import S2WrapError, warn
from s2wrap.options import Interpolation, as_tuples
from s2wrap.plan import check_image
from s2wrap.policies import Pair

Origin = Literal["model", "processor", "library", "caller", "class default", "s2wrap", "unknown"]
ORIGINS: dict[Origin, str] = {
    "model": "the model's own config",
    "processor": "its image processor",
    "library": "its library, for all such models",
    "caller": "the caller",
    "class default": "a class default: a guess",
    "s2wrap": "s2wrap's default",
    "unknown": "unknown",
}
"""Where a fact is known from, in words."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The types of floating images."""
INTEGER_RANGES: dict[torch.dtype, tuple[float, float]] = {torch.uint8: (0, 255), torch.uint16: (0, 65535)}
"""The types of integer images, and which of their values stand for 0 and 1."""
SURELY_PIXELS = 2.0
"""Floating images without a negative value, but with one so many times the largest normalised one, are refused."""
SURELY_NOT_NORMALISED = 10.0
"""Floating images with a value so many times the largest normalised one are refused, whatever the others are."""
OVERSHOOT = 0.2
"""By how much a cubic resize may leave 0…1."""


class MeanStd(NamedTuple):
    """Mean and std as tensors (c, 1, 1) of float32 on one device."""

    mean: Tensor
    std: Tensor


def normalise_values(values: Tensor, bounds: tuple[float, float], mean_std: MeanStd) -> Tensor:
    """Values (b, c, h, w) of which `bounds` stand for 0 and 1, as (values in 0…1 − mean) ÷ std."""
    low, high = bounds
    return ((values - low if low else values) / (high - low) - mean_std.mean) / mean_std.std


@dataclass(frozen=True)
class ModelInput:
    """What a model takes.

    Attributes:
        channels: of its images: 3 for RGB, 1 for grey, or as many bands.
        image_hw: height and width in pixels that it was made for.
        mean: what is subtracted from values in 0…1, one a channel; None where nobody knows.
        std: what they are divided by after that.
        value_range: which values of floating and uint16 images stand for 0 and 1; None: floating images come
            normalised, and uint16 reaches to 65535. uint8 is always 0…255.
        interpolation: how images are resized.
        channel_order: the order in which the model itself sees channels; images are given as RGB in any case.
        origins: for each of these names, where it is known from.
    """

    channels: int
    image_hw: Pair
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    value_range: tuple[float, float] | None = None
    interpolation: Interpolation = "bicubic"
    channel_order: Literal["RGB", "BGR"] = "RGB"
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Every fact by name, and where it is known from, as JSON keeps it; `from_json` makes an equal input of it."""
        return json.loads(json.dumps(asdict(self) | {"origins": dict(self.origins)}))

    @classmethod
    def from_json(cls, saved: Mapping[str, object]) -> "ModelInput":
        """The input that `to_json` wrote. Raises TypeError for names that it does not have, or lacks."""
        return cls(**as_tuples(dict(saved)))

    @property
    def normalises(self) -> bool:
        """Whether mean and std are known, so that integer images and pictures can be taken."""
        return self.mean is not None and self.std is not None

    @property
    def guessed(self) -> bool:
        """Whether mean and std are the default of a class, which may not be that of these weights."""
        return self.normalises and "class default" in (self.origins.get("mean"), self.origins.get("std"))

    @property
    def normalised_range(self) -> tuple[float, float]:
        """The smallest and largest value that a picture has once it is normalised."""
        pairs = list(zip(self.mean or (0.0,), self.std or (1.0,), strict=True))
        return min(-mean / std for mean, std in pairs), max((1 - mean) / std for mean, std in pairs)

    def range_of(self, dtype: torch.dtype) -> tuple[float, float] | None:
        """Which values of images of a type stand for 0 and 1; None for images that come normalised."""
        if dtype == torch.uint8 or self.value_range is None:
            return INTEGER_RANGES.get(dtype)
        return self.value_range

    def mean_std(self, device: torch.device | str) -> MeanStd:
        """Mean and std as tensors on a device; 0 and 1 where they are unknown."""
        mean, std = self.mean or (0.0,) * self.channels, self.std or (1.0,) * self.channels
        shape = (-1, 1, 1)
        return MeanStd(
            torch.tensor(mean, dtype=torch.float32, device=device).reshape(shape),
            torch.tensor(std, dtype=torch.float32, device=device).reshape(shape),
        )

    def normalise(self, images: Tensor, mean_std: MeanStd | None = None) -> Tensor:
        """Images (b, c, h, w) as the backbone expects them, (values in 0…1 − mean) ÷ std.

        Floating images without a `value_range` are returned as they are; others are computed in at least float32.

        Args:
            images: checked by `check`.
            mean_std: on the device of the images; made anew by default.
        """
        bounds = self.range_of(images.dtype)
        if bounds is None:
            return images
        planes = torch.contiguous_format  # whatever the pixels' order: arithmetic with a mean a channel is quicker then
        wide = torch.promote_types(images.dtype, torch.float32) if images.is_floating_point() else torch.float32
        values = images.to(wide, memory_format=planes)
        return normalise_values(values, bounds, mean_std or self.mean_std(images.device))

    def check(self, images: object, name: str) -> None:
        """Raise S2WrapError for images that cannot give features, whatever their values.

        Args:
            images: whatever a caller gave for a batch (b, c, h, w).
            name: the backbone's name.
        """
        wanted = f"(batch, {self.channels}, height, width)"
        if not isinstance(images, Tensor):
            raise S2WrapError(f"images are a {type(images).__name__}; give a tensor {wanted}")
        if images.ndim == 3 and images.shape[0] == self.channels:
            raise S2WrapError(f"images have shape {tuple(images.shape)}; for one image give images[None], {wanted}")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise S2WrapError(f"images have shape {tuple(images.shape)}; give {wanted}")
        check_image((images.shape[-2], images.shape[-1]))
        if images.shape[0] == 0:
            raise S2WrapError(f"images have shape {tuple(images.shape)}: an empty batch; give at least one image")
        if images.dtype not in (*FLOATS, *INTEGER_RANGES):
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*INTEGER_RANGES, *FLOATS))
            raise S2WrapError(f"images are {images.dtype}; give one of {known}")
        if self.range_of(images.dtype) is not None and not self.normalises:
            raise S2WrapError(
                f"images are {images.dtype}, but the mean and std of {name} are unknown; give mean= and std= to "
                f"wrap(), or normalised floating images"
            )

    def describe(self) -> dict[str, tuple[str, str]]:
        """Every fact in words, and where it is known from."""
        facts = {
            "channels": f"{self.channels}{f', seen as {self.channel_order}' if self.channels == 3 else ''}",
            "image_hw": f"{self.image_hw[0]}×{self.image_hw[1]} pixels",
            "mean": _numbers(self.mean),
            "std": _numbers(self.std),
            "value_range": "normalised floats; uint8 0…255, uint16 0…65535"
            if self.value_range is None
            else f"floats and uint16 {self.value_range[0]:g}…{self.value_range[1]:g}; uint8 0…255",
            "interpolation": self.interpolation,
        }
        return {name: (text, ORIGINS[self.origins.get(name, "unknown")]) for name, text in facts.items()}


class ValueCheck:
    """Looks at the values of images: refuses what cannot be, warns once of what is probably not meant.

    Of images on a GPU only the first batch is looked at: each look would wait for all work that is queued there. The
    state is none of the model's: copies and saved models begin anew.
    """

    def __init__(self, known: ModelInput, name: str):
        self.known, self.name = known, name
        self.warned: set[str] = set()
        self.looked = False

    def __reduce__(self) -> tuple[Any, ...]:
        return ValueCheck, (self.known, self.name)

    def __call__(self, images: Tensor) -> None:
        """Look at checked images (b, c, h, w).

        Raises:
            S2WrapError: values that are NaN or infinite, or floats that no normalising gives, such as 0…255.
        """
        bounds = self.known.range_of(images.dtype)
        if bounds is not None and self.known.guessed:
            self._warn("guess", guess_warning(self.known, self.name))
        if images.dtype == torch.uint8 or not has_values(images):
            return
        if self.looked and images.device.type != "cpu":
            return
        self.looked = True
        low, high = (float(bound) for bound in images.detach().to(torch.float32).aminmax())
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # false for NaN too
            count = int((~images.isfinite()).sum())
            raise S2WrapError(f"images hold {count} values that are NaN or infinite; give finite ones")
        if bounds is not None:
            self._check_range(low, high, bounds)
        elif self.known.normalises:
            self._check_normalised(low, high)

    def _check_range(self, low: float, high: float, bounds: tuple[float, float]) -> None:
        """Refuse values far outside the range that the caller gave, and warn where they hardly leave its lower end."""
        margin = (bounds[1] - bounds[0]) / 2  # for overshoot
        if low < bounds[0] - margin or high > bounds[1] + margin:
            raise S2WrapError(
                f"images have values from {low:.4g} to {high:.4g}, but value_range={bounds}; give the range that they "
                f"have"
            )
        if self.known.value_range is not None and low < high <= bounds[0] + 0.02 * (bounds[1] - bounds[0]):
            self._warn(
                "dark",
                f"images have values from {low:.4g} to {high:.4g}, hardly above black in value_range={bounds}; if they "
                f"have another range, give that",
            )

    def _check_normalised(self, low: float, high: float) -> None:
        """Refuse or warn of values that mean and std cannot have made."""
        darkest, brightest = self.known.normalised_range
        largest = max(1.0, abs(darkest), abs(brightest))
        pixels = low >= 0 and high > max(1.0, SURELY_PIXELS * brightest)
        if pixels or max(abs(low), abs(high)) > SURELY_NOT_NORMALISED * largest:
            raise S2WrapError(
                f"images have values from {low:.4g} to {high:.4g}, but normalised ones of {self.name} lie in "
                f"{darkest:.3g}…{brightest:.3g}; give uint8, or say value_range=(0, 255) to "
                f"wrap(), or normalise them"
            )
        in_0_to_1 = 0 <= low < high <= 1 or (-OVERSHOOT < low < 0.1 and 0.8 < high < 1 + OVERSHOOT)
        if in_0_to_1 and darkest < -0.5:
            self._warn(
                "range",
                f"images have values from {low:.3g} to {high:.3g}, which are taken as normalised; those of {self.name} "
                f"would lie in {darkest:.3g}…{brightest:.3g}. If they are in 0…1, say value_range=(0, 1) to wrap() "
                f"or load(), and they are normalised",
            )

    def _warn(self, what: str, text: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            warn(text)


def guess_warning(known: ModelInput, name: str) -> str:
    """What to say where a mean or std is used that is a class's default."""
    return (
        f"mean {_numbers(known.mean)} and std {_numbers(known.std)} of {name} are the default of a class, not known of "
        f"these weights; give processor=, or mean= and std=, to wrap() or load()"
    )


def has_values(images: Tensor) -> bool:
    """Whether values can be looked at: not of meta and fake tensors, nor under vmap, nor in a trace."""
    without = images.device.type == "meta" or is_fake(images) or is_functorch_wrapped_tensor(images)
    return not without and not torch.compiler.is_compiling()


def is_fake(images: Tensor) -> bool:
    """Whether a tensor is one of `FakeTensorMode`, which has a shape and no values."""
    return isinstance(images, FakeTensor)


def _numbers(values: tuple[float, ...] | None) -> str:
    return "unknown" if values is None else "(" + ", ".join(f"{value:g}" for value in values) + ")"
