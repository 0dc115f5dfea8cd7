"""A model that runs only its most useful tiles, whatever task calls it."""

from typing import Any

from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.wrapper import MultiScale

CALL = ("select", "by")
"""Options behind a spec that belong to a call of the model, see `MultiScale.forward`."""


class Selecting(MultiScale):
    """A model whose calls select tiles unless they say otherwise.

    Args:
        model: made by `s2wrap.load`.
        call: of `MultiScale.forward`: `select`, and `by`.

    Raises:
        S2WrapError: `by` without `select`.

    >>> import s2wrap, torch
    >>> model = Selecting(s2wrap.load("timm:test_vit@1,2", pretrained=False), {"select": 1})
    >>> int(model(torch.randn(1, 3, 320, 320)).ran[1].sum())
    1
    """

    def __init__(self, model: MultiScale, call: dict[str, Any]):
        if "select" not in call:
            raise S2WrapError(f"by={call['by']!r} says which tiles run, and select how many: give select too")
        super().__init__(model.backbone, model.options)
        self.call, self.recipe = call, model.recipe

    def forward(self, images: Any = None, **call: Any) -> Features:
        """As `MultiScale.forward`."""
        return super().forward(images, **{**self.call, **call})

    def encode(self, images: Any, **call: Any) -> list[Features]:
        """As `MultiScale.encode`."""
        return super().encode(images, **{**self.call, **call})
