"""The part of a model of transformers that takes images alone."""

import inspect
from typing import Any

from s2wrap.backbones.probed import ProbedBackbone
from s2wrap.errors import S2WrapError

OTHER_INPUT = {
    "depth_pro": "looks at patches of an image at several scales itself",
    "efficientloftr": "takes pairs of images",
    "lightglue": "takes pairs of images",
    "seggpt": "takes an image with a prompt: another image and its mask",
}


class InterpolatingBackbone(ProbedBackbone):
    """A model of transformers, which may interpolate its position embeddings where its forward is told to."""

    size_options: dict[str, bool] = {}  # noqa: RUF012 (replaced, never changed)

    def any_size(self, allow: bool) -> bool:
        """Have position embeddings interpolated, where the model's forward can be told to, or no longer."""
        if "interpolate_pos_encoding" not in parameters(self.model):
            return False
        self.size_options = {"interpolate_pos_encoding": True} if allow else {}
        return True


def vision_tower(model: Any) -> Any:
    """The part of a model that takes images alone. Raises S2WrapError where there is none, with the reason."""
    body = model if is_backbone(model) else model.base_model
    if "pixel_values" in parameters(body) and not _needed(body):
        model = body  # without the head
    if model.config.model_type in OTHER_INPUT:
        raise S2WrapError(f"{type(model).__name__} of transformers {OTHER_INPUT[model.config.model_type]}")
    if getattr(model.config, "num_frames", None) or getattr(model.config, "frames_per_clip", None):
        raise S2WrapError(f"{type(model).__name__} of transformers takes videos")
    takes = parameters(model)
    if "pixel_values" in takes and "input_ids" not in takes and not _needed(model) and not _decodes(model):
        return model
    tower = model.get_encoder(modality="image") if hasattr(model, "get_encoder") else model
    if tower is not model and "pixel_values" in parameters(tower) and not _needed(tower):
        return tower
    kind = type(tower).__name__
    if _decodes(tower):
        reason = "returns what its decoder makes of an image, no map of it; wrap the backbone inside"
    elif needed := _needed(tower):
        reason = f"takes no images alone: its forward needs {', '.join(needed)} too"
    else:
        reason = "takes no images"
    raise S2WrapError(f"{kind} of transformers {reason}")


def is_backbone(model: object) -> bool:
    """Whether a model is one of transformers' backbones, such as Dinov2Backbone: it returns maps of stages."""
    return hasattr(model, "stage_names") and hasattr(model, "out_features")


def _decodes(model: Any) -> bool:
    """Whether the answer is that of a decoder: a translation, or object queries."""
    return model.config.is_encoder_decoder or (hasattr(model, "decoder") and hasattr(model.config, "num_queries"))


def _needed(model: Any) -> list[str]:
    """What a forward needs besides pixels; MiniCPM's `target_sizes` have a default, and no forward goes without."""
    known = {"self", "pixel_values", "pixel_attention_mask", "spatial_shapes"}  # NaFlex's two are made here
    return [
        name
        for name, parameter in parameters(model).items()
        if (parameter.default is parameter.empty or name == "target_sizes")
        and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and name not in known
    ]


def parameters(model: Any) -> Any:
    """The parameters of a model's forward, by name."""
    return inspect.signature(model.forward).parameters
