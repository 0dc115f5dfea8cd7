"""Ordinary pictures: JPEG, PNG, WebP, AVIF, JPEG 2000, GIF, BMP, PNM and TGA."""

import re
from contextlib import suppress
from functools import partial
from itertools import product
from typing import IO, Any, cast

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from PIL.ExifTags import Base
from torch import Tensor

from s2wrap.errors import S2WrapError, first_line
from s2wrap.images.limits import LimitedFile
from s2wrap.images.options import Range, Reading
from s2wrap.images.values import Samples, integer_bounds, to_tensor

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "PPM", "TGA")
"""What Pillow may try."""
MEMORY = {"JPEG": 13, "WEBP": 20, "AVIF": 24, "JPEG2000": 24}
"""The most bytes that decoding takes a pixel, result included, by format; `benchmarks/memory.py` measures them."""
USUAL_MEMORY = 12
SWAPPED, TURNS = (5, 6, 7, 8), {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""The EXIF orientations whose height and width are swapped; the axes of (c, height, width) to flip after that."""
SEGMENTS = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)|\xff\xe1..Exif\x00\x00", re.DOTALL)
MAX_SEGMENTS = 100
"""The most scans and EXIF segments of a JPEG file, each of which takes time."""
HARMLESS = "extraneous bytes before marker"
"""What libjpeg says of files with padding, which many cameras write; it has no number for it."""


def read_with_pillow(file: LimitedFile, name: object, reading: Reading) -> Tensor:
    """A picture (channels, height, width), upright.

    Raises:
        S2WrapError: a picture beyond the limits, or damaged.
        UnidentifiedImageError: no picture of these formats.
    """
    if file.read(3) == b"\xff\xd8\xff":
        count = len(SEGMENTS.findall(file.read()))
        if count > MAX_SEGMENTS:
            raise S2WrapError(
                f"{name}: {count} scans and EXIF segments, more than the {MAX_SEGMENTS} that are safe to decode"
            )
    file.seek(0)
    with Image.open(cast("IO[bytes]", file), formats=FORMATS) as image:
        kind = image.format or ""
        reading.check_size(name, (image.height, image.width), MEMORY.get(kind, USUAL_MEMORY))
        if kind == "JPEG" and image.mode in ("RGB", "L"):
            stored = _jpeg(file, image, name, reading)
        elif kind == "PNG" and _has_16_bits(image):
            stored = _wide(file, "png_decode", 16, name, reading)
        elif kind == "JPEG2000" and (bits := _bits_of_jpeg2000(file)) > 8:
            stored = _wide(file, "jpeg2k_decode", bits, name, reading)
        else:
            _widen_key(image)
            stored = stored_pixels(image, name, reading)
        file.check_time()
        return upright(stored, orientation_of(image))


def stored_pixels(image: Image.Image, name: object, reading: Reading) -> Tensor:
    """A picture that Pillow has opened, as it is stored, not yet turned."""
    image.load()
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        samples = Samples(values[:, :, None], "grey", _bounds(image, values))
        return to_tensor(samples, name, reading)
    if reading.bands is not None:
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            raise S2WrapError(f"{name}: bands={reading.bands} of a picture of mode {image.mode}; leave bands out")
        return to_tensor(Samples(np.atleast_3d(np.asarray(image)), "bands", integer_bounds(8)), name, reading)
    pixels, side = np.empty((image.height, image.width, 3), np.uint8), 1024
    for top, left in product(range(0, image.height, side), range(0, image.width, side)):
        bottom, right = min(top + side, image.height), min(left + side, image.width)
        pixels[top:bottom, left:right] = _rgb(image.crop((left, top, right, bottom)))
    return torch.from_numpy(rearrange(pixels, "h w c -> c h w"))


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a loaded picture; 1 where EXIF is broken, which is no reason to refuse the pixels."""
    with suppress(Exception):
        return image.getexif().get(Base.Orientation, 1)
    return 1


def upright(stored: Tensor, orientation: Any) -> Tensor:
    """A stored picture (channels, height, width) turned by its EXIF orientation."""
    turned = rearrange(stored, "c h w -> c w h") if orientation in SWAPPED else stored
    return turned.flip(TURNS[orientation]) if orientation in TURNS else turned


def _rgb(block: Image.Image) -> np.ndarray:
    if block.has_transparency_data:
        block = block.convert("RGBA")
        block = Image.alpha_composite(Image.new("RGBA", block.size, "white"), block)
    return np.asarray(block.convert("RGB"))


def _bounds(image: Image.Image, values: np.ndarray) -> Range | None:
    """Black and white of grey values that Pillow widened: it scales those of PNM and PNG to 16 bits."""
    return integer_bounds(16) if values.dtype.kind in "iu" and image.format in ("PNG", "PPM", "JPEG2000") else None


def _jpeg(file: LimitedFile, image: Image.Image, name: object, reading: Reading) -> Tensor:
    """A JPEG picture by simplejpeg, which says where data are damaged; by Pillow, which does not, if it is missing."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return stored_pixels(image, name, reading)
    file.seek(0)
    colours = {"L": "GRAY", "RGB": "RGB"}[image.mode]
    decode = partial(decode_jpeg, file.read(), colours)
    try:
        pixels = decode()
    except ValueError as error:
        if HARMLESS not in str(error):
            raise S2WrapError(f"{name}: cannot be decoded: damaged or cut short ({first_line(error)})") from error
        pixels = decode(strict=False)
    samples = Samples(pixels, "grey" if pixels.shape[2] == 1 else "rgb", integer_bounds(8))
    return to_tensor(samples, name, reading)


def _widen_key(image: Image.Image) -> None:
    """Scale a transparent key of 2 or 4 bits as Pillow scales the values of its picture."""
    key, raw = image.info.get("transparency"), [str(tile[3]) for tile in getattr(image, "tile", [])]
    if image.mode == "L" and isinstance(key, int) and raw[:1] in (["L;2"], ["L;4"]):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[raw[0]]


def _has_16_bits(image: Image.Image) -> bool:
    """Whether a PNG with colours or transparency has samples of 16 bits, of which Pillow keeps 8."""
    raw = [str(tile[3]) for tile in getattr(image, "tile", [])]
    more = image.mode in ("RGB", "RGBA", "LA") or "transparency" in image.info
    return any(";16B" in mode for mode in raw) and more


def _bits_of_jpeg2000(file: LimitedFile) -> int:
    """Bits of a sample, by the SIZ segment of the code stream (ISO 15444-1, A.5.1): 40 bytes behind its marker."""
    file.seek(0)
    content = file.read()
    place = content.find(b"\xff\x4f\xff\x51")
    return (content[place + 42] & 0x7F) + 1 if 0 <= place < len(content) - 42 else 8


def _wide(file: LimitedFile, decoder: str, bits: int, name: object, reading: Reading) -> Tensor:
    """A picture of more than 8 bits a sample, of which Pillow keeps 8 or fewer."""
    from s2wrap.images.tiff import imagecodecs

    file.seek(0)
    values = np.atleast_3d(getattr(imagecodecs(), decoder)(file.read()))
    count = values.shape[2]
    if values.dtype.kind != "u" or count > 4:
        raise S2WrapError(f"{name}: {count} samples of {values.dtype} are not read; convert it to RGB")
    alpha = "straight" if count in (2, 4) else "none"
    colours = "grey" if count < 3 else "rgb"
    return to_tensor(Samples(values, colours, integer_bounds(bits), alpha=alpha, opaque=2**bits - 1), name, reading)
