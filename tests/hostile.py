"""Damaged and crafted picture files, the same ones every time: 6,500 recipes and the bytes that each gives."""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import product
from typing import Any

import hostile_formats
import numpy as np
import tifffile
from PIL import Image

HUGE = (0, 1, 65_535, 20_000, 2**31 - 1, 2**32 - 1)
OTHERS = {
    "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "html": b"<!doctype html><title>404</title><img src=a.png>",
    "pickle": pickle.dumps({"weights": list(range(99))}),
    "safetensors": struct.pack("<Q", 2) + b"{}",
    "nothing": b"",
    "zeros": bytes(100_000),
    "a gzip": b"\x1f\x8b\x08\x00" + bytes(40),
    "a program": b"\x7fELF\x02\x01\x01" + bytes(200),
    "a netpbm": b"P6 9 9 255\n" + bytes(243),
    "text after TIFF's mark": b"II is what I am called, and this is no picture",
}


def files() -> Iterator[tuple[str, bytes]]:
    """Every recipe as (name, content); the name's last word is the file's ending."""
    clean = seeds()
    yield from clean.items()
    for number, (name, content) in enumerate(clean.items()):
        yield from _damaged(name, content, list(clean.values()), np.random.default_rng(number))
        for ending in ("jpg", "png", "tif", "webp"):
            yield f"{name} named .{ending}", content
    yield from hostile_formats.files(tiff)
    for makers in (_pngs, _jpegs, _webps, _tiffs, _bmps, _gifs):
        yield from makers(clean)
    for (name, content), ending in product(OTHERS.items(), ("jpg", "png", "webp", "tif", "bmp", "gif")):
        yield f"{name} named .{ending}", content


def seeds() -> dict[str, bytes]:
    """A small picture in each of the formats' variants, by name."""
    noise = np.random.default_rng(0).integers(0, 64, (24, 40, 3))
    rgb = Image.fromarray((noise + np.linspace(0, 190, 40)[:, None]).astype(np.uint8))
    found = {}
    for name, (image, options) in _by_pil(rgb).items():
        ending = name.rpartition(".")[2]
        image.save(file := io.BytesIO(), {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper()), **options)
        found[name] = file.getvalue()
    found |= hostile_formats.seeds()
    for name, (array, options) in _by_tifffile(rgb).items():
        tifffile.imwrite(file := io.BytesIO(), array, **options)
        found[name] = file.getvalue()
    found["interlaced .png"] = png(40, 24, idat=zlib.compress(_adam7(np.asarray(rgb))), interlace=1)
    found["rle8 .bmp"] = bmp(40, 24, bits=8, compression=1, body=b"\x28\x07\0\0" * 21 + b"\0\2\5\2\0\3abc\0\0\0\0\1")
    found["rle4 .bmp"] = bmp(40, 24, bits=4, compression=2, body=b"\x28\x07\0\0" * 21 + b"\0\2\5\2\0\3ab\0\0\0\1")
    found["os2 .bmp"] = b"BM" + struct.pack("<LLLLHHHH", 0, 0, 26, 12, 4, 4, 1, 24) + bytes(48)
    return found


