import importlib.util
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from concurrent import futures
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from skimage import data

import s2wrap
from s2wrap import MissingExtraError, S2WrapError
from s2wrap.export import export
from s2wrap.export.manifest import file_sha256
from s2wrap.export.options import GraphOptions, Precision, TritonOptions
from s2wrap.export.triton import check_repository, write_repository
from s2wrap.images import load_image

if importlib.util.find_spec("tritonclient") is None:
    pytest.skip("needs the [triton] extra", allow_module_level=True)
import grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

CLIENT = Path(__file__).parent.parent / "demos" / "triton_client.py"
FLOATS = {"name": "images", "dtype": "float32", "shape": ["batch", 3, 160, 200]}
PIXELS = {"name": "images", "dtype": "uint8", "shape": ["batch", 160, 200, 3]}
SPATIAL = {"name": "spatial", "dtype": "float32", "shape": ["batch", 128, 10, 12]}
INPUT = {"channels": 3, "image_hw": [160, 160]}
PADDED = {"size": 1, "fit": "pad", "whole": False, "policy": None, "max_tiles": None}
PREFIX = {"name": "prefix", "dtype": "float32", "shape": ["batch", 1, 128]}


def exported(folder, name="vit.plan", **changes):
    """A file that only its manifest makes an engine."""
    file = folder / name
    file.write_bytes(b"an engine")
    kind = {".onnx": "onnx", ".rtx": "tensorrt_rtx"}.get(file.suffix, "tensorrt")
    manifest = {"format": 4, "kind": kind, "part": "model", "spec": "timm:test_vit@1,2", "precision": "fp32"}
    manifest |= {"batch": [1, 8, 32], "image_hw": [160, 200], "inputs": [FLOATS], "outputs": [SPATIAL, PREFIX]}
    manifest |= {"input": INPUT, "options": {"scales": []}, "file": name}
    manifest |= {"weights": None, "pixels": "float32", "fp32_layers": [], "geometry": []}
    manifest["plan"] = {"image_hw": [160, 200], "scales": []}
    manifest |= {"gate": {"mean": 0.9, "low": 0.9, "error": 0.1}, "recipe": None}
    backbone = {"name": "test_vit", "layers": None, "layouts": [], "lacks_cls": "", "weights_sha256": ""}
    manifest["backbone"] = backbone | {"convolutional": False}
    write_manifest(file, manifest | changes)
    return file


def write_manifest(file, manifest):
    file.with_name(f"{file.name}.json").write_text(
        json.dumps(manifest | {"sha256": file_sha256(file, manifest["weights"])})
    )


def config_of(folder):
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def names(values, numbers):
    return [values.Name(number) for number in numbers]


def test_a_plan_is_laid_with_a_config_that_fits_its_profile(tmp_path):
    file = exported(tmp_path)
    folder = write_repository(file, tmp_path / "models")
    assert folder == tmp_path / "models" / "vit"
    assert (folder / "1" / "model.plan").read_bytes() == b"an engine"
    assert sorted(path.name for path in folder.rglob("*")) == ["1", "config.pbtxt", "model.plan", "model.plan.json"]
    config = config_of(folder)
    assert (config.name, config.platform, config.backend) == ("vit", "tensorrt_plan", "")
    assert config.max_batch_size == 32
    (images,), (spatial, prefix) = config.input, config.output
    assert (images.name, list(images.dims)) == ("images", [3, 160, 200])
    assert (spatial.name, list(spatial.dims)) == ("spatial", [128, 10, 12])
    assert (prefix.name, list(prefix.dims)) == ("prefix", [1, 128])
    assert names(model_config_pb2.DataType, [images.data_type, spatial.data_type]) == ["TYPE_FP32", "TYPE_FP32"]
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds < 10_000
    (group,) = config.instance_group
    assert (group.count, names(type(group).Kind, [group.kind])) == (1, ["KIND_GPU"])
    assert not config.optimization.HasField("cuda")
    assert json.loads(config.parameters["s2wrap"].string_value) == json.loads((tmp_path / "vit.plan.json").read_text())


