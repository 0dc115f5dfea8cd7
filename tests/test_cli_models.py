import json
import sys

import pytest

from s2wrap import S2WrapError
from s2wrap.backbones import from_transformers
from s2wrap.backbones.registry import FAMILIES
from s2wrap.cli.models import list_models, matches, specs


def listed(capsys, pattern="*", **options):
    """What `s2wrap models` prints."""
    list_models(pattern, **{"tags": False, "refused": False, "as_json": False} | options)
    return capsys.readouterr().out


def test_rows_hold_what_was_seen_of_a_model(capsys):
    (row,) = json.loads(listed(capsys, "timm:vit_tiny_patch16_224", as_json=True))
    assert row.pop("weights") in ("cached", "download")
    assert row == {
        "model": "timm:vit_tiny_patch16_224",
        "input_hw": "224x224",
        "layout": "bnc",
        "grid_hw": "14x14",
        "prefix_tokens": "1",
        "channels": "192",
    }


def test_a_pipe_gets_one_plain_name_a_line(capsys):
    lines = listed(capsys, "timm:test_*").splitlines()
    assert "timm:test_vit" in lines
    assert all(line.removeprefix("timm:") in FAMILIES["timm"].names() for line in lines)


def test_a_terminal_gets_whole_names_in_columns(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    lines = listed(capsys, "timm:*dinov2*", tags=True).splitlines()
    assert max(map(len, lines)) <= 80
    first = [line.split()[0] for line in lines]
    assert "timm:vit_giant_patch14_reg4_dinov2.lvd142m" in first
    assert lines[first.index("timm:vit_giant_patch14_reg4_dinov2.lvd142m")].split()[1] in ("download", "cached")


def test_tags_are_names_that_load_takes_with_pretrained_weights():
    tagged, plain = dict(specs(tags=True)), dict(specs())
    assert tagged["timm:vit_small_patch14_dinov2.lvd142m"] == "timm:vit_small_patch14_dinov2"
    assert tagged["open_clip:ViT-B-32/openai"] == "open_clip:ViT-B-32"
    for spec, architecture in tagged.items():
        assert architecture in plain
        family, _, name = spec.partition(":")
        assert FAMILIES[family].weights(name) in ("cached", "package", "download", "no package", None)
    assert not any(spec.startswith("transformers:") for spec in tagged)  # kinds have none
    assert not any("/" in spec for spec in plain)


def test_weights_that_a_package_carries_are_there(has_samples, capsys):
    rows = json.loads(listed(capsys, "sample:*", as_json=True))
    assert {row["weights"] for row in rows} == {"package"}


def test_weights_that_were_downloaded_are_cached(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").touch()
    rows = json.loads(listed(capsys, "torchvision:resnet*", as_json=True))
    assert {row["model"]: row["weights"] for row in rows if row["model"][-2:] in ("18", "34")} == {
        "torchvision:resnet18": "cached",
        "torchvision:resnet34": "download",
    }


@pytest.mark.parametrize("pattern", ["siglip-256", "open_clip:*SIGLIP-256*", "OPEN_CLIP:*SigLIP-256", "*-siglip-25?"])
def test_patterns_are_for_any_case_and_words_stand_anywhere(pattern):
    assert matches("open_clip:ViT-B-16-SigLIP-256", pattern)
    assert not matches("open_clip:ViT-B-16-SigLIP-384", pattern)


def test_what_does_not_exist_is_said(capsys):
    with pytest.raises(S2WrapError, match="no model is named like 'lite99'"):
        listed(capsys, "lite99")


def test_refused_models_come_with_the_reason(capsys):
    found = {
        row["model"]: row["reason"]
        for row in json.loads(listed(capsys, "transformers:*detr*", refused=True, as_json=True))
    }
    assert "its decoder" in found["transformers:conditional_detr"]
    assert "transformers:conditional_detr: " in listed(capsys, "transformers:*detr*", refused=True)


def test_kinds_of_transformers_are_those_whose_class_takes_pixels():
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    names = from_transformers.names()
    for kind in ("vit", "dinov2", "clip", "oneformer", "bert", "sam", "swin", "whisper", "donut-swin"):
        classes = MODEL_MAPPING_NAMES[kind]
        model = getattr(transformers, classes if isinstance(classes, str) else classes[0])
        assert (kind in names) == (model.main_input_name == "pixel_values"), kind
    assert "clip_vision_model" in names
