import json
import re
import statistics
from itertools import cycle, groupby

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import s2wrap
from s2wrap import S2WrapError, timing
from s2wrap.cli import bench as bench_module
from s2wrap.timing import ROUNDS, Timing, time_calls, torch_call


class Clock:
    """A clock that only calls move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def call(self, *seconds):
        """A call that takes these times by turns."""
        times = cycle(seconds)

        def run():
            self.now += next(times)

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


def test_the_figures_are_those_of_numpy(clock):
    (found,) = time_calls({"a": clock.call(*np.geomspace(0.1, 0.4, 40))}, seconds=30)
    seconds = np.array(found.seconds)
    assert (seconds.min(), seconds.max()) == pytest.approx((0.1, 0.4))
    figures = found.figures(8)
    assert figures["runs"] == len(seconds)
    for name in ("min", "mean", "median", "max"):
        assert figures[f"{name}_ms"] == pytest.approx(1e3 * getattr(np, name)(seconds))
    for share in (90, 95, 99):
        assert figures[f"p{share}_ms"] == pytest.approx(1e3 * np.percentile(seconds, share))
    assert figures["variation"] == pytest.approx(np.std(seconds) / np.mean(seconds))
    assert figures["images_per_second"] == pytest.approx(8 * len(seconds) / seconds.sum())


def test_each_call_has_its_time_and_ten_runs_at_least(clock):
    quick, slow = time_calls({"quick": clock.call(0.01), "slow": clock.call(5.0)}, seconds=3)
    assert sum(quick.seconds) == pytest.approx(3, abs=0.2)
    assert len(slow.seconds) == ROUNDS == 10
    assert slow.wall == pytest.approx(50)


def test_a_call_is_warmed_up_for_200_ms_and_its_first_run_stands_apart(clock):
    runs = []

    def call():
        runs.append(clock.now)
        clock.now += 7.0 if len(runs) == 1 else 0.05

    (found,) = time_calls({"compiled": call}, seconds=1)
    assert found.first == pytest.approx(7)
    assert max(found.seconds) == pytest.approx(0.05)
    warm = len(runs) - 1 - len(found.seconds)
    assert 0.2 <= warm * 0.05 < 0.26


def test_calls_take_turns_and_who_begins_changes(clock):
    order = []

    def call(name):
        def run():
            order.append(name)
            clock.now += 1 / 16

        return run

    told = []
    time_calls({name: call(name) for name in "abc"}, seconds=1, progress=told.append)
    turns = "".join(name for name, _ in groupby(order[3 * 5 :]))  # five runs of each are warm-up
    assert turns == ("abc" + "bca" + "cab") * 3 + "abc"
    assert told == sorted(told)
    assert told[-1] == 1


def test_a_ratio_is_not_moved_by_noise_that_hits_all_alike():
    rng = np.random.default_rng(0)
    noise = rng.uniform(1, 20, size=ROUNDS)
    first = Timing("a", rounds=[[0.1 * each, 0.12 * each, 0.5 * each] for each in noise])
    second = Timing("b", rounds=[[0.06 * each] * 4 for each in noise])
    assert second.ratio(first) == pytest.approx(0.5)
    first.rounds[3] = [9.0]
    assert second.ratio(first) == pytest.approx(0.5)
    assert first.ratio(first) == 1


def test_what_fails_has_a_reason_and_the_others_their_figures(clock):
    turns = iter(range(8))

    def breaks():
        clock.now += 0.1
        if next(turns, None) is None:
            raise RuntimeError("the GPU fell off the bus\nand more")

    def refuses():
        raise S2WrapError("CUDA graphs need a GPU")

    broken, refused, good = time_calls({"a": breaks, "b": refuses, "c": clock.call(0.1)}, seconds=2)
    assert broken.reason == "RuntimeError: the GPU fell off the bus"
    assert refused.reason == "CUDA graphs need a GPU"
    assert good.reason is None
    assert len(good.rounds) == ROUNDS
    with pytest.raises(S2WrapError, match="0 seconds: nothing to time; give seconds above 0"):
        time_calls({"c": clock.call(0.1)}, seconds=0)
    with pytest.raises(KeyboardInterrupt):
        time_calls({"a": lambda: (_ for _ in ()).throw(KeyboardInterrupt)})


def fake_gpu(monkeypatch, clock, *, enqueue, compute):
    """A GPU that works off a queue, on the fake clock; its call, and how many runs were ever under way at once."""
    done, under_way = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.at = max(done[0], clock.now)

        def synchronize(self):
            clock.now = max(clock.now, self.at)

        def elapsed_time(self, other):
            return (other.at - self.at) * 1e3

    def call():
        clock.now += enqueue
        done[0] = max(done[0], clock.now) + compute
        under_way.append((done[0] - clock.now) / compute if compute else 0)

    def synchronize(device):
        clock.now = max(clock.now, done[0])

    from contextlib import nullcontext

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return call, under_way


def test_on_a_gpu_its_own_time_is_taken_while_the_next_run_is_enqueued(monkeypatch, clock):
    call, under_way = fake_gpu(monkeypatch, clock, enqueue=0.001, compute=0.01)
    (found,) = time_calls({"a": call}, seconds=1, device="cuda")
    assert found.reason is None
    assert statistics.median(found.seconds) == pytest.approx(0.01)
    assert statistics.median(found.enqueued) == pytest.approx(0.001)
    assert found.figures(4)["images_per_second"] == pytest.approx(400, rel=0.02)
    assert 1 < max(under_way) <= 3
    assert not any("enqueueing" in text for text in found.warnings())


def test_a_run_that_the_cpu_holds_up_is_told(monkeypatch, clock):
    call, _ = fake_gpu(monkeypatch, clock, enqueue=0.01, compute=0.001)
    (found,) = time_calls({"a": call}, seconds=1, device="cuda")
    assert any("enqueueing takes 10 ms of 10 ms: the CPU is the limit; try a CUDA graph" in w for w in found.warnings())


def test_an_unsteady_gpu_is_told_and_a_cpu_is_not():
    rounds = [[0.01, 0.011], [0.01, 0.013]]
    (warning,) = Timing("a", rounds=rounds, enqueued=[0.001] * 4, wall=1.0).warnings()
    assert f"varies by {np.std([10, 11, 10, 13]) / 11:.1%}" in warning
    assert Timing("a", rounds=rounds).warnings() == []


def test_pytorch_runs_a_model_as_asked(vit):
    model, images = s2wrap.wrap(vit, (1, 2)), torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(torch_call("eager", model, images)().spatial, model(images).spatial)
    with pytest.raises(S2WrapError, match="'jit' is unknown; use some of eager, compile"):
        torch_call("jit", model, images)
    with pytest.raises(S2WrapError, match="CUDA graphs need a GPU, and the images are on cpu"):
        torch_call("cuda-graph", model, images)


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_models_features(vit):
    model, images = s2wrap.wrap(vit, (1, 2)).cuda(), torch.randn(2, 3, 160, 160, device="cuda")
    with torch.inference_mode():
        call = torch_call("cuda-graph", model, images)
        torch.testing.assert_close(call().spatial, model(images).spatial, atol=1e-4, rtol=0)
        (found,) = time_calls({"graph": call}, seconds=0.1, device="cuda")
    assert found.reason is None
    assert found.enqueued


def run(*arguments):
    app = typer.Typer()
    app.command()(bench_module.bench)
    return CliRunner().invoke(app, [*arguments, "--seconds", "0.1", "--device", "cpu"])


def test_bench_prints_a_row_for_every_way_and_the_reason_of_what_cannot_run():
    result = run("timm:test_vit@1,2", "timm:test_vit@1", "--backend", "eager,cuda-graph", "--image", "96x200")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "CPU (" in text
    assert f"torch {torch.__version__}" in text
    assert "batch 1" in text
    assert text.count("96×200") == 4
    assert text.count("cuda-graph: CUDA graphs need a GPU") == 2
    assert "1.000" in text


def test_bench_counts_pictures_and_gives_json():
    result = run("timm:test_vit@1,2", "timm:test_vit@1", "--backend", "cuda-graph,eager", "--batch", "2", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["batch"] == "2"
    assert found["torch"] == torch.__version__
    refused, first, _, second = found["rows"]
    assert "CUDA graphs need a GPU" in refused["reason"]
    assert first["ratio"] is None  # the first row has no time to compare with
    for row in (first, second):
        assert row["precision"] == "fp32"
        assert row["image_hw"] == [320, 320]  # of the largest scale, for all rows
        assert row["runs"] >= 10
        assert row["min_ms"] <= row["median_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["images_per_second"] < 2 * 1e3 / row["min_ms"]
        assert row["warnings"] == []


def test_names_and_reasons_are_printed_as_they_are(capsys):
    row = {"model": "d[bold]/vit.plan", "way": "TensorRT", "precision": "fp16", "image_hw": [224, 224], "warnings": []}
    bench_module._print({"device": "a GPU"}, [row | {"reason": 'pip install "s2wrap[tensorrt]"'}])
    printed = re.sub(r"[\s│]", "", capsys.readouterr().out)
    assert "d[bold]/vit.plan" in printed
    assert 's2wrap[tensorrt]"' in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["timm:test_wit@1,2"], "did you mean timm:test_vit"),
        (["timm:test_vit@1,2", "--backend", "eager,jit"], "--backend 'jit' is unknown; use some of eager, compile"),
        (["timm:test_vit@1,2", "--precision", "int8"], "--precision 'int8' is unknown; use fp32, fp16, bf16"),
        (["timm:test_vit@1,2", "--image", "big"], "write height and width as 480x640"),
        (["none.onnx"], "none.onnx"),
    ],
)
def test_bench_says_what_cannot_work(arguments, words):
    result = run(*arguments)
    assert isinstance(result.exception, S2WrapError)
    assert words in str(result.exception)


@pytest.fixture(scope="module")
def pixels_file(tmp_path_factory):
    from s2wrap.export import export

    file, model = tmp_path_factory.mktemp("onnx") / "vit.onnx", s2wrap.load("timm:test_vit@1,2", pretrained=False)
    export(model, file, batch=(1, 2, 4), image_hw=(96, 200), pixels="uint8", verify=False)
    return str(file)


def test_bench_times_files_beside_models(pixels_file):
    result = run(pixels_file, "timm:test_vit@1,2", "--backend", "eager,cuda-graph", "--image", "96x200", "--json")
    assert result.exit_code == 0, result.exception
    file, eager, refused = json.loads(result.stdout)["rows"]
    assert (file["way"], file["precision"], file["image_hw"]) == ("ONNX Runtime", "fp32", [96, 200])
    assert file["runs"] >= 10
    assert file["ratio"] == 1
    assert eager["ratio"] == pytest.approx(file["images_per_second"] / eager["images_per_second"], rel=0.5)
    assert "CUDA graphs need a GPU" in refused["reason"]


def test_bench_gives_the_reason_of_a_batch_that_a_file_does_not_take(pixels_file):
    (row,) = json.loads(run(pixels_file, "--batch", "5", "--json").stdout)["rows"]
    assert row["reason"] == "it takes batches of 1 to 4, not of 5"


def test_bench_times_all_rows_at_one_image_size_or_refuses(pixels_file):
    rows = json.loads(run(pixels_file, "timm:test_vit@1,2", "--json", "--seconds", "0.1").stdout)["rows"]
    assert [row["image_hw"] for row in rows] == [[96, 200]] * 2
    refused = run(pixels_file, "timm:test_vit@1", "--image", "100x100").exception
    assert isinstance(refused, S2WrapError)
    assert "different sizes" in str(refused)
    assert "96×200, --image 100×100" in str(refused)