def test_the_server_warms_up_with_every_batch_of_the_profile(tmp_path):
    config = config_of(write_repository(exported(tmp_path, batch=[1, 4, 16]), tmp_path / "models"))
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 4, 16]
    for warm_up in config.model_warmup:
        (given,) = warm_up.inputs.values()
        assert (list(given.dims), given.random_data) == ([3, 160, 200], True)
        assert given.data_type == config.input[0].data_type


def test_options_reach_the_config(tmp_path):
    options = {"name": "eye", "instances": 2, "queue_delay_us": 0, "cuda_graphs": True}
    config = config_of(write_repository(exported(tmp_path), tmp_path / "models", **options))
    assert config.name == "eye"
    assert config.instance_group[0].count == 2
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    cuda = config.optimization.cuda
    assert cuda.graphs
    assert [spec.batch_size for spec in cuda.graph_spec] == [1, 8, 32]
    for spec in cuda.graph_spec:
        assert {name: list(shape.dim) for name, shape in spec.input.items()} == {"images": [3, 160, 200]}
        assert not spec.HasField("graph_lower_bound")  # it would let the padding be uninitialised


def test_one_picture_at_a_time_needs_no_batching(tmp_path):
    config = config_of(write_repository(exported(tmp_path, batch=[1, 1, 1]), tmp_path / "models"))
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1]


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("backend", ["native", "python"])
def test_every_precision_is_checked_before_the_work(tmp_path, precision, backend):
    options = TritonOptions(name="vit", backend=backend)
    refused = (
        pytest.raises(S2WrapError, match="bfloat16") if (precision, backend) == ("bf16", "native") else nullcontext()
    )
    with refused:
        check_repository(tmp_path / "vit.onnx", tmp_path / "models", GraphOptions(precision=precision), options)


def test_pixels_and_half_precision_have_their_types(tmp_path):
    outputs = [SPATIAL | {"dtype": "float16"}, PREFIX | {"dtype": "bfloat16"}]
    config = config_of(write_repository(exported(tmp_path, inputs=[PIXELS], outputs=outputs), tmp_path / "models"))
    assert list(config.input[0].dims) == [160, 200, 3]
    kinds = [config.input[0].data_type, *(output.data_type for output in config.output)]
    assert names(model_config_pb2.DataType, kinds) == ["TYPE_UINT8", "TYPE_FP16", "TYPE_BF16"]
    assert next(iter(config.model_warmup[0].inputs.values())).data_type == kinds[0]


def test_an_onnx_file_runs_on_any_device(tmp_path):
    folder = write_repository(exported(tmp_path, "vit.onnx"), tmp_path / "models")
    config = config_of(folder)
    assert (config.platform, config.backend) == ("", "onnxruntime")
    assert names(type(config.instance_group[0]).Kind, [config.instance_group[0].kind]) == ["KIND_AUTO"]
    assert (folder / "1" / "model.onnx").read_bytes() == (tmp_path / "vit.onnx").read_bytes()


@pytest.mark.parametrize("backend", ["native", "python"])
def test_weights_beside_an_onnx_file_are_found_where_its_graph_asks_for_them(tmp_path, served, backend):
    file = tmp_path / "renamed.onnx"
    shutil.copyfile(served[1] / "files" / "uint8.onnx", file)
    proto = onnx.load(file)
    onnx.save(proto, file, save_as_external_data=True, location="all.bin", size_threshold=1024)
    manifest = json.loads((served[1] / "files" / "uint8.onnx.json").read_text())
    write_manifest(file, manifest | {"weights": "all.bin"})
    folder = write_repository(file, tmp_path / "models", name="vit", backend=backend)
    placed = folder / "1" / ("model.onnx/model.onnx" if backend == "native" else "renamed.onnx")
    assert (placed.parent / "all.bin").stat().st_size > 1e5
    assert placed.stat().st_size < file.with_name("all.bin").stat().st_size
    onnxruntime.InferenceSession(placed, providers=["CPUExecutionProvider"])  # which reads the weights


