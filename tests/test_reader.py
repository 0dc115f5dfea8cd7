"""Features that `extract_features` wrote come back: by path, in batches, as a table, nearest first."""

import json

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image
from torch.utils.data import DataLoader

import s2wrap
from s2wrap import S2WrapError
from s2wrap.extraction import extract_features
from s2wrap.images import load_image

SPEC, COUNT = "timm:test_vit@1,2", 13
STORES = [("x.parquet", 5), ("x.zarr", 3), ("x.safetensors", 4), ("x.safetensors", None), ("x.npz", None)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.load(SPEC, pretrained=False)


def write(folder, output, model, shard=None, **options):
    common = {"load": lambda: model, "spec": SPEC, "options": {}, "workers": 0, "shard": shard}
    extract_features([str(folder)], output, **common | options)
    return output


def encoded(folder, model):
    paths = sorted(map(str, folder.iterdir()))
    return paths, model.encode(paths)


@pytest.mark.parametrize(("name", "shard"), STORES)
def test_every_kind_gives_back_what_the_model_gave(folder, model, tmp_path, name, shard):
    store = s2wrap.open(write(folder, tmp_path / name, model, shard))
    paths, features = encoded(folder, model)
    assert (len(store), list(store.paths)) == (COUNT, paths)
    assert store.made_by["spec"] == SPEC
    assert store.image_hw.tolist() == [list(each.plan.image_hw) for each in features]
    for path, each in zip(paths, features, strict=True):
        arrays = store[path]
        if name.endswith(".parquet"):
            torch.testing.assert_close(arrays["vector"], each.pooled[0], atol=1e-5, rtol=1e-5)
        else:
            torch.testing.assert_close(arrays["spatial"], each.spatial[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(arrays["prefix"], each.prefix[0], atol=1e-5, rtol=1e-5)
    array = "vector" if name.endswith(".parquet") else "spatial"
    batches = list(store.batches(4))
    assert [path for names, _ in batches for path in names] == paths
    whole = torch.cat([arrays[array] for _, arrays in batches])
    torch.testing.assert_close(whole, torch.stack([store[number][array] for number in range(COUNT)]))
    torch.testing.assert_close(store[-1][array], store[paths[-1]][array])


@pytest.mark.parametrize(("name", "shard"), STORES)
def test_the_nearest_are_those_of_a_plain_sort(folder, model, tmp_path, name, shard):
    store = s2wrap.open(write(folder, tmp_path / name, model, shard))
    paths, features = encoded(folder, model)
    vectors = torch.nn.functional.normalize(torch.cat([each.pooled for each in features]), dim=-1)
    cosines = (vectors[[3, 7]] @ vectors.T).numpy()
    found = store.search([paths[3], paths[7]], k=4, model=model)
    for row, wanted in zip(found, cosines, strict=True):
        np.testing.assert_allclose([each.cosine for each in row], np.sort(wanted)[::-1][:4], atol=1e-5)
        np.testing.assert_allclose(
            [wanted[paths.index(each.path)] for each in row], np.sort(wanted)[::-1][:4], atol=1e-5
        )
    assert [row[0].path for row in found] == [paths[3], paths[7]]
    assert store.search(paths[5], k=1, model=model)[0][0].path == paths[5]
    assert [len(row) for row in store.search(vectors[:2], k=99)] == [COUNT, COUNT]


def test_a_table_and_a_data_loader(folder, model, tmp_path):
    store = s2wrap.open(write(folder, tmp_path / "x.zarr", model, 3))
    table = store.to_pandas()
    assert list(table.columns) == ["path", "height", "width", "vector"]
    assert table["height"].tolist() == store.image_hw[:, 0].tolist()
    np.testing.assert_allclose(table["vector"][2], store[2]["spatial"].mean(dim=(1, 2)), atol=1e-6)
    loader = DataLoader(store.dataset(lambda path, arrays: arrays["spatial"].mean()), batch_size=4)
    assert torch.cat(list(loader)).shape == (COUNT,)


def test_grids_of_different_sizes_are_taken_one_by_one(folder, tmp_path):
    model = s2wrap.load(SPEC, pretrained=False, fit="pad")
    paths, features = encoded(folder, model)
    for name in ("x.safetensors", "x.npz"):
        store = s2wrap.open(write(folder, tmp_path / name, model))
        for path, each in zip(paths, features, strict=True):
            torch.testing.assert_close(store[path]["spatial"], each.spatial[0], atol=1e-5, rtol=1e-5)
        with pytest.raises(S2WrapError, match="have grids of different sizes"):
            list(store.batches())


@pytest.mark.parametrize(("name", "shard"), STORES[:3])
def test_of_a_run_that_was_stopped_what_was_committed_can_be_read(folder, model, tmp_path, name, shard):
    def stop(state):
        if state.done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(folder, tmp_path / name, model, shard, tell=stop)
    store = s2wrap.open(tmp_path / name)
    assert list(store.paths) == encoded(folder, model)[0][:8]
    assert store[7].keys() == store[0].keys()
    write(folder, tmp_path / name, model, shard)
    assert len(s2wrap.open(tmp_path / name)) == COUNT


@pytest.mark.usefixtures("has_samples")
def test_the_model_that_made_a_store_is_loaded_from_it(folder, tmp_path):
    output = tmp_path / "x.parquet"
    words = ("--model", "sample:efficientnet_lite0@1", "--fuse", "sum", "--target-grid", "4x4")
    assert run("features", folder, *words, "--output", output) == 0
    store = s2wrap.open(output)
    model = store.load_model()
    assert (model.options.fuse, model.options.target_grid) == ("sum", (4, 4))
    assert store.search(store.paths[2], k=1)[0][0].path == store.paths[2]


@pytest.mark.parametrize("name", ["x.parquet", "x.zarr", "x.safetensors"])
@pytest.mark.parametrize("joined", [True, False])
@torch.no_grad()
def test_the_layers_asked_for_are_those_of_timm_and_are_kept(folder, tmp_path, capsys, name, joined):
    output = tmp_path / name
    words = (
        "--model",
        "timm:test_vit@1",
        "--random-weights",
        *([] if joined else ["--no-join-layers"]),
        "--output",
        output,
    )
    assert run("features", folder, *words, "--layers=-3,-1") == 0
    store = s2wrap.open(output)
    assert store.made_by["options"]["layers"] == [-3, -1]
    model = store.load_model(pretrained=False)
    assert model.options.join_layers is joined
    path = store.paths[4]
    pixels = torch.nn.functional.interpolate(load_image(path)[None].float(), (160, 160), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.input.mean, model.input.std))
    depth = len(model.backbone.model.blocks)
    maps = model.backbone.model.forward_intermediates(
        (pixels / 255 - mean) / std, indices=[depth - 3, depth - 1], norm=True, intermediates_only=True
    )
    assert not torch.allclose(maps[0], maps[1], atol=1e-2)
    expected = {"spatial": torch.cat(maps, 1)[0]} if joined else {"spatial_0": maps[0][0], "spatial_1": maps[1][0]}
    if name == "x.parquet":
        expected = {"vector": torch.cat(maps, 1)[0].mean((1, 2))}
    for array, values in expected.items():
        torch.testing.assert_close(store[path][array], values, atol=1e-3, rtol=1e-3)
    assert store.search(path, k=1, model=model)[0][0].path == path
    capsys.readouterr()
    if name != "x.safetensors":  # one file, which is not gone on with
        assert run("features", folder, *words, "--layers=-2,-1") == 2
        assert "layers [-3, -1], and [-2, -1] is asked for" in " ".join(capsys.readouterr().err.split())


def test_other_weights_than_those_of_the_store_are_refused(folder, tmp_path):
    torch.manual_seed(1)
    model = s2wrap.load(SPEC, pretrained=False)
    store = s2wrap.open(write(folder, tmp_path / "x.parquet", model))
    with pytest.raises(S2WrapError, match="has other weights now than those that made"):
        store.load_model(pretrained=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.parquet", "there is no such store of features"),
        ("x.txt", "the ending must be .parquet, .zarr, .safetensors, .npz"),
        ("empty.parquet", "has no part files"),
        ("text.npz", "cannot be read as features"),
    ],
)
def test_what_is_no_store_is_refused(tmp_path, name, words):
    (tmp_path / "empty.parquet").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(S2WrapError, match=words):
        s2wrap.open(tmp_path / name)


def test_a_picture_that_is_not_there_and_vectors_of_other_channels(folder, model, tmp_path):
    store = s2wrap.open(write(folder, tmp_path / "x.parquet", model))
    with pytest.raises(S2WrapError, match=r"has no picture 'cat.jpg'; its paths begin as"):
        store["cat.jpg"]
    with pytest.raises(S2WrapError, match="has 13 pictures, and no number 13"):
        store[13]
    with pytest.raises(S2WrapError, match=r"vectors of 3 channels, and .* has 128"):
        store.search(torch.ones(1, 3))


@pytest.mark.parametrize("name", ["x.parquet", "x.zarr"])
def test_stores_of_a_server_are_opened_there(folder, model, tmp_path, name):
    import fsspec

    write(folder, tmp_path / name, model, 4)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / name), f"/stores/{name}", recursive=True)
    here, there = s2wrap.open(tmp_path / name), s2wrap.open(f"memory://stores/{name}")
    assert list(there.paths) == list(here.paths)
    for key, array in here[4].items():
        torch.testing.assert_close(there[4][key], array)


