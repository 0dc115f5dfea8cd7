"""Weights from files: what does not fit is an error in every family, and what is harmless is not."""

import argparse
import logging
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import s2wrap
from s2wrap import S2WrapError
from s2wrap.backbones import from_open_clip, from_timm, sample
from s2wrap.backbones.checkpoint import exact_loading, read_tensors

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 1, "layers": 1},
}
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 16,
}


@pytest.fixture(autouse=True)
def _without_logging():
    """Nothing is learned from log lines."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch):
    """A CLIP and a kind of transformers that are made in no time."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-clip", CLIP)
    monkeypatch.setattr(
        "s2wrap.backbones.from_transformers.default_config", lambda kind: transformers.CONFIG_MAPPING[kind](**TINY)
    )


def made(spec: str) -> dict[str, torch.Tensor]:
    """The weights of a model with its classifier, as its own library makes it."""
    family, _, name = spec.partition(":")
    if family == "timm":
        return timm.create_model(name).state_dict()
    if family == "torchvision":
        from torchvision import models

        return models.get_model(name).state_dict()
    if family == "open_clip":
        return open_clip.create_model(name, load_weights=False).state_dict()
    return transformers.AutoModel.from_config(transformers.CONFIG_MAPPING[name](**TINY)).state_dict()


KEYS = {
    "timm:test_vit": "norm.weight",
    "timm:test_resnet": "layer1.0.bn1.weight",
    "torchvision:squeezenet1_1": "features.3.squeeze.bias",
    "open_clip:tiny-clip": "visual.ln_pre.weight",
    "transformers:vit": "layernorm.weight",
    "transformers:dinov2": "layernorm.weight",
}
FAMILIES = sorted(KEYS)


def load(spec: str, path: Any, **options: Any) -> nn.Module:
    return s2wrap.load(spec, checkpoint=path, **options).backbone.model


@pytest.mark.parametrize("spec", FAMILIES)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_the_weights_of_the_file_are_those_of_the_model(spec, ending, tmp_path):
    weights, path = made(spec), tmp_path / f"w.{ending}"
    save_file(weights, path) if ending == "safetensors" else torch.save(weights, path)
    model = load(spec, path)
    prefix = "visual." if spec.startswith("open_clip") else ""
    loaded = model.state_dict()
    assert KEYS[spec].removeprefix(prefix) in loaded
    for key, tensor in loaded.items():
        torch.testing.assert_close(tensor, weights[prefix + key], rtol=0, atol=0)


@pytest.mark.parametrize("spec", FAMILIES)
def test_what_is_missing_left_over_or_of_another_shape_is_refused(spec, tmp_path):
    weights, key, path = made(spec), KEYS[spec], tmp_path / "w.safetensors"
    save_file({name: part for name, part in weights.items() if name != key}, path)
    with pytest.raises(S2WrapError, match=f"w.safetensors are not those of .*: 1 missing: {key}$"):
        load(spec, path)
    save_file(weights | {f"x{number}": torch.zeros(1) for number in range(5)}, path)
    with pytest.raises(S2WrapError, match="w.safetensors are not those of .*: 5 left over: x0, x1, x2$"):
        load(spec, path)
    save_file(weights | {key: torch.zeros(3)}, path)
    words = rf"are not those of .*: 1 of another shape: {key} \(3,\) instead of \(\d+,\)$"
    with pytest.raises(S2WrapError, match=words):
        load(spec, path)


