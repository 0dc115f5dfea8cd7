"""A wrapped model → one ONNX graph: image in, features out, the backbone called once."""

import copy
import json
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.files import disk_errors, whole_file
from s2wrap.wrapper import MultiScale

OPSET = 20
"""The first opset with GELU as one operator; every runtime of the last two years reads it."""


class _Outputs(nn.Module):
    """Features as plain tensors: spatial, then prefix where there are prefix tokens."""

    def __init__(self, model: MultiScale):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.model(images)
        return (*features.maps, *(prefix for prefix in features.prefixes if prefix.shape[1]))


def to_onnx(model: MultiScale, path: str | Path, *, image_hw: tuple[int, int] | None = None) -> None:
    """Write a wrapped model as one ONNX file: float32, any batch, one image size.

    The graph's input is `images` (batch, 3, height, width), normalised as for the model; its outputs are `spatial`
    and, where the model has prefix tokens, `prefix` (numbered, one a scale for a pyramid, one a layer for a list of
    them). Resizing and merging are
    products with constant matrices, so every runtime computes what PyTorch computes. Weights are stored once; the
    exporter's local paths and stack traces are removed.

    Args:
        model: a wrapped model, on any device and in any precision; it is not changed.
        path: the file, ending in .onnx; written whole or not at all.
        image_hw: height and width in pixels of the images it will see; the backbone's own size by default. Whatever
            `fit` makes of that shape is fixed in the graph.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        S2WrapError: another ending, an impossible image size, or a model that cannot be exported.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise MissingExtraError("onnx with onnxscript", "export") from error
    path = Path(path)
    if path.suffix != ".onnx":
        raise S2WrapError(f"cannot write {path}: the ending must be .onnx")
    height, width = image_hw or model.backbone.image_hw
    model.plan((height, width))
    if max(height, width) > 2**15:
        raise S2WrapError(f"images of {height}×{width} pixels are too large for a graph; use at most {2**15} a side")
    plain = _Outputs(copy.deepcopy(model).float().cpu().prepare((height, width))).eval()
    images = torch.zeros(2, 3, height, width)  # a batch of one would be taken for a constant
    with whole_file(path) as draft:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    plain,
                    (images,),
                    input_names=["images"],
                    output_names=_output_names(model),
                    dynamic_shapes=({0: "batch"},),
                    opset_version=OPSET,
                    dynamo=True,
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            first_line = str(error).partition("\n")[0]
            raise S2WrapError(f"{model.backbone.name} cannot be exported to ONNX: {first_line}") from error
        if program is None:
            raise S2WrapError(f"{model.backbone.name} cannot be exported to ONNX: the exporter gave no program")
        proto = program.model_proto
        _strip(proto)
        facts = {
            "scales": json.dumps([str(scale) for scale in model.scales]),
            "s2wrap_version": version("s2wrap"),
        }
        onnx.helper.set_model_props(proto, facts | {"backbone": model.backbone.name, "fuse": model.fuse})
        with disk_errors(path):
            onnx.save(proto, draft)


def _output_names(model: MultiScale) -> list[str]:
    layouts = model.backbone.layouts
    count = len(model.scales) if model.fuse == "pyramid" else 1 if model.join_layers else len(layouts)
    numbers = [f"_{k}" for k in range(count)] if count > 1 else [""]
    has_prefix = layouts[-1].num_prefix_tokens and model.prefix != "drop"
    return [kind + number for kind in ("spatial", "prefix")[: 2 if has_prefix else 1] for number in numbers]


def _strip(proto) -> None:
    """Remove what the exporter notes about its own machine: stack traces and local paths."""
    del proto.metadata_props[:]
    for part in (proto.graph, *proto.functions):
        del part.metadata_props[:]
        for item in (*part.node, *getattr(part, "value_info", ()), *getattr(part, "initializer", ())):
            del item.metadata_props[:]
            item.doc_string = ""
    for item in (*proto.graph.input, *proto.graph.output):
        del item.metadata_props[:]