def test_search_on_the_command_line(folder, tmp_path, capsys):
    output, words = tmp_path / "x.zarr", ("--model", "timm:test_vit@1,2", "--random-weights")
    assert run("features", folder, *words, "--output", output) == 0
    paths = sorted(map(str, folder.iterdir()))
    capsys.readouterr()
    search = ("search", output, paths[3], paths[7], "--random-weights")
    assert run(*search, "-k", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert [each["nearest"][0]["path"] for each in found] == [paths[3], paths[7]]
    assert found[0]["nearest"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert run(*search, "--output", tmp_path / "near.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if ".png" in line]) == 10
    with Image.open(tmp_path / "near.png") as picture:
        assert picture.size == (6 * 160 + 24, 2 * 178)
        pixels = np.asarray(picture).astype(float)
    np.testing.assert_array_equal(pixels[:160, :160], pixels[:160, 184:344])  # the first is the picture itself
    assert run(*search, "--output", tmp_path / "near.png") == 2
    assert "near.png exists already; add --overwrite" in capsys.readouterr().err
    assert run("search", tmp_path / "none.zarr", paths[0]) == 2
    assert run("search", output, tmp_path / "none.png", "--random-weights") == 2
    assert "none.png: there is no such file" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fuse", ["concat", "pyramid"])
def test_xarray_opens_maps_with_names_of_dimensions(folder, tmp_path, fuse):
    import xarray

    model = s2wrap.load(SPEC, pretrained=False, fuse=fuse)
    found = xarray.open_zarr(write(folder, tmp_path / "x.zarr", model, 3), consolidated=False)
    name, dims = ("spatial_1", ("picture", "channel", "y_1", "x_1")) if fuse == "pyramid" else ("spatial", None)
    assert found[name].dims == (dims or ("picture", "channel", "y", "x"))
    features = model.encode(sorted(map(str, folder.iterdir())))
    wanted = torch.cat([each.maps[1 if fuse == "pyramid" else 0] for each in features])
    np.testing.assert_allclose(found[name].values, wanted, atol=1e-5, rtol=1e-5)
    assert found["path"].values[2] == str(sorted(folder.iterdir())[2])
