"""Engines on a real GPU: built there, run there, compared with PyTorch. Skipped, with the reason, without one."""

import threading

import pytest
import tiny_graphs
import torch

import s2wrap
from s2wrap.errors import S2WrapError
from s2wrap.export import export, load
from s2wrap.export.build import build_engine
from s2wrap.export.options import BuildOptions
from s2wrap.export.session import open_session

pytestmark = pytest.mark.gpu
pytest.importorskip("onnx")
CLOSE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def assert_same(found, model, images):
    with torch.no_grad():
        expected = model.float()(images.float())
    for ours, theirs in zip((found["spatial"], found["pooled"]), expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, atol=CLOSE[images.dtype], rtol=0)


def build(folder, dtype, *, kind="tensorrt", tf32=False, **options):
    """A small network on the GPU, and its engine for batches from 1 to 4."""
    model = tiny_graphs.net(folder / "net.onnx", dtype).cuda()
    path = folder / ("net.plan" if kind == "tensorrt" else "net.rtx")
    named = {"kind": kind, "batch": (1, 2, 4), "name": "net", "tf32": tf32}
    facts = build_engine(folder / "net.onnx", path, options=BuildOptions(**options), **named)
    return model, path, facts


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    return build(tmp_path_factory.mktemp("plan"), torch.float32)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_tensorrt_gives_pytorchs_values(tmp_path, dtype):
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    model, path, facts = build(tmp_path, dtype, tf32=dtype != torch.float32, timing_cache=tmp_path / "times")
    assert facts["compute_capability"] == "{}.{}".format(*torch.cuda.get_device_capability())
    assert (tmp_path / "times").stat().st_size
    running = open_session(path, kind="tensorrt")
    assert running.batch == (1, 2, 4)
    for batch in (1, 2, 3, 4):
        images = torch.randn(batch, 3, 32, 32, device="cuda", dtype=dtype)
        assert_same(running.run({"images": images}), model, images)
    with pytest.raises(S2WrapError, match="a batch of 5 does not fit"):
        running.run({"images": torch.zeros(5, 3, 32, 32, device="cuda", dtype=dtype)})
    with pytest.raises(S2WrapError, match="images is on cpu, but net.plan runs on cuda:0"):
        running.run({"images": torch.zeros(1, 3, 32, 32, dtype=dtype)})


def test_an_input_that_starts_anywhere_is_read_rightly(plan):
    model, path, _ = plan
    memory = torch.randn(2 * 3 * 32 * 32 + 1, device="cuda")
    images = memory[1:].unflatten(0, (2, 3, 32, 32))
    assert images.data_ptr() % 256
    assert_same(open_session(path, kind="tensorrt").run({"images": images}), model, images)


def test_a_cuda_graph_gives_the_same_values(plan):
    model, path, _ = plan
    running = open_session(path, kind="tensorrt", cuda_graph=True)
    kept = []
    for batch in (2, 4, 2, 4):
        images = torch.randn(batch, 3, 32, 32, device="cuda")
        kept.append((images, running.run({"images": images})))
    for images, found in kept:
        assert_same(found, model, images)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_threads_run_one_engine_at_once(plan, cuda_graph):
    model, path, _ = plan
    running, failures = open_session(path, kind="tensorrt", cuda_graph=cuda_graph), []

    def work(seed):
        try:
            with torch.cuda.stream(torch.cuda.Stream()):
                images = torch.full((2, 3, 32, 32), float(seed), device="cuda")
                for _ in range(20):
                    found = running.run({"images": images})
                torch.cuda.current_stream().synchronize()
                results[seed] = images, found
        except Exception as error:
            failures.append(error)

    results = {}
    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for images, found in results.values():
        assert_same(found, model, images)


@pytest.mark.parametrize("option", ["version_compatible", "hardware_compatible"])
def test_compatible_engines_run_too(tmp_path, option):
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    model, path, _ = build(tmp_path, torch.float16, **{option: True})
    images = torch.randn(2, 3, 32, 32, device="cuda", dtype=torch.float16)
    running = open_session(path, kind="tensorrt", host_code=option == "version_compatible")
    assert_same(running.run({"images": images}), model, images)


def test_onnx_runtime_reads_cuda_tensors_in_place(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    model = tiny_graphs.net(tmp_path / "net.onnx", opset=20).cuda()
    images = torch.randn(3, 3, 32, 32, device="cuda")
    assert_same(open_session(tmp_path / "net.onnx", kind="onnx", device="cuda").run({"images": images}), model, images)


@pytest.mark.parametrize("options", [{}, {"pixels": "uint8"}, {"tiles": True}], ids=str)
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_exported_model_gives_the_wrappers_features(tmp_path, options, cuda_graph):
    pytest.importorskip("tensorrt", reason="needs TensorRT")
    model = s2wrap.load("timm:test_vit@1,2,3", pretrained=False)
    manifest = export(model, tmp_path / "model.plan", precision="fp16", batch=(1, 4, 16), **options)
    assert manifest["verification"]["ran"].startswith("TensorRT")
    pixels = torch.randint(0, 256, (3, 3, 160, 160), dtype=torch.uint8)
    engine = load(tmp_path / "model.plan", cuda_graph=cuda_graph)
    for _ in range(3):
        found = engine(pixels.cuda())
        assert found.spatial.is_cuda
        cosine = torch.cosine_similarity(found.tokens.float().cpu(), model(pixels).tokens, dim=-1)
        assert cosine.min() > 0.99


def test_whether_tensorrt_rtx_runs_on_this_gpu(tmp_path):
    """Some GPUs, Hopper among them, are outside its support list: then it must refuse in plain words."""
    pytest.importorskip("tensorrt_rtx")
    model, path, _ = build(tmp_path, torch.float16, kind="tensorrt_rtx")
    gpu = "{} ({}.{})".format(torch.cuda.get_device_name(), *torch.cuda.get_device_capability())
    cache = tmp_path / "kernels"
    try:
        running = open_session(path, kind="tensorrt_rtx", runtime_cache=cache, eager=True)
        images = torch.randn(2, 3, 32, 32, device="cuda", dtype=torch.float16)
        found = running.run({"images": images})
    except S2WrapError as error:
        print(f"TensorRT-RTX does not run on {gpu}: {error}")
        assert str(path) in str(error)
        return
    assert_same(found, model, images)
    assert cache.stat().st_size
    again = open_session(path, kind="tensorrt_rtx", runtime_cache=cache, cuda_graph=True)
    for _ in range(3):
        assert_same(again.run({"images": images}), model, images)
    print(f"TensorRT-RTX runs on {gpu}. {running.note}")
