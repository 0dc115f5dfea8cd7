"""The whole way: pictures at any address → stores, with whatever may end a run on the way."""

import copy
import ctypes
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from skimage import data
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import s2wrap
from s2wrap import S2WrapError
from s2wrap.extraction import decode as decoding
from s2wrap.extraction import local
from s2wrap.extraction import store as stores
from s2wrap.extraction.control import control_folder
from s2wrap.extraction.decode import decode, decode_all
from s2wrap.extraction.encode import encode_all, whole_maps
from s2wrap.extraction.local import encode_here
from s2wrap.extraction.picture import START, Failure, Picture, Row
from s2wrap.extraction.pooling import mean_vector
from s2wrap.extraction.run import extract_features
from s2wrap.extraction.sources import find_sections
from s2wrap.extraction.workers import by_workers
from s2wrap.images import Reading, load_image
from s2wrap.images.options import USUAL

ROOT = Path(__file__).parent.parent
SPEC = "timm:test_vit@1,2"
COUNT = 24


def make_pictures(folder, count):
    """Small pictures of many shapes, each of its own."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(count):
        height, width = random.integers(20, 60, 2)
        content = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(content).save(folder / f"{number:05d}.png", compress_level=1)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("extraction") / "photos", COUNT)


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return s2wrap.load(SPEC, pretrained=False)


def extract(model, addresses, output, **options):
    options = {"spec": SPEC, "options": {}, "workers": 0} | options
    return extract_features([str(address) for address in addresses], output, load=lambda: model, **options)


def read(output):
    """The names in order, and the arrays, of a single file or of shards."""
    names, arrays = [], []
    for path in sorted(output.glob("part-*")) if output.is_dir() else [output]:
        with safe_open(path, "pt") as file:
            names += json.loads(file.metadata()["files"])
            arrays.append(file.get_tensor("spatial"))
    return names, torch.cat(arrays)


@pytest.fixture(scope="session")
def expected(model, folder):
    """The maps of the folder's pictures, one call a picture."""
    return torch.cat([model(load_image(path)[None]).spatial for path in sorted(folder.iterdir())])


def tar_of(folder, path, files):
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    return path


def test_folders_patterns_lists_tars_and_servers_give_the_same_features(model, folder, expected, tmp_path):
    files = sorted(folder.iterdir())
    (tmp_path / "list.txt").write_text("".join(f"{file}\n" for file in files))
    tars = [tar_of(folder, tmp_path / f"{n}.tar", files[n * 8 : n * 8 + 8]) for n in range(3)]
    memory = fsspec.filesystem("memory")
    for path in (*files, *tars):
        memory.pipe(f"/bucket/{path.parent.name}/{path.name}", path.read_bytes())
    memory.pipe("/bucket/list.txt", "".join(f"memory://bucket/photos/{file.name}\n" for file in files).encode())
    sources = {
        "folder": [folder],
        "pattern": [folder / "*.png"],
        "list": [tmp_path / "list.txt"],
        "files": files,
        "file": [f"file://{folder}"],
        "tars": [tmp_path / "*.tar"],
        "memory": ["memory://bucket/photos"],
        "memory pattern": ["memory://bucket/photos/*.png"],
        "memory list": ["memory://bucket/list.txt"],
        "memory tars": [f"memory://bucket/{tmp_path.name}/*.tar"],
    }
    for name, addresses in sources.items():
        output = tmp_path / f"{name}.safetensors"
        assert extract(model, addresses, output).rows == COUNT
        names, maps = read(output)
        assert [os.path.basename(found) for found in names] == [file.name for file in files], name
        torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0, msg=name)


def test_a_parquet_list_gives_the_same_features(model, folder, expected, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    files = [str(path) for path in sorted(folder.iterdir())]
    parquet.write_table(pyarrow.table({"path": files}), tmp_path / "list.parquet")
    extract(model, [tmp_path / "list.parquet"], tmp_path / "out.safetensors")
    names, maps = read(tmp_path / "out.safetensors")
    assert names == files
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)