def _by_pil(rgb: Image.Image) -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    """What PIL saves, and how."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    alpha, frames = rgb.convert("RGBA"), [rgb.transpose(Image.Transpose.ROTATE_180)] * 3
    alpha.putalpha(rgb.convert("L"))
    wide = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    animated, noted = {"save_all": True, "append_images": frames}, {"exif": exif, "icc_profile": bytes(300)}
    modes = {"png": "1 L P LA RGB", "tif": "1 L P RGB CMYK YCbCr LAB", "bmp": "1 L P RGB", "jpg": "L RGB CMYK"}
    saved = {f"{mode} .{ending}": (rgb.convert(mode), {}) for ending in modes for mode in modes[ending].split()}
    saved |= {f"{kind} .tif": (rgb, {"compression": kind}) for kind in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")}
    return saved | {
        "progressive .jpg": (rgb, {"progressive": True}),
        "exif icc .jpg": (rgb, noted | {"comment": "a" * 50}),
        "exif icc .png": (alpha, noted),
        "16 bits .png": (wide, {}),
        "transparent palette .png": (rgb.convert("P"), {"transparency": b"\0\x80\xff"}),
        "animated .png": (rgb, animated),
        "lossy .webp": (rgb, noted),
        "lossless .webp": (alpha, {"lossless": True}),
        "animated .webp": (rgb, animated),
        "exif icc .tif": (rgb, noted),
        "group4 .tif": (rgb.convert("1"), {"compression": "group4"}),
        "16 bits .tif": (wide, {"compression": "tiff_lzw"}),
        "pages .tif": (rgb, animated),
        "alpha .bmp": (alpha, {}),
        "still .gif": (rgb, {}),
        "animated .gif": (rgb.convert("P"), animated | {"transparency": 3, "disposal": 2}),
        "interlaced .gif": (rgb.convert("L"), {"interlace": True}),
    }


def _by_tifffile(rgb: Image.Image) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """The TIFF files that PIL does not save, and how tifffile does."""
    colour, grey = np.asarray(rgb), np.asarray(rgb.convert("L"))
    return {
        "tiles .tif": (np.tile(grey, (2, 2)), {"tile": (16, 16)}),
        "deflated tiles .tif": (colour, {"tile": (16, 16), "compression": "zlib"}),
        "planes .tif": (np.moveaxis(colour, 2, 0), {"planarconfig": "separate", "photometric": "rgb"}),
        "big .tif": (grey, {"bigtiff": True}),
        "float .tif": (grey.astype(np.float32) / 255, {}),
        "float64 .tif": (grey / 255.0, {"compression": "zlib"}),
        "nan .tif": (np.where(grey < 99, np.nan, 0.5).astype(np.float32), {}),
        "int32 .tif": (grey.astype(np.int32) * -257, {}),
        "motorola .tif": (grey.astype(np.uint16) * 257, {"byteorder": ">"}),
    }


def _adam7(rgb: np.ndarray) -> bytes:
    """Filtered rows of the seven passes (PNG, section 8.2)."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    return b"".join(b"\0" + row.tobytes() for y, x, down, right in passes for row in rgb[y::down, x::right])


def _damaged(
    name: str, content: bytes, others: list[bytes], random: np.random.Generator
) -> Iterator[tuple[str, bytes]]:
    size = len(content)
    for cut in sorted({1, 2, 4, 9, 20, size - 1, size - 9, *random.integers(1, size, 9)} - {0}):
        yield f"cut at {cut}: {name}", content[:cut]
    for number in range(16):
        bits = np.unpackbits(np.frombuffer(content, np.uint8))
        bits[random.integers(0, min(len(bits), (400, 10**9)[number % 2]), 1 + number % 4)] ^= 1
        yield f"bits flipped {number}: {name}", np.packbits(bits).tobytes()
    for number, value in enumerate((b"\0\0", b"\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff") * 4):
        at = int(random.integers(0, min(size, (60, 400, 10**9)[number % 3])))
        yield f"{value.hex()} at {at}, {number}: {name}", content[:at] + value + content[at + len(value) :]
    for number in range(6):
        other = others[random.integers(len(others))]
        start, at, end = random.integers(len(other)), *sorted(random.integers(0, size, 2))
        yield f"splice {number}: {name}", content[:at] + other[start : start + 200] + content[end:]
        yield f"left out {at} to {end}, {number}: {name}", content[:at] + content[end:]
        middle = (at + end) // 2
        swapped = content[:at] + content[middle:end] + content[at:middle] + content[end:]
        yield f"swapped {at}, {middle}, {end}, {number}: {name}", swapped


def chunk(kind: bytes, body: bytes = b"", length: int | None = None, crc: int | None = None) -> bytes:
    """A PNG chunk, or one that lies about its length or its checksum."""
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">L", len(body) if length is None else length) + kind + body + struct.pack(">L", crc)


def png(
    width: int,
    height: int,
    *extra: bytes,
    idat: bytes | None = None,
    bits: int = 8,
    colour: int = 2,
    interlace: int = 0,
) -> bytes:
    """A PNG file of these chunks; a black 2 × 2 picture's pixels where none are given."""
    head = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, bits, colour, 0, 0, interlace))
    pixels = chunk(b"IDAT", zlib.compress(bytes(14)) if idat is None else idat)
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + pixels + chunk(b"IEND")


