"""Engines built from ONNX files: TensorRT on the GPU that will run them, TensorRT-RTX on any machine."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from rich.console import Console

from s2wrap.errors import S2WrapError
from s2wrap.export.library import TITLES, load_library, make_logger
from s2wrap.export.options import BuildOptions
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
"""Explanations and remedies, by a phrase in the library's error message."""


def build_engine(
    onnx_path: Path,
    draft: Path,
    *,
    kind: str,
    batch: tuple[int, int, int],
    name: str,
    options: BuildOptions | None = None,
    tf32: bool = False,
    shown: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Build an engine from an ONNX file, write it to `draft`, and return facts about it for the manifest.

    The network is strongly typed: precision is as in the graph. After Ctrl-C, nothing is written.

    Args:
        onnx_path: the graph; only the first dimension of its inputs may be dynamic.
        draft: the file to write; the caller renames it.
        kind: "tensorrt" (builds on the GPU that will run it) or "tensorrt_rtx" (needs no GPU).
        batch: smallest, most frequent and largest batch size.
        name: the name of the network, stored in the engine; TensorRT-RTX is deterministic for the same graph and name.
        options: how it is built; the library's own choices by default.
        tf32: whether float32 matrix products may round their inputs to TF32 (10 bits of mantissa).
        shown: the name of the file in messages.
        console: where to show progress, if it is a terminal; stderr by default.

    Returns:
        `library`, `version`, `layers` and `bytes`; for TensorRT-RTX also `targets` (["default"] if none were given);
        for TensorRT `gpu`, `compute_capability`, `hardware_compatibility` and `version_compatible`.

    Raises:
        MissingExtraError: the library is not installed.
        S2WrapError: the library rejects an option, the batch or the graph, there is no GPU for TensorRT, or the disk is
            full; the message ends with the builder's last messages.
    """
    low, usual, high = batch
    if not 1 <= low <= usual <= high:
        raise S2WrapError(f"batch={low}:{usual}:{high} must be MIN:OPT:MAX with 1 ≤ MIN ≤ OPT ≤ MAX, e.g. 1:8:32")
    if not onnx_path.is_file():
        raise S2WrapError(f"{onnx_path} is not there; give the ONNX file to build from")
    options = options or BuildOptions()
    trt = check_build(kind, options)
    bar = BuildBar(f"Building with {TITLES[kind]}", console)
    build = _Build(trt, kind, onnx_path, shown or str(onnx_path), bar)
    device = torch.cuda.current_device() if kind == "tensorrt" else None

    def work() -> Any:
        if device is not None:
            torch.cuda.set_device(device)  # each thread has its own current device
        build.parse(name)
        build.configure(tf32, options)
        build.set_batch(batch)
        if kind == "tensorrt_rtx":
            build.set_targets_rtx(options.targets)
        if options.version_compatible:
            build.config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            build.config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return build.serialize(None if options.timing_cache is None else Path(options.timing_cache))

    engine = interruptible(work, bar)
    with disk_errors(draft):
        draft.write_bytes(memoryview(engine))
    facts = {"library": kind, "version": trt.__version__, "layers": build.network.num_layers, "bytes": engine.nbytes}
    if kind == "tensorrt_rtx":
        return facts | {"targets": list(options.targets) or ["default"]}
    return facts | {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "hardware_compatibility": "ampere_plus" if options.hardware_compatible else "none",
        "version_compatible": options.version_compatible,
    }


def check_build(kind: str, options: BuildOptions) -> ModuleType:
    """The library's module, after a quick check that `build_engine` can work here with these options.

    Raises:
        MissingExtraError: the library is not installed.
        S2WrapError: the library lacks an option or target, or there is no GPU for TensorRT.
    """
    if kind == "tensorrt" and options.targets:
        raise S2WrapError(
            f"targets={','.join(options.targets)} are for .rtx files; TensorRT builds for the GPU it runs on: build "
            f"there, or use hardware_compatible for every GPU since Ampere"
        )
    if kind == "tensorrt" and not torch.cuda.is_available():
        raise S2WrapError(
            "TensorRT builds on the GPU that will run the engine, and this machine shows none; build there, or write "
            ".onnx or .rtx, which need no GPU"
        )
    if kind == "tensorrt_rtx" and options.timing_cache:
        raise S2WrapError(
            f"timing_cache={options.timing_cache} has no effect in TensorRT-RTX, which times nothing; leave it out"
        )
    if kind == "tensorrt_rtx" and options.version_compatible:
        raise S2WrapError("version_compatible is TensorRT's; an .rtx file runs only on the version that built it")
    if kind == "tensorrt_rtx" and options.hardware_compatible:
        raise S2WrapError('hardware_compatible is TensorRT\'s; for .rtx files name the GPUs in targets, e.g. "sm89"')
    trt = load_library(kind)
    if kind == "tensorrt_rtx":
        _find_targets_rtx(trt, options.targets)
    return trt


class _Build:
    """The library's objects for one build, which must stay alive together."""

    def __init__(self, trt: ModuleType, kind: str, path: Path, shown: str, bar: BuildBar):
        self.trt, self.kind, self.path, self.shown = trt, kind, path, shown
        self.logger = make_logger(trt)
        self.monitor = make_monitor(trt, bar)
        try:
            self.builder = trt.Builder(self.logger)
        except TypeError as error:  # the bindings raise this if the library returned a null pointer
            raise S2WrapError(f"{TITLES[kind]} cannot start here: {self.logger.tail()}") from error

    def parse(self, name: str) -> None:
        """Read the ONNX file into a strongly typed network."""
        trt, flags = self.trt, 0
        if self.kind == "tensorrt" and trt.__version__.startswith("10."):  # others always build strongly typed networks
            flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network = network = self.builder.create_network(flags)
        network.name = name
        self.parser = parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(self.path)):
            problems = [_problem_text(parser.get_error(index)) for index in range(parser.num_errors)]
            self.fail("cannot read", "; ".join(problems) or self.logger.tail())
        if not network.num_layers or not network.num_outputs:  # the parser accepts files without a graph
            self.fail("cannot read", "there is no graph in it; is it an ONNX file, and whole?")
        for index in range(network.num_layers):
            _allow_decomposing(trt, network.get_layer(index))

    def configure(self, tf32: bool, options: BuildOptions) -> None:
        """Set the options that both libraries have."""
        trt = self.trt
        self.config = config = self.builder.create_builder_config()
        config.progress_monitor = self.monitor
        if tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level

    def set_batch(self, batch: tuple[int, int, int]) -> None:
        """Set the smallest, most frequent and largest shape of every input."""
        profile = self.builder.create_optimization_profile()
        for index in range(self.network.num_inputs):
            tensor = self.network.get_input(index)
            shape = tuple(tensor.shape)
            if not shape or -1 in shape[1:]:
                self.fail(
                    "cannot build", f"input {tensor.name} is {shape}; the batch comes first, and only it may be open"
                )
            first, *rest = shape
            if first != -1 and set(batch) != {first}:
                requested = ":".join(map(str, batch))
                self.fail(
                    "cannot build",
                    f"its batch is always {first}, not {requested}; use {first}:{first}:{first}, or export "
                    "it with an open batch",
                )
            profile.set_shape(tensor.name, *((size, *rest) for size in batch))
        if self.config.add_optimization_profile(profile) < 0:
            self.fail("refuses these batches for", self.logger.tail())

    def set_targets_rtx(self, targets: Sequence[str]) -> None:
        """Set the GPU generations; without any, the library chooses."""
        capabilities = _find_targets_rtx(self.trt, targets)
        if targets:
            self.config.num_compute_capabilities = len(targets)
        for index, capability in enumerate(capabilities):
            if not self.config.set_compute_capability(capability, index):
                self.fail(f"cannot target {targets[index]} with", self.logger.tail())

    def serialize(self, timing_cache: Path | None) -> Any:
        """The bytes of the engine; the timing cache, if any, is read before and written after the build."""
        if timing_cache:
            self.read_timings(timing_cache)
        serialized = self.builder.build_serialized_network(self.network, self.config)
        if serialized is None:
            self.fail("cannot build", self.logger.tail())
        if timing_cache:
            with whole_file(timing_cache) as draft, disk_errors(timing_cache):
                draft.write_bytes(memoryview(self.config.get_timing_cache().serialize()))
        return serialized

    def read_timings(self, path: Path) -> None:
        """Load the timings of earlier builds, if the file exists."""
        try:
            content = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise S2WrapError(f"cannot read timing_cache={path}: {error.strerror or error}") from error
        self.timings = self.config.create_timing_cache(content)
        if self.timings is None or not self.config.set_timing_cache(self.timings, False):
            raise S2WrapError(
                f"timing_cache={path} is damaged, or from another TensorRT or GPU; delete it, or name another file: "
                f"{self.logger.tail()}"
            )

    def fail(self, problem: str, message: str) -> NoReturn:
        """Raise S2WrapError with the library's message, after an explanation if it is a known one."""
        for phrase, remedy in REMEDIES.items():
            if phrase in message:
                message = f"{remedy}. It said: {message}"
        raise S2WrapError(f"{TITLES[self.kind]} {self.trt.__version__} {problem} {self.shown}: {message}")


def _find_targets_rtx(trt: ModuleType, targets: Sequence[str]) -> list[Any]:
    """The compute capabilities of TensorRT-RTX for names such as "sm89"."""
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    unknown = [target for target in targets if target.lower() not in known]
    if unknown:
        raise S2WrapError(
            f"targets={','.join(targets)}: TensorRT-RTX {trt.__version__} has no {', '.join(unknown)}; "
            f"it has {', '.join(known)}"
        )
    return [known[target.lower()] for target in targets]


def _problem_text(problem: Any) -> str:
    """A parser error as text: operator, node and description."""
    node = f"{problem.node_operator()} (node {problem.node_name()}): " if problem.node_operator() else ""
    return node + problem.desc().strip()


def _allow_decomposing(trt: ModuleType, layer: Any) -> None:
    """Allow an attention layer to run as several kernels if there is no fused one; by default the build would fail."""
    if hasattr(trt, "IAttentionInputLayer") and layer.type == trt.LayerType.ATTENTION_INPUT:
        layer.__class__ = trt.IAttentionInputLayer  # the bindings return the base class; this casts it
        layer.attention.decomposable = True