def test_s3_gives_the_same_features(model, folder, expected, tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # which may have the address of another test's server
        files = fsspec.filesystem("s3")
        files.mkdir("bucket")
        for path in sorted(folder.iterdir()):
            files.put(str(path), f"bucket/photos/{path.name}")
        tar = tar_of(folder, tmp_path / "all.tar", sorted(folder.iterdir()))
        files.put(str(tar), "bucket/all.tar")
        for number, address in enumerate(("s3://bucket/photos", "s3://bucket/photos/*.png", "s3://bucket/all.tar")):
            for workers in (0, 1):
                output = tmp_path / f"{number}-{workers}.safetensors"
                extract(model, [address], output, workers=workers)
                names, maps = read(output)
                assert all(name.startswith("s3://bucket/") for name in names)
                torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_what_this_process_gives_in_the_same_order(folder, workers):
    pictures = [Picture(str(path)) for path in sorted(folder.iterdir())] + [Picture("none.png")]
    here, there = (list(decode_all(pictures, workers=count)) for count in (0, workers))
    assert [decoded.name for decoded in there] == [picture.name for picture in pictures]
    assert all(torch.equal(a.image, b.image) for a, b in zip(here[:-1], there[:-1], strict=True))
    assert here[-1] == there[-1]
    assert "there is no such file" in there[-1].failure.reason


def test_pictures_are_asked_for_only_a_few_ahead(folder):
    path = str(next(folder.iterdir()))
    asked = 0

    def ask():
        nonlocal asked
        for _ in range(10_000):
            asked += 1
            yield Picture(path)

    decoded = decode_all(ask(), workers=2)
    for _ in range(5):
        next(decoded)
    assert asked <= 5 + 2 * decoding.AHEAD
    decoded.close()


def test_tiles_of_several_pictures_share_backbone_calls(model, folder):
    calls = []
    hook = model.backbone.model.patch_embed.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    try:
        pictures = map(decode, [Picture(str(path)) for path in sorted(folder.iterdir())])
        rows = list(encode_all([model], pictures, whole_maps, dtype=torch.float32))
    finally:
        hook.remove()
    assert len(rows) == COUNT
    assert sum(calls) == COUNT * 5
    assert set(calls) <= {4}


def test_vectors_are_the_average_of_the_map_for_pyramids_of_each(model, folder):
    image = load_image(next(folder.iterdir()))
    features = model(image[None])
    np.testing.assert_allclose(mean_vector(features)["vector"], features.spatial[0].mean((1, 2)), atol=1e-6)
    pyramid = s2wrap.wrap(model.backbone, (1, 2), fuse="pyramid")(image[None])
    means = [level[0].mean((1, 2)) for level in pyramid.maps]
    np.testing.assert_allclose(mean_vector(pyramid)["vector"], torch.cat(means), atol=1e-6)


def test_pictures_that_the_model_refuses_do_not_stop_their_neighbours(model, folder):
    class Picky(s2wrap.MultiScale):
        def encode(self, images, **options):
            images = list(images)
            if any(image.shape[-1] == 2 for image in images):
                raise S2WrapError("image 0: two pixels are too few for me")
            return super().encode(images, **options)

    decoded = [decode(Picture(str(path))) for path in sorted(folder.iterdir())[:6]]
    small = decoding.Decoded("small.png", torch.zeros(3, 5, 2, dtype=torch.uint8))
    items = list(
        encode_all(
            [Picky(model.backbone, model.options)], [*decoded[:2], small, *decoded[2:]], whole_maps, dtype=torch.float32
        )
    )
    assert [isinstance(item, Row) for item in items] == [True, True, False, True, True, True, True]
    assert items[2] == Failure("small.png", "small.png: two pixels are too few for me")


def test_copies_of_a_model_on_more_devices_take_batches_in_turn(model, folder, expected, tmp_path):
    used = []
    extract(model, [folder], tmp_path / "one.safetensors", devices=["cpu", "cpu"], workers=1)
    names, maps = read(tmp_path / "one.safetensors")
    assert names == [str(path) for path in sorted(folder.iterdir())]
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)
    models = [copy.deepcopy(model) for _ in range(3)]
    for number, each in enumerate(models):
        each.encode = lambda images, number=number, each=each: (
            used.append(number) or s2wrap.MultiScale.encode(each, images)
        )
    list(encode_all(models, map(decode, map(Picture, names)), whole_maps, dtype=torch.float32))
    assert used == [number % 3 for number in range(len(used))]
    assert len(used) >= 6


