"""Sessions that run a TensorRT or TensorRT-RTX engine on tensors on the GPU."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.export.library import TITLES, load_library, make_logger
from s2wrap.export.ports import Port, Session
from s2wrap.files import disk_errors, whole_file

DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
"""Torch dtypes by TensorRT's names."""

REASONS_RTX = {
    1: "another version of TensorRT-RTX built it: build it again with this one",
    2: "it was not built for this GPU: build it again with this GPU among the targets",
    4: "the NVIDIA driver is too old: update it",
    8: "the CUDA runtime is too old: update it",
    16: "the GPU has too little memory",
    32: "it is damaged, or no TensorRT-RTX engine",
    64: "CUDA failed",
}
"""The meaning of the bits with which TensorRT-RTX explains why an engine is invalid."""

RECORDINGS = 8
"""The most CUDA graphs that a thread keeps, one a batch size, as each holds its inputs, outputs and workspace."""
_capture_lock = threading.Lock()


@dataclass(frozen=True)
class _Recording:
    """A captured `torch.cuda.CUDAGraph` for one batch size, its context, and the tensors that it reads and writes."""

    graph: Any
    context: Any
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class EngineSession(Session):
    """A session that runs an engine on one GPU. Threads share the weights; each has its own execution context.

    Attributes:
        note: a remark of the library if the engine is not optimal for this GPU; else empty.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        device: str | torch.device | None,
        *,
        cuda_graph: bool = False,
        runtime_cache: Path | None = None,
        eager: bool = False,
        host_code: bool = False,
    ):
        self.path, self.kind, self.note = path, kind, ""
        self.trt = trt = load_library(kind)
        self.device = cuda_device(path, device)
        self.cuda_graph, self.cache_path, self.cache, self.config = cuda_graph, runtime_cache, None, None
        self.logger = make_logger(trt)
        self.local, self.lock = threading.local(), threading.Lock()
        with torch.cuda.device(self.device):
            torch.empty(1, device=self.device)  # creates the CUDA context of the device
            self.engine = self._load(host_code)
            names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
            is_input = {name: self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
            self.inputs = tuple(self._port(name) for name in names if is_input[name])
            self.outputs = tuple(self._port(name) for name in names if not is_input[name])
            if not self.inputs:
                raise S2WrapError(f"{path} has no input; give an engine that s2wrap export wrote")
            low, usual, high = (shape[0] for shape in self.engine.get_tensor_profile_shape(self.inputs[0].name, 0))
            self.batch = (low, usual, high)  # for a fixed batch size, all three are equal
            if kind == "tensorrt_rtx":
                self._configure_rtx(eager)

    def save(self) -> None:
        """Write the kernels that TensorRT-RTX has compiled so far to the runtime cache; called after the first run.

        Call it again to save kernels compiled later, in the background or for other batch sizes.

        Raises:
            S2WrapError: there is no runtime cache, or the disk is full.
        """
        if self.cache is None or self.cache_path is None:
            raise S2WrapError(f"{self.path} was opened without runtime_cache; name a file there to save to")
        content = self.cache.serialize()
        if content is None:
            self._fail("cannot save its runtime cache for")
        with whole_file(self.cache_path) as draft, disk_errors(self.cache_path):
            draft.write_bytes(memoryview(content))

    def _load(self, host_code: bool) -> Any:
        try:
            self.runtime = runtime = self.trt.Runtime(self.logger)
        except TypeError:  # the bindings raise this if the library returned a null pointer
            self._fail("cannot start here to run")
        if host_code:
            runtime.engine_host_code_allowed = True
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise S2WrapError(f"cannot read {self.path}: {error.strerror or error}") from error
        if self.kind == "tensorrt_rtx":
            self._check_header_rtx(content)
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            self._fail(
                "cannot load",
                "another version built it, or it is for another GPU, or damaged, or no engine; export it again here",
            )
        return engine

    def _check_header_rtx(self, content: bytes) -> None:
        """Raise S2WrapError if the library finds the engine's header invalid for this machine."""
        if not hasattr(self.runtime, "get_engine_validity"):
            return
        validity, bits = self.runtime.get_engine_validity(content[: self.runtime.engine_header_size])
        if validity == self.trt.EngineValidity.INVALID:
            reasons = [reason for bit, reason in REASONS_RTX.items() if bits & bit]
            self._fail("cannot run", "; ".join(reasons))
        if validity == self.trt.EngineValidity.SUBOPTIMAL:
            self.note = "it runs, but an engine built with this GPU among the targets would be faster"

    def _configure_rtx(self, eager: bool) -> None:
        """Set the runtime configuration of all contexts: kernel compilation, CUDA graphs and the runtime cache."""
        trt = self.trt
        self.config = config = self.engine.create_runtime_config()
        if eager:
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if self.cuda_graph:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self.unsaved = False
        if self.cache_path:
            if not self.cache_path.resolve().parent.is_dir():
                raise S2WrapError(f"runtime_cache={self.cache_path}: there is no such folder")
            self.cache = config.create_runtime_cache()
            content = self.cache_path.read_bytes() if self.cache_path.is_file() else b""
            self.unsaved = not (content and self.cache.deserialize(content))  # replaced if of another GPU or version
            config.set_runtime_cache(self.cache)

    def _port(self, name: str) -> Port:
        dtype = self.engine.get_tensor_dtype(name).name
        first, *rest = shape = tuple(self.engine.get_tensor_shape(name))
        if dtype not in DTYPES or -1 in rest:
            raise S2WrapError(f"{self.path}: {name} is {dtype} of {shape}; only the first dimension may be open")
        return Port(name, DTYPES[dtype], ("batch" if first == -1 else first, *rest))

    def _run(self, inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        with torch.cuda.device(self.device):
            self._follow_stream()
            if self.cuda_graph and self.kind == "tensorrt":
                return self._replay(inputs, batch)
            if not hasattr(self.local, "context"):
                self.local.context = self._new_context()
            outputs = self._new_outputs(batch)
            self._enqueue(self.local.context, inputs, outputs)
        if self.cache is not None:
            with self.lock:
                must_save, self.unsaved = self.unsaved, False
            if must_save:
                self.save()
        return outputs

    def _follow_stream(self) -> None:
        """Wait for this thread's last run if it was on another stream, as both use the same workspace."""
        stream = torch.cuda.current_stream(self.device)
        previous, self.local.stream = getattr(self.local, "stream", stream), stream
        if previous != stream:
            stream.wait_stream(previous)

    def _new_context(self) -> Any:
        config = () if self.config is None else (self.config,)
        context = self.engine.create_execution_context(*config)
        if context is None:
            self._fail("cannot prepare to run", "the GPU's memory may be full")
        return context

    def _enqueue(self, context: Any, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """Enqueue a run on the current stream."""
        ready = all(context.set_input_shape(name, tuple(tensor.shape)) for name, tensor in inputs.items())
        for name, tensor in (inputs | outputs).items():
            ready = ready and context.set_tensor_address(name, tensor.data_ptr())
        if not ready or not context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            self._fail("failed to run")

    def _replay(self, inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        """The outputs of the CUDA graph for this batch size, which each thread captures on first use."""
        recordings = self.local.__dict__.setdefault("recordings", OrderedDict())
        if batch not in recordings:
            while len(recordings) >= RECORDINGS:
                torch.cuda.current_stream(self.device).synchronize()  # it may still be replayed
                recordings.popitem(last=False)
            recordings[batch] = self._record(inputs, batch)
        recordings.move_to_end(batch)
        recording = recordings[batch]
        for name, tensor in inputs.items():
            recording.inputs[name].copy_(tensor)
        recording.graph.replay()
        return {name: tensor.clone() for name, tensor in recording.outputs.items()}

    def _record(self, inputs: dict[str, Tensor], batch: int) -> _Recording:
        """A CUDA graph of a run, captured after one ordinary run for TensorRT's lazy initialisation."""
        context = self._new_context()
        with torch.inference_mode(False):  # inference tensors cannot be written to outside of that mode
            outputs, static = self._new_outputs(batch), {name: tensor.clone() for name, tensor in inputs.items()}
        current, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._enqueue(context, static, outputs)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with _capture_lock, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            self._enqueue(context, static, outputs)
        return _Recording(graph, context, static, outputs)

    def _fail(self, problem: str, explanation: str = "") -> NoReturn:
        explanation += ". " if explanation else ""
        title = f"{TITLES[self.kind]} {self.trt.__version__}"
        raise S2WrapError(f"{title} {problem} {self.path}: {explanation}It said: {self.logger.tail()}")


def cuda_device(path: Path, device: str | torch.device | None) -> torch.device:
    """The CUDA device to run on, with its index; S2WrapError if there is none."""
    requested = torch.device(device or "cuda")
    if requested.type != "cuda":
        raise S2WrapError(
            f"device={device} cannot run {path.name}, which needs a CUDA device; export .onnx for the CPU"
        )
    if not torch.cuda.is_available():
        raise S2WrapError(
            f"{path.name} needs an NVIDIA GPU, and this machine shows none; export .onnx to run on the CPU"
        )
    index = torch.cuda.current_device() if requested.index is None else requested.index
    if index >= torch.cuda.device_count():
        raise S2WrapError(f"device={device} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)
