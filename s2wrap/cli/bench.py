"""`s2wrap bench`: how fast models and exported files are, by one rule for all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import s2wrap
from s2wrap.cli import model as flags
from s2wrap.cli import output
from s2wrap.errors import S2WrapError

if TYPE_CHECKING:
    import torch

    from s2wrap.wrapper import MultiScale

Pair = tuple[int, int]

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
RUNTIMES = {
    "onnx": "ONNX Runtime",
    "tensorrt": "TensorRT",
    "tensorrt_rtx": "TensorRT-RTX",
    "aotinductor": "AOTInductor",
}
FIGURES = {
    "images/s": "images_per_second",
    "median": "median_ms",
    "÷ first": "ratio",
    "p90": "p90_ms",
    "p99": "p99_ms",
    "min": "min_ms",
    "mean": "mean_ms",
    "p95": "p95_ms",
    "max": "max_ms",
}
"""What is shown of a row, the most important first, and its key in JSON."""


@dataclass(frozen=True)
class Way:
    """One row: a model, how it runs, the images on their device, and what makes the call to time."""

    model: str
    way: str
    precision: str
    images: "torch.Tensor"
    make: Callable[[], Callable[[], object]]


@flags.model_options(pretrained=False)
def bench(
    what: Annotated[list[str], typer.Argument(help=f"Models and exported files. {flags.SPEC_HELP}")],
    *,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 1,
    image: Annotated[
        str | None,
        typer.Option(help="Height and width of all images, as 480x640 (default: a file's, or of the largest scale)."),
    ] = None,
    precision: Annotated[str, typer.Option(help="Of models: fp32, fp16 or bf16; a file has its own.")] = "fp32",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps (default: cuda if there is one).")] = None,
    backend: Annotated[
        str, typer.Option(help="How models run: some of eager, compile, max-autotune (both take minutes), cuda-graph.")
    ] = "eager",
    seconds: Annotated[float, typer.Option(help="Time each for so long, and ten runs at least.")] = 3.0,
    as_json: output.Json = False,
    options: dict[str, Any],
) -> None:
    """Time models in PyTorch and exported files, one beside the other.

    All look at images of one size. Each warms up for 200 ms, then runs for --seconds and ten times at least, in ten
    rounds by turns. Milliseconds a batch: on a GPU its own time, else the clock's; images a second by the clock,
    counting pictures, not tiles. ÷ first: the median over the rounds of its time over the first row's. The images are
    random and on the device already. Weights are random unless a checkpoint is given. Options of a model do not count
    for exported files.
    """
    import torch

    from s2wrap.timing import describe_device, time_calls, when_first_called

    place = flags.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backends = _backends(backend)
    found = {each: _manifest(each) or _model(each, options, place, precision) for each in what}
    image_hw = _one_size(found, flags.image_hw(image) if image else None)
    ways: list[Way] = []
    for each, one in ((each, found[each]) for each in what):  # one may be named twice
        if isinstance(one, dict):
            ways += _file_ways(Path(each), one, place, batch, image_hw, backends)
        else:
            ways += _model_ways(each, one, place, batch, image_hw, precision, backends)
    calls = {str(number): when_first_called(way.make) for number, way in enumerate(ways)}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = output.notes()
    if {"compile", "max-autotune"} & set(backends):
        console.print("Compiling first, which may take minutes a model", highlight=False)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
    with torch.inference_mode(), bar as progress:
        task = progress.add_task("timing", total=1)
        timings = time_calls(
            calls, seconds=seconds, device=place, progress=lambda done: progress.update(task, completed=done)
        )
        rows = [_row(way, timing, timings[0]) for way, timing in zip(ways, timings, strict=True)]
        if place.type == "cuda":
            for row, way, timing in zip(rows, ways, timings, strict=True):
                row["warnings"] += _copying(way, calls[timing.name], timing)
    facts = {**describe_device(place), "batch": str(batch), "seconds": f"{seconds:g}"}
    if as_json:
        output.print_json({**facts, "rows": rows})
    else:
        _print(facts, rows)


def _backends(text: str) -> list[str]:
    """PyTorch's ways that were asked for."""
    from s2wrap.timing import BACKENDS

    backends = text.split(",")
    for backend in backends:
        if backend not in BACKENDS:
            raise S2WrapError(f"--backend {backend!r} is unknown; use some of {', '.join(BACKENDS)}")
    return backends


def _manifest(what: str) -> dict[str, Any] | None:
    """The manifest of an exported file; None for a model."""
    if not what.endswith(flags.FILE_ENDINGS):
        return None
    from s2wrap.export.manifest import read_manifest

    return read_manifest(Path(what))


def _model(spec: str, options: dict[str, Any], device: "torch.device", precision: str) -> "MultiScale":
    """A model on the device, in the precision."""
    import torch

    if precision not in DTYPES:
        raise S2WrapError(f"--precision {precision!r} is unknown; use {', '.join(DTYPES)}")
    return s2wrap.load(spec, **options).to(device, getattr(torch, DTYPES[precision]))


