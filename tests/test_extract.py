import os

import numpy as np
import pytest
import torch
from PIL import Image

import s2wrap
from s2wrap import S2WrapError
from s2wrap.compare.data import Pictures
from s2wrap.compare.extract import BATCH, extract, maps_of, model_key, trim, vectors_of
from s2wrap.images import load_image

SPEC = "timm:test_vit@1,2"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (50, 40 + i, 3), dtype=np.uint8)).save(path)
    return Pictures(paths, [f"hash{i}" for i in range(10)], [])


def load(**options):
    torch.manual_seed(0)
    return s2wrap.load(SPEC, pretrained=False, **options)


def no_more(*args):
    raise AssertionError("computed again")


def test_what_is_kept_is_what_the_model_returns(pictures, tmp_path):
    model = load()
    vectors, maps = (extract(model, pictures, tmp_path, lambda count: None, maps=maps) for maps in (False, True))
    for i, path in enumerate(pictures.paths):
        features = model(load_image(path)[None])
        torch.testing.assert_close(vectors[i]["mean_0"], features.pooled[0])
        torch.testing.assert_close(vectors[i]["max_0"], features.spatial[0].flatten(1).max(dim=1).values)
        torch.testing.assert_close(vectors[i]["cls_0"], features.prefix[0, 0])
        torch.testing.assert_close(maps_of(maps)[i], features.spatial[0])


def test_each_picture_is_computed_once(pictures, tmp_path, monkeypatch):
    first = extract(load(), pictures, tmp_path, lambda count: None)
    monkeypatch.setattr(s2wrap.MultiScale, "encode", no_more)
    second = extract(load(), pictures, tmp_path, lambda count: None)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(AssertionError, match="computed again"):
        extract(load(), pictures, None, lambda count: None)


def test_an_interrupted_run_goes_on_where_it_stopped(pictures, tmp_path, monkeypatch):
    encode, seen = s2wrap.MultiScale.encode, []

    def interrupted(self, images):
        if seen:
            raise KeyboardInterrupt
        seen.extend(images)
        return encode(self, images)

    monkeypatch.setattr(s2wrap.MultiScale, "encode", interrupted)
    told = []
    with pytest.raises(KeyboardInterrupt):
        extract(load(), pictures, tmp_path, told.append)
    assert told == [0, BATCH]
    later = []
    monkeypatch.setattr(s2wrap.MultiScale, "encode", lambda self, images: later.extend(images) or encode(self, images))
    told.clear()
    extract(load(), pictures, tmp_path, told.append)
    assert len(later) == 10 - BATCH
    assert told == [BATCH, 10 - BATCH]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".s2wrap")]


def test_a_damaged_file_is_computed_again(pictures, tmp_path):
    first = extract(load(), pictures, tmp_path, lambda count: None)
    (file,) = tmp_path.rglob("hash3.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    second = extract(load(), pictures, tmp_path, lambda count: None)
    assert torch.equal(first[3]["mean_0"], second[3]["mean_0"])


def test_other_weights_or_options_are_another_model():
    keys = [model_key(load()), model_key(load()), model_key(load(fuse="mean"))]
    assert keys[0] == keys[1] != keys[2]
    other = load()
    with torch.no_grad():
        next(other.backbone.parameters()).flatten()[0] += 1e-3
    assert model_key(other) != keys[0]


def test_a_pyramids_levels_stand_beside_each_other(pictures):
    model = load(fuse="pyramid", target_grid=None)
    parts = extract(model, pictures, None, lambda count: None)
    features = model(load_image(pictures.paths[0])[None])
    expected = [*(level.mean(dim=(2, 3))[0] for level in features.maps), *(p[0, 0] for p in features.prefixes)]
    np.testing.assert_allclose(vectors_of(parts, ("mean", "cls"))[0], torch.cat(expected).numpy(), rtol=1e-5)
    with pytest.raises(S2WrapError, match="2 maps a picture; this comparison needs one"):
        maps_of(extract(model, pictures, None, lambda count: None, maps=True))


def test_a_model_without_prefix_tokens_has_no_cls(pictures):
    model = s2wrap.load("timm:test_resnet@1", pretrained=False)
    parts = extract(model, pictures, None, lambda count: None)
    with pytest.raises(S2WrapError, match="no cls of a model without prefix tokens; use pool='mean'"):
        vectors_of(parts, ("mean", "cls"))


def test_features_that_are_not_finite_are_told_with_the_picture(pictures):
    model = load()
    with torch.no_grad():
        model.backbone.model.norm.bias[0] = torch.nan
    with pytest.raises(S2WrapError, match=r"the features of .*0\.png by test_vit hold NaN"):
        extract(model, pictures, None, lambda count: None)


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(s2wrap.MultiScale, "encode", no_more)
    (tmp_path / "file").write_text("")
    with pytest.raises(S2WrapError, match="cannot write"):
        extract(load(), pictures, tmp_path / "file", lambda count: None)


def test_features_of_another_device_are_kept_apart(monkeypatch, vit):
    """A GPU rounds otherwise: what a CPU computed is not shown as its result."""
    model = s2wrap.wrap(vit, (1, 2))
    on_cpu = model_key(model)
    monkeypatch.setattr(type(model.backbone), "device", torch.device("cuda"))
    assert model_key(model) != on_cpu


def test_the_least_recently_used_features_go_when_there_are_too_many(pictures, tmp_path):
    extract(load(), pictures, tmp_path, lambda count: None)
    files = sorted(tmp_path.rglob("*.safetensors"))
    for age, file in enumerate(files):
        os.utime(file, (1000 + age, 1000 + age))
    few = Pictures(pictures.paths[:2], pictures.contents[:2], [])
    extract(load(), few, tmp_path, lambda count: None)  # those are used now
    (tmp_path / "other.txt").write_text("stays")
    size = files[0].stat().st_size
    assert trim(tmp_path, 4 * size) == (6, 6 * size)
    assert {file.name for file in tmp_path.rglob("*.safetensors")} == {f"hash{i}.safetensors" for i in (0, 1, 8, 9)}
    assert trim(tmp_path, 4 * size) == (0, 0)
    assert trim(tmp_path, 0) == (4, 4 * size)
    assert (tmp_path / "other.txt").exists()
