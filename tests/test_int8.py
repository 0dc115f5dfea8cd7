"""Vectors of int8: what is stored, what comes back, and that the recall which is told is the one of the files."""

import json
import os

import duckdb
import numpy as np
import pyarrow.dataset
import pytest
import torch
from commands import run
from PIL import Image

import s2wrap
from s2wrap import S2WrapError
from s2wrap.extraction import extract_features, int8
from s2wrap.extraction.formats import make_writer
from s2wrap.extraction.int8 import Quantizer, dequantize, quantize
from s2wrap.extraction.picture import Failure, Row

COUNT, CHANNELS = 40, 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        content = random.integers(0, 256, (*random.integers(20, 60, 2), 3), dtype=np.uint8)
        Image.fromarray(content).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.load("timm:test_vit@1,2", pretrained=False)


def write(addresses, output, model, **options):
    common = {"load": lambda: model, "spec": "timm:test_vit@1,2", "options": {}, "workers": 0, "shard": 7}
    return extract_features(list(map(str, addresses)), output, **common | options)


def table_of(output):
    return pyarrow.dataset.dataset(output).to_table()


def as_floats(output):
    """The vectors by pyarrow and numpy alone."""
    table = table_of(output)
    vectors = np.array(table["vector"].to_pylist(), np.float64)
    return vectors * table["scale"].to_numpy()[:, None] if "scale" in table.column_names else vectors


