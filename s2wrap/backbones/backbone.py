"""One face for every model: `Backbone`."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from functools import cached_property
from itertools import pairwise
from operator import index
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from s2wrap.backbones.probe import Layout, describe, probe
from s2wrap.errors import S2WrapError
from s2wrap.features import Features

RGB = tuple[float, float, float]


class Backbone(nn.Module):
    """A model that turns images of one size into `Features`, whatever its own layout is.

    The layout is found by `probe`, in evaluation mode. What is given here is taken as known and must fit.

    Args:
        model: takes images (b, 3, H, W); returns tokens (b, n, c) or a map (b, c, h, w) or (b, h, w, c), alone or in a
            dict, tuple or dataclass. A module, or a method of one, is moved, frozen and put in evaluation mode with
            the wrapper. Into a function or lambda nobody can see: do that to the modules that it calls yourself.
        image_size: the input size in pixels that the model was made for: one side, or (height, width).
        name: a name for messages and metadata.
        output: which part of the answer holds the features, where it has several: a key, index or attribute.
        layout: "bnc", "bchw" or "bhwc".
        num_prefix_tokens: leading tokens that are not spatial (CLS, registers).
        grid: rows and columns of spatial tokens.
        patch_size: pixels that a token covers (the stride), one number or (height, width).
        mean: what to subtract from RGB values in 0…1; needed for uint8 images.
        std: what to divide by after that.
        interpolation: "bicubic" or "bilinear": how images are resized.
        layers: blocks whose features are wanted instead of the last ones: increasing indices, negative ones from the
            end. timm, open_clip, transformers and torch.hub DINO models tell them.

    Raises:
        S2WrapError: the model fails on such an image, or its answer has no single reading.

    Attributes:
        image_hw: the model's own input size (height, width) in pixels; every tile has it.
        layout: the `Layout` found, with `grid_hw`, `num_prefix_tokens`, `num_features` and `patch_hw`.
        layouts: one a layer; `layout` alone without `layers`.
    """

    model: Any

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        *,
        image_size: Any,
        name: str | None = None,
        output: Any = None,
        layout: str | None = None,
        num_prefix_tokens: int | None = None,
        grid: tuple[int, int] | None = None,
        patch_size: float | tuple[float, float] | None = None,
        mean: Any = None,
        std: Any = None,
        interpolation: str = "bicubic",
        layers: Any = None,
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
        self.output = output
        self.layers = _layers(layers)
        image = torch.zeros(1, 3, *self.image_hw, device=self.device, dtype=self.dtype)
        with self.evaluating():
            self.layout: Layout = probe(
                self._answer,
                image,
                name=self.name,
                order=layout,
                num_prefix_tokens=num_prefix_tokens,
                grid_hw=grid,
                patch_hw=(patch_size, patch_size) if isinstance(patch_size, int | float) else patch_size,
            )
            self.layouts: tuple[Layout, ...] = self._layer_layouts(image)

    def call(self, tiles: Tensor) -> Any:
        """The model's own feature call, in its own layout. Families override this."""
        return self.model(tiles)

    def call_layers(self, tiles: Tensor) -> Features:
        """The maps (b, c, h, w) and prefix tokens of every one of `layers`. Families that can override this."""
        raise S2WrapError(
            f"layers={self.layers}: nothing is known of the blocks of {self.name}; wrap a function that returns the "
            f"features of one block"
        )

    def embed(self, tiles: Tensor) -> Tensor:
        """The image embeddings (b, d) that text is compared with. Families that have such a space override this."""
        raise S2WrapError(f"{self.name} has no embeddings that text is compared with; wrap a model of open_clip")

    def any_size(self, allow: bool) -> bool:
        """Let the model take other image sizes, or no longer; whether that changed anything. Families override this."""
        return False

    def forward(self, tiles: Float[Tensor, "b 3 h w"]) -> Features:
        """Maps (b, c, rows, columns) and prefix tokens (b, p, c), one each a layer.

        Args:
            tiles: images of `image_hw` pixels; others in whole strides, if `refuses_other_sizes` is empty.
        """
        tile_hw = (tiles.shape[-2], tiles.shape[-1])
        grids = [self.grid_hw(tile_hw, layer) for layer in range(len(self.layouts))]
        try:
            answer = self._answer(tiles) if self.layers is None else self.call_layers(tiles)
        except Exception as error:
            if tile_hw == self.image_hw:
                raise
            raise S2WrapError(
                f"{self.name} failed on an image of {tile_hw[0]}×{tile_hw[1]} pixels: {type(error).__name__}: "
                f"{str(error).partition(chr(10))[0]}; use whole=False"
            ) from error
        if isinstance(answer, Features):
            features = answer
        else:
            rows, cols = grids[0]
            if self.layout.order == "bnc" and answer.shape[1] != self.layout.num_prefix_tokens + rows * cols:
                raise S2WrapError(self._other_grid(tile_hw, f"{answer.shape[1]} tokens", grids[0]))
            features = Features((self.layout.spatial(answer, rows),), (self.layout.prefix(answer),))
        for spatial, grid_hw in zip(features.maps, grids, strict=True):
            if spatial.shape[-2:] != grid_hw:
                raise S2WrapError(self._other_grid(tile_hw, f"a {spatial.shape[-2]}×{spatial.shape[-1]} map", grid_hw))
        return features

    def grid_hw(self, tile_hw: tuple[int, int], layer: int = 0) -> tuple[int, int]:
        """Rows and columns of tokens for an image of this size."""
        layout = self.layouts[layer]
        if tile_hw == self.image_hw:
            return layout.grid_hw
        stride_h, stride_w = layout.stride_hw(self.image_hw)
        return tile_hw[0] // stride_h, tile_hw[1] // stride_w

    @property
    def stride_hw(self) -> tuple[int, int]:
        """Pixels between tokens, of the coarsest layer: whole images have a multiple of it."""
        rows, cols = zip(*(layout.stride_hw(self.image_hw) for layout in self.layouts), strict=True)
        return max(rows), max(cols)

    @property
    def convolutional(self) -> bool:
        """Whether it is a convolutional network by its looks: convolutions, a map as answer, and no attention."""
        names = [type(module).__name__.lower() for module in self.modules()]
        has_convolutions = any(isinstance(module, nn.Conv2d) for module in self.modules())
        has_attention = any("attn" in name or "attention" in name for name in names)
        return self.layout.order == "bchw" and has_convolutions and not has_attention

    @cached_property
    def refuses_other_sizes(self) -> str:
        """Why images of another size than `image_hw` cannot be looked at whole; empty if they can.

        Found by trying: an image one stride taller, or, for models with windows, twice as tall. The model may be told
        to take any size (`any_size`); at its own size it must answer as before.
        """
        (height, width), (down, across) = self.image_hw, self.stride_hw
        generator = torch.Generator().manual_seed(0)
        own = torch.randn(1, 3, height, width, generator=generator).to(self.device, self.dtype)
        with self.evaluating(), torch.no_grad():
            before = self(own)
            reason = ""
            changed = self.any_size(True)
            try:
                for taller in (height // down + 1, 2 * height // down):
                    image = own.new_zeros(1, 3, taller * down, width // across * across)
                    try:
                        self(image)
                    except S2WrapError as error:
                        reason = reason or str(error).removesuffix("; use whole=False")
                    else:
                        if not changed or all(map(_close, self(own).maps, before.maps)):
                            return ""
                        reason = "its answer at its own size changes when it is told to take others"
            except Exception as error:
                reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            if changed:
                self.any_size(False)
            return reason

    def _answer(self, tiles: Tensor) -> Any:
        """The one tensor of the model's answer that holds the features, as `output` says or as was found first."""
        answer = self.call(tiles)
        if isinstance(answer, Tensor):
            return answer
        parts = _parts(answer)
        if self.output is None:
            self.output = _only_features(parts, f"{self.name} returned a {type(answer).__name__}")
        if self.output not in parts:
            raise S2WrapError(
                f"output={self.output!r} is no part of what {self.name} returns; it has {', '.join(map(repr, parts))}"
            )
        return parts[self.output]

    def _layer_layouts(self, image: Tensor) -> tuple[Layout, ...]:
        """The layout of every layer; where the grid is that of the last features, so are the patches."""
        if self.layers is None:
            return (self.layout,)
        with torch.no_grad():
            features = self.call_layers(image)
        found = []
        for spatial, prefix in zip(features.maps, features.prefixes, strict=True):
            grid_hw = (spatial.shape[-2], spatial.shape[-1])
            patch_hw = (self.image_hw[0] / grid_hw[0], self.image_hw[1] / grid_hw[1])
            found.append(
                replace(
                    self.layout,
                    order="bnc" if self.layout.order == "bnc" else "bchw",
                    num_prefix_tokens=prefix.shape[1],
                    grid_hw=grid_hw,
                    num_features=spatial.shape[1],
                    patch_hw=self.layout.patch_hw if grid_hw == self.layout.grid_hw else patch_hw,
                )
            )
        return tuple(found)

    def _other_grid(self, tile_hw: tuple[int, int], found: str, grid_hw: tuple[int, int]) -> str:
        return (
            f"{self.name} returned {found} for an image of {tile_hw[0]}×{tile_hw[1]} pixels, where its stride "
            f"makes {grid_hw[0]}×{grid_hw[1]}; use whole=False"
        )

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


class Embedder(Backbone):
    """A backbone of which only the image embedding is asked: a prefix token, beside a map of one empty channel."""

    def __init__(self, backbone: Backbone):
        nn.Module.__init__(self)
        vars(self).update(vars(backbone))  # the same modules, sizes and layouts
        self.of = backbone.embed

    def forward(self, tiles: Tensor) -> Features:
        """The embeddings (b, 1, d) in place of prefix tokens."""
        tile_hw = (tiles.shape[-2], tiles.shape[-1])
        try:
            embeddings = self.of(tiles)[:, None]
        except RuntimeError as error:
            if tile_hw == self.image_hw:
                raise
            raise S2WrapError(
                f"{self.name} embeds images of {self.image_hw[0]}×{self.image_hw[1]} pixels, and failed on "
                f"{tile_hw[0]}×{tile_hw[1]}; use whole=False"
            ) from error
        grids = [self.grid_hw(tile_hw, layer) for layer in range(len(self.layouts))]
        return Features(tuple(tiles.new_zeros(len(tiles), 1, *grid) for grid in grids), (embeddings,) * len(grids))


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two answers are the same but for rounding: another path through the same sums."""
    return bool((one - other).abs().amax() <= 1e-3 * other.abs().amax())


def _parts(answer: Any) -> dict[Any, Any]:
    """The parts of a dict, tuple, list or dataclass by key, index or field; empty for anything else."""
    if isinstance(answer, Mapping):  # dicts, and the outputs of transformers
        return dict(answer)
    if hasattr(answer, "_asdict"):
        return answer._asdict()
    if isinstance(answer, tuple | list):
        return dict(enumerate(answer)) | ({-1: answer[-1]} if answer else {})
    return dict(vars(answer)) if is_dataclass(answer) else {}


def _only_features(parts: dict[Any, Any], returned: str) -> Any:
    """The key of the only part that can hold features: tokens or a map. Raises S2WrapError for several, or none."""
    shapes = {key: describe(part) for key, part in parts.items() if key != -1}
    found = [
        key
        for key, part in parts.items()
        if key != -1 and isinstance(part, Tensor) and part.is_floating_point() and part.ndim in (3, 4)
    ]
    if len(found) != 1:
        seen = " of " + ", ".join(f"{key!r}: {shape}" for key, shape in shapes.items()) if shapes else ""
        remedy = f"pass output={found[0]!r}, or another of these" if found else "wrap a model that returns features"
        raise S2WrapError(
            f"{returned}{seen}; s2wrap needs one tensor (b, n, c), (b, c, h, w) or (b, h, w, c): {remedy}"
        )
    return found[0]


def _layers(layers: Any) -> tuple[int, ...] | None:
    """The indices of blocks asked for."""
    if layers is None:
        return None
    try:
        numbers = tuple(index(layer) for layer in layers)
    except TypeError:
        numbers = ()
    increasing = all(first < second for first, second in pairwise(numbers))
    if not numbers or not increasing or numbers[0] < 0 <= numbers[-1]:
        raise S2WrapError(
            f"layers={layers!r} names no layers; use increasing indices such as (5, 11), or (-7, -1) from the end"
        )
    return numbers


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
