"""Models of any number of channels, exported: the graph equals the model, and ONNX Runtime equals PyTorch."""

import json

import numpy as np
import pytest
import timm
import torch
from tiny_graphs import model_graph

import s2wrap
from s2wrap import S2WrapError
from s2wrap.cost import count_cost
from s2wrap.export import export, load, verify
from s2wrap.export.graph import PIXEL_DTYPES
from s2wrap.export.manifest import input_from, options_from, read_manifest
from s2wrap.export.parity import sample_images

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("kept_traces")


def wrapped(channels, scales=(1, 2), **options):
    values = {"mean": [0.3 + 0.01 * c for c in range(channels)], "std": [0.2 + 0.01 * c for c in range(channels)]}
    vit = timm.create_model("test_vit", num_classes=0, in_chans=channels, depth=2)
    return s2wrap.wrap(vit, scales, **values | options)


def close(output, expected):
    torch.testing.assert_close(output, expected, atol=3e-4, rtol=0)


def pixels_of(dtype, *shape):
    largest = 256 if dtype == torch.uint8 else 65536
    return torch.randint(0, largest, shape, dtype=torch.int32).to(dtype)


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("options", [{}, {"fuse": "detail", "fit": "pad", "overlap": 2}], ids=str)
def test_the_graph_of_any_channels_computes_what_the_model_computes(channels, options):
    model = wrapped(channels, **options)
    images = torch.randn(2, channels, 120, 190)
    graph = model_graph(model, (120, 190))
    close(graph(images)[0], model(images).spatial)
    close(graph(images)[1], model(images).prefix)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_work_grows_with_the_channels(channels):
    ours, rgb = (model_graph(wrapped(count), (120, 190)) for count in (channels, 3))
    (cut,), (merges,) = ours.cuts, ours.merges
    assert cut.multiply_adds * 3 == rgb.cuts[0].multiply_adds * channels
    assert ours.multiply_adds == cut.multiply_adds + merges[0].multiply_adds(64)
    patches = 5 * 100 * 16 * 16 * 64  # of five tiles of a hundred patches, to 64 features, a channel
    difference = count_cost(ours.model).multiply_adds - count_cost(rgb.model).multiply_adds
    assert difference == patches * (channels - 3)


@pytest.mark.parametrize("pixels", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 4, 13])
def test_a_graph_takes_pixels_of_any_channels(channels, pixels):
    model, shape = wrapped(channels), (2, channels, 100, 130)
    images = pixels_of(getattr(torch, pixels), *shape)
    found = model_graph(model, (100, 130), pixels=pixels)(images.permute(0, 2, 3, 1))
    close(found[0], model(images).spatial)
    close(found[1], model(images).prefix)


@pytest.mark.parametrize(
    ("channels", "pixels"), [(1, "uint8"), (1, "uint16"), (4, "float32"), (13, "float32"), (13, "uint8")]
)
def test_a_file_of_any_channels_computes_what_the_model_computes(tmp_path, channels, pixels):
    model, path = wrapped(channels), tmp_path / "model.onnx"
    manifest = export(model, path, image_hw=(100, 130), pixels=pixels)
    assert manifest["verification"]["passed"]
    shape = [100, 130, channels] if pixels != "float32" else [channels, 100, 130]
    assert manifest["inputs"] == [{"name": "images", "dtype": pixels, "shape": ["batch", *shape]}]
    engine = load(path)
    if pixels == "float32":
        images = torch.randn(2, channels, 100, 130)
    else:
        images = pixels_of(getattr(torch, pixels), 2, channels, 100, 130)
    expected = model(images)
    for given in (images, images.numpy()):
        close(engine(given).spatial, expected.spatial)
    if pixels != "float32":
        last = images.permute(0, 2, 3, 1).contiguous()
        close(engine(last).spatial, expected.spatial)
    encoded, larger = engine.encode([images[0], images[0].repeat_interleave(2, dim=1)])
    close(encoded.spatial, expected.spatial[:1])
    assert larger.plan.image_hw == (200, 130)


@pytest.mark.parametrize("channels", [1, 13])
def test_the_backbone_alone_of_any_channels_does_what_the_model_does(tmp_path, channels):
    model, path = wrapped(channels), tmp_path / "tiles.onnx"
    assert export(model, path, tiles=True)["verification"]["passed"]
    engine = load(path)
    for images in (torch.randn(2, channels, 210, 333), pixels_of(torch.uint8, 1, channels, 90, 300)):
        close(engine(images).spatial, model(images).spatial)


def test_a_model_of_another_number_of_channels_is_refused_as_the_model_refuses_it(tmp_path):
    model, path = wrapped(4), tmp_path / "model.onnx"
    export(model, path, verify=False)
    engine = load(path)
    for images in (torch.randn(1, 3, 160, 160), torch.randn(4, 160, 160), torch.full((1, 4, 160, 160), torch.nan)):
        with pytest.raises(S2WrapError) as ours:
            engine(images)
        with pytest.raises(S2WrapError) as models:
            model(images)
        assert str(ours.value) == str(models.value)
    with pytest.raises(
        S2WrapError, match="an array \\(8, 8, 3\\) of uint8; give uint8 or uint16 \\(height, width, 4\\)"
    ):
        engine.encode([np.zeros((8, 8, 3), np.uint8)])


