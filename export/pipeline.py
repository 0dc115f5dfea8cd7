"""`export`: a wrapped model becomes a file, which is verified before it gets its name."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.export import aot, trace
from s2wrap.export.build import build_engine, check_build
from s2wrap.export.graph import Graph, in_float32, make_graph
from s2wrap.export.library import load_library
from s2wrap.export.manifest import (
    NEXT,
    describe,
    describe_proto,
    file_sha256,
    free_weights_name,
    kind_of,
    manifest_path,
    port_of,
    recipe_of,
)
from s2wrap.export.options import (
    BuildOptions,
    ExportOptions,
    GraphOptions,
    Precision,
    parse_gate,
    takes_two_and_options,
)
from s2wrap.export.parity import GATES, calibration_images, sample_images
from s2wrap.export.proof import compare_file, judge
from s2wrap.export.quantise import Recipe, quantise
from s2wrap.export.ranges import fit_float16
from s2wrap.files import disk_errors, sync_folder, temporary, umask
from s2wrap.options import make_options, part_of
from s2wrap.wrapper import MultiScale


@takes_two_and_options(ExportOptions)
def export(model: MultiScale, path: str | Path, **options: object) -> dict[str, Any]:
    """Write a wrapped model as a file that needs no PyTorch model, and its manifest beside it; return the manifest.

    The file is compared with the model in float32 first, on photographs and on noise, and gets its name only if it
    computes the same. File and manifest are written whole or not at all. What `fit` makes of the images' shape is fixed
    in the file; resizing and merging stay float32 (fp16 and bf16 engines may round their factors to TF32).

    Args:
        model: a wrapped model, on any device and in any precision; it is not changed.
        path: its ending says what: .onnx; .plan or .engine (TensorRT, built on the GPU that will run it); .rtx
            (TensorRT-RTX, built without a GPU); .pt2 (AOTInductor, compiled by PyTorch for the CPU or GPU here).
        **options: of `ExportOptions`: of `GraphOptions` what the graph takes, computes and returns; of `BuildOptions`
            how an engine or package is built; of `VerifyOptions` how the file is compared.

    Raises:
        MissingExtraError: a library is not installed.
        VerificationError: the file computes something else; nothing was written.
        S2WrapError: an option that cannot be, a model that cannot be exported, values that float16 cannot hold, what
            the builder refused, a full disk.
    """
    chosen = make_options(ExportOptions, "export()", options)
    graph_options, build_options = part_of(GraphOptions, chosen), part_of(BuildOptions, chosen)
    path, console = Path(path), chosen.console or Console(quiet=True)
    path = path.resolve() if path.is_symlink() else path  # links stay: what they name is written
    kind, gate = kind_of(path), None if chosen.gate is None else parse_gate(chosen.gate)
    _check_kind(path, kind, graph_options, build_options)
    check_unwritten(path, chosen.overwrite)
    wide = make_graph(model, in_float32(graph_options))
    plain = graph_options.unquantised(kind)
    needed = chosen.verify or graph_options.quantised or plain.precision == "fp16"
    samples = sample_images(wide, chosen.pictures) if needed else []
    about: dict[str, Any] = {"kind": kind, "batch": chosen.batch}
    about |= {} if chosen.notes is None else {"notes": chosen.notes}
    with _staged(path) as folder:
        if plain.precision == "fp16" and chosen.onnx is None:
            plain = _with_wide_layers(wide, samples, plain, chosen.fp32_layers, about, console)
        about["fp32_layers"] = list(dict.fromkeys((*chosen.fp32_layers, *plain.fp32_layers)))
        recipe = _quantise(wide, samples, chosen, plain.fp32_layers, console) if graph_options.quantised else None
        graph = wide if plain.precision == "fp32" and recipe is None else make_graph(model, plain)
        if recipe is not None:
            recipe.apply(graph)
            about["quantised"] = recipe.facts()
        manifest = describe(graph, model, precision=chosen.precision) | about
        source, quantised = _write(graph, kind, path, folder, plain, build_options, manifest, console)
        gate = gate or GATES["quantised" if quantised else plain.precision]
        file = folder / path.name
        manifest |= {"recipe": recipe_of(model), "gate": asdict(gate), "file": path.name}
        manifest["sha256"] = file_sha256(file, manifest["weights"])
        if chosen.verify:
            traced = None if chosen.onnx else graph
            report = compare_file(file, source, manifest, traced, wide, samples, chosen.pictures, gate, folder, console)
            report.show(console)
            judge(report, path)
            manifest["verification"] = report.facts()
        _publish(folder, path, manifest)
    return manifest


def _with_wide_layers(
    wide: Graph,
    samples: list[Tensor],
    options: GraphOptions,
    given: Sequence[str],
    about: dict[str, Any],
    console: Console,
) -> GraphOptions:
    """The options of a float16 graph with all modules that must stay float32; `about` gets the largest value."""
    with console.status("Looking for values that float16 cannot hold"):
        fit = fit_float16(wide, torch.stack(samples[:2]), given)
    about["largest_value"] = fit.largest
    if fit.kept:
        console.print(f"In float32, as their values are too large for float16: {', '.join(fit.kept)}")
    return replace(options, fp32_layers=(*given, *fit.kept))


def _write(
    graph: Graph,
    kind: str,
    path: Path,
    folder: Path,
    graph_options: GraphOptions,
    build_options: BuildOptions,
    manifest: dict[str, Any],
    console: Console,
) -> tuple[Path, bool]:
    """Write the file into a folder, and what is known of it into the manifest.

    Returns:
        The ONNX file that it is or was built from (of a package, a path without a file), and whether it is quantised.
    """
    file = folder / path.name
    if kind == "aotinductor":
        _write_package(graph, file, manifest, build_options.device, console)
        return folder / "graph.onnx", False
    source = file if kind == "onnx" else folder / "graph.onnx"
    with console.status(f"Tracing {graph.backbone.name}"):
        weights = free_weights_name(path) if kind == "onnx" else f"{source.name}.data"
        proto = _traced(graph, kind, graph_options, folder / weights)
        manifest |= describe_proto(proto)
        apart = trace.save(proto, source, note=json.dumps(manifest, sort_keys=True), weights=weights)
        manifest["weights"] = weights if apart and kind == "onnx" else None
    if kind != "onnx":
        manifest["build"] = build_engine(
            source,
            file,
            kind=kind,
            batch=manifest["batch"],
            name=f"{graph.backbone.name} {graph.image_hw[0]}x{graph.image_hw[1]}",
            options=build_options,
            tf32=manifest["precision"] != "fp32",
            shown=path.name,
            console=console,
        )
    return source, trace.is_quantised(proto)


def _quantise(
    wide: Graph, samples: list[Tensor], chosen: ExportOptions, fp32_layers: Sequence[str], console: Console
) -> Recipe:
    """Which layers are quantised, and how."""
    recipe = quantise(
        wide,
        pictures=calibration_images(wide, chosen.pictures or ()),
        judged=samples,
        kind="int8" if chosen.precision == "int8" else "fp8",
        wide_layers=(*chosen.fp32_layers, *fp32_layers),
        gate=GATES["quantised"] if chosen.gate is None else parse_gate(chosen.gate),
        console=console,
    )
    console.print(recipe.text(), highlight=False)
    return recipe


def _write_package(graph: Graph, file: Path, manifest: dict[str, Any], device: str, console: Console) -> None:
    """Write an AOTInductor package, and complete its manifest."""
    name = graph.backbone.name
    with console.status(f"Tracing {name}"):
        program = aot.trace_program(graph, manifest["batch"], device)
    manifest["inputs"], manifest["outputs"] = aot.ports_of(graph, program)
    note = json.dumps(manifest, sort_keys=True)
    manifest["build"] = aot.build_package(program, file, name=name, device=device, note=note, console=console)
    manifest["weights"] = None


def _check_kind(path: Path, kind: str, graph_options: GraphOptions, build_options: BuildOptions) -> None:
    """Raise S2WrapError for options that a kind of file does not have."""
    if kind == "aotinductor":
        aot.check_package(path, graph_options, build_options)
        return
    if build_options.device != BuildOptions.device:
        raise S2WrapError(
            f"device={build_options.device!r} is for .pt2 files, which are compiled for one device; an .onnx file runs "
            f"on any, and engines are for GPUs: leave it out"
        )
    if kind == "onnx":
        if changed := build_options.changed():
            raise S2WrapError(f"{', '.join(changed)}: these are for engines, and {path.name} is ONNX")
        return
    if graph_options.pixels == "uint16":
        raise S2WrapError(
            f"pixels='uint16' with {path.name}: TensorRT has no uint16 inputs; use pixels='float32' or 'uint8', or "
            f"write .onnx"
        )
    check_build(kind, build_options)


def _traced(graph: Graph, kind: str, options: GraphOptions, weights: Path) -> Any:
    """The ONNX model of a graph, or the ready one; too large weights are in a file."""
    if options.onnx is not None:
        return _ready(Path(options.onnx), graph)
    return trace.trace(graph, opset=options.opset or _newest_opset(kind, options.precision), weights=weights)


def _newest_opset(kind: str, precision: Precision) -> int:
    """The newest opset that the library that reads the file knows: TensorRT has Attention since 10.14."""
    if kind == "onnx":
        return 23 if precision == "bf16" else 20
    if kind == "tensorrt_rtx":
        return 23
    major, minor = (int(part) for part in load_library(kind).__version__.split(".")[:2])
    return 23 if (major, minor) >= (10, 14) else 22 if precision == "bf16" else 20


def _ready(path: Path, graph: Graph) -> Any:
    """The ONNX model in a ready file, after a check that its inputs and outputs are those of the graph."""
    import onnx

    if not path.is_file():
        raise S2WrapError(f"{path}: there is no such ONNX file")
    try:
        proto = onnx.load(path)
        names = [value.name for value in (*proto.graph.input, *proto.graph.output)]
        port = port_of(proto.graph.input[0])
    except Exception as error:  # protobuf's errors have no common class
        raise S2WrapError(f"{path} is no ONNX file, or damaged") from error
    expected, example = [graph.input_name, *graph.names], graph.example(1)
    if names != expected:
        raise S2WrapError(f"{path} has inputs and outputs {', '.join(names)}; this export has {', '.join(expected)}")
    shape, dtype = ["batch", *example.shape[1:]], str(example.dtype).removeprefix("torch.")
    if [*port["shape"][1:], port["dtype"]] != [*shape[1:], dtype]:
        raise S2WrapError(f"{path} takes {port['shape']} of {port['dtype']}; this export takes {shape} of {dtype}")
    return proto


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A temporary folder beside the file, on the same disk."""
    if path.is_dir():
        raise S2WrapError(f"cannot write {path}: it is a folder; name a file")
    with temporary(path, folder=True) as folder, disk_errors(path):
        yield folder


