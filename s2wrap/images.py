"""Picture files → uint8 tensors, safely."""

import ctypes
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin
from PIL.ExifTags import Base
from torch import Tensor

from s2wrap.errors import S2WrapError, first_line
from s2wrap.plan import MIN_SIDE

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""What PIL may try."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""Which files of a folder are pictures."""
SWAPPED, TURNS = (5, 6, 7, 8), {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""The EXIF orientations whose height and width are swapped; the axes of (3, height, width) to flip after that."""
MAX_PIXELS = 178_956_970
"""The most pixels of a picture, by default: where PIL itself speaks of a decompression bomb."""
SEGMENTS = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)|\xff\xe1..Exif\x00\x00", re.DOTALL)
MAX_SEGMENTS, MAX_STRIPS = 100, 200_000
"""The most scans and EXIF segments of a JPEG file (libtiff takes 100 scans too), strips or tiles of a TIFF file."""
logging.getLogger("PIL").addHandler(logging.NullHandler())  # without one, Python prints PIL's complaints on stderr
with suppress(AttributeError, OSError):  # libtiff too prints what PIL raises; where its names are hidden, it goes on
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


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
        return _pixels(source, "the PIL image")
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

    The EXIF rotation is applied, or none where EXIF cannot be read; grey becomes RGB; 16-bit values are scaled to 8
    bits; transparent pixels are laid on white; CMYK and palettes are converted; of several frames or pages the first
    is taken. Colour profiles are not applied. An RGB picture takes 7 to 9 bytes of memory a pixel, 3 of which are the
    result; none takes more than 20 a pixel, 40 a byte of its file, and 300 MB for texts that it may hold.

    Args:
        path: a JPEG, PNG, WebP, TIFF, BMP or GIF file.
        max_pixels: refuse larger pictures or tiles before decoding them; at most twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        S2WrapError: no such file, no picture, cut short, too large or too small, or floating values outside 0…1.
    """
    with _told(path):
        if not os.path.isfile(path):  # a pipe would be waited for
            what = "cannot be decoded; it is no file" if os.path.exists(path) else "there is no such file"
            raise S2WrapError(f"{path}: {what}")
        with open(path, "rb") as file:  # PIL would leave a path that it opens itself open after some errors
            return _read(file, path, max_pixels)


def decode_image(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """The picture whose file's content this is, as `load_image` reads it from a file; errors call it by `name`."""
    with _told(name):
        return _read(BytesIO(content), name, max_pixels)


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """Make one S2WrapError of whatever goes wrong with a picture."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd metadata and large pictures: max_pixels decides here
            yield
    except S2WrapError:
        raise
    except Image.UnidentifiedImageError as error:
        raise S2WrapError(f"{path}: not a picture, or cut short in its header; read: {', '.join(FORMATS)}") from error
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, … for damaged files
        failed = "opened" if getattr(error, "errno", None) else "decoded: too large, damaged or cut short"
        raise S2WrapError(f"{path}: cannot be {failed} ({first_line(error)})") from error


def _read(file: BufferedReader | BytesIO, path: str | Path, max_pixels: int) -> Tensor:
    """The picture in a stream that can be sought in; `path` is what errors call it."""
    _check_work(file, path, max_pixels)
    with Image.open(file, formats=FORMATS) as image:
        size = f"{path}: {image.height}×{image.width} pixels"
        if image.width * image.height > max_pixels:
            raise S2WrapError(f"{size}, more than the {max_pixels} that are safe to decode")
        if min(image.size) < MIN_SIDE:
            raise S2WrapError(f"{size}; each side needs at least {MIN_SIDE}")
        return _pixels(image, path)


def _check_work(file: BufferedReader | BytesIO, path: str | Path, max_pixels: int) -> None:
    """Refuse what would take PIL minutes, or much memory, though the file and the picture are small."""
    start, claims = file.read(8), []
    if start.startswith(b"\xff\xd8\xff"):
        claims = [(len(SEGMENTS.findall(file.read())), MAX_SEGMENTS, "scans and EXIF segments")]
    elif start[:4] in TiffImagePlugin.PREFIXES:
        tags = TiffImagePlugin.ImageFileDirectory_v2(start + file.read(8) if start[2] == 43 else start)  # 43: BigTIFF
        file.seek(tags.next)
        tags.load(file)
        strips = max(len(tags.get(tag, ())) for tag in (Base.StripOffsets, Base.TileOffsets))
        tile = int(tags.get(Base.TileWidth, 0)) * int(tags.get(Base.TileLength, 0))
        claims = [(strips, MAX_STRIPS, "strips or tiles"), (tile, max_pixels, "pixels in a tile")]
    for count, most, what in claims:
        if count > most:
            raise S2WrapError(f"{path}: {count} {what}, more than the {most} that are safe to decode")


def _pixels(image: Image.Image, path: str | Path) -> Tensor:
    """The first frame upright, (3, height, width), converted block by block: whole copies would double the memory."""
    image.load()
    pixels, side = np.empty((image.height, image.width, 3), np.uint8), 1024
    for top, left in product(range(0, image.height, side), range(0, image.width, side)):
        bottom, right = min(top + side, image.height), min(left + side, image.width)
        pixels[top:bottom, left:right] = _rgb(image.crop((left, top, right, bottom)), path)
    stored, orientation = torch.from_numpy(pixels), None
    with suppress(Exception):  # broken EXIF data is no reason to refuse the pixels
        orientation = image.getexif().get(Base.Orientation)  # once loaded: PIL turns a TIFF itself when it loads it
    upright = rearrange(stored, "h w c -> c w h" if orientation in SWAPPED else "h w c -> c h w")
    return upright.flip(TURNS[orientation]) if orientation in TURNS else upright


def _rgb(block: Image.Image, path: str | Path) -> np.ndarray:
    if block.mode[0] in "IF":  # 16-bit grey, some of which PIL widens to 32 bits, or floating values
        values, white = np.asarray(block).astype(np.float64), 1 if block.mode == "F" else 65535
        if not (values.min() >= 0 and values.max() <= white):  # true for NaN
            raise S2WrapError(f"{path}: values from {values.min():g} to {values.max():g}; scale them to 0…{white}")
        block = Image.fromarray(np.round(values * (255 / white)).astype(np.uint8))
    elif block.has_transparency_data:
        block = block.convert("RGBA")
        block = Image.alpha_composite(Image.new("RGBA", block.size, "white"), block)
    return np.asarray(block.convert("RGB"))


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The picture files among files and folders, folders searched all the way down, in a stable order.

    Files are taken whatever their name; of folders, those with a picture's ending. Links to files are followed, links
    to folders below the given ones are not: they may loop. Broken links, pipes and devices are left out.

    Raises:
        S2WrapError: a path does not exist, a folder cannot be read, or there is no picture at all.
    """
    paths = [Path(path) for path in paths]
    try:
        found = [file for path in paths for file in _files(path)]
    except OSError as error:
        raise S2WrapError(f"{str(error.filename)[:200]}: cannot be searched ({error.strerror})") from error
    if not found:
        where = ", ".join(map(str, paths)) or "nothing"
        raise S2WrapError(f"no picture in {where}; endings read: {', '.join(SUFFIXES)}")
    return found


def _files(path: Path) -> list[Path]:
    """A file itself, or the pictures below a folder."""
    if len(path.name) > 255:
        raise S2WrapError(f"{path.name[:40]}…: no file has a name of {len(path.name)} characters")
    if not path.is_dir():
        if not path.exists():
            raise S2WrapError(f"{path}: there is no such file or folder")
        return [path]
    found, folders = [], [os.fspath(path)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and os.path.isfile(entry.path):
                    found.append(Path(entry.path))
    return sorted(found)
