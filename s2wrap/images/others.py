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
    """The first frame of a DICOM file through its rescale and its first window or table.

    Raises:
        S2WrapError: values that nothing explains and no `value_range` (in rescaled units, such as Hounsfield's), an
            enhanced file whose frames have windows of their own, a deflated one.
        MissingExtraError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise MissingExtraError("pydicom", "images") from error
    if b"1.2.840.10008.1.2.1.99" in file.read(4096):  # of whatever size once it is inflated, which pydicom does at once
        raise S2WrapError(f"{name}: a deflated DICOM file is not read; store it without compression")
    file.seek(0)
    data = pydicom.dcmread(file)
    if "SharedFunctionalGroupsSequence" in data or "PerFrameFunctionalGroupsSequence" in data:
        raise S2WrapError(f"{name}: an enhanced DICOM file of several frames is not read; store one frame in each file")
    count = int(data.get("SamplesPerPixel", 1))
    reading.check_size(name, (int(data.Rows), int(data.Columns)), count * (data.BitsAllocated // 8 + 12))
    values = pixel_array(data, index=0)
    kind = data.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, data)
        return to_tensor(Samples(values, "rgb", integer_bounds(8 * values.dtype.itemsize)), name, reading)
    if values.ndim == 3:
        return to_tensor(Samples(values, "rgb", integer_bounds(int(data.BitsStored))), name, reading)
    padding = data.get("PixelPaddingValue")
    missing = None if padding is None else float(apply_modality_lut(np.array([padding]), data)[0])
    rescaled, bounds = apply_modality_lut(values, data), _window(data, name)
    if "VOILUTSequence" in data:
        bounds, missing = integer_bounds(int(data.VOILUTSequence[0].LUTDescriptor[2])), None
        rescaled = apply_voi(rescaled, data)
    rescaled = rescaled if bounds else rescaled.astype(np.float32)
    samples = Samples(rescaled[:, :, None], "grey", bounds, kind == "MONOCHROME1", missing=missing)
    return to_tensor(samples, name, reading)


def _window(data: Any, name: object) -> Range | None:
    """What the first window shows as black and white (DICOM PS3.3, C.11.2.1.2); without one, all plain values."""
    if "WindowCenter" in data and "WindowWidth" in data:
        function = data.get("VOILUTFunction", "LINEAR")
        if function not in ("LINEAR", "LINEAR_EXACT"):
            raise S2WrapError(f"{name}: a window of the form {function} is not read; store the values that it shows")
        center, width = (float(np.atleast_1d(data[tag].value)[0]) for tag in ("WindowCenter", "WindowWidth"))
        shift, half = (0.5, (width - 1) / 2) if function == "LINEAR" else (0, width / 2)
        return (center - shift - half, center - shift + half) if half > 0 else None
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
