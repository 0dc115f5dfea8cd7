"""`fuse="auto"`: the fusion that won on tasks for a kind of backbone."""

import json

import pytest
import timm
import torch
from torch.nn import functional

import s2wrap
from s2wrap import S2WrapError
from s2wrap.best_fusion import best_fusions
from s2wrap.options import Options


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.randn(2, 3, 320, 320)


def by_hand(model, images):
    """The mean of the tokens of two scales, each of length 1, on the finer grid: the larger scale in 2 × 2 tiles."""
    base = model.backbone(functional.interpolate(images, (160, 160), mode="bicubic", antialias=True)).spatial
    rows = []
    for top in (0, 160):
        tiles = [model.backbone(images[..., top : top + 160, left : left + 160]).spatial for left in (0, 160)]
        rows.append(torch.cat(tiles, 3))
    fine = torch.cat(rows, 2)
    coarse = functional.interpolate(base, fine.shape[2:], mode="bilinear", align_corners=False)
    return (functional.normalize(coarse, dim=1) + functional.normalize(fine, dim=1)) / 2


def test_auto_is_the_mean_of_tokens_of_length_1_on_the_finest_grid(images):
    torch.manual_seed(0)
    model = s2wrap.wrap(timm.create_model("test_vit", num_classes=0), (1, 2), fuse="auto")
    with torch.inference_mode():
        torch.testing.assert_close(model(images).spatial, by_hand(model, images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("test_vit", "transformer"), ("test_resnet", "convolutional")])
def test_auto_comes_to_what_the_table_says_of_the_kind(name, kind):
    options = s2wrap.wrap(timm.create_model(name), (1, 2), fuse="auto").options
    best = best_fusions()[kind]["options"]
    assert {word: getattr(options, word) for word in best} == best
    assert options.fuse != "auto"


def test_the_table_holds_the_scores_that_chose_it():
    for kind, found in best_fusions().items():
        most = max(found["points"].values())
        won = [
            dict(part.split("=") for part in name.split() if "=" in part)  # none is the default
            for name, points in found["points"].items()
            if points == most
        ]
        default = {"fuse": "concat", "norm": "none", "target_grid": None}
        assert found["options"] in [default | options for options in won], kind
        assert {len(scores) for scores in found["scores"].values()} == {5}
        assert "-dirty" not in found["commit"]


def test_a_grid_that_was_asked_for_stays():
    model = s2wrap.wrap(timm.create_model("test_vit"), (1, 2), fuse="auto", target_grid=(7, 9))
    assert model.options.target_grid == (7, 9)


def test_auto_chooses_the_norm_itself():
    with pytest.raises(S2WrapError, match="norm='layer' with fuse='auto', which chooses the norm"):
        Options(fuse="auto", norm="layer")


def test_what_is_written_says_what_auto_came_to(tmp_path, images):
    model = s2wrap.load("timm:test_vit@1,2", pretrained=False, fuse="auto")
    assert model.recipe is not None
    assert model.recipe["fuse"] == model.options.fuse
    model.save(tmp_path / "model")
    assert '"auto"' not in (tmp_path / "model" / "s2wrap.json").read_text()
    again = s2wrap.load(tmp_path / "model")
    assert again.options == model.options
    with torch.inference_mode():
        torch.testing.assert_close(again(images).spatial, model(images).spatial)


def test_an_exported_file_computes_what_auto_came_to(tmp_path, images):
    import s2wrap.export

    model = s2wrap.load("timm:test_vit@1,2", pretrained=False, fuse="auto")
    s2wrap.export.export(model, tmp_path / "model.onnx", image_hw=(320, 320))
    found = s2wrap.export.load(tmp_path / "model.onnx")(images)
    with torch.inference_mode():
        torch.testing.assert_close(found.spatial, by_hand(model, images), atol=1e-4, rtol=1e-3)
    (manifest,) = (file for file in tmp_path.iterdir() if file.suffix == ".json")
    assert json.loads(manifest.read_text())["options"]["fuse"] == "mean"


@pytest.mark.parametrize(("name", "kind"), [("test_vit", "transformer"), ("test_resnet", "convolutional")])
def test_a_backbone_in_a_file_is_still_of_its_kind(tmp_path, monkeypatch, name, kind):
    import s2wrap.export

    table = {each: {"options": {"fuse": "max", "norm": "l2" if each == kind else "std"}} for each in best_fusions()}
    monkeypatch.setattr("s2wrap.best_fusion.best_fusions", lambda: table)
    model = s2wrap.load(f"timm:{name}@1,2", pretrained=False, whole=False)
    s2wrap.export.export(model, tmp_path / "tiles.onnx", tiles=True, verify=False)
    engine = s2wrap.export.load(tmp_path / "tiles.onnx", fuse="auto")
    assert engine.model is not None
    assert (engine.model.options.fuse, engine.model.options.norm) == ("max", "l2")
