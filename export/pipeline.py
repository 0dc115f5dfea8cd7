"""`export`: a wrapped model becomes a file, which is proved before it gets its name."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
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
from s2wrap.export.manifest import describe, file_sha256, kind_of, manifest_path, read_manifest, weights_sha256
from s2wrap.export.ranges import check_float16
from s2wrap.export.session import open_session
from s2wrap.export.verify import GATES, Gate, Report, Run, parse_gate, sample_images, verify_run
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
        precision: "fp32", "fp16" or "bf16", of the backbone; resizing and merging stay float32.
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
    path, console = Path(path), console or Console(quiet=True)
    kind, batch = kind_of(path), check_batch(batch)
    if kind != "onnx":
        check_build(kind, **build)
    elif build:
        raise S2WrapError(f"{', '.join(build)}: these are for engines, and {path.name} is ONNX")
    if tiles and (image_hw is not None or outputs is not None or pixels != "float32"):
        raise S2WrapError(
            "tiles=True exports the backbone alone, on its own tiles: image_hw, outputs and pixels are chosen when it "
            "is loaded; leave them out"
        )

    def make(precision: str, fp32_layers: Sequence[str] = ()) -> Graph:
        if tiles:
            return TilesGraph(model, precision=precision, fp32_layers=fp32_layers)
        size, options = image_hw or model.backbone.image_hw, {"pixels": pixels, "outputs": outputs}
        return ModelGraph(model, size, precision=precision, fp32_layers=fp32_layers, **options)

    graph = make(precision, fp32_layers)
    wide = graph if precision == "fp32" else make("fp32")
    samples = sample_images(wide, pictures) if verify or precision == "fp16" else []
    about: dict[str, Any] = {"kind": kind, "batch": batch, "fp32_layers": list(fp32_layers)}
    if precision == "fp16":
        with console.status("Looking for values that float16 cannot hold"):
            about["largest_value"] = check_float16(wide, torch.stack(samples[:2]), fp32_layers)
    with _staged(path) as folder:
        with console.status(f"Tracing {graph.backbone.name}"):
            opset = opset or _newest_opset(kind, precision)
            proto = trace.trace(graph, opset=opset) if onnx is None else _ready(Path(onnx), graph)
            manifest = describe(graph, model, proto, precision=precision) | about
            source = folder / (path.name if kind == "onnx" else "graph.onnx")
            trace.save(proto, source, note=json.dumps(manifest, sort_keys=True))
        if kind != "onnx":
            name = f"{graph.backbone.name} {graph.image_hw[0]}x{graph.image_hw[1]}"
            options = {"kind": kind, "batch": batch, "name": name, "tf32": precision != "fp32", "console": console}
            manifest["build"] = build_engine(source, folder / path.name, **options, **build)
        manifest |= {"file": path.name, "sha256": file_sha256(folder / path.name)}
        if verify:
            limits = parse_gate(gate) if gate else GATES["quantised" if trace.is_quantised(proto) else precision]
            run, ran, note = _runner(folder / path.name, source, manifest, graph, folder)
            reference = _reference(wide)
            report = verify_run(run, reference, samples, batch=batch, gate=limits, ran=ran, note=note, console=console)
            _judge(report, path, console)
            manifest["verification"] = report.facts()
        _publish(folder, path, manifest)
    return manifest


def verify(
    path: str | Path,
    *,
    model: MultiScale | None = None,
    pictures: Sequence[str | Path] | None = None,
    console: Console | None = None,
) -> Report:
    """Compare an exported file with PyTorch once more.

    Args:
        path: the file; its manifest lies beside it.
        model: the wrapped model that it was made from; by default it is loaded as the manifest says.
        pictures: files or folders; photographs of scikit-image by default.
        console: where progress and the comparison are shown; nowhere by default.

    Raises:
        VerificationError: the file computes something else.
        S2WrapError: it cannot run here, or the model is not at hand, or its weights are others.
    """
    path, console = Path(path), console or Console(quiet=True)
    manifest = read_manifest(path)
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

    gate, wide = GATES[manifest["precision"]], make("fp32")
    if "verification" in manifest:
        gate = Gate(**manifest["verification"]["gate"])
    samples, batch = sample_images(wide, pictures), check_batch(manifest["batch"])
    with tempfile.TemporaryDirectory() as folder:
        graph = make(manifest["precision"], manifest["fp32_layers"]) if manifest["precision"] != "fp32" else wide
        run, ran, note = _runner(path, path, manifest, graph, Path(folder))
        report = verify_run(run, _reference(wide), samples, batch=batch, gate=gate, ran=ran, note=note, console=console)
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
    """A ready ONNX file, once it has the inputs and outputs of the graph."""
    import onnx

    if not path.is_file():
        raise S2WrapError(f"{path}: there is no such ONNX file")
    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf's errors have no common class
        raise S2WrapError(f"{path} is no ONNX file, or damaged") from error
    found = [value.name for value in (*proto.graph.input, *proto.graph.output)]
    wanted = [graph.input, *graph.names]
    if found != wanted:
        raise S2WrapError(f"{path} has inputs and outputs {', '.join(found)}; this export has {', '.join(wanted)}")
    return proto


def _runner(path: Path, source: Path, manifest: dict[str, Any], graph: Graph, folder: Path) -> tuple[Run, str, str]:
    """What runs a file, in words too.

    Args:
        path: the file.
        source: the ONNX file that it was built from, which runs where the file itself cannot.
        manifest: of the file.
        graph: what was traced: PyTorch runs it where ONNX Runtime has no such numbers.
        folder: for files of a while.
    """
    kind, notes = manifest["kind"], []
    if kind != "onnx" and not torch.cuda.is_available():
        notes.append("The engine was built and not run: there is no GPU here. The graph it was built from was run.")
        path, kind = source, "onnx"
    rounds = kind == "onnx" and manifest["precision"] == "bf16"
    if rounds:
        notes.append(
            "ONNX Runtime has no bfloat16 on CPUs: it ran the graph with weights of bfloat16 and values of float32. "
            "PyTorch ran it in bfloat16."
        )
        trace.widen(path, folder / "float32.onnx")
        path = folder / "float32.onnx"
    session = open_session(path, kind=kind)
    library = "onnxruntime" if kind == "onnx" else kind
    place = "the CPU" if session.device.type == "cpu" else torch.cuda.get_device_name(session.device)
    name = session.inputs[0].name

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run({name: images.to(session.device)})
        if rounds:
            found |= {
                f"{name} (PyTorch, bfloat16)": part for name, part in zip(graph.names, graph(images), strict=True)
            }
        return found

    return run, f"{TITLES.get(kind, 'ONNX Runtime')} {version(library)} on {place}", " ".join(notes)


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
    recipe = manifest["recipe"]
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
    path = path.resolve()
    draft = folder / manifest_path(path).name
    draft.write_text(json.dumps(manifest, indent=2))
    for part in (folder / f"{path.name}.data", folder / path.name, draft):
        if part.is_file():
            part.chmod(0o666 & ~umask())
            part.replace(path.with_name(part.name))
