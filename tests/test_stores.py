import asyncio
import json
import multiprocessing
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from s2wrap import S2WrapError
from s2wrap.errors import MissingExtraError
from s2wrap.extraction import store as stores
from s2wrap.extraction.control import control_folder, read_state
from s2wrap.extraction.formats import make_writer
from s2wrap.extraction.picture import Failure, Mark, Row
from s2wrap.extraction.store import find_damage, opened_store

NEEDS = {"vectors.parquet": "pyarrow", "maps.zarr": "zarr", "maps.safetensors": None}
ABOUT = {"spec": "made:up@1", "options": {"fit": "pad"}, "weights_sha256": "abc", "s2wrap_version": "1"}


@pytest.fixture(params=NEEDS)
def output(request, tmp_path):
    if NEEDS[request.param]:
        pytest.importorskip(NEEDS[request.param])
    return tmp_path / request.param


def made_up(number, output):
    """The picture of this number: every seventh cannot be read."""
    mark = Mark(0, number + 1, str(number))
    if number % 7 == 3:
        return Failure(f"{number}.png", "no picture", mark)
    random = torch.Generator().manual_seed(number)
    if output.suffix == ".parquet":
        arrays = {"vector": torch.randn(6, generator=random)}
    else:
        arrays = {"spatial": torch.randn(5, 2, 3, generator=random), "prefix": torch.randn(1, 5, generator=random)}
    return Row(f"{number}.png", 10 + number, 20, arrays, mark)


def fill(output, count, *, shard=4, about=ABOUT, stop=None):
    """Write pictures 0 … count − 1, from where the store is; stop before one of them, without a commit."""
    with opened_store(output, make_writer(output, "float32", shard), about) as store:
        for number in range(store.mark.inside, count):
            if number == stop:
                return
            store.add(made_up(number, output))
        store.commit(finished=True)


def read(output):
    """name → (height, width, arrays), by each library's own reader."""
    if output.suffix == ".parquet":
        import pyarrow.dataset

        rows = pyarrow.dataset.dataset(output).to_table().to_pylist()
        return {row["path"]: (row["height"], row["width"], {"vector": np.float32(row["vector"])}) for row in rows}
    if output.suffix == ".zarr":
        import zarr

        group = zarr.open_group(output, mode="r")
        sizes, maps, prefixes = group["image_hw"][:], group["spatial"][:], group["prefix"][:]
        return {
            str(name): (*map(int, sizes[n]), {"spatial": maps[n], "prefix": prefixes[n]})
            for n, name in enumerate(group["path"][:])
        }
    found = {}
    for path in sorted(output.glob("part-*")):
        with safe_open(path, "np") as file:
            names, sizes = (json.loads(file.metadata()[key]) for key in ("files", "image_hw"))
            arrays = {name: file.get_tensor(name) for name in ("spatial", "prefix")}
        for n, name in enumerate(names):
            assert name not in found
            found[name] = (*sizes[n], {key: array[n] for key, array in arrays.items()})
    return found


def assert_holds(output, count):
    """Pictures 0 … count − 1 are there, in order, each as it was made, and the failures are listed once each."""
    items = [made_up(number, output) for number in range(count)]
    rows, found = [item for item in items if isinstance(item, Row)], read(output)
    assert list(found) == [row.name for row in rows]
    for row in rows:
        height, width, arrays = found[row.name]
        assert (height, width) == (row.height, row.width)
        for name, array in row.arrays.items():
            np.testing.assert_array_equal(arrays[name], array.numpy())
    committed = json.loads((control_folder(output) / "store.json").read_text())["failure_bytes"]
    lines = (control_folder(output) / "failures.jsonl").read_bytes()[:committed].splitlines()
    assert [json.loads(line)["path"] for line in lines] == [item.name for item in items if isinstance(item, Failure)]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 19, 33])
def test_what_was_added_is_read(output, count):
    fill(output, count)
    assert_holds(output, count)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 6, 18])
@pytest.mark.parametrize("seconds", [0, 30])
def test_a_run_that_stops_anywhere_is_gone_on_with(output, stop, seconds, monkeypatch):
    monkeypatch.setattr(stores, "COMMIT_SECONDS", seconds)
    fill(output, 21, stop=stop)
    fill(output, 21)
    assert_holds(output, 21)
    fill(output, 21)
    assert_holds(output, 21)


