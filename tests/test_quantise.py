"""int8 and fp8: scales, rounding and choice, compared with numpy, with ONNX's own evaluator and with counts by hand."""

import copy
import json
import math

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from PIL import Image
from tiny_graphs import tiles_graph
from torch import nn
from torch.nn.utils import parametrizations

import s2wrap
from s2wrap import S2WrapError
from s2wrap.export import export, verify
from s2wrap.export import quantise as module
from s2wrap.export.options import Gate
from s2wrap.export.quantise import Attached, Histogram, Layer, quantise
from s2wrap.export.trace import is_quantised, trace

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
GATE = Gate(0.98, 0.93, 0.2)
DISTRIBUTIONS = {
    "normal": lambda: torch.randn(20_000),
    "uniform": lambda: torch.rand(20_000),
    "exponential": lambda: torch.distributions.Exponential(1.0).sample((20_000,)),
    "behind a GELU": lambda: F.gelu(2 * torch.randn(20_000)),
    "tiny": lambda: 1e-6 * torch.randn(20_000),
    "a few large ones": lambda: torch.cat([torch.randn(200_000), torch.tensor([20.0, -17.0])]),
    "large ones that count": lambda: torch.cat([torch.randn(20_000), torch.tensor([40.0, -60.0])]),
}


def rounded(values, scale, kind):
    """By numpy, and fp8 by hand: three bits behind the leading one, down to 2⁻⁹."""
    units = np.asarray(values, np.float64) / scale
    if kind == "int8":
        return np.clip(np.rint(units), -128, 127) * scale
    units = np.clip(units, -448, 448)
    step = 2.0 ** (np.maximum(np.floor(np.log2(np.maximum(np.abs(units), 1e-30))), -6) - 3)
    return np.rint(units / step) * step * scale


def squared_error(values, scale, kind):
    return float(((rounded(values, scale, kind) - values) ** 2).sum())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_scale_has_nearly_the_least_squared_error_of_all_scales(name, kind):
    values = DISTRIBUTIONS[name]()
    whole, grown = Histogram(), Histogram()
    whole.add(values)
    for part in values[values.abs().argsort()].chunk(7):  # so that larger ones come later
        grown.add(part)
    values = values.double().numpy()
    tops = np.geomspace(0.01, 1.25, 400) * np.abs(values).max()
    least = min(squared_error(values, top / {"int8": 127, "fp8": 448}[kind], kind) for top in tops)
    for histogram in (whole, grown):
        # fp8's error hardly depends on the scale, but for a few large values that may lie between two codes
        assert squared_error(values, histogram.scale(kind), kind) < least * (1.02 if kind == "int8" else 1.2)
        assert histogram.counts.sum() == len(values)
        assert histogram.top >= np.abs(values).max() * (1 - 1e-6)


def test_a_histogram_that_grows_counts_what_one_with_the_right_range_counts():
    values = torch.rand(5000)
    grown, right = Histogram(), Histogram()
    for part in (values[values < 0.1], values[(values >= 0.1) & (values < 0.5)], values[values >= 0.5]):
        grown.add(part)
    right.top = grown.top
    right.add(values)
    difference = (grown.counts.cumsum(0) - right.counts.cumsum(0)).abs().max()
    assert grown.counts.sum() == right.counts.sum() == 5000
    assert difference <= 2  # a value on the edge of two bins


def test_zeros_infinity_and_nothing_leave_a_usable_scale():
    histogram = Histogram()
    histogram.add(torch.zeros(4))
    histogram.add(torch.zeros(0, 3))
    assert histogram.scale("int8") == 1
    histogram.add(torch.tensor([1.0, -2.0, math.nan, math.inf]))
    assert histogram.top == 2
    assert 0 < histogram.scale("fp8") <= 2 / 448
    assert histogram.counts.sum() == 2


