"""C-RADIO as torch.hub gives it: returns (summary, spatial features) and takes values in 0…1."""

from typing import Any

from torch import Tensor, nn

from s2wrap.backbones.family import Family
from s2wrap.backbones.probed import NO_OPTIONS, ProbedBackbone
from s2wrap.options import BackboneOptions


class RadioBackbone(ProbedBackbone):
    """The spatial features; the summary is of another width and is left out."""

    def __init__(self, model: Any, options: BackboneOptions = NO_OPTIONS):
        """As `ProbedBackbone`."""
        size = model.preferred_resolution
        facts = BackboneOptions(
            name=type(model).__name__,
            image_size=(int(size[0]), int(size[1])),
            num_prefix_tokens=0,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        )
        super().__init__(model, options, facts=facts)

    def call(self, tiles: Tensor) -> Tensor:
        """Tokens (b, n, c)."""
        return self.model(tiles)[1]


def matches(model: object) -> bool:
    """Whether a model says the sizes that it prefers, as RADIO does."""
    return isinstance(model, nn.Module) and hasattr(model, "preferred_resolution") and hasattr(model, "summary_idxs")


FAMILY = Family("radio", RadioBackbone, matches)