def test_a_picture_behind_the_count_that_fails_next_time_is_not_in_both(output):
    """Killed between a part and its count; then the last picture is broken."""
    fill(output, 6)
    control = control_folder(output) / "store.json"
    with opened_store(output, make_writer(output, "float32", 4), ABOUT):
        count = control.read_text()  # of a run that goes on
    fill(output, 7)
    control.write_text(count)
    with opened_store(output, make_writer(output, "float32", 4), ABOUT) as store:
        store.add(Failure("6.png", "broken", Mark(0, 7, "6")))
        store.commit(finished=True)
    assert list(read(output)) == ["0.png", "1.png", "2.png", "4.png", "5.png"]


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


NO_JSON = ("", "[]", "{}", "[" * 100_000, "null", "\0" * 500, "\xff")
NO_FIELD = (
    ("rows", "20"),
    ("rows", -1),
    ("rows", True),
    ("mark", None),
    ("mark", {}),
    ("made_by", []),
    ("failed", 1.5),
)


@pytest.mark.parametrize(
    ("name", "damage"),
    [*((name, text) for name in ("store.json", "failures.jsonl", "files.jsonl") for text in NO_JSON)]
    + [("store.json", field) for field in NO_FIELD],
    ids=lambda damage: repr(damage)[:20],
)
def test_damaged_control_files_are_told_and_nothing_is_touched(output, name, damage):
    fill(output, 6)
    file = control_folder(output) / name
    if isinstance(damage, tuple):
        damage = json.dumps(json.loads(file.read_text()) | dict([damage]))
    file.write_text(damage, "latin-1")
    before = contents(output)
    with pytest.raises(S2WrapError, match=f"{name} is damaged .*add --overwrite to begin anew"):
        fill(output, 12)
    assert contents(output) == before
    assert file.read_text("latin-1") == damage


@pytest.mark.parametrize("whole", [False, True], ids=["the file", "the folder"])
def test_a_store_without_its_control_files_is_refused_and_nothing_of_it_is_touched(output, whole):
    fill(output, 10)
    (control_folder(output) / "store.json").unlink()
    if whole:
        shutil.rmtree(control_folder(output))
    before = contents(output)
    with pytest.raises(S2WrapError, match=r"store.json is missing, which says what that is; bring it back"):
        fill(output, 12)
    assert contents(output) == before
    with opened_store(output, make_writer(output, "float32", 4), ABOUT, overwrite=True) as store:
        assert store.rows == 0


def test_control_files_of_another_store_are_refused(output, tmp_path):
    other = tmp_path / f"other{output.suffix}"
    fill(output, 6)
    fill(other, 30, about=ABOUT | {"weights_sha256": "other"})
    shutil.rmtree(control_folder(output))
    shutil.copytree(control_folder(other), control_folder(output))
    before = contents(output)
    for about in (ABOUT, ABOUT | {"weights_sha256": "other"}):
        with pytest.raises(S2WrapError, match="weights_sha256|is not as it was written"):
            fill(output, 30, about=about)
    assert contents(output) == before


def test_files_of_others_survive_all_that_happens_to_a_store(output):
    fill(output, 6)
    (output / "notes.txt").write_text("mine")
    (output / "more").mkdir()
    (output / "more" / "part-000000.txt").write_text("mine")
    fill(output, 12)
    with opened_store(output, make_writer(output, "float32", 4), ABOUT, overwrite=True) as store:
        assert store.rows == 0
    fill(output, 5)
    assert (output / "notes.txt").read_text() == (output / "more" / "part-000000.txt").read_text() == "mine"


def test_a_store_whose_folder_was_moved_away_is_refused_and_goes_on_once_it_is_back(output):
    fill(output, 12)
    output.rename(output.with_name("away"))
    with pytest.raises(S2WrapError, match="is empty, and .*store.json says that .* pictures were written; bring them"):
        fill(output, 6)
    output.rmdir()
    output.with_name("away").rename(output)
    fill(output, 20)
    assert_holds(output, 20)


