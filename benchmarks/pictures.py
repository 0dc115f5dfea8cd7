"""Which picture files are read, and to which values: each against what the format's specification says.

    python benchmarks/pictures.py [--markdown]

Every file is made here, with the values that it means known beforehand. TIFFs are read with GDAL too (rasterio), PNGs
with OpenCV: it must find the samples that were written. Right: no value is further off than the row says.
"""

import argparse
import io
import struct
import sys
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image
from rich.console import Console
from rich.table import Table

from s2wrap import S2WrapError
from s2wrap.images import Reading, load_image

HEIGHT, WIDTH = 32, 48
UNIT = np.add.outer(np.linspace(0, 0.5, HEIGHT), np.linspace(0, 0.5, WIDTH))[:, :, None]
"""A ramp of one channel in 0…1."""
RGB = np.concatenate([UNIT, 1 - UNIT, UNIT[::-1]], axis=2)
ALPHA = UNIT[:, ::-1]
REFUSED = None


@dataclass(frozen=True)
class Case:
    """A file and what it means.

    Attributes:
        kind: its format and layout.
        depth: bits and type of a sample.
        meaning: of the values.
        ending: of the file name.
        content: the bytes.
        wanted: the values (height, width, channels); None where they must be refused.
        tolerance: by how much a value may be off.
        samples: those that a second reader must find; None where the wanted values came from one.
        reader: what it was checked against.
        reading: how it is read.
    """

    kind: str
    depth: str
    meaning: str
    ending: str
    content: bytes
    wanted: np.ndarray | None
    tolerance: float = 0
    samples: np.ndarray | None = None
    reader: str = "its specification"
    reading: Reading = Reading()  # noqa: RUF009 (it is frozen)

    def __str__(self) -> str:
        return f"{self.kind}, {self.depth}, {self.meaning}"


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Values in 0…1 as RGB in 0…255."""
    return np.broadcast_to(np.round(np.clip(values, 0, 1) * 255), (*values.shape[:2], max(3, values.shape[2])))


def integers(values: np.ndarray, bits: int) -> np.ndarray:
    """Values in 0…1 as unsigned integers of so many bits."""
    return np.round(values * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


def tiff(samples: np.ndarray, **options: Any) -> bytes:
    """A TIFF of samples (height, width, samples), or (samples, height, width) in planes."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.squeeze(samples), **options)
    return file.getvalue()


def tiff_case(
    meaning: str, samples: np.ndarray, wanted: np.ndarray | None, layout: str = "strips", **options: Any
) -> Case:
    """A TIFF in one of several layouts."""
    reading, tolerance = options.pop("reading", Reading()), options.pop("tolerance", 0)
    layouts: dict[str, dict[str, Any]] = {
        "strips": {"rowsperstrip": 5},
        "tiles": {"tile": (16, 16)},
        "big-endian": {"byteorder": ">", "rowsperstrip": 7},
        "BigTIFF": {"bigtiff": True, "tile": (16, 32)},
        "planes": {"planarconfig": "separate", "tile": (16, 16)},
    }
    depth = f"{options.get('bitspersample') or 8 * samples.dtype.itemsize} bits, {samples.dtype}"
    stored = np.moveaxis(samples, 2, 0) if layout == "planes" else samples
    content = tiff(stored, **layouts[layout], **options)
    photometric = options.get("photometric")
    converted = photometric in ("palette", "ycbcr", "cielab") or (photometric == "separated" and samples.itemsize == 1)
    gdal = None if converted or options.get("compression") == "jpeg" else samples  # those GDAL makes RGB of
    how = f", {options['compression']}" if "compression" in options else ""
    return Case(
        f"TIFF, {layout}{how}",
        depth,
        meaning,
        "tif",
        content,
        wanted,
        tolerance,
        gdal,
        "GDAL" if gdal is not None else Case.reader,
        reading,
    )


