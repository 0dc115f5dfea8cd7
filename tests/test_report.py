import io
import json
import math
import os

import numpy as np
import pandas
import pytest
from made_up import comparison, row

from s2wrap import S2WrapError
from s2wrap.compare.comparison import Comparison
from s2wrap.compare.report import WRITERS, check_ending, to_csv, to_frame, to_json, write_report
from s2wrap.errors import MissingExtraError


def test_a_frame_holds_the_figures_of_every_model_in_order():
    first, second = row(0), row(1, memory=None, timings={"eager": {"reason": "no compiler"}})
    second.on_front, second.scores = True, {}
    frame = to_frame(Comparison([first, second], {}, {"classification": ("accuracy",)}))
    costs = "parameters multiply_adds multiply_adds_attention_once activations tiles tokens memory_bytes"
    scores = "accuracy accuracy_low accuracy_high"
    times = "eager_p50_ms eager_p90_ms eager_p99_ms eager_images_per_second eager_reason"
    assert " ".join(frame.columns) == f"model {costs} {scores} {times} pareto_front"
    told = frame.to_dict("records")
    assert told[0]["model"] == "sample:dinov2_s14@1"
    assert (told[0]["multiply_adds"], told[0]["multiply_adds_attention_once"]) == (5_500_000_000, 5_499_000_000)
    assert (told[0]["memory_bytes"], told[0]["eager_p50_ms"]) == (30_000_001, 11.0)
    ends = [told[0][name] for name in ("accuracy", "accuracy_low", "accuracy_high")]
    assert ends == pytest.approx([0.86, 0.81 + 0.025 * 0.08, 0.89 - 0.025 * 0.08])
    assert told[1]["eager_reason"] == "no compiler"
    assert all(pandas.isna(told[1][name]) for name in ("memory_bytes", "accuracy", "accuracy_high", "eager_p50_ms"))
    assert [each["pareto_front"] for each in told] == [False, True]


def test_csv_is_read_back_as_it_was():
    found = comparison(15, measures=("accuracy", "k-NN"))
    found.rows[3].timings = {"eager": {"reason": 'says "no", twice'}}
    back = pandas.read_csv(io.StringIO(to_csv(found)))
    pandas.testing.assert_frame_equal(back, to_frame(found), check_dtype=False)


def test_json_is_standard_and_holds_everything():
    found = comparison(2)
    found.rows[0].timings["eager"] |= {"p90_ms": math.nan, "p99_ms": np.float32(0.5)}
    told = json.loads(to_json(found), parse_constant=pytest.fail)
    assert set(told) == {"facts", "tasks", "rows", "verdict", "pairs", "skipped", "disagreements"}
    assert [told["rows"][0]["timings"]["eager"][name] for name in ("p90_ms", "p99_ms")] == [None, 0.5]
    assert told["rows"][1]["scores"]["accuracy"]["value"] == 0.9
    assert told["rows"][1]["timings"]["eager"]["p99_ms"] == 55.0
    assert (told["verdict"], told["skipped"]) == (found.verdict, found.skipped)


@pytest.mark.parametrize("ending", WRITERS)
def test_two_writings_give_the_same_bytes(tmp_path, ending):
    paths = [tmp_path / f"{name}{ending}" for name in "ab"]
    for path in paths:
        write_report(comparison(2, skipped=["\udcff.jpg"]), path)
    one, other = (path.read_bytes() for path in paths)
    assert one == other
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>", ".json": b"{", ".csv": b"model,"}
    assert one.startswith(start[ending])


@pytest.mark.parametrize("ending", WRITERS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, ending):
    path = tmp_path / f"report{ending}"
    path.write_text("old")
    broken = comparison(2)
    broken.rows[1].cost = None  # type: ignore[assignment] (on purpose)
    with pytest.raises(AttributeError):
        write_report(broken, path)
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_text() == "old"


def test_endings_are_checked_before_the_work(monkeypatch, tmp_path):
    assert [check_ending(f"x{ending.upper()}") for ending in WRITERS] == list(WRITERS)
    for name in ("report.pdf", "report"):
        with pytest.raises(S2WrapError, match=rf"'{name}' as a report: use an ending of \.html, \.csv, \.json"):
            write_report(comparison(), name)
    monkeypatch.setattr("s2wrap.compare.report.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'jinja2, which .html reports take, .*pip install "s2wrap\[compare\]"'):
        check_ending("report.html")
    assert check_ending("report.json") == ".json"
