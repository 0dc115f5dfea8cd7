import hashlib
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

import s2wrap
from s2wrap import S2WrapError
from s2wrap.cli import main
from s2wrap.export import VerificationError, export, load, verify
from s2wrap.export import pipeline as room
from s2wrap.export import proof as comparing
from s2wrap.export.build import build_engine
from s2wrap.export.options import BuildOptions

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("kept_traces")


def vit(name, **options):
    return timm.create_model(name, num_classes=0, depth=2, embed_dim=64, num_heads=2, **options)


def clip():
    vision = open_clip.CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=16, image_size=96)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=32, width=32, heads=2, layers=1)
    return open_clip.CLIP(32, vision, text)


MODELS = {
    "CLS": lambda: timm.create_model("test_vit", num_classes=0, depth=2),
    "registers": lambda: vit("vit_small_patch14_reg4_dinov2", img_size=98),
    "SigLIP": lambda: vit("vit_base_patch16_siglip_224", img_size=96),
    "DINOv2": lambda: vit("vit_small_patch14_dinov2", img_size=98),
    "Swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=0, depths=(1, 2), num_heads=(1, 2), embed_dim=32, img_size=112
    ),
    "ConvNeXt": lambda: timm.create_model("convnext_tiny", num_classes=0, depths=(1,) * 4, dims=(16, 32, 48, 64)),
    "ResNet": lambda: timm.create_model("test_resnet", num_classes=0),
    "EfficientNet": lambda: timm.create_model("test_efficientnet", num_classes=0),
    "open_clip": clip,
}
CASES = [
    ("CLS", "fp16", {"scales": (1, 2, 3)}, None),
    ("registers", "bf16", {"scales": (1, 2)}, None),
    ("SigLIP", "fp16", {"scales": (1, 2), "fit": "aspect"}, (90, 210)),
    ("DINOv2", "fp16", {"scales": (1, 2, 3), "fuse": "detail"}, (120, 120)),
    ("Swin", "fp32", {"scales": (1, 2), "overlap": 2}, None),
    ("ConvNeXt", "bf16", {"scales": (1, 2), "whole": False}, (200, 300)),
    ("ResNet", "fp32", {"scales": (1, 2), "whole": False, "fuse": "mean"}, None),
    ("EfficientNet", "fp16", {"scales": (1, 2)}, None),
    ("open_clip", "fp16", {"scales": (1, 2), "fit": "pad", "overlap": 2, "fuse": "detail"}, (100, 150)),
]
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2}


