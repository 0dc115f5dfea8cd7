"""A wrapped model as plain tensors in, plain tensors out: what an exported graph computes."""

import copy
import fnmatch
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from s2wrap.errors import S2WrapError, first_line
from s2wrap.export.attention import open_attention
from s2wrap.export.options import GraphOptions, Output, Precision
from s2wrap.export.products import CutTiles, MergeTiles, Normalise, Spread
from s2wrap.features import Features
from s2wrap.plan import parse_image_hw
from s2wrap.policies import Pair
from s2wrap.stream import Tensors
from s2wrap.wrapper import MultiScale

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PIXEL_DTYPES = {"float32": torch.float32, "uint8": torch.uint8, "uint16": torch.uint16}
LARGEST_SIDE = 2**12
"""Pixels: the matrices of a graph are as long as the sides of the image."""


class ModelGraph(nn.Module):
    """A wrapped model on images of one size. Resizing and merging stay float32; the backbone runs in its precision.

    Attributes:
        input_name: the name of its input, "images".
        names: the names of its outputs, in order.
        outputs: the kinds of its outputs.
        geometry: for every map, where its cells lie on the image.
        model: the copy of the wrapped model that it computes.
        head: a copy of the caller's module that takes the maps, in float32; None without one.
        backbone: of that model, in its precision.
        dtype: the torch type of that precision.
    """

    input_name = "images"

    def __init__(self, model: MultiScale, options: GraphOptions):
        """A copy of a wrapped model, on the CPU.

        Args:
            model: on any device and in any precision; it is not changed.
            options: image size (at most 4096 pixels a side), precision, pixels, outputs, head and fp32_layers.

        Raises:
            S2WrapError: an image too large, integer pixels without mean and std, an output that the model does not
                have, no module of the name in fp32_layers, or a head that does not take or return what it must.
        """
        super().__init__()
        self.image_hw, self.pixels = parse_image_hw(options.image_hw or model.image_hw), options.pixels
        height, width = self.image_hw
        if max(self.image_hw) > LARGEST_SIDE:
            raise S2WrapError(
                f"images of {height}×{width} pixels are too large for one graph; use at most {LARGEST_SIDE} a side "
                f"(image_hw=, --image), or export the backbone alone (tiles)"
            )
        bounds = model.input.range_of(PIXEL_DTYPES[self.pixels])
        if bounds is not None and not model.input.normalises:
            raise S2WrapError(
                f"pixels={self.pixels!r} needs the mean and std of {model.backbone.name}, which are unknown; give "
                f"mean= and std= to wrap(), or use normalised float32 without value_range"
            )
        self.outputs = _outputs(model, options)
        self.head = None if options.head is None else _head(options.head, model.map_shapes(self.image_hw))
        self.model, self.dtype = _in_precision(model, options)
        self.backbone = self.model.backbone
        self.normalise = None if bounds is None else Normalise(self.backbone.input, bounds)
        self.placement = self.model.placement(self.image_hw)
        self.geometry = self.model.geometry(self.placement, self.image_hw)
        numbers = _numbers(len(self.geometry))
        self.names = tuple(kind + number for kind in self.outputs for number in (numbers if kind != "head" else [""]))
        self._make_products()
        self.eval()

    def _make_products(self) -> None:
        """Make the constant matrices, one set for every size of tiles."""
        plan, scales = self.placement.plan.scales, self.placement.scales
        layers = range(len(self.backbone.layouts))
        by_size: dict[Pair, list[int]] = defaultdict(list)
        for k in self.model.order:
            by_size[scales[k].tile_hw].append(k)
        self.groups = tuple(map(tuple, by_size.values()))
        self.cuts, self.merges = nn.ModuleList(), nn.ModuleList()
        for group in self.groups:
            self.cuts.append(CutTiles(self.image_hw, [plan[k] for k in group], self.backbone))
            merges = (MergeTiles([scales[k].layers[layer] for k in group]) for layer in layers)
            self.merges.append(nn.ModuleList(merges))
        self.spreads = nn.ModuleList()
        for k in self.model.order[1:] if self.model.options.fuse == "detail" else ():
            spreads = (Spread(matrices, plan[k].block_size) for matrices in scales[k].layers)
            self.spreads.append(nn.ModuleList(spreads))

    def forward(self, images: Tensor) -> Tensors:
        """The tensors that `names` names, of images (b, c, height, width), or integer pixels (b, height, width, c)."""
        if self.pixels != "float32":
            images = images.float().permute(0, 3, 1, 2)  # in this order: TensorRT cannot permute uint8
        if self.normalise is not None:
            images = self.normalise(images)
        sums: dict[int, Features] = {}
        averages: dict[int, Tensors] = {}
        dtype = self.dtype
        for group, cut, merges in zip(self.groups, self.cuts, self.merges, strict=True):
            features = self.backbone(cut(images).to(self.dtype))
            dtype = features.maps[0].dtype
            layers: Any = zip(merges, features.maps, features.prefixes, strict=True)  # pyright: ignore[reportArgumentType]
            merged = [merge(spatial, prefix) for merge, spatial, prefix in layers]
            for place, k in enumerate(group):
                maps, prefixes, means = (tuple(part[kind][place] for part in merged if part[kind]) for kind in range(3))
                sums[k], averages[k] = Features(maps, prefixes), means
        for (coarse, k), spreads in zip(pairwise(self.model.order), self.spreads, strict=False):
            sums[k] = _spread(sums[k], sums[coarse], spreads)
        features = self.add_head(self.model.fuse_sums(sums, averages, dtype))
        return tuple(tensor for kind in self.outputs for tensor in tensors_of(features, kind))

    def add_head(self, features: Features) -> Features:
        """Features with the answer of the head, if there is one."""
        if self.head is None:
            return features
        maps = (spatial.float().clone() for spatial in features.maps)  # a head may write into them
        return replace(features, heads=(self.head(*maps),))

    @property
    def multiply_adds(self) -> int:
        """Of everything but the backbone and the head, for one image."""
        groups: Any = zip(self.cuts, self.merges, strict=True)
        total = 0
        for cut, merges in groups:
            layers = zip(merges, self.backbone.layouts, strict=True)
            total += cut.multiply_adds + sum(merge.multiply_adds(layout.num_features) for merge, layout in layers)
        return total

    def example(self, batch: int) -> Tensor:
        """Images of zeros, of the shape and type that it takes."""
        dtype, channels = PIXEL_DTYPES[self.pixels], self.backbone.input.channels
        shape = (channels, *self.image_hw) if self.pixels == "float32" else (*self.image_hw, channels)
        return torch.zeros(batch, *shape, dtype=dtype)


