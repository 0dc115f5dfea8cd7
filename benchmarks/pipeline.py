"""Measure the speed from picture files to a store of features against the backbone's alone, and the memory it takes.

`speed`: pictures/s of four methods on the same JPEGs, in turns, and the ratio to the backbone alone in the same round:

- alone: the backbone on tiles that are ready in memory, in the batches that s2wrap makes: no reading, no resizing.
- s2wrap: `extract_features`, from files to a committed store.
- loop: load, model(picture), keep the result; one picture after the other, and one file at the end.
- DataLoader: workers (one by default) resize to the largest scale's size, batches of 8, model(batch), one file at the
  end. Its features are those of pictures that were resized twice.

All run in a process that keeps its freed memory, as the command `s2wrap features` does (see `s2wrap.allocator`).

`memory`: peak memory of a run and its workers, for growing numbers of tiny pictures. Shared memory counts once; memory
that the system can read again from disk, such as libraries, does not count.

    python benchmarks/pipeline.py speed [--model sample:dinov2_s14@1,2] [--pictures 48] [--rounds 5] [--ending .parquet]
    python benchmarks/pipeline.py memory
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from s2wrap import MultiScale, load
from s2wrap.allocator import keep_freed_memory
from s2wrap.extraction.run import State, extract_features
from s2wrap.files import whole_file
from s2wrap.images import load_image

app = typer.Typer(add_completion=False)
CONSOLE = Console(width=120)
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
COUNT = 2000
BATCH = 8


@app.command()
def speed(
    spec: Annotated[str, typer.Option("--model", help="What to extract.")] = "sample:dinov2_s14@1,2",
    device: Annotated[str, typer.Option(help="Where the backbone runs.")] = "cpu",
    pictures: Annotated[int, typer.Option(help="JPEGs a turn, of 2,000.")] = 48,
    rounds: Annotated[int, typer.Option(help="Turns of each way; the first is not counted.")] = 5,
    workers: Annotated[int | None, typer.Option(help="Processes (default: s2wrap's choice; DataLoader: 1).")] = None,
    ending: Annotated[str, typer.Option(help="Of the store: .parquet, .zarr or .safetensors.")] = ".parquet",
    photos: Annotated[Path | None, typer.Option(help="A folder of JPEGs, instead of those made here.")] = None,
) -> None:
    """Print pictures/s of each method, and the ratio to the backbone's speed."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        folder = photos or make_jpegs(Path(scratch) / "photos")
        files = [str(path) for path in sorted(folder.iterdir())]
        # weights do not change the time, and timm has none in packages
        model = load(spec, pretrained=not spec.startswith("timm:")).to(device)
        methods = make_methods(model, spec, Path(scratch), workers, ending)
        rates: dict[str, list[float]] = {name: [] for name in methods}
        for turn in track(range(rounds + 1), description="timing", console=Console(stderr=True)):
            paths = [files[(turn * pictures + number) % len(files)] for number in range(pictures)]
            for name, run in methods.items():
                start = time.perf_counter()
                run(paths)
                _wait(device)
                if turn:  # the first is a warm-up
                    rates[name].append(pictures / (time.perf_counter() - start))
    cuda = device.startswith("cuda")
    hardware = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    processes = "default workers" if workers is None else f"{workers} workers"
    title = f"{spec}, {hardware}, float32, {pictures} JPEGs a turn, {rounds} rounds, {processes}, store {ending}"
    table = Table("way", "pictures/s (median)", "÷ backbone alone (median of rounds)", title=title)
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["alone"], strict=True))
        table.add_row(name, f"{statistics.median(values):.2f}", f"{ratio:.3f}")
    CONSOLE.print(table)


