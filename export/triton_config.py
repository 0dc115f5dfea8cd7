"""The config.pbtxt of a model on Triton Inference Server, as Triton's own protobuf message, so that it is valid."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2wrap.errors import MissingExtraError
from s2wrap.export.engine import Engine
from s2wrap.export.manifest import input_from
from s2wrap.export.options import TritonOptions
from s2wrap.export.ports import Port, Session
from s2wrap.export.triton_model import outputs_of

DTYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
}


def messages() -> Any:
    """The module of Triton's messages; MissingExtraError if tritonclient is not installed."""
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingExtraError("tritonclient[grpc]", "triton") from error
    return model_config_pb2


def model_config(manifest: dict[str, Any], options: TritonOptions) -> Any:
    """The config (`ModelConfig`) of a file with this manifest."""
    return _python(manifest, options) if options.backend == "python" else _native(manifest, options)


def text_of(config: Any) -> str:
    """A config as the text of config.pbtxt."""
    from google.protobuf import text_format

    return text_format.MessageToString(config)


def limits_of(manifest: dict[str, Any]) -> tuple[int, int, int]:
    """The smallest, most frequent and largest batch of a file: its graph's own where that is fixed."""
    sizes = [tensor["shape"][0] for tensor in manifest["inputs"]]
    low, usual, high = manifest["batch"]
    for size in sizes:
        if isinstance(size, int):
            low = usual = high = size
    return low, usual, high


def takes_pictures(manifest: dict[str, Any]) -> bool:
    """Whether a file can be given the pictures in files: mean and std are known, and its pixels are not uint16."""
    return input_from(manifest).normalises and manifest["pixels"] != "uint16"


def _native(manifest: dict[str, Any], options: TritonOptions) -> Any:
    """The config for Triton's own backends."""
    onnx = manifest["kind"] == "onnx"
    config = _begun(manifest, options, "KIND_AUTO" if onnx else "KIND_GPU")
    if onnx:
        config.backend = "onnxruntime"
    else:
        config.platform = "tensorrt_plan"
    for tensor in manifest["inputs"]:
        config.input.add(name=tensor["name"], data_type=DTYPES[tensor["dtype"]], dims=_dims(tensor))
    for tensor in manifest["outputs"]:
        config.output.add(name=tensor["name"], data_type=DTYPES[tensor["dtype"]], dims=_dims(tensor))
    for size in _sizes(manifest):
        warmup = config.model_warmup.add(name=f"a batch of {size}", batch_size=size)
        for tensor in manifest["inputs"]:
            _warm(warmup.inputs[tensor["name"]], tensor["dtype"], _dims(tensor)).random_data = True
    if options.cuda_graphs:
        config.optimization.cuda.graphs = True
        for size in _sizes(manifest):
            spec = config.optimization.cuda.graph_spec.add(batch_size=size)
            for tensor in manifest["inputs"]:
                spec.input[tensor["name"]].dim.extend(_dims(tensor))
    return config


def _python(manifest: dict[str, Any], options: TritonOptions) -> Any:
    """The config for `s2wrap.export.triton_model` in Triton's python backend.

    Requests with images of different sizes share a batch ("ragged"). Files travel as bytes (UINT8), not as strings:
    the python backend of many servers crashes on strings under NumPy 2.
    """
    on_cpu = manifest["kind"] == "onnx" or manifest.get("build", {}).get("device") == "cpu"
    config = _begun(manifest, options, "KIND_CPU" if on_cpu else "KIND_GPU")
    config.backend = "python"
    known, files, (height, width) = input_from(manifest), takes_pictures(manifest), manifest["image_hw"]
    floats = manifest["pixels"] == "float32"
    dims = [known.channels, -1, -1] if floats else [-1, -1, known.channels]
    dtype = DTYPES[manifest["pixels"]]
    config.input.add(name="images", data_type=dtype, dims=dims, optional=files, allow_ragged_batch=True)
    if files:
        config.input.add(name="pictures", data_type="TYPE_UINT8", dims=[-1], optional=True, allow_ragged_batch=True)
    for name, tensor in _outputs(manifest).items():
        sizes = list(tensor.shape[1:])
        if manifest["part"] == "tiles" and not name.startswith(("prefix", "pooled")):
            sizes[1:] = [-1, -1]  # a picture's shape may decide
        config.output.add(name=name, data_type=DTYPES[str(tensor.dtype).removeprefix("torch.")], dims=sizes)
    size = [known.channels, height, width] if floats else [height, width, known.channels]
    for count in _sizes(manifest):
        warmup = config.model_warmup.add(name=f"a batch of {count}", batch_size=count)
        _warm(warmup.inputs["images"], manifest["pixels"], size).zero_data = True  # random floats may be refused
    config.parameters["max_pixels"].string_value = str(options.max_pixels)
    return config


def _begun(manifest: dict[str, Any], options: TritonOptions, kind: str) -> Any:
    """A config with what all backends have: name, batches, instances and the manifest."""
    largest = limits_of(manifest)[2]
    config = messages().ModelConfig(name=options.name, max_batch_size=largest)
    config.instance_group.add(count=options.instances, kind=kind)
    if largest > 1:
        config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay_us
        config.dynamic_batching.preferred_batch_size.extend(size for size in _sizes(manifest) if size > 1)
    config.parameters["s2wrap"].string_value = json.dumps(manifest)
    return config


def _sizes(manifest: dict[str, Any]) -> list[int]:
    """The batch sizes to prepare for."""
    _, usual, largest = limits_of(manifest)
    return sorted({1, usual, largest})


def _dims(tensor: dict[str, Any]) -> list[int]:
    """The shape of a tensor without the batch dimension; -1 for dynamic sizes."""
    return [size if isinstance(size, int) else -1 for size in tensor["shape"][1:]]


def _warm(entry: Any, dtype: str, dims: list[int]) -> Any:
    """An input of a warm-up request, with its type and shape."""
    entry.data_type = messages().DataType.Value(DTYPES[dtype])
    entry.dims.extend(dims)
    return entry


def _outputs(manifest: dict[str, Any]) -> dict[str, Tensor]:
    """The outputs of the python backend for one image, by name: zeros of the right shapes and types."""
    known = input_from(manifest)
    engine = Engine(_ZeroSession(manifest), manifest)
    pixels = {"float32": torch.float32, "uint8": torch.uint8, "uint16": torch.uint16}[manifest["pixels"]]
    (features,) = engine.encode([torch.zeros(known.channels, *manifest["image_hw"], dtype=pixels)])
    return outputs_of(features, manifest)


class _ZeroSession(Session):
    """Gives zeros of the shapes that a manifest says, without the file and its library."""

    def __init__(self, manifest: dict[str, Any]):
        self.path, self.device = Path(manifest.get("file", "the file")), torch.device("cpu")
        self.batch = limits_of(manifest)
        self.inputs, self.outputs = (
            tuple(Port(each["name"], getattr(torch, each["dtype"]), tuple(each["shape"])) for each in manifest[ports])
            for ports in ("inputs", "outputs")
        )

    def _run(self, inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        return {name: tensor.zero_() for name, tensor in self._new_outputs(batch).items()}