@pytest.mark.parametrize("spec", ["timm:test_vit", "torchvision:squeezenet1_1"])
def test_what_a_training_script_saves_beside_the_weights_is_ignored(spec, tmp_path):
    weights, path = made(spec), tmp_path / "last.pth"
    wrapped = {"_orig_mod.module." + key: tensor for key, tensor in weights.items()}
    torch.save({"state_dict": wrapped, "epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"a": [1]}}, path)
    torch.testing.assert_close(load(spec, path).state_dict()[KEYS.get(spec)], weights[KEYS.get(spec)])


def test_averaged_weights_go_before_others_in_timm(tmp_path):
    first, averaged = made("timm:test_vit"), made("timm:test_vit")
    torch.save({"state_dict": first, "state_dict_ema": averaged}, tmp_path / "last.pth")
    model = load("timm:test_vit", tmp_path / "last.pth")
    torch.testing.assert_close(model.pos_embed, averaged["pos_embed"])


@pytest.mark.parametrize("spec", ["timm:test_vit", "timm:test_resnet", "timm:test_convnext", "timm:test_efficientnet"])
def test_classifiers_of_any_size_mask_tokens_and_counts_of_batches_do_not_matter(spec, tmp_path):
    """They are no part of the features; `test_vit` and others differ in how the classifier's keys are called."""
    name, path = spec.removeprefix("timm:"), tmp_path / "w.pth"
    weights = timm.create_model(name, num_classes=7).state_dict()
    weights = {key: part for key, part in weights.items() if not key.endswith("num_batches_tracked")}
    torch.save(weights | {"mask_token": torch.zeros(1)}, path)
    model = load(spec, path)
    key = next(key for key in model.state_dict() if key.endswith("weight"))
    torch.testing.assert_close(model.state_dict()[key], weights[key])
    assert "state_dict" not in model.pretrained_cfg  # no second copy of the weights


def test_a_file_of_another_library_is_renamed_by_timm_before_it_is_compared(tmp_path):
    """Swin's own names, which timm changes: only what is missing is named, by timm's key."""
    name = "swin_tiny_patch4_window7_224"
    weights = timm.create_model(name).state_dict()
    theirs = {key.replace("head.fc.", "head."): part for key, part in weights.items()}
    for stage in (1, 2, 3):
        theirs = {
            key.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample"): part
            for key, part in theirs.items()
        }
    path = tmp_path / "swin.pth"
    torch.save({"model": theirs | {"layers.0.blocks.1.attn_mask": torch.zeros(1)}}, path)
    torch.testing.assert_close(load(f"timm:{name}", path).state_dict()["norm.weight"], weights["norm.weight"])
    del theirs["norm.weight"]
    torch.save({"model": theirs}, path)
    with pytest.raises(S2WrapError, match=f"are not those of {name}: 1 missing: norm.weight$"):
        load(f"timm:{name}", path)


@pytest.mark.parametrize("size", [{"image_size": 224}, {"image_size": (96, 128)}])
def test_position_embeddings_are_resampled_as_timm_does(size, tmp_path):
    weights, path = made("timm:test_vit"), tmp_path / "w.safetensors"
    save_file(weights, path)
    expected = timm.create_model(
        "test_vit",
        pretrained=True,
        num_classes=0,
        img_size=size["image_size"],
        pretrained_cfg_overlay={"file": str(path)},
    )
    model = load("timm:test_vit", path, **size)
    assert model.pos_embed.shape != weights["pos_embed"].shape
    torch.testing.assert_close(model.pos_embed, expected.pos_embed, rtol=0, atol=0)


def test_weights_for_other_channels_are_refused(tmp_path):
    for name in ("test_vit", "test_resnet"):
        torch.save(timm.create_model(name, in_chans=4).state_dict(), tmp_path / "w.pth")
        with pytest.raises(S2WrapError, match="4, "):
            load(f"timm:{name}", tmp_path / "w.pth")


def test_weights_for_three_channels_are_spread_over_four_by_timm_or_refused():
    weights = made("timm:test_vit")
    options: dict[str, Any] = {"num_classes": 0, "in_chans": 4, "pretrained": True}
    with exact_loading("test_vit", "w"):
        model = timm.create_model("test_vit", pretrained_cfg_overlay={"state_dict": weights}, **options)
    red = weights["patch_embed.proj.weight"][:, 0] * 3 / 4
    torch.testing.assert_close(model.patch_embed.proj.weight[:, 0], red)
    unadapted = {"state_dict": weights, "first_conv": None}
    words = r"1 of another shape: patch_embed.proj.weight \(64, 3, 16, 16\) instead of"
    with pytest.raises(S2WrapError, match=words), exact_loading("test_vit", "w"):
        timm.create_model("test_vit", pretrained_cfg_overlay=unadapted, **options)


def test_the_hub_and_a_file_are_loaded_alike(tmp_path, monkeypatch):
    weights = made("timm:test_vit")
    del weights["norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: str(tmp_path / name))
    with pytest.raises(S2WrapError, match="model.safetensors are not those of test_vit: 1 missing: norm.weight$"):
        s2wrap.load("timm:test_vit")


def test_weights_of_open_clips_hub_must_fit(tmp_path, monkeypatch):
    weights, path = made("open_clip:tiny-clip"), tmp_path / "w.pth"
    monkeypatch.setattr("open_clip.factory.get_pretrained_cfg", lambda *args: {"url": "x"})
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *args, **options: str(path))
    torch.save(weights, path)
    tower = from_open_clip.load("tiny-clip/mine").model
    torch.testing.assert_close(tower.ln_pre.weight, weights["visual.ln_pre.weight"])
    del weights["visual.ln_pre.weight"]
    torch.save(weights, path)
    with pytest.raises(S2WrapError, match="tiny-clip/mine are not those of .*: 1 missing: visual.ln_pre.weight$"):
        from_open_clip.load("tiny-clip/mine")


def test_weights_of_transformers_hub_must_fit_but_for_the_pooler(tmp_path):
    """A folder stands for a repository of the hub."""
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY))
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    file, weights = tmp_path / "model.safetensors", {key: part.clone() for key, part in model.state_dict().items()}
    loaded = s2wrap.load(f"transformers:{tmp_path}").backbone.model  # without classifier, with a random pooler
    torch.testing.assert_close(loaded.layernorm.weight, weights["vit.layernorm.weight"])
    key = "vit.embeddings.cls_token"
    save_file({name: part for name, part in weights.items() if name != key}, file, metadata={"format": "pt"})
    with pytest.raises(S2WrapError, match="are not those of its model: 1 missing: embeddings.cls_token$"):
        s2wrap.load(f"transformers:{tmp_path}")
    save_file(weights | {key: torch.zeros(1, 1, 8)}, file, metadata={"format": "pt"})
    words = r"1 of another shape: embeddings.cls_token \(1, 1, 8\) instead of \(1, 1, 32\)$"
    with pytest.raises(S2WrapError, match=words):
        s2wrap.load(f"transformers:{tmp_path}")


