import io
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import tiny_graphs
import torch
from rich.console import Console

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.export import build as build_module
from s2wrap.export.build import build_engine, load_library
from s2wrap.export.options import BuildOptions
from s2wrap.export.progress import BuildBar
from s2wrap.options import option_types

onnx = pytest.importorskip("onnx")
rtx = pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def onnx_path(tmp_path):
    return tiny_graphs.products(tmp_path / "tiny.onnx")


def build(path, **options):
    """Build beside the ONNX file; gives the facts and the bytes."""
    draft = path.with_suffix(".draft")
    chosen = BuildOptions(**{name: value for name, value in options.items() if name in option_types(BuildOptions)})
    others = {name: value for name, value in options.items() if name not in option_types(BuildOptions)}
    named = {"kind": "tensorrt_rtx", "batch": (1, 2, 4), "name": "tiny"} | others
    facts = build_engine(path, draft, options=chosen, **named)
    return facts, draft.read_bytes()


def refused(path, match, **options):
    with pytest.raises(S2WrapError, match=match) as caught:
        build(path, **options)
    assert not path.with_suffix(".draft").exists()
    assert "None" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("target", ["sm80", "sm89", "sm120"])
def test_an_engine_is_built_for_each_target(onnx_path, target):
    facts, content = build(onnx_path, targets=[target])
    assert facts == {
        "library": "tensorrt_rtx",
        "version": rtx.__version__,
        "layers": facts["layers"],
        "bytes": len(content),
        "targets": [target],
    }
    assert facts["layers"] >= 6


def test_targets_are_taken_once_and_in_either_case(onnx_path):
    facts, _ = build(onnx_path, targets=["SM89", "sm80", "sm89"])
    assert facts["targets"] == ["sm89", "sm80"]
    assert build(onnx_path)[0]["targets"] == ["default"]


def test_the_same_graph_and_name_give_the_same_bytes(onnx_path, tmp_path):
    elsewhere = tmp_path / "a folder of its own"
    elsewhere.mkdir()
    _, first = build(onnx_path)
    _, second = build(tiny_graphs.products(elsewhere / "other.onnx"))
    assert first == second
    assert build(onnx_path, name="another")[1] != first
    assert str(tmp_path).encode() not in first


def test_attention_may_run_as_several_kernels(tmp_path):
    path = tmp_path / "net.onnx"
    tiny_graphs.net(path, torch.float16)
    engine_build = build_module._Build(rtx, "tensorrt_rtx", path, "a graph", BuildBar("", Console(file=io.StringIO())))
    engine_build.parse("net")
    layers = [engine_build.network.get_layer(index) for index in range(engine_build.network.num_layers)]
    inputs = [layer for layer in layers if layer.type == rtx.LayerType.ATTENTION_INPUT]
    assert len(inputs) == 1
    inputs[0].__class__ = rtx.IAttentionInputLayer
    assert inputs[0].attention.decomposable
    assert build(path)[0]["layers"] == len(layers)


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_off_unless_asked_for(onnx_path, tf32):
    engine_build = build_module._Build(
        rtx, "tensorrt_rtx", onnx_path, "a graph", BuildBar("", Console(file=io.StringIO()))
    )
    engine_build.configure(tf32, BuildOptions(workspace_mib=64, optimization_level=5))
    assert engine_build.config.get_flag(rtx.BuilderFlag.TF32) == tf32
    assert engine_build.config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE) == 64 * 2**20
    assert engine_build.config.builder_optimization_level == 5


@pytest.mark.parametrize("batch", [(0, 1, 2), (3, 2, 4), (1, 8, 4)])
def test_a_batch_out_of_order_is_refused(onnx_path, batch):
    refused(onnx_path, rf"batch={batch[0]}:{batch[1]}:{batch[2]} must be MIN:OPT:MAX.*e\.g\. 1:8:32", batch=batch)


def test_the_profile_holds_the_three_batches(onnx_path, monkeypatch):
    shapes, profile = [], rtx.IOptimizationProfile
    real = profile.set_shape
    monkeypatch.setattr(profile, "set_shape", lambda made, *asked: shapes.append(asked) or real(made, *asked))
    build(onnx_path, batch=(1, 5, 9))
    assert shapes == [("images", (1, 16, 64), (5, 16, 64), (9, 16, 64))]


def test_only_the_batch_may_be_open(tmp_path):
    fixed = tiny_graphs.products(tmp_path / "fixed.onnx", shape=(2, 16))
    refused(fixed, "its batch is always 2, not 1:2:4; use 2:2:2")
    assert build(fixed, batch=(2, 2, 2))[0]["bytes"]
    refused(
        tiny_graphs.products(tmp_path / "free.onnx", shape=("batch", "tokens")),
        r"input images is \(-1, -1, 64\); the batch comes first, and only it may be open",
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"targets": ["sm90", "sm80"]}, "has no sm90; it has sm75, sm80, sm86, sm89, sm120"),
        ({"targets": ["current"]}, "has no current"),
        ({"timing_cache": Path("times")}, "timing_cache=times has no effect in TensorRT-RTX"),
        ({"version_compatible": True}, "runs only on the version that built it"),
        ({"hardware_compatible": True}, "name the GPUs in targets"),
        ({"workspace_mib": 0}, "workspace_mib=0 must be 1"),
        ({"optimization_level": 9}, "optimization_level=9 must be from 0"),
        ({"kind": "tensorrt", "targets": ["sm89"]}, "targets=sm89 are for .rtx files"),
    ],
)
def test_what_the_library_does_not_have_is_refused(onnx_path, options, match):
    refused(onnx_path, match, **options)


