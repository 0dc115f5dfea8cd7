import numpy as np
import pytest
import torch
from PIL import Image

from s2wrap import S2WrapError
from s2wrap.compare import compare
from s2wrap.compare.data import read_folder
from s2wrap.compare.extract import extract, maps_of, model_key
from s2wrap.compare.run import _load_seeded
from s2wrap.compare.warps import maps_of_values
from s2wrap.images import load_image

SPEC = "timm:test_vit@1,2"


def load(name):
    return _load_seeded(name, "cpu", pretrained=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures whose upper left tile alone holds detail."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(4):
        pixels = np.full((320, 320, 3), 120, dtype=np.uint8)
        pixels[:160, :160] = rng.integers(0, 256, (160, 160, 3))
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_every_call_of_a_comparison_selects(folder, tmp_path):
    """Maps of pictures, and of values that tasks make, are those of a plain model that is told to select."""
    plain, selecting = load(SPEC), load(f"{SPEC} select=1 by=saliency")
    pictures = read_folder(folder)
    (first, *_) = maps_of(extract(selecting, pictures, tmp_path, lambda count: None, maps=True))
    image = load_image(pictures.paths[0])[None]
    expected = plain(image, select=1, by="saliency").spatial
    torch.testing.assert_close(first, expected[0])
    torch.testing.assert_close(maps_of_values(selecting, image / 255, pictures.paths[0]), expected)
    assert not torch.allclose(expected, plain(image).spatial)


def test_selections_are_cached_apart():
    names = [SPEC, f"{SPEC} select=1", f"{SPEC} select=2", f"{SPEC} select=2 by=saliency"]
    assert len({model_key(load(name)) for name in names}) == len(names)


def test_only_the_tiles_that_run_are_counted(folder, tmp_path):
    names = ["timm:test_vit@1", SPEC, f"{SPEC} select=2"]
    found = compare(names, data=folder, pretrained=False, backends=("eager", "onnx"), seconds=0.05, cache=tmp_path)
    plain, full, selected = found.rows
    assert (plain.cost.tiles, full.cost.tiles, selected.cost.tiles) == (1, 5, 3)
    assert selected.cost.multiply_adds == 3 * plain.cost.multiply_adds
    assert set(selected.scores) == set(full.scores)
    assert selected.timings["eager"]["median_ms"] > 0
    assert "an exported file runs all tiles" in selected.timings["onnx"]["reason"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{SPEC} by=saliency", "give select too"),
        (f"{SPEC} select=5", "use 0 to 4"),
        ("timm:test_vit@1,2:whole,3 select=2", "among tiles of 2 sizes"),
    ],
)
def test_a_selection_that_cannot_be_is_told(name, words):
    with pytest.raises(S2WrapError, match=words):
        compare([name], backends=())
