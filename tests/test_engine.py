import json
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import s2wrap
from s2wrap import S2WrapError
from s2wrap.export import Engine, export, load, verify
from s2wrap.export import engine as room
from s2wrap.export.engine import check_machine, run_in_batches
from s2wrap.export.engine_session import cuda_device
from s2wrap.export.manifest import manifest_path, read_manifest
from s2wrap.export.ports import Port, Session

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("kept_traces")


def small_vit():
    """Two blocks: an export takes time by the block."""
    return timm.create_model("test_vit", num_classes=0, depth=2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.wrap(small_vit(), (1, 2, 3))


@pytest.fixture(scope="module")
def graph_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export(model, path, image_hw=(160, 200), batch=(1, 2, 4), verify=False)
    return path


@pytest.fixture(scope="module")
def tiles_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiles") / "model.onnx"
    export(model, path, tiles=True, batch=(1, 4, 8), verify=False)
    return path


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=3e-4, rtol=0)


def test_one_graph_has_the_face_of_the_model(graph_file, model):
    engine = load(graph_file)
    assert isinstance(engine, Engine)
    pixels = torch.randint(0, 256, (3, 3, 160, 200), dtype=torch.uint8)
    images = model.input.normalise(pixels)
    expected = model(images)
    last = pixels.permute(0, 2, 3, 1).contiguous()
    for given in (images, images.numpy(), pixels, pixels.numpy(), last, last.numpy()):
        found = engine(given)
        close(found.spatial, expected.spatial)
        close(found.prefix, expected.prefix)
        close(found.pooled, expected.pooled)
    assert found.plan == model.plan((160, 200))
    assert engine.manifest["spec"] is None


def test_stretched_pictures_keep_their_own_geometry(graph_file, model):
    engine = load(graph_file)
    pictures = [torch.randint(0, 256, (3, *image_hw), dtype=torch.uint8) for image_hw in ((160, 200), (90, 300))]
    found, expected = engine.encode(pictures), model.encode(pictures)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.plan, ours.geometry) == (theirs.plan, theirs.geometry)
        assert all(torch.equal(*tiles) for tiles in zip(ours.ran, theirs.ran, strict=True))
        with pytest.raises(S2WrapError, match="an exported file notes no boxes"):
            _ = ours.boxes


def test_maps_are_told_by_name_whatever_the_order(model, tmp_path):
    """TensorRT-RTX lists outputs in an order of its own."""
    pyramid = s2wrap.wrap(model.backbone, (1, 2), fuse="pyramid")
    layered = s2wrap.wrap(small_vit(), (1, 2), layers=(0, 1), join_layers=False)
    images = torch.randn(2, 3, 160, 160)
    for wrapped, tiles in ((pyramid, False), (layered, False), (layered, True)):
        path = tmp_path / "model.onnx"
        export(wrapped, path, tiles=tiles, verify=False, overwrite=True, **({} if tiles else {"image_hw": (160, 160)}))
        engine = load(path)
        run = engine.session.run
        engine.session.run = lambda inputs, run=run: dict(reversed(run(inputs).items()))
        found, expected = engine(images), wrapped(images)
        for ours, theirs in zip((*found.maps, *found.prefixes), (*expected.maps, *expected.prefixes), strict=True):
            close(ours, theirs)


