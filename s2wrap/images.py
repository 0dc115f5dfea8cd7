"""Picture files → uint8 tensors, safely."""

import ctypes
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
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


def silence_decoders() -> None:
    """Keep PIL and libtiff from printing what they raise, in this process: for programs, such as the command line."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # without one, Python prints complaints on stderr
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata and large pictures: max_pixels decides here
    with suppress(AttributeError, OSError):  # where libtiff's names are hidden, it goes on
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


def as_image(source: Any, channels: int = 3) -> Tensor:
    """One image of any kind as a tensor (channels, height, width); integers where it was a picture.

    Args:
        source: a path, a PIL image, a uint8 or uint16 array (height, width, channels) or (height, width) of grey, or
            a tensor (channels, height, width), which is returned as it is.
        channels: of the model: 3 for RGB (grey pictures count for all three), 1 for grey, or as many bands, which only
            arrays and tensors have.

    Raises:
        S2WrapError: something else, a file that cannot be read, or a picture of other channels.
    """
    if isinstance(source, str | Path | Image.Image):
        if channels not in (1, 3):
            raise S2WrapError(
                f"a picture has 1 or 3 channels, and the model takes {channels}; give an array (height, width, "
                f"{channels}) or a tensor ({channels}, height, width)"
            )
        if isinstance(source, Image.Image):
            with _readable("the PIL image"):
                return _to_channels(_pixels(source, "the PIL image"), channels, "the PIL image")
        return _to_channels(load_image(source), channels, source)
    if isinstance(source, np.ndarray):
        return _from_array(source, channels)
    if not isinstance(source, Tensor) or source.ndim != 3:
        what = tuple(source.shape) if isinstance(source, Tensor) else f"a {type(source).__name__}"
        raise S2WrapError(
            f"{what} is no image; give a path, a PIL image, a uint8 array (height, width, {channels}) or a tensor "
            f"({channels}, height, width)"
        )
    if source.shape[0] != channels:
        raise S2WrapError(f"images have shape {tuple(source.shape)}; give ({channels}, height, width)")
    return source


def as_batch(images: Any, channels: int = 3) -> Tensor:
    """What a model is called with, if it is no tensor, as a batch (b, channels, height, width).

    Args:
        images: one picture, as for `as_image`, or what an image processor of transformers returns.
        channels: of the model.

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
    return as_image(images, channels)[None]


def as_pictures(images: Any) -> Iterable[Any]:
    """What `encode` was given as an iterable of pictures: one picture is one of them.

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
        raise S2WrapError(f"encode() takes images or one image, not {images!r}")
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


def _to_channels(picture: Tensor, channels: int, name: str | Path) -> Tensor:
    """A picture (3, h, w) for a model of RGB, or of grey, which takes only those that are grey."""
    if channels == 3:
        return picture
    if not (torch.equal(picture[0], picture[1]) and torch.equal(picture[0], picture[2])):
        raise S2WrapError(f"{name} has colours, and the model takes grey; give image.convert('L')")
    return picture[:1]


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
    with _readable(path):
        if not os.path.isfile(path):  # a pipe would be waited for
            if os.path.isdir(path):
                raise S2WrapError(f"{path} is a folder; s2wrap.images.find_images([{str(path)!r}]) lists its pictures")
            what = "cannot be decoded; it is no file" if os.path.exists(path) else "there is no such file"
            raise S2WrapError(f"{path}: {what}")
        with open(path, "rb") as file:  # PIL would leave a path that it opens itself open after some errors
            return _read(file, path, max_pixels)


def decode_image(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """The picture whose file's content this is, as `load_image` reads it from a file; errors call it by `name`."""
    with _readable(name):
        return _read(BytesIO(content), name, max_pixels)


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Make one S2WrapError of whatever goes wrong with a picture."""
    try:
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
