"""Sessions that run an exported file with ONNX Runtime, TensorRT, TensorRT-RTX or PyTorch."""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.export.aot_session import AotSession
from s2wrap.export.engine_session import EngineSession
from s2wrap.export.library import TITLES
from s2wrap.export.ports import Port, Session
from s2wrap.scales import whole_number

__all__ = ["AotSession", "EngineSession", "OnnxSession", "Port", "Session", "open_session"]

DTYPES = {
    "float": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "double": torch.float64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
"""Torch dtypes by ONNX Runtime's names."""

ONNX_CODES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.uint16: 4,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
}
"""ONNX element types by torch dtype; numpy dtypes would not do, as there is no bfloat16."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "onnx": ("threads",),
    "tensorrt": ("cuda_graph", "host_code"),
    "tensorrt_rtx": ("cuda_graph", "runtime_cache", "eager"),
    "aotinductor": (),
}
"""The options of `open_session` for each kind of file."""


class OnnxSession(Session):
    """A session in ONNX Runtime on the CPU or a CUDA device, which reads and writes tensors without copies."""

    def __init__(self, path: Path, device: torch.device, threads: int | None = None):
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime, which runs .onnx files,", "export") from error
        self.path = path
        self.device = _indexed_device(device)
        provider: Any = "CPUExecutionProvider"
        if device.type == "cuda":
            provider = ("CUDAExecutionProvider", {"device_id": device.index or 0})
            available = onnxruntime.get_available_providers()
            if provider[0] not in available:
                raise S2WrapError(
                    f"device={device} needs ONNX Runtime with CUDA, but the installed one has {', '.join(available)}; "
                    "install onnxruntime-gpu in place of onnxruntime, or use device=cpu"
                )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # its errors have no common base class
            raise _onnx_error(path, device, error) from error
        self.inputs = tuple(_onnx_port(path, node) for node in self.session.get_inputs())
        self.outputs = tuple(_onnx_port(path, node) for node in self.session.get_outputs())
        first = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else "batch"
        self.batch = (first, first, first) if isinstance(first, int) else None

    def _run(self, inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        outputs = self._new_outputs(batch)
        binding = self.session.io_binding()
        device = (self.device.type, self.device.index or 0)
        for name, tensor in inputs.items():
            binding.bind_input(name, *device, ONNX_CODES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        for name, tensor in outputs.items():
            binding.bind_output(name, *device, ONNX_CODES[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # ONNX Runtime uses a stream of its own
        try:
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise _onnx_error(self.path, self.device, error) from error
        return outputs


def open_session(
    path: Path,
    *,
    kind: str,
    device: str | torch.device | None = None,
    cuda_graph: bool = False,
    runtime_cache: Path | None = None,
    eager: bool = False,
    host_code: bool = False,
    threads: int | None = None,
) -> Session:
    """A session for an exported file.

    Args:
        path: the file.
        kind: "onnx", "tensorrt", "tensorrt_rtx" or "aotinductor".
        device: the device; by default the CPU for ONNX, the current CUDA device for engines, and what a package was
            compiled for.
        cuda_graph: whether to capture a CUDA graph for each batch size and replay it; engines only.
        runtime_cache: file for the compiled kernels of TensorRT-RTX, read if it exists, written after the first run.
        eager: whether TensorRT-RTX compiles the fastest kernels for each new batch size at once. Otherwise it starts
            with general kernels and compiles the fastest in the background: right for serving, wrong for timing.
        host_code: whether to load version-compatible TensorRT engines, which contain CPU code: trust the file.
        threads: how many threads of the CPU ONNX Runtime uses in one operator; by default one a core. A
            package uses PyTorch's: `torch.set_num_threads`.

    Raises:
        MissingExtraError: the library is not installed.
        S2WrapError: the file is missing, damaged, or for another version or GPU; or an option is not for its kind.
    """
    if not path.is_file():
        raise S2WrapError(f"{path} is not there; give a file that s2wrap export wrote")
    options: dict[str, Any] = {
        "cuda_graph": cuda_graph,
        "runtime_cache": runtime_cache,
        "eager": eager,
        "host_code": host_code,
        "threads": threads,
    }
    for name, value in options.items():
        if value and name not in OPTIONS[kind]:
            fitting = " or ".join(other for other, names in OPTIONS.items() if name in names)
            hint = ": torch.set_num_threads() counts there" if (name, kind) == ("threads", "aotinductor") else ""
            raise S2WrapError(f"{name}={value} does not fit {path}, which is {kind}; it is for {fitting}{hint}")
    chosen = {name: options[name] for name in OPTIONS[kind]}
    if threads is not None and (whole_number(threads) or 0) < 1:
        raise S2WrapError(f"threads={threads!r} is no number of threads; use 1 or more")
    if kind == "onnx":
        session: Session = OnnxSession(path, torch.device(device or "cpu"), **chosen)
    elif kind == "aotinductor":
        session = AotSession(path, device)
    else:
        session = EngineSession(path, kind, device, **chosen)
    session.reopen = partial(open_session, path.absolute(), kind=kind, device=device, **chosen)
    return session


def runner_of(session: Session, kind: str) -> str:
    """What runs a file, in words, such as "ONNX Runtime 1.32.0 on the CPU"."""
    library = import_module({"onnx": "onnxruntime", "aotinductor": "torch"}.get(kind, kind))
    device = "the CPU" if session.device.type == "cpu" else torch.cuda.get_device_name(session.device)
    return f"{TITLES.get(kind, 'ONNX Runtime')} {library.__version__} on {device}"


def _indexed_device(device: torch.device) -> torch.device:
    """The device with its index, as in the attribute of a tensor."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise S2WrapError(f"device={device} needs an NVIDIA GPU, and this machine shows none; use device=cpu")
    return torch.empty(0, device=device).device


def _onnx_port(path: Path, node) -> Port:
    """The port for an input or output of ONNX Runtime; any first dimension that is not a number is the batch."""
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    first, *rest = node.shape or [None]
    if dtype not in DTYPES or not all(isinstance(size, int) for size in rest):
        raise S2WrapError(f"{path}: {node.name} is {node.type} of {node.shape}; only the first dimension may be open")
    shape = [first if isinstance(first, int) else "batch", *rest][: len(node.shape)]
    return Port(node.name, DTYPES[dtype], tuple(shape))


def _onnx_error(path: Path, device: torch.device, error: Exception) -> S2WrapError:
    message = first_line(error)
    if "NOT_IMPLEMENTED" in message or "Could not find an implementation" in message:
        return S2WrapError(
            f"ONNX Runtime cannot run {path} on {device}: it has no kernel for one of the operators there (on the CPU "
            f"it has none for bfloat16; use device=cuda, or fp32 or fp16). It said: {message}"
        )
    return S2WrapError(f"ONNX Runtime cannot run {path}; is the file whole? It said: {message}")