def test_tensorrt_without_a_gpu_says_what_works(onnx_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(onnx_path, "builds on the GPU that will run the engine.*or write .onnx or .rtx", kind="tensorrt")


def test_turing_has_no_float32_products(tmp_path):
    path = tiny_graphs.products(tmp_path / "exact.onnx", dtype=np.float32)
    said = refused(path, "leave sm75 out of the targets", targets=["sm75", "sm89"])
    assert "FP32 GEMM is not supported" in said
    assert build(path, targets=["sm80", "sm89", "sm120"])[0]["bytes"]


def test_a_type_that_a_target_lacks_is_named(tmp_path):
    helper, kinds = onnx.helper, onnx.TensorProto
    ports = [helper.make_tensor_value_info(name, kinds.FLOAT16, ["batch", 64]) for name in ("images", "features")]
    weight = onnx.numpy_helper.from_array(np.eye(64, dtype=np.float16), "w")
    scale = onnx.numpy_helper.from_array(np.array(0.1, dtype=np.float16), "scale")
    zero = helper.make_tensor("zero", kinds.FLOAT8E4M3FN, [], [0.0])
    nodes = []
    for name in ("images", "w"):
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_d"]))
    nodes.append(helper.make_node("MatMul", ["images_d", "w_d"], ["features"]))
    path = tiny_graphs.save(tmp_path / "fp8.onnx", nodes, ports[:1], ports[1:], [weight, scale, zero])
    refused(path, "fp8 needs sm89.*It said: .*HW-specific datatypes", targets=["sm80"])
    assert build(path, targets=["sm89"])[0]["bytes"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lambda whole: whole[: len(whole) // 2], "truncated, or no ONNX file"),
        (lambda whole: b"", "there is no graph in it"),
        (lambda whole: b"not a graph " * 100, "cannot read"),
    ],
    ids=["half", "empty", "text"],
)
def test_a_damaged_file_is_refused(onnx_path, content, match):
    onnx_path.write_bytes(content(onnx_path.read_bytes()))
    refused(onnx_path, f"cannot read .*tiny.onnx: .*{match}" if match != "cannot read" else match)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "gone.onnx", "gone.onnx is not there")


def test_an_operator_that_cannot_be_read_is_named(tmp_path):
    helper, kinds = onnx.helper, onnx.TensorProto
    node = helper.make_node("Resize", ["images", "", "scales"], ["out"], name="shrink", mode="cubic", antialias=1)
    ports = [
        helper.make_tensor_value_info(name, kinds.FLOAT, ["batch", 3, size, size])
        for name, size in (("images", 8), ("out", 4))
    ]
    scales = helper.make_tensor("scales", kinds.FLOAT, [4], [1, 1, 0.5, 0.5])
    path = tiny_graphs.save(tmp_path / "resize.onnx", [node], ports[:1], ports[1:], [scales])
    refused(path, r"Resize \(node shrink\): .*Antialiasing is not supported")


def test_the_builders_own_words_are_kept(onnx_path):
    refused(
        onnx_path, "the workspace is too small; .*It said: .*[Ww]orkspace", workspace_mib=1, batch=(4000, 4000, 4000)
    )


def test_a_full_disk_is_one_clear_error(onnx_path):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(S2WrapError, match="cannot write /dev/full: No space left"):
        build_engine(onnx_path, full, kind="tensorrt_rtx", batch=(1, 2, 4), name="tiny")


def test_it_builds_in_any_thread(onnx_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(build(onnx_path)))
    thread.start()
    thread.join()
    assert results[0][1] == build(onnx_path)[1]


