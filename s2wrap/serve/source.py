"""What is served, opened: a model by its name, or an exported file; and what can be had of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.extraction.encode import Encoder
from s2wrap.extraction.pooling import VECTORS
from s2wrap.extraction.reader import FILE_ENDINGS
from s2wrap.features import Features
from s2wrap.inputs import ModelInput
from s2wrap.wrapper import MultiScale

SINGLE = ("tokens", "pooled")
"""Features of models that answer one map."""


@dataclass(frozen=True)
class Source:
    """What to serve.

    Attributes:
        spec: a model's name, the folder of a saved one, or the path of an exported file.
        options: of the model, for `load`.
        device: where it runs; None: where such a model or file runs by default.
    """

    spec: str
    options: Mapping[str, Any]
    device: str | None = None

    @property
    def exported(self) -> bool:
        """Whether it is an exported file."""
        return self.spec.endswith(FILE_ENDINGS)

    @property
    def needs_gpu(self) -> bool:
        """Whether it runs on a CUDA device."""
        if self.device is None:
            from s2wrap.export.manifest import usual_device

            return self.exported and usual_device(self.spec) == "cuda"
        return self.device.partition(":")[0] == "cuda"

    def absolute(self) -> "Source":
        """The same with absolute paths, for processes that work in another folder."""
        options = dict(self.options)
        if options.get("checkpoint"):
            options["checkpoint"] = os.path.abspath(options["checkpoint"])
        local = self.exported or os.path.isdir(self.spec)
        return Source(os.path.abspath(self.spec) if local else self.spec, options, self.device)

    def open(self, threads: int | None = None) -> Encoder:
        """The model on its device, or the file opened. Random weights are those that `s2wrap export` draws.

        Args:
            threads: of ONNX Runtime; PyTorch has as many as Ray gives the process.

        Raises:
            S2WrapError: as `s2wrap.load` and `s2wrap.export.load`; a device that is none.
            MissingExtraError: a library that it needs is not installed.
        """
        if self.exported:
            import s2wrap.export

            named = {"threads": threads} if self.spec.endswith(".onnx") else {}
            return s2wrap.export.load(self.spec, device=self.device, **named, **self.options)
        from s2wrap.factory import load

        if not self.options.get("pretrained", True):
            torch.manual_seed(0)
        return load(self.spec, **self.options).to(self.device or "cpu")

    def check_device(self) -> None:
        """Raise S2WrapError for a device that no replica can have."""
        device = self.device or "cpu"
        if device.partition(":")[0] not in ("cpu", "cuda", "mps"):
            raise S2WrapError(f"device {device!r} is unknown; use cpu, cuda or mps")
        if device.startswith("cuda:"):
            raise S2WrapError(f"device {device!r}: Ray gives every replica a GPU itself; use cuda")

    def check(self) -> None:
        """Raise S2WrapError if it cannot be served here, and MissingExtraError; nothing is put on a GPU."""
        self.check_device()
        if self.exported:
            from s2wrap.export.engine import check_machine
            from s2wrap.export.manifest import read_manifest

            path = Path(self.spec)
            check_machine(path, read_manifest(path), self.device)
        if not self.needs_gpu or not self.exported:
            Source(self.spec, self.options, None if self.needs_gpu else self.device).open()


@dataclass(frozen=True)
class About:
    """What is known of an opened model.

    Attributes:
        name: of the backbone.
        input: what it takes.
        features: the features that can be asked for, each with the arrays, and their shapes, of one picture of the
            model's image size.
        lacks: the others, each with the reason.
    """

    name: str
    input: ModelInput
    image_hw: tuple[int, int]
    features: dict[str, dict[str, list[int]]]
    lacks: dict[str, str]

    @property
    def default(self) -> str:
        """The features that are sent where a request asks for none."""
        return "pooled" if "pooled" in self.features else "mean"


def look_at(model: Encoder) -> About:
    """What is known of a model, for which it answers a grey picture; the next answer is then as quick as others."""
    known: ModelInput = model.input
    image_hw = known.image_hw if isinstance(model, MultiScale) else model.image_hw
    grey = torch.full((known.channels, *image_hw), 128, dtype=_taken_dtype(model))
    if grey.is_floating_point():
        low, high = known.value_range or (0.0, 0.0)
        grey.fill_((low + high) / 2)
    with torch.inference_mode():
        features = model.encode([grey])[0]
        lacks = _lacks(model, features)
        embedding = None if "joint" in lacks else model.encode_image([grey])[0]
    names = [name for name in ("spatial", "prefix", "head", *SINGLE, *VECTORS) if name not in lacks]
    shapes = {
        name: {key: list(array.shape) for key, array in arrays_of(features, embedding, [name]).items()}
        for name in names
    }
    backbone = model.backbone.name if isinstance(model, MultiScale) else model.manifest["backbone"]["name"]
    return About(backbone, known, (image_hw[0], image_hw[1]), shapes, lacks)


def arrays_of(features: Features | None, embedding: Tensor | None, names: list[str]) -> dict[str, Tensor]:
    """The features of these names of one picture, as tensors whose first side is 1.

    Args:
        features: of one picture; None where only its embedding was asked for.
        embedding: (channels,), for "joint".
        names: what is wanted; "spatial" and "prefix" are numbered for models of several maps.
    """
    arrays: dict[str, Tensor] = {}
    for name in names:
        if name == "joint":
            assert embedding is not None
            arrays[name] = embedding.float()[None]
            continue
        assert features is not None
        if name in (*SINGLE, "head"):
            arrays[name] = getattr(features, name)
        elif name in VECTORS:
            arrays[name] = VECTORS[name](features)["vector"][None]
        else:
            parts = features.maps if name == "spatial" else features.prefixes
            arrays |= {name if len(parts) == 1 else f"{name}_{k}": part for k, part in enumerate(parts)}
    return arrays


def describe(source: Source, model: Encoder, about: About) -> dict[str, Any]:
    """What is served, for clients: as JSON keeps it."""
    exported = not isinstance(model, MultiScale)
    return {
        "spec": model.manifest["spec"] if exported else source.spec,
        "file": os.path.basename(source.spec) if exported else None,
        "kind": model.manifest["kind"] if exported else "torch",
        "backbone": about.name,
        "device": str(model.device),
        "image_hw": about.image_hw,
        "input": about.input.to_json(),
        "features": about.features,
        "default": about.default,
        "unavailable": about.lacks,
        "versions": {name: version(name) for name in ("s2wrap", "torch", "ray")},
    }


def _taken_dtype(model: Encoder) -> torch.dtype:
    """A type of images that the model takes."""
    if not isinstance(model, MultiScale) and model.manifest["pixels"] != "float32":
        return {"uint8": torch.uint8, "uint16": torch.uint16}[model.manifest["pixels"]]
    return torch.uint8 if model.input.normalises else torch.float32


def _lacks(model: Encoder, features: Features) -> dict[str, str]:
    """The features that a model does not have, each with the reason."""
    lacks: dict[str, str] = {} if features.heads else {"head": "only a file exported with head= has one"}
    if len(features.maps) != 1:
        lacks |= dict.fromkeys(SINGLE, f"the model answers {len(features.maps)} maps; use spatial or mean")
    if model.lacks_cls:
        lacks |= dict.fromkeys(("cls", "cls+mean"), model.lacks_cls)
    if not isinstance(model, MultiScale):
        lacks["joint"] = "exported files have no embedding in a space with text"
    elif not model.backbone.has_embeddings:
        lacks["joint"] = f"{model.backbone.name} has no embedding in a space with text"
    return lacks
