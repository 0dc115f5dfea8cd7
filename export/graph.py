"""A wrapped model as plain tensors in, plain tensors out: what an exported graph computes."""

import copy
import fnmatch
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from s2wrap.errors import S2WrapError
from s2wrap.export.products import CutTiles, MergeTiles, Spread
from s2wrap.features import Features
from s2wrap.plan import parse_image_hw
from s2wrap.policies import Pair
from s2wrap.stream import Job
from s2wrap.wrapper import MultiScale, Normalise

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OUTPUTS = ("spatial", "tokens", "prefix", "pooled")
PIXELS = ("float32", "uint8")
LARGEST_SIDE = 2**12
"""Pixels: the matrices of a graph are as long as the image's sides."""


class ModelGraph(nn.Module):
    """A wrapped model on images of one size. Resizing and merging stay float32; the backbone runs in `precision`.

    Attributes:
        input: the name of what it takes: "images".
        names: the names of what it returns, in order.
        backbone: in its precision.
        dtype: that precision as a type.
    """

    input = "images"

    def __init__(
        self,
        model: MultiScale,
        image_hw: Pair,
        *,
        precision: str = "fp32",
        pixels: str = "float32",
        outputs: Sequence[str] | None = None,
        fp32_layers: Sequence[str] = (),
    ):
        """A copy of a wrapped model, on the CPU.

        Args:
            model: on any device and in any precision; it is not changed.
            image_hw: height and width of the images in pixels, at most 4096 each.
            precision: "fp32", "fp16" or "bf16".
            pixels: "float32": images are (b, 3, height, width), normalised as for the model; "uint8": they are RGB
                pixels (b, height, width, 3) in 0…255, normalised inside.
            outputs: which of "spatial" (b, c, h, w), "tokens" (b, h·w, c), "prefix" (b, p, c) and "pooled" (b, c);
                by default spatial and, where there are any, prefix. Numbered where a model has several maps.
            fp32_layers: names of modules of the backbone, as in `named_modules()`, with * and ?, that stay float32.

        Raises:
            S2WrapError: an impossible image size, an unknown word, uint8 without mean and std, no such module.
        """
        super().__init__()
        self.image_hw, self.pixels = parse_image_hw(image_hw), pixels
        if max(self.image_hw) > LARGEST_SIDE:
            raise S2WrapError(
                f"images of {image_hw[0]}×{image_hw[1]} pixels are too large for one graph; use at most "
                f"{LARGEST_SIDE} a side, or export the backbone alone (tiles)"
            )
        if pixels not in PIXELS:
            raise S2WrapError(f"pixels={pixels!r} is unknown; use one of {', '.join(PIXELS)}")
        if pixels == "uint8" and not model.normalise.known:
            raise S2WrapError(
                f"pixels='uint8' needs the mean and std of {model.backbone.name}, which are unknown; give mean= and "
                f"std= to wrap(), or use pixels='float32'"
            )
        self.outputs = _outputs(model, outputs)
        self.model, self.dtype = _in_precision(model, precision, fp32_layers)
        self.backbone = self.model.backbone
        self.normalise = Normalise(self.backbone.mean, self.backbone.std)
        self.placement = self.model.placement(self.image_hw)
        self.names = _names(self.outputs, self.model)
        self._make_products()
        self.eval()

    @property
    def grids(self) -> list[Pair]:
        """Rows and columns of each of the model's maps."""
        if self.model.fuse == "pyramid":
            return [own_hw[0] for own_hw in self.placement.own_hw]
        return self.placement.target_hw[: 1 if self.model.join_layers else None]

    def _make_products(self) -> None:
        """The constant matrices, one set for every size of tiles."""
        plan, layers = self.placement.plan, range(len(self.backbone.layouts))
        groups: dict[Pair, list[int]] = defaultdict(list)
        for k in self.model.order:
            groups[plan.scales[k].tile_hw].append(k)
        self.groups = tuple(tuple(scales) for scales in groups.values())
        self.cuts, self.merges = nn.ModuleList(), nn.ModuleList()
        for scales in self.groups:
            self.cuts.append(CutTiles(self.image_hw, [plan.scales[k] for k in scales], self.backbone))
            levels = [[self.placement.level(k, layer) for k in scales] for layer in layers]
            self.merges.append(nn.ModuleList(map(MergeTiles, levels)))
        self.spreads = nn.ModuleList()
        for k in self.model.order[1:] if self.model.fuse == "detail" else ():
            levels = [self.placement.level(k, layer) for layer in layers]
            self.spreads.append(nn.ModuleList(Spread(level, plan.scales[k].block_size) for level in levels))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What `names` names."""
        if self.pixels == "uint8":
            images = self.normalise.pixels(images.float().permute(0, 3, 1, 2))  # TensorRT turns no uint8
        job = Job(images, self.placement, [[] for _ in self.model.scales])
        for scales, cut, merges in zip(self.groups, self.cuts, self.merges, strict=True):
            seen = self.backbone(cut(images).to(self.dtype))
            job.dtype = seen.maps[0].dtype
            of_layers: Any = zip(merges, seen.maps, seen.prefixes, strict=True)  # pyright: ignore[reportArgumentType]
            merged = [merge(*part) for merge, *part in of_layers]
            for place, k in enumerate(scales):
                maps, prefixes, averages = (
                    tuple(part[kind][place] for part in merged if part[kind]) for kind in range(3)
                )
                job.sums[k], job.averages[k] = Features(maps, prefixes), averages
        for (coarse, k), spreads in zip(pairwise(self.model.order), self.spreads, strict=False):
            self._spread(job, coarse, k, spreads)
        features = self.model.finish(job, None)
        return tuple(tensor for kind in self.outputs for tensor in tensors_of(features, kind))

    @property
    def multiply_adds(self) -> int:
        """Of everything but the backbone, for one image."""
        groups: Any = zip(self.cuts, self.merges, strict=True)
        total = 0
        for cut, merges in groups:
            layers = zip(merges, self.backbone.layouts, strict=True)
            total += cut.multiply_adds + sum(merge.multiply_adds(layout.num_features) for merge, layout in layers)
        return total

    def _spread(self, job: Job, coarse: int, k: int, spreads: Any) -> None:
        """Add to the detail of a scale what comes from the coarser one."""
        layers = zip(job.sums[k].maps, spreads, job.sums[coarse].maps, strict=True)
        maps = tuple(detail + spread(below) for detail, spread, below in layers)
        job.sums[k] = Features(maps, job.sums[k].prefixes)

    def example(self, batch: int) -> Tensor:
        """Black images, of the shape and type that it takes."""
        if self.pixels == "uint8":
            return torch.zeros(batch, *self.image_hw, 3, dtype=torch.uint8)
        return torch.zeros(batch, 3, *self.image_hw)


class TilesGraph(nn.Module):
    """The backbone alone on tiles (b, 3, height, width), normalised: the maps and prefix tokens it gives.

    Attributes: as of `ModelGraph`; the input is named "tiles".
    """

    input, pixels = "tiles", "float32"

    def __init__(self, model: MultiScale, *, precision: str = "fp32", fp32_layers: Sequence[str] = ()):
        """A copy of a wrapped model's backbone, on the CPU; see `ModelGraph`.

        Raises:
            S2WrapError: as for `ModelGraph`; scales that run whole, on tiles of another size.
        """
        super().__init__()
        whole = [str(scale) for scale, look in zip(model.scales, model.looks, strict=True) if look.whole]
        if whole:
            raise S2WrapError(
                f"scale {', '.join(whole)} runs whole, not in tiles of one size; use whole=False (--tiled), or export "
                f"the whole model"
            )
        copied, self.dtype = _in_precision(model, precision, fp32_layers)
        self.backbone = copied.backbone
        self.image_hw = self.backbone.image_hw
        numbers = _numbers(len(self.backbone.layouts))
        kinds = ("spatial", "prefix") if self.backbone.layouts[-1].num_prefix_tokens else ("spatial",)
        self.names = tuple(kind + number for kind in kinds for number in numbers)
        self.eval()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """What `names` names."""
        seen = self.backbone(tiles.to(self.dtype))
        return (*seen.maps, *(prefix for prefix in seen.prefixes if prefix.shape[1]))

    def example(self, batch: int) -> Tensor:
        """Grey tiles."""
        return torch.zeros(batch, 3, *self.image_hw)


def _in_precision(model: MultiScale, precision: str, fp32_layers: Sequence[str]) -> tuple[MultiScale, torch.dtype]:
    """A copy of a model on the CPU with its backbone in that precision, and the precision as a type."""
    if precision not in DTYPES:
        raise S2WrapError(f"precision={precision!r} is unknown; use one of {', '.join(DTYPES)}")
    copied, dtype = copy.deepcopy(model).float().cpu(), DTYPES[precision]
    inner = copied.backbone.model
    modules = dict(inner.named_modules()) if isinstance(inner, nn.Module) else {}
    wide: list[str] = []
    for pattern in fp32_layers:
        if precision == "fp32":
            raise S2WrapError(f"fp32_layers={pattern!r} with precision='fp32', where all layers are float32 already")
        if not (found := fnmatch.filter(modules, pattern)):
            known = ", ".join(list(modules)[1:6])
            raise S2WrapError(f"fp32_layers={pattern!r}: {copied.backbone.name} has no such module; it has {known}, …")
        wide += found
    wide = [name for name in dict.fromkeys(wide) if not any(name.startswith(f"{other}.") for other in wide if other)]
    exact = {name: copy.deepcopy(modules[name].state_dict()) for name in wide}
    copied.backbone.to(dtype)
    for name in wide:
        _keep_wide(modules[name].float(), dtype)
        modules[name].load_state_dict(exact[name])
    return copied, dtype


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


def _outputs(model: MultiScale, outputs: Sequence[str] | None) -> tuple[str, ...]:
    """The kinds of outputs, once they exist."""
    has_prefix = bool(model.backbone.layouts[-1].num_prefix_tokens) and model.prefix != "drop"
    if outputs is None:
        return ("spatial", "prefix") if has_prefix else ("spatial",)
    asked = tuple(outputs)
    if not asked or len(set(asked)) < len(asked) or not set(asked) <= set(OUTPUTS):
        raise S2WrapError(f"outputs={asked!r}: use some of {', '.join(OUTPUTS)}, each once")
    if "prefix" in asked and not has_prefix:
        raise S2WrapError(f"outputs={asked!r}: {model.backbone.name} gives no prefix tokens here; use spatial")
    return asked


def _names(outputs: Sequence[str], model: MultiScale) -> tuple[str, ...]:
    layers = 1 if model.join_layers else len(model.backbone.layouts)
    numbers = _numbers(len(model.scales) if model.fuse == "pyramid" else layers)
    return tuple(kind + number for kind in outputs for number in numbers)


def _numbers(count: int) -> list[str]:
    """What follows the name of an output: nothing where there is one of its kind."""
    return [f"_{k}" for k in range(count)] if count > 1 else [""]


def tensors_of(features: Features, kind: str) -> tuple[Tensor, ...]:
    """The tensors of one kind of output, one a map."""
    if kind == "prefix":
        return features.prefixes
    if kind == "spatial":
        return features.maps
    if kind == "tokens":
        return tuple(spatial.flatten(2).transpose(1, 2) for spatial in features.maps)
    return tuple(spatial.float().mean(dim=(2, 3)).to(spatial.dtype) for spatial in features.maps)
