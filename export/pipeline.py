"""`export`: a wrapped model becomes a file, which is proved before it gets its name."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from s2wrap.errors import S2WrapError
from s2wrap.export import trace
from s2wrap.export.build import build_engine, check_build
from s2wrap.export.graph import ModelGraph, TilesGraph
from s2wrap.export.library import load_library
from s2wrap.export.manifest import describe, file_sha256, kind_of, manifest_path, port_of, real_path, recipe_of
from s2wrap.export.parity import GATES, parse_gate, sample_images
from s2wrap.export.ports import check_batch
from s2wrap.export.proof import compare_file, judge
from s2wrap.export.ranges import check_float16
from s2wrap.files import disk_errors, umask
from s2wrap.policies import Pair
from s2wrap.wrapper import MultiScale

Graph = ModelGraph | TilesGraph


def export(
    model: MultiScale,
    path: str | Path,
    *,
    image_hw: Pair | None = None,
    batch: Any = (1, 8, 32),
    precision: str = "fp32",
    pixels: str = "float32",
    outputs: Sequence[str] | None = None,
    tiles: bool = False,
    fp32_layers: Sequence[str] = (),
    opset: int | None = None,
    onnx: str | Path | None = None,
    verify: bool = True,
    gate: Any = None,
    pictures: Sequence[str | Path] | None = None,
    console: Console | None = None,
    **build: Any,
) -> dict[str, Any]:
    """Write a wrapped model as a file that needs no PyTorch model, and its manifest beside it.

    The file is compared with the model in float32 first, on photographs and on noise, and gets its name only if it
    computes the same. File and manifest are written whole or not at all.

    Args:
        model: a wrapped model, on any device and in any precision; it is not changed.
        path: its ending says what: .onnx; .plan or .engine (TensorRT, built on the GPU that will run it); .rtx
            (TensorRT-RTX, built without a GPU).
        image_hw: height and width of the images in pixels; the backbone's own size by default. What `fit` makes of that
            shape is fixed in the file.
        batch: the smallest, most frequent and largest number of images (of tiles, with `tiles`) in a call.
        precision: "fp32", "fp16" or "bf16", of the backbone; resizing and merging stay float32 (fp16 and bf16 engines
            may round their factors to TF32).
        pixels: "float32": the file takes normalised images (b, 3, height, width); "uint8": RGB pixels (b, height,
            width, 3) in 0…255.
        outputs: some of spatial, tokens, prefix, pooled; by default spatial and, where there are any, prefix.
        tiles: the backbone alone, on a dynamic number of tiles: `load` puts the wrapper around it, for any image.
        fp32_layers: modules of the backbone that stay float32, by name, with * and ?.
        opset: of the ONNX operators, 20 to 23; by default 20 for .onnx (23 in bf16), for engines the newest that the
            library reads.
        onnx: a ready ONNX file of the same inputs and outputs to take instead, such as a quantised one with Q/DQ.
        verify: compare the file with PyTorch before it gets its name.
        gate: what it must reach in place of `parity.GATES`: least mean cosine of a token, least 1st percentile,
            largest relative error.
        pictures: what to compare on: files or folders; photographs of scikit-image by default.
        console: where progress and the comparison are shown; nowhere by default.
        **build: for engines, as for `build_engine`: workspace_mib, optimization_level, timing_cache,
            version_compatible, hardware_compatible, targets.

    Returns:
        The manifest.

    Raises:
        MissingExtraError: a library is not installed.
        VerificationError: the file computes something else; nothing was written.
        S2WrapError: an option that cannot be, a model that cannot be exported, values that float16 cannot hold, what
            the builder refused, a full disk.
    """
    path, console = real_path(path), console or Console(quiet=True)
    kind, batch = kind_of(path), check_batch(batch)
    limits = None if gate is None else parse_gate(gate)
    if kind != "onnx":
        check_build(kind, **build)
    elif build:
        raise S2WrapError(f"{', '.join(build)}: these are for engines, and {path.name} is ONNX")
    if tiles and (image_hw is not None or outputs is not None or pixels != "float32"):
        raise S2WrapError(
            "tiles (--tiles) exports the backbone alone, on its own tiles: image size, outputs and pixels are chosen "
            "when it is loaded; leave them out"
        )
    if onnx is not None and (opset is not None or fp32_layers):
        raise S2WrapError("opset and fp32_layers are for a graph that is traced; a ready ONNX file has its own")

    def make(precision: str, fp32_layers: Sequence[str] = ()) -> Graph:
        if tiles:
            return TilesGraph(model, precision=precision, fp32_layers=fp32_layers)
        size, options = image_hw or model.backbone.image_hw, {"pixels": pixels, "outputs": outputs}
        return ModelGraph(model, size, precision=precision, fp32_layers=fp32_layers, **options)

    graph = make(precision, fp32_layers)
    wide = graph if precision == "fp32" else make("fp32")
    samples = sample_images(wide, pictures) if verify or precision == "fp16" else []
    about: dict[str, Any] = {"kind": kind, "batch": batch, "fp32_layers": list(fp32_layers)}
    with _staged(path) as folder:
        if precision == "fp16" and onnx is None:
            with console.status("Looking for values that float16 cannot hold"):
                about["largest_value"] = check_float16(wide, torch.stack(samples[:2]), fp32_layers)
        with console.status(f"Tracing {graph.backbone.name}"):
            opset = opset or _newest_opset(kind, precision)
            proto = trace.trace(graph, opset=opset) if onnx is None else _ready(Path(onnx), graph)
            manifest = describe(graph, model, proto, precision=precision) | about
            source = folder / (path.name if kind == "onnx" else "graph.onnx")
            trace.save(proto, source, note=json.dumps(manifest, sort_keys=True))
        if kind != "onnx":
            name = f"{graph.backbone.name} {graph.image_hw[0]}x{graph.image_hw[1]}"
            options = {"kind": kind, "batch": batch, "name": name, "tf32": precision != "fp32", "shown": path.name}
            manifest["build"] = build_engine(source, folder / path.name, console=console, **options, **build)
        limits = limits or GATES["quantised" if trace.is_quantised(proto) else precision]
        manifest |= {"recipe": recipe_of(model), "gate": asdict(limits)}
        manifest |= {"file": path.name, "sha256": file_sha256(folder / path.name)}
        if verify:
            file = folder / path.name
            report = compare_file(
                file, source, manifest, None if onnx else graph, wide, samples, limits, folder, console
            )
            judge(report, path, console)
            manifest["verification"] = report.facts()
        _publish(folder, path, manifest)
    return manifest


def _newest_opset(kind: str, precision: str) -> int:
    """The newest operators that what reads the file knows: TensorRT has Attention since 10.14."""
    if kind == "onnx":
        return 23 if precision == "bf16" else 20
    if kind == "tensorrt_rtx":
        return 23
    major, minor = (int(part) for part in load_library(kind).__version__.split(".")[:2])
    return 23 if (major, minor) >= (10, 14) else 22 if precision == "bf16" else 20


def _ready(path: Path, graph: Graph) -> Any:
    """A ready ONNX file, once it takes and gives what the graph does."""
    import onnx

    if not path.is_file():
        raise S2WrapError(f"{path}: there is no such ONNX file")
    try:
        proto = onnx.load(path)
        found = [value.name for value in (*proto.graph.input, *proto.graph.output)]
        taken = port_of(proto.graph.input[0])
    except Exception as error:  # protobuf's errors have no common class
        raise S2WrapError(f"{path} is no ONNX file, or damaged") from error
    wanted, example = [graph.input, *graph.names], graph.example(1)
    if found != wanted:
        raise S2WrapError(f"{path} has inputs and outputs {', '.join(found)}; this export has {', '.join(wanted)}")
    shape, dtype = ["batch", *example.shape[1:]], str(example.dtype).removeprefix("torch.")
    if [*taken["shape"][1:], taken["dtype"]] != [*shape[1:], dtype]:
        raise S2WrapError(f"{path} takes {taken['shape']} of {taken['dtype']}; this export takes {shape} of {dtype}")
    return proto


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A folder beside the file, on the same disk, that is gone afterwards."""
    if path.is_dir():
        raise S2WrapError(f"cannot write {path}: it is a folder; name a file")
    with disk_errors(path):
        folder = Path(tempfile.mkdtemp(prefix=".s2wrap-", dir=path.resolve().parent))
    try:
        with disk_errors(path):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, path: Path, manifest: dict[str, Any]) -> None:
    """Give the file, weights beside it, and the manifest their names."""
    draft = folder / manifest_path(path).name
    draft.write_text(json.dumps(manifest, indent=2))
    weights = folder / f"{path.name}.data"
    if path.suffix == ".onnx" and not weights.is_file():
        path.with_name(weights.name).unlink(missing_ok=True)  # of an earlier export, which this one replaces
    for part in (*([weights] if weights.is_file() else []), folder / path.name, draft):
        part.chmod(0o666 & ~umask())
        part.replace(path.with_name(part.name))