@pytest.mark.parametrize(("name", "precision", "options", "image_hw"), CASES, ids=[case[0] for case in CASES])
def test_every_kind_of_backbone_becomes_onnx_and_an_engine(tmp_path, name, precision, options, image_hw):
    """The ONNX file runs in ONNX Runtime at batches of 1, 2 and 5; the engine is built for three generations."""
    model = s2wrap.wrap(MODELS[name](), **options)
    path = tmp_path / "model.onnx"
    manifest = export(model, path, precision=precision, image_hw=image_hw, opset=23)
    assert manifest["verification"]["passed"]
    height, width = manifest["image_hw"]
    if precision != "bf16":  # ONNX Runtime has none on CPUs: export() compared it with its values widened
        engine = load(path)
        for batch in (1, 2, 5):
            images = torch.randn(batch, 3, height, width)
            found, expected = engine(images), model(images)
            scale = float(expected.spatial.abs().max())
            np.testing.assert_allclose(found.spatial.float(), expected.spatial, atol=TOLERANCE[precision] * scale)
            np.testing.assert_allclose(found.prefix.float(), expected.prefix, atol=TOLERANCE[precision] * 5)
    pytest.importorskip("tensorrt_rtx")
    targets, draft = ["sm80", "sm89", "sm120"], tmp_path / "draft.rtx"
    options = BuildOptions(targets=targets)
    facts = build_engine(path, draft, kind="tensorrt_rtx", batch=(1, 2, 5), name="test", options=options)
    assert facts["targets"] == targets
    weights = sum(parameter.numel() for parameter in model.backbone.parameters()) * (4 if precision == "fp32" else 2)
    assert weights < draft.stat().st_size < 1.1 * path.stat().st_size + 5e6  # weights and matrices once, and 4.6 MB


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_backbone_becomes_int8(tmp_path, name):
    """The file's own values, against PyTorch in float32, on pictures that it was not calibrated on."""
    random = np.random.default_rng(0)
    for number in range(5):
        pixels = np.kron(random.integers(0, 256, (6, 6, 3)), np.ones((24, 24, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    torch.manual_seed(0)
    model = s2wrap.wrap(MODELS[name](), (1, 2), mean=(0.5,) * 3, std=(0.25,) * 3)
    manifest = export(model, tmp_path / "model.onnx", precision="int8", pictures=[tmp_path], batch=(1, 1, 2))
    done = manifest["quantised"]
    assert len(done["layers"]) > len(done["kept"])
    codes = [tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer if tensor.data_type == 3]
    assert sum(tensor.name.endswith("codes") for tensor in codes) == len(done["layers"])
    images = torch.from_numpy(pixels).permute(2, 0, 1)
    (found,), (expected,) = load(tmp_path / "model.onnx").encode([images]), model.encode([images])
    assert float((found.spatial - expected.spatial).norm() / expected.spatial.norm()) < 0.2


@pytest.fixture
def model():
    return s2wrap.load("timm:test_vit@1,2", pretrained=False)


def test_an_engine_has_its_manifest_and_the_same_bytes_each_time(tmp_path, model, kept_traces):
    pytest.importorskip("tensorrt_rtx")
    options = {"precision": "fp16", "pixels": "uint8", "batch": (1, 2, 4), "targets": ["sm89"]}
    options["outputs"] = ["spatial"]  # TensorRT-RTX lists several in an order of its own, another one each time
    manifests = []
    for name in ("a.rtx", "b.rtx"):
        kept_traces.clear()
        manifests.append(export(model, tmp_path / name, **options))
    assert (tmp_path / "a.rtx").read_bytes() == (tmp_path / "b.rtx").read_bytes()
    written = json.loads((tmp_path / "a.rtx.json").read_text())
    assert written["sha256"] == manifests[1]["sha256"] == hashlib.sha256((tmp_path / "a.rtx").read_bytes()).hexdigest()
    assert written["spec"] == "timm:test_vit@1,2"
    assert written["build"]["targets"] == ["sm89"]
    assert written["batch"] == [1, 2, 4]
    assert written["inputs"] == [{"name": "images", "dtype": "uint8", "shape": ["batch", 320, 320, 3]}]
    assert written["outputs"][0] == {"name": "spatial", "dtype": "float16", "shape": ["batch", 128, 10, 10]}
    assert 1 < written["largest_value"] < 65504
    assert written["recipe"]["spec"] == "timm:test_vit@1,2"
    assert "built and not run" in written["verification"]["note"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.rtx", "a.rtx.json", "b.rtx", "b.rtx.json"]
    with pytest.raises(S2WrapError, match="a.rtx needs an NVIDIA GPU, and this machine shows none"):
        load(tmp_path / "a.rtx")


def test_an_onnx_file_carries_its_manifest(tmp_path, model):
    manifest = export(model, tmp_path / "model.onnx", verify=False)
    (note,) = onnx.load(tmp_path / "model.onnx").metadata_props
    inside = json.loads(note.value)
    assert inside["backbone"] == json.loads(json.dumps(manifest["backbone"]))
    assert inside["plan"]["scales"][1]["rows"]["starts"] == [0, 160]
    assert "verification" not in manifest
    assert "recipe" not in inside  # it may name a checkpoint's folder


def test_a_link_stays_and_what_it_names_is_written(tmp_path, model):
    (tmp_path / "real.onnx").write_text("of before")
    (tmp_path / "link.onnx").symlink_to("real.onnx")
    export(model, tmp_path / "link.onnx", verify=False, overwrite=True)
    assert (tmp_path / "link.onnx").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.onnx", "real.onnx", "real.onnx.json"]
    assert load(tmp_path / "link.onnx").manifest["file"] == "real.onnx"


def test_weights_beside_an_earlier_file_go_with_it(tmp_path, model, monkeypatch):
    path = tmp_path / "model.onnx"
    monkeypatch.setattr(room.trace, "LARGEST_FILE", 100_000)
    export(model, path)
    images = torch.randn(1, 3, 320, 320)
    np.testing.assert_allclose(load(path)(images).spatial, model(images).spatial, atol=3e-4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data", "model.onnx.json"]
    export(model, path, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.2.data", "model.onnx.json"]
    np.testing.assert_allclose(load(path)(images).spatial, model(images).spatial, atol=3e-4)
    monkeypatch.undo()
    export(model, path, verify=False, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]
    load(path)


def test_an_engine_that_this_gpu_cannot_run_is_compared_by_its_graph(tmp_path, model, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    opened = comparing.open_session

    def refusing(path, kind):
        if kind == "tensorrt_rtx":
            raise S2WrapError("compute capability 9.0 is not supported")
        return opened(path, kind=kind)

    compare = room.compare_file

    def with_a_gpu(*arguments):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        return compare(*arguments)

    monkeypatch.setattr(room, "compare_file", with_a_gpu)
    monkeypatch.setattr(comparing, "open_session", refusing)
    manifest = export(model, tmp_path / "model.rtx", targets=["sm120"], outputs=["spatial"])
    assert "does not run on this GPU: compute capability 9.0" in manifest["verification"]["note"]
    assert manifest["verification"]["ran"].startswith("ONNX Runtime")


def test_options_reach_the_builder(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(room, "check_build", lambda kind, options: seen.update(options.changed()))
    monkeypatch.setattr(room, "build_engine", lambda *files, **options: (_ for _ in ()).throw(S2WrapError("enough")))
    command = ["s2wrap", "export", "timm:test_vit@1", str(tmp_path / "model.rtx"), "--random-weights", "--no-verify"]
    monkeypatch.setattr(sys, "argv", [*command, "--optimization-level", "0", "--targets", "sm80,sm89"])
    with pytest.raises(SystemExit):
        main()
    assert seen == {"optimization_level": 0, "targets": ("sm80", "sm89")}


def test_verify_repeats_the_comparison(tmp_path, model):
    path = tmp_path / "model.onnx"
    torch.manual_seed(0)
    export(s2wrap.load("timm:test_vit@1,2", pretrained=False), path, verify=False)
    torch.manual_seed(1)
    assert verify(path).passed
    with pytest.raises(S2WrapError, match="was made with other weights than test_vit has now"):
        verify(path, model=s2wrap.load("timm:test_vit@1,2", pretrained=False))
    nameless = s2wrap.wrap(timm.create_model("test_vit", num_classes=0), (1, 2))
    export(nameless, path, verify=False, overwrite=True)
    assert verify(path, model=nameless).passed
    with pytest.raises(S2WrapError, match="made from a model without a name; verify it in Python"):
        verify(path)


def test_what_computes_something_else_gets_no_name(tmp_path, model, monkeypatch):
    path = tmp_path / "model.onnx"
    trace = room.trace.trace

    def spoiled(graph, **options):
        proto = trace(graph, **options)
        weight = next(tensor for tensor in proto.graph.initializer if list(tensor.dims) == [192, 64])
        values = 5 * np.roll(onnx.numpy_helper.to_array(weight), 1, axis=1)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return proto

    monkeypatch.setattr(room.trace, "trace", spoiled)
    with pytest.raises(VerificationError, match=r"does not compute what PyTorch computes: spatial: cosine 0\."):
        export(model, path)
    assert list(tmp_path.iterdir()) == []
    command = ["s2wrap", "export", "timm:test_vit@1,2", str(path), "--random-weights"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_ready_onnx_file_is_taken_and_compared(tmp_path, model):
    """As people who quantise bring it; here the weights of one layer, with Q/DQ."""
    ready = tmp_path / "ready.onnx"
    export(model, ready, verify=False)
    proto = onnx.load(ready)
    weight = next(t for t in proto.graph.initializer if list(t.dims) == [64, 192])
    values = onnx.numpy_helper.to_array(weight)
    scale = np.float32(np.abs(values).max() / 127)
    quantised = onnx.numpy_helper.from_array(np.round(values / scale).astype(np.int8), "weight_q")
    proto.graph.initializer.extend([quantised, onnx.numpy_helper.from_array(np.array(scale), "weight_scale")])
    zero = onnx.numpy_helper.from_array(np.array(0, np.int8), "weight_zero")
    proto.graph.initializer.append(zero)
    name = weight.name
    proto.graph.initializer.remove(weight)
    inputs = ["weight_q", "weight_scale", "weight_zero"]
    proto.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", inputs, [name]))
    onnx.save(proto, ready)
    manifest = export(model, tmp_path / "model.onnx", onnx=ready)
    assert manifest["gate"]["error"] == 0.2
    assert verify(tmp_path / "model.onnx", model=model).passed
    with pytest.raises(VerificationError):
        verify(tmp_path / "model.onnx", model=model, gate=(0.9999, 0.9999, 1e-5))
    assert 1e-4 < manifest["verification"]["outputs"][0]["relative_error"] < 0.1
    with pytest.raises(S2WrapError, match="has inputs and outputs images, spatial, prefix; this export has tiles"):
        export(model, tmp_path / "tiles.onnx", onnx=ready, tiles=True)
    with pytest.raises(S2WrapError, match="320, 320.* of float32; this export takes"):
        export(model, tmp_path / "small.onnx", onnx=ready, image_hw=(160, 160), verify=False)
    with pytest.raises(S2WrapError, match="a ready ONNX file has its own"):
        export(model, tmp_path / "other.onnx", onnx=ready, opset=23)
    (tmp_path / "broken.onnx").write_bytes(b"no ONNX at all")
    with pytest.raises(S2WrapError, match="broken.onnx is no ONNX file, or damaged"):
        export(model, tmp_path / "other.onnx", onnx=tmp_path / "broken.onnx")


def test_layers_that_float16_cannot_hold_stay_in_float32_or_stop_the_export(tmp_path, model):
    mlp = model.backbone.model.blocks[2].mlp
    mlp.fc1.weight.mul_(1e7)
    mlp.fc2.weight.mul_(1e-7)
    path, told = tmp_path / "model.onnx", Console(record=True, file=io.StringIO())
    manifest = export(model, path, precision="fp16", console=told)
    assert manifest["fp32_layers"] == ["blocks.2.mlp"]
    assert "In float32, as their values are too large for float16: blocks.2.mlp" in told.export_text()
    mlp.fc2.weight.mul_(1e7)
    with pytest.raises(S2WrapError, match="does not fit float16"):
        export(model, tmp_path / "other.onnx", precision="fp16")
    assert not (tmp_path / "other.onnx").exists()


def test_the_backbone_alone_is_exported_and_compared(tmp_path, model):
    manifest = export(model, tmp_path / "tiles.onnx", tiles=True, batch=(1, 8, 16))
    assert manifest["part"] == "tiles"
    assert manifest["inputs"][0]["name"] == "tiles"
    assert verify(tmp_path / "tiles.onnx", model=model).passed


def test_a_full_disk_loses_nothing(tmp_path, model, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("of before")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room.trace, "save", full)
    with pytest.raises(S2WrapError, match="model.onnx exists already; add --overwrite"):
        export(model, path)
    with pytest.raises(S2WrapError, match=r"cannot write .*model.onnx: No space left on device"):
        export(model, path, overwrite=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["of before"]


def test_weights_that_a_copy_shares_stay(tmp_path, model, monkeypatch):
    """A copy of the graph and its manifest reads the same weights; an export over the copy leaves them."""
    path, copied = tmp_path / "model.onnx", tmp_path / "copy.onnx"
    monkeypatch.setattr(room.trace, "LARGEST_FILE", 100_000)
    export(model, path, verify=False)
    copied.write_bytes(path.read_bytes())
    copied.with_name("copy.onnx.json").write_bytes(path.with_name("model.onnx.json").read_bytes())
    load(copied)
    export(model, copied, verify=False, overwrite=True)
    load(path)
    load(copied)


@pytest.mark.parametrize("apart", [False, True], ids=["one file", "weights apart"])
def test_an_export_over_another_is_stopped_at_no_moment_between_the_two(tmp_path, model, monkeypatch, apart):
    """Each step that changes a name fails once: what lies there then is the old file or the new one, and loads."""
    path, images = tmp_path / "model.onnx", torch.randint(0, 256, (1, 320, 320, 3), dtype=torch.uint8)
    if apart:
        monkeypatch.setattr(room.trace, "LARGEST_FILE", 100_000)
    export(model, path, verify=False)
    steps, old, new = 0, 0, 0
    while True:
        count, real = [0], Path.replace

        def replace(self, target, count=count, stop=steps, real=real):
            count[0] += 1
            if count[0] > stop:
                raise KeyboardInterrupt
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        try:
            export(model, path, verify=False, overwrite=True, pixels="uint8")
            break
        except KeyboardInterrupt:
            pass
        finally:
            monkeypatch.setattr(Path, "replace", real)
        engine = load(path)
        takes_pixels = engine.manifest["pixels"] == "uint8"
        new, old = new + takes_pixels, old + (not takes_pixels)
        engine.encode(list(images.permute(0, 3, 1, 2)))
        export(model, path, verify=False, overwrite=True)
        steps += 1
    assert (old, new) == (3 if apart else 2, 1)
    assert len(list(tmp_path.iterdir())) == 2 + apart


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.onnx", {"batch": (4, 2, 8)}, "no profile; use (MIN, OPT, MAX)"),
        ("model.onnx", {"batch": 8}, "no profile"),
        ("model.pt", {}, "the ending must be .onnx, .plan, .engine, .rtx"),
        ("model.onnx", {"targets": ["sm89"]}, "targets: these are for engines, and model.onnx is ONNX"),
        ("model.onnx", {"tiles": True, "image_hw": (100, 100)}, "leave them out"),
        ("model.onnx", {"onnx": "none.onnx"}, "there is no such ONNX file"),
        ("model.onnx", {"gate": "strict"}, "is no gate"),
        ("model.onnx", {"opset": 19}, "use 20 to 23"),
        ("model.onnx", {"pictures": ["none"]}, "there is no such file or folder"),
        ("none/model.onnx", {}, "cannot write"),
        ("", {}, "the ending must be"),
    ],
)
def test_wrong_calls_are_one_clear_error_and_leave_nothing(tmp_path, model, name, options, message):
    with pytest.raises(S2WrapError, match=re.escape(message)):
        export(model, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.onnx", "--batch", "1:x"], "batch='1:x' is no profile; use (MIN, OPT, MAX)"),
        (["model.onnx", "--image", "big"], "image_hw='big' is no image size; use (height, width)"),
        (["model.onnx", "--instances", "2"], "--instances: for --triton DIR, which is not given"),
        (["model.onnx", "--gate", "strict"], "gate='strict' is no gate; give the least mean cosine"),
        (["model.plan"], "write .onnx or .rtx, which need no GPU"),
        (["model.onnx", "--precision", "int4"], "use one of fp32, fp16, bf16, int8, fp8"),
        (["model.onnx", "--precision", "int8"], "is calibrated on pictures"),
    ],
)
def test_wrong_commands_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["s2wrap", "export", "timm:test_vit@1,2", *arguments, "--random-weights"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_triton_would_refuse_is_told_before_the_work(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tritonclient")
    (tmp_path / "models" / "model" / "1").mkdir(parents=True)
    command = ["s2wrap", "export", "timm:test_vit@1,2", str(tmp_path / "model.onnx"), "--random-weights"]
    command += ["--triton", str(tmp_path / "models")]
    for options, message in (
        ([], "models/model exists already"),
        (["--triton-name", "a/b"], "makes no model name"),
        (["--triton-name", "b", "--batch", "2:4:8"], "Triton sends single requests too"),
        (["--triton-name", "b", "--cuda-graphs"], "only Triton's TensorRT backend has them"),
        (["--triton-name", "b", "--precision", "bf16"], "Triton's ONNX Runtime backend refuses"),
    ):
        monkeypatch.setattr(sys, "argv", [*command, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_the_command_exports_and_verifies(tmp_path, monkeypatch, capsys):
    path = str(tmp_path / "model.onnx")
    words = ["export", "timm:test_vit@1,2", path, "--random-weights", "--image", "120x170", "--batch", "1:2:4"]
    words += ["--fit", "pad", "--overlap", "2", "--outputs", "spatial,pooled", "--precision", "fp16"]
    for command, place in ((words, "err"), (["verify", path], "out")):
        monkeypatch.setattr(sys, "argv", ["s2wrap", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert "passes" in getattr(capsys.readouterr(), place)
    manifest = json.loads((tmp_path / "model.onnx.json").read_text())
    assert manifest["image_hw"] == [120, 170]
    assert [port["name"] for port in manifest["outputs"]] == ["spatial", "pooled"]
    assert manifest["recipe"]["fit"] == "pad"
