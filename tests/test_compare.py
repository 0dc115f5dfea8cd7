import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import s2wrap
from s2wrap import S2WrapError
from s2wrap.compare import compare
from s2wrap.compare.data import read_folder
from s2wrap.compare.report import to_json
from s2wrap.cost import count_cost
from s2wrap.images import load_image

SPECS = ["timm:test_vit@1", "timm:test_vit@1,2", "timm:test_vit2@1"]


@pytest.fixture(autouse=True)
def _same_weights(monkeypatch):
    """Random weights are the same each time that a model is made."""
    create = s2wrap.backbones.from_timm.create

    def seeded(*args, **options):
        torch.manual_seed(0)
        return create(*args, **options)

    monkeypatch.setattr("s2wrap.backbones.from_timm.create", seeded)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    """Pictures of two classes: upright and lying stripes, with noise."""
    folder, rng = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    for name in ("lying", "upright"):
        (folder / name).mkdir()
        for i in range(12):
            wave = np.sin(np.arange(160) * rng.uniform(0.3, 0.6) + rng.uniform(0, 6))
            pixels = np.broadcast_to(wave[:, None] if name == "lying" else wave, (160, 160))
            noisy = 128 + 60 * pixels[..., None] + rng.normal(0, 20, (160, 160, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def run(folder, tmp_path, specs=SPECS, **options):
    options = {"pretrained": False, "backends": (), "cache": tmp_path / "cache"} | options
    return compare(specs, data=folder, **options)


def test_costs_alone_need_no_weights_and_no_pictures(monkeypatch):
    found = compare(SPECS, seconds=0.05)
    for row, spec in zip(found.rows, SPECS, strict=True):
        assert row.spec == spec
        assert row.cost == count_cost(s2wrap.load(spec, pretrained=False))
        assert row.memory > 0
        assert row.timings["eager"]["median_ms"] > 0
        assert row.scores == {}
    assert found.measures == []
    assert found.verdict == []
    assert "CPU" in found.facts["device"]


def test_the_scores_are_those_of_a_plain_loop(stripes, tmp_path):
    """Features by the model itself, and scikit-learn's own cross-validation over the same folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = run(stripes, tmp_path)
    assert found.tasks == {
        "classification": ("accuracy", "k-NN"),
        "retrieval": ("mAP", "recall@1"),
    }
    assert found.facts["pictures"] == "24 pictures in 2 classes, each tested once in 5 folds"
    pictures = read_folder(stripes)
    for row in found.rows:
        model = s2wrap.load(row.spec, pretrained=False)
        vectors = torch.cat([model(load_image(path)[None]).pooled for path in pictures.paths]).numpy()
        right = np.zeros(24)
        for fold in pictures.folds:
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
            probe = GridSearchCV(probe, {"logisticregression__C": 10.0 ** np.arange(-5, 4)}, cv=3)
            guessed = probe.fit(vectors[fold.train], pictures.labels[fold.train]).predict(vectors[fold.test])
            right[fold.test] = guessed == pictures.labels[fold.test]
        assert row.scores["accuracy"].value == pytest.approx(right.mean(), abs=3 / 24)  # its C may be another
    assert found.rows[0].scores["accuracy"].value > 0.7
    assert any(row.on_front for row in found.rows)
    assert any("test_vit@1,2 against one scale, test_vit@1: " in sentence for sentence in found.pairs)


def test_two_runs_give_the_same_figures_and_the_second_computes_nothing(stripes, tmp_path, monkeypatch):
    first = run(stripes, tmp_path)
    monkeypatch.setattr(s2wrap.MultiScale, "encode", lambda *args: pytest.fail("computed again"))
    second = run(stripes, tmp_path)
    assert json.loads(to_json(first)) == json.loads(to_json(second))


def test_features_are_reconstructed_where_asked(stripes, tmp_path):
    (tmp_path / "plain").mkdir()
    for i, path in enumerate(sorted(stripes.rglob("*.png"))):
        Image.open(path).save(tmp_path / "plain" / f"{i}.png")
    found = run(tmp_path / "plain", tmp_path, tasks=["reconstruction"])
    sizes = [row.cost.parameters for row in found.rows]
    largest = found.rows[int(np.argmax(sizes))].spec
    assert found.facts["reconstructed"] == f"the features of {largest}"
    assert found.measures == ["information", "training information"]
    for row in found.rows:
        has_its_weights = row.spec.partition("@")[0] == largest.partition("@")[0]
        assert ("information" in row.scores) == (not has_its_weights)
        if not has_its_weights:
            assert row.scores["training information"].value > 0
    found = run(tmp_path / "plain", tmp_path, target="timm:test_vit2@1")
    assert all("information" in row.scores for row in found.rows if "test_vit2" not in row.spec)


@pytest.mark.parametrize(
    ("name", "measures"),
    [
        ("scenes", ["mIoU", "boundary mIoU", "k-NN mIoU", "boundary k-NN"]),
        ("defects", ["AU-PRO", "pixel AUROC", "best F1", "image AUROC"]),
        ("relief", ["δ<1.25", "RMSE"]),
    ],
)
def test_each_form_of_folder_has_its_tasks(tmp_path, monkeypatch, name, measures):
    """Made-up pictures of benchmarks/tasks_data.py, and a backbone of random weights that sees what is coarse."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    from tasks_data import WRITERS

    WRITERS[name](tmp_path / name, 6, 0)
    found = run(tmp_path / name, tmp_path, specs=["timm:test_vit@1", "timm:test_vit@1,2 fuse=mean"])
    assert found.measures == measures
    for row in found.rows:
        scores = {measure: row.scores[measure].value for measure in measures}
        assert all(0 < value < 1 for measure, value in scores.items() if measure != "RMSE")
        assert row.unable == {}
    assert found.rows[1].spec == "timm:test_vit@1,2 fuse=mean"
    assert found.rows[1].cost.tiles == 5


def test_a_test_picture_never_trains(stripes, tmp_path):
    """With the same picture in training and test the comparison refuses; see also test_classify.py."""
    for part, numbers in (("train", range(8)), ("val", range(7, 12))):
        for name in ("lying", "upright"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in numbers:
                Image.open(stripes / name / f"{i}.png").save(tmp_path / part / name / f"{i}.png")
    with pytest.raises(S2WrapError, match=r"are the same picture in training and test"):
        run(tmp_path, tmp_path / "cache")


def test_skipped_pictures_are_counted(stripes, tmp_path):
    for path in stripes.rglob("*.png"):
        target = tmp_path / "data" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (tmp_path / "data" / "lying" / "bad.png").write_bytes(b"")
    with pytest.raises(S2WrapError, match=r"1 of 25 pictures cannot be used: .*bad\.png"):
        run(tmp_path / "data", tmp_path, specs=SPECS[:1])
    found = run(tmp_path / "data", tmp_path, specs=SPECS[:1], skip_errors=True)
    assert len(found.skipped) == 1
    assert "bad.png" in found.skipped[0]


@pytest.mark.parametrize(
    ("specs", "options", "words"),
    [
        ([], {}, r"takes a list of models, not \[\]"),
        ("timm:test_vit@1", {}, "takes a list of models"),
        (["timm:test_vit@1", "timm:test_vit@1"], {}, "timm:test_vit@1 is named twice"),
        (["timm:nothing@1"], {}, "timm knows no model 'nothing'"),
        (["timm:test_vit@1"], {"backends": ("fast",)}, "backend 'fast' is unknown"),
        (["timm:test_vit@1"], {"pool": "median"}, "pool='median' is unknown; use some of mean, max, cls"),
        (["timm:test_vit@1"], {"target": "timm:test_vit2@1"}, "give a folder of them"),
        (["timm:test_vit@1"], {"fuze": "mean"}, "has no option 'fuze'; did you mean fuse"),
        (["timm:test_vit@1 fuze=mean"], {}, "has no option 'fuze'; did you mean fuse"),
        (["timm:test_vit@1 mean"], {}, "'mean' is no option; write options behind the spec"),
        (["timm:test_vit@1,2 select=1 select=3"], {}, "names an option twice"),
        (["timm:test_vit@1 norm=l2", "timm:test_vit@1  norm=l2"], {}, "is named twice"),
    ],
)
def test_what_cannot_be_compared_is_told(specs, options, words):
    with pytest.raises(S2WrapError, match=words):
        compare(specs, **options)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (["matching"], "task 'matching' is unknown; use some of classification"),
        (
            ["segmentation"],
            "segmentation needs a folder with masked pictures, and this one is labelled; its",
        ),
    ],
)
def test_tasks_that_a_folder_is_not_for_are_told_with_those_that_it_is_for(stripes, tmp_path, tasks, words):
    with pytest.raises(S2WrapError, match=words):
        run(stripes, tmp_path, tasks=tasks)


def test_a_model_alone_cannot_be_reconstructed(stripes, tmp_path):
    (tmp_path / "plain").mkdir()
    for i, path in enumerate(sorted(stripes.rglob("*.png"))):
        Image.open(path).save(tmp_path / "plain" / f"{i}.png")
    with pytest.raises(S2WrapError, match="no model but timm:test_vit@1 and its own weights is named"):
        run(tmp_path / "plain", tmp_path, specs=SPECS[:1], tasks=["reconstruction"])


def test_progress_is_shown_where_asked(stripes, tmp_path, capsys):
    run(stripes, tmp_path, specs=SPECS[:1], console=Console(force_terminal=True, stderr=True))
    shown = capsys.readouterr().err
    for step in ("reading", "loading", "counting", "test_vit@1", "classification"):
        assert step in shown