def check_unwritten(path: Path, overwrite: bool) -> None:
    """Raise S2WrapError for a file or manifest that is there already, unless it may be replaced."""
    for part in () if overwrite else (path, manifest_path(path)):
        if part.exists():
            raise S2WrapError(
                f"{part} exists already; add --overwrite (overwrite=True) to replace it, or give another name"
            )


def _publish(folder: Path, path: Path, manifest: dict[str, Any]) -> None:
    """Give the file, weights beside it, and the manifest their names.

    Killed at any moment, it leaves the old file or the new one with its own manifest: that of the new one lies beside
    both before the file is renamed, and `read_manifest` takes the one of the file. Weights that are left over are
    removed by the next export.
    """
    beside = manifest_path(path)
    following = beside.with_name(beside.name + NEXT)
    earlier = {_weights_of(path, beside), _weights_of(path, following)}
    (folder / following.name).write_text(json.dumps(manifest, indent=2))
    for name in filter(None, (following.name, manifest["weights"], path.name)):
        part = folder / name
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.chmod(0o666 & ~umask())
        part.replace(path.with_name(name))
    following.replace(beside)
    for old in earlier:
        if old is not None and old.name != manifest["weights"]:
            old.unlink(missing_ok=True)
    sync_folder(path.parent)


def _weights_of(path: Path, manifest: Path) -> Path | None:
    """The weights of a file by its manifest, which an export that replaces it removes; None where it has no own."""
    try:
        facts = json.loads(manifest.read_text())
        own = re.fullmatch(rf"{re.escape(path.name)}(\.\d+)?\.data", facts["weights"] or "")
        return path.with_name(facts["weights"]) if own and facts["file"] == path.name else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