def tiff_cases() -> list[Case]:
    """TIFFs of every depth, meaning and layout."""
    cases = []
    layouts = ["strips", "tiles", "big-endian", "BigTIFF"]
    for number, bits in enumerate((8, 10, 12, 14, 16)):
        samples = integers(UNIT, bits)
        options = {} if bits in (8, 16) else {"bitspersample": bits}
        values = samples / (2**bits - 1)
        for offset, meaning in enumerate(("minisblack", "miniswhite")):
            wanted = to_bytes(1 - values if offset else values)
            layout = layouts[(number + offset) % 4] if not options else "strips"
            cases.append(tiff_case(meaning, samples, wanted, layout, photometric=meaning, **options))
    for bits in (8, 16):
        samples, alpha = integers(RGB, bits), integers(ALPHA, bits)
        white = 2**bits - 1
        values, opacity = samples / white, alpha / white
        for layout in ("strips", "tiles", "big-endian", "planes"):
            cases.append(tiff_case("rgb", samples, to_bytes(values), layout, photometric="rgb"))
        straight = np.concatenate([samples, alpha], axis=2)
        premultiplied = np.concatenate([integers(values * opacity, bits), alpha], axis=2)
        on_white = to_bytes(values * opacity + 1 - opacity)
        for name, four in (("unassalpha", straight), ("assocalpha", premultiplied)):
            options = {"photometric": "rgb", "extrasamples": (name,), "tolerance": 1}
            cases.append(tiff_case(f"rgb, {name}", four, on_white, **options))
        cmyk = integers(np.concatenate([RGB, ALPHA / 2], axis=2), bits)
        parts = cmyk / white
        ink = to_bytes((1 - parts[..., :3]) * (1 - parts[..., 3:]))
        cases.append(tiff_case("cmyk", cmyk, ink, "tiles", photometric="separated", tolerance=1))
    cases += [
        tiff_case("rgb", integers(RGB, 16), to_bytes(integers(RGB, 16) / 65535), photometric="rgb", **options)
        for options in (
            {"compression": "lzw"},
            {"compression": "zlib", "predictor": 2},
            {"compression": "zstd"},
            {"compression": "lzma"},
            {"compression": "packbits"},
        )
    ]
    floats = RGB.astype(np.float32)
    for dtype in (np.float16, np.float32, np.float64):
        stored = RGB.astype(dtype)
        cases.append(
            tiff_case("rgb in 0…1", stored, to_bytes(stored.astype(np.float64)), photometric="rgb", tolerance=1)
        )
    cases.append(
        tiff_case(
            "rgb in 0…1",
            floats,
            to_bytes(floats),
            "tiles",
            photometric="rgb",
            compression="zlib",
            predictor=3,
            tolerance=1,
        )
    )
    hundred = Reading(value_range=(0, 100))
    cases.append(tiff_case("floats in 0…100", floats * 100, REFUSED, photometric="rgb"))
    cases.append(tiff_case("floats, value_range", floats * 100, floats * 100, photometric="rgb", reading=hundred))
    bounds = [(340, "f", 1, 0.0, True), (341, "f", 1, 100.0, True)]  # SMinSampleValue, SMaxSampleValue
    cases.append(tiff_case("floats, statistics in tags", UNIT.astype(np.float32) * 100, REFUSED, extratags=bounds))
    for dtype in (np.int8, np.int16, np.int32, np.uint32):
        stored = np.round(UNIT * 100).astype(dtype)
        cases.append(tiff_case("nothing says what is white", stored, REFUSED, photometric="minisblack"))
    signed = np.round(UNIT * 100 - 50).astype(np.int16)
    centred = Reading(value_range=(-50, 50))
    grey = np.repeat(signed, 3, axis=2)
    cases.append(tiff_case("signed, value_range", signed, grey, photometric="minisblack", reading=centred))
    twelve = integers(UNIT, 12)
    cases.append(tiff_case("12 bits in 16, no tag", twelve, REFUSED, photometric="minisblack"))
    tag = [(281, "H", 1, 4095, True)]
    cases.append(tiff_case("12 bits in 16, MaxSampleValue (a statistic)", twelve, REFUSED, extratags=tag))
    said = Reading(value_range=(0, 4095))
    cases.append(tiff_case("12 bits in 16, value_range", twelve, np.repeat(twelve, 3, axis=2), reading=said))
    bands = integers(np.concatenate([RGB, UNIT, ALPHA], axis=2), 8)
    chosen = Reading(bands=(4, 3, 2))
    cases.append(tiff_case("five bands", bands, bands.astype(float), photometric="minisblack", planarconfig="contig"))
    cases.append(
        tiff_case(
            "bands 4, 3, 2",
            bands,
            bands[..., [3, 2, 1]].astype(float),
            photometric="minisblack",
            planarconfig="contig",
            reading=chosen,
        )
    )
    opaque = np.full_like(twelve, 65535)
    grey_alpha = {"photometric": "minisblack", "extrasamples": ("unassalpha",), "planarconfig": "contig"}
    both = np.concatenate([twelve, opaque], axis=2)
    cases.append(tiff_case("12 bits in 16 and alpha of 16, no tag", both, REFUSED, **grey_alpha))
    wanted, meaning = np.repeat(twelve, 3, axis=2), "12 bits in 16 and alpha of 16, value_range"
    cases.append(tiff_case(meaning, both, wanted, reading=said, **grey_alpha))
    ink = integers(np.concatenate([RGB, ALPHA / 2], axis=2), 12)
    inks = to_bytes((1 - ink[..., :3] / 4095) * (1 - ink[..., 3:] / 4095))
    cases.append(tiff_case("cmyk", ink, inks, photometric="separated", bitspersample=12, tolerance=1))
    return [*cases, *palette_cases(), *colour_space_cases(), *bit_cases(), *turned_cases()]


