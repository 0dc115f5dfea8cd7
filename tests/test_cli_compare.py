import json
from functools import partial

import commands
import numpy as np
import pandas
import pytest
from PIL import Image

run = partial(commands.run, "compare")

FAST = ["--backend", "none", "--random-weights"]


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 180)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.normal(level, 30, (60, 80, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def test_it_prints_a_table_and_a_verdict_and_writes_reports(pictures, tmp_path, capsys):
    reports = [tmp_path / f"report{ending}" for ending in (".html", ".csv", ".json", ".png")]
    options = [option for path in reports for option in ("--report", path)]
    specs = ["timm:test_vit@1", "timm:test_vit@1,2"]
    assert run(*specs, "--data", pictures, "--cache", tmp_path / "cache", *options, *FAST) == 0
    out, err = capsys.readouterr()
    assert "timm:test_vit@1,2" in out
    assert "Best accuracy" in " ".join(out.split())
    assert "Next: s2wrap features PICTURES --model timm:test_vit@1" in " ".join(out.split())
    assert "report.html" in err
    frame = pandas.read_csv(reports[1])
    assert frame["model"].tolist() == specs
    assert frame["tiles"].tolist() == [1, 5]
    assert frame["accuracy"].between(0, 1).all()
    assert json.loads(reports[2].read_text())["verdict"]
    assert "timm:test_vit@1,2" in reports[0].read_text()
    assert Image.open(reports[3]).size[0] > 300


def test_json_is_all_that_is_printed_where_asked(capsys):
    assert run("timm:test_vit@1", "--json", "--backend", "eager", "--seconds", "0.05") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["model"] == "timm:test_vit@1"
    assert found["rows"][0]["timings"]["eager"]["median_ms"] > 0


def test_a_budget_proposes_what_fits(capsys):
    assert run("timm:test_vit@1", "--budget", "0.2GMAC", "--json", *FAST) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert "timm:test_vit@1,2" in [row["model"] for row in rows]
    assert all(row["multiply_adds"] <= 0.2e9 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["timm:test_vit@1", "--report", "report.pdf"], ".html"),
        (["timm:test_vit@1", "--budget", "1MMAC"], "nothing fits a budget of 0.001 G multiply-adds; the nearest is"),
        (["timm:test_vit@1", "--backend", "tf"], "backend 'tf' is unknown"),
        (["timm:test_vit@1", "timm:test_vit@1"], "is named twice"),
        (["timm:test_vit@1", "--data", "nowhere"], "nowhere: there is no such folder"),
        (["timm:test_vit@1", "--image", "big"], "--image 'big' is no size"),
    ],
)
def test_calls_that_cannot_work_are_one_line_and_exit_code_2(capsys, arguments, words):
    assert run(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("s2wrap: ")]
    assert len(lines) == 1
    assert words in lines[0]


def test_the_features_that_were_kept_are_deleted_on_demand(pictures, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "home" / name))
    assert run("timm:test_vit@1", "--data", pictures, *FAST) == 0
    assert len(list((tmp_path / "home").rglob("*.safetensors"))) == 20
    capsys.readouterr()
    assert run("--clear-cache") == 0
    assert "deleted 20 files of" in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "home").rglob("*.safetensors"))