class TilesGraph(nn.Module):
    """The backbone alone on tiles (b, c, height, width), normalised: the maps and prefix tokens it gives.

    Attributes: as of `ModelGraph`; the input is named "tiles".
    """

    input_name, pixels, head = "tiles", "float32", None

    def __init__(self, model: MultiScale, options: GraphOptions):
        """A copy of a wrapped model's backbone, on the CPU, with the precision and fp32_layers of `options`.

        Raises:
            S2WrapError: no module of the name in fp32_layers, or scales that run whole, on tiles of another size.
        """
        super().__init__()
        whole = [str(scale.scale) for scale in model.scales if scale.whole]
        if whole:
            raise S2WrapError(
                f"scale {', '.join(whole)} runs whole, not in tiles of one size; use whole=False (--tiled), or export "
                f"the whole model"
            )
        copied, self.dtype = _in_precision(model, options)
        self.backbone = copied.backbone
        self.image_hw = self.backbone.image_hw
        numbers = _numbers(len(self.backbone.layouts))
        kinds = ("spatial", "prefix") if self.backbone.layouts[-1].num_prefix_tokens else ("spatial",)
        self.names = tuple(kind + number for kind in kinds for number in numbers)
        self.eval()

    def forward(self, tiles: Tensor) -> Tensors:
        """The tensors that `names` names."""
        features = self.backbone(tiles.to(self.dtype))
        return (*features.maps, *(prefix for prefix in features.prefixes if prefix.shape[1]))

    def example(self, batch: int) -> Tensor:
        """Tiles of zeros."""
        return torch.zeros(batch, self.backbone.input.channels, *self.image_hw)


Graph = ModelGraph | TilesGraph


def make_graph(model: MultiScale, options: GraphOptions) -> Graph:
    """The graph of a model, or of its backbone alone, that the options ask for."""
    return TilesGraph(model, options) if options.tiles else ModelGraph(model, options)


def in_float32(options: GraphOptions) -> GraphOptions:
    """The options of the same graph in float32."""
    return replace(options, precision="fp32", fp32_layers=())


