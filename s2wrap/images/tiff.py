"""TIFF files of any depth, layout and compression, by tifffile."""

from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.images.limits import LimitedFile
from s2wrap.images.options import Reading
from s2wrap.images.pillow import upright
from s2wrap.images.values import Alpha, Colours, Samples, integer_bounds, to_tensor

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF and BigTIFF files begin."""
MAX_STRIPS = 200_000
"""The most strips or tiles of a picture that is read as a whole: each takes time."""
ASSOCIATED, UNASSOCIATED = 1, 2
"""Values of ExtraSamples (TIFF 6.0, page 31): colours multiplied with alpha, or not."""
ORIENTATION, INK_SET, REFERENCE_BLACK_WHITE = 274, 332, 532


def read_tiff(file: LimitedFile, name: object, reading: Reading) -> Tensor:
    """The first full picture of a TIFF, (channels, height, width), upright.

    Raises:
        S2WrapError: a picture beyond the limits, damaged, or of a kind that is not read.
        MissingExtraError: tifffile is not installed.
    """
    with tifffile().TiffFile(file) as tiff:
        page = first_picture(tiff, name)
        check_page(page, name, reading)
        samples = samples_of(page, decoded(page), name)
        orientation = page.tags.get(ORIENTATION)
        return upright(to_tensor(samples, name, reading), 1 if orientation is None else orientation.value)


def tifffile() -> Any:
    """The library for TIFF files."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtraError("tifffile", "images") from error
    return tifffile


def imagecodecs() -> Any:
    """The library of decoders."""
    try:
        import imagecodecs
    except ImportError as error:
        raise MissingExtraError("imagecodecs", "images") from error
    return imagecodecs


def first_picture(tiff: Any, name: object) -> Any:
    """The first page that is no thumbnail of another one; S2WrapError if there is none, as in raw files of cameras."""
    for page in tiff.pages[:16]:
        if not page.aspage().is_reduced:
            return page.aspage()
    raise S2WrapError(
        f"{name}: its pages are thumbnails, and the picture is kept elsewhere; convert it to a plain TIFF"
    )


def check_page(page: Any, name: object, reading: Reading) -> None:
    """Raise S2WrapError for what is too large to be read as a whole, or is no plain picture."""
    check_numbers(page, name)
    samples = page.samplesperpixel * max(1, page.imagedepth)
    item = 8 if page.dtype is None else page.dtype.itemsize
    # decoded samples, those of the strip or tile at hand twice, and the result
    result = max(3, samples) * (1 if reading.value_range is None else 4)
    tile = tile_pixels(page) * samples * item
    reading.check_size(name, (page.imagelength, page.imagewidth), samples * item + result, fixed=2 * tile)
    if page.imagedepth > 1:
        raise S2WrapError(f"{name}: a volume of {page.imagedepth} slices; give one slice as an array")
    if len(page.dataoffsets) > MAX_STRIPS:
        raise S2WrapError(
            f"{name}: {len(page.dataoffsets)} strips or tiles, more than the {MAX_STRIPS} that are safe to decode"
        )


def check_numbers(page: object, name: object) -> None:
    """Raise S2WrapError for a damaged page, of which a size is no number: tifffile gives all values of a tag."""
    names = ("imagelength", "imagewidth", "imagedepth", "samplesperpixel", "rowsperstrip", "tilelength", "tilewidth")
    for each in (*names, "bitspersample"):
        if not isinstance(getattr(page, each), int | np.integer):
            raise S2WrapError(f"{name}: cannot be decoded: damaged; {each} is {str(getattr(page, each))[:40]}")


def tile_pixels(page: Any) -> int:
    """Pixels of a strip or tile, which is always decoded whole."""
    if page.is_tiled:
        return page.tilelength * page.tilewidth
    return min(page.rowsperstrip or page.imagelength, page.imagelength) * page.imagewidth


def decoded(page: Any) -> np.ndarray:
    """The samples of a page, (height, width, samples)."""
    values = page.asarray(maxworkers=1, squeeze=False)  # (planes, depth, height, width, samples)
    planes = np.moveaxis(values[:, 0], 0, 2)  # (height, width, planes, samples), of which one is 1
    return planes.reshape(*planes.shape[:2], -1)


