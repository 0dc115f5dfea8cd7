"""ONNX → an engine: TensorRT on the GPU that will run it, TensorRT-RTX ahead of time on any machine."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from rich.console import Console

from s2wrap.errors import S2WrapError
from s2wrap.export.library import TITLES, load_library, make_logger
from s2wrap.export.progress import BuildBar, interruptible, make_monitor
from s2wrap.files import disk_errors, whole_file

REMEDIES = {
    "FP32 GEMM is not supported": "sm75 has no float32 matrix products, which resizing and merging are made of; "
    "leave sm75 out of the targets",
    "HW-specific datatypes": "the graph holds a number type that not every target has (fp8 needs sm89, fp4 sm120); "
    "leave out the older targets",
    "Failed to parse the ONNX model": "the file is truncated, or no ONNX file",
    "workspace limit": "the workspace is too small; give more, or leave it to the library",
}


def build_engine(
    onnx_path: Path,
    draft: Path,
    *,
    kind: str,
    batch: tuple[int, int, int],
    name: str,
    tf32: bool = False,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: Path | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    targets: Sequence[str] = (),
    shown: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Write the engine of an ONNX file, and return the facts of the build for a manifest.

    Precision is the graph's own: the network is strongly typed. Ctrl-C stops the builder and writes nothing.

    Args:
        onnx_path: the graph; only the first dimension of its inputs may be dynamic.
        draft: where the engine goes; the caller gives it its final name.
        kind: "tensorrt" (builds on the GPU that will run it) or "tensorrt_rtx" (needs no GPU).
        batch: smallest, most frequent and largest batch.
        name: the network's name, written into the engine; the same name gives RTX the same bytes.
        tf32: whether float32 products may round their factors to 10 bits of mantissa.
        workspace_mib: the most scratch memory that the engine may use, in MiB.
        optimization_level: 0 (fast build) to 5 (fast engine); the library's own, 3, by default.
        timing_cache: a file that makes later builds faster, TensorRT only; read where it is there, and written.
        version_compatible: the engine loads in later TensorRT versions too, TensorRT only.
        hardware_compatible: the engine runs on every GPU since Ampere, not only on this one, TensorRT only.
        targets: GPU generations such as "sm89", TensorRT-RTX only; the library's own choice by default.
        shown: what messages call the file.
        console: where progress is shown, when it is a terminal; stderr by default.

    Returns:
        `library`, `version`, `layers` and `bytes`; for TensorRT-RTX `targets` (["default"] for the library's choice);
        for TensorRT `gpu`, `compute_capability`, `hardware_compatibility` and `version_compatible`.

    Raises:
        MissingExtraError: the library is not installed.
        S2WrapError: an option the library does not have, a batch or a graph it refuses, no GPU for TensorRT, or a full
            disk; the builder's own last messages stand at its end.
    """
    low, best, high = batch
    if not 1 <= low <= best <= high:
        raise S2WrapError(f"batch={low}:{best}:{high} must be MIN:OPT:MAX with 1 ≤ MIN ≤ OPT ≤ MAX, e.g. 1:8:32")
    if not onnx_path.is_file():
        raise S2WrapError(f"{onnx_path} is not there; give the ONNX file to build from")
    targets = list(dict.fromkeys(target.lower() for target in targets))
    trt = check_build(
        kind,
        workspace_mib=workspace_mib,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        targets=targets,
    )
    bar = BuildBar(f"Building with {TITLES[kind]}", console)
    job = _Job(trt, kind, onnx_path, shown or str(onnx_path), bar)
    device = torch.cuda.current_device() if kind == "tensorrt" else None

    def work() -> Any:
        if device is not None:
            torch.cuda.set_device(device)  # every thread has its own current device
        job.parse(name)
        job.configure(tf32, workspace_mib, optimization_level)
        job.set_batch(batch)
        if kind == "tensorrt_rtx":
            job.set_targets_rtx(targets)
        if version_compatible:
            job.config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if hardware_compatible:
            job.config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return job.build(timing_cache)

    serialized = interruptible(work, bar)
    with disk_errors(draft):
        draft.write_bytes(memoryview(serialized))
    facts = {"library": kind, "version": trt.__version__, "layers": job.network.num_layers, "bytes": serialized.nbytes}
    if kind == "tensorrt_rtx":
        return facts | {"targets": targets or ["default"]}
    return facts | {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "hardware_compatibility": "ampere_plus" if hardware_compatible else "none",
        "version_compatible": version_compatible,
    }