def make_methods(
    model: MultiScale, spec: str, scratch: Path, workers: int | None, ending: str
) -> dict[str, Callable[[list[str]], object]]:
    """Return the timed functions by name; each takes paths of pictures."""
    device, side_hw = model.backbone.device, model.scales[-1].box_hw
    batch, tiles = model.tile_batch_for(1, device), model.plan(model.backbone.image_hw).num_tiles
    ready = torch.rand(batch, 3, *model.backbone.image_hw, device=device)

    @torch.inference_mode()
    def alone(paths: list[str]) -> None:
        for first in range(0, tiles * len(paths), batch):
            model.backbone(ready[: tiles * len(paths) - first])

    def extract(paths: list[str]) -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            output, shard = Path(folder) / f"out{ending}", 1000 if ending == ".safetensors" else None
            extract_features(paths, output, load=lambda: model, spec=spec, options={}, shard=shard, workers=workers)

    @torch.inference_mode()
    def loop(paths: list[str]) -> None:
        maps = [model(load_image(path)[None].to(device)).spatial.cpu() for path in paths]
        _save(torch.cat(maps), scratch, ending)

    @torch.inference_mode()
    def loader(paths: list[str]) -> None:
        batches = DataLoader(_Resized(paths, side_hw), batch_size=BATCH, num_workers=1 if workers is None else workers)
        maps = [model(images.to(device)).spatial.cpu() for images in batches]
        _save(torch.cat(maps), scratch, ending)

    return {"alone": alone, "s2wrap": extract, "loop": loop, "DataLoader": loader}


class _Resized(Dataset):
    """A usual dataset: pictures resized to one size."""

    def __init__(self, paths: list[str], side_hw: tuple[int, int]):
        self.paths, self.side_hw = paths, side_hw

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        height, width = self.side_hw
        with Image.open(self.paths[index]) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _save(maps: Tensor, scratch: Path, ending: str) -> None:
    """Write the same data as s2wrap: vectors for Parquet, otherwise maps."""
    values = maps.mean((2, 3)) if ending == ".parquet" else maps
    with whole_file(scratch / "out.npy") as draft:
        np.save(draft, values.numpy())


def make_jpegs(folder: Path) -> Path:
    """Write 2,000 JPEGs of 300 to 500 pixels, crops of photographs and textiles, and return their folder."""
    from skimage import data

    package = find_spec("conformal_clip_data")
    if package is None or package.origin is None:
        raise SystemExit('the textiles are missing: pip install "s2wrap[demo]"')
    paths = sorted(path for path in Path(package.origin).parent.rglob("*") if path.suffix in (".jpg", ".png"))
    textiles = paths[:: max(1, len(paths) // 12)]
    pictures = [Image.fromarray(getattr(data, name)()) for name in PHOTOS]
    pictures += [Image.open(path).convert("RGB").resize((512, 512)) for path in textiles]
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(COUNT):
        picture = pictures[number % len(pictures)]
        width, height = (int(random.integers(290, min(500, side))) for side in picture.size)
        left, top = int(random.integers(0, picture.width - width)), int(random.integers(0, picture.height - height))
        picture.crop((left, top, left + width, top + height)).save(folder / f"{number:05d}.jpg", quality=90)
    return folder


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@app.command()
def memory(
    counts: Annotated[str, typer.Option(help="Numbers of pictures.")] = "200,2000,20000",
    workers: Annotated[int, typer.Option(help="Processes that decode and encode.")] = 2,
) -> None:
    """Print the peak memory of runs on growing numbers of tiny pictures."""
    title = f"timm:test_vit@1, CPU, 32×32 pixels, .safetensors in shards of 100, {workers} workers"
    table = Table("pictures", "MB at most", "seconds", title=title)
    for count in map(int, counts.split(",")):
        with tempfile.TemporaryDirectory() as scratch:
            for number in range(count):
                Image.new("RGB", (32, 32), (number % 256, 0, 0)).save(Path(scratch) / f"{number:06d}.png")
            start = time.perf_counter()
            program = [sys.executable, __file__, "hold", scratch, str(workers)]
            result = subprocess.run(program, check=True, capture_output=True, text=True)
            table.add_row(str(count), result.stdout.strip(), f"{time.perf_counter() - start:.0f}")
    CONSOLE.print(table)


@app.command(hidden=True)
def hold(folder: str, workers: int) -> None:
    """Print the peak memory of one run in MB."""
    torch.set_num_threads(1)
    model, peak = load("timm:test_vit@1", pretrained=False), 0

    def measure(state: State) -> None:
        nonlocal peak
        if state.done % 20 == 0:  # a measurement takes 10 ms
            peak = max(peak, sum(map(_pss, [os.getpid(), *(child.pid for child in active_children())])))

    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "out.safetensors"
        extract_features(
            [folder], output, load=lambda: model, spec="", options={}, shard=100, workers=workers, tell=measure
        )
    print(f"{peak / 2**20:.0f}")


def _pss(process: int | None) -> int:
    """Return the anonymous memory of a process in bytes, with its proportional share of shared pages."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("needs /proc/PID/smaps_rollup of Linux 5.3 or later, with Pss_Anon")


if __name__ == "__main__":
    app()
