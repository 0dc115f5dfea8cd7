"""`export`: a wrapped model becomes a file, which is proved before it gets its name."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.export import trace
from s2wrap.export.build import build_engine, check_build
from s2wrap.export.engine import check_machine
from s2wrap.export.graph import ModelGraph, TilesGraph, tensors_of
from s2wrap.export.library import TITLES, load_library
from s2wrap.export.manifest import (
    describe,
    file_sha256,
    kind_of,
    manifest_path,
    port_of,
    read_manifest,
    real_path,
    recipe_of,
    weights_sha256,
)
from s2wrap.export.ranges import check_float16
from s2wrap.export.session import open_session
from s2wrap.export.verify import GATES, Gate, Report, batch_sizes, parse_gate, sample_images, verify_run
from s2wrap.files import disk_errors, umask
from s2wrap.plan import Pair, whole_number
from s2wrap.wrapper import MultiScale
from s2wrap.wrapper import load as load_model

Graph = ModelGraph | TilesGraph


class VerificationError(S2WrapError):
    """An exported file does not compute what PyTorch computes; it was not kept."""


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
        gate: what it must reach in place of `verify.GATES`: least mean cosine of a token, least 1st percentile,
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
            report = _compare(file, source, manifest, None if onnx else graph, wide, samples, limits, folder, console)
            _judge(report, path, console)
            manifest["verification"] = report.facts()
        _publish(folder, path, manifest)
    return manifest


def verify(
    path: str | Path,
    *,
    model: MultiScale | None = None,
    gate: Any = None,
    pictures: Sequence[str | Path] | None = None,
    console: Console | None = None,
) -> Report:
    """Compare an exported file with PyTorch once more.

    Args:
        path: the file; its manifest lies beside it.
        model: the wrapped model that it was made from; by default it is loaded as the manifest says.
        gate: as for `export`; by default that of the export.
        pictures: files or folders; photographs of scikit-image by default.
        console: where progress and the comparison are shown; nowhere by default.

    Raises:
        VerificationError: the file computes something else.
        S2WrapError: it cannot run here, or the model is not at hand, or its weights are others.
    """
    path, console = real_path(path), console or Console(quiet=True)
    manifest = read_manifest(path)
    limits = Gate(**manifest["gate"]) if gate is None else parse_gate(gate)
    check_machine(path, manifest, None)
    model = model or _model_again(path, manifest)
    if weights_sha256(model.backbone) != manifest["backbone"]["weights_sha256"]:
        raise S2WrapError(f"{path} was made with other weights than {model.backbone.name} has now; give the model")

    def make(precision: str, fp32_layers: Sequence[str] = ()) -> Graph:
        if manifest["part"] == "tiles":
            return TilesGraph(model, precision=precision, fp32_layers=fp32_layers)
        names = tuple(dict.fromkeys(output["name"].partition("_")[0] for output in manifest["outputs"]))
        options: dict[str, Any] = {"pixels": manifest["pixels"], "outputs": names, "fp32_layers": fp32_layers}
        return ModelGraph(model, manifest["image_hw"], precision=precision, **options)

    wide = make("fp32")
    graph = make("bf16", manifest["fp32_layers"]) if manifest["precision"] == "bf16" else None
    with tempfile.TemporaryDirectory() as folder:
        samples = sample_images(wide, pictures)
        report = _compare(path, path, manifest, graph, wide, samples, limits, Path(folder), console)
    _judge(report, path, console)
    return report


def check_batch(batch: Any) -> tuple[int, int, int]:
    """MIN, OPT and MAX as three whole numbers in order."""
    numbers = [whole_number(part) for part in batch] if isinstance(batch, tuple | list) else []
    if len(numbers) == 3:
        low, best, high = (number or 0 for number in numbers)
        if 1 <= low <= best <= high:
            return low, best, high
    raise S2WrapError(f"batch={batch!r} is no profile; use (MIN, OPT, MAX), 1 ≤ MIN ≤ OPT ≤ MAX, such as (1, 8, 32)")


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


def _compare(
    file: Path,
    source: Path,
    manifest: dict[str, Any],
    graph: Graph | None,
    wide: Graph,
    samples: list[Tensor],
    gate: Gate,
    folder: Path,
    console: Console,
) -> Report:
    """The comparison of a file with PyTorch.

    Args:
        file: what is compared.
        source: the ONNX file that it was built from, which runs where the file itself cannot.
        manifest: of the file.
        graph: what was traced: in bfloat16 PyTorch runs it where ONNX Runtime cannot; None for a ready file.
        wide: the same in float32.
        samples: what to compare on.
        gate: what to reach.
        folder: for files of a while.
        console: for progress.
    """
    kind, notes = manifest["kind"], []
    session = None
    if kind != "onnx" and torch.cuda.is_available():
        try:
            session = open_session(file, kind=kind)
        except S2WrapError as error:
            if kind == "tensorrt":  # it was built on this very GPU
                raise
            notes.append(f"The engine was built, but does not run on this GPU: {error}. Its graph was run.")
    elif kind != "onnx":
        notes.append("The engine was built and not run: there is no GPU here. The graph it was built from was run.")
    narrow = session is None and manifest["precision"] == "bf16"
    if session is None:
        if narrow:
            notes.append(
                "ONNX Runtime has no bfloat16 on CPUs: it ran the graph with weights of bfloat16 and values of float32."
            )
            trace.widen(source, folder / "float32.onnx")
            source = folder / "float32.onnx"
        session, kind = open_session(source, kind="onnx"), "onnx"
    (port,) = session.inputs

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run({port.name: images.to(session.device)})
        if narrow and graph is not None:
            rounded = zip(graph.names, graph(images), strict=True)
            found |= {f"{output} (PyTorch, bfloat16)": values for output, values in rounded}
        return found

    library = import_module("onnxruntime" if kind == "onnx" else kind)
    place = "the CPU" if session.device.type == "cpu" else torch.cuda.get_device_name(session.device)
    ran = f"{TITLES.get(kind, 'ONNX Runtime')} {library.__version__} on {place}"
    sizes = batch_sizes(check_batch(manifest["batch"]), session.device)
    note, reference = " ".join(notes), _reference(wide)
    return verify_run(run, reference, samples, sizes=sizes, gate=gate, ran=ran, note=note, console=console)


def _reference(graph: Graph) -> Callable[[Tensor], dict[str, Tensor]]:
    """The model itself in float32: its eager call, not the graph's products."""

    def of_model(images: Tensor) -> dict[str, Tensor]:
        assert isinstance(graph, ModelGraph)
        images = images.permute(0, 3, 1, 2) if graph.pixels == "uint8" else images
        features = graph.model(images)
        tensors = [tensor for kind in graph.outputs for tensor in tensors_of(features, kind)]
        return dict(zip(graph.names, tensors, strict=True))

    def of_tiles(images: Tensor) -> dict[str, Tensor]:
        return dict(zip(graph.names, graph(images), strict=True))

    return of_model if isinstance(graph, ModelGraph) else of_tiles


def _judge(report: Report, path: Path, console: Console) -> None:
    console.print(report.table())
    if report.note:
        console.print(report.note, highlight=False)
    if not report.passed:
        failed = [parity for parity in report.outputs if not parity.passes(report.gate)]
        said = "; ".join(
            f"{parity.output}: cosine {parity.cosine_mean:.6f}, 1st percentile {parity.cosine_p1:.6f}, relative error "
            f"{parity.relative_error:.1e}{'' if parity.finite else ', not finite'}"
            for parity in failed
        )
        raise VerificationError(
            f"{path} does not compute what PyTorch computes: {said}. Another precision may, or parts of it "
            f"in float32 (--fp32-layers); or set a gate of your own (--gate)"
        )


def _model_again(path: Path, manifest: dict[str, Any]) -> MultiScale:
    """The model that a manifest names."""
    recipe = manifest.get("recipe")
    if recipe is None:
        raise S2WrapError(
            f"{path} was made from a model without a name; verify it in Python: verify({path.name!r}, model=model)"
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # as `s2wrap export --random-weights` draws them
        return load_model(**recipe)


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