def check_build(
    kind: str,
    *,
    workspace_mib: int | None = None,
    optimization_level: int | None = None,
    timing_cache: Path | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    targets: Sequence[str] = (),
) -> ModuleType:
    """The library's module, once it is sure that these options of `build_engine` can work here: cheap, before any work.

    Raises:
        MissingExtraError: the library is not installed.
        S2WrapError: an option or target that the library does not have, or no GPU for TensorRT.
    """
    if workspace_mib is not None and workspace_mib < 1:
        raise S2WrapError(f"workspace_mib={workspace_mib} must be 1 MiB or more")
    if optimization_level is not None and not 0 <= optimization_level <= 5:
        raise S2WrapError(f"optimization_level={optimization_level} must be from 0 (fast build) to 5 (fast engine)")
    if kind == "tensorrt" and targets:
        raise S2WrapError(
            f"targets={','.join(targets)} are for .rtx files; TensorRT builds for the GPU it runs on: build there, "
            "or use hardware_compatible for every GPU since Ampere"
        )
    if kind == "tensorrt" and not torch.cuda.is_available():
        raise S2WrapError(
            "TensorRT builds on the GPU that will run the engine, and this machine shows none; build there, or write "
            ".onnx or .rtx, which need no GPU"
        )
    if kind == "tensorrt_rtx" and timing_cache:
        raise S2WrapError(
            f"timing_cache={timing_cache} has no effect in TensorRT-RTX, which times nothing; leave it out"
        )
    if kind == "tensorrt_rtx" and version_compatible:
        raise S2WrapError("version_compatible is TensorRT's; an .rtx file runs only on the version that built it")
    if kind == "tensorrt_rtx" and hardware_compatible:
        raise S2WrapError('hardware_compatible is TensorRT\'s; for .rtx files name the GPUs in targets, e.g. "sm89"')
    trt = load_library(kind)
    if kind == "tensorrt_rtx":
        _find_targets_rtx(trt, targets)
    return trt