class OneLayer(nn.Module):
    """Maps of one layer that takes images (b, 6, h, w), or their pixels as 2-d or 3-d."""

    def __init__(self, layer, ndim):
        super().__init__()
        self.layer, self.ndim = layer, ndim

    def forward(self, images):
        if self.ndim == 4:
            return self.layer(images)
        pixels = images.permute(0, 2, 3, 1)
        rows = pixels.reshape(-1, 6) if self.ndim == 2 else pixels.flatten(1, 2)
        return self.layer(rows).reshape(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


def one_layer_graph(layer, ndim, kind, scale, name="layer"):
    """Its graph and one with the layer quantised."""
    net = OneLayer(layer, ndim).eval()
    plain, graph = (
        tiles_graph(s2wrap.wrap(net, (1,), image_size=(10, 12), in_channels=6, layout="bchw")) for _ in range(2)
    )
    attached = Attached(graph.backbone.model)
    attached.add([Layer(name, 1, scale)], kind)
    attached.switch({name})
    return plain, graph


def run_file(proto, images):
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, {"tiles": images.numpy()})[0]


LAYERS = {
    "Linear": (lambda: nn.Linear(6, 12), 2),
    "Linear without bias": (lambda: nn.Linear(6, 12, bias=False), 3),
    "Conv2d with groups and stride": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2), 4),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), 4),
    "Conv2dSame": (lambda: timm.layers.create_conv2d(6, 8, 3, stride=2, padding="same", groups=2), 4),
}


