import ctypes
import sys
import threading
import types
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context

import numpy as np
import pytest
import tiny_graphs
import torch

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.export import engine_session, session
from s2wrap.export.session import EngineSession, OnnxSession, Port, open_session

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small network in PyTorch, and its ONNX file."""
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    return tiny_graphs.net(path, opset=20), path


def test_onnx_gives_pytorchs_values_at_any_batch(made):
    model, path = made
    running = open_session(path, kind="onnx")
    assert isinstance(running, OnnxSession)
    assert running.inputs == (Port("images", torch.float32, ("batch", 3, 32, 32)),)
    assert [port.name for port in running.outputs] == ["spatial", "pooled"]
    assert running.outputs[0].shape == ("batch", 32, 4, 4)
    assert (running.device, running.batch) == (torch.device("cpu"), None)
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 32, 32)
        found = running.run({"images": images})
        with torch.no_grad():
            spatial, pooled = model(images)
        torch.testing.assert_close(found["spatial"], spatial, atol=1e-5, rtol=0)
        torch.testing.assert_close(found["pooled"], pooled, atol=1e-5, rtol=0)


def test_inputs_need_not_be_contiguous_and_may_want_gradients(made):
    model, path = made
    images = torch.randn(2, 32, 32, 3).requires_grad_().permute(0, 3, 1, 2)
    found = open_session(path, kind="onnx").run({"images": images})["pooled"]
    torch.testing.assert_close(found, model(images)[1].detach(), atol=1e-5, rtol=0)


def test_results_are_not_overwritten_by_the_next_call(made):
    running = open_session(made[1], kind="onnx")
    first = running.run({"images": torch.zeros(1, 3, 32, 32)})["pooled"]
    kept = first.clone()
    running.run({"images": torch.ones(1, 3, 32, 32)})
    assert torch.equal(first, kept)


def test_threads_share_a_session(made):
    model, path = made
    running, wrong = open_session(path, kind="onnx"), []

    def work(seed):
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        expected = model(images)[1].detach()
        for _ in range(5):
            found = running.run({"images": images})["pooled"]
            if not torch.allclose(found, expected, atol=1e-5):
                wrong.append(seed)

    in_threads(work, 4)
    assert wrong == []


def in_threads(work, count):
    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({}, "takes images; received nothing"),
        ({"image": torch.zeros(1, 3, 32, 32)}, "takes images; received image"),
        ({"images": torch.zeros(1, 3, 32, 32, dtype=torch.float16)}, "images is torch.float16; .* takes torch.float32"),
        ({"images": torch.zeros(1, 3, 32, 31)}, "images is 1×3×32×31; .* takes batch×3×32×32"),
        ({"images": torch.zeros(3, 32, 32)}, "images is 3×32×32"),
        ({"images": torch.tensor(0.0)}, "takes batch×3×32×32"),
        ({"images": torch.zeros(0, 3, 32, 32)}, "a batch of 0 does not fit net.onnx, which takes 1 to any"),
        ({"images": torch.zeros(1, 3, 32, 32, device="meta")}, "images is on meta, but net.onnx runs on cpu"),
    ],
)
def test_wrong_inputs_are_told_what_fits(made, inputs, match):
    running = open_session(made[1], kind="onnx")
    with pytest.raises(S2WrapError, match=match):
        running.run(inputs)


def test_a_fixed_batch_is_the_profile(tmp_path):
    running = open_session(tiny_graphs.products(tmp_path / "two.onnx", shape=(2, 16)), kind="onnx")
    assert running.batch == (2, 2, 2)
    assert running.run({"images": torch.zeros(2, 16, 64).half()})["features"].dtype == torch.float16
    with pytest.raises(S2WrapError, match="images is 3×16×64; two.onnx takes 2×16×64"):
        running.run({"images": torch.zeros(3, 16, 64).half()})


def one_operator(path, operator, kind):
    ports = [onnx.helper.make_tensor_value_info(name, kind, ["n", 4]) for name in ("x", "y")]
    return tiny_graphs.save(path, [onnx.helper.make_node(operator, ["x"], ["y"])], ports[:1], ports[1:])


@pytest.mark.parametrize("dtype", ["BFLOAT16", "FLOAT16", "FLOAT", "DOUBLE", "UINT8", "INT8", "INT32", "INT64", "BOOL"])
def test_every_number_type_passes_through(tmp_path, dtype):
    running = open_session(
        one_operator(tmp_path / "same.onnx", "Identity", onnx.TensorProto.DataType.Value(dtype)), kind="onnx"
    )
    x = torch.tensor([[0, 1, 2, 3], [1, 5, 0, 7]]).to(running.inputs[0].dtype)
    found = running.run({"x": x})["y"]
    assert found.dtype == x.dtype
    assert torch.equal(found, x)


def test_bfloat16_without_a_kernel_is_refused_with_what_works(tmp_path):
    path = one_operator(tmp_path / "half.onnx", "Relu", onnx.TensorProto.BFLOAT16)
    with pytest.raises(S2WrapError, match="no kernel.*none for bfloat16; use device=cuda, or fp32 or fp16"):
        open_session(path, kind="onnx")


def test_a_session_is_opened_again_in_another_process(tmp_path):
    session = open_session(tiny_graphs.products(tmp_path / "tiny.onnx"), kind="onnx", threads=1)
    (port,) = session.inputs
    images = {port.name: torch.randn(port.sized(2)).to(port.dtype)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(type(session).run, session, images).result()
    for name, expected in session.run(images).items():
        torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_are_a_number(tmp_path, threads):
    with pytest.raises(S2WrapError, match="is no number of threads; use 1 or more"):
        open_session(tiny_graphs.products(tmp_path / "tiny.onnx"), kind="onnx", threads=threads)


def test_files_that_cannot_run_are_refused(tmp_path, made):
    content = made[1].read_bytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content[: len(content) // 2])
    with pytest.raises(S2WrapError, match="cannot run .*broken.onnx; is the file whole"):
        open_session(broken, kind="onnx")
    with pytest.raises(S2WrapError, match="gone.onnx is not there"):
        open_session(tmp_path / "gone.onnx", kind="onnx")
    with pytest.raises(S2WrapError, match="only the first dimension may be open"):
        open_session(tiny_graphs.products(tmp_path / "free.onnx", shape=("batch", "tokens")), kind="onnx")


@pytest.mark.parametrize(
    ("kind", "option", "match"),
    [
        ("onnx", {"cuda_graph": True}, "cuda_graph=True does not fit .*; it is for tensorrt or tensorrt_rtx"),
        ("onnx", {"host_code": True}, "host_code=True does not fit .*; it is for tensorrt$"),
        ("tensorrt", {"eager": True}, "eager=True does not fit .* is tensorrt; it is for tensorrt_rtx"),
        ("tensorrt_rtx", {"host_code": True}, "host_code=True does not fit"),
    ],
)
def test_options_of_another_kind_are_refused(made, kind, option, match):
    with pytest.raises(S2WrapError, match=match):
        open_session(made[1], kind=kind, **option)


def test_onnx_on_a_gpu_needs_its_cuda_build(made, monkeypatch):
    monkeypatch.setattr(session, "_indexed_device", lambda device: torch.device("cuda", 0))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(S2WrapError, match="needs ONNX Runtime with CUDA.*install onnxruntime-gpu"):
        open_session(made[1], kind="onnx", device="cuda")


@pytest.mark.parametrize(("module", "kind"), [("onnxruntime", "onnx"), ("tensorrt", "tensorrt")])
def test_a_missing_runtime_names_the_pip_line(made, monkeypatch, module, kind):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match='pip install "s2wrap'):
        open_session(made[1], kind=kind)


class Fake(types.ModuleType):
    """TensorRT's run-time half on the CPU: one engine that doubles `images` (batch, 3, 4) into `spatial`.

    It reads and writes memory through the addresses that it is given, and notes what it was asked to do.
    """

    class ILogger:
        ERROR, WARNING = 1, 2

        def __init__(self):
            pass

    TensorIOMode = types.SimpleNamespace(INPUT="in", OUTPUT="out")
    EngineValidity = types.SimpleNamespace(VALID=0, SUBOPTIMAL=1, INVALID=2)
    CudaGraphStrategy = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(EAGER="eager")

    def __init__(self, version="11.4.0"):
        super().__init__("fake")
        self.__version__ = version
        self.contexts, self.verdict, self.broken, self.config = [], (0, 0), "", None

    def Runtime(self, logger):  # noqa: N802 (TensorRT's name)
        if self.broken == "runtime":
            raise TypeError("pybind11::init(): factory function returned nullptr")
        made = types.SimpleNamespace(engine_header_size=64, engine_host_code_allowed=False)
        made.get_engine_validity = lambda header: self.verdict if len(header) == 64 else (2, 32)

        def load(content):
            if content.startswith(b"engine"):
                return Engine(self, logger)
            logger.log(1, "Serialization error: magic tag does not match")

        made.deserialize_cuda_engine = load
        self.runtime = made
        return made


class Engine:
    num_io_tensors = 2
    dtype, shape = "FLOAT", (-1, 3, 4)

    def __init__(self, trt, logger):
        self.trt, self.logger = trt, logger

    def get_tensor_name(self, index):
        return ("images", "spatial")[index]

    def get_tensor_mode(self, name):
        return {"images": "in", "spatial": "out"}[name]

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name=self.dtype)

    def get_tensor_shape(self, name):
        return self.shape

    def get_tensor_profile_shape(self, name, profile):
        return [(1, 3, 4), (2, 3, 4), (4, 3, 4)]

    def create_execution_context(self, config=None):
        if self.trt.broken == "context":
            self.logger.log(1, "out of memory")
            return None
        self.trt.contexts.append(Context(self, config))
        return self.trt.contexts[-1]

    def create_runtime_config(self):
        self.trt.config = Config()
        return self.trt.config


class Config:
    """TensorRT-RTX's: its cache takes only what such a cache once gave."""

    def create_runtime_cache(self):
        return types.SimpleNamespace(serialize=lambda: b"kernels", deserialize=lambda blob: blob == b"kernels")

    def set_runtime_cache(self, cache):
        self.cache = cache


