"""Vectors of pictures by `--vector`: what is stored, what is refused, and what a search encodes its queries with."""

import json

import numpy as np
import open_clip
import pyarrow.dataset
import pytest
import timm
import torch
from commands import run
from einops import reduce
from PIL import Image

import s2wrap
from s2wrap import S2WrapError
from s2wrap.extraction import extract_features
from s2wrap.images import load_image

COUNT = 7
KINDS = ("mean", "cls", "cls+mean", "joint")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    tower = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=48, vision_cfg=tower, text_cfg=text).eval()
    open_clip.set_model_preprocess_cfg(model, {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"})
    return model


@pytest.fixture(scope="module")
def timm_vit():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0).eval()


def write(folder, output, model, **options):
    common = {"load": lambda: model, "spec": "made:up@1", "options": {}, "workers": 0, "shard": 3}
    return extract_features([str(folder)], output, **common | options)


def stored(output):
    """The vectors as pyarrow reads them, in order."""
    return np.array(pyarrow.dataset.dataset(output).to_table(columns=["vector"]).column(0).to_pylist(), np.float32)


def pixels_of(path, side):
    """A picture as a model without s2wrap would be given it: resized by torch, in −1…1."""
    pixels = load_image(path)[None].float()
    resized = torch.nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
    return resized / 255 * 2 - 1


@torch.no_grad()
def test_each_kind_is_what_the_library_gives_of_the_picture(folder, timm_vit, tmp_path):
    model = s2wrap.wrap(timm_vit, scales=(1,), mean=(0.5,) * 3, std=(0.5,) * 3)
    tokens = torch.cat([timm_vit.forward_features(pixels_of(path, 160)) for path in sorted(folder.iterdir())])
    cls, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    expected = {"mean": mean, "cls": cls, "cls+mean": torch.cat([cls, mean], 1)}
    for vector, vectors in expected.items():
        write(folder, tmp_path / f"{vector}.parquet", model, vector=vector)
        np.testing.assert_allclose(stored(tmp_path / f"{vector}.parquet"), vectors, atol=1e-4)
        assert s2wrap.open(tmp_path / f"{vector}.parquet").made_by["vector"] == vector


@pytest.mark.parametrize("workers", [0, 2])
@torch.no_grad()
def test_the_joint_vector_is_the_embedding_of_open_clip_and_not_normalised(folder, clip, tmp_path, workers):
    (tmp_path / "all").mkdir()
    for path in folder.iterdir():
        (tmp_path / "all" / path.name).symlink_to(path)
    (tmp_path / "all" / "03b.png").write_bytes(b"no picture")
    output = tmp_path / "x.parquet"
    model = s2wrap.wrap(clip, scales=(1,))
    assert write(tmp_path / "all", output, model, vector="joint", workers=workers).failed == 1
    paths = sorted(folder.iterdir())
    expected = torch.cat([clip.encode_image(pixels_of(path, 32)) for path in paths])
    np.testing.assert_allclose(stored(output), expected, atol=1e-4)
    text = clip.encode_text(torch.randint(0, 100, (2, 8)))
    cosines = torch.nn.functional.cosine_similarity(text[:, None], expected[None], dim=-1)
    for found, wanted in zip(s2wrap.open(output).search(text, k=1), cosines, strict=True):
        assert found[0].cosine == pytest.approx(float(wanted.max()), abs=1e-5)


@pytest.mark.parametrize("vector", KINDS)
def test_a_search_encodes_its_queries_as_the_store_was(folder, clip, tmp_path, vector):
    model = s2wrap.wrap(clip, scales=(1, 2))
    write(folder, tmp_path / "x.parquet", model, vector=vector)
    store = s2wrap.open(tmp_path / "x.parquet")
    queries = [store.paths[2], Image.open(store.paths[5])]
    for number, row in zip((2, 5), store.search(queries, k=2, model=model), strict=True):
        assert row[0].path == store.paths[number]
        assert row[0].cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("fuse", "layers", "joined"), [("pyramid", None, True), ("concat", (-2, -1), False)])