def _one_size(found: Mapping[str, "dict[str, Any] | MultiScale"], asked_hw: Pair | None) -> Pair:
    """The image size of all rows: what was asked for, or what the files take, or of the largest scale of all models.

    Raises:
        S2WrapError: files that take images of other sizes.
    """
    from s2wrap.export.manifest import images_hw

    files = {each: one for each, one in found.items() if isinstance(one, dict)}
    fixed = {each: tuple(one["image_hw"]) for each, one in files.items() if one["part"] == "model"}
    if len({*fixed.values(), *([asked_hw] if asked_hw else [])}) > 1:
        sizes = [*fixed.items(), *([("--image", asked_hw)] if asked_hw else [])]
        told = ", ".join(f"{each} {height}×{width}" for each, (height, width) in sizes)
        raise S2WrapError(
            f"the rows would look at images of different sizes ({told}), and be no comparison; export the files for "
            f"one size (s2wrap export --image), or time them apart"
        )
    if asked_hw or fixed:
        return asked_hw or next(iter(fixed.values()))
    sizes = [images_hw(one) if isinstance(one, dict) else one.image_hw for one in found.values()]
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def _model_ways(
    spec: str,
    model: "MultiScale",
    device: "torch.device",
    batch: int,
    image_hw: Pair,
    precision: str,
    backends: list[str],
) -> list[Way]:
    """A wrapped model in PyTorch, in each of the ways asked for."""
    import torch

    from s2wrap.timing import torch_call

    images = torch.randn(batch, model.input.channels, *image_hw, device=device)
    if device.type == "cuda":
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    return [Way(spec, each, precision, images, partial(torch_call, each, model, images)) for each in backends]


def _file_ways(
    file: Path, manifest: dict[str, Any], device: "torch.device", batch: int, image_hw: Pair, backends: list[str]
) -> list[Way]:
    """An exported file in its runtime; on a GPU, an engine also as a CUDA graph where that was asked for."""
    from s2wrap.export import load as load_file
    from s2wrap.export.manifest import ENGINES

    images = _images_for(manifest, batch, image_hw, device)

    def make(cuda_graph: bool) -> Callable[[], object]:
        smallest, _, largest = manifest["batch"]
        if manifest["part"] == "model" and not smallest <= batch <= largest:
            raise S2WrapError(f"it takes batches of {smallest} to {largest}, not of {batch}")
        engine = load_file(file, device=device, cuda_graph=cuda_graph, eager=True)
        return lambda: engine(images)

    graphs = device.type == "cuda" and manifest["kind"] in ENGINES and "cuda-graph" in backends
    runtime = RUNTIMES[manifest["kind"]]
    names = {runtime: False} | ({f"{runtime}, cuda-graph": True} if graphs else {})
    return [Way(str(file), name, manifest["precision"], images, partial(make, graph)) for name, graph in names.items()]


def _images_for(manifest: dict[str, Any], batch: int, image_hw: Pair, device: "torch.device") -> "torch.Tensor":
    """Random images as the file takes them."""
    import torch

    channels, value_range = manifest["input"]["channels"], manifest["input"]["value_range"]
    if manifest["pixels"] != "float32":
        pixels = torch.randint(256, (batch, *image_hw, channels), dtype=torch.uint8, device=device)
        return pixels.to(getattr(torch, manifest["pixels"]))
    images = torch.randn(batch, channels, *image_hw, device=device)
    if value_range is None:
        return images
    low, high = value_range
    return images.sigmoid() * (high - low) + low


def _copying(way: Way, call: Callable[[], object], timing: Any) -> list[str]:
    """What to say where copying the images to the GPU and the features back takes longer than computing them."""
    from s2wrap.timing import time_calls

    if timing.reason is not None:
        return []
    host, device, maps = way.images.cpu().pin_memory(), way.images.device, getattr(call(), "maps", ())
    calls = {"copy": lambda: (host.to(device, non_blocking=True), [each.cpu() for each in maps])}
    (copy,) = time_calls(calls, seconds=0.1, device=device)
    took, computed = copy.figures(1)["median_ms"], timing.figures(1)["median_ms"]
    return [f"copying images and features takes {took:.3g} ms, longer than computing"] * (took >= computed)


def _row(way: Way, timing: Any, first: Any) -> dict[str, Any]:
    """What is known of one way: the settings and the figures, or the reason why there are none."""
    image_hw = way.images.shape[2:] if way.images.is_floating_point() else way.images.shape[1:3]
    row: dict[str, Any] = {"model": way.model, "way": way.way, "precision": way.precision, "image_hw": list(image_hw)}
    if timing.reason is not None:
        return {**row, "reason": timing.reason, "warnings": []}
    ratio = timing.ratio(first) if first.reason is None else None
    return {**row, **timing.figures(len(way.images)), "ratio": ratio, "warnings": timing.warnings()}


def _print(facts: dict[str, str], rows: list[dict[str, Any]]) -> None:
    """A table, and below it why some did not run, and warnings."""
    output.print_line(", ".join(value if name == "device" else f"{name} {value}" for name, value in facts.items()))
    columns = {name: [row[name] for row in rows] for name in ("model", "way")}
    figures = {name: [_figure(row.get(key), key) for row in rows] for name, key in FIGURES.items()}
    sizes = {"image": ["×".join(map(str, row["image_hw"])) for row in rows]}
    output.print_table(columns | figures | {"precision": [row["precision"] for row in rows]} | sizes, kept=2)
    for row in rows:
        for text in (*([row["reason"]] if "reason" in row else ()), *row["warnings"]):
            output.print_line(f"{row['model']}, {row['way']}: {text}", style="yellow")


def _figure(value: float | None, key: str) -> str:
    return "–" if value is None else f"{value:.3f}" if key == "ratio" else f"{value:.4g}"
