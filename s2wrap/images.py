"""Picture files → uint8 tensors, safely."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.plan import MIN_SIDE

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""What PIL may try."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Which files of a folder are pictures."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture with this EXIF orientation upright."""
MAX_PIXELS = 178_956_970
"""The most pixels of a picture, by default: where PIL itself speaks of a decompression bomb."""


def as_image(source: Any) -> Tensor:
    """One image of any kind as a tensor (3, height, width).

    Args:
        source: a path, a PIL image, a uint8 array (height, width, 3) or (height, width) of RGB or grey, or a tensor
            (3, height, width), which is returned as it is.

    Raises:
        S2WrapError: something else, or a file that cannot be read.
    """
    if isinstance(source, str | Path):
        return load_image(source)
    if isinstance(source, Image.Image):
        rgb = _upright(_rgb(source, "the PIL image"), source.getexif().get(ORIENTATION))
        return rearrange(torch.from_numpy(np.array(rgb)), "h w c -> c h w")
    if isinstance(source, np.ndarray):
        grey = source.ndim == 2
        if source.dtype != np.uint8 or not (grey or (source.ndim == 3 and source.shape[2] == 3)):
            raise S2WrapError(
                f"an array {source.shape} of {source.dtype}; give uint8 (height, width, 3) or (height, width), or a "
                f"normalised tensor (3, height, width)"
            )
        pixels = torch.from_numpy(np.ascontiguousarray(source))
        return repeat(pixels, "h w -> c h w", c=3) if grey else rearrange(pixels, "h w c -> c h w")
    if not isinstance(source, Tensor) or source.ndim != 3:
        what = tuple(source.shape) if isinstance(source, Tensor) else f"a {type(source).__name__}"
        raise S2WrapError(
            f"{what} is no image; give a path, a PIL image, a uint8 array (height, width, 3) or a tensor "
            f"(3, height, width)"
        )
    return source


def load_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """A picture file as RGB in 0…255.

    The EXIF rotation is applied; grey becomes RGB; 16-bit values are scaled to 8 bits; transparent pixels are laid on
    white; CMYK and palettes are converted; of several frames or pages the first is taken. Colour profiles are not
    applied.

    Args:
        path: a JPEG, PNG, WebP, TIFF, BMP or GIF file.
        max_pixels: refuse larger pictures before decoding them; twice PIL's own `Image.MAX_IMAGE_PIXELS` at most.

    Raises:
        S2WrapError: no such file, no picture, cut short, too large or too small, or floating values outside 0…1.
    """
    return _decode(path, path, max_pixels)


def decode_image(stream: Any, name: str, *, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """The picture that a binary stream holds, as `load_image` reads it from a file; errors call it by `name`."""
    return _decode(stream, name, max_pixels)


def _decode(source: Any, path: str | Path, max_pixels: int) -> Tensor:
    """The picture in a file or stream; `path` is what errors call it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of odd metadata and of large pictures: max_pixels decides here
            with Image.open(source, formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise S2WrapError(
                        f"{path}: {height}×{width} pixels, more than the {max_pixels} that are safe to decode"
                    )
                orientation = image.getexif().get(ORIENTATION)
                rgb = _rgb(image, path)
    except S2WrapError:
        raise
    except FileNotFoundError as error:
        raise S2WrapError(f"{path}: there is no such file") from error
    except Image.DecompressionBombError as error:
        raise S2WrapError(f"{path}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise S2WrapError(
            f"{path}: not a picture, or cut short in its header; these are read: {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, … for damaged files
        first_line = str(error).partition("\n")[0]
        raise S2WrapError(
            f"{path}: cannot be decoded, damaged or cut short ({type(error).__name__}: {first_line})"
        ) from error
    rgb = _upright(rgb, orientation)
    if min(rgb.size) < MIN_SIDE:
        raise S2WrapError(f"{path}: {rgb.size[1]}×{rgb.size[0]} pixels; each side needs at least {MIN_SIDE}")
    return rearrange(torch.from_numpy(np.array(rgb)), "h w c -> c h w")


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """The first frame in mode RGB."""
    image.load()
    if image.mode.startswith("I"):  # 16-bit grey; PIL widens some of it to 32 bits
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise S2WrapError(f"{path}: grey values from {values.min()} to {values.max()}; these are read: 0 to 65535")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise S2WrapError(f"{path}: floating values outside 0…1 or not finite; scale them to 0…1")
        image = Image.fromarray(np.round(values * 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The picture files among files and folders, folders searched all the way down, in a stable order.

    Files are taken whatever their name; of folders, those with a picture's ending.

    Raises:
        S2WrapError: a path does not exist, or there is no picture at all.
    """
    paths = [Path(path) for path in paths]
    found: list[Path] = []
    for path in paths:
        if len(path.name) > 255:
            raise S2WrapError(f"{path.name[:40]}…: no file has a name of {len(path.name)} characters")
        if path.is_dir():
            found += sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        elif path.exists():
            found.append(path)
        else:
            raise S2WrapError(f"{path}: there is no such file or folder")
    if not found:
        raise S2WrapError(
            f"no picture in {', '.join(map(str, paths)) or 'nothing'}; endings read: {', '.join(SUFFIXES)}"
        )
    return found
