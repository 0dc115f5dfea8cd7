"""Memory and time of large pictures: bytes a pixel, seconds a megapixel, and scenes that are read in windows.

    python benchmarks/large_pictures.py [--spec timm:test_vit@1,2] [--scenes]

Every row runs in a process of its own, twice: with a small picture and with a large one. Bytes are the difference of
their peaks, a pixel of the large picture; the decoded picture itself takes 3 of them. Seconds are of the processor.
Beside it stands the least that one can do: decode with Pillow, resize with Pillow, and the backbone.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tifffile
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage import data

import s2wrap
from s2wrap.extraction.run import extract_features
from s2wrap.extraction.scene import WindowOptions, extract_scene
from s2wrap.images import Reading, load_image

MEGAPIXELS = (4, 25, 100)
SMALL = 0.1
LIMITS = Reading(max_pixels=10**12, max_memory=10**12, max_seconds=10**6)


def load(spec: str) -> s2wrap.MultiScale:
    """The model; of timm with random weights."""
    return s2wrap.load(spec, **({} if spec.startswith("sample:") else {"pretrained": False}))


def by_hand(path: Path, model: s2wrap.MultiScale) -> None:
    """Decode and resize with Pillow, and the backbone on the tiles of every scale."""
    with Image.open(path) as picture:
        pixels = picture.convert("RGB")
    for scale in model.plan((pixels.height, pixels.width)).scales:
        height, width = scale.image_hw
        small = pixels.resize((width, height), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
        tile = model.input.normalise(image)[..., : scale.tile_hw[0], : scale.tile_hw[1]]
        with torch.inference_mode():
            for _ in scale.origins:
                model.backbone(tile)


def by_encode(path: Path, model: s2wrap.MultiScale) -> None:
    """`model.encode` of a path."""
    with torch.inference_mode():
        model.encode([load_image(path, LIMITS)])


def by_features(path: Path, model: s2wrap.MultiScale) -> None:
    """`s2wrap features` of one picture."""
    output = path.with_name("features.npz")
    extract_features([str(path)], output, load=lambda: model, spec="x", options={}, reading=LIMITS)


WAYS: dict[str, Callable[[Path, s2wrap.MultiScale], None]] = {
    "by hand": by_hand,
    "encode": by_encode,
    "features": by_features,
}


def child(way: str, path: str, spec: str) -> None:
    """Run one way in this process, and print its peak of memory and its seconds."""
    torch.set_num_threads(1)
    model = load(spec)
    if way.startswith("scene"):
        started, output = time.process_time(), Path(path).with_suffix(".zarr")
        windows = WindowOptions(window=int(way.partition(" ")[2]))
        extract_scene(path, output, load=lambda: model, spec="x", options={}, windows=windows, reading=LIMITS)
    else:
        WAYS[way](Path(path).with_name("small.jpg"), model)  # what is made once
        started = time.process_time()
        WAYS[way](Path(path), model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([peak, time.process_time() - started]))


def measure(way: str, path: Path, spec: str) -> tuple[float, float]:
    """The peak in bytes and the seconds of a way in a process of its own."""
    command = [sys.executable, __file__, "child", way, str(path), spec]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return peak, seconds


def photograph(path: Path, megapixels: float) -> float:
    """A JPEG of that size, of a photograph that is repeated; how many megapixels it has."""
    tile = data.astronaut()
    side = max(1, round((megapixels * 1e6) ** 0.5 / 512))
    Image.fromarray(np.tile(tile, (side, side, 1))).save(path, quality=90)
    return (side * 512) ** 2 / 1e6


def scenes(folder: Path, spec: str) -> list[tuple[str, ...]]:
    """Rows of a 30,000 × 20,000 tiled TIFF, and of one of 100,000 × 100,000 of which few tiles are written."""
    tile = data.astronaut()

    def tiles(rows: int, cols: int, every: int) -> Any:
        for number in range(rows * cols):
            yield tile if number % every == 0 else None

    rows = []
    for name, height, width, window, every in (
        ("20,000 × 30,000, tiles", 20_480, 30_208, 4096, 1),
        ("100,000 × 100,000, sparse", 100_352, 100_352, 4096, 50),
    ):
        path = folder / f"{height}.tif"
        tifffile.imwrite(
            path,
            tiles(height // 512, width // 512, every),
            shape=(height, width, 3),
            dtype="uint8",
            tile=(512, 512),
            photometric="rgb",
            compression="jpeg" if every == 1 else "zlib",
            bigtiff=True,
        )
        peak, seconds = measure(f"scene {window}", path, spec)
        megapixels = height * width / 1e6
        rows.append(
            (
                f"{name}, --window {window}",
                f"{megapixels:,.0f}",
                f"{peak / 1e9:.2f} GB in all",
                f"{seconds:.0f}",
                f"{seconds / megapixels:.4f}",
                "",
            )
        )
    return rows


def main(
    spec: Annotated[str, typer.Option(help="The model.")] = "timm:test_vit@1,2",
    scene: Annotated[bool, typer.Option("--scenes", help="Also the two scenes: ten minutes.")] = False,
) -> None:
    """Print the table."""
    table = Table(title=f"{spec}, CPU, one thread, float32, JPEG")
    for column in ("picture", "megapixels", "bytes a pixel", "seconds", "seconds a megapixel", "÷ by hand"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photograph(folder / "small.jpg", SMALL)
        base = {way: measure(way, folder / "small.jpg", spec)[0] for way in WAYS}
        for megapixels in track(MEGAPIXELS, description="measuring", console=Console(stderr=True)):
            exact, least = photograph(folder / "large.jpg", megapixels), 0.0
            for way in WAYS:
                peak, seconds = measure(way, folder / "large.jpg", spec)
                least = least or seconds
                table.add_row(
                    way,
                    f"{exact:.1f}",
                    f"{(peak - base[way]) / exact / 1e6:.1f}",
                    f"{seconds:.2f}",
                    f"{seconds / exact:.4f}",
                    f"{seconds / least:.2f}",
                )
        for row in scenes(folder, spec) if scene else []:
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        typer.run(main)