@pytest.fixture
def _soon_noticed(monkeypatch):
    """A DataLoader that looks for dead workers twice a second, and not every 5 seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))


@pytest.mark.usefixtures("_soon_noticed")
def test_a_picture_that_kills_its_worker_is_named_and_the_others_are_kept(folder, monkeypatch):
    paths = sorted(folder.iterdir())
    killers = {str(paths[3]), str(paths[10])}

    def deadly(path, reading):
        if str(path) in killers:
            ctypes.string_at(0)  # a segmentation fault, as a broken decoder makes
        return load_image(path, reading)

    monkeypatch.setattr(decoding, "load_image", deadly)
    found = list(decode_all([Picture(str(path)) for path in paths], workers=2))
    assert [decoded.name for decoded in found] == [str(path) for path in paths]
    assert {decoded.name for decoded in found if decoded.image is None} == killers
    assert "the process that decoded it crashed" in found[3].failure.reason


@pytest.mark.usefixtures("_soon_noticed")
def test_a_worker_that_dies_while_the_model_works_does_not_stop_that(folder, monkeypatch):
    paths = sorted(folder.iterdir())[:8]

    def deadly(path, reading):
        if str(path) == str(paths[5]):
            ctypes.string_at(0)
        return load_image(path, reading)

    monkeypatch.setattr(decoding, "load_image", deadly)
    found = []
    for decoded in decode_all([Picture(str(path)) for path in paths], workers=1):
        time.sleep(0.2)  # the model works; meanwhile the worker goes on to the deadly picture
        found.append(decoded)
    assert [decoded.image is None for decoded in found] == [False] * 5 + [True] + [False] * 2


def test_workers_that_encode_give_what_this_process_gives(model, folder, expected, tmp_path):
    """In the same order, with pictures that cannot be read between; and each with one thread."""
    files = sorted(folder.iterdir())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    listed, threads = tmp_path / "list.txt", []
    listed.write_text("".join(f"{file}\n" for file in [*files[:7], tmp_path / "bad.png", *files[7:]]))

    def keep(features):
        return whole_maps(features) | {"threads": torch.tensor(torch.get_num_threads())}

    for workers in (1, 2, 3):
        items = list(encode_here([model], keep, torch.float32, workers, USUAL, find_sections([str(listed)]), START))
        threads += [int(item.arrays["threads"]) for item in items if isinstance(item, Row)]
        assert [item.name for item in items] == listed.read_text().split()
        assert "not a picture" in items.pop(7).reason
        found = torch.stack([item.arrays["spatial"] for item in items])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert set(threads) == {1}


@pytest.mark.usefixtures("_soon_noticed")
def test_pictures_that_kill_a_worker_which_encodes_are_named_and_the_others_are_kept(model, folder, monkeypatch):
    """Killed in the midst of a block of several."""
    paths = [str(path) for path in sorted(folder.iterdir())]
    killers = {paths[3]}
    model = s2wrap.wrap(model.backbone, scales=(1,))

    def deadly(path, reading):
        if str(path) in killers:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is short
        return load_image(path, reading)

    monkeypatch.setattr(decoding, "load_image", deadly)
    items = list(encode_here([model], whole_maps, torch.float32, 2, USUAL, find_sections(paths), START))
    assert [item.name for item in items] == paths
    assert {item.name for item in items if isinstance(item, Failure)} == killers
    assert items[3].reason == f"{paths[3]}: the process that worked on it crashed, or was killed for its memory"
    assert [item.mark.inside for item in items] == list(range(1, COUNT + 1))


def test_what_ends_a_worker_that_encodes_is_told_and_what_was_done_is_kept(model, folder, monkeypatch):
    paths, done = [str(path) for path in sorted(folder.iterdir())], []

    def failing(path, reading):
        if str(path) == paths[6]:
            raise error from (OSError(24, "too many") if isinstance(error, S2WrapError) else None)
        return load_image(path, reading)

    monkeypatch.setattr(decoding, "load_image", failing)
    model = s2wrap.wrap(model.backbone, scales=(1,))
    for error, message in (
        (S2WrapError("away"), "away; the same command again"),
        (MemoryError("large"), "large"),
        (ValueError("odd"), "ValueError: odd"),
    ):
        kind = {S2WrapError: S2WrapError, MemoryError: MemoryError, ValueError: RuntimeError}[type(error)]
        done.clear()
        with pytest.raises(kind, match=message):
            for item in encode_here([model], whole_maps, torch.float32, 1, USUAL, find_sections(paths), START):
                done.append(item.name)
        assert done == paths[: len(done)]
        assert len(done) >= 4


@pytest.mark.usefixtures("_soon_noticed")
def test_a_worker_that_dies_while_it_hands_over_much_is_not_waited_for(model, folder, monkeypatch):
    """Killed on its next block, while this process has not yet taken the megabytes of the last one."""
    paths = [str(path) for path in sorted(folder.iterdir())[:8]]

    def deadly(path, reading):
        if str(path) == paths[2]:
            os.kill(os.getpid(), signal.SIGKILL)
        return load_image(path, reading)

    monkeypatch.setattr(decoding, "load_image", deadly)
    items = []
    for item in encode_here(
        [model], lambda _: {"large": torch.zeros(2**21)}, torch.float32, 1, USUAL, find_sections(paths), START
    ):
        items.append(item.name)
        time.sleep(1 if len(items) == 1 else 0)
    assert items == paths


def test_an_error_of_what_is_worked_on_comes_after_what_was_before_it():
    """Even if it looks like that of a worker that has died."""

    def items():
        yield from range(5)
        raise FileNotFoundError("the source is gone")

    found = []
    with pytest.raises(FileNotFoundError, match="the source is gone"):
        for made in by_workers(items(), lambda number: -number, lambda number: None, workers=2, ahead=2, fork=True):
            found.append(made)
    assert found == [0, -1, -2, -3, -4]


@pytest.mark.parametrize(
    ("kind", "address", "count", "found"),
    [
        ("model", "file", 24, [(6, True)]),
        ("model", "memory", 24, [(12, True)]),
        ("model", "file", 5, []),
        ("callable", "file", 24, [(5, False)]),
        ("exported", "file", 1, [(5, False)]),
    ],
)
def test_as_many_workers_as_processors_by_default(model, folder, monkeypatch, kind, address, count, found):
    """Those of a model that cannot be copied into them decode, and leave a processor to it; few pictures need none."""
    files, started = sorted(folder.iterdir())[:count], []
    if address == "memory":
        for file in files:
            fsspec.filesystem("memory").pipe(f"/shared/{file.name}", file.read_bytes())
    if kind == "callable":
        vit = model.backbone.model
        options = {"image_size": 160, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        model = s2wrap.wrap(lambda images: vit.forward_features(images), **options)
    elif kind == "exported":
        model = SimpleNamespace(device=torch.device("cpu"), tile_batch_for=model.tile_batch_for, encode=model.encode)

    def by_workers(items, work, crashed, *, workers, **options):
        started.append((workers, options.get("fork", False)))
        return map(work, items)

    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    for place in (local, decoding):
        monkeypatch.setattr(place, "by_workers", by_workers)
    sections = find_sections(["memory://shared"] if address == "memory" else [str(file) for file in files])
    rows = list(encode_here([model], whole_maps, torch.float32, None, USUAL, sections, START))
    assert [os.path.basename(row.name) for row in rows] == [file.name for file in files]
    assert all(isinstance(row, Row) for row in rows)
    assert started == found


def test_a_server_that_gives_no_answer_is_asked_again_and_then_the_picture_is_to_be_tried_again(monkeypatch, folder):
    content, asked, waited = next(folder.iterdir()).read_bytes(), [], []

    def read(address):
        asked.append(address)
        if len(asked) < answers:
            raise ConnectionResetError("busy")
        return content

    monkeypatch.setattr(decoding, "fetch", read)
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    answers = 4
    (decoded,) = decode_all([Picture("memory://x.png")], workers=0)
    assert decoded.image is not None
    assert len(waited) == 3
    answers = 100
    (decoded,) = decode_all([Picture("memory://x.png")], workers=0)
    assert decoded.failure.reason == (
        "memory://x.png: no whole answer, after several attempts: ConnectionResetError: busy"
    )
    assert decoded.failure.again
    assert len(asked) == 8


def test_failures_are_counted_and_listed_over_several_runs(model, folder, tmp_path, monkeypatch):
    photos, errors, output = tmp_path / "photos", tmp_path / "errors.jsonl", tmp_path / "out.safetensors"
    photos.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        (photos / path.name).write_bytes(b"no picture" if number % 5 == 1 else path.read_bytes())
    bad = [f"{photos}/{number:05d}.png" for number in range(1, COUNT, 5)]

    def stop(state):
        if state.done == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(model, [photos], output, shard=4, errors=errors, tell=stop)
    first = [json.loads(line)["path"] for line in errors.read_text().splitlines()]
    assert 0 < len(first) < len(bad)
    assert first == bad[: len(first)]
    for _ in range(2):
        outcome = extract(model, [photos], output, shard=4, errors=errors)
        assert (outcome.rows, outcome.failed) == (COUNT - len(bad), len(bad))
        lines = [json.loads(line) for line in errors.read_text().splitlines()]
        assert [line["path"] for line in lines] == bad
        assert all("not a picture" in line["reason"] for line in lines)
    alone = tmp_path / "alone.safetensors"
    assert extract(model, [photos], alone, errors=errors).failed == len(bad)
    assert [json.loads(line)["path"] for line in errors.read_text().splitlines()] == bad
    assert read(alone)[0] == read(output)[0]


def test_a_disk_that_is_gone_stops_the_run_and_a_picture_that_is_gone_does_not(model, folder, tmp_path):
    photos, output = tmp_path / "disk" / "photos", tmp_path / "out.safetensors"
    photos.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        (photos / path.name).write_bytes(path.read_bytes())

    def unmount(state):
        if state.done == 8:
            (tmp_path / "disk").rename(tmp_path / "away")

    with pytest.raises(S2WrapError, match=r"pictures in a row cannot be reached \(.*there is no such file\), nor what"):
        extract(model, [photos], output, shard=4, tell=unmount)
    (tmp_path / "away").rename(tmp_path / "disk")

    def remove(state):
        if state.done == 12:
            for number in (20, 23):
                (photos / f"{number:05d}.png").unlink()

    outcome = extract(model, [photos], output, shard=4, tell=remove)
    assert (outcome.rows, outcome.failed) == (COUNT - 2, 2)
    assert read(output)[0] == [f"{photos}/{number:05d}.png" for number in range(COUNT) if number not in (20, 23)]


def test_pictures_that_are_missing_are_tried_again_by_the_next_run(model, folder, tmp_path):
    files, output, listed = sorted(folder.iterdir()), tmp_path / "out.safetensors", tmp_path / "list.txt"
    errors, told = tmp_path / "errors.jsonl", []
    late = [tmp_path / "late-a.png", tmp_path / "late-b.png"]
    (damaged := tmp_path / "damaged.png").write_text("no picture")
    listed.write_text("".join(f"{file}\n" for file in [*files[:3], damaged, *late, *files[3:8]]))
    for _ in range(2):
        assert extract(model, [listed], output, shard=4, errors=errors).failed == 3
    again = {line["path"]: line["try_again"] for line in map(json.loads, errors.read_text().splitlines())}
    assert again == {str(damaged): False, str(late[0]): True, str(late[1]): True}
    late[1].write_bytes(files[9].read_bytes())
    outcome = extract(model, [listed], output, shard=4, errors=errors, tell=told.append)
    assert (outcome.rows, outcome.failed, told[0].again) == (9, 2, 2)
    names, features = read(output)[:2]
    assert names == [*map(str, files[:8]), str(late[1])]
    (alone,) = read(extract_alone(model, late[1], tmp_path))[1]
    torch.testing.assert_close(features[-1], alone)
    damaged.write_bytes(files[9].read_bytes())  # what was damaged is not read for ever
    late[0].write_bytes(files[10].read_bytes())
    assert extract(model, [listed], output, shard=4, errors=errors).failed == 1
    assert [json.loads(line)["path"] for line in errors.read_text().splitlines()] == [str(damaged)]


def extract_alone(model, path, folder):
    extract(model, [path], folder / "alone.safetensors")
    return folder / "alone.safetensors"


def test_what_the_system_lacks_is_no_fault_of_the_picture(folder, monkeypatch):
    def load(path, reading):
        try:
            raise OSError(24, "Too many open files")
        except OSError as error:
            raise S2WrapError(f"{path}: cannot be opened (Too many open files)") from error

    monkeypatch.setattr(decoding, "load_image", load)
    with pytest.raises(S2WrapError, match="Too many open files.*the same command again goes on from here"):
        list(decode_all([Picture(str(next(folder.iterdir())))], workers=0))


def test_shared_memory_that_is_full_is_told_and_not_waited_for(folder, monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(S2WrapError, match="no shared memory to hand it over .* use fewer --workers, or 0"):
        list(decode_all([Picture(str(next(folder.iterdir())))], workers=1))


def test_pictures_that_could_not_be_read_at_all_are_tried_again(model, folder, tmp_path):
    picture, output = tmp_path / "a.png", tmp_path / "out.safetensors"
    picture.write_text("no picture")
    for _ in range(2):
        with pytest.raises(S2WrapError, match="none of 1 pictures could be read"):
            extract(model, [picture], output, shard=4)
    picture.write_bytes(next(folder.iterdir()).read_bytes())
    assert extract(model, [picture], output, shard=4).rows == 1


def test_nothing_readable_is_an_error(model, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    for name, options in (("one.safetensors", {}), ("many.safetensors", {"shard": 4})):
        with pytest.raises(S2WrapError, match="none of 1 pictures could be read"):
            extract(model, [tmp_path / "bad.png"], tmp_path / name, **options)


@pytest.mark.parametrize(("value", "dtype"), [(1e5, "float16"), (float("nan"), "float32"), (float("inf"), "float32")])
def test_features_that_are_not_finite_are_failures(folder, tmp_path, value, dtype):
    known = {"image_size": 32, "mean": (0, 0, 0), "std": (1, 1, 1)}
    odd = s2wrap.wrap(lambda images: images.new_full((len(images), 4, 2, 2), value), (1,), **known)
    errors = tmp_path / "errors.jsonl"
    with pytest.raises(S2WrapError, match="none of .* pictures could be read"):
        extract(odd, [folder], tmp_path / "out.safetensors", dtype=dtype, errors=errors)
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    assert all("16 of 16 values of its spatial are not finite" in line["reason"] for line in lines)
    assert all(("use float32" in line["reason"]) == (dtype == "float16") for line in lines)
    assert not (tmp_path / "out.safetensors").exists()


def test_pictures_that_hide_another_one_are_rejected_on_demand(model, tmp_path):
    """The pixels that a nearest downscale to 224 reads are those of another picture."""
    photo, target = data.astronaut(), data.chelsea()[:224, :224]
    read_by = np.arange(224) * 512 // 224
    hiding = photo.copy()
    hiding[np.ix_(read_by, read_by)] = target
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(hiding).save(tmp_path / "b.png")
    assert extract(model, [tmp_path], tmp_path / "all.safetensors").rows == 2
    for workers in (0, 1):
        errors, output = tmp_path / "errors.jsonl", tmp_path / f"{workers}.safetensors"
        outcome = extract(
            model, [tmp_path], output, reading=Reading(reject_scaling_attacks=True), workers=workers, errors=errors
        )
        assert (outcome.rows, outcome.failed) == (1, 1)
        assert read(output)[0] == [str(tmp_path / "a.png")]
        reason = json.loads(errors.read_text())["reason"]
        assert "b.png: may hide another picture, which a nearest downscale to 224×224 shows" in reason


def test_expected_pictures_are_counted_or_guessed_from_the_tars_that_are_done(model, folder, tmp_path):
    files, states = sorted(folder.iterdir()), []
    extract(model, [folder], tmp_path / "a.safetensors", tell=states.append)
    assert {state.expected for state in states} == {COUNT}
    assert [state.done for state in states] == list(range(COUNT + 1))
    for number in range(4):
        tar_of(folder, tmp_path / f"{number}.tar", files[number * 6 : number * 6 + 6])
    states.clear()
    extract(model, [tmp_path / "*.tar"], tmp_path / "b.safetensors", tell=states.append)
    assert [state.expected for state in states[:7]] == [None] * 7
    assert all(abs(state.expected - COUNT) <= COUNT / 3 for state in states[7:])


ORPHAN = """
import os, sys, time
from pathlib import Path
from torch.utils.data._utils import worker
from s2wrap.extraction.decode import decode_all
from s2wrap.extraction.picture import Picture