def palette_cases() -> list[Case]:
    """Palettes whose colour maps hold 16 or, as some programs write it, 8 bits."""
    indices = integers(UNIT, 8)
    colours = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) // 2])  # (3, 256)
    wanted = np.moveaxis(colours[:, indices[..., 0]], 0, 2).astype(float)
    return [
        tiff_case(
            f"colour map of {bits} bits",
            indices,
            wanted,
            photometric="palette",
            colormap=colours.astype(np.uint16) * by,
        )
        for bits, by in ((16, 257), (8, 1))
    ]


def colour_space_cases() -> list[Case]:
    """YCbCr, plain and in JPEG, and CIE L*a*b*."""
    rgb, jpeg = integers(RGB, 8), {"compression": "jpeg", "compressionargs": {"level": 100}}
    plain = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    lab = np.concatenate([UNIT * 200 + 27, 20 * (UNIT - 0.5), 20 * (0.5 - UNIT)], axis=2)
    stored = np.round(lab).astype(np.int16)
    wanted = to_bytes(lab_to_srgb(stored[..., 0] * 100 / 255, stored[..., 1], stored[..., 2]))
    as_bytes = stored.astype(np.int8).view(np.uint8) * (np.arange(3) > 0) + stored.astype(np.uint8) * (
        np.arange(3) == 0
    )
    as_words = (stored * 256).view(np.uint16) * (np.arange(3) > 0) + (stored * 257).view(np.uint16) * (
        np.arange(3) == 0
    )
    as_words = as_words.astype(np.uint16)
    return [
        tiff_case("ycbcr", plain, rgb.astype(float), photometric="ycbcr", tolerance=3),
        tiff_case("ycbcr", rgb, rgb.astype(float), "tiles", photometric="rgb", tolerance=6, **jpeg),
        tiff_case("cielab", as_bytes.astype(np.uint8), wanted, photometric="cielab", tolerance=3),
        tiff_case("cielab", as_words, wanted, photometric="cielab", tolerance=3),
    ]  # fmt: skip


def lab_to_srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D50) → sRGB in 0…1, by CIE 15 and IEC 61966-2-1 with Bradford's adaptation."""
    middle = (lightness + 16) / 116
    parts = np.stack([middle + a / 500, middle, middle - b / 200], axis=-1)
    linear = np.where(parts > 6 / 29, parts**3, 3 * (6 / 29) ** 2 * (parts - 4 / 29))
    xyz = linear * [0.96422, 1.0, 0.82521]
    to_rgb = np.array(
        [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
    )
    rgb = np.clip(xyz @ to_rgb.T, 0, 1)
    return np.where(rgb > 0.0031308, 1.055 * rgb ** (1 / 2.4) - 0.055, 12.92 * rgb)


def bit_cases() -> list[Case]:
    """TIFFs of 1, 2 and 4 bits, written by GDAL."""
    import rasterio

    cases = []
    for bits, compression in ((1, "CCITTFAX4"), (1, "NONE"), (2, "NONE"), (4, "LZW")):
        samples = integers(UNIT, bits)
        for meaning in ("MINISBLACK", "MINISWHITE"):
            with tempfile.NamedTemporaryFile(suffix=".tif") as file:
                profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 1, "dtype": "uint8"}
                options = {"nbits": bits, "compress": compression, "photometric": meaning}
                with rasterio.open(file.name, "w", **profile, **options) as dataset:
                    dataset.write(samples[..., 0], 1)
                content = Path(file.name).read_bytes()
            values = samples / (2**bits - 1)
            wanted = to_bytes(1 - values if meaning == "MINISWHITE" else values)
            cases.append(
                Case(
                    f"TIFF, {compression.lower()}",
                    f"{bits} bits",
                    meaning.lower(),
                    "tif",
                    content,
                    wanted,
                    0,
                    samples,
                    "GDAL",
                )
            )
    return cases