class _Job:
    """One build: the library's objects, which must live and go together."""

    def __init__(self, trt: ModuleType, kind: str, path: Path, shown: str, bar: BuildBar):
        self.trt, self.kind, self.path, self.shown = trt, kind, path, shown
        self.logger = make_logger(trt)
        self.monitor = make_monitor(trt, bar)
        try:
            self.builder = trt.Builder(self.logger)
        except TypeError as error:  # how the bindings say that the library returned nothing
            raise S2WrapError(f"{TITLES[kind]} cannot start here: {self.logger.tail()}") from error

    def parse(self, name: str) -> None:
        """Read the ONNX file into a strongly typed network."""
        trt, flags = self.trt, 0
        if self.kind == "tensorrt" and trt.__version__.startswith("10."):  # the others have no weaker networks
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = network = self.builder.create_network(flags)
        network.name = name
        self.parser = parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(self.path)):
            problems = [_problem_text(parser.get_error(index)) for index in range(parser.num_errors)]
            self.refuse("cannot read", "; ".join(problems) or self.logger.tail())
        if not network.num_layers or not network.num_outputs:  # files without a graph are parsed without a complaint
            self.refuse("cannot read", "there is no graph in it; is it an ONNX file, and whole?")
        for index in range(network.num_layers):
            _allow_decomposing(trt, network.get_layer(index))

    def configure(self, tf32: bool, workspace_mib: int | None, optimization_level: int | None) -> None:
        """Set the options that both libraries have."""
        trt = self.trt
        self.config = config = self.builder.create_builder_config()
        config.progress_monitor = self.monitor
        if tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        if workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
        if optimization_level is not None:
            config.builder_optimization_level = optimization_level

    def set_batch(self, batch: tuple[int, int, int]) -> None:
        """Give every input its smallest, most frequent and largest shape."""
        profile = self.builder.create_optimization_profile()
        for index in range(self.network.num_inputs):
            tensor = self.network.get_input(index)
            shape = tuple(tensor.shape)
            if not shape or -1 in shape[1:]:
                self.refuse(
                    "cannot build", f"input {tensor.name} is {shape}; the batch comes first, and only it may be open"
                )
            first, *rest = shape
            if first != -1 and set(batch) != {first}:
                asked = ":".join(map(str, batch))
                self.refuse(
                    "cannot build",
                    f"its batch is always {first}, not {asked}; use {first}:{first}:{first}, or export "
                    "it with an open batch",
                )
            profile.set_shape(tensor.name, *((size, *rest) for size in batch))
        if self.config.add_optimization_profile(profile) < 0:
            self.refuse("refuses these batches for", self.logger.tail())

    def set_targets_rtx(self, targets: Sequence[str]) -> None:
        """Ask for GPU generations; none leaves the library's own choice."""
        found = _find_targets_rtx(self.trt, targets)
        if targets:
            self.config.num_compute_capabilities = len(targets)
        for index, capability in enumerate(found):
            if not self.config.set_compute_capability(capability, index):
                self.refuse(f"cannot target {targets[index]} with", self.logger.tail())

    def build(self, timing_cache: Path | None) -> Any:
        """The engine's bytes; timings are kept in a file where one is named."""
        if timing_cache:
            self.use_timings(timing_cache)
        serialized = self.builder.build_serialized_network(self.network, self.config)
        if serialized is None:
            self.refuse("cannot build", self.logger.tail())
        if timing_cache:
            with whole_file(timing_cache) as draft, disk_errors(timing_cache):
                draft.write_bytes(memoryview(self.config.get_timing_cache().serialize()))
        return serialized

    def use_timings(self, path: Path) -> None:
        """Let the builder use the timings of earlier builds, where there are any."""
        try:
            known = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise S2WrapError(f"cannot read timing_cache={path}: {error.strerror or error}") from error
        self.timings = self.config.create_timing_cache(known)
        if self.timings is None or not self.config.set_timing_cache(self.timings, False):
            raise S2WrapError(
                f"timing_cache={path} is damaged, or from another TensorRT or GPU; delete it, or name another file: "
                f"{self.logger.tail()}"
            )

    def refuse(self, what: str, why: str) -> NoReturn:
        """Raise with the library's own words, after plain ones where we know what they mean."""
        for sign, remedy in REMEDIES.items():
            if sign in why:
                why = f"{remedy}. It said: {why}"
        raise S2WrapError(f"{TITLES[self.kind]} {self.trt.__version__} {what} {self.shown}: {why}")


def _find_targets_rtx(trt: ModuleType, targets: Sequence[str]) -> list[Any]:
    """TensorRT-RTX's values for names such as "sm89"."""
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    unknown = [target for target in targets if target.lower() not in known]
    if unknown:
        raise S2WrapError(
            f"targets={','.join(targets)}: TensorRT-RTX {trt.__version__} has no {', '.join(unknown)}; "
            f"it has {', '.join(known)}"
        )
    return [known[target.lower()] for target in targets]


def _problem_text(problem: Any) -> str:
    """One of the parser's errors: operator, node and what it says."""
    node = f"{problem.node_operator()} (node {problem.node_name()}): " if problem.node_operator() else ""
    return node + problem.desc().strip()


def _allow_decomposing(trt: ModuleType, layer: Any) -> None:
    """Let an attention run as several kernels where no fused one exists; by default that would end the build."""
    if hasattr(trt, "IAttentionInputLayer") and layer.type == trt.LayerType.ATTENTION_INPUT:
        layer.__class__ = trt.IAttentionInputLayer  # the bindings give the base class; this is how they are cast
        layer.attention.decomposable = True