def test_pictures_of_any_size_are_stretched_to_a_graphs(graph_file, model, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    engine = load(graph_file)
    own = torch.randn(3, 160, 200)
    one, two = engine.encode([tmp_path / "a.png", own])
    close(two.spatial, model(own[None]).spatial)
    pixels = s2wrap.images.load_image(tmp_path / "a.png")[None]
    stretched = torch.nn.functional.interpolate(
        model.input.normalise(pixels), (160, 200), mode="bicubic", antialias=True
    )
    close(one.spatial, model(stretched).spatial)


def test_pictures_share_calls_of_a_graph(graph_file):
    engine, pictures, calls = load(graph_file), list(torch.randn(11, 3, 160, 200)), []
    engine.manifest["batch"], run = [1, 4, 4], engine.session.run
    engine.session.run = lambda inputs: calls.append(len(inputs["images"])) or run(inputs)
    found = engine.encode(pictures)
    assert calls == [4, 4, 3]
    for number, picture in enumerate(pictures):
        close(found[number].spatial, engine(picture[None]).spatial)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scales": (1, 2), "fuse": "detail", "overlap": 2},
        {"scales": (1, 1.5), "fit": "pad", "fuse": "pyramid"},
        {"scales": ("1:phases=2", 2), "fuse": "detail"},
        {"scales": (1, 3), "fit": "aspect", "target_grid": "finest", "prefix": "base"},
    ],
    ids=str,
)
def test_the_backbone_alone_does_everything_that_the_model_does(tiles_file, model, options):
    engine = load(tiles_file, **options)
    again = s2wrap.wrap(model.backbone, **({"scales": (1, 2, 3)} | options))
    images = torch.randn(2, 3, 210, 333)
    found, expected = engine(images), again(images)
    for ours, theirs in zip((*found.maps, *found.prefixes), (*expected.maps, *expected.prefixes), strict=True):
        close(ours, theirs)
    pictures = [torch.randn(3, 100, 300), torch.randn(3, 300, 200)]
    for ours, theirs in zip(engine.encode(pictures), again.encode(pictures), strict=True):
        close(ours.maps[0], theirs.maps[0])


def test_the_backbone_alone_selects_tiles(tiles_file, model):
    images = torch.randn(2, 3, 300, 300)
    found, expected = load(tiles_file)(images, select=3), model(images, select=3)
    close(found.spatial, expected.spatial)
    assert found.saved == expected.saved


def test_a_link_leads_to_the_file_and_its_manifest(graph_file, tmp_path):
    (tmp_path / "link.onnx").symlink_to(graph_file)
    assert load(tmp_path / "link.onnx").manifest == read_manifest(graph_file)


def test_a_policy_of_ones_own_must_be_given_again(model, tmp_path):
    def row(image_hw, tile_hw, least, most):
        return 1, 2

    scales = (1, s2wrap.Scale(2, fit="aspect", policy=row))
    export(s2wrap.wrap(model.backbone, scales), tmp_path / "tiles.onnx", tiles=True, verify=False)
    with pytest.raises(S2WrapError, match="was exported with a policy of your own; give scales="):
        load(tmp_path / "tiles.onnx")
    assert load(tmp_path / "tiles.onnx", scales=(1,))(torch.randn(1, 3, 50, 50)).spatial.shape == (1, 64, 10, 10)
    export(s2wrap.wrap(model.backbone, scales), tmp_path / "whole.onnx", verify=False)
    with pytest.raises(S2WrapError, match="fit=aspect: stretching pictures would undo that"):
        load(tmp_path / "whole.onnx").encode([torch.randn(3, 50, 50)])


def test_tokens_alone_and_pooled_alone_are_features(model, tmp_path):
    pixels = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    for outputs in (("tokens",), ("pooled",)):
        path = tmp_path / f"{outputs[0]}.onnx"
        export(model, path, outputs=outputs, pixels="uint8", image_hw=(160, 160), verify=False)
        engine = load(path)
        found = engine(pixels)
        assert found.prefix.shape == (2, 0, 192)
        close(found.pooled, model(pixels).pooled)
        close(engine.encode(list(pixels))[1].pooled, found.pooled[1:])
    assert found.spatial.shape == (2, 192, 1, 1)
    with pytest.raises(S2WrapError, match="takes uint8 pixels and normalises them"):
        engine(torch.rand(1, 3, 160, 160))


def test_threads_may_share_an_engine(graph_file, model):
    engine, found = load(graph_file), {}
    batches = [torch.randn(2, 3, 160, 200) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: engine(batches[n]).spatial})) for n in range(len(batches))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, images in enumerate(batches):
        close(found[n], model(images).spatial)


class Doubling(Session):
    """Three to four at a time."""

    inputs = (Port("tiles", torch.float32, ("batch", 2)),)
    batch = (3, 3, 4)
    device = torch.device("cpu")

    def __init__(self):
        self.sizes = []

    def _run(self, inputs, batch):
        self.sizes.append(batch)
        return {"spatial": inputs["tiles"] * 2}


