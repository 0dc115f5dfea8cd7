"""A wrapped model in the place of the vision tower of a LLaVA-style model of transformers."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from s2wrap.backbones.from_transformers import TransformersBackbone
from s2wrap.errors import S2WrapError
from s2wrap.wrapper import MultiScale


class VisionTower(nn.Module):
    """A `MultiScale` with the face of a vision model of transformers: pixels in, `hidden_states` out.

    Every hidden state is the same: prefix tokens and then the fused tokens, (b, p + n, c), of the blocks that `layers`
    names: LLaVA takes hidden layer −2 and drops CLS, so wrap with `layers=(-2,)`. The grid should be that of the first
    scale (the default), so that the number of image tokens stays. The projector must take `config.hidden_size`
    channels: those of all scales with `fuse="concat"`, those of the backbone with "mean" or "detail".

    Args:
        model: wrapped from a vision model of transformers.

    Attributes:
        config: the vision model's own, with the new `hidden_size`.

    Raises:
        S2WrapError: a model that was not wrapped from one of transformers, or a pyramid.
    """

    def __init__(self, model: MultiScale):
        super().__init__()
        if not isinstance(model.backbone, TransformersBackbone):
            raise S2WrapError(f"{model.backbone.name} is none of transformers; wrap the LLaVA model or its tower")
        if model.options.fuse == "pyramid" or not model.options.join_layers:
            raise S2WrapError("a vision tower returns one sequence of tokens; wrap with join_layers=True and one map")
        self.model = model
        self.config = deepcopy(model.backbone.model.config)
        self.config.hidden_size = model.num_features
        self.blocks: int = getattr(self.config, "num_hidden_layers", 1)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.model.backbone.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.backbone.device

    def forward(self, pixel_values: Tensor, **_asked: Any) -> Any:
        """The fused tokens as transformers' `BaseModelOutputWithPooling`.

        Args:
            pixel_values: (b, 3, H, W), normalised: as large as the largest scale, for detail to be in them.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        features = self.model(pixel_values)
        tokens = torch.cat([features.prefix, features.tokens], dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=features.pooled,  # type: ignore[arg-type]  # annotated as a FloatTensor
            hidden_states=(tokens,) * (self.blocks + 1),
        )
