"""Samples of a picture, and what their values mean → a tensor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.images.options import Range, Reading

Colours = Literal["grey", "rgb", "bands"]
Alpha = Literal["none", "straight", "premultiplied"]
BLOCK = 1 << 20
"""Pixels that are converted at a time: copies of the whole would double the memory."""


@dataclass(frozen=True)
class Samples:
    """A decoded picture as its file holds it.

    Attributes:
        values: (height, width, samples), of any type.
        colours: what the samples are, without alpha.
        bounds: which values stand for black and white by the file's own word or the rules of its format; None: the
            file does not say it.
        white_is_zero: whether small values are bright.
        alpha: whether the last sample is opacity, and the colours were multiplied with it.
        opaque: the value of a sample of alpha that hides everything.
        to_rgb: turns rows of values into RGB in 0…255, for palettes, CMYK and Lab; `bounds` are not used then.
        missing: pixels all of whose samples have this value hold no data, and become black; None if there are none.
    """

    values: np.ndarray
    colours: Colours
    bounds: Range | None
    white_is_zero: bool = False
    alpha: Alpha = "none"
    opaque: float = 255
    to_rgb: Callable[[np.ndarray], np.ndarray] | None = None
    missing: float | None = None

    def is_missing(self, rows: np.ndarray) -> np.ndarray:
        """Which pixels of some rows hold no data, (rows, columns)."""
        if self.missing is None:
            return np.zeros(rows.shape[:2], bool)
        return np.all(np.isnan(rows) if np.isnan(self.missing) else rows == self.missing, axis=-1)


def integer_bounds(bits: int) -> Range:
    """Black and white of unsigned integers that use all their bits."""
    return 0, 2**bits - 1


def to_tensor(samples: Samples, name: object, reading: Reading) -> Tensor:
    """The channels of a picture, (channels, height, width): uint8, or values as they are for `reading.value_range`.

    Grey gives three equal channels; what is transparent is laid on white; bands stay bands.

    Args:
        samples: the picture.
        name: what errors call it.
        reading: the bands to take, and the range of values that the file does not say.

    Raises:
        S2WrapError: there are no such bands, or nobody says what the values mean.
    """
    if reading.bands is not None:
        chosen = _choose_bands(samples, name, reading.bands)
        samples = replace(samples, values=chosen, colours="bands", alpha="none")
    values = samples.values
    if samples.to_rgb is not None:
        return _by_rows(values, np.dtype(np.uint8), 3, lambda rows: _rgb_rows(rows, samples))
    colours = values[..., :-1] if samples.alpha != "none" else values
    bounds, dtype = samples.bounds, np.dtype(np.uint8)
    if bounds is None and reading.value_range is not None:
        bounds, dtype = reading.value_range, np.dtype(np.uint16 if values.dtype == np.uint16 else np.float32)
    bounds = bounds or _guessed_bounds(colours if samples.missing is None else colours[~samples.is_missing(values)])
    if bounds is None:
        raise S2WrapError(
            f"{name}: values of {values.dtype} from {colours.min():g} to {colours.max():g}, and nothing says which of "
            f"them are black and white; give value_range=, such as {_suggested_range(colours)}"
        )
    channels = values.shape[2] if samples.colours == "bands" else 3
    plain = bounds == (0, 255) and samples.alpha == "none" and samples.missing is None and not samples.white_is_zero
    if plain and values.dtype == dtype == np.uint8:
        if values.shape[2] == channels:
            return torch.from_numpy(rearrange(values, "h w c -> c h w"))
        return _by_rows(values, dtype, channels, lambda rows: rows)
    return _by_rows(values, dtype, channels, lambda rows: _convert(rows, samples, bounds, dtype))


def _choose_bands(samples: Samples, name: object, bands: Sequence[int]) -> np.ndarray:
    count = samples.values.shape[2]
    if samples.to_rgb is not None:
        raise S2WrapError(f"{name}: bands={bands} of a picture of palette, CMYK or Lab colours; leave bands out")
    if max(bands) > count:
        raise S2WrapError(f"{name}: bands={bands}, and the file has {count}; they are counted from 1")
    return samples.values[:, :, [band - 1 for band in bands]]


def _guessed_bounds(values: np.ndarray) -> Range | None:
    """Black and white, where the values themselves show it: 8 bits, all of 16 bits, floats in 0…1."""
    if values.dtype == np.uint8:
        return integer_bounds(8)
    if not values.size:
        return 0, 1
    if values.dtype == np.uint16 and (values.max() >= 1 << 15 or not values.any()):
        return integer_bounds(16)
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:  # false for NaN
        return 0, 1
    return None


def _suggested_range(values: np.ndarray) -> str:
    """A range that would hold all values."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high > 0 and values.dtype.kind in "iu":
        return f"(0, {2 ** int(high).bit_length() - 1})"
    return f"({low:g}, {high:g})" if np.isfinite([low, high]).all() and low < high else "(0, 1)"


def _by_rows(values: np.ndarray, dtype: np.dtype, channels: int, convert: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """The result of a conversion of each pixel, a block of rows at a time."""
    height, width = values.shape[:2]
    pixels, rows = np.empty((height, width, channels), dtype), max(1, BLOCK // width)
    for top in range(0, height, rows):
        pixels[top : top + rows] = convert(values[top : top + rows])  # one channel fills all
    return torch.from_numpy(rearrange(pixels, "h w c -> c h w"))


def _rgb_rows(rows: np.ndarray, samples: Samples) -> np.ndarray:
    """Rows of palette, CMYK or Lab colours as RGB."""
    assert samples.to_rgb is not None
    return np.where(samples.is_missing(rows)[..., None], 0, samples.to_rgb(rows))


def _convert(rows: np.ndarray, samples: Samples, bounds: Range, dtype: np.dtype) -> np.ndarray:
    """Rows of samples as channels of a type, whose black and white are `bounds`; of uint8, 0 and 255."""
    low, high = bounds
    colours, opacity = rows.astype(np.float64), np.ones(1)
    if samples.alpha != "none":
        colours, opacity = colours[..., :-1], colours[..., -1:] / samples.opaque
    if samples.white_is_zero:
        colours = high + low - colours
    if samples.alpha == "straight":
        colours = low + (colours - low) * opacity
    if samples.alpha != "none":
        colours = colours + (1 - opacity) * (high - low)
    colours = np.where(samples.is_missing(rows)[..., None], low, colours)
    if dtype == np.uint8:
        colours = (colours - low) * (255 / (high - low))
    if dtype.kind == "u":
        colours = np.clip(np.round(colours), 0, np.iinfo(dtype).max)
    return colours