def stored_turned(upright: np.ndarray) -> dict[int, np.ndarray]:
    """How a picture (height, width, samples) is stored under each orientation (EXIF 2.3, tag 0x0112)."""
    swapped = upright.transpose(1, 0, 2)
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: swapped,
        6: swapped[::-1],
        7: swapped[::-1, ::-1],
        8: swapped[:, ::-1],
    }


def turned_cases() -> list[Case]:
    """TIFFs whose first row or column lies elsewhere."""
    upright, cases = integers(RGB, 8), []
    for turn, stored in list(stored_turned(upright).items())[1:]:  # the first is upright
        options = {"photometric": "rgb", "extratags": [(274, "H", 1, turn, True)]}
        cases.append(
            tiff_case(f"rgb, orientation {turn}", np.ascontiguousarray(stored), upright.astype(float), **options)
        )
    return cases


def png(samples: np.ndarray, bits: int, colour: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG by its specification (W3C, third edition): samples (height, width, samples) of a colour type."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    if bits == 16:
        rows = [line.astype(">u2").tobytes() for line in samples]
    else:
        steps = np.unpackbits(samples[..., None].astype(np.uint8), axis=-1)[..., 8 - bits :]
        rows = [np.packbits(line.reshape(-1)).tobytes() for line in steps]
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, 0)
    body = b"".join(chunk(kind, content) for kind, content in extra)
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + data + chunk(b"IEND", b"")


def png_cases() -> list[Case]:
    """PNGs of every depth and colour type, with alpha or a transparent key."""
    cases = []
    for bits in (1, 2, 4, 8, 16):
        grey = integers(UNIT, bits)
        cases.append(
            Case(
                "PNG",
                f"{bits} bits",
                "grey",
                "png",
                png(grey, bits, 0),
                to_bytes(grey / (2**bits - 1)),
                0,
                grey,
                "OpenCV",
            )
        )
    for bits in (2, 4):
        grey = integers(UNIT, bits)
        keyed = np.where(grey == 1, 255, to_bytes(grey / (2**bits - 1)))
        content = png(grey, bits, 0, (b"tRNS", struct.pack(">H", 1)))
        cases.append(Case("PNG", f"{bits} bits", "grey, a transparent key", "png", content, keyed))
    for bits in (8, 16):
        white = 2**bits - 1
        rgb, alpha, grey = integers(RGB, bits), integers(ALPHA, bits), integers(UNIT, bits)
        on_white = to_bytes(rgb / white * (alpha / white) + 1 - alpha / white)
        grey_on_white = to_bytes(grey / white * (alpha / white) + 1 - alpha / white)
        four, two = np.concatenate([rgb, alpha], axis=2), np.concatenate([grey, alpha], axis=2)
        key, grey_key = rgb[3, 5], grey[3, 5]
        grey_keyed = np.where(grey == grey_key, 255, to_bytes(grey / white))
        grey_transparent = (b"tRNS", struct.pack(">H", grey_key[0]))
        keyed = np.where((rgb == key).all(-1, keepdims=True), 255, to_bytes(rgb / white))
        transparent = (b"tRNS", b"".join(struct.pack(">H", value) for value in key))
        depth = f"{bits} bits"
        cases += [
            Case("PNG", depth, "rgb", "png", png(rgb, bits, 2), to_bytes(rgb / white), 0, rgb, "OpenCV"),
            Case("PNG", depth, "rgb and alpha", "png", png(four, bits, 6), on_white, 1, four, "OpenCV"),
            Case("PNG", depth, "grey and alpha", "png", png(two, bits, 4), grey_on_white, 1),
            Case("PNG", depth, "grey, a transparent key", "png", png(grey, bits, 0, grey_transparent), grey_keyed),
            Case("PNG", depth, "rgb, a transparent key", "png", png(rgb, bits, 2, transparent), keyed),
        ]
    return cases


