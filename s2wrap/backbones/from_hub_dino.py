"""DINOv2 and DINOv3 as torch.hub gives them: `forward_features` returns a dict of normed tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from s2wrap.backbones.family import IMAGENET_MEAN, IMAGENET_STD, Family
from s2wrap.backbones.probed import NO_OPTIONS, ProbedBackbone
from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.options import BackboneOptions

PATCHES = "x_norm_patchtokens"
PREFIXES = ("x_norm_clstoken", "x_norm_regtokens", "x_storage_tokens")


class HubDinoBackbone(ProbedBackbone):
    """CLS, registers and patches, all after the last norm. Takes images of any size in whole patches."""

    def __init__(self, model: Any, options: BackboneOptions = NO_OPTIONS):
        """As `ProbedBackbone`."""
        facts = BackboneOptions(
            name=type(model).__name__,
            image_size=getattr(getattr(model, "patch_embed", None), "img_size", None) or 224,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
        super().__init__(model, options, facts=facts, origins=dict.fromkeys(("mean", "std"), "library"))

    def call(self, tiles: Tensor) -> Tensor:
        """Tokens (b, p + n, c): CLS, registers, patches."""
        answer = self.model.forward_features(tiles)
        prefixes = [answer[key] for key in PREFIXES if answer.get(key) is not None]
        parts = [part[:, None] if part.ndim == 2 else part for part in prefixes]
        return torch.cat([*parts, answer[PATCHES]], dim=1)

    def call_layers(self, tiles: Tensor) -> Features:
        """The features of blocks, with their CLS token; normed, unless `norm_layers` is False."""
        blocks = len(self.model.blocks)
        numbers = [layer + blocks if layer < 0 else layer for layer in self.layers or ()]
        if not all(0 <= number < blocks for number in numbers):
            raise S2WrapError(f"layers={self.layers} are not all blocks of {self.name}, which has {blocks}")
        norm = self.norm_layers is not False
        answer = self.model.get_intermediate_layers(tiles, n=numbers, reshape=True, return_class_token=True, norm=norm)
        return Features(tuple(part[0] for part in answer), tuple(part[1][:, None] for part in answer))


def matches(model: object) -> bool:
    """Whether a model has the methods of these, and is none of timm's, which share their names."""
    methods = hasattr(model, "get_intermediate_layers") and hasattr(model, "forward_features")
    return isinstance(model, nn.Module) and methods and not hasattr(model, "pretrained_cfg")


FAMILY = Family("hub_dino", HubDinoBackbone, matches)
