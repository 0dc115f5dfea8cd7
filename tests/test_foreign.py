"""Files that others built, and what is inside files."""

import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn
from typer.testing import CliRunner

import s2wrap
from s2wrap import S2WrapError
from s2wrap.cli import app
from s2wrap.export import VerificationError, export, verify

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, depth=3).eval()


@pytest.fixture(scope="module")
def model(vit):
    return s2wrap.wrap(vit, (1,))


class Forms(nn.Module):
    """A backbone as somebody else would export it."""

    def __init__(self, vit, form):
        super().__init__()
        self.vit, self.form = vit, form

    def forward(self, images):
        if self.form == "pixels":
            images = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        tokens = self.vit.forward_features(images)
        if self.form == "cls and tokens":
            return tokens[:, 0], tokens[:, 1:]
        if self.form == "last":
            return tokens[:, 1:].unflatten(1, (10, 10))
        return tokens


def written(vit, form, path, dtype=torch.float32):
    example = torch.zeros(2, 3, 160, 160, dtype=dtype)
    if form == "pixels":
        example = torch.zeros(2, 160, 160, 3, dtype=torch.uint8)
    forms = Forms(vit, form).to(dtype).eval()
    torch.onnx.export(
        forms, (example,), path, dynamo=True, verbose=False, external_data=False, dynamic_shapes=({0: "batch"},)
    )
    vit.float()
    return path


@pytest.mark.parametrize("form", ["all", "cls and tokens", "last", "pixels"])
def test_a_file_of_the_same_model_passes_whatever_its_form(vit, model, tmp_path, form):
    report = verify(written(vit, form, tmp_path / "other.onnx"), model=model)
    assert report.passed
    told = {"cls and tokens": {"cls", "tokens"}, "last": {"spatial, channels last"}}
    said = {parity.output.partition(" (as ")[2].rstrip(")") for parity in report.outputs}
    assert said == told.get(form, {"prefix and tokens"})


def test_float16_and_quantised_files_have_their_own_gates(vit, model, tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    half = verify(written(vit, "all", tmp_path / "half.onnx", torch.float16), model=model)
    assert half.gate.error == 0.01
    quantize_dynamic(written(vit, "all", tmp_path / "plain.onnx"), tmp_path / "dynamic.onnx")
    assert "MatMulInteger" in {node.op_type for node in onnx.load(tmp_path / "dynamic.onnx").graph.node}
    dynamic = verify(tmp_path / "dynamic.onnx", model=model)
    assert dynamic.gate.error == 0.2
    assert dynamic.outputs[0].relative_error > 1e-3


def test_files_of_a_fixed_batch_and_of_other_channels_are_compared(vit, model, tmp_path):
    path = tmp_path / "fixed.onnx"
    torch.onnx.export(Forms(vit, "all").eval(), (torch.zeros(3, 3, 160, 160),), path, dynamo=True, verbose=False)
    report = verify(path, model=model, layers=True)
    assert report.passed
    assert "blocks.0.mlp.fc1" in {layer.module for layer in report.layers.found}
    net = nn.Sequential(nn.Conv2d(4, 8, 16, 16), nn.ReLU()).eval()

    class Bytes(nn.Module):
        def forward(self, images):
            return net((images.float() / 255 - 0.5) / 0.5)

    example = torch.zeros(2, 4, 64, 64, dtype=torch.uint8)
    torch.onnx.export(Bytes().eval(), (example,), tmp_path / "four.onnx", dynamo=True, verbose=False)
    four = s2wrap.wrap(net, (1,), image_size=64, mean=(0.5,) * 4, std=(0.5,) * 4, in_channels=4)
    assert verify(tmp_path / "four.onnx", model=four).passed


def test_another_model_fails_and_other_shapes_are_refused(vit, model, tmp_path):
    path = written(vit, "all", tmp_path / "other.onnx")
    torch.manual_seed(1)
    stranger = s2wrap.wrap(timm.create_model("test_vit", num_classes=0, depth=3), (1,))
    with pytest.raises(VerificationError, match="does not compute what PyTorch computes"):
        verify(path, model=stranger)
    wide = s2wrap.wrap(vit, (1, 2))
    with pytest.raises(S2WrapError, match="of shape 1×101×64; test_vit gives spatial 1×128×10×10"):
        verify(path, model=wide)
    grey = s2wrap.wrap(timm.create_model("test_vit", num_classes=0, in_chans=1), (1,))
    with pytest.raises(S2WrapError, match="must take one batch of images"):
        verify(path, model=grey)
    with pytest.raises(S2WrapError, match="has no manifest"):
        verify(path)


def spoil(path, matrix):
    """Change one weight matrix of a file."""
    proto, values = onnx.load(path), None
    for weight in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.shape == matrix.T.shape and np.allclose(values, matrix.T, atol=1e-3):
            break
    weight.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 1, axis=1) * 3, weight.name))
    onnx.save(proto, path)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_first_layer_that_departs_is_named(vit, model, tmp_path, precision):
    path = tmp_path / "model.onnx"
    export(model, path, precision=precision, verify=False)
    inside = verify(path, model=model, layers=True).layers
    assert inside.departure is None
    assert {"patch_embed.proj", "blocks.0.mlp.fc1", "blocks.2"} <= {layer.module for layer in inside.found}
    path.with_name("model.onnx.json").unlink()  # as if somebody else had built it
    spoil(path, vit.blocks[1].mlp.fc1.weight.detach().numpy())
    with pytest.raises(VerificationError) as raised:
        verify(path, model=model, layers=True)
    inside = raised.value.report.layers
    assert inside.departure.module == "blocks.1.mlp.fc1"
    names = [name for node in onnx.load(path).graph.node for name in node.output]
    assert inside.departure.node in names
    assert "blocks.0.mlp.fc2" in {layer.module for layer in inside.found}
    assert "blocks.1.mlp.fc2" not in {layer.module for layer in inside.found}


def test_the_command_compares_files_of_others(tmp_path):
    torch.manual_seed(0)
    named = s2wrap.load("timm:test_vit@1", pretrained=False)
    path = str(written(named.backbone.model, "all", tmp_path / "other.onnx"))
    command = ["verify", path, "--against", "timm:test_vit@1", "--random-weights", "--layers"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "prefix and tokens" in " ".join(result.output.split())
    assert "No layer of the backbone departs" in result.output
    for command, message in (
        (["verify", path], "has no manifest"),
        (["verify", path, "--random-weights"], "for --against SPEC, which is not given"),
        (["verify", "none.rtx", "--layers"], "hides its layers"),
    ):
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, S2WrapError)
        assert message in str(result.exception)
    assert sys.modules["s2wrap.export.foreign"]
