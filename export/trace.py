"""A graph module → an ONNX file: by PyTorch's exporter, without what it notes about its own machine."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.export.graph import ModelGraph, TilesGraph

OPSETS = range(20, 24)
"""20 is the first with GELU as one operator, 22 the first with bfloat16 convolutions, 23 the first with Attention."""
LARGEST_FILE = 1_900_000_000
"""Bytes; a protobuf ends at 2 GB. Larger weights go to a file of their own beside it."""


def trace(graph: ModelGraph | TilesGraph, *, opset: int) -> Any:
    """The ONNX model of a graph module, with a dynamic batch; the same bytes each time.

    Args:
        graph: its input is named `images`, or `tiles` for the backbone alone; its outputs as its `names` say.
        opset: 20 to 23; bfloat16 needs 22.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        S2WrapError: another opset; a model that cannot be exported: which operator, and where.
    """
    try:
        import onnx  # noqa: F401 (torch.onnx needs both)
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnx with onnxscript", "export") from error
    name = graph.backbone.name
    lowest = 22 if graph.dtype == torch.bfloat16 else OPSETS[0]
    if opset not in OPSETS or opset < lowest:
        raise S2WrapError(f"opset={opset} for a graph in {graph.dtype}; use {lowest} to {OPSETS[-1]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (graph.example(2),),  # a batch of one would be taken for a constant
                input_names=[graph.input],
                output_names=list(graph.names),
                dynamic_shapes=({0: "batch"},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise S2WrapError(f"{name} cannot be exported to ONNX: {_reason(error)}") from error
    if program is None:
        raise S2WrapError(f"{name} cannot be exported to ONNX: the exporter gave no program")
    proto = program.model_proto
    _strip(proto)
    return proto


def save(proto: Any, path: Path, *, note: str) -> None:
    """Write an ONNX model with a note in its metadata; weights that no single file holds go to `path`.data."""
    import onnx

    onnx.helper.set_model_props(proto, {"s2wrap": note})
    apart = proto.ByteSize() > LARGEST_FILE
    target = copy.deepcopy(proto) if apart else proto  # writing apart takes the weights out
    onnx.save(target, path, save_as_external_data=apart, location=f"{path.name}.data", size_threshold=1024)


def is_quantised(proto: Any) -> bool:
    """Whether a graph has integer or 8-bit values between QuantizeLinear and DequantizeLinear."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in proto.graph.node)


def widen(path: Path, target: Path) -> None:
    """Write a graph in bfloat16 with the same values in float32: ONNX Runtime runs that on any CPU."""
    import onnx
    from onnx import numpy_helper

    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    proto = onnx.load(path)

    def widen_values(tensor: Any) -> None:
        if tensor.data_type == narrow:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))

    for tensor in proto.graph.initializer:
        widen_values(tensor)
    for value in (*proto.graph.value_info, *proto.graph.output):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = wide
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widen_values(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i == narrow:
                attribute.i = wide
    save(proto, target, note="")


def _reason(error: BaseException) -> str:
    """What the exporter met, at the root: the operator or the branch, and the line of the model's code."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = [line for line in lines if line.startswith(("File ", "%", "target:", "While executing"))]
    return " · ".join([first_line(error), *where[-1:]])


def _strip(proto: Any) -> None:
    """Remove what the exporter notes about its own machine: stack traces and local paths."""
    del proto.metadata_props[:]
    for part in (proto.graph, *proto.functions):
        del part.metadata_props[:]
        for item in (*part.node, *getattr(part, "value_info", ()), *getattr(part, "initializer", ())):
            del item.metadata_props[:]
            item.doc_string = ""
    for item in (*proto.graph.input, *proto.graph.output):
        del item.metadata_props[:]