class Context:
    def __init__(self, engine, config):
        self.engine, self.config, self.thread = engine, config, threading.get_ident()
        self.addresses, self.streams = {}, []

    def set_input_shape(self, name, shape):
        self.shape = shape
        assert type(shape) is tuple
        return self.engine.trt.broken != "shape"

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return self.engine.trt.broken != "address"

    def execute_async_v3(self, stream):
        assert self.thread == threading.get_ident()
        self.streams.append(stream)
        if self.engine.trt.broken == "execute":
            self.engine.logger.log(1, "cudaError 700: an illegal memory access")
            return False
        count = int(np.prod(self.shape))
        source, target = ((ctypes.c_float * count).from_address(self.addresses[name]) for name in ("images", "spatial"))
        target[:] = [2 * value for value in source]
        return True


class Stream:
    """A CUDA stream that only notes whom it waits for."""

    def __init__(self, handle):
        self.cuda_stream, self.waited = handle, []

    def wait_stream(self, other):
        self.waited.append(other)


@pytest.fixture
def fake(monkeypatch):
    """A TensorRT that runs on the CPU, on a machine that seems to have one GPU."""
    trt = Fake()
    trt.stream = Stream(77)
    monkeypatch.setattr(engine_session, "load_library", lambda kind: trt)
    monkeypatch.setattr(engine_session, "cuda_device", lambda path, device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: trt.stream)
    return trt


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "model.plan"
    path.write_bytes(b"engine" * 20)
    return path


