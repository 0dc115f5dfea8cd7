"""Graphs of wrapped models; and small ONNX files, which are made in milliseconds and build in less than a second."""

import numpy as np
import torch

from s2wrap.export.graph import ModelGraph, TilesGraph
from s2wrap.export.options import GraphOptions


def model_graph(model, image_hw, **options):
    return ModelGraph(model, GraphOptions(image_hw=image_hw, **options))


def tiles_graph(model, **options):
    return TilesGraph(model, GraphOptions(tiles=True, **options))


def save(path, nodes, inputs, outputs, constants=(), opset=20):
    import onnx

    graph = onnx.helper.make_graph(nodes, "tiny", inputs, outputs, list(constants))
    opsets = [onnx.helper.make_opsetid("", opset)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def products(path, count=3, dtype=np.float16, size=64, shape=("batch", 16)):
    """images (…, size) → features (…, size): `count` matrix products, each with an activation."""
    import onnx

    rng = np.random.default_rng(0)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, weights, last = [], [], "images"
    for k in range(count):
        weights.append(onnx.numpy_helper.from_array((rng.standard_normal((size, size)) / 8).astype(dtype), f"w{k}"))
        nodes.append(onnx.helper.make_node("MatMul", [last, f"w{k}"], [f"m{k}"], name=f"product{k}"))
        last = "features" if k == count - 1 else f"t{k}"
        nodes.append(onnx.helper.make_node(["Tanh", "Relu"][k % 2], [f"m{k}"], [last], name=f"bend{k}"))
    ports = [onnx.helper.make_tensor_value_info(name, kind, [*shape, size]) for name in ("images", "features")]
    return save(path, nodes, ports[:1], ports[1:], weights)


class Net(torch.nn.Module):
    """Convolution, norm and attention: spatial (batch, 32, 4, 4) and pooled (batch, 32)."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 32, 8, 8)
        self.norm = torch.nn.LayerNorm(32)
        self.mix = torch.nn.Linear(32, 96)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        parts = self.mix(self.norm(tokens)).reshape(tokens.shape[0], -1, 3, 2, 16).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        tokens = tokens + mixed.transpose(1, 2).flatten(2)
        return tokens.transpose(1, 2).unflatten(2, (4, 4)), tokens.mean(1)


def net(path, dtype=torch.float32, opset=23):
    """A `Net` in eval mode, and its file: images (batch, 3, 32, 32) → spatial, pooled."""
    torch.manual_seed(0)
    model = Net().eval().to(dtype)
    torch.onnx.export(
        model,
        (torch.zeros(2, 3, 32, 32, dtype=dtype),),
        path,
        input_names=["images"],
        output_names=["spatial", "pooled"],
        dynamic_shapes=({0: "batch"},),
        opset_version=opset,
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    return model
