import json
import logging
import shutil
import threading
import zipfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import timm
import torch
from commands import run
from torch._inductor.cpp_builder import cpp_compiler_search
from torch.testing import assert_close

import s2wrap
from s2wrap import S2WrapError
from s2wrap.cli.bench import RUNTIMES
from s2wrap.cli.model import FILE_ENDINGS
from s2wrap.export import VerificationError, aot, export, load, verify
from s2wrap.export.engine import check_machine
from s2wrap.export.manifest import KINDS, file_sha256, manifest_path, read_manifest, usual_device
from s2wrap.export.options import GraphOptions, TritonOptions
from s2wrap.export.session import open_session
from s2wrap.export.triton import check_repository, write_repository
from s2wrap.extraction.reader import FILE_ENDINGS as OF_THE_READER
from s2wrap.serve.source import Source

pytest.importorskip("pydantic")
pytest.importorskip("skimage")
HW = (160, 160)


@pytest.fixture(scope="module", autouse=True)
def _has_a_compiler():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("needs a C++ compiler")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return s2wrap.wrap(timm.create_model("test_vit", num_classes=0, depth=2), (1, 2))


@pytest.fixture(scope="module")
def graph_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "model.pt2"
    export(model, path, image_hw=HW, batch=(1, 2, 5))
    return path


@pytest.fixture(scope="module")
def tiles_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiles") / "tiles.pt2"
    export(model, path, tiles=True, batch=(2, 4, 8), precision="bf16")
    return path


def copied(file, folder):
    path = folder / file.name
    shutil.copyfile(file, path)
    shutil.copyfile(manifest_path(file), manifest_path(path))
    return path


def close(found, expected, error=1e-5):
    assert float((found.float() - expected).norm() / expected.norm()) < error


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_it_computes_what_pytorch_computes_at_every_batch_size(graph_file, model, count):
    """Seven images are run as five and two."""
    images = torch.randn(count, 3, *HW)
    found, expected = load(graph_file)(images), model(images)
    close(found.spatial, expected.spatial)
    close(found.prefix, expected.prefix)
    assert torch.equal(load(graph_file)(images).spatial, found.spatial)


def test_a_session_takes_the_batches_it_was_compiled_for(graph_file):
    session = open_session(graph_file, kind="aotinductor")
    assert session.batch == (1, 2, 5)
    assert [port.name for port in session.outputs] == ["spatial", "prefix"]
    for count in (0, 6):
        with pytest.raises(S2WrapError, match=rf"a batch of {count} does not fit model.pt2, which takes 1 to 5"):
            session.run({"images": torch.zeros(count, 3, *HW)})
    with pytest.raises(S2WrapError, match="images is torch.float64; model.pt2 takes torch.float32"):
        session.run({"images": torch.zeros(1, 3, *HW, dtype=torch.float64)})


def test_the_backbone_alone_sees_images_of_any_size(tiles_file, model):
    """In bfloat16, whose batches of one tile are filled up to two."""
    images = torch.randn(1, 3, 200, 300)
    engine = load(tiles_file, scales=(1, 3), fit="aspect", overlap=2)
    expected = s2wrap.MultiScale(model.backbone, replace(engine.model.options, tile_batch=4))(images)
    close(engine(images).spatial, expected.spatial, 0.03)
    close(load(tiles_file, scales=(1,))(images).spatial, s2wrap.wrap(model.backbone.model, (1,))(images).spatial, 0.03)
    assert read_manifest(tiles_file)["outputs"][0]["dtype"] == "bfloat16"


def test_its_manifest_says_where_it_runs(graph_file):
    manifest, build = read_manifest(graph_file), read_manifest(graph_file)["build"]
    assert manifest["kind"] == "aotinductor"
    assert manifest["sha256"] == file_sha256(graph_file, None)
    assert manifest["inputs"] == ({"name": "images", "dtype": "float32", "shape": ("batch", 3, *HW)},)
    assert (build["version"], build["device"], build["bytes"]) == (torch.__version__, "cpu", graph_file.stat().st_size)
    assert manifest["verification"]["ran"] == f"AOTInductor {torch.__version__} on the CPU"
    assert manifest["verification"]["batches"] == (1, 2, 3)
    assert "opset" not in manifest
    assert sorted(path.name for path in graph_file.parent.iterdir()) == ["model.pt2", "model.pt2.json"]
    assert usual_device(graph_file) == "cpu"
    assert not Source(str(graph_file), {}).needs_gpu


