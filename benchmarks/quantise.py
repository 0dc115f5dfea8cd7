"""Measure int8 and fp8: the layers that bear it, what it changes, and size and time of the file in ONNX Runtime.

    python benchmarks/quantise.py [SPEC ...] [--gates 0.98,0.93,0.2] [--kind int8] [--pictures DIR] [--json]

Calibrated on squares of scikit-image's photographs, or on the pictures of a folder. *layers* and *work* are the
quantised layers of all, and their share of the multiply-adds; the three figures are the worst of the file's outputs,
compared with PyTorch in float32, which the gate limits. The float32 and the quantised file take turns, so that a noisy
machine disturbs both alike; *ratio* is the quantised one's time to the other's, in the same rounds. Models that are not
`sample:` have random weights, whose rounding says little of trained ones (`--pretrained` asks their hub).
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import s2wrap
from s2wrap.errors import S2WrapError
from s2wrap.export import export, load
from s2wrap.export.quantise import Quantised
from s2wrap.timing import describe_device, time_calls

DEMOS = Path(__file__).parent.parent / "demos"
SPECS = ["sample:dinov2_s14@1,2", "sample:efficientnet_lite0@1,2", "timm:vit_tiny_patch16_224@1,2"]
GATES = ["0.98,0.93,0.2", "0.99,0.96,0.15"]


def main(
    specs: Annotated[list[str] | None, typer.Argument(help="FAMILY:NAME@SCALES.")] = None,
    gates: Annotated[list[str] | None, typer.Option(help="Cosine, 1st percentile, error; may be repeated.")] = None,
    kind: Annotated[Quantised, typer.Option(help="int8 or fp8.")] = "int8",
    pictures: Annotated[Path | None, typer.Option(help="A folder of pictures to calibrate on.")] = None,
    batch: Annotated[int, typer.Option(help="Images in a timed call.")] = 1,
    seconds: Annotated[float, typer.Option(help="How long each file is timed.")] = 20,
    threads: Annotated[int, typer.Option(help="Of ONNX Runtime and PyTorch.")] = 1,
    pretrained: Annotated[bool, typer.Option(help="Whether models of hubs get their weights.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    console, rows = Console(stderr=True), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = pictures or cut_squares(folder / "squares")
        for spec in specs or SPECS:
            torch.manual_seed(0)
            model = s2wrap.load(spec, pretrained=pretrained or spec.startswith("sample:"))
            plain = folder / "fp32.onnx"
            export(model, plain, batch=(1, batch, batch), verify=False, overwrite=True)
            for gate in gates or GATES:
                console.print(f"{spec}, gate {gate}", highlight=False)
                row = {"model": spec, "gate": gate}
                try:
                    row |= measure(model, plain, kind, gate, pictures, batch, seconds, threads, console)
                except S2WrapError as error:
                    console.print(f"{spec}: {error}", highlight=False)
                rows.append(row)
    facts = describe_device("cpu") | {"kind": kind, "batch": batch}
    if as_json:
        print(json.dumps(facts | {"rows": rows}, indent=2))
        return
    print_table(rows, f"{kind}, ONNX Runtime on {facts['device']}, {threads} threads, batches of {batch}")


def measure(
    model: s2wrap.MultiScale,
    plain: Path,
    kind: Quantised,
    gate: str,
    pictures: Path,
    batch: int,
    seconds: float,
    threads: int,
    console: Console,
) -> dict[str, Any]:
    """The figures of one model at one gate, whose file in float32 is `plain`."""
    path = plain.with_name(f"{kind}.onnx")
    limits = tuple(float(number) for number in gate.split(","))
    manifest = export(
        model,
        path,
        batch=(1, batch, batch),
        precision=kind,
        pictures=[pictures],
        gate=limits,
        overwrite=True,
        console=console,
    )
    quantised, outputs = manifest["quantised"], manifest["verification"]["outputs"]
    calls = {}
    for name, file in (("fp32", plain), (kind, path)):
        engine = load(file, threads=threads)
        images = torch.randn(batch, *manifest["inputs"][0]["shape"][1:])
        calls[name] = lambda engine=engine, images=images: engine(images)
    first, second = time_calls(calls, seconds=seconds)
    return {
        "layers": f"{len(quantised['layers'])} of {len(quantised['layers']) + len(quantised['kept'])}",
        "work": quantised["share_of_multiply_adds"],
        "cosine": min(output["cosine_mean"] for output in outputs),
        "1st percentile": min(output["cosine_p1"] for output in outputs),
        "error": max(output["relative_error"] for output in outputs),
        "fp32 MB": plain.stat().st_size / 1e6,
        f"{kind} MB": path.stat().st_size / 1e6,
        "fp32 ms": first.figures(batch)["median_ms"],
        f"{kind} ms": second.figures(batch)["median_ms"],
        "ratio": second.ratio(first),
    }


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    """Print the figures; a model that failed has none."""
    table = Table(title=title)
    columns = max(rows, key=len)
    for name in columns:
        table.add_column(name, justify="left" if name in ("model", "gate") else "right")
    for row in rows:
        table.add_row(*(as_text(name, row.get(name, "")) for name in columns))
    Console(width=180).print(table)


def as_text(name: str, value: Any) -> str:
    """A figure with as many digits as it is worth."""
    if not isinstance(value, float):
        return str(value)
    if name == "work":
        return f"{value:.0%}"
    return f"{value:.1f}" if name.endswith(("MB", "ms")) else f"{value:.3f}"


def cut_squares(folder: Path) -> Path:
    """Write squares of scikit-image's photographs, by demos/photos.py, and return the folder."""
    sys.path.insert(0, str(DEMOS))
    photos: Any = __import__("photos")
    return photos.cut_squares(folder)


if __name__ == "__main__":
    typer.run(main)