class Late(worker.ManagerWatchdog):
    def __init__(self):
        Path(sys.argv[1]).write_text("started")
        time.sleep(1)
        super().__init__()


worker.ManagerWatchdog = Late
list(decode_all([Picture("nothing.png")], workers=1))
"""


def test_a_worker_ends_with_its_run_even_while_it_starts(tmp_path):
    """A DataLoader's worker looks for its parent, but takes for it whatever that is once it has started."""
    started = tmp_path / "started"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", ORPHAN, started], env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        while not started.exists():
            assert run.poll() is None
            time.sleep(0.001)
        run.kill()
        assert run.communicate(timeout=20) == ("", None)  # its end: nobody has the other end of the pipe any more


RUNS = """
import os, random, signal, sys, time
import torch
from pathlib import Path
import s2wrap
from s2wrap.extraction import store
from s2wrap.extraction.run import extract_features

torch.set_num_threads(1)
store.COMMIT_SECONDS = 0.02
folder, weights, output, kills, seconds = sys.argv[1:]
model = s2wrap.load("timm:test_vit@1,2", checkpoint=weights)
random.seed(0)


def run(output):
    extract_features([folder], Path(output), load=lambda: model, spec="x", options={}, shard=16, workers=2)


def killed_run(output, after):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(output)
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, status
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def killed_until_done(output):
    # times from nearly nothing to several blocks; longer ones if the machine is so slow that nothing gets done
    count = 0
    while not killed_run(output, random.choice([0.1, 0.5, 1.5]) * random.random() * (1 + count / 50)):
        count += 1
    return count


name, ending = os.path.splitext(output)
assert killed_run(f"{name}-whole{ending}", 600)
start, total, store_number = time.monotonic(), 0, 0
while total < int(kills) and time.monotonic() - start < float(seconds):
    total += killed_until_done(f"{name}-{store_number}{ending}")
    store_number += 1
print(total, store_number)
"""