def neighbours(vectors):
    """The ten nearest of each by cosine, without itself."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return [set(row) for row in np.argsort(-cosines, axis=1)[:, :10]]


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1.0, 1e4, 1e30])
def test_a_vector_is_off_by_half_a_step_at_most(factor):
    vectors = torch.randn(50, 33) * factor
    quantized, scales = map(torch.stack, zip(*map(quantize, vectors), strict=True))
    assert (quantized.dtype, scales.dtype) == (torch.int8, torch.float32)
    assert quantized.abs().amax(dim=1).tolist() == [127] * 50
    assert ((dequantize(quantized, scales) - vectors).abs() <= scales[:, None] * 0.5001).all()


def test_a_vector_of_zeros_stays_one():
    quantized, scale = quantize(torch.zeros(5))
    assert torch.equal(dequantize(quantized[None], scale[None]), torch.zeros(1, 5))


def test_int8_is_stored_beside_a_scale_and_opened_as_floats(folder, model, tmp_path):
    write([folder], tmp_path / "float32.parquet", model)
    write([folder], tmp_path / "int8.parquet", model, dtype="int8")
    schema = pyarrow.dataset.dataset(tmp_path / "int8.parquet").schema
    assert str(schema.field("vector").type) == f"fixed_size_list<element: int8>[{CHANNELS}]"
    assert str(schema.field("scale").type) == "float"
    exact, found = as_floats(tmp_path / "float32.parquet"), as_floats(tmp_path / "int8.parquet")
    assert np.abs(found - exact).max() <= np.abs(exact).max() / 127 / 2 * 1.001
    store = s2wrap.open(tmp_path / "int8.parquet")
    assert store.made_by["dtype"] == "int8"
    (_, arrays), *_ = store.batches(COUNT)
    assert list(arrays) == ["vector"]
    np.testing.assert_allclose(arrays["vector"], found, rtol=1e-6)
    row = store.search(store.paths[11], k=1, model=model)[0]
    assert row[0].path == store.paths[11]
    assert row[0].cosine == pytest.approx(1, abs=1e-3)
    query = f"SELECT list_transform(vector, lambda x: x * scale) FROM '{tmp_path}/int8.parquet/*.parquet' ORDER BY path"
    np.testing.assert_allclose(np.array(duckdb.sql(query).fetchall())[:, 0], found, rtol=1e-6)


def test_the_recall_that_is_told_is_that_of_the_files(folder, model, tmp_path):
    write([folder], tmp_path / "float32.parquet", model)
    outcome = write([folder], tmp_path / "int8.parquet", model, dtype="int8")
    exact, found = (neighbours(as_floats(tmp_path / f"{dtype}.parquet")) for dtype in ("float32", "int8"))
    expected = np.mean([len(a & b) / 10 for a, b in zip(exact, found, strict=True)])
    assert 0.5 < expected < 1  # so close together are the vectors of random weights
    assert outcome.recall == s2wrap.open(tmp_path / "int8.parquet").recall
    assert (outcome.recall.recall_at_10, outcome.recall.pictures) == (pytest.approx(expected), COUNT)
    assert s2wrap.open(tmp_path / "float32.parquet").recall is None


def test_a_value_takes_a_byte_on_the_disk(tmp_path):
    writer = make_writer(tmp_path / "x.parquet", "int8", None)
    rows = Quantizer()(Row(str(number), 1, 1, {"vector": torch.randn(512)}) for number in range(1000))
    writer.write_part(list(rows), tmp_path / "part.parquet")
    assert os.path.getsize(tmp_path / "part.parquet") < 1.1 * 1000 * 512


def test_copies_of_a_picture_are_no_loss():
    vector = torch.randn(64)
    quantizer = Quantizer()
    list(quantizer(Row(str(number), 1, 1, {"vector": vector.clone()}) for number in range(30)))
    assert quantizer.recall() == int8.Recall(1.0, 30)


def test_a_run_that_goes_on_writes_the_same_and_measures_its_own_pictures(folder, model, tmp_path):
    paths = sorted(folder.iterdir())
    write(paths, tmp_path / "whole.parquet", model, dtype="int8")

    def stop(state):
        if state.done == 9:
            raise KeyboardInterrupt

    output = tmp_path / "x.parquet"
    with pytest.raises(KeyboardInterrupt):
        write(paths, output, model, dtype="int8", tell=stop)
    assert s2wrap.open(output).recall is None
    assert write(paths[:35], output, model, dtype="int8").recall.pictures == 26
    measured = s2wrap.open(output).recall
    assert write(paths, output, model, dtype="int8").recall == int8.Recall(None, 5)
    assert s2wrap.open(output).recall == measured  # too few do not replace it
    assert table_of(output).equals(table_of(tmp_path / "whole.parquet"))
    with pytest.raises(S2WrapError, match="dtype 'int8', and 'float32' is asked for"):
        write(paths, output, model)


def test_at_most_a_number_of_vectors_is_kept_each_with_equal_chance(monkeypatch):
    monkeypatch.setattr(int8, "MOST", 200)
    quantizer, count = Quantizer(), 5000
    rows = (Row(str(number), 1, 1, {"vector": torch.tensor([float(number), 1.0])}) for number in range(count))
    assert len(list(quantizer(rows))) == count
    numbers = np.sort([float(vector[0]) for vector in quantizer.kept])
    assert len(set(numbers)) == 200
    gaps = np.abs(np.arange(1, 201) / 200 - numbers / count)
    assert gaps.max() < 1.63 / 200**0.5  # Kolmogorov and Smirnov, at 1 %


def test_failures_pass():
    failure = Failure("a.png", "no picture")
    assert list(Quantizer()([failure])) == [failure]


def test_the_command_line_tells_the_recall_or_that_there_were_too_few(folder, tmp_path, capsys):
    words = ("--model", "timm:test_vit@1", "--random-weights", "--dtype", "int8")
    assert run("features", folder, *words, "--output", tmp_path / "x.parquet") == 0
    told = " ".join(capsys.readouterr().out.split())
    recall = s2wrap.open(tmp_path / "x.parquet").recall
    assert f"recall@10 of int8 against float32: {recall.recall_at_10:.3f}, on 40 of this run's pictures" in told
    assert f"{COUNT} pictures, (64,) each" in told
    few = sorted(folder.iterdir())[:19]
    assert run("features", *few, *words, "--output", tmp_path / "few.parquet") == 0
    assert "recall of int8 not measured: this run had 19 pictures, too few" in " ".join(capsys.readouterr().out.split())
    assert run("features", *few, *words, "--output", tmp_path / "json.parquet", "--json") == 0
    assert json.loads(capsys.readouterr().out)["recall"] == {"recall_at_10": None, "pictures": 19}
    assert run("features", *few, *words, "--output", tmp_path / "x.zarr") == 2
    assert ".zarr files hold no 'int8'; use float32 or float16" in capsys.readouterr().err