def by_numpy(layer, inputs, scale):
    """A layer in int8: products of whole numbers, times both scales."""
    weight = layer.weight.detach().double().numpy()
    weight_scales = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
    codes = np.rint(weight / weight_scales.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int64)
    inputs = np.clip(np.rint(inputs.double().numpy() / scale), -128, 127).astype(np.int64)
    bias = 0 if layer.bias is None else layer.bias.detach().double().numpy()
    if isinstance(layer, nn.Linear):
        bias = np.reshape(bias, (-1, 1, 1))
        return np.einsum("bchw,oc->bohw", inputs, codes) * scale * weight_scales[:, None, None] + bias
    (height, width), stride, groups = inputs.shape[2:], layer.stride[0], layer.groups
    if layer.padding == (1, 1):
        pads = ((1, 1), (1, 1))
    else:  # as TensorFlow: as many cells as strides begin, the larger part behind
        needed = [max((-(-side // stride) - 1) * stride + 3 - side, 0) for side in (height, width)]
        pads = tuple((need // 2, need - need // 2) for need in needed)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(inputs, ((0, 0), (0, 0), *pads)), (3, 3), axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, groups, axis=1), np.split(codes, groups), strict=True)
    sums = np.concatenate([np.einsum("bchwij,ocij->bohw", *part) for part in parts], axis=1)
    return sums * scale * weight_scales[:, None, None] + np.reshape(bias, (-1, 1, 1))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_the_same_in_pytorch_in_the_file_and_by_hand(name, kind):
    make, ndim = LAYERS[name]
    layer, scale = make(), 0.025 if kind == "int8" else 0.005
    plain, graph = one_layer_graph(layer, ndim, kind, scale)
    images = torch.randn(3, 6, 10, 12)
    with torch.no_grad():
        (simulated,), (exact,) = graph(images), plain(images)
    assert 1e-3 < (simulated - exact).norm() / exact.norm() < (0.04 if kind == "int8" else 0.15)
    if kind == "int8":
        np.testing.assert_allclose(simulated, by_numpy(layer, images, scale), atol=1e-5)
    proto = trace(graph, opset=20)
    np.testing.assert_allclose(run_file(proto, images), simulated, atol=1e-5)
    (reference,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"tiles": images.numpy()})
    np.testing.assert_allclose(reference, simulated, atol=1e-5)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    code_type = onnx.TensorProto.INT8 if kind == "int8" else onnx.TensorProto.FLOAT8E4M3FN
    (weights,) = [t for t in constants.values() if t.data_type == code_type and len(t.dims) > 1]
    assert len(weights.raw_data) == math.prod(weights.dims) == layer.weight.numel()  # a byte each
    nodes = {node.input[0]: node for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    channels = layer.weight.shape[0]
    (axis,) = [attribute.i for attribute in nodes[weights.name].attribute if attribute.name == "axis"]
    assert weights.dims[axis] == channels
    assert list(constants[nodes[weights.name].input[1]].dims) == [channels]
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not np.any(onnx.numpy_helper.to_array(constants[node.input[2]]).astype(np.float32))
    assert not [t for t in constants.values() if t.data_type == 1 and math.prod(t.dims) >= layer.weight.numel()]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardtanh], ids=lambda kind: kind.__name__)
def test_fp8_behind_a_bound_is_computed_as_it_is_written(activation):
    """ONNX Runtime 1.32 drops a Relu there, and does not load a Clip."""
    layers = nn.Sequential(activation(), nn.Linear(6, 12))
    _, graph = one_layer_graph(layers, 3, "fp8", 0.005, "layer.1")
    images = 3 * torch.randn(3, 6, 10, 12)
    np.testing.assert_allclose(run_file(trace(graph, opset=20), images), graph(images)[0].detach(), atol=1e-5)


class Net(nn.Module):
    """Three layers and a product of tokens with themselves, which is none: maps (b, 16, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 16), nn.Linear(16, 16)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = self.body(tokens)
        tokens = tokens @ tokens.transpose(1, 2) @ tokens / 64 + tokens
        return tokens.transpose(1, 2).unflatten(2, (8, 8))

    def body(self, tokens):
        return self.head(F.gelu(self.mix(tokens)))


def graph_of(net):
    return tiles_graph(s2wrap.wrap(net.eval(), (1,), image_size=32, layout="bchw"))


def recipe_of(net, kind="int8", gate=GATE, **options):
    images = list(torch.randn(6, 3, 32, 32))
    return quantise(graph_of(net), pictures=images[:4], judged=images[3:], kind=kind, gate=gate, **options)


def test_multiply_adds_are_those_counted_by_hand():
    recipe = recipe_of(Net(), wide_layers=("head",))
    assert {layer.name: layer.multiply_adds for layer in recipe.layers} == {
        "patches": 8 * 8 * 8 * 3 * 4 * 4,
        "mix": 64 * 8 * 16,
    }
    total = 8 * 8 * 8 * 3 * 4 * 4 + 64 * 8 * 16 + 64 * 16 * 16 + 2 * 64 * 64 * 16
    assert recipe.share == pytest.approx((8 * 8 * 8 * 3 * 4 * 4 + 64 * 8 * 16) / total)
    assert recipe.pictures == 4
    assert "2 of 2 layers" in recipe.text()


class Outlier(Net):
    """The input of `head` has one value that takes all codes, and that nothing comes of."""

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.head.weight[:, 0] = 0

    def body(self, tokens):
        tokens = F.gelu(self.mix(tokens))
        return self.head(tokens + 3e3 * F.one_hot(torch.tensor(0), 16))


def test_the_layer_that_rounding_ruins_stays_and_the_others_do_not():
    recipe = recipe_of(Outlier())
    facts = recipe.facts()
    assert [layer["name"] for layer in facts["kept"]] == ["head"]
    assert facts["kept"][0]["relative_error_alone"] > 0.5
    assert set(facts["layers"]) == {"patches", "mix"}
    assert "2 of 3 layers" in recipe.text()
    assert "as they were, with the relative error that each makes alone: head" in recipe.text()
    json.dumps(facts, allow_nan=False)


class InterruptError(Exception):
    pass


@pytest.mark.parametrize("moment", ["never", "calibrating", "attaching", "measuring", "choosing"])
def test_the_graph_is_left_as_it_was(monkeypatch, moment):
    graph = graph_of(Net())
    images = torch.randn(4, 3, 32, 32)
    expected, weights = graph(images)[0], copy.deepcopy(graph.state_dict())

    def snapshot():
        return {
            name: (type(each), set(each.__dict__), list(each._modules), each._forward_hooks, each._forward_pre_hooks)
            for name, each in copy.deepcopy(dict(graph.named_modules())).items()
        }

    before = snapshot()
    place = {
        "calibrating": (Histogram, "add"),
        "attaching": (module.QuantisedWeight, "__init__"),
        "measuring": (module.QuantisedInput, "forward"),
        "choosing": (module, "compare"),
    }.get(moment)
    calls = []
    if place is not None:
        real = getattr(*place)

        def fail(*arguments, **options):
            calls.append(1)
            if len(calls) == 2:
                raise InterruptError
            return real(*arguments, **options)

        monkeypatch.setattr(*place, fail)
    try:
        quantise(graph, pictures=list(images), judged=list(images), kind="int8", gate=Gate(0.9999999, 0, 1))
    except (InterruptError, S2WrapError):
        assert moment != "never" or not calls
    assert snapshot() == before
    after = graph.state_dict()
    assert set(after) == set(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert torch.equal(graph(images)[0], expected)


def test_a_gate_that_nothing_keeps_is_one_clear_error():
    with pytest.raises(S2WrapError, match=r"Net in int8 misses its gate \(1, 1, 0\) with any layer: .*worst alone are"):
        recipe_of(Net(), gate=Gate(1, 1, 0))


class Twice(Net):
    def body(self, tokens):
        return self.head(self.head(self.mix(tokens)))


class Named(Net):
    def body(self, tokens):
        return self.head(input=self.mix(input=tokens))


class Tied(Net):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(16, 16)
        self.other.weight = self.head.weight

    def body(self, tokens):
        return self.other(F.gelu(self.head(F.gelu(self.mix(tokens)))))


class Computed(Net):
    """Weights that are made of others: by a parametrization, by a hook, and in the layer's own forward pass."""

    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.head)
        torch.nn.utils.weight_norm(self.mix)
        self.patches = timm.layers.StdConv2d(3, 8, 4, 4, padding=0)
        self.last = nn.Linear(16, 16)

    def body(self, tokens):
        return self.last(super().body(tokens))


class Infinite(Net):
    """Zeros in one layer, infinity in another, an empty call of a third, and a fourth that is not called."""

    def __init__(self):
        super().__init__()
        self.zeros, self.infinite, self.idle = (nn.Linear(16, 16) for _ in range(3))

    def body(self, tokens):
        tokens = super().body(tokens) + self.head(tokens.new_zeros(0, 16)).sum()
        return tokens + self.zeros(0 * tokens) + self.infinite(tokens / 0).nan_to_num(0, 0, 0)


@pytest.mark.parametrize(
    ("net", "layers"),
    [
        (Twice, {"patches", "mix", "head"}),
        (Named, {"patches", "mix", "head"}),
        (Tied, {"patches", "mix", "head", "other"}),
        (Computed, {"last"}),
        (Infinite, {"patches", "mix", "head", "zeros"}),
    ],
)
def test_layers_may_be_used_in_unusual_ways(net, layers):
    """Called twice, by keyword, with tied weights, weights that are computed, nothing, zeros and infinity."""
    net = net()
    recipe = recipe_of(net)
    assert {layer.name for layer in recipe.layers} == layers
    if isinstance(net, Twice):
        assert {layer.name: layer.multiply_adds for layer in recipe.layers}["head"] == 2 * 64 * 16 * 16
    graph, plain, images = graph_of(net), graph_of(net), torch.randn(2, 3, 32, 32)
    recipe.apply(graph)
    proto = trace(graph, opset=20)
    found = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"tiles": images.numpy()})[0]
    with torch.no_grad():
        (simulated,), (exact,) = graph(images), plain(images)
    found = torch.from_numpy(found)
    assert (found - simulated).norm() < 5e-3 * exact.norm()  # a value between two codes may become either
    assert 1e-4 < (found - exact).norm() / exact.norm() < 0.2


def test_models_without_layers_or_with_all_left_out_are_one_clear_error():
    pool = tiles_graph(s2wrap.wrap(lambda images: F.avg_pool2d(images, 16), (1,), image_size=32))
    images = list(torch.randn(2, 3, 32, 32))
    with pytest.raises(S2WrapError, match="has no linear or convolution layers that could be quantised; use fp16"):
        quantise(pool, pictures=images, judged=images, kind="fp8", gate=GATE)
    with pytest.raises(S2WrapError, match="no linear or convolution layers besides fp32_layers"):
        recipe_of(Net(), wide_layers=("*",))
    with pytest.raises(S2WrapError, match="fp32_layers='blocks.3': Net has no such module; it has patches"):
        recipe_of(Net(), wide_layers=("blocks.3",))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six pictures of smooth noise."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for number in range(6):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((200, 150), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def clip():
    vision = open_clip.CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=16, image_size=96)
    return open_clip.CLIP(
        32, vision, open_clip.CLIPTextCfg(context_length=8, vocab_size=32, width=32, heads=2, layers=1)
    )


