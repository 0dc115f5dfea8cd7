"""Whatever a caller gives as images → tensors."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.images.options import Range, Reading
from s2wrap.images.pillow import orientation_of, stored_pixels, upright
from s2wrap.images.read import load_image, readable


def as_image(source: object, channels: int = 3, value_range: Range | None = None) -> Tensor:
    """One image of any kind as a tensor (channels, height, width); integers where it was a picture.

    Args:
        source: a path, a PIL image, a uint8 or uint16 array (height, width, channels) or (height, width) of grey, or
            a tensor (channels, height, width), which is returned as it is.
        channels: of the model: 3 for RGB (grey pictures count for all three), 1 for grey, or as many bands.
        value_range: of the model, for pictures that do not say what their values mean; see `Reading`.

    Raises:
        S2WrapError: something else, a file that cannot be read, or a picture of other channels.
    """
    if isinstance(source, str | Path):
        return to_channels(load_image(source, Reading(value_range=value_range)), channels, source)
    if isinstance(source, Image.Image):
        with readable("the PIL image"):
            pixels = upright(
                stored_pixels(source, "the PIL image", Reading(value_range=value_range)), orientation_of(source)
            )
            return to_channels(pixels, channels, "the PIL image")
    if isinstance(source, np.ndarray):
        return _from_array(source, channels)
    if not isinstance(source, Tensor) or source.ndim != 3:
        what = tuple(source.shape) if isinstance(source, Tensor) else f"a {type(source).__name__}"
        raise S2WrapError(
            f"{what} is no image; give a path, a PIL image, a uint8 array (height, width, {channels}) or a tensor "
            f"({channels}, height, width)"
        )
    if source.shape[0] != channels:
        hint = "" if source.is_floating_point() else ", or choose bands of a file: Reading(bands=…), --bands N,N,…"
        raise S2WrapError(f"images have shape {tuple(source.shape)}; give ({channels}, height, width){hint}")
    return source


def as_batch(images: object, channels: int = 3, value_range: Range | None = None) -> Tensor:
    """What a model is called with, if it is no tensor, as a batch (b, channels, height, width).

    Args:
        images: one picture, as for `as_image`, or what an image processor of transformers returns.
        channels: of the model.
        value_range: as for `as_image`.

    Raises:
        S2WrapError: a list, which `encode` takes, or anything else.
    """
    if isinstance(images, Mapping):
        if list(images) != ["pixel_values"] or not isinstance(images["pixel_values"], Tensor):
            raise S2WrapError(
                f"a dict of {', '.join(map(str, images))}; s2wrap looks at pixel_values alone, a tensor: give "
                f"inputs['pixel_values'], made with return_tensors='pt'"
            )
        return images["pixel_values"]
    if isinstance(images, list | tuple):
        raise S2WrapError(
            f"images are a {type(images).__name__}; for images of any sizes use model.encode(images), or give a tensor "
            f"(batch, {channels}, height, width)"
        )
    if isinstance(images, np.ndarray) and images.ndim == 4:
        raise S2WrapError(
            f"an array {images.shape}; give a tensor (batch, {channels}, height, width), such as "
            f"torch.from_numpy(array).permute(0, 3, 1, 2), or use model.encode(array)"
        )
    return as_image(images, channels, value_range)[None]


def as_pictures(images: object) -> Iterable[Any]:
    """What `encode` or `encode_image` was given as an iterable of pictures: one picture is one of them.

    Raises:
        S2WrapError: a folder, or something that is neither a picture nor holds any.
    """
    if isinstance(images, str | Path) and os.path.isdir(images):
        raise S2WrapError(
            f"{images} is a folder; give its pictures: model.encode(s2wrap.images.find_images([{str(images)!r}]))"
        )
    if isinstance(images, Mapping):
        return as_batch(images)
    one = isinstance(images, str | Path | Image.Image) or (
        isinstance(images, np.ndarray | Tensor) and images.ndim in (2, 3)
    )
    if one:
        return [images]
    if not isinstance(images, Iterable):
        raise S2WrapError(f"the model takes images or one image, not {images!r}")
    return images


def _from_array(array: np.ndarray, channels: int) -> Tensor:
    """An array of integers (height, width, channels), or of grey (height, width) or (height, width, 1)."""
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    fits = array.ndim == 3 and array.shape[2] == channels
    if array.dtype not in (np.uint8, np.uint16) or not (fits or (grey and channels == 3) or (grey and channels == 1)):
        raise S2WrapError(
            f"an array {array.shape} of {array.dtype}; give uint8 or uint16 (height, width, {channels})"
            f"{' or (height, width)' if channels in (1, 3) else ''}, or a normalised tensor ({channels}, height, width)"
        )
    pixels = torch.from_numpy(array.copy())  # a writable copy: read-only and strided arrays are taken too
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return repeat(pixels, "h w 1 -> c h w", c=channels) if grey else rearrange(pixels, "h w c -> c h w")


def to_channels(picture: Tensor, channels: int, name: object) -> Tensor:
    """A picture for a model of so many channels; one of grey takes those of which all channels are equal."""
    found = picture.shape[0]
    if found == channels:
        return picture
    if channels == 1 and found == 3:
        if not (torch.equal(picture[0], picture[1]) and torch.equal(picture[0], picture[2])):
            raise S2WrapError(f"{name} has colours, and the model takes grey; give image.convert('L')")
        return picture[:1]
    raise S2WrapError(
        f"{name} has {found} channels, and the model takes {channels}; give an array or tensor of as many, or choose "
        f"bands of a file: s2wrap.images.load_image(path, Reading(bands={tuple(range(1, channels + 1))})), or --bands"
    )