def other_cases() -> list[Case]:
    """Arrays, PNM, and lossless and lossy files that Pillow writes."""
    rgb, grey = integers(RGB, 8), integers(UNIT, 8)
    plain = rgb.astype(float)
    cases = []
    for kind, ending, tolerance in (
        ("BMP", "bmp", 0), ("TGA", "tga", 0), ("JPEG2000", "jp2", 0), ("PPM", "ppm", 0), ("PNG", "apng", 0),
        ("WEBP", "webp", 0), ("AVIF", "avif", 12), ("JPEG", "jfif", 8), ("JPEG", "jpe", 8),
    ):  # fmt: skip
        file = io.BytesIO()
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}
        Image.fromarray(rgb).save(file, kind, **options.get(kind, {}))
        cases.append(Case(kind, "8 bits", "rgb", ending, file.getvalue(), plain, tolerance))
    for maximum, dtype in ((255, "u1"), (1000, ">u2"), (65535, ">u2")):
        stored = np.round(UNIT * maximum).astype(dtype)
        content = f"P5 {WIDTH} {HEIGHT} {maximum}\n".encode() + stored.tobytes()
        cases.append(Case("PGM", f"maximum {maximum}", "grey", "pgm", content, to_bytes(stored / maximum), 1))
    for name, array, wanted, reading in (
        ("uint8", rgb, plain, Reading()),
        ("uint8, grey", grey[..., 0], np.repeat(grey, 3, 2).astype(float), Reading()),
        ("uint16, value_range", rgb.astype(np.uint16), plain, Reading(value_range=(0, 255))),
        ("float32 in 0…1", RGB.astype(np.float32), to_bytes(RGB), Reading()),
        ("int64, nothing says what is white", rgb.astype(np.int64), REFUSED, Reading()),
        ("objects, which would be unpickled", np.array([[{}, {}], [{}, {}]]), REFUSED, Reading()),
    ):
        file = io.BytesIO()
        np.save(file, array)
        cases.append(Case(".npy", str(array.dtype), name, "npy", file.getvalue(), wanted, 1, reading=reading))
    for bits in (10, 12, 16):
        for meaning, values in (("rgb", RGB), ("rgb and opaque alpha", np.dstack([RGB, np.ones_like(UNIT)]))):
            stored = integers(values, bits)
            content = imagecodecs.jpeg2k_encode(stored, bitspersample=bits, codecformat="jp2", reversible=True, level=0)
            wanted = to_bytes(stored[..., :3] / (2**bits - 1))
            cases.append(Case("JPEG2000", f"{bits} bits", meaning, "jp2", bytes(content), wanted, 0, stored, "OpenCV"))
    return [*cases, *heic_cases(), *dicom_cases()]


def heic_cases() -> list[Case]:
    """A HEIC file."""
    from pillow_heif import from_pillow

    rgb, file = integers(RGB, 8), io.BytesIO()
    from_pillow(Image.fromarray(rgb)).save(file, quality=100, chroma=444)
    return [Case("HEIC", "8 bits", "rgb", "heic", file.getvalue(), rgb.astype(float), 12)]


