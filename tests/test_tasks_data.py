"""The made-up pictures of benchmarks/tasks_data.py, and the table of benchmarks/tasks.py."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from made_up import comparison
from PIL import Image

from s2wrap.compare.data import load_mask, read_folder


@pytest.fixture
def data(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module("tasks_data")


def test_a_seed_gives_the_same_pictures_and_another_seed_others(data, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        data.write_scenes(tmp_path / name, 2, seed)
        data.write_relief(tmp_path / name, 1, seed)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 5  # the first picture of the relief lies over that of the scenes
    one, two, other = ([(tmp_path / name / file).read_bytes() for file in files] for name in "abc")
    assert one == two
    assert all(a != c for a, c in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["spot", "scratch", "patch"])
def test_a_planted_defect_changes_the_pixels_of_its_mask_and_no_others(data, kind):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        before = data.cloth(rng)
        after, mask = data.DEFECTS[kind](before, rng)
        changed = (after != before).any(axis=-1)
        assert not (changed & ~mask).any()
        assert changed[mask].mean() > 0.99
        assert 20 < mask.sum() < 3000


def test_depth_is_that_of_the_floor_where_no_sphere_stands(data):
    """The floor is a plane: one over its depth is linear down the picture, and the same across."""
    _, depth = data.render(np.random.default_rng(0))
    bottom = 1 / depth[-60:]
    floor = np.median(bottom, axis=1, keepdims=True)
    assert (np.abs(bottom - floor) < 1e-9).mean() > 0.8
    assert np.abs(np.diff(floor[:, 0], 2)).max() < 1e-9
    assert depth.min() >= 1
    assert depth.max() <= 20


def test_masks_hold_the_classes_of_the_textures_and_folders_are_read(data, tmp_path):
    data.write_scenes(tmp_path / "scenes", 4)
    pictures = read_folder(tmp_path / "scenes")
    assert pictures.kind == "masked"
    labels = {int(label) for path in pictures.masks for label in np.unique(load_mask(path))}
    assert labels <= set(range(len(data.TEXTURES)))
    assert len(labels) > 3
    image = np.asarray(Image.open(pictures.paths[0]), dtype=float)
    mask = load_mask(pictures.masks[0])
    assert image.shape == (*mask.shape, 3)
    assert read_folder(data.write_defects(tmp_path / "defects", 4)).kind == "defective"
    assert read_folder(data.write_relief(tmp_path / "relief", 4)).kind == "measured"


def test_the_table_has_a_column_a_measure_and_marks_the_best(data):
    tasks = importlib.import_module("tasks")
    lines = tasks.table({"a": comparison(3), "b": comparison(3, measures=("information",))})
    assert lines[0] == "| model | G multiply-adds | accuracy, % | information |"
    assert lines[4] == "| `sample:dinov2_s14@1,2,3` | 77 | **91.0 ± 3.8** | **0.910 ± 0.038** |"
    assert lines[2] == "| `sample:dinov2_s14@1` | 5.5 | 86.0 ± 3.8 | 0.860 ± 0.038 |"
