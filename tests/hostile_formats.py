"""Crafted files of arrays, DICOM, HEIC, AVIF, JPEG 2000, PNM and TGA, and of codecs inside TIFFs."""

import io
import lzma
import struct
from collections.abc import Iterator
from itertools import product
from typing import Any

import imagecodecs
import numpy as np
import pictures
from PIL import Image

SIZES = (0, 1, 2, 30_000, 65_535, 2**31 - 1, 2**32 - 1)


def seeds() -> dict[str, bytes]:
    """A small picture of each format, by name."""
    found = {}
    for case in pictures.other_cases():
        if case.wanted is not None and case.reading == pictures.Reading():
            found.setdefault(f"{case.kind.strip('.')} {case.meaning} .{case.ending}", case.content)
    return found


def files(tiff: Any) -> Iterator[tuple[str, bytes]]:
    """Every crafted recipe as (name, content).

    Args:
        tiff: makes a TIFF of tags and data.
    """
    clean = seeds()
    yield from _arrays()
    yield from _dicoms(next(content for name, content in clean.items() if name.endswith(".dcm")))
    yield from _netpbms()
    yield from _targas()
    for name, content in clean.items():
        if name.endswith((".heic", ".avif", ".jp2")):
            yield from _boxes(name, content)
    yield from _codecs(tiff)


def _arrays() -> Iterator[tuple[str, bytes]]:
    def array(header: str | bytes, version: bytes = b"\1\0", body: bytes = bytes(300)) -> bytes:
        text = header.encode() if isinstance(header, str) else header
        length = struct.pack("<H" if version[:1] == b"\1" else "<I", len(text))
        return b"\x93NUMPY" + version + length + text + body

    shapes = ("(9, 9)", "(9, 9, 3)", "(9,)", "()", "(0, 9)", "(-9, 9)", "(2147483647, 2147483647)", "(9, 9, 100000000)")
    for kind, shape in product(("|u1", "<u2", ">f4", "<f8", "|O", "<U9", "<M8[s]", "|b1", "<c8", "|V3"), shapes):
        yield f"{kind} {shape} .npy", array(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n")
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (9, 9)}"
    for version in (b"\0\0", b"\2\0", b"\3\0", b"\4\0", b"\xff\xff"):
        yield f"version {version.hex()} .npy", array(head, version)
    for number, text in enumerate(
        ("", "{}", "[", "(" * 9_000, "{'descr': [('a', 'u1')]}", head * 9, "__import__('os')")
    ):
        yield f"header {number} .npy", array(text)
    yield "header of 60,000 bytes .npy", array(head + " " * 60_000)
    yield "header beyond the end .npy", b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"{}"
    yield "no body .npy", array(head, body=b"")
    yield "Fortran's order .npy", array(head.replace("False", "True"))


