from collections import Counter

import numpy as np
import pytest
import timm
import torch
from tiny_graphs import model_graph, tiles_graph

import s2wrap
from s2wrap import S2WrapError
from s2wrap.export import trace as trace_module
from s2wrap.export.trace import is_quantised, save, swap_transposes, trace, widen

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
BLOCKS = 2


def wrapped(scales=(1, 2), **options):
    return s2wrap.wrap(timm.create_model("test_vit", num_classes=0, depth=BLOCKS), scales, **options)


def nodes(proto):
    return Counter(node.op_type for node in proto.graph.node)


@pytest.fixture(scope="module")
def backbone_nodes():
    return sum(nodes(trace(tiles_graph(wrapped()), opset=20)).values())


@pytest.mark.parametrize(
    "options",
    [
        {"scales": (1, 2, 3)},
        {"scales": tuple(range(1, 9))},
        {"scales": (1, 2, 3), "fuse": "detail", "fit": "pad", "overlap": 2},
    ],
    ids=str,
)
def test_the_wrapper_adds_few_nodes_whatever_the_scales(backbone_nodes, options):
    proto = trace(model_graph(wrapped(**options), (200, 300)), opset=20)
    onnx.checker.check_model(proto)
    assert sum(nodes(proto).values()) - backbone_nodes < 80
    assert not set(nodes(proto)) & {"Resize", "Upsample", "AveragePool", "GlobalAveragePool", "Loop", "If"}
    assert nodes(proto)["Softmax"] == BLOCKS  # the backbone stands once, for the tiles of all scales


def test_the_graph_is_private_portable_and_the_same_each_time(tmp_path):
    model = wrapped((1, 2, 3))
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path in paths:
        save(trace(model_graph(model, (200, 200)), opset=23), path, note="of a test", weights=f"{path.name}.data")
    content = paths[0].read_bytes()
    assert content == paths[1].read_bytes()
    assert b".py" not in content
    graph = onnx.load(paths[0])
    assert nodes(graph)["Attention"] == BLOCKS
    assert [(prop.key, prop.value) for prop in graph.metadata_props] == [("s2wrap", "of a test")]
    weights = sum(parameter.numel() for parameter in model.backbone.parameters()) * 4
    matrices = (960 + 960) * 200 * 4
    assert len(content) < weights + matrices + 200_000
    first, *_ = graph.graph.input[0].type.tensor_type.shape.dim
    assert first.dim_param == "batch"


@pytest.mark.parametrize(("precision", "lowest"), [("fp32", 20), ("bf16", 22)])
def test_opsets_that_cannot_be(precision, lowest):
    graph = model_graph(wrapped(), (160, 160), precision=precision)
    for opset in (lowest - 1, 24):
        with pytest.raises(S2WrapError, match=rf"opset={opset} .*use {lowest} to 23"):
            trace(graph, opset=opset)


def test_a_model_that_cannot_be_exported_says_where():
    class Data(torch.nn.Module):
        def forward(self, images):
            if images.sum() > 1e9:  # a branch on values
                return images[:, :, ::32, ::32]
            return torch.nn.functional.avg_pool2d(images, 16)

    model = s2wrap.wrap(Data(), (1,), image_size=64, layout="bchw")
    with pytest.raises(S2WrapError, match="Data cannot be exported to ONNX: .*data-dependent"):
        trace(model_graph(model, (64, 64)), opset=20)


def test_bfloat16_widened_has_the_same_values(tmp_path):
    model = wrapped()
    graph = model_graph(model, (160, 160), precision="bf16")
    path = tmp_path / "model.onnx"
    save(trace(graph, opset=23), path, note="", weights=f"{path.name}.data")
    images = torch.randn(2, 3, 160, 160)
    widen(path, tmp_path / "wide.onnx")
    session = runtime.InferenceSession(str(tmp_path / "wide.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(["spatial"], {"images": images.numpy()})[0]
    rounded = model_graph(model, (160, 160))  # weights rounded to bfloat16, values in float32
    for parameter in rounded.backbone.parameters():
        parameter.copy_(parameter.bfloat16().float())
    np.testing.assert_allclose(found, rounded(images)[0].numpy(), atol=2e-3)
    assert not is_quantised(onnx.load(path))


def test_weights_that_no_file_holds_go_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_module, "LARGEST_FILE", 100_000)
    model = wrapped()
    path = tmp_path / "model.onnx"
    save(trace(model_graph(model, (160, 160)), opset=20), path, note="", weights=f"{path.name}.data")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < 200_000
    images = torch.randn(2, 3, 160, 160)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(["spatial"], {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, model(images).spatial.numpy(), atol=2e-4)


def test_a_transpose_in_front_of_a_product_comes_after_it():
    """Some ONNX Runtimes end when they load a float16 graph that begins otherwise."""
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    weights = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
        helper.make_node("Transpose", ["x"], ["u"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["u", "w"], ["z"]),
        helper.make_node("Identity", ["u"], ["kept"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["a", "b", 4])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z", "kept")]
    proto = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weights, "w")]))
    values = {"x": np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)}
    before = ReferenceEvaluator(proto).run(None, values)
    swap_transposes(proto)
    for one, other in zip(before, ReferenceEvaluator(proto).run(None, values), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert [node.op_type for node in proto.graph.node][:2] == ["MatMul", "Transpose"]
    assert all(node.input[0] == "x" for node in proto.graph.node if node.op_type == "MatMul")


def test_tables_of_positions_are_constants_of_the_graph():
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16
    )
    eva = timm.create_model("eva02_tiny_patch14_224", num_classes=0, depth=1, img_size=98)
    for backbone in (transformers.DINOv3ViTModel(config).eval(), eva):
        graph = model_graph(s2wrap.wrap(backbone, (1, 2)), (128, 128), precision="fp16")
        assert not {"Sin", "Cos", "Einsum", "Range"} & set(nodes(trace(graph, opset=20)))