@pytest.mark.parametrize("count", [6, 7, 8])
def test_a_store_that_was_killed_before_a_commit_and_then_had_nothing_to_add_is_whole(output, count):
    """More rows than were committed lie in the last block, and never come again."""
    fill(output, count)
    control = control_folder(output)
    with opened_store(output, make_writer(output, "float32", 4), ABOUT):
        before = contents(control)
    fill(output, count + 3)
    for path, content in before.items():
        path.write_bytes(content)
    for _ in range(2):
        fill(output, count)
        assert not list(find_damage(output, read_state(output), whole=True))
        assert_holds(output, count)


def test_rows_that_were_edited_away_are_told(output):
    fill(output, 30)
    file = control_folder(output) / "store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rows": 6}))
    with pytest.raises(S2WrapError, match="says 6 rows, and .* were written"):
        fill(output, 40)


def test_what_cannot_be_listed_is_not_taken_for_nothing(output, monkeypatch):
    fill(output, 12)
    before = contents(output, control_folder(output))

    def denied(self):
        if self == output:
            raise PermissionError(13, "Permission denied")
        return whole(self)

    whole = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(S2WrapError, match="cannot be listed: Permission denied"):
        fill(output, 20)
    monkeypatch.undo()
    assert contents(output, control_folder(output)) == before


def test_arrays_of_others_are_not_taken_for_those_of_a_store(tmp_path):
    zarr = pytest.importorskip("zarr")
    output = tmp_path / "other.zarr"
    zarr.open_group(output, mode="w").create_array("x", shape=(3,), dtype="float32")[:] = 1
    before = contents(output)
    writer = make_writer(output, "float32", 4)
    with pytest.raises(S2WrapError, match="is not of s2wrap"), opened_store(output, writer, ABOUT, overwrite=True):
        pass
    assert contents(output) == before


@pytest.mark.parametrize("damage", ["removed", "cut", "other bytes"])
def test_files_that_are_not_as_they_were_written_are_told(output, damage):
    """Every file of rows, one after the other; bytes are compared by whoever reads the whole store."""
    fill(output, 33)
    state, before = read_state(output), contents(output)
    files = list(before)
    assert len(files) > 4
    for path in files:
        content = before[path]
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes(content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
        told = list(find_damage(output, state, whole=True))
        assert len(told) == 1
        assert str(path) in told[0]
        if damage != "other bytes":
            with pytest.raises(S2WrapError, match=f"is not as it was written: .*{path.name}"):
                fill(output, 36)
        path.write_bytes(content)
    assert not list(find_damage(output, state, whole=True))
    assert_holds(output, 33)


@pytest.mark.parametrize("ending", ["parquet", "safetensors"])
def test_a_damaged_part_is_told(tmp_path, ending):
    output = tmp_path / f"x.{ending}"
    fill(output, 6)
    part = output / f"part-000001.{ending}"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(S2WrapError, match=r"is not as it was written: .*part-000001.* has 50 bytes"):
        fill(output, 12)


def test_drafts_are_out_of_sight_of_readers(tmp_path):
    """DuckDB reads hidden files too."""
    output, seen = tmp_path / "x.safetensors", []
    writer = make_writer(output, "float32", 4)
    write = writer.write_part
    writer.write_part = lambda rows, path: seen.append(path) or write(rows, path)
    with opened_store(output, writer, ABOUT) as store:
        store.add(made_up(0, output))
        store.commit()
    assert [path.parent.name for path in seen] == ["x.safetensors.s2wrap"]
    assert_holds(output, 1)


def test_a_finished_store_grows_at_its_end(output):
    for count in (3, 6, 20):
        fill(output, count)
        assert_holds(output, count)


def settle():
    """Wait for what zarr still writes after an error; where a process ends instead, that ends too."""
    if "zarr" not in sys.modules:
        return
    from zarr.core.sync import sync

    async def others():
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)

    sync(others())