def test_a_pooler_may_be_missing_in_a_file(tmp_path):
    weights = {key: part for key, part in made("transformers:vit").items() if "pooler" not in key}
    save_file(weights, tmp_path / "w.safetensors")
    model = load("transformers:vit", tmp_path / "w.safetensors")
    torch.testing.assert_close(model.layernorm.weight, weights["layernorm.weight"])


@pytest.mark.parametrize("spec", FAMILIES)
@pytest.mark.parametrize("zipped", [True, False])
def test_files_with_code_are_refused_unread(spec, zipped, tmp_path, capsys):
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("executed",))

    torch.save({"state_dict": made(spec), "args": Evil()}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(S2WrapError, match="holds more than tensors.* nothing is unpickled here"):
        load(spec, tmp_path / "w.pth")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89PNG\r\n", "is no torch file"),
        (b"", "cannot be read as weights"),
        ({}, "holds no tensors"),
        ({"epoch": 3}, "holds no state dict, but a dict"),
        ([torch.zeros(1)], "holds no state dict, but a list"),
    ],
)
def test_other_files_are_no_weights(content, words, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(S2WrapError, match=words):
        read_tensors(path)


def test_files_of_torch_before_version_1_6_are_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    torch.testing.assert_close(read_tensors(tmp_path / "w.pth"), {"a": torch.ones(2)})


def test_loading_is_checked_only_inside_the_block():
    def lenient() -> nn.Module:
        model = nn.Sequential(nn.Linear(1, 1))
        model.load_state_dict({}, strict=False)
        return model

    words = "the weights in w are not those of m: 2 missing: 0.bias, 0.weight"
    with pytest.raises(S2WrapError, match=words), exact_loading("m", "w"):
        lenient()
    with exact_loading("m", "w"):
        model = nn.Sequential(nn.Linear(1, 1))
    model.load_state_dict({}, strict=False)
    lenient()


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("test_vit", {"img_size", "patch_size"}),
        ("resnet18", set()),
        ("levit_128s", {"img_size"}),
        ("naflexvit_base_patch16_map", {"img_size", "patch_size"}),
    ],
)
def test_sizes_go_to_the_models_that_take_them(name, taken):
    if "patch_size" in taken:
        assert from_timm._sizes(name, 64, 8).keys() == taken
    else:
        assert from_timm._sizes(name, 64, None).keys() == taken
        with pytest.raises(S2WrapError, match="has no patches to resample, as patch=8 asks"):
            from_timm._sizes(name, 64, 8)
    assert timm.create_model(name, **dict.fromkeys(taken, 32))


@pytest.mark.usefixtures("has_samples")
def test_packaged_weights_must_fit_too(monkeypatch):
    assert s2wrap.load("sample:efficientnet_lite0@1").backbone.model.num_classes == 0
    read = sample._from_pth

    def without_one(*args: Any) -> dict[str, torch.Tensor]:
        weights = read(*args)
        del weights["conv_head.weight"]
        return weights

    monkeypatch.setattr(sample, "_from_pth", without_one)
    with pytest.raises(S2WrapError, match="are not those of tf_efficientnet_lite0: 1 missing: conv_head.weight$"):
        s2wrap.load("sample:efficientnet_lite0@1")