def arrays_of(output):
    """Names and features of a store, whatever its format."""
    if output.suffix == ".safetensors":
        return read(output)
    if output.suffix == ".parquet":
        import pyarrow.dataset

        table = pyarrow.dataset.dataset(output).to_table()
        return table["path"].to_pylist(), torch.from_numpy(np.stack(table["vector"].to_pylist()))
    import zarr

    group = zarr.open_group(output, mode="r")
    return [str(name) for name in group["path"][:]], torch.from_numpy(group["spatial"][:])


@pytest.mark.parametrize(
    ("ending", "library"), [("safetensors", "safetensors"), ("parquet", "pyarrow"), ("zarr", "zarr")]
)
def test_a_run_killed_at_any_moment_leaves_what_an_undisturbed_one_does(model, tmp_path, ending, library):
    """S2WRAP_KILLS sets the kills a format, such as 50; by default as many as fit in 10 seconds, 50 at most."""
    pytest.importorskip(library)
    folder, weights = make_pictures(tmp_path / "photos", 120), tmp_path / "weights.safetensors"
    (folder / "00050.png").write_text("no picture")
    save_file(model.backbone.model.state_dict(), weights)
    kills, seconds = os.environ.get("S2WRAP_KILLS", "50"), 1e6 if "S2WRAP_KILLS" in os.environ else 10
    arguments = [folder, weights, tmp_path / f"out.{ending}", kills, seconds]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-W", "ignore", "-c", RUNS, *map(str, arguments)]
    result = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    kills, count = map(int, result.stdout.split())
    print(f"{kills} kills, {count} stores")
    assert kills >= 3
    names, features = arrays_of(tmp_path / f"out-whole.{ending}")
    assert len(names) == len(set(names)) == 119
    for number in range(count):
        output = tmp_path / f"out-{number}.{ending}"
        found, values = arrays_of(output)
        assert found == names
        torch.testing.assert_close(values, features, atol=1e-5, rtol=0)
        assert len((control_folder(output) / "failures.jsonl").read_text().splitlines()) == 1
        assert not [path for path in output.rglob("*") if path.name.startswith(".s2wrap-") or ".partial" in path.name]