@pytest.mark.parametrize(("count", "sizes"), [(1, [3]), (3, [3]), (4, [4]), (5, [4, 3]), (9, [4, 4, 3])])
def test_batches_are_cut_and_filled_to_the_profile(count, sizes):
    session = Doubling()
    images = torch.randn(count, 2)
    assert torch.equal(run_in_batches(session, images)["spatial"], images * 2)
    assert session.sizes == sizes


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(1, 3, 160, 160), r"takes \(batch, 3, 160, 200\): use encode\(\)"),
        (torch.randn(3, 160, 200), r"images have shape \(3, 160, 200\); for one image give images\[None\]"),
        ([1, 2], "images are a list"),
        (torch.zeros(1, 3, 160, 200, dtype=torch.int64), "images are torch.int64; give one of uint8"),
        (torch.randn(0, 3, 160, 200), r"images have shape \(0, 3, 160, 200\)"),
    ],
)
def test_wrong_images_are_one_clear_error(graph_file, images, message):
    with pytest.raises(S2WrapError, match=message):
        load(graph_file)(images)


def test_what_one_graph_cannot_do_is_refused(graph_file, model, tmp_path):
    with pytest.raises(S2WrapError, match="scales: model.onnx is one graph, whose scales and fusion are fixed"):
        load(graph_file, scales=(1, 2))
    with pytest.raises(S2WrapError, match="select: one graph runs all tiles"):
        load(graph_file)(torch.randn(1, 3, 160, 200), select=1)
    padded = s2wrap.wrap(model.backbone, (1, 2), fit="pad")
    export(padded, tmp_path / "pad.onnx", image_hw=(160, 200), verify=False)
    with pytest.raises(S2WrapError, match="fit=pad: stretching pictures would undo that"):
        load(tmp_path / "pad.onnx").encode([torch.randn(3, 50, 50)])


def test_a_file_and_its_manifest_belong_together(graph_file, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(S2WrapError, match="there is no such file"):
        load(path)
    path.write_bytes(graph_file.read_bytes())
    with pytest.raises(S2WrapError, match="has no manifest; model.onnx.json"):
        load(path)
    manifest_path(path).write_bytes(manifest_path(graph_file).read_bytes())
    assert load(path).manifest == read_manifest(graph_file)
    path.write_bytes(graph_file.read_bytes()[:-100])
    with pytest.raises(S2WrapError, match="is not the file that model.onnx.json describes"):
        load(path)
    manifest_path(path).write_text(json.dumps({"format": 4, "kind": "onnx"}))
    with pytest.raises(S2WrapError, match="is damaged: part: Field required"):
        load(path)
    manifest_path(path).write_text("{")
    with pytest.raises(S2WrapError, match="is damaged, or no manifest"):
        load(path)
    manifest_path(path).write_text(json.dumps({"format": 99}))
    with pytest.raises(S2WrapError, match="has format 99; this s2wrap reads format 4"):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "x"),
        ("part", "half"),
        ("plan", {}),
        ("geometry", [5]),
        ("outputs", 5),
        ("inputs", [{"name": "images"}]),
        ("gate", None),
        ("recipe", {"nope": 1}),
        ("recipe", {"spec": "timm:test_vit@1", "nope": 1}),
        ("batch", [1, 2]),
        ("batch", "1:2:4"),
        ("image_hw", [160.5, 200]),
        ("precision", "fp12"),
        ("pixels", "float8"),
        ("input", {"channels": "three"}),
        ("options", {"scales": 5}),
        ("options", {"scales": [{"size": 1}]}),
        ("backbone", {"name": "x"}),
        ("weights", 5),
        ("weights", "../other.data"),
        ("sha256", 5),
        ("input", {"channels": 3, "image_hw": [160, 160], "mean": [0.5], "std": [0.5]}),
        ("input", {"channels": 3, "image_hw": [160, 160], "mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}),
        ("plan", None),
        ("geometry", None),
        ("outputs", []),
        ("outputs", [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]),
    ],
)
def test_manifests_of_wrong_types_are_one_clear_error(graph_file, tmp_path, name, value):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_file.read_bytes())
    facts = json.loads(manifest_path(graph_file).read_text())
    manifest_path(path).write_text(json.dumps(facts | {name: value}))
    with pytest.raises(S2WrapError, match=name if name != "recipe" else "recipe|nope") as raised:
        verify(path)
    assert "\n" not in str(raised.value)