@pytest.mark.parametrize(
    ("name", "words"),
    [("gone.data", "cannot read .*gone.data: No such file"), ("../secret.data", "does not lie beside the file")],
)
def test_weights_that_are_missing_or_lie_elsewhere_are_refused(tmp_path, name, words):
    folder = tmp_path / "export"
    folder.mkdir()
    (tmp_path / "secret.data").write_bytes(b"s")
    file = exported(folder, "vit.onnx")
    beside = folder / "vit.onnx.json"
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"weights": name}))
    with pytest.raises(S2WrapError, match=words):
        write_repository(file, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("name", "changes", "options", "words"),
    [
        ("vit.rtx", {}, {}, "Triton has no backend for it; export a .plan on the GPU that serves, or an .onnx"),
        ("vit.plan", {"batch": [2, 8, 32]}, {}, "batches of 2 to 32, but Triton sends single.*batch of 1:8:32"),
        ("vit.onnx", {"outputs": [SPATIAL | {"dtype": "bfloat16"}]}, {}, "refuses; export with precision fp16 or fp32"),
        ("vit.onnx", {}, {"cuda_graphs": True}, "cuda_graphs=True with .*vit.onnx: only Triton's TensorRT backend"),
        ("vit.plan", {}, {"name": "../vit"}, r"name='../vit' makes no model name; use letters, digits"),
        ("my vit.plan", {}, {}, "name='my vit' makes no model name"),
        ("vit.plan", {}, {"instances": 0}, "instances=0 is impossible; use a whole number from 1"),
        ("vit.plan", {}, {"queue_delay_us": -1}, "queue_delay_us=-1 is impossible; use a whole number from 0"),
    ],
)
def test_what_triton_cannot_serve_is_refused_and_nothing_is_written(tmp_path, name, changes, options, words):
    file = exported(tmp_path, name, **changes)
    with pytest.raises(S2WrapError, match=words):
        write_repository(file, tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()


def test_a_model_that_is_there_is_left_as_it_is(tmp_path):
    file, other = exported(tmp_path), exported(tmp_path, "other.plan")
    folder = write_repository(file, tmp_path / "models")
    before = (folder / "config.pbtxt").read_bytes()
    with pytest.raises(S2WrapError, match="models/vit exists already.*give another name, or remove it"):
        write_repository(file, tmp_path / "models")
    assert (folder / "config.pbtxt").read_bytes() == before
    write_repository(other, tmp_path / "models")
    assert sorted(os.listdir(tmp_path / "models")) == ["other", "vit"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    file = exported(tmp_path)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(S2WrapError, match=r"cannot write .*models/vit: No space left on device"):
        write_repository(file, tmp_path / "models")
    assert os.listdir(tmp_path / "models") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(S2WrapError, match="cannot write"):
        write_repository(file, tmp_path / "file")


def test_without_tritonclient_the_pip_line_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingExtraError, match=r'pip install "s2wrap\[triton\]"'):
        write_repository(exported(tmp_path), tmp_path / "models")


@pytest.mark.parametrize("shape", [[1, 3, 160, 200], [2, 3, 160, 200]])
def test_no_batch_is_beyond_what_the_graph_itself_takes(tmp_path, served, shape):
    file = exported(tmp_path, "vit.onnx", inputs=[FLOATS | {"shape": shape}])  # whatever its profile says
    words = "one image at a time" if shape[0] == 1 else "takes batches of 2 to 2, but Triton sends single"
    with pytest.raises(S2WrapError, match=words):
        write_repository(file, tmp_path / "models")
    file = copied(served, tmp_path, "float32.onnx", inputs=[FLOATS | {"shape": shape}])
    assert config_of(write_repository(file, tmp_path / "models", backend="python")).max_batch_size == shape[0]


def copied(served, folder, name, **changes):
    """A real export of `served` in another folder, with a changed manifest."""
    file = folder / name
    shutil.copyfile(served[1] / "files" / name, file)
    write_manifest(file, json.loads((served[1] / "files" / f"{name}.json").read_text()) | changes)
    return file


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("backend", ["native", "python"])
def test_a_new_version_appears_at_once_and_nothing_else_changes(tmp_path, served, monkeypatch, backend, beside):
    file, models, options = copied(served, tmp_path, "uint8.onnx"), tmp_path / "models", {"backend": backend}
    if not beside:  # the repository is a disk of its own
        monkeypatch.setattr("s2wrap.export.triton.same_disk", lambda path, other: False)
    folder, copyfile, seen = write_repository(file, models, **options, version="new"), shutil.copyfile, []

    def spying(*arguments):
        seen.append((set(os.listdir(models)), {name for name in os.listdir(folder) if name[0] != "."}))
        copyfile(*arguments)

    monkeypatch.setattr("shutil.copyfile", spying)
    for number in ("2", "3"):
        before = tree(folder)
        assert write_repository(file, models, **options, version="new") == folder
        after = tree(folder)
        assert {name: after[name] for name in before} == before
        assert {name.split("/")[0] for name in after.keys() - before.keys()} == {number}
        assert {name.removeprefix(f"{number}/") for name in after if name.startswith(number)} == {
            name.removeprefix("1/") for name in after if name.startswith("1/")
        }
    assert seen[0] == ({"uint8"}, {"1", "config.pbtxt"})  # neither a draft of a model nor of a version
    assert seen[-1] == ({"uint8"}, {"1", "2", "config.pbtxt"})
    assert sorted(os.listdir(folder)) == ["1", "2", "3", "config.pbtxt"]
    assert sorted(os.listdir(tmp_path)) == ["models", "uint8.onnx", "uint8.onnx.json"]


def test_a_draft_of_a_model_lies_beside_the_repository(tmp_path, monkeypatch):
    copyfile, seen = shutil.copyfile, []
    monkeypatch.setattr(
        "shutil.copyfile", lambda *files: (seen.append(os.listdir(tmp_path / "models")), copyfile(*files))
    )
    write_repository(exported(tmp_path), tmp_path / "models")
    write_repository(exported(tmp_path), tmp_path / "models", overwrite=True)
    assert seen == [[], ["vit"]]
    assert sorted(os.listdir(tmp_path)) == ["models", "vit.plan", "vit.plan.json"]


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"inputs": [PIXELS]}, {}, r"input was images TYPE_FP32 \[3, 160, 200\], and would be images TYPE_UINT8"),
        ({"outputs": [SPATIAL]}, {}, "output was spatial .*, prefix .*, and would be spatial"),
        ({"batch": [1, 8, 16]}, {}, "max_batch_size was 32, and would be 16; lay it under another name"),
        (
            {"input": {"channels": 3, "image_hw": [160, 160], "mean": [0.1, 0.2, 0.3]}},
            {},
            r"clients prepare images for mean None, and this file has \[0.1",
        ),
        ({}, {"instances": 2}, "instances=2: a new version is served as .*/vit/config.pbtxt says; change it there"),
        ({}, {"queue_delay_us": 7}, "queue_delay_us=7: a new version is served as"),
        ({}, {"cuda_graphs": True}, "cuda_graphs=True: a new version is served as"),
    ],
)
def test_a_new_version_that_is_something_else_is_refused_and_nothing_changes(tmp_path, changes, options, words):
    folder = write_repository(exported(tmp_path), tmp_path / "models")
    before = tree(folder)
    with pytest.raises(S2WrapError, match=words):
        write_repository(exported(tmp_path, **changes), tmp_path / "models", version="new", **options)
    assert tree(folder) == before
    assert os.listdir(tmp_path / "models") == ["vit"]


