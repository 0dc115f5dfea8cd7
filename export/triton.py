"""Model folders for Triton Inference Server: an exported file with a config.pbtxt that fits its batch profile."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.export.manifest import kind_of, read_manifest
from s2wrap.export.options import GraphOptions, TritonOptions, takes_two_and_options
from s2wrap.files import check_free, whole_folder
from s2wrap.options import make_options

DTYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
}


@takes_two_and_options(TritonOptions)
def write_repository(file: str | Path, folder: str | Path, **options: Any) -> Path:
    """Add an exported file to a model repository of Triton Inference Server, and return the new model folder.

    `folder/NAME` gets `config.pbtxt` and, as version 1, a copy of the file: `1/model.plan`, `1/model.onnx`, or the
    folder `1/model.onnx` for an ONNX model with separate weights (FILE.data). Requests are batched dynamically up to
    MAX of the batch profile; the server warms up with batches of 1, OPT and MAX. The parameter `s2wrap` holds the
    manifest.

    Args:
        file: an .onnx, .plan or .engine file with its manifest beside it.
        folder: the repository (`tritonserver --model-repository=FOLDER`); created if it does not exist.
        **options: of `TritonOptions`.

    Raises:
        MissingExtraError: tritonclient is not installed.
        S2WrapError: Triton cannot serve the file, its smallest batch size is not 1, an option is invalid, the model
            folder exists already and is not to be overwritten, or the disk cannot be written to.
    """
    file, folder = Path(file), Path(folder)
    chosen = _named(make_options(TritonOptions, "write_repository()", options), file)
    manifest = read_manifest(file)
    _check(file, manifest, chosen)
    config = _config(manifest, chosen)
    with whole_folder(folder / str(chosen.name), replace=chosen.overwrite) as draft:
        (draft / "config.pbtxt").write_text(config, encoding="utf-8")
        _copy_model(file, draft / "1", "model.onnx" if manifest["kind"] == "onnx" else "model.plan")
    return folder / str(chosen.name)


def check_repository(file: Path, folder: Path, graph: GraphOptions, options: TritonOptions) -> None:
    """Raise the errors of `write_repository` before the file exists, from the options of its graph."""
    options = _named(options, file)
    dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[graph.precision]
    output = {"name": "spatial", "dtype": dtype, "shape": ["batch"]}
    manifest = {"kind": kind_of(file), "batch": graph.batch, "inputs": [], "outputs": [output]}
    _check(file, manifest, options)
    _config(manifest, options)
    if not options.overwrite:
        check_free(folder / str(options.name))


def _named(options: TritonOptions, file: Path) -> TritonOptions:
    """The options with a name, by default that of the file."""
    return options if options.name else replace(options, name=file.stem)


def _check(file: Path, manifest: dict[str, Any], options: TritonOptions) -> None:
    """Raise S2WrapError for a file that Triton would reject or handle wrongly."""
    kind, (smallest, _, largest) = manifest["kind"], manifest["batch"]
    if kind == "tensorrt_rtx":
        raise S2WrapError(
            f"{file} is for TensorRT-RTX, and Triton has no backend for it; export a .plan on the GPU that serves, or "
            f"an .onnx"
        )
    if smallest != 1:
        raise S2WrapError(
            f"{file} takes batches of {smallest} to {largest}, but Triton sends single requests too; export with a "
            f"batch of 1:{manifest['batch'][1]}:{largest}"
        )
    tensors = [*manifest["inputs"], *manifest["outputs"]]
    if kind == "onnx" and any(tensor["dtype"] == "bfloat16" for tensor in tensors):
        raise S2WrapError(
            f"{file} has bfloat16 inputs or outputs, which Triton's ONNX Runtime backend refuses; export with "
            f"precision fp16 or fp32, or a .plan"
        )
    if options.cuda_graphs and kind != "tensorrt":
        raise S2WrapError(f"cuda_graphs=True with {file}: only Triton's TensorRT backend has them; export a .plan")


def _config(manifest: dict[str, Any], options: TritonOptions) -> str:
    """The text of config.pbtxt, from Triton's own protobuf message, so that it is valid."""
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingExtraError("tritonclient[grpc]", "triton") from error
    pb: Any = model_config_pb2  # its classes are created when it is imported
    _, usual, largest = manifest["batch"]
    sizes = sorted({1, usual, largest})
    config = pb.ModelConfig(name=options.name, max_batch_size=largest)
    if manifest["kind"] == "onnx":
        config.backend = "onnxruntime"
    else:
        config.platform = "tensorrt_plan"
    for tensor in manifest["inputs"]:
        config.input.add(name=tensor["name"], data_type=DTYPES[tensor["dtype"]], dims=_dims(tensor))
    for tensor in manifest["outputs"]:
        config.output.add(name=tensor["name"], data_type=DTYPES[tensor["dtype"]], dims=_dims(tensor))
    config.instance_group.add(count=options.instances, kind="KIND_AUTO" if manifest["kind"] == "onnx" else "KIND_GPU")
    if largest > 1:
        config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay_us
        config.dynamic_batching.preferred_batch_size.extend(size for size in sizes if size > 1)
    for size in sizes:
        warmup = config.model_warmup.add(name=f"a batch of {size}", batch_size=size)
        for tensor in manifest["inputs"]:
            warmup_input = warmup.inputs[tensor["name"]]
            warmup_input.data_type, warmup_input.random_data = pb.DataType.Value(DTYPES[tensor["dtype"]]), True
            warmup_input.dims.extend(_dims(tensor))
    if options.cuda_graphs:
        config.optimization.cuda.graphs = True
        for size in sizes:
            spec = config.optimization.cuda.graph_spec.add(batch_size=size)
            for tensor in manifest["inputs"]:
                spec.input[tensor["name"]].dim.extend(_dims(tensor))
    config.parameters["s2wrap"].string_value = json.dumps(manifest)
    return text_format.MessageToString(config)


def _dims(tensor: dict[str, Any]) -> list[int]:
    """The shape of a tensor without the batch dimension; -1 for dynamic sizes."""
    return [size if isinstance(size, int) else -1 for size in tensor["shape"][1:]]


def _copy_model(file: Path, version: Path, name: str) -> None:
    """Copy the file; with separate weights, both go into a folder of the model's name."""
    weights = file.with_name(f"{file.name}.data")
    folder = version / name if name == "model.onnx" and weights.exists() else version
    folder.mkdir(parents=True)
    shutil.copyfile(file, folder / name)
    if folder != version:
        shutil.copyfile(weights, folder / weights.name)  # the graph refers to this name
