import numpy as np
import pytest
import timm
import torch

import s2wrap
from s2wrap import S2WrapError
from s2wrap.export import to_onnx

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def run(path, images):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


@pytest.mark.parametrize(
    ("name", "scales", "fuse", "image_hw"),
    [
        ("test_vit", (1, 2), "concat", (160, 160)),
        ("test_vit", (1, 1.5), "pyramid", (200, 331)),
        ("test_resnet", (1, 2), "mean", (300, 300)),
        ("swin_tiny_patch4_window7_224", (1, 2), "concat", (224, 224)),
    ],
)
def test_onnx_runtime_computes_what_pytorch_computes(tmp_path, name, scales, fuse, image_hw):
    model = s2wrap.wrap(timm.create_model(name, num_classes=0), scales, fuse=fuse)
    path = tmp_path / "model.onnx"
    to_onnx(model, path, image_hw=image_hw)
    onnx.checker.check_model(path)
    for batch in (1, 3):
        images = torch.randn(batch, 3, *image_hw)
        features, found = model(images), run(path, images)
        expected = {}
        for k, (level, prefix) in enumerate(zip(features.maps, features.prefixes, strict=True)):
            number = f"_{k}" if fuse == "pyramid" else ""
            expected["spatial" + number] = level
            if prefix.shape[1]:
                expected["prefix" + number] = prefix
        assert found.keys() == expected.keys()
        for key, theirs in expected.items():
            np.testing.assert_allclose(found[key], theirs.numpy(), atol=2e-4, err_msg=key)


@pytest.mark.parametrize(
    "options",
    [
        {"fit": "aspect"},
        {"fit": "pad", "overlap": 3},
        {"whole": True, "fit": "aspect"},
        {"whole": True, "fit": "pad", "target_grid": "finest"},
        {"overlap": 3, "blend": "gaussian", "target_grid": (13, 7)},
        {"fuse": "detail", "overlap": 2, "fit": "pad"},
        {"fuse": "detail"},
        {"norm": "l2"},
        {"norm": "layer"},
        {"norm": "std"},
        {"layers": (0, 3), "join_layers": False},
        {"scales": (0.5, 1)},
        {"scales": (0.5, 1), "whole": False},
    ],
    ids=str,
)
def test_every_mode_is_one_graph_of_constants(tmp_path, options):
    model = s2wrap.wrap(timm.create_model("test_vit", num_classes=0), **({"scales": (1, 2)} | options))
    to_onnx(model, tmp_path / "model.onnx", image_hw=(120, 190))
    images = torch.randn(3, 3, 120, 190)
    features, found = model(images), run(tmp_path / "model.onnx", images)
    numbers = [f"_{k}" for k in range(len(features.maps))] if len(features.maps) > 1 else [""]
    for number, spatial, prefix in zip(numbers, features.maps, features.prefixes, strict=True):
        np.testing.assert_allclose(found["spatial" + number], spatial.numpy(), atol=2e-4)
        np.testing.assert_allclose(found["prefix" + number], prefix.numpy(), atol=2e-4)
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not operators & {"Resize", "Upsample", "AveragePool", "GlobalAveragePool", "Loop", "If"}


def test_the_graph_is_portable_private_and_the_same_each_time(tmp_path, vit):
    model = s2wrap.wrap(vit, (1, 2, 3))
    paths = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    for path in paths:
        to_onnx(model, path, image_hw=(200, 200))
    content = paths[0].read_bytes()
    assert content == paths[1].read_bytes()
    assert b".py" not in content
    graph = onnx.load(paths[0])
    operators = [node.op_type for node in graph.graph.node]
    assert not {"Resize", "Upsample", "AveragePool", "GlobalAveragePool"} & set(operators)
    assert operators.count("Softmax") == len(vit.blocks)  # the backbone stands once, for the tiles of all scales
    weights = sum(parameter.numel() for parameter in vit.parameters()) * 4
    resizes = sum(2 * size * 200 for size in (160, 320, 480)) * 4
    assert len(content) < weights + resizes + 200_000
    assert {prop.key for prop in graph.metadata_props} == {"scales", "s2wrap_version", "backbone", "fuse"}


def test_export_leaves_the_model_as_it_was(tmp_path, vit):
    model = s2wrap.wrap(vit, (1, 2))
    images = torch.randn(1, 3, 160, 160)
    before = model(images).spatial
    to_onnx(model, tmp_path / "model.onnx")
    torch.testing.assert_close(model(images).spatial, before, atol=0, rtol=0)


def test_a_model_that_cannot_be_exported_leaves_no_file(tmp_path):
    class Data(torch.nn.Module):
        def forward(self, images):
            if images.sum() > 1e9:  # a branch on values
                return images[:, :, ::32, ::32]
            return torch.nn.functional.avg_pool2d(images, 16)

    with pytest.raises(S2WrapError, match="Data cannot be exported to ONNX"):
        to_onnx(s2wrap.wrap(Data(), (1,), image_size=64), tmp_path / "model.onnx")
    with pytest.raises(S2WrapError, match="the ending must be .onnx"):
        to_onnx(s2wrap.wrap(torch.nn.AvgPool2d(16), (1,), image_size=64), tmp_path / "model.plan")
    with pytest.raises(S2WrapError, match="1×1 pixels"):
        to_onnx(s2wrap.wrap(torch.nn.AvgPool2d(16), (1,), image_size=64), tmp_path / "model.onnx", image_hw=(1, 1))
    assert list(tmp_path.iterdir()) == []