def test_no_folder_of_this_machine_stands_in_the_package(graph_file):
    with zipfile.ZipFile(graph_file) as package:
        contents = b"".join(package.read(part) for part in package.namelist())
        assert not [part for part in package.namelist() if part.endswith(".cpp")]
    for folder in (graph_file.parent, Path(torch.__file__).parent, Path(__file__).parent):
        assert str(folder).encode() not in contents


def test_pytorch_opens_the_package_itself(graph_file):
    images = torch.randn(2, 3, *HW)
    outputs = torch._inductor.aoti_load_package(str(graph_file))(images)
    assert_close(outputs[0], load(graph_file)(images).spatial)


def test_verify_repeats_the_comparison(graph_file, model):
    report = verify(graph_file, model=model)
    assert report.passed
    assert report.ran.startswith("AOTInductor")
    with pytest.raises(VerificationError):
        verify(graph_file, model=model, gate=(1, 1, 0))


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"version": "2.5.1+cu124"}, None, r"compiled by PyTorch 2.5.1\+cu124, and .* is installed.*torch==2.5.\*"),
        ({}, "cuda", "device=cuda cannot run model.pt2, which was compiled for the CPU"),
        ({"platform": "win32 AMD64"}, None, "was compiled for win32 AMD64; this is"),
        ({"instructions": "avx512 amx_tile"}, None, "compiled for a CPU with amx_tile, which this one lacks"),
        ({"device": "cuda"}, "cpu", "device=cpu cannot run model.pt2, which needs a CUDA device"),
    ],
)
def test_the_machine_is_checked_before_it_is_opened(graph_file, tmp_path, monkeypatch, changes, device, message):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "amx_tile": False})
    path = copied(graph_file, tmp_path)
    facts = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps(facts | {"build": facts["build"] | changes}))
    monkeypatch.setattr("s2wrap.export.engine.open_session", lambda *arguments, **options: pytest.fail("opened"))
    with pytest.raises(S2WrapError, match=message):
        load(path, device=device)


@pytest.mark.parametrize(
    ("capability", "message"), [((9, 0), None), ((8, 9), r"for NVIDIA H100 \(compute capability 9.0\); this is a GPU")]
)
def test_a_package_for_a_gpu_runs_on_its_generation_alone(monkeypatch, capability, message):
    monkeypatch.setattr(
        "s2wrap.export.aot_session.cuda_device", lambda path, device: torch.device("cuda", 0)
    )  # as on a machine with a GPU
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    build = {"version": torch.__version__, "device": "cuda", "gpu": "NVIDIA H100", "compute_capability": "9.0"}
    manifest = {"kind": "aotinductor", "build": build}
    if message is None:
        check_machine(Path("model.pt2"), manifest, None)
        return
    with pytest.raises(S2WrapError, match=message):
        check_machine(Path("model.pt2"), manifest, None)


