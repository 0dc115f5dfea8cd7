"""`ProbedBackbone`: any model as a `Backbone`, by looking at what it returns."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.hooks import call_as_forward, execution_device
from s2wrap.backbones.parts import numbered_maps, only_features, parts_of
from s2wrap.backbones.probe import Layout, probe
from s2wrap.backbones.processors import processor_options
from s2wrap.errors import S2WrapError, first_line
from s2wrap.features import Features
from s2wrap.inputs import ModelInput, Origin, has_values
from s2wrap.options import BackboneOptions
from s2wrap.policies import Pair

LAYERS = (nn.Conv2d, nn.Conv3d, nn.Linear)
"""Modules of which the first says in which precision a model takes images."""
NO_OPTIONS = BackboneOptions()


@dataclass(frozen=True)
class OtherSizes:
    """Which other image sizes a model takes, beside its own.

    Attributes:
        refusal: why it takes none; empty if it takes some.
        multiple_hw: height and width in pixels of which they are multiples.
    """

    refusal: str
    multiple_hw: Pair


class ProbedBackbone(Backbone):
    """Any model, whose layout is found by `probe`, in evaluation mode. What is given is taken as known and must fit.

    Families of models derive from it, and override `call` and what else they know.

    Args:
        model: takes images (b, c, H, W); returns tokens (b, n, c) or a map (b, c, h, w) or (b, h, w, c), alone or in a
            dict, tuple or dataclass. A module, or a method of one, is moved, frozen and put in evaluation mode with
            the wrapper. Into a function or lambda nobody can see: do that to the modules that it calls yourself.
        options: what the caller knows of it; goes before what the family knows.
        facts: what its family knows of it, as `BackboneOptions` names it.
        origins: for names of these facts, where they are known from, if not from the model itself.

    Raises:
        S2WrapError: no image size; the model fails on such an image, or its answer has no single reading.
    """

    model: Any

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        options: BackboneOptions = NO_OPTIONS,
        *,
        facts: BackboneOptions = NO_OPTIONS,
        origins: Mapping[str, Origin] | None = None,
    ):
        known = options.over(facts)
        name = known.name or getattr(model, "__name__", None) or type(model).__name__
        super().__init__(name, _model_input(model, name, options, facts, origins or {}), ())
        self.model, self.options = model, options
        owner = getattr(model, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None  # registered, so that it moves and freezes too
        self.output: Any = known.output
        self._other_sizes: OtherSizes | None = None
        self.layers = None if known.layers is None else tuple(known.layers)
        self.norm_layers = known.norm_layers
        self._parts_read: tuple[Layout, ...] = ()
        with self.evaluating():
            try:
                last = self._probe(known)
            except S2WrapError as error:
                if known.in_channels is not None or self.input.channels == 3:
                    raise
                # the first convolution may see rearranged pixels (space to depth), and not the image's channels
                rgb = replace(facts, in_channels=3)
                told: dict[str, Origin] = {**(origins or {}), "in_channels": "class default"}
                self.input = _model_input(model, name, options, rgb, told)
                try:
                    last = self._probe(known)
                except S2WrapError:
                    raise error from None
            self.layouts = (last,)
            if self.layers is not None:
                self.layouts = self._layer_layouts(last)

    def call(self, tiles: Tensor) -> Any:
        """The model's own feature call, in its own layout. Families override this."""
        return self.model(tiles)

    def call_layers(self, tiles: Tensor) -> Features:
        """The maps (b, c, h, w) and prefix tokens of every one of `layers`: of the maps that the model returns.

        Families that know its blocks override this.
        """
        parts = parts_of(self.call(tiles))
        if not parts:
            raise S2WrapError(
                f"layers={self.layers}: nothing is known of the blocks of {self.name}, which returns one tensor; wrap "
                f"a function that returns the features of the blocks, in a list"
            )
        if self.norm_layers is not None:
            raise S2WrapError(
                f"norm_layers={self.norm_layers}: nothing is known of the last norm of {self.name}; leave it out"
            )
        keys = numbered_maps(parts, self.layers or (), f"{self.name} returned a list")
        if not self._parts_read:
            self._parts_read = tuple(self._probe_part(key) for key in keys)
        maps, prefixes = [], []
        for key, layout in zip(keys, self._parts_read, strict=True):
            rows = round(layout.grid_hw[0] * tiles.shape[-2] / self.image_hw[0])
            maps.append(layout.spatial(parts[key], rows))
            prefixes.append(layout.prefix(parts[key]))
        return Features(tuple(maps), tuple(prefixes))

    def _probe_part(self, key: object) -> Layout:
        """How one part of the model's answer lies."""
        return probe(
            lambda tiles: parts_of(self.call(tiles))[key],
            self._black_tile(),
            name=f"{self.name}[{key!r}]",
            order=self.options.layout,
            num_prefix_tokens=self.options.num_prefix_tokens,
        )

    @property
    def _joins_parts(self) -> bool:
        """Whether its layers are parts of its answer: its family does not know of blocks."""
        return type(self).call_layers is ProbedBackbone.call_layers

    def forward(self, tiles: Tensor) -> Features:
        """Maps (b, c, rows, columns) and prefix tokens (b, p, c), one each a layer.

        Args:
            tiles: images of `image_hw` pixels; others in whole strides, if `refuses_other_sizes` is empty.
        """
        tile_hw = (tiles.shape[-2], tiles.shape[-1])
        grids = [self.grid_hw(tile_hw, layer) for layer in range(len(self.layouts))]
        try:
            answer = self._answer(tiles) if self.layers is None else self._around(self.call_layers, tiles)
        except Exception as error:
            if tile_hw == self.image_hw:
                raise
            raise S2WrapError(
                f"{self.name} failed on an image of {tile_hw[0]}×{tile_hw[1]} pixels: {first_line(error)}; use "
                f"whole=False"
            ) from error
        features = answer if isinstance(answer, Features) else self._read(answer, tile_hw, grids[0])
        for spatial, grid_hw in zip(features.maps, grids, strict=True):
            if spatial.shape[-2:] != grid_hw:
                raise S2WrapError(self._other_grid(tile_hw, f"a {spatial.shape[-2]}×{spatial.shape[-1]} map", grid_hw))
        return features

    def embeddings(self, tiles: Tensor) -> Features:
        """As `Backbone.embeddings`; S2WrapError where the model takes no tiles of another size."""
        tile_hw = (tiles.shape[-2], tiles.shape[-1])
        try:
            return super().embeddings(tiles)
        except RuntimeError as error:
            if tile_hw == self.image_hw:
                raise
            raise S2WrapError(
                f"{self.name} embeds images of {self.image_hw[0]}×{self.image_hw[1]} pixels, and failed on "
                f"{tile_hw[0]}×{tile_hw[1]}; use whole=False"
            ) from error

    @property
    def convolutional(self) -> bool:
        """Whether it is a convolutional network by its looks: convolutions, a map as answer, and no attention."""
        names = [type(module).__name__.lower() for module in self.modules()]
        has_convolutions = any(isinstance(module, nn.Conv2d) for module in self.modules())
        has_attention = any("attn" in name or "attention" in name for name in names)
        return self.layout.order == "bchw" and has_convolutions and not has_attention

    @property
    def refuses_other_sizes(self) -> str:
        """Why images of another size than `image_hw` cannot be looked at whole; empty if they can."""
        return self._tried.refusal

    @property
    def whole_multiple_hw(self) -> Pair:
        """As `Backbone.whole_multiple_hw`; that of models with windows is larger than their stride."""
        return self.stride_hw if self.refuses_other_sizes else self._tried.multiple_hw

    def __getstate__(self) -> dict[str, Any]:
        """What copies and hashes of it see: not whether it was asked yet what it refuses."""
        return self.__dict__ | {"_other_sizes": None}

    @property
    def _tried(self) -> "OtherSizes":
        if self._other_sizes is None:
            self._other_sizes = self._try_other_sizes()
        return self._other_sizes

    def _try_other_sizes(self) -> "OtherSizes":
        """Which other sizes than `image_hw` the model takes.

        Found by trying: an image one stride taller, or, for models with windows, taller by a divisor of their rows.
        Meanwhile the model takes any size (`any_size`); at its own size it must answer as before.
        """
        (height, width), (down, across) = self.image_hw, self.stride_hw
        generator = torch.Generator().manual_seed(0)
        own = torch.randn(1, self.input.channels, height, width, generator=generator, device="cpu")
        own = own.to(self.device, self.dtype)
        with self.evaluating(), torch.no_grad():
            before = self(own)
            reason = ""
            changed = self.any_size(True)
            rows, cols = height // down, width // across
            common = math.gcd(rows, cols)
            try:
                for more in (n for n in range(1, common + 1) if common % n == 0):
                    image = own.new_zeros(1, self.input.channels, (rows + more) * down, cols * across)
                    try:
                        self(image)
                    except S2WrapError as error:
                        reason = reason or str(error).removesuffix("; use whole=False")
                    else:
                        return OtherSizes(self._changes(own, before) if changed else "", (more * down, more * across))
            except Exception as error:
                reason = first_line(error)
            finally:
                if changed:
                    self.any_size(False)
            return OtherSizes(reason, self.stride_hw)

    def _changes(self, own: Tensor, before: Features) -> str:
        """Why the model may not be told to take other sizes: its answer at its own is another; empty if it is not."""
        if not has_values(own):
            return "without values, on meta or fake, nobody sees whether its answer stays the same"
        same = all(map(_close, self(own).maps, before.maps))
        return "" if same else "its answer at its own size changes when it is told to take others"

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which it takes tiles: that of its first convolution or linear layer, or of its weights."""
        for module in self.modules():
            weight = getattr(module, "weight", None) if isinstance(module, LAYERS) else None
            if isinstance(weight, Tensor) and weight.is_floating_point():
                return weight.dtype
        return next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where it computes: where its weights are, or where accelerate brings them; the CPU without any."""
        return execution_device(self.modules()) or next(
            (parameter.device for parameter in self.parameters()), torch.device("cpu")
        )

    def _probe(self, known: BackboneOptions) -> Layout:
        """The layout of the last features, found by looking."""
        return probe(
            self._answer,
            self._black_tile(),
            name=self.name,
            order=known.layout,
            num_prefix_tokens=known.num_prefix_tokens,
            grid_hw=known.grid,
            patch_hw=known.patch_size,  # pyright: ignore[reportArgumentType] (checked: a pair)
        )

    def _black_tile(self) -> Tensor:
        return torch.zeros(1, self.input.channels, *self.image_hw, device=self.device, dtype=self.dtype)

    def _around(self, call: Callable[[Tensor], Any], tiles: Tensor) -> Any:
        """The answer of a call, with what other libraries do around the model's forward."""
        return call_as_forward(self.model if isinstance(self.model, nn.Module) else self.owner, call, tiles)

    def _answer(self, tiles: Tensor) -> Any:
        """The one tensor of the model's answer that holds the features, as `output` says or as was found first."""
        answer = self._around(self.call, tiles)
        if isinstance(answer, Tensor):
            if self.options.output is not None:
                raise S2WrapError(f"output={self.output!r} has no effect: {self.name} returns one tensor; leave it out")
            return answer
        parts = parts_of(answer)
        if self.output is None:
            returned = f"{self.name} returned a {type(answer).__name__}"
            if self.layers is not None and self._joins_parts:
                self.output = numbered_maps(parts, self.layers, returned)[-1]
            else:
                self.output = only_features(parts, returned)
        if self.output not in parts:
            raise S2WrapError(
                f"output={self.output!r} is no part of what {self.name} returns; it has {', '.join(map(repr, parts))}"
            )
        return parts[self.output]

    def _read(self, answer: Tensor, tile_hw: Pair, grid_hw: Pair) -> Features:
        """The features in the model's answer, once it has as many tokens as it should."""
        rows, cols = grid_hw
        if self.layout.order == "bnc" and answer.shape[1] != self.layout.num_prefix_tokens + rows * cols:
            raise S2WrapError(self._other_grid(tile_hw, f"{answer.shape[1]} tokens", grid_hw))
        return Features((self.layout.spatial(answer, rows),), (self.layout.prefix(answer),))

    def _layer_layouts(self, last: Layout) -> tuple[Layout, ...]:
        """The layout of every layer; where the grid is that of the last features, so are the patches."""
        with torch.no_grad():
            features = self._around(self.call_layers, self._black_tile())
        layouts = []
        for spatial, prefix in zip(features.maps, features.prefixes, strict=True):
            grid_hw = (spatial.shape[-2], spatial.shape[-1])
            patch_hw = (self.image_hw[0] / grid_hw[0], self.image_hw[1] / grid_hw[1])
            layouts.append(
                replace(
                    last,
                    order="bnc" if last.order == "bnc" else "bchw",
                    num_prefix_tokens=prefix.shape[1],
                    grid_hw=grid_hw,
                    num_features=spatial.shape[1],
                    patch_hw=last.patch_hw if grid_hw == last.grid_hw else patch_hw,
                )
            )
        return tuple(layouts)

    def _other_grid(self, tile_hw: Pair, answer: str, grid_hw: Pair) -> str:
        return (
            f"{self.name} returned {answer} for an image of {tile_hw[0]}×{tile_hw[1]} pixels, where its stride makes "
            f"{grid_hw[0]}×{grid_hw[1]}; use whole=False"
        )