@pytest.mark.parametrize("value_range", [(0, 255), (0, 1), (-1, 3)])
def test_values_in_a_range_are_normalised_inside_the_graph(tmp_path, value_range):
    model = wrapped(3, value_range=value_range)
    low, high = value_range
    graph, path = model_graph(model, (100, 130)), tmp_path / "model.onnx"
    fractions = torch.rand(2, 3, 100, 130)
    by_hand = (fractions - torch.tensor(model.input.mean)[:, None, None]) / torch.tensor(model.input.std)[:, None, None]
    images = fractions * (high - low) + low
    close(graph(images)[0], model_graph(s2wrap.wrap(model.backbone.model, (1, 2)), (100, 130))(by_hand)[0])
    assert export(model, path, image_hw=(100, 130))["verification"]["passed"]
    engine = load(path)
    close(engine(images).spatial, model(images).spatial)
    pixels = pixels_of(torch.uint8, 1, 3, 100, 130)
    close(engine(pixels).spatial, model(pixels).spatial)
    assert read_manifest(path)["input"]["value_range"] == (low, high)


def test_engines_have_no_uint16(tmp_path):
    with pytest.raises(S2WrapError, match="TensorRT has no uint16 inputs; use pixels='float32' or 'uint8'"):
        export(wrapped(3), tmp_path / "model.rtx", pixels="uint16")


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("pixels", list(PIXEL_DTYPES))
def test_samples_have_the_channels_of_the_model(channels, pixels):
    pytest.importorskip("skimage")
    graph = model_graph(wrapped(channels), (40, 50), pixels=pixels)
    samples = sample_images(graph, None)
    example = graph.example(1)
    assert {(sample.shape, sample.dtype) for sample in samples} == {(example.shape[1:], example.dtype)}
    noise = samples[1] if pixels == "float32" else samples[1].permute(2, 0, 1).float()
    assert len({tuple(channel.flatten().tolist()) for channel in noise}) == channels


def test_the_manifest_keeps_input_and_options_and_gives_them_back(tmp_path):
    options = {"fit": "pad", "policy": "nvila", "fuse": "weighted", "weights": (0.25, 0.75), "norm": "l2"}
    model = wrapped(4, scales=(1, "320px"), value_range=(0, 10), interpolation="bilinear", **options)
    path = tmp_path / "model.onnx"
    export(model, path, verify=False)
    manifest = read_manifest(path)
    assert input_from(manifest) == model.input
    again = options_from(manifest, {})
    assert [again.fuse, again.weights, again.norm] == ["weighted", (0.25, 0.75), "l2"]
    assert [scale.fit for scale in again.scales] == ["pad", "pad"]
    assert [scale.as_scale() for scale in model.scales] == list(again.scales)
    assert s2wrap.MultiScale(model.backbone, again).plan((100, 300)) == model.plan((100, 300))
    note = json.loads(path.with_name("model.onnx.json").read_text())
    assert note["format"] == 4
    assert note["input"]["origins"]["mean"] == "caller"
    assert not {"mean", "std", "wrapper"} & set(note)


def test_an_option_without_effect_on_the_scales_of_a_file_is_refused(tmp_path):
    path = tmp_path / "tiles.onnx"
    export(wrapped(3), path, tiles=True, verify=False)
    with pytest.raises(S2WrapError, match="fit='pad' has no effect on the scales of tiles.onnx, which are decided"):
        load(path, fit="pad")
    with pytest.raises(S2WrapError, match="has no option 'fuze'; did you mean fuse"):
        load(path, fuze="mean")
    assert load(path, scales=(1, 2), fit="pad", fuse="detail").model.options.result_grid == "finest"


def test_an_exported_model_is_unchanged_and_can_be_verified_again(tmp_path):
    model, images = wrapped(4), torch.randn(1, 4, 100, 130)
    before, weights = model(images).spatial, {name: value.clone() for name, value in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    export(model, tmp_path / "model.onnx", precision="fp16", fp32_layers=("norm",), image_hw=(100, 130))
    assert torch.equal(model(images).spatial, before)
    assert [name for name, _ in model.named_modules()] == modules
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert verify(tmp_path / "model.onnx", model=model).passed


def test_maps_of_scales_and_layers_have_a_name_each():
    model = wrapped(3, fuse="pyramid", layers=(0, 1), join_layers=False)
    graph, images = model_graph(model, (160, 160)), torch.randn(1, 3, 160, 160)
    features = model(images)
    assert graph.names == tuple(f"{kind}_{k}" for kind in ("spatial", "prefix") for k in range(4))
    for output, expected in zip(graph(images), (*features.maps, *features.prefixes), strict=True):
        close(output, expected)
    assert graph.geometry == features.geometry
