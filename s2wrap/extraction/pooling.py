"""The vector of a picture: what a store of vectors keeps of its features."""

from collections.abc import Callable
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.extraction.picture import Arrays
from s2wrap.features import Features
from s2wrap.wrapper import MultiScale


def mean_vector(features: Features) -> Arrays:
    """The spatial mean of the map of one picture; of several maps (a pyramid, layers), the means concatenated."""
    return {"vector": torch.cat([reduce(spatial[0].float(), "c h w -> c", "mean") for spatial in features.maps])}


def cls_vector(features: Features) -> Arrays:
    """The first prefix token of one picture; beside several maps, those of each concatenated."""
    return {"vector": torch.cat([prefix[0, 0].float() for prefix in features.prefixes])}


def cls_mean_vector(features: Features) -> Arrays:
    """`cls_vector` and `mean_vector` concatenated, neither normalised: as the linear probe of DINOv2 takes them."""
    return {"vector": torch.cat([cls_vector(features)["vector"], mean_vector(features)["vector"]])}


def joint_vector(embedding: Tensor) -> Arrays:
    """The embedding of one picture in a space with text, as `encode_image` gives it: not normalised."""
    return {"vector": embedding.float()}


VECTORS: dict[str, Callable[[Any], Arrays]] = {
    "mean": mean_vector,
    "cls": cls_vector,
    "cls+mean": cls_mean_vector,
    "joint": joint_vector,
}
"""What makes each kind of vector of what the model answers."""


def check_vector(model: Any, vector: str) -> None:
    """Raise S2WrapError if a model, or an exported file, has no such vector."""
    if vector in ("cls", "cls+mean") and model.lacks_cls:
        raise S2WrapError(f"vector {vector}: {model.lacks_cls}; use vector mean, or a model with a CLS token")
    if vector == "joint":
        exported = not isinstance(model, MultiScale)
        if exported or not model.backbone.has_embeddings:
            lack = "exported files have" if exported else f"{model.backbone.name} has"
            raise S2WrapError(
                f"vector joint: {lack} no embedding in a space with text; models of open_clip have one "
                f"(open_clip:NAME/TAG@SCALES), or use another vector: {', '.join(VECTORS)}"
            )