def test_a_new_version_needs_a_config_that_can_be_read(tmp_path):
    folder = write_repository(exported(tmp_path), tmp_path / "models")
    (folder / "config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(S2WrapError, match="vit gets no new version: its config.pbtxt cannot be read"):
        write_repository(exported(tmp_path), tmp_path / "models", version="new")
    with pytest.raises(S2WrapError, match="version='new' adds to a model folder and overwrite=True replaces it"):
        write_repository(exported(tmp_path), tmp_path / "models", version="new", overwrite=True)


def test_the_python_backend_takes_pictures_of_any_size_and_files(tmp_path, served):
    folder = write_repository(served[1] / "files" / "uint8.onnx", tmp_path / "models", backend="python", max_pixels=100)
    config = config_of(folder)
    assert (config.backend, config.platform, config.max_batch_size) == ("python", "", 4)
    images, pictures = config.input
    assert (images.name, list(images.dims)) == ("images", [-1, -1, 3])
    assert (pictures.name, list(pictures.dims)) == ("pictures", [-1])
    assert names(model_config_pb2.DataType, [images.data_type, pictures.data_type]) == ["TYPE_UINT8"] * 2
    assert all(port.optional and port.allow_ragged_batch for port in config.input)
    assert [(port.name, list(port.dims)) for port in config.output] == [
        ("spatial", [128, 10, 10]),
        ("prefix", [1, 128]),
    ]
    assert config.parameters["max_pixels"].string_value == "100"
    assert all(warm_up.inputs["images"].zero_data for warm_up in config.model_warmup)
    files = sorted(path.name for path in (folder / "1").iterdir())
    assert files == ["__pycache__", "model.py", "uint8.onnx", "uint8.onnx.json"]


@pytest.mark.parametrize(
    ("name", "changes", "options", "words"),
    [
        ("float32.onnx", {"options": {"scales": [PADDED]}}, {}, "one image size and fit=pad.*--tiles"),
        ("float32.onnx", {}, {"cuda_graphs": True}, "cuda_graphs=True with backend='python'"),
        ("float32.onnx", {}, {"max_pixels": 0}, "max_pixels=0 is impossible"),
        ("float32.onnx", {}, {"backend": "native", "max_pixels": 99}, "max_pixels is for backend='python'"),
        ("float32.onnx", {}, {"backend": "pythn"}, "backend='pythn'"),
    ],
)
def test_what_the_python_backend_cannot_serve_is_refused(tmp_path, served, name, changes, options, words):
    file = copied(served, tmp_path, name, **changes)
    with pytest.raises(S2WrapError, match=words):
        write_repository(file, tmp_path / "models", **{"backend": "python"} | options)
    assert not (tmp_path / "models").exists()


def test_the_python_backend_runs_what_triton_has_no_backend_for(tmp_path, served):
    manifest = json.loads((served[1] / "files" / "float32.onnx.json").read_text())
    file = exported(tmp_path, "vit.rtx", **manifest | {"kind": "tensorrt_rtx", "batch": [2, 4, 8]})
    config = config_of(write_repository(file, tmp_path / "models", backend="python"))
    assert config.max_batch_size == 8
    assert names(type(config.instance_group[0]).Kind, [config.instance_group[0].kind]) == ["KIND_GPU"]


class Backend(types.ModuleType):
    """As much of `triton_python_backend_utils` as a model needs; tensors are those of PyTorch."""

    class Tensor:
        def __init__(self, name, tensor):
            self.name, self.tensor = name, tensor

        @classmethod
        def from_dlpack(cls, name, tensor):
            return cls(name, torch.from_dlpack(tensor))

    class TritonError(Exception):
        INTERNAL, INVALID_ARG = 2, 3

        def __init__(self, text, code):
            super().__init__(text)
            self.code = code

    class InferenceResponse:
        def __init__(self, output_tensors, error=None):
            self.outputs, self.error = {each.name: each.tensor for each in output_tensors}, error

    @staticmethod
    def get_input_tensor_by_name(request, name):
        return request.inputs.get(name)


class Request:
    def __init__(self, wanted=("spatial", "prefix"), **inputs):
        self.wanted, self.inputs = wanted, inputs

    def requested_output_names(self):
        return list(self.wanted)


@pytest.fixture
def opened(served, tmp_path, monkeypatch):
    """A function that opens a file of `served` as Triton's python backend does."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Backend("triton_python_backend_utils"))

    def start(name):
        folder = write_repository(served[1] / "files" / f"{name}.onnx", tmp_path / "models", backend="python")
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        config = json.dumps({"parameters": {"max_pixels": {"string_value": "1000000"}}})
        place = {"model_repository": str(folder), "model_version": "1"}
        model.initialize(
            {"model_config": config, "model_instance_kind": "CPU", "model_instance_device_id": "0"} | place
        )
        return model

    return start


def test_requests_share_batches_of_at_most_what_the_file_takes_and_bad_ones_fail_alone(opened, served, photos):
    model, sizes = opened("uint8"), []
    run = model.engine.session.run
    model.engine.session.run = lambda inputs: sizes.append(len(inputs["images"])) or run(inputs)
    files = sorted(photos.iterdir())
    good = [Request(pictures=torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)[None]) for file in files]
    three = torch.randint(0, 256, (3, 160, 200, 3), dtype=torch.uint8)
    good += [Request(("prefix",), images=three), Request(("spatial",), images=three[:1, :100, :150])]
    bad = [Request(pictures=torch.zeros(1, 0, dtype=torch.uint8)), Request(images=torch.zeros(1, 1, 9, 3).byte())]
    bad += [
        Request(),
        Request(images=three, pictures=three[0, 0]),
        Request(images=torch.zeros(1, 1001, 1000, 3).byte()),
    ]
    requests = [part for pair in itertools.zip_longest(good, bad) for part in pair if part is not None]
    responses = dict(zip(requests, model.execute(requests), strict=True))
    assert sizes == [4, 4, 1]  # 9 pictures, and none of them twice
    for request, words in zip(
        bad, ("not a picture", "least 2", "and not both", "and not both", "max_pixels"), strict=True
    ):
        assert words in str(responses[request].error)
        assert responses[request].error.code == Backend.TritonError.INVALID_ARG
    for request, file in zip(good, files, strict=False):
        expected = expected_of(served[0], file, "uint8")
        np.testing.assert_allclose(responses[request].outputs["spatial"], expected.spatial, atol=1e-4)
        np.testing.assert_allclose(responses[request].outputs["prefix"], expected.prefix, atol=1e-4)
    expected = served[0](three.movedim(3, 1))
    np.testing.assert_allclose(responses[good[5]].outputs["prefix"], expected.prefix, atol=1e-4)
    assert list(responses[good[5]].outputs) == ["prefix"]  # what it asked for
    assert responses[good[6]].outputs["spatial"].shape == (1, 128, 10, 10)


def test_values_that_the_model_refuses_fail_alone(opened, served):
    model, images = opened("float32"), torch.randn(2, 3, 160, 200).clamp(-1, 1)
    nan, loud = torch.full((1, 3, 90, 90), torch.nan), torch.full((1, 3, 90, 90), 200.0)
    responses = model.execute([Request(images=each) for each in (images[:1], nan, loud, images[1:])])
    assert [bool(response.error) for response in responses] == [False, True, True, False]
    assert "NaN or infinite" in str(responses[1].error)
    found = torch.cat([responses[number].outputs["spatial"] for number in (0, 3)])
    np.testing.assert_allclose(found, served[0](images).spatial, atol=1e-4)
    model.engine.session.run = lambda inputs: 1 / 0
    (response,) = model.execute([Request(images=images)])
    assert (response.error.code, str(response.error)) == (
        Backend.TritonError.INTERNAL,
        "ZeroDivisionError: division by zero",
    )


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """As much of Triton as a client needs: one model of a repository, run by ONNX Runtime."""

    def __init__(self, folder):
        self.config = config_of(folder)
        self.session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
        self.batches = []

    def ServerLive(self, request, context):  # noqa: N802 (the protocol's names)
        return service_pb2.ServerLiveResponse(live=True)

    def ModelConfig(self, request, context):  # noqa: N802
        if request.name != self.config.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}' is not found")
        return service_pb2.ModelConfigResponse(config=self.config)

    def ModelInfer(self, request, context):  # noqa: N802
        (given,), (taken,) = request.inputs, self.config.input
        batch, *dims = given.shape
        expected = model_config_pb2.DataType.Name(taken.data_type).removeprefix("TYPE_")
        if dims != list(taken.dims) or given.datatype != expected or not 1 <= batch <= self.config.max_batch_size:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected {given.datatype} {list(given.shape)}")
        self.batches.append(batch)
        dtype = {"FP32": np.float32, "UINT8": np.uint8}[given.datatype]
        images = np.frombuffer(request.raw_input_contents[0], dtype).reshape(given.shape)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        wanted = [output.name for output in self.config.output]
        for name, array in zip(wanted, self.session.run(wanted, {taken.name: images}), strict=True):
            answer.outputs.add(name=name, datatype="FP32", shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    shots = (data.astronaut(), data.chelsea(), data.coffee(), data.astronaut()[:200])
    for number, shot in enumerate(shots):
        Image.fromarray(shot).save(folder / f"{number}.png")
    Image.fromarray(data.rocket()).save(folder / "4.jpg")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model, and its repository of two: one that takes pixels, one that takes normalised images."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("served"), s2wrap.load("timm:test_vit@1,2", pretrained=False)
    (folder / "files").mkdir()
    for pixels in ("uint8", "float32"):
        file = folder / "files" / f"{pixels}.onnx"
        export(model, file, batch=(1, 2, 4), image_hw=(160, 200), pixels=pixels, verify=False)
        write_repository(file, folder / "models")
    return model, folder


@pytest.fixture
def serve(served):
    """Start a server for a model of the repository: itself, and its address; `serve.stop()` ends all of them."""
    running = []

    def start(name):
        server, servicer = grpc.server(futures.ThreadPoolExecutor(2)), Server(served[1] / "models" / name)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        running.append(server)
        return servicer, f"127.0.0.1:{port}"

    def stop():
        for server in running:
            server.stop(None)

    start.stop = stop
    yield start
    stop()


@pytest.fixture
def demo(monkeypatch):
    """The demo's module."""
    monkeypatch.syspath_prepend(CLIENT.parent)
    return importlib.import_module("triton_client")


def expected_of(model, photo, name):
    """PyTorch's features of a picture, prepared as the client prepares it."""
    pixels = load_image(photo)[None].float()
    pixels = torch.nn.functional.interpolate(pixels, (160, 200), mode="bicubic", antialias=True).clamp(0, 255)
    return model(pixels.round().byte() if name == "uint8" else normalised(model, pixels))


@pytest.mark.parametrize(("name", "batch", "sent"), [("uint8", None, [4, 1]), ("float32", 1, [1] * 5)])
def test_a_client_gets_the_models_features(served, serve, demo, photos, tmp_path, capsys, name, batch, sent):
    (servicer, url), output = serve(name), tmp_path / "out.safetensors"
    demo.main([photos], model=name, url=url, batch=batch, output=output)
    assert servicer.batches == sent
    printed = capsys.readouterr().out
    assert "spatial (5, 128, 10, 10)" in printed
    assert "5 pictures" in printed
    found = load_file(output)
    for row, photo in enumerate(sorted(photos.iterdir())):
        expected = expected_of(served[0], photo, name)
        np.testing.assert_allclose(found["spatial"][row], expected.spatial[0], atol=1e-4)
        np.testing.assert_allclose(found["prefix"][row], expected.prefix[0], atol=1e-4)


def normalised(model, pixels):
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (model.input.mean, model.input.std))
    return (pixels / 255 - mean) / std