def test_deep_manifests_are_one_clear_error(graph_file, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_file.read_bytes())
    manifest_path(path).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(S2WrapError, match="is damaged"):
        load(path)


def test_links_into_a_store_of_blobs_load(model, graph_file, tmp_path, monkeypatch):
    """As hub caches lay them: names beside each other, that are links to hashes elsewhere; weights apart too."""
    monkeypatch.setattr("s2wrap.export.trace.LARGEST_FILE", 100_000)
    for name in ("made", "blobs", "names"):
        (tmp_path / name).mkdir()
    export(model, tmp_path / "made" / "m.onnx", verify=False)
    for number, file in enumerate(sorted((tmp_path / "made").iterdir())):
        file.rename(tmp_path / "blobs" / f"{number:064}")
        (tmp_path / "names" / file.name).symlink_to(tmp_path / "blobs" / f"{number:064}")
    assert number == 2
    images = torch.randn(1, 3, 480, 480)
    close(load(tmp_path / "names" / "m.onnx")(images).spatial, model(images).spatial)


def test_an_engine_is_opened_again_in_another_process(graph_file, model, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_file.read_bytes())
    manifest_path(path).write_bytes(manifest_path(graph_file).read_bytes())
    engine, images = load(path, threads=1), torch.randn(1, 3, 160, 200)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        close(pool.submit(engine, images).result().spatial, model(images).spatial)
    pickled = pickle.dumps(engine)
    monkeypatch.chdir(tmp_path)
    relative = pickle.dumps(load("model.onnx"))
    monkeypatch.chdir(tmp_path.parent)
    close(pickle.loads(relative)(images).spatial, model(images).spatial)
    export(model, path, image_hw=(160, 160), verify=False, overwrite=True)
    with pytest.raises(S2WrapError, match="is another file than when the engine was pickled; load it again"):
        pickle.loads(pickled)


BUILT = {"version": "11.4.0.106", "compute_capability": "9.0", "gpu": "NVIDIA H100"}


@pytest.mark.parametrize(
    ("kind", "build", "installed", "gpu", "message"),
    [
        ("tensorrt", BUILT, "11.4.0.106", (9, 0), None),
        ("tensorrt", BUILT, "11.3.0.1", (9, 0), "built by TensorRT 11.4.0.106, but 11.3.0.1 is installed"),
        ("tensorrt", BUILT | {"version_compatible": True}, "11.5.0.1", (9, 0), None),
        ("tensorrt", BUILT | {"version_compatible": True}, "11.3.0.1", (9, 0), "but 11.3.0.1 is installed"),
        ("tensorrt", BUILT, "11.4.0.106", (8, 9), r"built on NVIDIA H100 \(compute capability 9.0\)"),
        ("tensorrt", BUILT | {"hardware_compatibility": "ampere_plus"}, "11.4.0.106", (8, 9), None),
        ("tensorrt", BUILT | {"hardware_compatibility": "ampere_plus"}, "11.4.0.106", (7, 5), "built on NVIDIA H100"),
        ("tensorrt_rtx", {"version": "1.7", "targets": ("sm80", "sm89")}, "1.7", (8, 9), None),
        ("tensorrt_rtx", {"version": "1.7", "targets": ("sm80", "sm89")}, "1.7", (12, 0), "built for sm80, sm89"),
        ("tensorrt_rtx", {"version": "1.7", "targets": ("default",)}, "1.7", (12, 0), None),
        ("tensorrt_rtx", {"version": "1.6", "targets": ("default",)}, "1.7", (12, 0), "built by TensorRT-RTX 1.6"),
        ("tensorrt_rtx", {"version": "1.7", "targets": ("default",)}, "1.7", None, "needs an NVIDIA GPU"),
        ("onnx", None, "", None, None),
    ],
)
def test_the_machine_is_checked_before_the_engine_is_opened(monkeypatch, kind, build, installed, gpu, message):
    library = type("Library", (), {"__version__": installed})
    monkeypatch.setattr(room, "load_library", lambda kind: library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(room, "cuda_device", cuda_device if gpu is None else lambda path, device: device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    manifest = {"kind": kind} | ({} if build is None else {"build": build})
    if message is None:
        check_machine(Path("model.plan"), manifest, None)
        return
    with pytest.raises(S2WrapError, match=message):
        check_machine(Path("model.plan"), manifest, None)