def _bomb(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def _pngs(clean: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for width, height in product(HUGE, HUGE):
        yield f"claims {width} × {height} .png", png(width, height)
    for bits, colour in product((0, 1, 3, 8, 16, 255), range(8)):
        yield f"{bits} bits, colour type {colour} .png", png(2, 2, bits=bits, colour=colour)
    yield "bomb behind 2 × 2 pixels .png", png(2, 2, idat=_bomb(10**8))
    yield "bomb of 13,000² pixels .png", png(13_000, 13_000, idat=_bomb(13_000 * 13_001), colour=0)
    yield "bomb in iCCP .png", png(2, 2, chunk(b"iCCP", b"a\0\0" + _bomb(10**8)))
    yield "bomb in zTXt .png", png(2, 2, chunk(b"zTXt", b"a\0\0" + _bomb(10**8)))
    yield "60 MB in zTXt .png", png(2, 2, *[chunk(b"zTXt", b"%d\0\0" % k + _bomb(10**6)) for k in range(60)])
    wide = zlib.compress("𝛼".encode() + b"a" * (10**6 - 9))
    yield "60 MB in iTXt .png", png(2, 2, *[chunk(b"iTXt", b"%d\0\1\0\0\0" % k + wide) for k in range(60)])
    for kind, length in product(
        (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"PLTE", b"tRNS", b"abcd"), (5 * 10**8, 2**32 - 1)
    ):
        yield f"{kind.decode()} of {length} bytes .png", png(2, 2, chunk(kind, b"a\0b", length))
    for kind, body in product((b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"iCCP", b"gAMA"), (b"", b"\xff" * 9)):
        yield f"{kind.decode()} of {len(body)} bytes .png", png(2, 2, chunk(kind, body), colour=3)
    yield "no pixels .png", png(2, 2, idat=b"")
    yield "two headers .png", png(2, 2, chunk(b"IHDR", struct.pack(">LLBBBBB", 9**5, 9**5, 8, 2, 0, 0, 0)))
    yield "wrong checksum .png", png(2, 2, chunk(b"gAMA", b"\0\0\0\1", crc=5))
    yield "20,000 empty IDAT .png", png(2, 2, *[chunk(b"IDAT")] * 20_000)
    yield "acTL of 2³¹ frames .png", png(2, 2, chunk(b"acTL", struct.pack(">LL", 2**31 - 1, 0)))
    for key in (b"exif", b"transparency", b"dpi", b"gamma", b"Raw profile type exif", b"XML:com.adobe.xmp"):
        yield f"text under {key.decode()} .png", png(2, 2, chunk(b"tEXt", key + b"\0tiff:Orientation>9\nzz\n\n\nzz"))


def _segment(marker: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBH", 255, marker, (len(body) + 2 if length is None else length) & 0xFFFF) + body


def _jpegs(clean: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    plain, progressive = clean["RGB .jpg"], clean["progressive .jpg"]
    for (name, content), height, width in product(
        (("baseline", plain), ("progressive", progressive)), (0, 1, 13_000, 65_535), (0, 1, 13_000, 65_535)
    ):
        at = content.index(b"\xff\xc0" if name == "baseline" else b"\xff\xc2") + 5
        yield (
            f"{name} claims {width} × {height} .jpg",
            content[:at] + struct.pack(">HH", height, width) + content[at + 4 :],
        )
    Image.new("L", (1000, 1000)).save(file := io.BytesIO(), "JPEG", progressive=True)
    refine = _segment(0xDA, b"\x01\x01\x00\x01\x3f\x10") + bytes(4)
    for scans in (50, 5_000, 100_000):
        yield f"{scans} scans .jpg", file.getvalue()[:-2] + refine * scans + file.getvalue()[-2:]
    for what, segments in {
        "200,000 EXIF segments": _segment(0xE1, b"Exif\0\0abcd") * 200_000,
        "50,000 comments": _segment(0xFE, b"a") * 50_000,
        "EXIF that loops": _segment(0xE1, b"Exif\0\0" + tiff({34665: (4, [8]), 274: (3, [6])}, loop=True)),
        "EXIF of one place read 5,000 times": _segment(0xE1, b"Exif\0\0" + _overlapping(5_000, 5_000)),
        "EXIF with orientation 99": _segment(0xE1, b"Exif\0\0" + tiff({274: (3, [99])})),
        "EXIF with words for orientation": _segment(0xE1, b"Exif\0\0" + tiff({274: (2, b"upside down\0")})),
        "EXIF of nothing": _segment(0xE1, b"Exif\0\0"),
        "EXIF of noise": _segment(0xE1, b"Exif\0\0" + b"\xa5" * 999),
        "ICC part 9 of 2": _segment(0xE2, b"ICC_PROFILE\0\x09\x02" + bytes(99)),
        "MPF of noise": _segment(0xE2, b"MPF\0" + b"II*\0\x08\0\0\0" + b"\xff" * 99),
        "Photoshop of noise": _segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff"),
        "a segment of length 0": _segment(0xE1, b"", 0),
        "a segment of length 65,535": _segment(0xE1, b"", 65_535),
        "two frames": _segment(0xC0, struct.pack(">BHHB", 8, 9, 9, 3) + b"\1\x11\0\2\x11\1\3\x11\1"),
        "12 bits": _segment(0xC1, struct.pack(">BHHB", 12, 9, 9, 1) + b"\1\x11\0"),
        "200 components": _segment(0xC0, struct.pack(">BHHB", 8, 9, 9, 200) + b"\1\x11\0" * 200),
        "a broken table": _segment(0xC4, b"\x00" + b"\xff" * 16) + _segment(0xDB, b"\xff"),
    }.items():
        yield f"{what} .jpg", plain[:2] + segments + plain[2:]


def _webps(clean: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    def riff(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
        body = b"".join(kind + struct.pack("<L", len(body)) + body + bytes(len(body) % 2) for kind, body in chunks)
        return b"RIFF" + struct.pack("<L", len(body) + 4 if size is None else size) + b"WEBP" + body

    frame, size_of_frame = clean["lossless .webp"][12:], struct.pack("<L", 39)[:3] + struct.pack("<L", 23)[:3]
    place, canvas = bytes(6) + size_of_frame + bytes(4), b"\2\0\0\0" + size_of_frame
    for side, flags in product((1, 13_000, 2**14, 2**16 - 1, 2**24), (0, 2, 0xFF)):
        large = bytes([flags, 0, 0, 0]) + struct.pack("<L", side - 1)[:3] * 2
        yield f"canvas of {side}², flags {flags} .webp", riff((b"VP8X", large), (b"ANMF", place + frame)) + frame
    yield "5,000 frames .webp", riff((b"VP8X", canvas), (b"ANIM", bytes(6)), *[(b"ANMF", place + frame)] * 5_000)
    yield "5,000 chunks .webp", riff((b"VP8X", canvas), *[(b"abcd", b"")] * 5_000)
    for side in (13_000, 2**14):
        yield (
            f"lossless of {side}² .webp",
            riff((b"VP8L", b"\x2f" + struct.pack("<L", (side - 1) * (2**14 + 1)) + bytes(9))),
        )
    for size in (0, 4, 2**31, 2**32 - 1):
        yield f"size {size} .webp", riff((b"VP8X", canvas), size=size) + frame


def tiff(tags: dict[int, tuple], data: bytes = b"", *, big: bool = False, loop: bool = False) -> bytes:
    """A TIFF file: {tag: (type, values, claimed count)}; the data follow the header, then the values, then the tags."""
    offset, count, start = ("<Q", "<Q", 16) if big else ("<L", "<H", 8)
    codes, room = {1: "B", 3: "H", 4: "L", 5: "LL", 11: "f", 16: "Q"}, struct.calcsize(offset)
    body, entries = data, b""
    for tag, (kind, values, *claimed) in sorted(tags.items()):
        packed = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{codes[kind][0]}", *values)
        number = claimed[0] if claimed else len(values) // len(codes.get(kind, "B"))
        if len(packed) > room:
            body, packed = body + packed, struct.pack(offset, start + len(body))
        entries += struct.pack("<HH", tag, kind) + struct.pack(offset, number) + packed.ljust(room, b"\0")
    here = start + len(body)
    head = b"II+\0\x08\0\0\0" if big else b"II*\0"
    end = struct.pack(offset, here if loop else 0)
    return head + struct.pack(offset, here) + body + struct.pack(count, len(tags)) + entries + end


def _overlapping(number: int, size: int) -> bytes:
    """A TIFF file with many tags whose values are the same bytes."""
    entries = b"".join(struct.pack("<HHLL", 40_000 + k % 25_000, 7, size, 8) for k in range(number))
    return b"II*\0" + struct.pack("<L", 8 + size) + bytes(size) + struct.pack("<H", number) + entries + bytes(4)


def _tiffs(clean: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    grey = {256: (4, [4]), 257: (4, [4]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1]), 277: (3, [1]), 278: (4, [4])}
    grey |= {273: (4, [8]), 279: (4, [16])}
    data = bytes(16)
    for tag, value in product((256, 257, 278, 279, 273), (0, 1, 10_000, 2**28, 2**31, 2**32 - 1)):
        for packing, pixels in ((1, data), (8, zlib.compress(data)), (5, data)):
            changed = grey | {259: (3, [packing]), tag: (4, [value])}
            yield f"tag {tag} is {value}, packing {packing} .tif", tiff(changed, pixels)
    for tag, values in product(
        (258, 259, 262, 266, 274, 277, 284, 317, 338, 339), (0, 2, 3, 4, 5, 6, 7, 8, 32, 64, 65_535)
    ):
        yield f"tag {tag} is {values} .tif", tiff(grey | {tag: (3, [values])}, data)
    for packing in (2, 3, 4, 6, 7, 8, 32_773, 32_946, 34_712, 34_887, 34_925, 50_000, 50_001):
        yield f"packing {packing} of 1 bit .tif", tiff(grey | {258: (3, [1]), 259: (3, [packing])}, data)
        three = {258: (3, [8, 8, 8]), 277: (3, [3]), 259: (3, [packing])}
        yield f"packing {packing} of RGB .tif", tiff(grey | three | {262: (3, [6 if packing == 7 else 2])}, data)
    for width, height, packing in product((0, 16, 30_000, 2**30, 2**32 - 1), (0, 16, 30_000, 2**30), (1, 8)):
        tiles = {322: (4, [width]), 323: (4, [height]), 324: (4, [8]), 325: (4, [16]), 259: (3, [packing])}
        both = {tag: value for tag, value in (grey | tiles).items() if tag not in (273, 278, 279)}
        yield f"tiles of {width} × {height}, packing {packing} .tif", tiff(both, zlib.compress(data))
    bomb = _bomb(10**8)
    yield "bomb behind 4 × 4 pixels .tif", tiff(grey | {259: (3, [8]), 279: (4, [len(bomb)])}, bomb)
    large = {256: (4, [10_000]), 257: (4, [10_000]), 278: (4, [10_000]), 259: (3, [8]), 279: (4, [len(bomb)])}
    yield "bomb of 10,000² pixels .tif", tiff(grey | large, bomb)
    tall = {256: (4, [2]), 257: (4, [400_000]), 278: (4, [1])}
    for kind, many in ((3, [8] * 400_000), (4, [8] * 400_000), (1, b"\x08" * 400_000), (7, b"\x08" * 400_000)):
        yield f"400,000 strips, type {kind} .tif", tiff(grey | tall | {273: (kind, many)}, data)
    yield "one place read 20,000 times .tif", _overlapping(20_000, 10**6)
    yield "directory that loops .tif", tiff(grey, data, loop=True)
    yield "directory beyond the end .tif", b"II*\0\xf0\xff\xff\xff"
    yield "BigTIFF directory beyond the end .tif", b"II+\0\x08\0\0\0" + b"\xff" * 8
    yield "BigTIFF of 2⁶⁴ tags .tif", b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**64 - 1) + bytes(4_000)
    yield "BigTIFF of 2⁶³ values .tif", tiff(grey | {273: (16, [16], 2**63)}, data, big=True)
    yield "5,000 pages .tif", b"".join(_pages(5_000))
    yield "EXIF of 100,000 fractions .tif", _with_exif(grey, data, 100_000)
    for kind, values in ((2, b"upside down\0"), (3, [6, 6]), (5, [6, 0]), (5, [6, 1]), (7, b"\6\0"), (11, [6.5])):
        yield f"orientation {values}, type {kind} .tif", tiff(grey | {274: (kind, values)}, data)


def _pages(number: int) -> Iterator[bytes]:
    page = tiff({256: (4, [4]), 257: (4, [4]), 258: (3, [8]), 262: (3, [1]), 273: (4, [8]), 279: (4, [16])}, bytes(16))
    directory = page[24:-4]
    yield page[:-4]
    for k in range(1, number):
        here = 24 + (len(directory) + 4) * k
        yield struct.pack("<L", here) + directory
    yield bytes(4)


def _with_exif(grey: dict[int, tuple], data: bytes, number: int) -> bytes:
    """A TIFF file whose EXIF directory holds one tag of many fractions."""
    at = 8 + len(data)
    fractions = struct.pack("<HHHLL", 1, 37_000, 5, number, at + 18) + bytes(4) + struct.pack("<LL", 1, 3) * number
    return tiff(grey | {34665: (4, [at])}, data + fractions)


def bmp(
    width: int, height: int, *, bits: int, compression: int = 0, colours: int = 0, body: bytes, size: int = 40
) -> bytes:
    """A BMP file with a palette of 256 colours."""
    palette = bytes(range(256)) * 4
    head = struct.pack("<LLLHHLLLLLL", size, width, height, 1, bits, compression, len(body), 0, 0, colours, 0)
    return b"BM" + struct.pack("<LLL", 0, 0, 54 + len(palette)) + head + palette + body


def _bmps(clean: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for width, height in product(HUGE, (0, 1, 2, 2**31, 2**32 - 2)):
        for bits, compression in ((24, 0), (8, 1), (8, 0)):
            what = f"claims {width} × {height}, {bits} bits, compression {compression} .bmp"
            yield what, bmp(width, height, bits=bits, compression=compression, body=b"\0\2\xff\xff" * 20 + b"\0\0" * 9)
    for bits, compression in product((0, 1, 2, 4, 8, 16, 24, 32, 64), range(7)):
        what = f"{bits} bits, compression {compression} .bmp"
        yield what, bmp(4, 4, bits=bits, compression=compression, body=bytes(64))
    for colours in (1, 300, 65_536, 2**31, 2**32 - 1):
        yield f"{colours} colours .bmp", bmp(4, 4, bits=8, colours=colours, body=bytes(16))
    for size in (0, 12, 39, 52, 64, 108, 124, 2**31, 2**32 - 1):
        yield f"header of {size} bytes .bmp", bmp(4, 4, bits=24, body=bytes(99), size=size)
    yield "RLE that goes nowhere .bmp", bmp(4, 4, bits=8, compression=1, body=b"\0\2\0\0" * 100_000)


def _gifs(clean: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    head, rest = clean["still .gif"][:6], clean["still .gif"][10:]
    frame = b"," + struct.pack("<HHHHB", 0, 0, 4, 4, 0) + b"\2\3\x84\x8f\x01\0"
    for side in (0, 1, 13_000, 65_535):
        yield f"screen of {side}² .gif", head + struct.pack("<HH", side, side) + rest
        far = b"," + struct.pack("<HHHHB", side, side, side, side, 0) + b"\2\3\x84\x8f\x01\0;"
        yield f"frame of {side}² at {side} .gif", head + struct.pack("<HH", 4, 4) + b"\0\0\0" + far
    screen = head + struct.pack("<HH", 4, 4) + b"\0\0\0"
    for size in range(16):
        yield f"codes of {size} bits .gif", screen + frame[:10] + bytes([size]) + frame[11:] + b";"
    yield "20,000 frames .gif", screen + frame * 20_000 + b";"
    yield "20,000 comments .gif", screen + b"!\xfe\1a\0" * 20_000 + frame + b";"
    yield "a comment of 100,000 blocks .gif", screen + b"!\xfe" + b"\1a" * 100_000 + b"\0" + frame + b";"
    yield "no frame .gif", screen + b";"
    yield "transparency beyond the palette .gif", screen + b"!\xf9\4\1\0\0\xff\0" + frame + b";"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.gif", screen + frame)
    yield "a zip .gif", zipped.getvalue()