def test_an_engine_reads_and_writes_tensors_in_place(fake, plan):
    running = open_session(plan, kind="tensorrt")
    assert isinstance(running, EngineSession)
    assert running.inputs == (Port("images", torch.float32, ("batch", 3, 4)),)
    assert running.outputs == (Port("spatial", torch.float32, ("batch", 3, 4)),)
    assert (running.batch, running.note) == ((1, 2, 4), "")
    for batch in (1, 3, 4):
        images = torch.randn(batch, 3, 4)
        found = running.run({"images": images})["spatial"]
        torch.testing.assert_close(found, 2 * images)
        assert fake.contexts[0].addresses == {"images": images.data_ptr(), "spatial": found.data_ptr()}
    assert len(fake.contexts) == 1
    assert fake.contexts[0].streams == [77] * 3


def test_an_engine_gets_contiguous_memory(fake, plan):
    images = torch.randn(2, 4, 3).transpose(1, 2)
    torch.testing.assert_close(open_session(plan, kind="tensorrt").run({"images": images})["spatial"], 2 * images)


def test_each_thread_has_a_context(fake, plan):
    running, wrong = open_session(plan, kind="tensorrt"), []
    together = threading.Barrier(3, timeout=10)

    def work(seed):
        images = torch.full((2, 3, 4), float(seed))
        together.wait()
        for _ in range(20):
            if not torch.equal(running.run({"images": images})["spatial"], 2 * images):
                wrong.append(seed)
        together.wait()

    in_threads(work, 3)
    assert wrong == []
    assert len(fake.contexts) == len({context.thread for context in fake.contexts}) == 3