class Unreadable:
    """A response whose tensor cannot be made an array."""

    def get_response(self):
        return service_pb2.ModelInferResponse(
            outputs=[service_pb2.ModelInferResponse.InferOutputTensor(name="spatial")]
        )

    def as_numpy(self, name):
        raise ValueError("cannot reshape array of size 3 into shape (2,2)")


class Silent:
    """A connection that hands a response to the callback, or never does."""

    def __init__(self, response=None):
        self.response = response

    def async_infer(self, name, inputs, callback, client_timeout):
        if self.response is not None:
            threading.Thread(target=lambda: callback(result=self.response, error=None)).start()


def test_a_client_never_waits_without_end(demo, monkeypatch):
    monkeypatch.setattr(demo, "GRACE", 0.2)
    pixels, known = np.zeros((1, 4, 4, 3), np.uint8), None
    served = demo.Served(Silent(Unreadable()), "vit", "images", "UINT8", (4, 4), 8, known, None, timeout=0.1)
    future = demo.send(served, pixels)
    with pytest.raises(
        S2WrapError, match=r"the answer of vit on a batch of 1 cannot be read \(ValueError: cannot reshape"
    ):
        future.result(timeout=5)
    start = time.monotonic()
    with pytest.raises(S2WrapError, match="vit did not answer in 0.1 seconds; raise --timeout"):
        list(demo.infer(replace(served, client=Silent()), [pixels]))
    assert time.monotonic() - start < 5


