"""timm models made with `features_only=True`: they return a list of maps."""

from typing import Any

from torch import Tensor, nn

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.family import Family, allowed
from s2wrap.backbones.from_timm import timm_facts
from s2wrap.backbones.probed import NO_OPTIONS, ProbedBackbone
from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.options import BackboneOptions


class FeaturesOnlyBackbone(ProbedBackbone):
    """The last map, or those that `layers` counts in the list that the model returns."""

    def __init__(self, model: Any, options: BackboneOptions = NO_OPTIONS):
        """As `ProbedBackbone`."""
        facts = timm_facts(getattr(model, "model", model), model.pretrained_cfg)
        super().__init__(model, options, facts=facts)

    def call(self, tiles: Tensor) -> Tensor:
        """The last map (b, c, h, w)."""
        return self._maps(tiles)[-1]

    def call_layers(self, tiles: Tensor) -> Features:
        """Maps by their place in the list."""
        if self.norm_layers is not None:
            raise S2WrapError(
                f"norm_layers={self.norm_layers} of {self.name}, whose maps are made; wrap the model without "
                f"features_only, or leave it out"
            )
        maps = self._maps(tiles)
        if not all(-len(maps) <= layer < len(maps) for layer in self.layers or ()):
            raise S2WrapError(
                f"layers={self.layers}, but {self.name} returns {len(maps)} maps (out_indices="
                f"{tuple(self.model.feature_info.out_indices)}); use 0 to {len(maps) - 1}"
            )
        chosen = tuple(maps[layer] for layer in self.layers or ())
        return Features(chosen, tuple(spatial.new_zeros(len(spatial), 0, spatial.shape[1]) for spatial in chosen))

    def _maps(self, tiles: Tensor) -> list[Tensor]:
        """All maps (b, c, h, w), finest first."""
        answer = self.model(tiles)
        maps = list(answer.values() if isinstance(answer, dict) else answer)
        last = str(getattr(getattr(self.model, "output_fmt", None), "value", "NCHW"))
        return [spatial.permute(0, 3, 1, 2) for spatial in maps] if last == "NHWC" else maps


def is_features_only(model: object) -> bool:
    """Whether a model is one that timm made with `features_only=True`."""
    info = getattr(model, "feature_info", None)
    return isinstance(model, nn.Module) and hasattr(model, "pretrained_cfg") and hasattr(info, "out_indices")


def describe(backbone: Backbone) -> dict[str, Any] | None:
    """The architecture of a model, and which maps it returns."""
    if type(backbone) is not FeaturesOnlyBackbone or not backbone.model.pretrained_cfg.get("architecture"):
        return None
    model = backbone.model
    arguments = {"out_indices": list(model.feature_info.out_indices), "in_chans": backbone.input.channels}
    return {"name": model.pretrained_cfg["architecture"], "arguments": arguments}


def rebuild(description: dict[str, Any]) -> Any:
    """The model that `describe` described, with random weights."""
    import timm

    arguments = allowed(description, "out_indices", "in_chans")
    return timm.create_model(description["name"], features_only=True, **arguments)


FAMILY = Family("features_only", FeaturesOnlyBackbone, is_features_only, describe=describe, rebuild=rebuild)
