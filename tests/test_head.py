"""Exported files that end with a module of the caller's: `export(head=)`, and what else a manifest keeps."""

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import nn

import s2wrap
from s2wrap import S2WrapError
from s2wrap.compare.tasks.anomaly import AnomalyMap
from s2wrap.export import VerificationError, export, load, verify
from s2wrap.export.options import TritonOptions
from s2wrap.export.parity import compare
from s2wrap.export.triton_config import model_config
from s2wrap.features import join
from s2wrap.serve.source import arrays_of, look_at

pytestmark = pytest.mark.usefixtures("kept_traces")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.wrap(timm.create_model("test_vit", num_classes=0, depth=2), (1, 2))


@pytest.fixture(scope="module")
def probe():
    torch.manual_seed(1)
    return nn.Conv2d(128, 5, 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model, probe):
    path = tmp_path_factory.mktemp("head") / "probe.onnx"
    manifest = export(model, path, head=probe, notes={"classes": ["dent", "hole"]}, image_hw=(160, 160))
    return path, manifest


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 160, 160), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_linear_probe_answers_from_the_file_as_in_pytorch(exported, model, probe, images):
    path, manifest = exported
    assert [port["name"] for port in manifest["outputs"]] == ["spatial", "prefix", "head"]
    assert "head" in [parity["output"] for parity in manifest["verification"]["outputs"]]
    engine, features = load(path), model(images)
    expected = torch.einsum("bchw,kc->bkhw", features.spatial, probe.weight[:, :, 0, 0]) + probe.bias[:, None, None]
    found = engine(images)
    torch.testing.assert_close(found.head, expected.detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.spatial, features.spatial, atol=1e-4, rtol=0)
    assert torch.equal(found[1:].head, found.head[1:])
    assert torch.equal(join([found[:1], found[1:]]).head, found.head)
    assert found.to(torch.float16).head.dtype == torch.float16
    encoded = engine.encode(list(images))
    torch.testing.assert_close(torch.cat([each.head for each in encoded]), found.head, atol=1e-5, rtol=0)
    assert found.numpy()["head"].shape == (3, 5, 10, 10)


def test_the_file_alone_answers_and_keeps_the_notes(exported, model, probe, images):
    path, manifest = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(["head"], {"images": model.input.normalise(images).numpy()})
    expected = probe(model(images).spatial).detach().numpy()
    assert np.abs(answer - expected).max() < 1e-4
    (note,) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == "s2wrap")
    assert json.loads(note)["notes"] == manifest["notes"] == {"classes": ["dent", "hole"]}
    assert load(path).manifest["notes"] == {"classes": ("dent", "hole")}


def test_notes_are_returned_as_the_file_keeps_them(tmp_path, model):
    notes: Any = {1: "dent", "b": 2}
    manifest = export(model, tmp_path / "model.onnx", notes=notes, image_hw=(160, 160), verify=False)
    assert manifest["notes"] == load(tmp_path / "model.onnx").manifest["notes"] == {"1": "dent", "b": 2}


def test_a_bank_of_tokens_is_in_the_file(tmp_path, model, images):
    bank = torch.randn(1500, 128, generator=torch.Generator().manual_seed(2))
    export(model, tmp_path / "bank.onnx", head=AnomalyMap(bank), outputs=("pooled", "head"), image_hw=(160, 160))
    found = load(tmp_path / "bank.onnx")(images)
    tokens = model(images).tokens
    for image, row, column in ((0, 0, 0), (1, 3, 7), (2, 9, 9)):
        cosines = F.cosine_similarity(tokens[image, 10 * row + column], bank)
        assert float(found.head[image, 0, row, column]) == pytest.approx(1 - float(cosines.max()), abs=1e-5)
    torch.testing.assert_close(found.pooled, tokens.mean(dim=1), atol=1e-4, rtol=0)


def test_a_head_takes_every_map_and_stays_float32(tmp_path, images):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, coarse, fine):
            assert coarse.dtype == fine.dtype == torch.float32
            return self.dropout(torch.cat([coarse.mean(dim=(2, 3)), fine.amax(dim=(2, 3))], dim=1))

    torch.manual_seed(0)
    model = s2wrap.wrap(timm.create_model("test_vit", num_classes=0, depth=2), (1, 2), fuse="pyramid")
    manifest = export(model, tmp_path / "sum.onnx", head=Sum(), precision="fp16", image_hw=(160, 160))
    assert manifest["outputs"][-1] == {"name": "head", "dtype": "float32", "shape": ["batch", 128]}
    coarse, fine = model(images).maps
    expected = torch.cat([coarse.mean(dim=(2, 3)), fine.amax(dim=(2, 3))], dim=1)
    assert (load(tmp_path / "sum.onnx")(images).head - expected).norm() < 1e-2 * expected.norm()


def test_a_head_that_writes_into_its_maps_leaves_those_of_the_file_alone(tmp_path, model, images):
    export(model, tmp_path / "relu.onnx", head=nn.ReLU(inplace=True), image_hw=(160, 160))
    found, expected = load(tmp_path / "relu.onnx")(images), model(images).spatial
    torch.testing.assert_close(found.spatial, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.head, expected.clamp(min=0), atol=1e-4, rtol=0)


