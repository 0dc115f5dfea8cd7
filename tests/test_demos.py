import csv
import importlib.util
import inspect
import re
import runpy
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

import s2wrap
from s2wrap.images import load_image

DEMOS = Path(__file__).parent.parent / "demos"


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs a demo as `python demos/NAME.py WORDS` does: exit code, or last words, and printed text."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        monkeypatch.syspath_prepend(DEMOS)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(DEMOS / name), run_name="__main__")
        printed = capsys.readouterr()
        return stop.value.code, printed.out + printed.err

    return run


@pytest.mark.usefixtures("has_samples")
@pytest.mark.parametrize("name", ["first_look", "export_engine", "search"])
def test_the_model_of_a_demo_can_be_had(monkeypatch, name):
    """Other tests take smaller ones."""
    monkeypatch.syspath_prepend(DEMOS)
    default = inspect.signature(importlib.import_module(name).main).parameters["model"].default
    assert s2wrap.load(default).num_features >= 384


@pytest.mark.usefixtures("has_samples")
def test_first_look_writes_a_picture_with_something_in_every_panel(tmp_path, run):
    output = tmp_path / "look.png"
    code, _ = run("first_look.py", "--output", output, "--model", "sample:efficientnet_lite0@1,2,3")
    assert code == 0
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    assert output.stat().st_size < 1_000_000
    height, width = picture.shape[:2]
    for row in range(3):
        for col in range(5):
            top, left = int((0.12 + 0.31 * row) * height), int((0.04 + 0.2 * col) * width)
            assert picture[top : top + height // 8, left : left + width // 8].std() > 5


@pytest.mark.usefixtures("has_samples")
def test_seamless_writes_a_picture_with_a_title_and_something_in_every_panel(tmp_path, run):
    output = tmp_path / "seamless.png"
    assert run("seamless.py", "--photos", 1, "--output", output)[0] == 0
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    for col in range(7):
        left = int((0.01 + 0.1435 * col) * width)
        panel = picture[int(0.4 * height) : int(0.8 * height), left : left + width // 10]
        assert panel.std() > 5
        title = picture[int(0.12 * height) : int(0.26 * height), left : left + width // 10]
        assert title.std() > 5


def test_zero_shot_runs_with_random_weights_and_says_that_they_mean_nothing(tmp_path, run):
    output = tmp_path / "zero_shot.png"
    code, said = run("zero_shot.py", "--model", "ViT-B-32-quickgelu", "--output", output)
    assert code == 0
    assert "1×: " in said
    assert "S² at 1,2: " in said
    assert "the weights are random" in said
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    for row in range(4):
        top = int((0.1 + 0.22 * row) * height)
        for left in (0.05, 0.4):
            assert picture[top : top + height // 8, int(left * width) : int((left + 0.18) * width)].std() > 5


def test_zero_shot_says_in_one_line_what_cannot_be_had(tmp_path):
    """Here as a program of its own."""
    command = [sys.executable, DEMOS / "zero_shot.py", "--model", "ViT-B-1", "--output", tmp_path / "none.png"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "open_clip cannot make ViT-B-1" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.usefixtures("has_samples")
def test_defects_writes_a_line_for_each_way_to_look_and_a_picture_with_something_in_every_panel(tmp_path, run):
    for package in ("conformal_clip_data", "sklearn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    output, table = tmp_path / "defects.png", tmp_path / "defects.csv"
    words = ["--backbones", "efficientnet_lite0", "--pictures", 5, "--output", output, "--csv", table]
    assert run("defects.py", *words)[0] == 0
    with table.open() as stream:
        lines = {line["scales"]: line for line in csv.DictReader(stream)}
    passes = {scales: line["passes"] for scales, line in lines.items()}
    assert passes == {
        "two numbers": "0",
        "1×": "1",
        "S² 1, 2": "5",
        "S² 1, 2, 3": "14",
        "whole 2×": "1",
        "S² 1, 2 whole": "2",
        "whole 3×": "1",
        "S² 1, 2, 3 whole": "3",
    }
    for line in lines.values():
        assert all(0 <= float(line[f"{score} mean"]) <= 1 for score in ("accuracy", "local", "global"))
    assert min(float(lines["two numbers"][f"{kind} mean"]) for kind in ("local", "global")) > 0.9
    assert output.stat().st_size < 1_000_000
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    for row in range(6):
        for col in range(5):
            top, left = int((0.09 + 0.147 * row) * height), int((0.1 + 0.19 * col) * width)
            assert picture[top : top + height // 16, left : left + width // 12].std() > 5


@pytest.mark.usefixtures("has_samples")
def test_export_engine_writes_the_files_and_a_picture_of_the_same_features(tmp_path, run, monkeypatch):
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs the [tensorrt-rtx] extra")
    output, load = tmp_path / "engine.png", s2wrap.load

    def short(spec):
        """Of two blocks."""
        model = load(spec)
        del model.backbone.model.blocks[2:]
        return model

    monkeypatch.setattr(s2wrap, "load", short)
    words = ["--model", "sample:dinov2_s14@1", "--side", 224, "--targets", "sm89"]
    code, said = run("export_engine.py", *words, "--folder", tmp_path, "--output", output)
    assert code == 0
    assert said.count("passes") == 4  # two outputs of two files
    names = {path.name for path in tmp_path.iterdir() if path.suffix != ".png"}
    assert names == {f"dinov2_s14.{ending}" for ending in ("onnx", "onnx.json", "rtx", "rtx.json")}
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    panels = []
    for col in range(3):
        left = int((0.03 + 0.333 * col) * width)
        panels.append(picture[int(0.4 * height) : int(0.85 * height), left : left + int(0.25 * width)])
        assert panels[-1].std() > 5
    assert abs(panels[1] - panels[2]).mean() < 5  # the same colours


@pytest.mark.usefixtures("has_samples")
def test_compare_prints_its_comparisons_and_writes_their_pages(tmp_path, monkeypatch, capsys):
    """With fewer models and photographs than it has."""
    if importlib.util.find_spec("conformal_clip_data") is None:
        pytest.skip("needs the [demo] extra")
    monkeypatch.syspath_prepend(DEMOS)
    demo = importlib.import_module("compare")
    lites = demo.LITES
    monkeypatch.setattr(demo, "TEXTILE", [f"{lites[0]}@1", f"{lites[0]}@1,2"])
    monkeypatch.setattr(demo, "SMALLER", [f"{lites[0]}@1", f"{lites[1]}@1"])
    monkeypatch.setattr(demo, "LARGER", f"{lites[0]}@1,2")
    monkeypatch.setattr(demo, "MOSAICS", [f"{lites[0]}@1"])
    monkeypatch.setattr(demo, "COUNTS", {"train": 8, "val": 4})
    monkeypatch.setattr(demo, "FILES", demo.FILES[:2])
    demo.main(tmp_path, pictures=7, seconds=0, cache=tmp_path / "cache")
    printed = capsys.readouterr().out
    assert "21 pictures in 3 classes" in printed
    assert printed.count("Best accuracy") == 1
    assert printed.count("reconstructed the features of") == 2
    for name in ("textile", "mosaics", "photographs_1", "photographs_2"):
        assert (tmp_path / f"{name}.html").read_text().startswith("<!doctype html>")
    picture = np.asarray(Image.open(tmp_path / "compare.png").convert("RGB")).astype(float)
    assert picture.std() > 5


def test_search_finds_what_a_plain_sort_finds_and_draws_it(tmp_path, run):
    random = np.random.default_rng(0)
    for kind in ("light", "dark"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(5):
            pixels = random.integers(0, 60, (40 + number, 50, 3)) + 150 * (kind == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / kind / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_text("no picture")
    output, table = tmp_path / "search.png", tmp_path / "nearest.csv"
    words = ["search.py", tmp_path / "photos", "--model", "timm:test_vit", "--random-weights", "--nearest", 3]
    words += ["--queries", 2, "--output", output, "--csv", table, "--stores", tmp_path / "stores"]
    code, said = run(*words)
    assert code == 0
    assert "1 pictures could not be read" in said
    assert "10 pictures of 2 classes" in said
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    paths = sorted((tmp_path / "photos").glob("*/*.png"))
    for scales in ("1", "1,2"):
        torch.manual_seed(0)
        model = s2wrap.load(f"timm:test_vit@{scales}", pretrained=False)
        vectors = np.stack([model(load_image(path)[None]).spatial[0].mean((1, 2)).numpy() for path in paths])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = vectors @ vectors.T
        np.fill_diagonal(cosines, -2)
        for number, path in enumerate(paths):
            found = [row for row in rows if row["query"] == str(path) and row["way"].endswith(f"@{scales}")]
            assert [int(row["rank"]) for row in found] == [1, 2, 3]
            expected = np.sort(cosines[number])[::-1][:3]
            np.testing.assert_allclose([float(row["cosine"]) for row in found], expected, atol=1e-5)
            of_found = [cosines[number, paths.index(Path(row["picture"]))] for row in found]
            np.testing.assert_allclose(of_found, expected, atol=1e-5)
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    assert picture[int(0.2 * height) : int(0.4 * height), : width // 10].std() > 3
    code, printed = run(*words, "--query", "none.png")
    assert code == 2
    assert printed.endswith("\nerror: --query none.png: 0 pictures of the folder end so; name one of them\n")
    code, printed = run(*words, "--nearest", 10)
    assert code == 2
    assert "10 pictures, and 10 are to be found for each: give --nearest below" in printed


@pytest.mark.usefixtures("has_samples")
@pytest.mark.filterwarnings("ignore:Use `@` matmul")
def test_scene_draws_the_scene_and_its_two_maps_and_overlap_softens_the_borders(tmp_path, run):
    code, printed = run("scene.py", "--output", tmp_path / "scene.png", "--side", 448, "--folder", tmp_path / "files")
    assert (code, printed) == (0, f"wrote {tmp_path / 'scene.png'}\n")
    picture = np.asarray(Image.open(tmp_path / "scene.png").convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    for col in range(3):
        left = int((0.03 + 0.33 * col) * width)
        assert picture[int(0.4 * height) : int(0.8 * height), left : left + width // 4].std() > 5
    steps = []
    for overlap in (0, 8):
        spatial = zarr.open_group(tmp_path / "files" / f"overlap_{overlap}.zarr", mode="r")["spatial"][:]
        assert spatial.shape == (384, 32, 48)
        step = np.linalg.norm(np.diff(spatial, axis=2), axis=0).mean(axis=0)  # from each column to the next
        steps.append(step[[15, 31]].mean() / step.mean())
    assert steps[1] < 0.8 * steps[0]


@pytest.mark.usefixtures("has_samples")
def test_probe_trains_both_ways_and_draws_their_curves(tmp_path, run):
    pytest.importorskip("peft", reason="needs the [integrations] extra")
    for package in ("conformal_clip_data", "sklearn"):
        pytest.importorskip(package, reason="needs the [demo] extra")
    output = tmp_path / "probe.png"
    words = ["--model", "sample:dinov2_s14:size=112@1", "--pictures", 5, "--epochs", 2, "--output", output]
    code, printed = run("probe.py", *words)
    assert code == 0
    assert "6 pictures each" in printed
    weights = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in printed.splitlines() if "│" in line}
    head = 2 * 768 + 3 * (768 + 1)
    assert weights == {"linear probe": f"{head:,}", "LoRA": f"{head + 4 * 8 * (384 + 3 * 384):,}"}
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    for left in (0.1, 0.6):
        assert picture[height // 8 : height * 3 // 4, int(left * width) : int((left + 0.3) * width)].std() > 5


def test_inspect_parts_rejects_what_is_odder_than_flawless_parts_and_writes_the_same_model(tmp_path, run):
    from tasks_data import write_defects

    from s2wrap.compare.data import read_folder

    folder = write_defects(tmp_path / "cloth", 9)
    output, file = tmp_path / "parts.png", tmp_path / "parts.onnx"
    words = ["--model", "timm:test_vit@1", "--fuse", "mean", "--random-weights", "--export", file, "--output", output]
    torch.manual_seed(0)
    code, text = run("inspect_parts.py", folder, *words)
    assert code == 0
    pictures = read_folder(folder)
    parts = {path.parent.name for path in (folder / "test").rglob("*.png")}
    assert all(kind in text for kind in parts)
    assert "AU-PRO" in text
    found, own = (float(word) for word in re.findall(r"\d\.\d{5}", text.rpartition("oddness is")[2])[:2])
    assert found == pytest.approx(own, abs=2e-5)
    engine = s2wrap.export.load(file)
    transform = s2wrap.load("timm:test_vit@1", pretrained=False).transform((160, 160))
    first = transform(Image.open(pictures.paths[pictures.folds[0].test[0]]))[None]
    assert float(engine(first).head.max()) == pytest.approx(found, abs=1e-4)  # the oddest 1 % of 100 cells
    threshold = engine.manifest["notes"]["threshold"]
    assert f"rejected above {threshold:.3f}" in text
    banked, kept = (pictures.paths[pictures.folds[0].train[index]] for index in (1, 0))
    assert engine(transform(Image.open(banked))[None]).head.max() < 1e-4
    assert 1e-4 < engine(transform(Image.open(kept))[None]).head.max() < 2 * threshold
    code, text = run("inspect_parts.py", folder, *words)
    assert code == 2
    assert "parts.onnx exists already" in text
    with Image.open(output) as figure:
        assert np.asarray(figure.convert("L")).std() > 20


def test_inspect_parts_says_which_folder_it_takes(tmp_path, run):
    for number in range(4):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    code, printed = run("inspect_parts.py", tmp_path, "--random-weights")
    assert code == 2
    assert "as MVTec AD has them" in printed
    code, printed = run("inspect_parts.py", tmp_path / "none", "--random-weights")
    assert (code, printed) == (2, f"error: {tmp_path / 'none'}: there is no such folder\n")


def test_dense_head_says_how_many_pixels_are_right_and_draws_targets_and_predictions(tmp_path, run):
    output = tmp_path / "head.png"
    words = ["--model", "timm:test_vit", "--random-weights", "--layers", "0,1,2,3", "--scenes", 4, "--steps", 2]
    code, said = run("dense_head.py", *words, "--output", output)
    assert code == 0
    assert "1×: 10×10 cells, " in said
    assert "1× and 2×: 20×20 cells, " in said
    assert said.count("trained for 2 steps on 4 scenes: ") == 2
    picture = np.asarray(Image.open(output).convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    for row, col in product(range(4), range(2)):
        top, left = int((0.06 + 0.22 * row) * height), int((0.02 + 0.25 * col) * width)
        assert picture[top : top + height // 6, left : left + width // 5].std() > 5


def test_a_dense_head_learns_the_scenes_that_it_is_shown(monkeypatch):
    monkeypatch.syspath_prepend(DEMOS)
    demo = importlib.import_module("dense_head")
    _, masks = demo.make_scenes(range(4))
    coarse = torch.nn.functional.one_hot(masks, 6).permute(0, 3, 1, 2).float()
    maps = [torch.nn.functional.interpolate(coarse, (10, 10)) for _ in range(4)]  # features that say it all
    head = demo.train(maps, masks, 30, "test")
    with torch.inference_mode():
        found = head(maps, (demo.SIDE, demo.SIDE)).argmax(dim=1)
    right, iou = demo.score(found, masks)
    assert right == float((found == masks).float().mean())
    assert right > 0.8
    assert 0.5 < iou < right


def test_scenes_are_the_same_for_a_seed_and_masks_name_the_texture_of_each_region(monkeypatch):
    monkeypatch.syspath_prepend(DEMOS)
    scenes = importlib.import_module("scenes")
    (pixels, mask), again, other = (scenes.make_scene(seed, 96) for seed in (0, 0, 1))
    assert (pixels.shape, mask.shape, pixels.dtype, mask.dtype) == ((96, 96, 3), (96, 96), np.uint8, np.uint8)
    assert np.array_equal(pixels, again[0])
    assert not np.array_equal(pixels, other[0])
    assert set(np.unique(mask)) <= set(range(len(scenes.TEXTURES)))
    grey, same_mask = scenes.make_scene(0, 96, coloured=False)
    assert np.array_equal(mask, same_mask)
    assert np.ptp(grey.mean(axis=2)) > 50
    assert np.abs(np.diff(grey.astype(float), axis=2)).mean() < 10  # noise alone
    inside = np.zeros((9, 9), np.uint8)
    inside[:, 4:] = 1
    assert scenes.boundary_band(inside, 2)[0].tolist() == [False, False, True, True, True, True, False, False, False]