def samples_of(page: Any, values: np.ndarray, name: object) -> Samples:
    """What the samples of a page, or of a part of it, mean.

    Args:
        page: of tifffile.
        values: (height, width, samples).
        name: what errors call it.

    Raises:
        S2WrapError: colours that are not read.
    """
    values = values.view(np.uint8) if values.dtype == bool else values
    kind = getattr(page.photometric, "name", str(page.photometric))
    count, bits, number = values.shape[2], page.bitspersample, values.dtype.kind
    extra = [int(value) for value in page.extrasamples]
    bounds = integer_bounds(bits) if values.dtype == np.uint8 or (number == "u" and 8 < bits < 16) else None
    missing = float(page.nodata) if "GDAL_NODATA" in page.tags else None
    if kind in ("MINISBLACK", "MINISWHITE", "RGB") or (kind == "YCBCR" and _is_rgb_already(page)):
        colour_count = 1 if kind.startswith("MINIS") else 3
        alpha, colours = _alpha(extra, count, colour_count)
        if count >= colour_count and (alpha == "none" or number in "uf"):
            opaque = 1 if number == "f" else 2**bits - 1
            return Samples(values, colours, bounds, kind == "MINISWHITE", alpha, opaque, missing=missing)
    if kind == "PALETTE":
        return Samples(values, "rgb", bounds, to_rgb=_palette(page), missing=missing)
    if kind == "SEPARATED" and count == 4 and number == "u" and bits <= 16:
        ink_set = page.tags.get(INK_SET)
        if ink_set is None or ink_set.value == 1:
            return Samples(values, "rgb", bounds, to_rgb=partial(_cmyk, white=2**bits - 1), missing=missing)
    if kind == "YCBCR" and count == 3 and values.dtype == np.uint8 and _has_full_range(page):
        return Samples(values, "rgb", bounds, to_rgb=_ycbcr)
    if (kind, number, bits) in (("CIELAB", "u", 8), ("CIELAB", "u", 16), ("ICCLAB", "u", 8)) and count == 3:
        return Samples(values, "rgb", bounds, to_rgb=_lab_of(kind), missing=missing)
    raise S2WrapError(f"{name}: {kind} colours with {count} samples of {values.dtype} are not read; convert it to RGB")


def _alpha(extra: list[int], count: int, colour_count: int) -> tuple[Alpha, Colours]:
    """The kind of alpha, and what the samples are: colours, or bands if there are others beside them."""
    colours: Colours = "grey" if colour_count == 1 else "rgb"
    if count == colour_count + 1 and extra[:1] in ([ASSOCIATED], [UNASSOCIATED]):
        return "premultiplied" if extra[0] == ASSOCIATED else "straight", colours
    return "none", colours if count == colour_count else "bands"


def _is_rgb_already(page: Any) -> bool:
    """Whether imagecodecs has made RGB of YCbCr: that of JPEG strips and tiles."""
    return page.compression in (6, 7, 33007)


def _has_full_range(page: Any) -> bool:
    """Whether YCbCr uses all 8 bits, as JPEG does, not the range of video; the tag's fractions may be pairs."""
    tag = page.tags.get(REFERENCE_BLACK_WHITE)
    numbers = (0, 255, 128, 255, 128, 255) if tag is None else tag.value
    return tuple(numbers) in ((0, 255, 128, 255, 128, 255), (0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1))


def _palette(page: Any) -> Any:
    """The colour map of a page as a function; its 16-bit values, or 8-bit ones that some programs write."""
    colours = np.moveaxis(np.asarray(page.colormap), 0, -1)  # (indices, 3)
    table = colours if colours.max() <= 255 else np.round(colours / 257)
    return lambda indices: table.astype(np.uint8)[np.minimum(indices[..., 0], len(table) - 1)]


def _eight_bits(values: np.ndarray, white: float) -> np.ndarray:
    return np.round(values * (255 / white)).astype(np.uint8)


def _cmyk(values: np.ndarray, white: float) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(_eight_bits(values, white), "CMYK").convert("RGB"))


def _ycbcr(values: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(np.ascontiguousarray(values), "YCbCr").convert("RGB"))


def _lab_of(kind: str) -> Any:
    """CIE L*a*b* (TIFF 6.0, page 110: a and b are signed) or ICC L*a*b* (they are shifted by half) → sRGB."""
    from PIL import Image, ImageCms

    to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")

    def convert(values: np.ndarray) -> np.ndarray:
        signed = values[..., 1:] if values.dtype == np.uint8 else (values[..., 1:] >> 8).astype(np.uint8)
        signed = signed ^ 128 if kind == "ICCLAB" else signed
        rows = np.concatenate([_eight_bits(values[..., :1], np.iinfo(values.dtype).max), signed], axis=2)
        return np.asarray(ImageCms.applyTransform(Image.fromarray(rows, "LAB"), to_srgb))

    return convert
