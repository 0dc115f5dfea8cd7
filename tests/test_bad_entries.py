"""Whatever a single entry of the sources does, it costs itself alone; and nothing is erased or left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import s2wrap
from s2wrap import S2WrapError
from s2wrap.cli import main
from s2wrap.extraction import decode as decoding
from s2wrap.extraction import encode as encoding
from s2wrap.extraction import run as running
from s2wrap.extraction.check import check
from s2wrap.extraction.control import control_folder
from s2wrap.extraction.run import extract_features
from s2wrap.files import temporary, whole_file, whole_folder
from s2wrap.images import folders, load_image

pytest.importorskip("pyarrow")
SPEC = "timm:test_vit@1"
COUNT = 6


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.load(SPEC, pretrained=False)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def extract(model, sources, output, **options):
    options = {"spec": SPEC, "options": {}, "workers": 0} | options
    return extract_features([str(source) for source in sources], output, load=lambda: model, **options)


def sparse(path):
    path.write_bytes(b"\xff\xd8\xff\xe0")
    os.truncate(path, 1 << 40)


def deep(path):
    """A folder whose path is longer than any system call takes."""
    here = os.getcwd()
    path.mkdir()
    os.chdir(path)
    try:
        for _ in range(30):
            os.mkdir("n" * 200)
            os.chdir("n" * 200)
    finally:
        os.chdir(here)


def name_of_bytes(path):
    with open(os.fsencode(path.parent) + b"/\xff\xfe.png", "wb") as file:
        file.write(b"no picture")


ENTRIES = {
    "x.jpg is a terabyte of nothing": lambda path: sparse(path / "x.jpg"),
    "x.jpg links to itself": lambda path: (path / "x.jpg").symlink_to(path / "x.jpg"),
    "x.jpg links to nothing": lambda path: (path / "x.jpg").symlink_to(path / "none"),
    "x.jpg is a pipe": lambda path: os.mkfifo(path / "x.jpg"),
    "x.jpg is a device": lambda path: (path / "x.jpg").symlink_to("/dev/zero"),
    "x.jpg gives input errors": lambda path: (path / "x.jpg").symlink_to("/proc/self/mem"),
    "a folder beyond the longest path": lambda path: deep(path / "deep"),
    "a name that is no UTF-8": lambda path: name_of_bytes(path / "x"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="entries as Linux has them")
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", ["out.parquet", "out.npz"])
def test_a_bad_entry_is_one_failure_at_every_resume(model, folder, tmp_path, entry, name):
    ENTRIES[entry](folder)
    errors = tmp_path / "errors.jsonl"
    for _ in range(2):
        outcome = extract(model, [folder], tmp_path / name, errors=errors, overwrite=name.endswith("npz"))
        assert (outcome.rows, outcome.failed) == (COUNT, 1)
        (failure,) = map(json.loads, errors.read_text().splitlines())
        assert failure["path"].startswith(str(folder))
        assert failure["reason"].removeprefix(failure["path"])


def test_a_folder_below_that_may_not_be_listed_is_one_failure(model, folder, tmp_path, monkeypatch):
    def entries(path):
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return whole(path)

    whole = folders._entries
    monkeypatch.setattr(folders, "_entries", entries)
    (folder / "locked").mkdir()
    errors = tmp_path / "errors.jsonl"
    for _ in range(2):
        assert extract(model, [folder], tmp_path / "out.parquet", errors=errors).failed == 1
    assert "locked: the folder cannot be listed (Permission denied); its pictures are left out" in errors.read_text()


def test_memory_that_was_short_for_a_moment_costs_nothing(model, folder, tmp_path, monkeypatch):
    """Reading runs out of memory once, encoding another time."""
    short = [str(folder / "1.png"), str(folder / "4.png")]

    def load(path, reading):
        if path == short[0]:
            short[0] = ""
            raise S2WrapError(f"{path}: cannot be decoded") from MemoryError()
        return load_image(path, reading)

    def encode(images):
        images = list(images)
        if len(images) == 1 and short[1]:
            short[1] = ""
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
        if len(images) > 1:
            raise MemoryError
        return whole(images)

    monkeypatch.setattr(decoding, "load_image", load)
    whole = model.encode
    monkeypatch.setattr(model, "encode", encode)
    outcome = extract(model, [folder], tmp_path / "out.parquet")
    assert (outcome.rows, outcome.failed, short) == (COUNT, 0, ["", ""])
    assert sorted(s2wrap.open(tmp_path / "out.parquet").paths) == sorted(map(str, folder.iterdir()))


@pytest.mark.parametrize("name", ["a.tar", "A.TAR", "d.tar"])
def test_members_of_tars_are_tried_again_too(model, folder, tmp_path, monkeypatch, name):
    with tarfile.open(tmp_path / name, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    failing = True

    def decode(content, name, reading):
        if failing and name.endswith(("2.png", "3.png")):
            raise S2WrapError(f"{name}: cannot be decoded") from MemoryError()
        return whole(content, name, reading)

    whole = decoding.decode_image
    monkeypatch.setattr(decoding, "decode_image", decode)
    tar = tmp_path / name
    assert extract(model, [tar], tmp_path / "out.parquet").failed == 2
    failing = False
    outcome = extract(model, [tar, folder], tmp_path / "out.parquet")  # and more came
    assert (outcome.rows, outcome.failed) == (2 * COUNT, 0)
    store = s2wrap.open(tmp_path / "out.parquet")
    for number in range(COUNT):
        torch.testing.assert_close(store[f"{tar}/{number}.png"], store[str(folder / f"{number}.png")])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_midst_of_a_commit_acts_after_it(model, folder, tmp_path, monkeypatch, number):
    usual = signal.signal(number, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        steps, write = [], running.Store.commit

        def commit(store, **options):
            os.kill(os.getpid(), number)
            steps.append("signalled")
            write(store, **options)
            steps.append("written")

        monkeypatch.setattr(running.Store, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            extract(model, [folder], tmp_path / "out.parquet", shard=2)
        assert steps[:2] == ["signalled", "written"]
        assert len(s2wrap.open(tmp_path / "out.parquet")) >= 2
        monkeypatch.undo()
        assert extract(model, [folder], tmp_path / "out.parquet", shard=2).rows == COUNT
    finally:
        signal.signal(number, usual)


def test_a_list_of_failures_replaces_nothing_but_such_a_list(model, folder, tmp_path):
    output, errors = tmp_path / "out.parquet", tmp_path / "errors.jsonl"
    for _ in range(2):
        extract(model, [folder], output, errors=errors)
    errors.write_text("precious")
    with pytest.raises(S2WrapError, match="exists already, and is no such list"):
        extract(model, [folder], output, errors=errors)
    assert errors.read_text() == "precious"
    with pytest.raises(S2WrapError, match="is in the store; give a name elsewhere"):
        extract(model, [folder], output, errors=control_folder(output) / "store.json")


def test_a_name_that_is_no_utf8_is_not_looked_for_as_it_is_written(model, folder, tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    shutil.copyfile(folder / "0.png", odd)
    (tmp_path / "list.txt").write_bytes(odd + b"\n")
    extract(model, [tmp_path / "list.txt"], tmp_path / "out.parquet")
    (tmp_path / "list.txt").write_bytes(odd + b"\nmissing.png\n")
    assert extract(model, [tmp_path / "list.txt"], tmp_path / "out.parquet").failed == 1


def test_a_single_file_is_not_replaced_unasked(model, folder, tmp_path):
    extract(model, [folder], tmp_path / "out.npz")
    before = (tmp_path / "out.npz").read_bytes()
    with pytest.raises(S2WrapError, match=r"out.npz exists already, and is not replaced unasked"):
        extract(model, [folder / "0.png"], tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_bytes() == before
    extract(model, [folder / "0.png"], tmp_path / "out.npz", overwrite=True)
    assert len(s2wrap.open(tmp_path / "out.npz")) == 1


DIES = """
import os, signal, sys
from pathlib import Path
from s2wrap.files import whole_file, whole_folder