def dicom_cases() -> list[Case]:
    """DICOM files with and without a window and a rescale."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    cases = []
    hounsfield = np.round(UNIT[..., 0] * 2000 - 1000).astype(np.int16)
    twelve = integers(UNIT, 12)[..., 0]
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 12]
    table.add_new("LUTData", "OW", np.where(np.arange(4096) < 2048, 0, np.arange(4096)).astype("<u2").tobytes())
    padded = np.where(np.arange(WIDTH) < 8, -2000, hounsfield).astype(np.int16)
    rescaled = {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": -24}
    inverted = {"WindowCenter": 0, "WindowWidth": 1500, "PhotometricInterpretation": "MONOCHROME1"}
    for meaning, stored, tags in (
        ("MONOCHROME2, window 40 400, rescale", hounsfield, rescaled),
        ("MONOCHROME1, window 0 1500", hounsfield, inverted),
        ("MONOCHROME2, 12 bits stored, no window", twelve, {}),
        ("window of the form SIGMOID", hounsfield, rescaled | {"VOILUTFunction": "SIGMOID"}),
        ("a table (VOI LUT)", twelve, {"VOILUTSequence": [table]}),
        ("MONOCHROME1, padding", padded, inverted | {"PixelPaddingValue": -2000}),
        ("enhanced, frames of their own", twelve, {"SharedFunctionalGroupsSequence": [pydicom.Dataset()]}),
        ("signed, no window", hounsfield, {}),
    ):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
        data.PhotometricInterpretation, data.SamplesPerPixel = "MONOCHROME2", 1
        data.Rows, data.Columns = stored.shape
        data.BitsAllocated, data.BitsStored, data.HighBit = (
            16,
            12 if stored is twelve else 16,
            11 if stored is twelve else 15,
        )
        data.PixelRepresentation = int(stored.dtype.kind == "i")
        for tag, value in tags.items():
            setattr(data, tag, value)
        data.PixelData = stored.tobytes()
        file = io.BytesIO()
        data.save_as(file, enforce_file_format=True)
        shown = apply_voi_lut(apply_modality_lut(stored, data), data).astype(float)
        low, high = (0, 4095) if stored is twelve else (shown.min(), shown.max())
        unit = (shown - low) / (high - low)
        unit = 1 - unit if data.PhotometricInterpretation == "MONOCHROME1" else unit
        unit = np.where(stored == tags.get("PixelPaddingValue"), 0, unit)
        refused = meaning.startswith(("signed", "enhanced")) or "SIGMOID" in meaning
        wanted = REFUSED if refused else to_bytes(unit[..., None])
        cases.append(
            Case(
                "DICOM",
                f"{data.BitsStored} bits",
                meaning,
                "dcm",
                file.getvalue(),
                wanted,
                1,
                reader="pydicom's windows",
            )
        )
    return cases


def all_cases() -> list[Case]:
    """Every case; names do not repeat."""
    return [*tiff_cases(), *png_cases(), *other_cases()]


def second_reader_finds(case: Case, path: Path) -> np.ndarray | None:
    """The samples that GDAL or OpenCV finds in a file; None where neither was asked."""
    if case.samples is None:
        return None
    if case.reader == "GDAL":
        import rasterio

        with rasterio.open(path) as dataset:
            return dataset.read().transpose(1, 2, 0)
    import cv2

    found = np.atleast_3d(np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[found.shape[2]]
    bits = int(case.depth.split()[0])
    scaled = found[..., order]
    return scaled // (255 // (2**bits - 1)) if bits < 8 else scaled


def verdict(case: Case, folder: Path) -> tuple[str, str]:
    """What came of a case, and what is wrong with that, if anything."""
    path = folder / f"picture.{case.ending}"
    path.write_bytes(case.content)
    second = second_reader_finds(case, path)
    if second is not None and not np.array_equal(second.astype(float), np.asarray(case.samples, float)):
        return "?", f"{case.reader} finds other samples than were written"
    try:
        found = load_image(path, case.reading).permute(1, 2, 0).numpy().astype(float)
    except S2WrapError as error:
        return "refused", "" if case.wanted is REFUSED else str(error).partition(": ")[2]
    if case.wanted is None:
        return "read", "should be refused"
    if found.shape != case.wanted.shape:
        return "read", f"shape {found.shape}, not {case.wanted.shape}"
    off = float(np.abs(found - case.wanted).max())
    return "right" if off <= case.tolerance else "wrong", "" if off <= case.tolerance else f"off by {off:g}"


def main() -> None:
    """Print a row a case; exit code 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, faults = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for case in all_cases():
            outcome, fault = verdict(case, Path(folder))
            faults += bool(fault)
            off = (
                f"within {case.tolerance:g}"
                if outcome == "right" and case.tolerance
                else "exactly" * (outcome == "right")
            )
            rows.append((case.kind, case.depth, case.meaning, f"{outcome} {off}".strip(), case.reader, fault))
    if arguments.markdown:
        print("| file | depth | meaning | read | checked against |\n|---|---|---|---|---|")
        for row in rows:
            print("| " + " | ".join(row[:5]) + " |")
    else:
        table = Table("file", "depth", "meaning", "read", "checked against", "fault")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    print(f"{len(rows)} files, {faults} faults", file=sys.stderr)
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
