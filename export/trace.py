"""ONNX files from graph modules, by PyTorch's exporter, without details of the local machine."""

import warnings
from pathlib import Path
from typing import Any

import torch

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.export.graph import Graph

OPSETS = range(20, 24)
"""20 introduced GELU as an operator, 22 bfloat16 convolutions, and 23 Attention."""
QUANTISED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantize",
    "MatMulInteger",
    "ConvInteger",
    "QLinear",
    "QGemm",
)
"""What the names of operators of quantised graphs begin with."""
LARGEST_FILE = 1_900_000_000
"""Bytes; a protobuf holds at most 2 GB, so larger weights go to a separate file."""


def trace(graph: Graph, *, opset: int, weights: Path | None = None) -> Any:
    """The ONNX model of a graph module, with a dynamic batch size; deterministic.

    Args:
        graph: the module; the input is named `images`, or `tiles` for the backbone alone, the outputs as in `names`.
        opset: 20 to 23; bfloat16 needs 22 or later.
        weights: a file for the weights of a graph that is too large for one; they are written to it without a copy in
            memory, and the model refers to it by its name.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        S2WrapError: the opset is another one, or the model cannot be exported; the message names the operator.
    """
    try:
        import onnx  # noqa: F401 (torch.onnx needs both)
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("onnx with onnxscript", "export") from error
    name = graph.backbone.name + (f" with head={type(graph.head).__name__}" if graph.head is not None else "")
    lowest = 22 if graph.dtype == torch.bfloat16 else OPSETS[0]
    if opset not in OPSETS or opset < lowest:
        raise S2WrapError(f"opset={opset} for a graph in {graph.dtype}; use {lowest} to {OPSETS[-1]}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                (graph.example(2),),  # a batch size of 1 would be treated as a constant
                input_names=[graph.input_name],
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
    proto = _unload(program.model, weights) if weights is not None else program.model_proto
    _strip(proto)
    swap_transposes(proto)
    split_bounds(proto)
    return proto


def _unload(model: Any, weights: Path) -> Any:
    """The ONNX model of a model in the exporter's own form, whose weights go to a file if they are too large."""
    import onnx_ir

    if sum(value.const_value.nbytes for value in model.graph.initializers.values()) > LARGEST_FILE:
        onnx_ir.external_data.unload_from_model(model, weights.parent, weights.name, size_threshold_bytes=1024)
    return onnx_ir.to_proto(model)


def swap_transposes(proto: Any) -> None:
    """Move Transpose nodes that exchange the first two of three dimensions behind a product with a matrix.

    X ↦ Xᵀ · W is (X · W)ᵀ where T leaves the last dimension alone. ONNX Runtime 1.32 ends with a segmentation fault
    on a CPU when it loads float16 graphs in which such a Transpose comes first, as in the attention of PyTorch's
    nn.MultiheadAttention.
    """
    graph = proto.graph
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    transposes = {node.output[0]: node for node in graph.node if _exchanges_two(node)}
    known = {value.name: value for value in graph.value_info}
    nodes: list[Any] = []
    for node in graph.node:
        transpose = transposes.get(node.input[0]) if node.op_type == "MatMul" else None
        if transpose is None or node.input[1] not in matrices:
            nodes.append(node)
            continue
        output, product = node.output[0], f"{node.output[0]}_swapped"
        node.input[0], node.output[0] = transpose.input[0], product
        after = type(node)()
        after.CopyFrom(transpose)
        after.name, after.input[0], after.output[0] = f"{node.name}_transposed", product, output
        nodes += [node, after]
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    nodes = [node for node in nodes if node.output[0] in used or node.output[0] not in transposes]
    del graph.node[:]
    graph.node.extend(nodes)
    for name in (set(transposes) - used) & set(known):
        graph.value_info.remove(known[name])


def split_bounds(proto: Any) -> None:
    """Make every Relu or Clip before a QuantizeLinear of fp8 a Max and a Min, which are the same.

    ONNX Runtime 1.32 removes such a Relu, as if the codes began at 0, so that the outputs are wrong; and it refuses to
    load a graph with such a Clip.
    """
    import onnx

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    fp8 = {name for name, tensor in constants.items() if tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN}
    scales = {
        node.input[0]: constants[node.input[1]]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and fp8.intersection(node.input[2:])
    }
    nodes: list[Any] = []
    for node in proto.graph.node:
        nodes.append(node)
        if node.op_type not in ("Relu", "Clip") or node.output[0] not in scales:
            continue
        bounds, output = [*node.input[1:], "", ""][:2], node.output[0]
        if node.op_type == "Relu":
            zero = onnx.helper.make_tensor(f"{output}_least", scales[output].data_type, [], [0.0])
            proto.graph.initializer.append(zero)
            bounds = [zero.name, ""]
        parts = [part for part in zip(("Max", "Min"), bounds, strict=True) if part[1]]
        names = [node.input[0], *(f"{output}_{operator.lower()}" for operator, _ in parts[:-1]), output]
        nodes[-1:] = [
            onnx.helper.make_node(operator, [before, bound], [after], name=f"{node.name}_{operator.lower()}")
            for (operator, bound), before, after in zip(parts, names[:-1], names[1:], strict=True)
        ] or [node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _exchanges_two(node: Any) -> bool:
    """Whether a node is a Transpose with the permutation 1, 0, 2."""
    return node.op_type == "Transpose" and [list(each.ints) for each in node.attribute] == [[1, 0, 2]]


def save(proto: Any, path: Path, *, note: str, weights: str) -> bool:
    """Write an ONNX model with `note` in its metadata, and return whether its weights are in a file apart.

    Args:
        proto: the model; it loses its weights if they go to a file apart.
        path: its file.
        note: the text of its metadata.
        weights: the name of a file beside it, for weights too large for one file, or that `trace` has written.
    """
    import onnx

    onnx.helper.set_model_props(proto, {"s2wrap": note})
    tensors = proto.graph.initializer
    unloaded = any(tensor.external_data for tensor in tensors)
    large = sum(len(tensor.raw_data) for tensor in tensors) > LARGEST_FILE
    onnx.save(proto, path, save_as_external_data=large, location=weights, size_threshold=1024)
    return unloaded or large


def is_quantised(proto: Any) -> bool:
    """Whether a graph is quantised: by Q/DQ, or by operators that work on integers, as dynamic quantisation does."""
    return any(node.op_type.startswith(QUANTISED) for node in proto.graph.node)


def widen(path: Path, target: Path) -> None:
    """Write a bfloat16 graph with the same weights in float32, which ONNX Runtime can run on any CPU."""
    import onnx
    from onnx import numpy_helper

    bfloat16, float32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    proto = onnx.load(path)

    def widen_values(tensor: Any) -> None:
        if tensor.data_type == bfloat16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))

    for tensor in proto.graph.initializer:
        widen_values(tensor)
    for value in (*proto.graph.value_info, *proto.graph.output):
        if value.type.tensor_type.elem_type == bfloat16:
            value.type.tensor_type.elem_type = float32
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                widen_values(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i == bfloat16:
                attribute.i = float32
    save(proto, target, note="", weights=f"{target.name}.data")


def _reason(error: BaseException) -> str:
    """The root cause of an exporter error: its message, and the operator or line of code where it occurred."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    locations = [line for line in lines if line.startswith(("File ", "%", "target:", "While executing"))]
    return " · ".join([first_line(error), *locations[-1:]])


def _strip(proto: Any) -> None:
    """Remove the metadata of the exporter, which holds stack traces and local paths."""
    del proto.metadata_props[:]
    for part in (proto.graph, *proto.functions):
        del part.metadata_props[:]
        for item in (*part.node, *getattr(part, "value_info", ()), *getattr(part, "initializer", ())):
            del item.metadata_props[:]
            item.doc_string = ""
    for item in (*proto.graph.input, *proto.graph.output):
        del item.metadata_props[:]