def test_several_maps_give_a_cls_and_a_mean_each(folder, timm_vit, tmp_path, fuse, layers, joined):
    model = s2wrap.wrap(timm_vit, scales=(1, 2), fuse=fuse, layers=layers, join_layers=joined)
    write(folder, tmp_path / "x.parquet", model, vector="cls+mean")
    for path, vector in zip(sorted(folder.iterdir()), stored(tmp_path / "x.parquet"), strict=True):
        features = model(path)
        parts = [prefix[0, 0] for prefix in features.prefixes]
        parts += [reduce(spatial, "1 c h w -> c", "mean") for spatial in features.maps]
        np.testing.assert_allclose(vector, torch.cat(parts), atol=1e-5)


def test_another_vector_does_not_enter_a_store(folder, timm_vit, tmp_path):
    model = s2wrap.wrap(timm_vit, scales=(1,))
    write(folder, tmp_path / "x.parquet", model)
    with pytest.raises(S2WrapError, match="vector 'mean', and 'cls' is asked for"):
        write(folder, tmp_path / "x.parquet", model, vector="cls")


@pytest.mark.parametrize(
    ("spec", "options", "vector", "words"),
    [
        ("timm:test_resnet@1", {}, "cls", "vector cls: test_resnet has no prefix tokens.*use vector mean"),
        ("timm:test_vit@1", {"prefix": "drop"}, "cls", "prefix='drop' leaves out the CLS token of test_vit"),
        ("timm:vit_medium_patch16_reg4_gap_256@1", {}, "cls+mean", "has 4 registers as prefix tokens, and no CLS"),
        ("timm:test_vit@1", {}, "joint", "test_vit has no embedding in a space with text; models of open_clip have"),
        ("timm:test_vit@1", {}, "CLS", "vector='CLS' is unknown; use one of mean, cls, cls.mean, joint"),
    ],
)
def test_a_model_without_such_a_vector_is_refused_before_any_work(folder, tmp_path, spec, options, vector, words):
    model = s2wrap.load(spec, pretrained=False, **options)
    model.backbone.forward = lambda tiles: pytest.fail("a backbone call")
    with pytest.raises(S2WrapError, match=words):
        write(folder, tmp_path / "x.parquet", model, vector=vector)
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize("name", ["x.zarr", "x.safetensors", "x.npz"])
def test_formats_of_maps_have_no_choice_of_vector(folder, timm_vit, tmp_path, name):
    with pytest.raises(S2WrapError, match=f"vector cls with .*{name}, which holds maps and prefix tokens"):
        write(folder, tmp_path / name, s2wrap.wrap(timm_vit), vector="cls", shard=None)


def test_an_exported_file_has_a_cls_token_or_says_that_it_has_none(folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    words = ("--model", "timm:test_vit@1", "--random-weights", "--quiet")
    assert run("export", words[1], tmp_path / "x.onnx", *words[2:]) == 0
    assert run("export", words[1], tmp_path / "maps.onnx", *words[2:], "--outputs", "spatial") == 0
    for vector in ("mean", "cls", "cls+mean"):
        for name, options in (("torch", words), ("onnx", ("--model", tmp_path / "x.onnx"))):
            output = tmp_path / f"{name}-{vector}.parquet"
            assert run("features", folder, *options, "--vector", vector, "--output", output) == 0
        np.testing.assert_allclose(
            stored(tmp_path / f"onnx-{vector}.parquet"), stored(output.with_name(f"torch-{vector}.parquet")), atol=1e-3
        )
    capsys.readouterr()
    for file, vector, problem in (
        ("maps.onnx", "cls", "maps.onnx has no output prefix, and so no CLS token; use vector mean"),
        ("x.onnx", "joint", "exported files have no embedding in a space with text"),
    ):
        output = tmp_path / "none.parquet"
        assert run("features", folder, "--model", tmp_path / file, "--vector", vector, "--output", output) == 2
        assert problem in " ".join(capsys.readouterr().err.split())


def test_search_on_the_command_line_encodes_alike(folder, tmp_path, capsys):
    output, words = tmp_path / "x.parquet", ("--model", "timm:test_vit@1,2", "--random-weights")
    assert run("features", folder, *words, "--vector", "cls", "--output", output) == 0
    capsys.readouterr()
    path = str(sorted(folder.iterdir())[4])
    assert run("search", output, path, "--random-weights", "-k", 1, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["found"]
    assert found["nearest"][0] == {"path": path, "cosine": pytest.approx(1, abs=1e-5)}
