"""One face for every model: `Backbone`."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import index
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from s2wrap.backbones.probe import Layout, probe
from s2wrap.errors import S2WrapError
from s2wrap.features import Features

RGB = tuple[float, float, float]


class Backbone(nn.Module):
    """A model that turns images of one size into `Features`, whatever its own layout is.

    The layout is found by `probe`, in evaluation mode. What is given here is taken as known and must fit.

    Args:
        model: takes images (b, 3, H, W); returns tokens (b, n, c) or a map (b, c, h, w) or (b, h, w, c). A module,
            or a method of one, is moved, frozen and put in evaluation mode with the wrapper. Into a function or
            lambda nobody can see: do that to the modules that it calls yourself.
        image_size: the input size in pixels that the model was made for: one side, or (height, width).
        name: a name for messages and metadata.
        layout: "bnc", "bchw" or "bhwc".
        num_prefix_tokens: leading tokens that are not spatial (CLS, registers).
        grid: rows and columns of spatial tokens.
        patch_size: pixels that a token covers (the stride), one number or (height, width).
        mean: what to subtract from RGB values in 0…1; needed for uint8 images.
        std: what to divide by after that.
        interpolation: "bicubic" or "bilinear": how images are resized.

    Raises:
        S2WrapError: the model fails on such an image, or its answer has no single reading.

    Attributes:
        image_hw: the model's own input size (height, width) in pixels; every tile has it.
        layout: the `Layout` found, with `grid_hw`, `num_prefix_tokens`, `num_features` and `patch_hw`.
    """

    model: Any

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        *,
        image_size: Any,
        name: str | None = None,
        layout: str | None = None,
        num_prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
        patch_size: float | tuple[float, float] | None = None,
        mean: Any = None,
        std: Any = None,
        interpolation: str = "bicubic",
    ):
        super().__init__()
        self.model = model
        owner = getattr(model, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None  # registered, so that it moves and freezes too
        self.name = name or getattr(model, "__name__", None) or type(model).__name__
        self.image_hw = _image_hw(image_size)
        self.mean, self.std = _rgb("mean", mean), _rgb("std", std)
        if interpolation not in ("bicubic", "bilinear"):
            raise S2WrapError(f"interpolation={interpolation!r} is unknown; use 'bicubic' or 'bilinear'")
        self.interpolation = interpolation
        image = torch.zeros(1, 3, *self.image_hw, device=self.device, dtype=self.dtype)
        with self.evaluating():
            self.layout: Layout = probe(
                self.call,
                image,
                name=self.name,
                order=layout,
                num_prefix_tokens=num_prefix_tokens,
                grid_hw=grid,
                patch_hw=(patch_size, patch_size) if isinstance(patch_size, int | float) else patch_size,
            )

    def call(self, tiles: Tensor) -> Any:
        """The model's own feature call, in its own layout. Families override this."""
        return self.model(tiles)

    def forward(self, tiles: Float[Tensor, "b 3 h w"]) -> Features:
        """Features of images of exactly `image_hw` pixels: (b, c, rows, columns) and prefix tokens (b, p, c)."""
        answer = self.call(tiles)
        return Features((self.layout.spatial(answer),), (self.layout.prefix(answer),))

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights, in which it sees tiles; float32 for a model without any."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a model without any."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode for a while; every module goes back to the mode that it was in."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def _image_hw(image_size: Any) -> tuple[int, int]:
    try:
        sides = [index(side) for side in (image_size if isinstance(image_size, tuple | list) else [image_size] * 2)]
    except TypeError:
        sides = []
    if len(sides) != 2 or not all(2 <= side <= 2**15 for side in sides):
        raise S2WrapError(
            f"image_size={image_size!r} is no image size; use one side in pixels or (height, width), "
            f"each a whole number from 2 to {2**15}"
        )
    return sides[0], sides[1]


def _rgb(name: str, values: Any) -> RGB | None:
    if values is None:
        return None
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        red = green = blue = math.nan
    if not all(map(math.isfinite, (red, green, blue))) or (name == "std" and min(red, green, blue) <= 0):
        raise S2WrapError(f"{name}={values!r} is no {name} of RGB; use three numbers{' above 0' * (name == 'std')}")
    return red, green, blue