CANCELLED = """
import sys
from pathlib import Path
from s2wrap.export import build, progress
heard, step, make = [], progress.BuildBar.step, build._Build.serialize
def say_first(self, phase, number):
    if not heard:
        heard.append(phase)
        print("building", flush=True)
    while not self.cancelled and len(heard) == 1:  # the signal comes in the middle of the build
        __import__("time").sleep(0.01)
    heard.append(phase)
    return step(self, phase, number)
def tell(self, cache):
    try:
        return make(self, cache)
    except ValueError as error:
        print("the builder stopped:", error, flush=True)
        raise
progress.BuildBar.step, build._Build.serialize = say_first, tell
try:
    build.build_engine(Path("tiny.onnx"), Path("draft"), kind="tensorrt_rtx", batch=(1, 2, 4), name="tiny")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_stops_the_builder_and_leaves_nothing(tmp_path):
    tiny_graphs.products(tmp_path / "tiny.onnx", count=100)
    child = subprocess.Popen([sys.executable, "-c", CANCELLED], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "building\n"
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=120)
    assert "the builder stopped" in said
    assert "cancel" in said.lower()
    assert said.endswith("interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_progress_is_shown_on_a_terminal_only(onnx_path):
    shown = {}
    for terminal in (False, True):
        file = io.StringIO()
        build(onnx_path, console=Console(file=file, force_terminal=terminal, width=100))
        shown[terminal] = file.getvalue()
    assert shown[False] == ""
    assert "Building with TensorRT-RTX" in shown[True]


def test_the_bar_counts_steps_inside_steps_and_never_runs_backwards():
    bar = BuildBar("Building", Console(file=io.StringIO()))
    bar.start("all", None, 2)
    bar.start("first", "all", 4)
    assert bar.step("first", 1)
    assert bar.done == pytest.approx((0 + 2 / 4) / 2)
    bar.step("first", 3)
    bar.finish("first")
    bar.step("all", 0)
    assert bar.done == pytest.approx(1 / 2)
    bar.start("second", "all", 4)
    bar.start("again", "second", 2)
    bar.step("again", 0)
    assert bar.done == pytest.approx((1 + (0 + 1 / 2) / 4) / 2)
    bar.finish("again")
    bar.step("unknown to it", 7)
    assert bar.done == pytest.approx((1 + (0 + 1 / 2) / 4) / 2)
    bar.cancel()
    assert not bar.step("all", 1)


@pytest.mark.parametrize(("kind", "extra"), [("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")])
def test_a_missing_library_names_the_pip_line(monkeypatch, kind, extra):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(MissingExtraError, match=rf'\.onnx files do not.*pip install "s2wrap\[{extra}\]"'):
        load_library(kind)


def test_an_old_or_broken_library_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.9.0.34"))
    with pytest.raises(S2WrapError, match=r"TensorRT 10.9.0.34 is too old; use 10.12 or later"):
        load_library("tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt.py").write_text("import a_module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(S2WrapError, match="tensorrt is installed but cannot be loaded.*a_module_that_is_not_there"):
        load_library("tensorrt")


class Masked(types.ModuleType):
    """TensorRT-RTX under the name and version of TensorRT, whose building API is the same."""

    def __init__(self, version):
        super().__init__("tensorrt")
        self.__version__ = version

    def __getattr__(self, name):
        return getattr(rtx, name)


@pytest.fixture
def masked(monkeypatch):
    """A function that lets `build_engine` take this machine for one with a GPU and TensorRT of a version."""
    answers = {"is_available": True, "current_device": 0, "get_device_name": "A", "get_device_capability": (9, 0)}
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return lambda version: monkeypatch.setattr(build_module, "load_library", lambda kind: Masked(version))


@pytest.mark.parametrize(("version", "flagged"), [("10.16.1", True), ("11.4.0", False)])
def test_tensorrt_is_driven_the_same_way(onnx_path, monkeypatch, masked, version, flagged):
    masked(version)
    devices, flags, levels, create = [], [], [], rtx.Builder.create_network
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(rtx.Builder, "create_network", lambda made, bits: flags.append(bits) or create(made, bits))
    level = property(None, lambda config, value: levels.append(value))
    monkeypatch.setattr(rtx.IBuilderConfig, "hardware_compatibility_level", level)
    facts, content = build(onnx_path, kind="tensorrt", hardware_compatible=True)
    assert facts == {
        "library": "tensorrt",
        "version": version,
        "layers": facts["layers"],
        "bytes": len(content),
        "gpu": "A",
        "compute_capability": "9.0",
        "hardware_compatibility": "ampere_plus",
        "version_compatible": False,
    }
    assert devices == [0]
    assert [bool(bits) for bits in flags] == [flagged]
    assert levels == [rtx.HardwareCompatibilityLevel.AMPERE_PLUS]


def test_timings_are_read_and_kept(onnx_path, tmp_path, monkeypatch, masked):
    masked("11.4.0")
    read, path = [], tmp_path / "times"
    config = rtx.IBuilderConfig
    monkeypatch.setattr(config, "create_timing_cache", lambda made, known: read.append(known) or known)
    monkeypatch.setattr(config, "set_timing_cache", lambda made, cache, mismatch: cache in (b"", b"timings"))
    kept = types.SimpleNamespace(serialize=lambda: b"timings")
    monkeypatch.setattr(config, "get_timing_cache", lambda made: kept)
    for _ in range(2):
        build(onnx_path, kind="tensorrt", timing_cache=path)
    assert read == [b"", b"timings"]
    assert path.read_bytes() == b"timings"
    path.write_bytes(b"of another GPU")
    onnx_path.with_suffix(".draft").unlink()
    refused(onnx_path, "timing_cache=.*times is damaged, or from another", kind="tensorrt", timing_cache=path)
    refused(onnx_path, "cannot read timing_cache", kind="tensorrt", timing_cache=tmp_path)