MEASURE = """
import os
import sys
from multiprocessing import active_children
from pathlib import Path
import torch
import s2wrap
from s2wrap.extraction.run import extract_features

torch.set_num_threads(1)
model = s2wrap.load("timm:test_vit@1", pretrained=False)
held = []


def measure(state):
    processes = [os.getpid(), *(child.pid for child in active_children())]
    held.append(sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4 for process in processes))


options = {"load": lambda: model, "spec": "x", "options": {}, "shard": 100, "workers": 1}
extract_features([sys.argv[1]], Path(sys.argv[2]), tell=measure, **options)
print(max(held))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures by Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    """This process and its worker; the maps of these tiny pictures would take 36 MB more together."""
    peaks = []
    folder = make_pictures(tmp_path / "photos", 200)
    for count in (100, 1500):
        (tmp_path / str(count)).mkdir()
        for number in range(count):
            os.link(folder / f"{number % 200:05d}.png", tmp_path / str(count) / f"{number:05d}.png")
        program = [sys.executable, "-c", MEASURE, str(tmp_path / str(count)), str(tmp_path / f"{count}.safetensors")]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(program, capture_output=True, text=True, env=environment, check=True)
        peaks.append(int(result.stdout) / 1024)
    print(f"{peaks[0]:.0f} MB at 100 pictures, {peaks[1]:.0f} MB at 1,500")
    assert peaks[1] < min(1.1 * peaks[0], peaks[0] + 20)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("seconds", [0, 30])
def test_a_run_commits_what_is_done_however_it_ends(model, folder, tmp_path, monkeypatch, error, seconds):
    monkeypatch.setattr(stores, "COMMIT_SECONDS", seconds)
    output, seen = tmp_path / "out.safetensors", []

    def stop(state):
        if state.done == 10:
            raise error

    with pytest.raises(error):
        extract(model, [folder], output, shard=100, tell=stop)
    extract(model, [folder], output, shard=100, tell=seen.append)
    assert [state.done for state in seen] == list(range(10, COUNT + 1))
    assert read(output)[0] == [str(path) for path in sorted(folder.iterdir())]
