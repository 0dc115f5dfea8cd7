"""Arrays of NumPy, DICOM and HEIC files."""

from typing import Any

import numpy as np
from torch import Tensor

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.images.limits import LimitedFile
from s2wrap.images.options import Range, Reading
from s2wrap.images.pillow import stored_pixels
from s2wrap.images.values import Samples, integer_bounds, to_tensor

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def read_array(file: LimitedFile, name: object, reading: Reading) -> Tensor:
    """An array of NumPy, (height, width) or (height, width, bands); objects, which would be unpickled, are refused."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    if len(shape) not in (2, 3) or dtype.kind not in "uif":
        raise S2WrapError(
            f"{name}: an array {shape} of {dtype}; give numbers (height, width) or (height, width, bands)"
        )
    bands = shape[2] if len(shape) == 3 else 1
    reading.check_size(name, (shape[0], shape[1]), bands * (2 * dtype.itemsize + 3))
    file.seek(0)
    values = np.load(file, allow_pickle=False)
    values = values[:, :, None] if values.ndim == 2 else values
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    colours = {1: "grey", 3: "rgb"}.get(bands, "bands")
    bounds = integer_bounds(8) if values.dtype == np.uint8 else None
    return to_tensor(Samples(values, colours, bounds), name, reading)  # type: ignore[arg-type] (of Colours' words)


def read_dicom(file: LimitedFile, name: object, reading: Reading) -> Tensor:
    """The first frame of a DICOM file through its rescale and its first window.

    Raises:
        S2WrapError: no window, values that are not plain, and no `value_range` (which is in rescaled units, such as
            Hounsfield's).
        MissingExtraError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut, apply_rescale
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise MissingExtraError("pydicom", "images") from error
    data = pydicom.dcmread(file)
    count = int(data.get("SamplesPerPixel", 1))
    reading.check_size(name, (int(data.Rows), int(data.Columns)), count * (data.BitsAllocated // 8 + 12))
    values = pixel_array(data, index=0)
    kind = data.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, data)
        return to_tensor(Samples(values, "rgb", integer_bounds(8 * values.dtype.itemsize)), name, reading)
    if values.ndim == 3:
        return to_tensor(Samples(values, "rgb", integer_bounds(int(data.BitsStored))), name, reading)
    rescaled = apply_rescale(values, data)[:, :, None]
    inverted = kind == "MONOCHROME1"
    if reading.value_range is not None:
        samples = Samples(rescaled.astype(np.float32), "grey", None, inverted)
    else:
        samples = Samples(rescaled, "grey", _window(data), inverted)
    return to_tensor(samples, name, reading)


def _window(data: Any) -> Range | None:
    """What the first window shows as black and white (DICOM PS3.3, C.11.2.1.2.1); without one, all plain values."""
    if "WindowCenter" in data and "WindowWidth" in data:
        center, width = (float(np.atleast_1d(data[tag].value)[0]) for tag in ("WindowCenter", "WindowWidth"))
        half = (width - 1) / 2
        return (center - 0.5 - half, center - 0.5 + half) if half > 0 else None
    plain = data.PixelRepresentation == 0 and "RescaleSlope" not in data and "ModalityLUTSequence" not in data
    return integer_bounds(int(data.BitsStored)) if plain else None


def read_heic(file: LimitedFile, name: object, reading: Reading) -> Tensor:
    """A HEIC picture, which its decoder turns upright."""
    try:
        from pillow_heif import open_heif
    except ImportError as error:
        raise MissingExtraError("pillow_heif", "images") from error
    picture = open_heif(file)
    reading.check_size(name, (picture.size[1], picture.size[0]), 24)
    return stored_pixels(picture.to_pillow(), name, reading)