path = Path(sys.argv[1])
with whole_file(path) if sys.argv[2] == "file" else whole_folder(path, replace=True) as draft:
    if sys.argv[2] == "between":
        (draft / "new.txt").write_text("new")
        rename = Path.rename
        Path.rename = lambda self, to: rename(self, to) if self == path else os.kill(os.getpid(), signal.SIGKILL)
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
@pytest.mark.parametrize("kind", ["file", "folder", "between"])
def test_what_a_killed_run_left_is_swept_by_the_next_and_what_it_was_to_replace_comes_back(tmp_path, kind):
    target = tmp_path / "a[1] b.txt"
    with temporary(tmp_path / "a[1] b.txt-c") as other:
        pass
    other.write_text("of another file")
    if kind != "file":
        target.mkdir()
        (target / "old.txt").write_text("old")
    with temporary(target) as alive:  # of a run that still writes
        killed = subprocess.run([sys.executable, "-c", DIES, str(target), kind], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len([path for path in tmp_path.glob(".s2wrap-*") if path != other]) == 2
        if kind == "file":
            with whole_file(target) as draft:
                draft.write_text("done")
        elif kind == "folder":
            with whole_folder(target, replace=True) as draft:
                (draft / "old.txt").write_text("old")
        else:
            with pytest.raises(S2WrapError, match="exists already"), whole_folder(target):
                pass
            assert (target / "old.txt").read_text() == "old"
        assert [path for path in tmp_path.glob(".s2wrap-*") if path != other] == [alive]
    assert other.exists()


def test_a_store_is_checked_from_the_command_line(model, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["s2wrap", "check", str(tmp_path / "out.parquet"), "--json"])

    def run():
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr()

    assert run()[0] == 2  # there is none
    (folder / "none.png").symlink_to("nowhere")
    extract(model, [folder], tmp_path / "out.parquet", shard=4)
    code, said = run()
    expected = {"rows": COUNT, "failed": 1, "try_again": 1, "finished": True, "counted": "pictures", "damage": []}
    assert (code, json.loads(said.out)) == (0, [{"store": str(tmp_path / "out.parquet"), **expected}])
    part = tmp_path / "out.parquet" / "part-000000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    code, said = run()
    assert code == 1
    assert "part-000000.parquet has another SHA-256 than what was written" in json.loads(said.out)[0]["damage"][0]
    shutil.rmtree(control_folder(tmp_path / "out.parquet"))
    code, said = run()
    assert code == 2
    assert "store.json is missing" in said.err


def test_features_that_are_not_finite_are_found_in_files_of_others(tmp_path):
    arrays = {"spatial": np.full((2, 4, 3, 3), np.nan, np.float32), "prefix": np.zeros((2, 1, 4), np.float32)}
    np.savez(tmp_path / "x.npz", **arrays, files=["a", "b"], image_hw=[[1, 1], [1, 1]], spec="x")
    assert check(tmp_path / "x.npz").damage == [
        f"{name}: 36 of 36 values of its spatial are not finite" for name in "ab"
    ]
    assert encoding.not_finite({"vector": torch.ones(3)}) is None


def test_polars_xarray_and_lancedb_read_stores_as_they_are(model, folder, tmp_path):
    names = [str(path) for path in sorted(folder.iterdir())]
    extract(model, [folder], tmp_path / "out.parquet", shard=4)
    store = s2wrap.open(tmp_path / "out.parquet")
    polars = pytest.importorskip("polars")
    table = polars.read_parquet(tmp_path / "out.parquet")
    assert table["path"].to_list() == names
    np.testing.assert_array_equal(table["vector"].to_numpy(), [store[name]["vector"] for name in names])
    pytest.importorskip("zarr")
    xarray = pytest.importorskip("xarray")
    extract(model, [folder], tmp_path / "out.zarr")
    maps = xarray.open_zarr(tmp_path / "out.zarr", consolidated=False)
    assert maps["spatial"].dims == ("picture", "channel", "y", "x")
    assert maps["path"].values.tolist() == names