def _in_precision(model: MultiScale, options: GraphOptions) -> tuple[MultiScale, torch.dtype]:
    """A copy of a model on the CPU with its backbone in a precision, and that precision as a type."""
    dtype = DTYPES[options.precision]
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared).eval()  # the weights are the model's own until they are converted
    with _new_parameters():
        copied.float().cpu()
    inner, generator = copied.backbone.model, torch.Generator().manual_seed(0)
    if isinstance(inner, nn.Module):
        example = torch.rand(1, copied.input.channels, *copied.backbone.image_hw, generator=generator)
        open_attention(inner, lambda: copied.backbone(example))
    modules = dict(inner.named_modules()) if isinstance(inner, nn.Module) else {}
    wide: list[str] = []
    for pattern in options.fp32_layers:
        if not (names := fnmatch.filter(modules, pattern)):
            known = ", ".join(list(modules)[1:6])
            raise S2WrapError(f"fp32_layers={pattern!r}: {copied.backbone.name} has no such module; it has {known}, …")
        wide += names
    wide = [name for name in dict.fromkeys(wide) if not any(name.startswith(f"{other}.") for other in wide if other)]
    exact = {name: dict(_tensors(modules[name])) for name in wide}
    with _new_parameters():
        copied.backbone.to(dtype)
        for name in wide:
            _keep_wide(modules[name].float(), dtype)
    with torch.no_grad():
        for name in wide:
            for part, tensor in _tensors(modules[name]):
                tensor.copy_(exact[name][part])
    return copied, dtype


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module by name, those too that are no part of its state_dict."""
    yield from module.named_parameters()
    yield from module.named_buffers()


@contextmanager
def _new_parameters() -> Iterator[None]:
    """Within the block, a module that is converted gets new parameters: those that others share with it stay."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _keep_wide(module: nn.Module, dtype: torch.dtype) -> None:
    """Let a module of float32 weights work between neighbours of another type."""

    def widen(_module: Any, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return _cast(inputs, torch.float32), {name: _cast(value, torch.float32) for name, value in named.items()}

    module.register_forward_pre_hook(widen, with_kwargs=True)
    module.register_forward_hook(lambda _, inputs, answer: _cast(answer, dtype))


def _cast(values: Any, dtype: torch.dtype) -> Any:
    if isinstance(values, Tensor):
        return values.to(dtype) if values.is_floating_point() else values
    return type(values)(_cast(value, dtype) for value in values) if isinstance(values, tuple | list) else values


def _spread(features: Features, coarse: Features, spreads: Any) -> Features:
    """The features of a scale of detail fusion, with what the next coarser scale contributes to them."""
    layers = zip(features.maps, spreads, coarse.maps, strict=True)
    return Features(tuple(detail + spread(below) for detail, spread, below in layers), features.prefixes)


def _head(head: Any, shapes: Sequence[tuple[int, int, int]]) -> nn.Module:
    """A copy of a head in float32 on the CPU, after a try on maps of these shapes of two images, and of three."""
    if not isinstance(head, nn.Module):
        raise S2WrapError(f"head={head!r} is no torch.nn.Module; give a module that takes the maps (b, c, h, w)")
    try:
        copied = copy.deepcopy(head).float().cpu().eval()
    except Exception as error:  # as of tensors with a gradient behind them
        name = type(head).__name__
        raise S2WrapError(f"head={name} cannot be copied: {first_line(error)}; detach() its tensors") from error
    rows = set()
    for count in (2, 3):
        taken = [(count, *shape) for shape in shapes]
        called = f"head={type(head).__name__}, called with float32 maps {', '.join(map(str, taken))},"
        try:
            with torch.no_grad():
                answer: Any = copied(*map(torch.zeros, taken))
        except Exception as error:  # it is the caller's
            raise S2WrapError(f"{called} fails: {first_line(error)}") from error
        if not isinstance(answer, Tensor):
            raise S2WrapError(f"{called} returns {type(answer).__name__}; let it return one tensor")
        rows.add(answer.shape[1:])
        is_table = answer.ndim > 1 and len(answer) == count and answer.numel() > 0
        if answer.dtype != torch.float32 or not is_table or len(rows) > 1:
            raise S2WrapError(
                f"{called} returns {answer.dtype} {tuple(answer.shape)}; let it return float32 ({count}, …), of two "
                f"dimensions or more, one row of the same shape an image"
            )
    return copied


def _outputs(model: MultiScale, options: GraphOptions) -> tuple[Output, ...]:
    """The kinds of outputs, checked against what the model gives."""
    outputs = options.outputs
    has_prefix = bool(model.backbone.layouts[-1].num_prefix_tokens) and model.options.prefix != "drop"
    if outputs is None:
        return ("spatial", *(("prefix",) if has_prefix else ()), *(("head",) if options.head is not None else ()))
    if "prefix" in outputs and not has_prefix:
        raise S2WrapError(f"outputs={tuple(outputs)!r}: {model.backbone.name} gives no prefix tokens here; use spatial")
    return tuple(outputs)


def _numbers(count: int) -> list[str]:
    """What follows the name of an output: nothing where there is one of its kind."""
    return [f"_{k}" for k in range(count)] if count > 1 else [""]


def tensors_of(features: Features, kind: Output) -> Tensors:
    """The tensors of one kind of output, one a map."""
    if kind == "prefix":
        return features.prefixes
    if kind == "head":
        return features.heads
    if kind == "spatial":
        return features.maps
    if kind == "tokens":
        return tuple(spatial.flatten(2).transpose(1, 2) for spatial in features.maps)
    return tuple(spatial.float().mean(dim=(2, 3)).to(spatial.dtype) for spatial in features.maps)
