import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image
from safetensors import safe_open
from skimage import data

import s2wrap
from s2wrap import S2WrapError
from s2wrap.images import load_image

PHOTOS = {"astronaut.jpg": data.astronaut(), "cat.png": data.chelsea(), "sub/coffee.webp": data.coffee()}
MODEL = ["--model", "timm:test_vit@1,2", "--random-weights"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, photo in PHOTOS.items():
        Image.fromarray(photo).save(folder / name)
    return folder


def checkpoint(tmp_path):
    """A file of weights, so that two runs see the same model."""
    path = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    save_file(s2wrap.load("timm:test_vit@1", pretrained=False).backbone.model.state_dict(), path)
    return path


def test_features_of_a_folder_are_those_of_the_model(photos, tmp_path, capsys):
    weights, output = checkpoint(tmp_path), tmp_path / "out.safetensors"
    assert run("features", photos, "--model", "timm:test_vit@1,2", "--checkpoint", weights, "--output", output) == 0
    assert capsys.readouterr().out == f"3 pictures, (128, 10, 10) each → {output}\n"
    with safe_open(output, "pt") as file:
        metadata, spatial, prefix = file.metadata(), file.get_tensor("spatial"), file.get_tensor("prefix")
    assert [os.path.relpath(name, photos) for name in json.loads(metadata["files"])] == sorted(PHOTOS)
    assert metadata["spec"] == "timm:test_vit@1,2"
    assert metadata["s2wrap_version"] == version("s2wrap")
    model = s2wrap.load("timm:test_vit@1,2", checkpoint=weights)
    for index, name in enumerate(sorted(PHOTOS)):
        features = model(load_image(photos / name)[None])
        torch.testing.assert_close(spatial[index], features.spatial[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(prefix[index], features.prefix[0], atol=1e-5, rtol=0)


def test_npz_holds_the_same_and_needs_no_pickle(photos, tmp_path):
    output = tmp_path / "out.npz"
    options = ["--fuse", "weighted", "--weights", "0.5,0.5", "--prefix", "base", "--tile-batch", "2"]
    assert run("features", photos / "cat.png", *MODEL, "--output", output, *options) == 0
    with np.load(output, allow_pickle=False) as file:
        assert file["spatial"].shape == (1, 64, 10, 10)
        assert file["prefix"].shape == (1, 1, 64)
        assert file["files"].tolist() == [str(photos / "cat.png")]
        assert file["spec"] == "timm:test_vit@1,2"


def test_a_pyramid_is_numbered(photos, tmp_path):
    output = tmp_path / "out.npz"
    assert run("features", photos, *MODEL, "--output", output, "--fuse", "pyramid") == 0
    with np.load(output) as file:
        assert file["spatial_0"].shape == (3, 64, 10, 10)
        assert file["spatial_1"].shape == (3, 64, 20, 20)


def test_pictures_of_other_shapes_keep_their_own_grids(photos, tmp_path, capsys):
    output, weights = tmp_path / "out.safetensors", checkpoint(tmp_path)
    arguments = ["--fit", "pad", "--overlap", "2", "--target-grid", "finest", "--checkpoint", weights]
    assert run("features", photos, "--model", "timm:test_vit@1,2", *arguments, "--output", output) == 0
    assert "3 pictures, each on a grid of its own" in capsys.readouterr().out
    backbone = s2wrap.load("timm:test_vit@1", checkpoint=weights).backbone
    model = s2wrap.wrap(backbone, (1, 2), fit="pad", overlap=2, target_grid="finest")
    with safe_open(output, "pt") as file:
        for number, name in enumerate(json.loads(file.metadata()["files"])):
            expected = model(load_image(name)[None])
            torch.testing.assert_close(file.get_tensor(f"{number}/spatial"), expected.spatial[0], atol=5e-5, rtol=0)
            torch.testing.assert_close(file.get_tensor(f"{number}/prefix"), expected.prefix[0], atol=5e-5, rtol=0)
    run("features", photos, *MODEL, "--fit", "aspect", "--target-grid", "7x9", "--output", tmp_path / "out.npz")
    assert np.load(tmp_path / "out.npz")["spatial"].shape == (3, 128, 7, 9)


def test_a_damaged_picture_is_counted_and_told_by_the_exit_code(photos, tmp_path, capsys):
    (photos / "bad.jpg").write_bytes((photos / "astronaut.jpg").read_bytes()[:5000])
    output, errors = tmp_path / "out.safetensors", tmp_path / "errors.jsonl"
    for options, code in (([], 3), (["--skip-errors"], 0), (["--errors", errors], 3)):
        assert run("features", photos, *MODEL, "--output", output, "--overwrite", *options) == code
        result, notes = capsys.readouterr()
        assert "skipped" in notes
        assert "bad.jpg" in notes
        assert "3 pictures" in result
        assert "1 could not be read" in result
        assert "Traceback" not in notes
        with safe_open(output, "pt") as file:
            assert file.get_tensor("spatial").shape[0] == 3
            assert len(json.loads(file.metadata()["files"])) == 3
    (line,) = errors.read_text().splitlines()
    assert json.loads(line)["path"] == str(photos / "bad.jpg")
    assert "cut short" in json.loads(line)["reason"]
    assert sorted(os.listdir(tmp_path)) == ["errors.jsonl", "out.safetensors", "photos"]


def test_many_damaged_pictures_do_not_fill_the_terminal(photos, tmp_path, capsys):
    for number in range(30):
        (photos / f"bad{number}.jpg").write_text("hello")
    assert run("features", photos, *MODEL, "--workers", 0, "--output", tmp_path / "out.npz") == 3
    result, notes = capsys.readouterr()
    assert notes.count("skipped") == 20
    assert "--errors FILE lists them" in notes
    assert "30 could not be read" in result


def test_the_same_command_again_goes_on(photos, tmp_path, capsys):
    output = tmp_path / "out.safetensors"
    command = ["features", photos, "--model", "timm:test_vit@1,2", "--checkpoint", checkpoint(tmp_path)]
    command += ["--output", output, "--shard", 2, "--workers", 0]
    assert run(*command) == 0
    assert "3 pictures, (128, 10, 10) each" in capsys.readouterr().out
    assert sorted(path.name for path in output.glob("part-*")) == [f"part-00000{n}.safetensors" for n in (0, 1)]
    before = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert run(*command) == 0
    assert "3 pictures, all there before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.glob("part-*")} == before
    assert run(*command, "--fit", "pad") == 2
    assert "holds features with fit 'stretch', and 'pad' is asked for" in capsys.readouterr().err.splitlines()[-1]
    Image.fromarray(data.coffee()).save(photos / "zebra.png")
    assert run(*command) == 0
    assert "4 pictures, (128, 10, 10) each" in capsys.readouterr().out


def test_nothing_readable_writes_nothing(tmp_path, capsys):
    (tmp_path / "bad.jpg").write_text("hello")
    assert run("features", tmp_path / "bad.jpg", *MODEL, "--output", tmp_path / "out.npz", "--skip-errors") == 2
    assert "none of 1 pictures could be read" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["bad.jpg"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--model", "timm:test_vit@1,2", "--output", "out.txt"],
            "the ending must be .parquet, .zarr, .safetensors, .npz",
        ),
        (["--model", "timm:test_vit@1,2", "--output", "none/out.npz"], "cannot write none/out.npz"),
        (["--model", "timm:test_wit@1,2", "--output", "out.npz"], "did you mean timm:test_vit"),
        (["--model", "timm:test_vit@1000", "--output", "out.npz", "--random-weights"], "write '1000px'"),
        ([*MODEL, "--output", "out.npz", "--device", "abacus"], "try cpu"),
        ([*MODEL, "--output", "out.npz", "--device", "meta"], "try cpu"),
        ([*MODEL, "--output", "out.npz", "--checkpoint", "cat.png"], "choose one"),
        ([*MODEL, "--output", "out.npz", "--workers", "-1"], "use 0 (none) or more"),
        ([*MODEL, "--output", "none/out.safetensors", "--shard", "5"], "there is no folder none"),
        ([*MODEL, "--output", "out.npz", "--errors", "none/errors.jsonl"], "there is no folder none"),
        ([*MODEL, "--output", "out.npz", "--shard", "5"], "an .npz is one file"),
        ([*MODEL, "--output", "out.npz", "--dtype", "bfloat16"], "use float32 or float16"),
        ([*MODEL, "--output", "out.npz", "cat.png", "cat.png"], "cat.png is named twice"),
        ([*MODEL, "--output", "out.npz", "--image-size", "0"], "image_size=0 is no image size"),
        ([*MODEL, "--output", "out.npz", "x" * 300], "no file has a name of 300 characters"),
        (["--model", "timm:test_vit@1", "--output", "out.npz", "--checkpoint", "none.pth"], "no checkpoint file"),
    ],
)
def test_calls_that_cannot_work_are_one_line_and_exit_code_2(photos, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(photos)
    assert run("features", photos, *arguments) == 2
    message = capsys.readouterr().err
    assert words in message.splitlines()[-1]
    assert message.splitlines()[-1].startswith("s2wrap: ")
    assert "Traceback" not in message
    assert sorted(os.listdir(photos)) == ["astronaut.jpg", "cat.png", "sub"]


def test_an_exported_file_stands_for_its_model(photos, tmp_path, capsys):
    weights, tiles = checkpoint(tmp_path), tmp_path / "tiles.onnx"
    model = s2wrap.load("timm:test_vit@1,2", checkpoint=weights)
    from s2wrap.export import export

    export(model, tiles, tiles=True, verify=False)
    ours = ["features", photos, "--workers", 0, "--fuse", "mean", "--output"]
    assert run(*ours, tmp_path / "a.npz", "--model", tiles) == 0
    assert run(*ours, tmp_path / "b.npz", "--model", "timm:test_vit@1,2", "--checkpoint", weights) == 0
    found, expected = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    np.testing.assert_allclose(found["spatial"], expected["spatial"], atol=1e-4)
    whole = tmp_path / "whole.onnx"
    export(s2wrap.wrap(model.backbone, (1, 2), fit="pad"), whole, verify=False)
    refused = {
        (tiles, "--random-weights"): "--random-weights: .*tiles.onnx is exported, with its weights",
        (whole, "--fuse", "mean"): "fuse: whole.onnx is one graph, whose scales and fusion are fixed",
        (whole,): "fit=pad: stretching pictures would undo that",
    }
    for (file, *given), words in refused.items():
        assert run("features", photos, "--model", file, *given, "--output", tmp_path / "c.npz") == 2
        assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "c.npz").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(photos, tmp_path, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for module, name, ending in (("safetensors.torch", "save_file", "safetensors"), ("numpy", "savez", "npz")):
        monkeypatch.setattr(f"{module}.{name}", full)
        assert run("features", photos, *MODEL, "--output", tmp_path / f"out.{ending}") == 2
        assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
        assert sorted(os.listdir(tmp_path)) == ["photos"]


def test_a_disk_too_small_is_found_before_the_work(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert run("features", photos, *MODEL, "--output", tmp_path / "out.npz") == 2
    assert "the disk has 0.0 MB left" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["photos"]


def test_an_interrupted_run_leaves_nothing(photos, tmp_path, capsys, monkeypatch):
    def interrupt(path, reading):
        raise KeyboardInterrupt

    monkeypatch.setattr("s2wrap.extraction.decode.load_image", interrupt)
    assert run("features", photos, *MODEL, "--workers", 0, "--output", tmp_path / "out.npz") in (1, 130)
    assert sorted(os.listdir(tmp_path)) == ["photos"]


def test_names_do_not_command_the_terminal(photos, tmp_path, capsys):
    (photos / "a\x1b[31mred\x07.png").write_text("no picture")
    assert run("features", photos, *MODEL, "--workers", 0, "--output", tmp_path / "out.npz", "--skip-errors") == 0
    told = capsys.readouterr().err
    assert "a?[31mred?.png" in told
    assert "\x1b[31mred" not in told


def test_odd_names_are_kept(tmp_path, capsys):
    folder = tmp_path / "d[b]"
    folder.mkdir()
    odd = os.fsdecode(b"\xff[bold].png")
    Image.fromarray(data.coffee()).save(folder / "plain.png")
    (folder / "plain.png").rename(folder / odd)
    output = folder / "f[bold].safetensors"
    assert run("features", folder, *MODEL, "--output", output) == 0
    assert str(output) in capsys.readouterr().out
    with safe_open(output, "pt") as file:
        assert json.loads(file.metadata()["files"]) == [str(folder / odd)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_no_draft(photos, tmp_path, number):
    for copy in range(900):
        os.link(photos / "cat.png", photos / f"{copy}.png")
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's & has it ignored
    program = [sys.executable, "-c", f"{start}; from s2wrap.cli import main; main()", "features", str(photos)]
    process = subprocess.Popen([*program, *MODEL, "--output", str(tmp_path / "out.npz")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".s2wrap-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    assert sorted(os.listdir(tmp_path)) == ["photos"]


def test_inspect_says_what_was_found(capsys):
    assert run("inspect", "timm:vit_tiny_patch16_224@1,1.5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["input"]["image_hw"]["value"] == [224, 224]
    assert found["input"]["mean"]["known_from"] == "the model's own config"
    assert found["grid_hw"] == [14, 14]
    assert found["patch_hw"] == [16, 16]
    assert found["prefix_tokens"] == 1
    assert found["channels"] == 192
    assert found["tiles"] == 5
    assert found["maps_chw"] == [[384, 14, 14]]
    assert [scale["image_hw"] for scale in found["scales"]] == [[224, 224], [336, 336]]
    block = 12 * 197 * 192**2 + 2 * 197**2 * 192
    assert found["multiply_adds"] == 5 * (12 * block + 196 * 192 * 3 * 16 * 16)
    assert run("inspect", "timm:test_resnet@1,2") == 0
    assert "multiply-adds" in capsys.readouterr().out


def test_inspect_follows_the_fit_and_the_image(capsys):
    options = ["--fit", "pad", "--image", "100x300", "--target-grid", "finest", "--json"]
    assert run("inspect", "timm:test_vit@1,2,3:whole", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["looked_at_hw"] == [100, 300]
    assert [scale["image_hw"] for scale in found["scales"]] == [[53, 160], [107, 320], [160, 480]]
    assert [scale["tiles"] for scale in found["scales"]] == [[1, 1], [1, 2], [1, 1]]
    assert [scale["padding_hw"] for scale in found["scales"]] == [[107, 0], [53, 0], [0, 0]]
    assert found["tokens"] == 3 * 101 + 10 * 30 + 1
    assert found["maps_chw"] == [[192, 10, 30]]
    assert run("inspect", "timm:test_vit@1", "--image", "big") == 2
    assert "write height and width as 480x640" in capsys.readouterr().err


def test_inspect_shows_every_level_of_a_pyramid_and_takes_weights(capsys):
    options = ["timm:test_vit@1,2", "--fuse", "pyramid"]
    assert run("inspect", *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["maps_chw"] == [[64, 10, 10], [64, 20, 20]]
    assert run("inspect", *options) == 0
    assert "64 channels on 10×10, 64 channels on 20×20" in capsys.readouterr().out
    assert run("inspect", "timm:test_vit@1,2", "--fuse", "weighted", "--weights", "1,0.5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["maps_chw"] == [[64, 10, 10]]


def test_the_package_runs_as_a_program():
    result = subprocess.run([sys.executable, "-m", "s2wrap", "exprot"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def test_errors_are_value_errors():
    assert issubclass(S2WrapError, ValueError)
