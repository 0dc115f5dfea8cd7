"""torchvision's classification models: everything before the pooling and the classifier."""

from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.checkpoint import from_hub, load_exactly
from s2wrap.backbones.family import IMAGENET_MEAN, IMAGENET_STD, Family, Place, allowed, check_rgb, structure
from s2wrap.backbones.probed import NO_OPTIONS, ProbedBackbone
from s2wrap.errors import S2WrapError
from s2wrap.options import BackboneOptions

HEADS = ("avgpool", "flatten", "classifier", "fc", "head", "heads")
SIZES = {"Inception3": 299, "Swin": 224}


class TorchvisionBackbone(ProbedBackbone):
    """A classification model: its modules one after the other, up to the pooling."""

    def __init__(self, model: Any, options: BackboneOptions = NO_OPTIONS, *, facts: BackboneOptions = NO_OPTIONS):
        """As `ProbedBackbone`."""
        kind = type(model).__name__
        own = BackboneOptions(
            name=kind.lower(),
            image_size=getattr(model, "image_size", None) or SIZES.get(kind, 224),
            num_prefix_tokens=1 if kind == "VisionTransformer" else None,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            interpolation="bilinear",
        )
        super().__init__(model, options, facts=facts.over(own), origins=dict.fromkeys(("mean", "std"), "library"))

    def call(self, tiles: Tensor) -> Any:
        """Tokens (b, 1 + n, c) of a VisionTransformer; else a map (b, c, h, w)."""
        model = self.model
        if type(model).__name__ == "VisionTransformer":
            patches = model._process_input(tiles)
            cls = model.class_token.expand(patches.shape[0], -1, -1)
            return model.encoder(torch.cat([cls, patches], dim=1))
        if getattr(model, "transform_input", False):  # Inception and GoogLeNet with weights ported from TensorFlow
            tiles = model._transform_input(tiles)
        for name, part in model.named_children():
            if name in HEADS:
                break
            if "aux" in name.lower():
                continue
            for step in part if isinstance(part, nn.ModuleList) else [part]:
                tiles = step(tiles)
        return functional.relu(tiles) if type(model).__name__ == "DenseNet" else tiles


def matches(model: object) -> bool:
    """Whether a model is one of torchvision's classification models."""
    module = type(model).__module__
    below = ("detection", "segmentation", "video", "quantization", "optical_flow")
    return module.startswith("torchvision.models.") and module.split(".")[2] not in below


def names() -> tuple[str, ...]:
    """Every classification model that torchvision names."""
    from torchvision import models

    return tuple(models.list_models(module=models))


def load(
    name: str,
    options: BackboneOptions = NO_OPTIONS,
    *,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
) -> TorchvisionBackbone:
    """A torchvision model by name, with its default weights, those of a file, or none."""
    from torchvision import models

    weights: Any = vars(models.get_model_weights(name))["DEFAULT"]
    check_rgb(options, f"torchvision:{name}")
    building: dict[str, Any] = {"weights": weights if pretrained and checkpoint is None else None}
    if options.image_size is not None and name.startswith("vit"):
        building["image_size"] = _one_side(options.image_size, name)
    if name in ("googlenet", "inception_v3"):
        building["init_weights"] = True  # else they warn that this will change
    make = partial(models.get_model, name, **building)
    model = from_hub(make, f"torchvision:{name}") if building["weights"] else make()
    if checkpoint is not None:
        load_exactly(model, checkpoint, f"torchvision:{name}")
    transforms = weights.transforms()
    facts = BackboneOptions(
        image_size=getattr(model, "image_size", None) or transforms.crop_size[0],
        interpolation="bicubic" if transforms.interpolation.value == "bicubic" else "bilinear",
    )
    return TorchvisionBackbone(model, options.named(name), facts=facts)


def _one_side(image_size: Any, name: str) -> int:
    """The side of a square, as torchvision builds its transformers for."""
    height, width = image_size
    if height != width:
        raise S2WrapError(f"image_size={image_size} of torchvision:{name}, which takes squares; use one side")
    return height


def describe(backbone: Backbone) -> dict[str, Any] | None:
    """The name and arguments of the builder whose model has the same modules and shapes; None if there is none."""
    if type(backbone) is not TorchvisionBackbone:
        return None
    from torchvision import models

    model = backbone.model
    widths = [part.out_features for part in model.modules() if isinstance(part, nn.Linear)]
    arguments = {"num_classes": vars(model).get("num_classes") or (widths[-1] if widths else 1000)}
    arguments |= {name: vars(model)[name] for name in ("image_size", "transform_input") if name in vars(model)}
    if type(model).__name__ in ("GoogLeNet", "Inception3"):
        arguments |= {"aux_logits": model.aux_logits, "init_weights": False}
    wanted = structure(model)
    for name in names():
        builder = models.get_model_builder(name)
        if get_type_hints(builder)["return"] is type(model):
            with torch.device("meta"):
                outline = builder(weights=None, **arguments)
            if structure(outline) == wanted:
                return {"name": name, "arguments": arguments}
    return None


def rebuild(description: dict[str, Any]) -> Any:
    """The model that `describe` described, with random weights."""
    from torchvision import models

    arguments = allowed(description, "num_classes", "image_size", "transform_input", "aux_logits", "init_weights")
    return models.get_model(description["name"], weights=None, **arguments)


def where(name: str) -> Place:
    """Where the weights of a name are."""
    from torchvision import models

    weights: Any = vars(models.get_model_weights(name))["DEFAULT"]
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    return "cached" if path.is_file() else "download"


FAMILY = Family(
    "torchvision", TorchvisionBackbone, matches, names, load, describe=describe, rebuild=rebuild, weights=where
)