def test_a_thread_that_changes_streams_waits_for_its_earlier_work(fake, plan):
    running, first, second = open_session(plan, kind="tensorrt"), fake.stream, Stream(78)
    running.run({"images": torch.zeros(1, 3, 4)})
    running.run({"images": torch.zeros(1, 3, 4)})
    fake.stream = second
    running.run({"images": torch.zeros(1, 3, 4)})
    assert (first.waited, second.waited) == ([], [first])
    assert fake.contexts[0].streams == [77, 77, 78]


def test_a_batch_outside_the_profile_is_refused(fake, plan):
    with pytest.raises(S2WrapError, match="a batch of 5 does not fit model.plan, which takes 1 to 4"):
        open_session(plan, kind="tensorrt").run({"images": torch.zeros(5, 3, 4)})


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ("execute", "failed to run .*model.plan: It said: cudaError 700"),
        ("shape", "failed to run"),
        ("address", "failed to run"),
        ("context", "the GPU's memory may be full. It said: out of memory"),
        ("runtime", "cannot start here to run .*model.plan"),
    ],
)
def test_failures_keep_the_librarys_words(fake, plan, broken, match):
    fake.broken = broken
    with pytest.raises(S2WrapError, match=f"TensorRT 11.4.0 .*{match}"):
        open_session(plan, kind="tensorrt").run({"images": torch.zeros(1, 3, 4)})


def test_a_foreign_or_damaged_plan_is_refused(fake, plan):
    plan.write_bytes(b"magicTag")
    with pytest.raises(
        S2WrapError, match="cannot load .*another version built it.*It said: Serialization error: magic"
    ):
        open_session(plan, kind="tensorrt")


def test_an_engine_with_other_open_sizes_is_refused(fake, plan, monkeypatch):
    monkeypatch.setattr(Engine, "shape", (-1, 3, -1))
    with pytest.raises(S2WrapError, match="only the first dimension may be open"):
        open_session(plan, kind="tensorrt")
    monkeypatch.setattr(Engine, "shape", (-1, 3, 4))
    monkeypatch.setattr(Engine, "dtype", "FP4")
    with pytest.raises(S2WrapError, match="images is FP4"):
        open_session(plan, kind="tensorrt")


@pytest.mark.parametrize("host_code", [False, True])
def test_code_for_the_cpu_is_trusted_only_when_asked(fake, plan, host_code):
    open_session(plan, kind="tensorrt", host_code=host_code)
    assert fake.runtime.engine_host_code_allowed == host_code


@pytest.mark.parametrize(
    ("bits", "match"), [(1, "another version"), (2, "not built for this GPU"), (32, "damaged"), (64, "CUDA")]
)
def test_rtx_says_why_an_engine_is_invalid(fake, plan, bits, match):
    fake.verdict = (2, bits)
    with pytest.raises(S2WrapError, match=f"TensorRT-RTX .*cannot run .*{match}"):
        open_session(plan, kind="tensorrt_rtx")


def test_rtx_notes_an_engine_that_could_be_faster(fake, plan):
    fake.verdict = (1, 0)
    assert "would be faster" in open_session(plan, kind="tensorrt_rtx").note


def test_rtx_options_reach_the_contexts(fake, plan):
    running = open_session(plan, kind="tensorrt_rtx", eager=True, cuda_graph=True)
    images = torch.randn(2, 3, 4)
    torch.testing.assert_close(running.run({"images": images})["spatial"], 2 * images)
    assert fake.contexts[0].config is fake.config
    assert fake.config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert fake.config.cuda_graph_strategy == "whole"
    with pytest.raises(S2WrapError, match="opened without runtime_cache"):
        running.save()