def test_a_head_that_computes_something_else_is_found(exported, model, probe):
    path, _ = exported
    assert verify(path, model=model, head=probe).passed
    with pytest.raises(VerificationError, match="does not compute what PyTorch computes: head: cosine"):
        verify(path, model=model, head=nn.Conv2d(128, 5, 1))
    with pytest.raises(S2WrapError, match=r"has a head of its maker's; verify it in Python: verify\(.*head=module\)"):
        verify(path)


def test_a_head_beside_a_file_of_others_is_not_ignored(exported, tmp_path, model, probe):
    (tmp_path / "foreign.onnx").write_bytes(exported[0].read_bytes())
    with pytest.raises(S2WrapError, match=r"head=Conv2d: .*foreign\.onnx has no manifest"):
        verify(tmp_path / "foreign.onnx", model=model, head=probe)


def test_a_small_error_of_one_number_a_token_fails_by_its_size_and_not_by_its_sign():
    expected = torch.rand(2, 1, 20, 20)
    expected[0, 0, 0] = 1e-9
    near = compare("head", expected - 1e-6, expected)
    assert near.cosine_mean > 0.9999
    assert near.relative_error < 1e-5
    assert compare("head", expected.flip(3), expected).cosine_mean < 0.99


def test_servers_know_the_head(exported, images):
    path, manifest = exported
    for backend in ("native", "python"):
        config = model_config(manifest, TritonOptions(name="probe", backend=backend))
        assert {output.name: list(output.dims) for output in config.output}["head"] == [5, 10, 10]
    engine = load(path)
    about = look_at(engine)
    assert about.features["head"] == {"head": [1, 5, 10, 10]}
    features = engine(images[:1])
    assert torch.equal(arrays_of(features, None, ["head"])["head"], features.head)
    wrapped = s2wrap.load("timm:test_vit@1", pretrained=False)
    assert look_at(wrapped).lacks["head"] == "only a file exported with head= has one"
    with pytest.raises(S2WrapError, match="have no head: only those of a file exported with head="):
        _ = wrapped(images).head


class Bank(nn.Module):
    """Of tokens whose gradient somebody forgot, which cannot be copied."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bank", 2 * torch.ones(3, 128, requires_grad=True))


class Answer(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, spatial):
        return self.change(spatial)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "conv"}, "head='conv' is no torch.nn.Module"),
        ({"head": nn.Conv2d(64, 2, 1)}, r"head=Conv2d, .* maps \(2, 128, 10, 10\), fails: .* to have 64 channels"),
        ({"head": Answer(lambda x: (x, x))}, "returns tuple; let it return one tensor"),
        ({"head": Answer(lambda x: x.argmax(dim=1))}, r"returns torch.int64 \(2, 10, 10\); let it return float32"),
        ({"head": Answer(lambda x: x.mean(dim=(1, 2, 3)))}, r"returns torch.float32 \(2,\); .* of two dimensions"),
        ({"head": Answer(lambda x: x.mean(dim=0, keepdim=True))}, r"returns torch.float32 \(1, 128, 10, 10\)"),
        ({"head": Answer(lambda x: x.reshape(2, -1))}, r"maps \(3, 128, 10, 10\), returns torch.float32 \(2, "),
        ({"head": Answer(lambda x: x.mean(dim=(2, 3)) @ x.mean(dim=(2, 3)).T)}, r"\(3, 3\); .* same shape an image"),
        ({"head": Answer(lambda x: x[:, :0])}, r"returns torch.float32 \(2, 0, 10, 10\)"),
        ({"head": Bank()}, r"head=Bank cannot be copied: RuntimeError: .*; detach\(\) its tensors"),
        ({"head": Answer(lambda x: torch.linalg.eigvals(x).real)}, "test_vit with head=Answer cannot be exported"),
        ({"head": nn.Identity(), "tiles": True, "image_hw": None}, "tiles exports the backbone alone"),
        ({"head": nn.Identity(), "outputs": ("spatial",)}, "the output head go together"),
        ({"head": nn.Identity(), "outputs": ("head",)}, r"beside another output: \('pooled', 'head'\)"),
        ({"outputs": ("spatial", "head")}, r"head=None: head= \(in Python\) and the output head go together"),
        ({"notes": {"threshold": float("nan")}}, "notes={'threshold': nan} cannot be JSON"),
        ({"notes": ["dent", "hole"]}, r"notes=\['dent', 'hole'\] have no names; give a dict"),
        ({"notes": {"threshold": torch.zeros(1)}}, "cannot be JSON: Object of type Tensor"),
    ],
)
def test_wrong_heads_and_notes_are_one_error_and_leave_nothing(tmp_path, model, options, words):
    with pytest.raises(S2WrapError, match=words):
        export(model, tmp_path / "model.onnx", **({"image_hw": (160, 160)} | options))
    assert list(tmp_path.iterdir()) == []
