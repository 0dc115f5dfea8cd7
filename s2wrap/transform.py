"""`picture_transform`: pictures as a model takes them, for a DataLoader, as a transform of torchvision."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils._pytree import tree_flatten
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from s2wrap.errors import S2WrapError, warn
from s2wrap.images import as_image
from s2wrap.inputs import ModelInput, guess_warning
from s2wrap.plan import parse_image_hw
from s2wrap.policies import Pair


def _is_pixels(part: object) -> bool:
    """Whether a part of a sample is an array or tensor of pixels, and no label."""
    if isinstance(part, np.ndarray):
        return part.ndim in (2, 3) and part.dtype in (np.uint8, np.uint16)
    return isinstance(part, torch.Tensor) and part.ndim == 3


class NormalisePicture(v2.Transform):
    """A picture as a normalised image (channels, height, width) of its own size: read as `encode` reads it.

    Args:
        model_input: of the model.
        name: of the model, for errors.
    """

    _transformed_types = (PIL.Image.Image, tv_tensors.Image, _is_pixels)

    def __init__(self, model_input: ModelInput, name: str):
        super().__init__()
        self.input, self.name = model_input, name

    def forward(self, *inputs: object) -> Any:
        """A picture, or a sample with one among its parts, which keep their places; S2WrapError if there is none."""
        parts, _ = tree_flatten(inputs)
        if not any(isinstance(part, PIL.Image.Image | tv_tensors.Image) or _is_pixels(part) for part in parts):
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise S2WrapError(f"no picture among {kinds}; give a PIL image, or a uint8 array (height, width, channels)")
        return super().forward(*inputs)

    def transform(self, inpt: object, params: dict[str, Any]) -> tv_tensors.Image:
        """One picture of a sample; what is no picture, such as a label, torchvision passes by."""
        images = as_image(inpt, self.input.channels, self.input.value_range)[None].as_subclass(torch.Tensor)
        self.input.check(images, self.name)
        return tv_tensors.Image(self.input.normalise(images)[0])

    def extra_repr(self) -> str:
        """The values."""
        return f"mean={self.input.mean}, std={self.input.std}, channels={self.input.channels}"


def picture_transform(model_input: ModelInput, name: str, image_hw: Pair | None = None) -> v2.Transform:
    """A transform from a picture to a normalised image; see `MultiScale.transform`."""
    if not model_input.normalises:
        raise S2WrapError(
            f"pictures cannot be normalised: the mean and std of {name} are unknown; give mean= and std=, or "
            f"processor=, to wrap() or load()"
        )
    if model_input.guessed:
        warn(guess_warning(model_input, name))
    steps: list[v2.Transform] = [NormalisePicture(model_input, name)]
    if image_hw is not None:  # after normalising, as the model does it: nothing is rounded to 8 bits
        mode = InterpolationMode(model_input.interpolation)
        steps.append(v2.Resize(list(parse_image_hw(image_hw)), mode, antialias=True))
    return v2.Compose(steps) if len(steps) > 1 else steps[0]