def vit():
    return timm.create_model("test_vit", num_classes=0, depth=2)


MODELS = {
    "timm ViT": (vit, (1, 2), "int8", {}),
    "open_clip": (clip, (1,), "fp8", {"pixels": "uint8"}),
    "CNN": (lambda: timm.create_model("test_resnet", num_classes=0), (1,), "int8", {"image_hw": (100, 140)}),
    "CNN in fp8": (lambda: timm.create_model("test_resnet", num_classes=0), (1,), "fp8", {"image_hw": (100, 140)}),
    "tiles": (vit, (1, 2), "fp8", {"tiles": True}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_quantised_file_is_smaller_and_passes_again(tmp_path, pictures, name):
    make, scales, kind, options = MODELS[name]
    model = s2wrap.wrap(make(), scales, mean=(0.5,) * 3, std=(0.25,) * 3)
    path = tmp_path / "model.onnx"
    manifest = export(model, path, precision=kind, pictures=[pictures], batch=(1, 2, 4), **options)
    assert manifest["verification"]["passed"]
    assert manifest["gate"] == {"mean": 0.98, "low": 0.93, "error": 0.2}
    quantised = json.loads((tmp_path / "model.onnx.json").read_text())["quantised"]
    assert quantised["kind"] == kind
    assert quantised["pictures"] == 3  # the three others are compared on
    if name == "open_clip":  # whose attention hides its layers
        assert sum(layer.endswith("attn.in_proj") for layer in quantised["layers"]) == 2
    assert verify(path, model=model, pictures=[pictures]).passed
    assert is_quantised(onnx.load(path))
    modules = dict(model.backbone.model.named_modules())
    saved = 3 * sum(modules[each].weight.numel() for each in quantised["layers"] if "in_proj" not in each)
    parameters = 4 * sum(parameter.numel() for parameter in model.backbone.parameters())
    constants = [each for each in onnx.load(path).graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    matrices = sum(4 * math.prod(each.dims) for each in constants)
    assert path.stat().st_size < parameters + matrices - saved + 64_000  # the nodes and their names
    with pytest.raises(S2WrapError, match="does not compute what PyTorch computes"):
        verify(path, model=model, gate=(0.999999, 0.999999, 1e-4))


def test_a_file_for_single_images_is_compared_on_all_that_the_layers_were_chosen_on(tmp_path, pictures):
    model = s2wrap.wrap(vit(), (1,))
    options = {"precision": "int8", "pictures": [pictures], "gate": (0.99, 0.98, 0.14)}
    for batch, sizes in (((1, 1, 1), [1] * 6), ((1, 2, 2), [1, 2, 1, 2]), ((1, 4, 4), [1, 2, 3])):
        manifest = export(model, tmp_path / "model.onnx", batch=batch, overwrite=True, **options)
        assert list(manifest["verification"]["batches"]) == sizes
        assert list(manifest["verification"]["images"]) == [3, 3]


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["timm ViT", "CNN"])
def test_quantised_engines_are_built(tmp_path, pictures, name, kind):
    pytest.importorskip("tensorrt_rtx")
    make, scales, _, options = MODELS[name]
    path = tmp_path / "model.rtx"
    options = {"precision": kind, "pictures": [pictures], "batch": (1, 2, 4), "targets": ["sm89"]} | options
    manifest = export(s2wrap.wrap(make(), scales), path, **options)
    assert manifest["verification"]["passed"]
    assert manifest["outputs"][0]["dtype"] == "float16"  # what is not quantised
    assert path.stat().st_size == manifest["build"]["bytes"]


def test_layers_by_name_stay_and_a_wrong_gate_writes_nothing(tmp_path, pictures):
    model = s2wrap.wrap(vit(), (1,))
    options = {"precision": "int8", "pictures": [pictures]}
    manifest = export(model, tmp_path / "model.onnx", fp32_layers=("blocks.1", "patch_embed.*"), **options)
    assert {name.rpartition(".")[0] for name in manifest["quantised"]["layers"]} == {"blocks.0.attn", "blocks.0.mlp"}
    assert verify(tmp_path / "model.onnx", model=model, pictures=[pictures]).passed
    with pytest.raises(S2WrapError, match=r"misses its gate \(1, 1, 0\) with any layer"):
        export(model, tmp_path / "other.onnx", gate=(1, 1, 0), **options)
    with pytest.raises(S2WrapError, match="fp32_layers='head.9': .* has no such module"):
        export(model, tmp_path / "other.onnx", fp32_layers=("head.9",), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]


@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_a_file_that_others_quantised_is_judged_as_one(tmp_path, way):
    quantization = pytest.importorskip("onnxruntime.quantization")
    model = s2wrap.wrap(vit(), (1,))
    plain, ready = tmp_path / "plain.onnx", tmp_path / "ready.onnx"
    export(model, plain, outputs=["spatial"], verify=False)
    if way == "dynamic":
        quantization.quantize_dynamic(plain, ready, weight_type=quantization.QuantType.QInt8, per_channel=True)
    else:
        batches = iter([{"images": torch.randn(1, 3, 160, 160).numpy()} for _ in range(4)])
        reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": lambda _: next(batches, None)})()
        quantization.quantize_static(plain, ready, reader, op_types_to_quantize=["MatMul", "Conv"])
    kinds = {node.op_type for node in onnx.load(ready).graph.node}
    assert ("MatMulInteger" if way == "dynamic" else "QuantizeLinear") in kinds
    manifest = export(model, tmp_path / "model.onnx", outputs=["spatial"], onnx=ready)
    assert manifest["gate"] == {"mean": 0.98, "low": 0.93, "error": 0.2}
    assert "quantised" not in manifest
    assert manifest["verification"]["outputs"][0]["relative_error"] > 1e-3  # the gate of fp32 would refuse it
    assert verify(tmp_path / "model.onnx", model=model).passed


def test_one_picture_is_enough_and_wrong_input_is_one_clear_error(tmp_path, pictures):
    model, picture = s2wrap.wrap(vit(), (1,)), pictures / "0.png"
    manifest = export(model, tmp_path / "one.onnx", precision="fp8", pictures=[picture], verify=False)
    assert manifest["quantised"]["pictures"] == 1
    broken = tmp_path / "pictures"
    broken.mkdir()
    for number in range(4):
        (broken / f"{number}.png").write_bytes(picture.read_bytes())
    (broken / "4.png").write_bytes(picture.read_bytes()[:300])
    for options, message in (
        ({}, "is calibrated on pictures: give some"),
        ({"pictures": [picture], "onnx": tmp_path / "one.onnx"}, "a ready ONNX file .onnx. is as it is"),
        ({"pictures": [tmp_path / "none"]}, "there is no such file or folder"),
        ({"pictures": [broken]}, r"4\.png"),
    ):
        with pytest.raises(S2WrapError, match=message):
            export(model, tmp_path / "other.onnx", precision="int8", **options)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("other", "."))]