def _dicoms(clean: bytes) -> Iterator[tuple[str, bytes]]:
    def changed(group: int, element: int, kind: bytes, value: int) -> bytes:
        tag = struct.pack("<HH", group, element) + kind + b"\2\0"
        at = clean.index(tag) + len(tag)
        return clean[:at] + struct.pack("<H", value) + clean[at + 2 :]

    for element, value in product((0x02, 0x10, 0x11, 0x100, 0x101, 0x102, 0x103), (0, 1, 3, 9, 12, 64, 255, 65_535)):
        yield f"(0028,{element:04x}) is {value} .dcm", changed(0x28, element, b"US", value)
    at = clean.index(b"\xe0\x7f\x10\x00OW")
    for length in (0, 1, 2**31, 2**32 - 2, 2**32 - 1):
        yield f"pixels of {length} bytes .dcm", clean[: at + 8] + struct.pack("<I", length) + clean[at + 12 :]
    for kind in (b"MONOCHROME3", b"PALETTE COLOR", b"RGB", b"YBR_FULL", b""):
        yield f"photometric {kind.decode()} .dcm", clean.replace(b"MONOCHROME2 "[:11], kind.ljust(11)[:11])
    for syntax in (b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.90", b"1.2.3"):
        yield f"syntax {syntax.decode()} .dcm", clean.replace(b"1.2.840.10008.1.2.1", syntax.ljust(19, b"\0")[:19])
    yield "a preamble alone .dcm", bytes(128) + b"DICM"
    yield (
        "sequences in sequences .dcm",
        bytes(128) + b"DICM" + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 3_000,
    )


def _netpbms() -> Iterator[tuple[str, bytes]]:
    for kind, width, height, most in product(
        range(1, 8), (0, 1, 4, 30_000, 10**12), (4, 10**9), (0, 1, 255, 65_536, -1)
    ):
        yield f"P{kind} {width} × {height}, {most} .ppm", f"P{kind}\n{width} {height}\n{most}\n".encode() + bytes(64)
    yield "a comment of a megabyte .ppm", b"P6\n#" + b"a" * 1_000_000 + b"\n4 4\n255\n" + bytes(48)
    yield "spaces of a megabyte .pgm", b"P5" + b" " * 1_000_000 + b"4 4 255\n" + bytes(48)
    yield "a number of 9,999 digits .pgm", b"P5 " + b"9" * 9_999 + b" 4 255\n" + bytes(48)


def _targas() -> Iterator[tuple[str, bytes]]:
    for kind, bits, width, height in product((1, 2, 3, 9, 10, 11, 99), (8, 16, 24, 32), (0, 4, 30_000), (4, 65_535)):
        head = struct.pack("<BBBHHBHHHHBB", 0, kind in (1, 9), kind, 0, 255, 24, 0, 0, width, height, bits, 0)
        yield f"type {kind}, {bits} bits, {width} × {height} .tga", head + b"\xff\0\1\2" * 200


def _boxes(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Claims of other sizes in the boxes that say them: ispe of HEIF and AVIF, ihdr and SIZ of JPEG 2000."""
    places = [
        content.find(mark) + shift for mark, shift in ((b"ispe", 8), (b"ihdr", 4), (b"\xff\x51", 6)) if mark in content
    ]
    for place, width, height in product(places, SIZES, SIZES):
        yield (
            f"{width} × {height} at {place}: {name}",
            content[:place] + struct.pack(">II", width, height) + content[place + 8 :],
        )
    for number, at in enumerate(range(4, min(len(content), 400), 4)):
        yield f"box {number} of 2³² bytes: {name}", content[: at - 4] + b"\xff\xff\xff\xff" + content[at:]


def _codecs(tiff: Any) -> Iterator[tuple[str, bytes]]:
    """Strips and tiles of 4 × 4 grey pixels that hold much more, or something else, by each compression."""
    plain = bytes(10**8)
    large = Image.new("L", (5_000, 5_000))
    bodies = {
        5: imagecodecs.lzw_encode(bytes(10**7)),
        8: imagecodecs.zlib_encode(plain),
        32773: b"\x81\0" * 10**6,
        34925: lzma.compress(plain),
        50000: imagecodecs.zstd_encode(plain),
    }
    for code, kind in ((7, "JPEG"), (34712, "JPEG2000"), (50001, "WEBP")):
        file = io.BytesIO()
        large.convert("RGB" if kind == "WEBP" else "L").save(file, kind)
        bodies[code] = file.getvalue()
    for code, body in bodies.items():
        tags = {256: (4, [4]), 257: (4, [4]), 258: (3, [8]), 262: (3, [1]), 277: (3, [1])}
        strips = {259: (3, [code]), 273: (4, [8]), 278: (4, [4]), 279: (4, [len(body)])}
        yield f"compression {code} of much more .tif", tiff(tags | strips, body)
        yield f"compression {code} of zeros .tif", tiff(tags | strips, bytes(len(body)))
        tiles = {259: (3, [code]), 322: (4, [16]), 323: (4, [16]), 324: (4, [8]), 325: (4, [len(body)])}
        yield f"tiles of compression {code} of much more .tif", tiff(tags | tiles, body)
        for most in (2**16, 2**20):
            huge = tags | {322: (4, [most]), 323: (4, [most]), 324: (4, [8]), 325: (4, [len(body)]), 259: (3, [code])}
            yield f"tiles of {most}² pixels, compression {code} .tif", tiff(huge, body)
    for code in (1, 2, 3, 4, 6, 99, 32774, 34676, 34887, 34892, 34933, 50002, 65_000):
        tags = {256: (4, [4]), 257: (4, [4]), 258: (3, [8]), 262: (3, [1]), 277: (3, [1]), 259: (3, [code])}
        yield (
            f"compression {code} of noise .tif",
            tiff(tags | {273: (4, [8]), 278: (4, [4]), 279: (4, [99])}, np.random.default_rng(code).bytes(99)),
        )