def test_a_client_gives_up_a_server_that_hangs_or_goes_away(serve, demo, photos, monkeypatch):
    servicer, url = serve("uint8")
    known, pixels = demo.connect(url, "uint8"), np.zeros((1, 160, 200, 3), np.uint8)
    asked, waits = {"model": "uint8", "url": url, "batch": 1, "output": None}, threading.Event()
    monkeypatch.setattr(servicer.session, "run", lambda names, inputs: waits.wait(30) and None, raising=False)
    with pytest.raises(S2WrapError, match="uint8 failed on a batch of 1: .*Deadline Exceeded"):
        demo.run([photos], **asked, timeout=0.5)
    future = demo.send(known, pixels)
    serve.stop()
    with pytest.raises(S2WrapError, match="uint8 failed on a batch of 1"):
        future.result(timeout=10)
    with pytest.raises(S2WrapError, match="no server answers"):
        demo.run([photos], **asked)
    waits.set()


def test_a_client_says_what_is_wrong(serve, demo, photos, monkeypatch):
    servicer, url = serve("uint8")
    asked = {"model": "uint8", "url": url, "batch": 2, "output": None}
    with pytest.raises(S2WrapError, match="no server answers at 127.0.0.1:1 .*give the address of its gRPC port"):
        demo.run([photos], **asked | {"url": "127.0.0.1:1"})
    with pytest.raises(S2WrapError, match="has no model 'eye' that is ready: Request for unknown model"):
        demo.run([photos], **asked | {"model": "eye"})
    with pytest.raises(S2WrapError, match="the ending must be .safetensors"):
        demo.run([photos], **asked | {"output": Path("out.npz")})
    servicer.config.max_batch_size = 1
    known = demo.connect(url, "uint8")
    monkeypatch.setattr(demo, "connect", lambda url, model: known)
    servicer.config.input[0].dims[1] = 7  # what the server takes has changed since
    with pytest.raises(S2WrapError, match="uint8 failed on a batch of 1: .*unexpected UINT8"):
        demo.run([photos], **asked)
    (photos / "bad.png").write_bytes(b"no picture")
    with pytest.raises(S2WrapError, match="bad.png: not a picture"):
        demo.run([photos / "bad.png"], **asked)


def test_the_client_refuses_a_model_of_others_in_one_line_and_ends_with_code_2(serve, photos):
    servicer, url = serve("uint8")
    del servicer.config.parameters["s2wrap"]
    command = [sys.executable, CLIENT, photos, "--url", url, "--model", "uint8"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith("triton_client: uint8 at 127.0.0.1")
    assert "is no model of s2wrap; lay one there with s2wrap export --triton" in ran.stderr
    assert "Traceback" not in ran.stderr