def _model_input(
    model: object, name: str, options: BackboneOptions, facts: BackboneOptions, told: Mapping[str, Origin]
) -> ModelInput:
    """What a model takes, from the caller, its processor, its family, its first layer; and which says what."""
    origins: dict[str, Origin] = {key: told.get(key, "model") for key in facts.changed()}
    if options.processor is not None:
        processed = replace(processor_options(options.processor), image_size=None)
        if processed.mean is None:
            raise S2WrapError(
                f"processor={type(options.processor).__name__} says no mean and std; give an image processor of "
                f"transformers, or mean= and std="
            )
        facts = processed.over(facts)
        origins |= dict.fromkeys(processed.changed(), "processor")
    known = options.over(facts)
    origins |= dict.fromkeys(options.changed(), "caller")
    if known.image_size is None:
        raise S2WrapError(f"the image size that {name} takes is unknown; pass image_size= in pixels, such as 224")
    channels = known.in_channels
    if channels is None:
        channels = _first_channels(model)
        origins["in_channels"] = "model"
    if channels is None:
        channels = len(known.mean) if known.mean else 3
        origins["in_channels"] = "caller" if known.mean else "class default"
    mean, std = (_of_channels(key, known, origins, channels) for key in ("mean", "std"))
    if (mean is None) != (std is None) and "caller" in (origins.get("mean"), origins.get("std")):
        raise S2WrapError(f"mean={mean} and std={std} of {name}: one alone has no effect; give both")
    if options.value_range is not None and mean is None:
        raise S2WrapError(
            f"value_range={options.value_range} of {name} has no effect without mean= and std=; give them"
        )
    origins["channels"], origins["image_hw"] = origins.pop("in_channels"), origins.pop("image_size")
    named = ("channels", "image_hw", "mean", "std", "value_range", "interpolation")
    return ModelInput(
        channels=channels,
        image_hw=known.image_size,  # pyright: ignore[reportArgumentType] (checked: a pair)
        mean=mean,
        std=std,
        value_range=known.value_range,
        interpolation=known.interpolation or "bicubic",
        origins={
            key: origins.get(key, "s2wrap" if key in ("interpolation", "value_range") else "unknown") for key in named
        },
    )


def _of_channels(
    key: str, known: BackboneOptions, origins: dict[str, Origin], channels: int
) -> tuple[float, ...] | None:
    """Mean or std with one number a channel; unknown where the family's is for other images than the model takes."""
    values = getattr(known, key)
    if values is None or len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    if origins[key] in ("caller", "processor"):
        raise S2WrapError(f"{key}={values} for images of {channels} channels; give {channels} numbers, one a channel")
    origins[key] = "unknown"
    return None


def _first_channels(model: object) -> int | None:
    """The channels that the first convolution of a model takes; None if it has none."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    modules = owner.modules() if isinstance(owner, nn.Module) else ()
    return next((module.in_channels for module in modules if isinstance(module, nn.Conv2d | nn.Conv3d)), None)


def _close(one: Tensor, other: Tensor) -> bool:
    """Whether two answers are the same but for rounding: another path through the same sums."""
    return bool((one - other).abs().amax() <= 1e-3 * other.abs().amax())