def test_a_damaged_file_is_one_clear_error(graph_file, tmp_path):
    path = copied(graph_file, tmp_path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(S2WrapError, match=r"model.pt2 is not the file that model.pt2.json describes"):
        load(path)
    with pytest.raises(S2WrapError, match=r"model.pt2 is damaged, or no package of s2wrap"):
        open_session(path, kind="aotinductor")
    with zipfile.ZipFile(graph_file) as whole, zipfile.ZipFile(path, "w") as without:
        for part in whole.namelist():
            without.writestr(part, b"" if part.endswith(".so") else whole.read(part))
    with pytest.raises(S2WrapError, match=r"PyTorch cannot load .*model.pt2; is the file whole\? It said"):
        open_session(path, kind="aotinductor")


def test_it_is_opened_again_in_another_process(graph_file, model):
    engine, images = load(graph_file), torch.randn(1, 3, *HW)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        close(pool.submit(engine, images).result().spatial, model(images).spatial)


def test_threads_may_share_it(graph_file):
    engine, wrong = load(graph_file), []
    batches = [torch.randn(count, 3, *HW) for count in (1, 2, 3, 5)]
    expected = [engine(images).spatial for images in batches]

    def call(number):
        for _ in range(10):
            if not torch.equal(engine(batches[number]).spatial, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_options_of_other_sessions_are_refused(graph_file):
    with pytest.raises(S2WrapError, match=r"threads=2 does not fit .*it is for onnx: torch.set_num_threads\(\) counts"):
        load(graph_file, threads=2)
    with pytest.raises(S2WrapError, match="cuda_graph=True does not fit .*model.pt2, which is aotinductor"):
        load(graph_file, cuda_graph=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.pt2", {"targets": ["sm89"], "workspace_mib": 9}, "workspace_mib, targets: these are for engines, and"),
        ("model.pt2", {"opset": 23}, "opset=23 is for .onnx files and engines"),
        ("model.pt2", {"onnx": "ready.onnx"}, "onnx=ready.onnx is for .onnx files and engines"),
        ("model.pt2", {"precision": "int8", "pictures": ["."]}, "precision='int8' is for .onnx files and engines"),
        ("model.pt2", {"device": "cuda"}, "device='cuda' compiles model.pt2 on the GPU that will run it"),
        ("model.pt2", {"device": "mps"}, "device='mps'.*cpu, cuda"),
        ("model.onnx", {"device": "cuda"}, "device='cuda' is for .pt2 files, which are compiled for one device"),
        ("model.rtx", {"device": "cuda"}, "device='cuda' is for .pt2 files, which are compiled for one device"),
    ],
)
def test_options_that_cannot_be_are_refused_before_the_work(tmp_path, model, monkeypatch, name, options, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(S2WrapError, match=message):
        export(model, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_compiler_is_one_clear_error_before_the_work(tmp_path, model, monkeypatch):
    cpp_compiler_search.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(aot, "trace_program", lambda *arguments: pytest.fail("traced"))
    with pytest.raises(S2WrapError, match="model.pt2 needs a C.. compiler, and none works here: install g"):
        export(model, tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing_and_says_why(tmp_path, model, monkeypatch):
    def fail(program, *, package_path, inductor_configs):
        Path(package_path).write_bytes(b"half")
        raise RuntimeError("C++ compile error\nmany lines") from ValueError("no such instruction")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    level = logging.getLogger("torch._inductor").level
    with pytest.raises(S2WrapError, match="test_vit cannot be compiled for the CPU: ValueError: no such instruction"):
        export(model, tmp_path / "model.pt2", image_hw=HW)
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("torch._inductor").level == level


def test_triton_serves_it_by_the_python_backend(graph_file, tmp_path):
    pytest.importorskip("tritonclient")
    graph, on_the_cpu = GraphOptions(), write_repository(graph_file, tmp_path, backend="python") / "config.pbtxt"
    assert "KIND_CPU" in on_the_cpu.read_text()
    with pytest.raises(S2WrapError, match="configures no backend of Triton's own for; use backend='python'"):
        check_repository(tmp_path / "model.pt2", tmp_path / "models", graph, TritonOptions())


def test_every_place_knows_every_ending():
    assert tuple(KINDS) == FILE_ENDINGS == OF_THE_READER
    assert set(RUNTIMES) == set(KINDS.values())


def test_the_commands_export_verify_and_time_it(tmp_path, monkeypatch, capsys):
    """A file of one batch size that takes pixels, in float16."""
    monkeypatch.chdir(tmp_path)
    words = ["timm:test_vit@1", "model.pt2", "--random-weights", "--batch", "2", "--precision", "fp16"]
    assert run("export", *words, "--pixels", "uint8", "--no-verify", "--outputs", "pooled") == 0
    said = capsys.readouterr()
    assert "Compiling test_vit for the CPU, which takes a minute or more" in said.err
    assert "model.pt2 (aotinductor, fp16, " in said.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]
    manifest = read_manifest(Path("model.pt2"))
    assert manifest["inputs"] == ({"name": "images", "dtype": "uint8", "shape": (2, *HW, 3)},)
    assert run("verify", "model.pt2") == 0
    assert "passes" in capsys.readouterr().out
    assert run("bench", "model.pt2", "--batch", "2", "--seconds", "0.1", "--device", "cpu") == 0
    assert "AOTInductor" in capsys.readouterr().out
    torch.manual_seed(0)
    wrapped, images = s2wrap.load("timm:test_vit@1", pretrained=False), torch.randint(0, 256, (3, 3, *HW))
    images = images.to(torch.uint8)
    close(load("model.pt2")(images).pooled, wrapped(images).pooled, 0.01)
    assert run("export", "timm:test_vit@1", "other.pt2", "--random-weights", "--opset", "23") == 2
    assert "opset=23 is for .onnx files and engines" in capsys.readouterr().err