def test_rtx_keeps_its_kernels_after_the_first_run(fake, plan, tmp_path):
    cache = tmp_path / "kernels"
    running = open_session(plan, kind="tensorrt_rtx", runtime_cache=cache)
    assert not cache.exists()
    assert fake.config.cache is running.cache
    for _ in range(2):
        running.run({"images": torch.zeros(1, 3, 4)})
        assert cache.exists() == (len(fake.contexts[0].streams) == 1)
        cache.unlink(missing_ok=True)  # written once
    running.save()
    assert cache.read_bytes() == b"kernels"
    again = open_session(plan, kind="tensorrt_rtx", runtime_cache=cache)
    cache.unlink()
    again.run({"images": torch.zeros(1, 3, 4)})
    assert not cache.exists()  # it was read, so there was nothing new
    cache.write_bytes(b"of another GPU")
    open_session(plan, kind="tensorrt_rtx", runtime_cache=cache).run({"images": torch.zeros(1, 3, 4)})
    assert cache.read_bytes() == b"kernels"
    with pytest.raises(S2WrapError, match="there is no such folder"):
        open_session(plan, kind="tensorrt_rtx", runtime_cache=tmp_path / "no" / "kernels")


class Graph:
    """A CUDA graph that replays what was queued while it was open."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for context in self.calls:
            context.execute_async_v3(0)


def test_a_cuda_graph_is_recorded_once_a_batch_size(fake, plan, monkeypatch):
    class Recorder(nullcontext):
        def __init__(self, graph, stream, capture_error_mode):
            super().__init__()
            self.graph, self.before = graph, len(fake.contexts[-1].streams)
            assert capture_error_mode == "thread_local"

        def __exit__(self, *_):
            assert len(fake.contexts[-1].streams) == self.before + 1
            self.graph.calls.append(fake.contexts[-1])

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recorder)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(1))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    running = open_session(plan, kind="tensorrt", cuda_graph=True)
    kept = []
    for batch in (2, 3, 2, 3):
        images = torch.randn(batch, 3, 4)
        kept.append((images, running.run({"images": images})["spatial"]))
    for images, found in kept:  # each call has its own result, and reads its own input
        torch.testing.assert_close(found, 2 * images)
    assert len(fake.contexts) == 2


def test_engines_need_a_gpu(plan, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(S2WrapError, match="device=cpu cannot run model.plan, which needs a CUDA device; export .onnx"):
        open_session(plan, kind="tensorrt_rtx", device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(S2WrapError, match="model.plan needs an NVIDIA GPU, and this machine shows none; export .onnx"):
        open_session(plan, kind="tensorrt_rtx")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(S2WrapError, match="device=cuda:3 is not there; this machine has 1 CUDA device"):
        open_session(plan, kind="tensorrt_rtx", device="cuda:3")


def test_the_real_library_refuses_plainly_without_a_driver(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from s2wrap.export.build import build_engine

    path = tmp_path / "model.rtx"
    graph = tiny_graphs.products(tmp_path / "tiny.onnx")
    build_engine(graph, path, kind="tensorrt_rtx", batch=(1, 2, 4), name="tiny")
    monkeypatch.setattr(engine_session, "cuda_device", lambda path, device: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    with pytest.raises(S2WrapError, match="TensorRT-RTX .*cannot run .*model.rtx.*It said: .*driver"):
        open_session(path, kind="tensorrt_rtx")
    path.write_bytes(b"something else entirely, and long enough for a header of 64 bytes to be read from it")
    with pytest.raises(S2WrapError, match="it is damaged, or no TensorRT-RTX engine"):
        open_session(path, kind="tensorrt_rtx")
    path.write_bytes(b"short")
    with pytest.raises(S2WrapError, match="TensorRT-RTX .*cannot run"):
        open_session(path, kind="tensorrt_rtx")
    monkeypatch.setattr(engine_session.EngineSession, "_check_header_rtx", lambda self, content: None)
    with pytest.raises(S2WrapError, match="TensorRT-RTX .*cannot load .*model.rtx: another version built it"):
        open_session(path, kind="tensorrt_rtx")
