"""Picture files → tensors (channels, height, width), safely."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image
from torch import Tensor

from s2wrap.errors import S2WrapError, first_line
from s2wrap.images.folders import SUFFIXES
from s2wrap.images.limits import LimitedFile, Stream
from s2wrap.images.options import USUAL, Reading
from s2wrap.images.others import HEIF_BRANDS, read_array, read_dicom, read_heic
from s2wrap.images.pillow import read_with_pillow
from s2wrap.images.tiff import MAGIC, read_tiff

Reader = Callable[[LimitedFile, object, Reading], Tensor]


def load_image(path: str | Path, reading: Reading = USUAL) -> Tensor:
    """A picture file, (channels, height, width): RGB in 0…255 as uint8, or the bands of the file.

    EXIF turns are applied, or none where EXIF cannot be read; grey becomes RGB; values are scaled from what the file
    says is black and white; transparent pixels are laid on white; CMYK, Lab and palettes are converted; of several
    frames or pages the first is taken. Colour profiles are not applied. Where the file does not say what its values
    mean (signed and floating ones, 16 bits of which fewer are used), `reading.value_range` does; such values are
    returned as they are, as uint16 or float32.

    Args:
        path: a JPEG, PNG, WebP, AVIF, JPEG 2000, GIF, BMP, PNM or TGA file; with the extra `[images]` TIFF, HEIC and
            DICOM files, and colours of more than 8 bits in PNG and JPEG 2000; an array of NumPy (.npy).
        reading: bands, range of values, and limits.

    Raises:
        S2WrapError: no such file, no picture, damaged, cut short, beyond a limit, or of unknown meaning.
        MissingExtraError: the library for this format is not installed.
    """
    with readable(path):
        if not os.path.isfile(path):  # a pipe would be waited for
            if os.path.isdir(path):
                raise S2WrapError(f"{path} is a folder; s2wrap.images.find_images([{str(path)!r}]) lists its pictures")
            what = "cannot be decoded; it is no file" if os.path.exists(path) else "there is no such file"
            what = "it is a link that leads nowhere" if os.path.islink(path) and not os.path.exists(path) else what
            raise S2WrapError(f"{path}: {what}")
        with open(path, "rb") as file:
            return read_stream(file, path, reading)


def decode_image(content: bytes, name: str, reading: Reading = USUAL) -> Tensor:
    """The picture whose file's content this is, as `load_image` reads it from a file; errors call it by `name`."""
    with readable(name):
        return read_stream(BytesIO(content), name, reading)


def silence_decoders() -> None:
    """Keep decoders from printing what they raise, in this process: for programs, such as the command line."""
    for library in ("PIL", "tifffile", "pydicom"):
        logging.getLogger(library).addHandler(logging.NullHandler())  # without one, Python prints complaints on stderr
        logging.getLogger(library).propagate = False
        warnings.filterwarnings("ignore", module=library)  # of odd metadata and large pictures: our limits decide


@contextmanager
def readable(path: object) -> Iterator[None]:
    """Make one S2WrapError of whatever goes wrong with a picture."""
    try:
        yield
    except S2WrapError:
        raise
    except Image.UnidentifiedImageError as error:
        raise S2WrapError(f"{path}: not a picture, or cut short in its header; read: {', '.join(SUFFIXES)}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, … for damaged files
        failed = "opened" if getattr(error, "errno", None) else "decoded: too large, damaged or cut short"
        raise S2WrapError(f"{path}: cannot be {failed} ({first_line(error)})") from error


def read_stream(file: Stream, name: object, reading: Reading) -> Tensor:
    """The picture in an open file, as `load_image` reads it; errors are those of decoders, see `readable`."""
    limited = LimitedFile(file, name, reading)
    start = file.read(132)
    file.seek(0)
    image = _reader(start)(limited, name, reading)
    if reading.reject_scaling_attacks:
        _check_attack(image, name)
    return image


def _check_attack(image: Tensor, name: object) -> None:
    """Raise S2WrapError if an image looks like an image-scaling attack."""
    from s2wrap.scaling_attacks import find_scaling_attack

    verdict = find_scaling_attack(image)
    if verdict.is_attack:
        height, width = verdict.image_hw
        raise S2WrapError(
            f"{name}: may hide another picture, which a {verdict.kernel} downscale to {height}×{width} shows (score "
            f"{verdict.round_trip:.1f}; regular patterns score as much)"
        )


def _reader(start: bytes) -> Reader:
    """The function for a file that begins with these bytes, whatever its name is."""
    if start.startswith(MAGIC):
        return read_tiff
    if start.startswith(b"\x93NUMPY"):
        return read_array
    if start[128:] == b"DICM":
        return read_dicom
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS and b"avif" not in start:  # which Pillow reads
        return read_heic
    return read_with_pillow