@pytest.mark.parametrize("broken", ["replace", "fsync", "unlink", "open"])
def test_a_disk_that_fails_at_any_step_loses_nothing(output, broken, monkeypatch):
    """The k-th call of the system fails, for every k until a run gets through; each run goes on after the last."""
    monkeypatch.setattr(stores, "COMMIT_SECONDS", 0)
    module, name = {"replace": (Path, "replace"), "fsync": (os, "fsync"), "unlink": (Path, "unlink")}.get(
        broken, (Path, "open")
    )
    real, calls = getattr(module, name), 0

    def failing(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == last:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    failed = 0
    for last in range(1, 400):
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            try:
                fill(output, 9 + last // 4)
            except (S2WrapError, OSError):
                failed += 1
                settle()
            else:
                if calls < last:
                    break
    assert failed > 3
    fill(output, 9 + last // 4)
    assert_holds(output, 9 + last // 4)


def test_a_full_disk_is_one_clear_error(output, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    fill(output, 6)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(S2WrapError, match="cannot write .*No space left on device"):
        fill(output, 12)
    monkeypatch.undo()
    assert_holds(output, 6)
    fill(output, 12)
    assert_holds(output, 12)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("spec", "made:up@1,2", "spec"),
        ("options", {"fit": "stretch"}, "fit"),
        ("weights_sha256", "abd", "weights_sha256"),
    ],
)
def test_rows_of_another_model_or_option_are_refused(output, key, value, named):
    fill(output, 6)
    with pytest.raises(S2WrapError, match=f"holds features with {named} .*choose another --output"):
        fill(output, 12, about=ABOUT | {key: value})
    assert_holds(output, 6)


def test_a_folder_of_something_else_is_left_alone(output):
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(S2WrapError, match="holds something else than features"):
        fill(output, 3)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    (output / "mine.txt").unlink()
    output.rmdir()
    output.write_text("a file")
    with pytest.raises(S2WrapError, match="it is a file, and a store is a folder"):
        fill(output, 3)


def test_two_runs_do_not_write_to_one_store(output):
    with opened_store(output, make_writer(output, "float32", 4), ABOUT):
        other = multiprocessing.get_context("fork").Process(target=_second_run, args=(output,))
        other.start()
        other.join(60)
    assert other.exitcode == 7
    fill(output, 3)
    assert_holds(output, 3)


def _second_run(output):
    try:
        fill(output, 3)
    except S2WrapError as error:
        os._exit(7 if "written by another run" in str(error) else 1)


def test_maps_of_other_shapes_are_refused_where_one_array_holds_all(tmp_path):
    pytest.importorskip("zarr")
    output = tmp_path / "maps.zarr"
    fill(output, 2)
    with (
        pytest.raises(S2WrapError, match=r"wide.png .* makes spatial \(5, 2, 9\), .* \(5, 2, 3\).*--target-grid"),
        opened_store(output, make_writer(output, "float32", 4), ABOUT) as store,
    ):
        store.add(Row("wide.png", 10, 90, {"spatial": torch.zeros(5, 2, 9), "prefix": torch.zeros(1, 5)}, Mark(0, 9)))
        store.commit()
    assert_holds(output, 2)


@pytest.mark.parametrize("seconds", [0, 30])
def test_shards_hold_maps_of_other_shapes_under_numbers(tmp_path, seconds, monkeypatch):
    monkeypatch.setattr(stores, "COMMIT_SECONDS", seconds)
    output = tmp_path / "maps.safetensors"
    rows = [Row(f"{n}.png", 10, 20, {"spatial": torch.full((5, 2, n), n)}, Mark(0, n)) for n in (1, 2, 3)]
    for row in rows:
        with opened_store(output, make_writer(output, "float32", 4), ABOUT) as store:
            store.add(row)
            store.commit()
    with safe_open(output / "part-000000.safetensors", "pt") as file:
        for number, row in enumerate(rows):
            assert torch.equal(file.get_tensor(f"{number}/spatial"), row.arrays["spatial"])


def test_vectors_are_read_by_pandas_duckdb_and_pyarrow_as_they_are(tmp_path):
    for library in ("pyarrow", "pandas", "duckdb"):
        pytest.importorskip(library)
    import duckdb
    import pandas
    import pyarrow.parquet

    output = tmp_path / "vectors.parquet"
    fill(output, 33)
    expected = [item for item in (made_up(n, output) for n in range(33)) if isinstance(item, Row)]
    vectors = np.stack([row.arrays["vector"].numpy() for row in expected])
    frame = pandas.read_parquet(output)
    assert frame["path"].tolist() == [row.name for row in expected]
    np.testing.assert_array_equal(np.stack(frame["vector"]), vectors)
    found = duckdb.sql(f"select path, vector from '{output}/*.parquet' order by height").fetchall()
    assert [name for name, _ in found] == [row.name for row in expected]
    np.testing.assert_array_equal(np.array([vector for _, vector in found], np.float32), vectors)
    schema = pyarrow.parquet.read_schema(output / "part-000000.parquet")
    assert str(schema.field("vector").type) == "fixed_size_list<element: float>[6]"
    assert schema.metadata[b"spec"] == b"made:up@1"
    assert json.loads(schema.metadata[b"options"]) == {"fit": "pad"}
    assert schema.metadata[b"s2wrap_version"] == b"1"


def fill_rounded(output, dtype):
    """Five rows in a number format, in two runs: the second goes on inside of a block, and reads rows back."""
    for count in (3, 6):
        with opened_store(output, make_writer(output, dtype, 8), ABOUT) as store:
            for item in (made_up(number, output) for number in range(store.mark.inside, count)):
                if isinstance(item, Row):
                    arrays = {key: array.to(getattr(torch, dtype)) for key, array in item.arrays.items()}
                    store.add(replace(item, arrays=arrays))
            store.commit()


def test_vectors_are_taken_by_lancedb_as_they_are(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    from pyarrow import dataset

    for dtype in ("float32", "float16"):
        output = tmp_path / f"{dtype}.parquet"
        fill_rounded(output, dtype)
        table = lancedb.connect(tmp_path / "base").create_table(dtype, dataset.dataset(output))
        query = made_up(4, output).arrays["vector"].numpy()
        found = table.search(query, vector_column_name="vector").metric("cosine").limit(1).to_list()
        assert [row["path"] for row in found] == ["4.png"]


def test_zarr_names_nothing_but_arrays_without_a_warning(tmp_path, recwarn):
    zarr = pytest.importorskip("zarr")
    fill(tmp_path / "maps.zarr", 6)
    group = zarr.open_group(tmp_path / "maps.zarr", mode="r")
    assert sorted(group.array_keys()) == ["image_hw", "path", "prefix", "spatial"]
    assert not [warning for warning in recwarn if "not recognized" in str(warning.message)]


def test_float16_rounds_and_nothing_else(output):
    fill_rounded(output, "float16")
    assert len(read(output)) == 5
    for name, (_, _, arrays) in read(output).items():
        expected = made_up(int(name.removesuffix(".png")), output).arrays
        for key, array in arrays.items():
            np.testing.assert_array_equal(np.float16(array), expected[key].half().numpy())


def test_bfloat16_rounds_and_nothing_else(tmp_path):
    output = tmp_path / "maps.safetensors"
    fill_rounded(output, "bfloat16")
    with safe_open(output / "part-000000.safetensors", "pt") as file:
        found = file.get_tensor("spatial")
    expected = [made_up(number, output).arrays["spatial"].bfloat16() for number in (0, 1, 2, 4, 5)]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.stack(expected))


def test_formats_say_what_they_cannot():
    for output, dtype, shard, words in (
        ("x.txt", "float32", None, "the ending must be .parquet, .zarr, .safetensors, .npz"),
        ("x.parquet", "bfloat16", None, "hold no 'bfloat16'; use float32 or float16"),
        ("x.npz", "int8", None, "use float32 or float16"),
        ("x.npz", "float32", 5, "an .npz is one file"),
        ("x.safetensors", "float32", 0, "--shard 0 is no number of pictures"),
    ):
        with pytest.raises(S2WrapError, match=words):
            make_writer(Path(output), dtype, shard)


@pytest.mark.parametrize(("name", "library"), [("x.parquet", "pyarrow"), ("x.zarr", "zarr")])
def test_a_missing_library_names_the_extra(name, library, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"{library} is not installed.*s2wrap\[features\]"):
        make_writer(Path(name), "float32", None)


def test_names_that_are_no_text_are_written_readably(tmp_path):
    from s2wrap.extraction.vectors import printable

    assert printable(os.fsdecode(b"\xff.png")) == "\\udcff.png"
    assert printable("ünï.png") == "ünï.png"
