"""Verification of an exported file against the PyTorch model that it was made from."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from s2wrap.backbones.checkpoint import weights_sha256
from s2wrap.errors import S2WrapError
from s2wrap.export import trace
from s2wrap.export.engine import check_machine
from s2wrap.export.foreign import verify_foreign
from s2wrap.export.graph import Graph, ModelGraph, in_float32, make_graph, tensors_of
from s2wrap.export.layers import compare_layers
from s2wrap.export.manifest import has_manifest, kind_of, read_manifest
from s2wrap.export.options import Gate, GraphOptions, check_batch, parse_gate
from s2wrap.export.parity import Report, batch_sizes, compare_own_sizes, sample_images, verify_run
from s2wrap.export.session import open_session, runner_of
from s2wrap.factory import load as load_model
from s2wrap.wrapper import MultiScale


class VerificationError(S2WrapError):
    """The outputs of an exported file differ too much from PyTorch's; an export discards the file.

    Attributes:
        report: the comparison.
    """

    def __init__(self, message: str, report: Report):
        super().__init__(message)
        self.report = report


def verify(
    path: str | Path,
    *,
    model: MultiScale | None = None,
    head: nn.Module | None = None,
    gate: Any = None,
    pictures: Sequence[str | Path] | None = None,
    layers: bool = False,
    console: Console | None = None,
) -> Report:
    """The report of a comparison of an exported file with PyTorch.

    Args:
        path: the file, with its manifest beside it; or one that others built of `model`, without a manifest.
        model: the wrapped model that it was made from; by default it is loaded as described in the manifest.
        head: the head that it was exported with, if any.
        gate: as for `export`; by default the gate of the export.
        pictures: files or folders; by default photographs of scikit-image.
        layers: look inside an .onnx file too, for the first layer whose values depart.
        console: where to show progress; by default nowhere.

    Raises:
        VerificationError: the outputs do not pass the gate.
        S2WrapError: the file cannot run here, the model cannot be loaded or has other weights, or the file has a head
            and none is given.
    """
    path, console = Path(path), console or Console(quiet=True)
    if layers and kind_of(path) != "onnx":
        raise S2WrapError(f"layers: {path} hides its layers; export the same model as .onnx, and look into that")
    if model is not None and path.is_file() and not has_manifest(path):
        if head is not None:
            raise S2WrapError(f"head={type(head).__name__}: {path} has no manifest, and so no output head of s2wrap's")
        limits = None if gate is None else parse_gate(gate)
        report = verify_foreign(path, model, gate=limits, pictures=pictures, layers=layers, console=console)
        judge(report, path)
        return report
    manifest = read_manifest(path)
    limits = Gate(**manifest["gate"]) if gate is None else parse_gate(gate)
    if head is None and any(port["name"] == "head" for port in manifest["outputs"]):
        raise S2WrapError(f"{path} has a head of its maker's; verify it in Python: verify({path.name!r}, head=module)")
    check_machine(path, manifest, None)
    model = model or _load_recipe(path, manifest)
    if weights_sha256(model.backbone) != manifest["backbone"]["weights_sha256"]:
        raise S2WrapError(f"{path} was made with other weights than {model.backbone.name} has now; give the model")
    options = _graph_options(manifest, head).unquantised(manifest["kind"])
    wide = make_graph(model, in_float32(options))
    graph = make_graph(model, options) if options.precision == "bf16" else None
    with tempfile.TemporaryDirectory() as folder:
        samples = sample_images(wide, pictures)
        report = compare_file(path, path, manifest, graph, wide, samples, pictures, limits, Path(folder), console)
    if layers:
        images = samples[0].expand(manifest["batch"][0], *samples[0].shape)
        inside = compare_layers(path, wide, images, images, error=limits.error, passed=report.passed)
        report = replace(report, layers=inside)
    judge(report, path)
    return report


def compare_file(
    file: Path,
    source: Path,
    manifest: dict[str, Any],
    graph: Graph | None,
    wide: Graph,
    samples: list[Tensor],
    pictures: Sequence[str | Path] | None,
    gate: Gate,
    folder: Path,
    console: Console,
) -> Report:
    """The report of a comparison of a file with PyTorch.

    Args:
        file: the exported file.
        source: the ONNX file that it was built from, which is run if the file cannot run here.
        manifest: the manifest of the file.
        graph: the traced graph; for bfloat16, which ONNX Runtime lacks on CPUs, PyTorch runs it. May be None otherwise.
        wide: the same graph in float32.
        samples: the images to compare on.
        pictures: of which they were made, and that are compared at their own size too.
        gate: the limits to pass.
        folder: a folder for temporary files.
        console: where to show progress.
    """
    kind, notes = manifest["kind"], []
    session = None
    if kind == "aotinductor" or (kind != "onnx" and torch.cuda.is_available()):
        try:
            session = open_session(file, kind=kind)
        except S2WrapError as error:
            if kind != "tensorrt_rtx":  # it was built on this very machine
                raise
            notes.append(f"The engine was built, but does not run on this GPU: {error}. Its graph was run.")
    elif kind != "onnx":
        notes.append("The engine was built and not run: there is no GPU here. The graph it was built from was run.")
    if isinstance(wide, ModelGraph) and (lost := _lost_detail(wide)):
        notes.append(lost)
    widened = session is None and manifest["precision"] == "bf16"
    if session is None:
        if widened:
            notes.append(
                "ONNX Runtime has no bfloat16 on CPUs: it ran the graph with weights of bfloat16 and values of float32."
            )
            trace.widen(source, folder / "float32.onnx")
            source = folder / "float32.onnx"
        session, kind = open_session(source, kind="onnx"), "onnx"
    (port,) = session.inputs

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run({port.name: images.to(session.device)})
        if widened and graph is not None:
            in_bfloat16 = zip(graph.names, graph(images), strict=True)
            outputs |= {f"{name} (PyTorch, bfloat16)": values for name, values in in_bfloat16}
        return outputs

    ran = runner_of(session, kind)
    sizes = batch_sizes(check_batch(manifest["batch"]), session.device)
    sizes *= -(-len(samples) // sum(sizes))  # so that all are seen: with int8 and fp8, layers are chosen on them
    note, reference = " ".join(notes), _reference(wide)
    with torch.no_grad():
        own_sizes = compare_own_sizes(reference, wide, pictures) if isinstance(wide, ModelGraph) else ()
    return verify_run(
        run, reference, samples, sizes=sizes, gate=gate, ran=ran, note=note, own_sizes=own_sizes, console=console
    )


def judge(report: Report, path: Path) -> None:
    """Raise VerificationError if a report does not pass."""
    if not report.passed:
        failed = [parity for parity in report.outputs if not parity.passes(report.gate)]
        figures = "; ".join(
            f"{parity.output}: cosine {parity.cosine_mean:.6f}, 1st percentile {parity.cosine_p1:.6f}, relative error "
            f"{parity.relative_error:.1e}{'' if parity.finite else ', not finite'}"
            for parity in failed
        )
        raise VerificationError(
            f"{path} does not compute what PyTorch computes: {figures}. Another precision may, or parts of it "
            f"in float32 (--fp32-layers); or set a gate of your own (--gate)",
            report,
        )


def _lost_detail(graph: ModelGraph) -> str:
    """What to say of a graph whose images are smaller than its largest scale; empty of others."""
    (height, width), (full_height, full_width) = graph.image_hw, graph.model.image_hw
    if height >= full_height and width >= full_width:
        return ""
    return (
        f"The file takes images of {height}×{width} pixels and looks at them at {full_height}×{full_width}: detail "
        f"that the model sees in larger pictures is lost; --image {full_height}x{full_width} keeps it."
    )


def _reference(graph: Graph) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function that gives the reference outputs in float32: the eager call of the model, if the graph has one."""

    def run_model(images: Tensor) -> dict[str, Tensor]:
        assert isinstance(graph, ModelGraph)
        images = images if graph.pixels == "float32" else images.permute(0, 3, 1, 2)
        features = graph.add_head(graph.model(images))
        tensors = [tensor for kind in graph.outputs for tensor in tensors_of(features, kind)]
        return dict(zip(graph.names, tensors, strict=True))

    def run_tiles(images: Tensor) -> dict[str, Tensor]:
        return dict(zip(graph.names, graph(images), strict=True))

    return run_model if isinstance(graph, ModelGraph) else run_tiles


def _graph_options(manifest: dict[str, Any], head: nn.Module | None) -> GraphOptions:
    """The options of the graph that a manifest describes, with its head."""
    names = {"precision": manifest["precision"], "fp32_layers": manifest["fp32_layers"], "head": head}
    if manifest["part"] == "tiles":
        return GraphOptions(tiles=True, **names)
    outputs = tuple(dict.fromkeys(output["name"].partition("_")[0] for output in manifest["outputs"]))
    return GraphOptions(image_hw=manifest["image_hw"], pixels=manifest["pixels"], outputs=outputs, **names)


def _load_recipe(path: Path, manifest: dict[str, Any]) -> MultiScale:
    """The model that a manifest describes."""
    recipe = manifest.get("recipe")
    if recipe is None:
        raise S2WrapError(
            f"{path} was made from a model without a name; verify it in Python: verify({path.name!r}, model=model)"
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same weights as `s2wrap export --random-weights`
        return load_model(recipe["spec"], **{name: value for name, value in recipe.items() if name != "spec"})
