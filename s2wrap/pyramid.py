"""`PyramidBackbone`: a wrapped model as the backbone of a detector or of a segmentation head."""

import math
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from s2wrap.errors import S2WrapError
from s2wrap.fusion import float32
from s2wrap.inputs import is_fake
from s2wrap.placement import PlacementCache
from s2wrap.policies import Pair
from s2wrap.replicas import ReplicaFeatures
from s2wrap.resample import Array, constant_when_traced, full_precision
from s2wrap.scales import whole_number
from s2wrap.wrapper import MultiScale

AxisMatrix = Tensor | None
"""(cells, rows) of one axis; None where the cells are the rows."""
Matrices = tuple[tuple[AxisMatrix, AxisMatrix], ...]
"""For each level the matrices of its rows and of its columns."""


class LevelShape(NamedTuple):
    """What a head asks of one level, by the names of detectron2's `ShapeSpec`; height and width depend on the image."""

    channels: int
    stride: int
    height: int | None = None
    width: int | None = None


class PyramidBackbone(nn.Module):
    """A wrapped model as a backbone of torchvision's, detectron2's or mmseg's kind: a map for each stride.

    The map of stride s has ⌈height/s⌉ × ⌈width/s⌉ cells, and cell (i, j) covers the pixels from (i·s, j·s) to
    ((i+1)·s, (j+1)·s) of the image that was passed, whatever the model's own grids are. Each level is resampled from
    one of the model's maps by a linear filter about the cell's centre, which widens where the level is coarser than
    the map; where both have the same cells, the map is passed on as it is.

    With `fuse="pyramid"` a level takes the map of the coarsest scale whose stride is at most its own, else of the
    finest; with another fusion all levels take the one map. The stride of a scale is that for an image of
    `model.image_hw`: let the detector resize images to about that size.

    Args:
        model: a wrapped model; frozen or not as its options say.
        out_channels: None passes the maps' own channels on; a number adds layers that are trained: a 1×1 convolution,
            a norm, a 3×3 convolution and a norm for each level.
        strides: pixels from one cell of a level to the next: powers of two, ascending. By default those of a feature
            pyramid network; levels finer than the model's own maps are smooth enlargements, and need memory.
        as_tuple: return a tuple of maps, as heads of mmseg take it, instead of a dict.

    Attributes:
        model: the wrapped model.
        out_channels: channels of every level.
        strides: of the levels, finest first.
        sources: for each level the index of the map that it takes.
        feature_info: for each level a dict of num_chs, reduction and module, as timm has it.
        size_divisibility: the largest stride, as detectron2 asks for it: images of such a multiple have whole cells.
        padding_constraints: none, as detectron2 asks for them.

    Raises:
        S2WrapError: what is no `MultiScale`, one with a map for each layer, a number of channels or strides that
            cannot be.

    >>> import timm, torch, s2wrap
    >>> model = s2wrap.wrap(timm.create_model("test_vit", num_classes=0), scales=(1, 2), fuse="pyramid")
    >>> maps = s2wrap.PyramidBackbone(model, out_channels=32)(torch.randn(1, 3, 300, 500))
    >>> [(name, tuple(level.shape)) for name, level in maps.items()]
    [('0', (1, 32, 75, 125)), ('1', (1, 32, 38, 63)), ('2', (1, 32, 19, 32)), ('3', (1, 32, 10, 16))]
    """

    def __init__(
        self,
        model: nn.Module,
        out_channels: int | None = None,
        strides: object = (4, 8, 16, 32),
        *,
        as_tuple: bool = False,
    ):
        super().__init__()
        self.model = _checked_model(model)
        self.as_tuple = as_tuple
        found = _map_strides(self.model)
        self.strides = _checked_strides(strides)
        self.sources = tuple(_source(stride, found) for stride in self.strides)
        own, width = self.model.num_features, _checked_channels(out_channels)
        self.out_channels = own if width is None else width
        levels = range(len(self.strides))
        self.reduce = nn.ModuleList(nn.Identity() if width is None else _reduction(own, width) for _ in levels)
        self.refine = nn.ModuleList(nn.Identity() if width is None else _refinement(width) for _ in levels)
        self.padding_constraints: dict[str, int] = {}
        self._placements: PlacementCache[Matrices] = PlacementCache()

    def forward(self, images: Any) -> "OrderedDict[str, Tensor] | tuple[Tensor, ...]":
        """The maps of a batch of images, finest first: (b, out_channels, ⌈height/s⌉, ⌈width/s⌉) for each stride s.

        Args:
            images: a tensor (b, c, height, width) of any size, with values as `MultiScale.forward` takes them:
                normalised, or uint8.

        Returns:
            Maps by the names "0", "1", …; with `as_tuple` a tuple of them.

        Raises:
            S2WrapError: as `MultiScale.forward`; what is no tensor.
        """
        self.model.input.check(images, self.model.backbone.name)
        maps = _maps(self.model(images))
        matrices = self._matrices_for(images)
        levels = tuple(
            refine(_resample(reduce(self._as_weights(maps[source])), *pair))
            for source, pair, reduce, refine in zip(self.sources, matrices, self.reduce, self.refine, strict=True)
        )
        return levels if self.as_tuple else OrderedDict(zip(self._names, levels, strict=True))

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """For each level its channels (`num_chs`), its stride (`reduction`) and its name (`module`)."""
        return [
            {"num_chs": self.out_channels, "reduction": stride, "module": name}
            for name, stride in zip(self._names, self.strides, strict=True)
        ]

    @property
    def size_divisibility(self) -> int:
        """The largest stride: images of such a multiple have whole cells on every level."""
        return self.strides[-1]

    def output_shape(self) -> dict[str, Any]:
        """For each level its channels and stride: detectron2's `ShapeSpec` where it is installed, else `LevelShape`."""
        try:
            from detectron2.layers import ShapeSpec  # pyright: ignore[reportMissingImports] (optional)
        except ImportError:
            ShapeSpec = LevelShape  # noqa: N806 (the name of a class)
        return {
            name: ShapeSpec(channels=self.out_channels, stride=stride)
            for name, stride in zip(self._names, self.strides, strict=True)
        }

    def extra_repr(self) -> str:
        """What a printed module says beside its parts."""
        return f"out_channels={self.out_channels}, strides={self.strides}, as_tuple={self.as_tuple}"

    @property
    def _names(self) -> list[str]:
        return [str(level) for level in range(len(self.strides))]

    def _as_weights(self, spatial: Tensor) -> Tensor:
        """A map in the precision of the trained layers, where there are any."""
        weight = next(self.reduce.parameters(), None)
        return spatial if weight is None else spatial.to(weight.dtype)

    def _matrices_for(self, images: Tensor) -> Matrices:
        """The matrices for images; made anew for images without values, whose tensors must not be kept."""
        image_hw = (images.shape[-2], images.shape[-1])
        if not torch.compiler.is_compiling() and is_fake(images):
            return self._make_matrices(image_hw)
        return _kept_matrices(self, f"{image_hw[0]}x{image_hw[1]}", str(images.device))

    def _make_matrices(self, image_hw: Pair) -> Matrices:
        """The matrices for images of this size, on the CPU."""
        grids = [(rows, columns) for _, rows, columns in self.model.map_shapes(image_hw)]
        return tuple(
            (
                _axis_matrix(grids[source][0], image_hw[0], stride),
                _axis_matrix(grids[source][1], image_hw[1], stride),
            )
            for source, stride in zip(self.sources, self.strides, strict=True)
        )


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of each cell of a map (b, c, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps of the same shape."""
        return rearrange(super().forward(rearrange(input, "b c h w -> b h w c")), "b h w c -> b c h w").contiguous()


def level_matrix(rows: int, pixels: int, stride: int) -> Array:
    """The (cells, rows) matrix that brings one axis of a map to the cells of a level.

    The map's rows divide the axis of the image evenly; cell i covers the pixels i·stride…(i+1)·stride, and has its
    centre at row c = (i + 0.5) · stride · rows / pixels − 0.5. A row's weight falls linearly with its distance from c,
    to zero at one row, or at one cell where that is wider. Centres beyond the outermost rows are moved onto these, rows
    that are not there do not count, and the weights of a cell sum to 1.

    >>> level_matrix(rows=4, pixels=32, stride=16).round(3).tolist()
    [[0.429, 0.429, 0.143, 0.0], [0.0, 0.143, 0.429, 0.429]]
    """
    step = stride * rows / pixels
    centres = ((np.arange(-(-pixels // stride)) + 0.5) * step - 0.5).clip(0, rows - 1)
    weights = (1 - np.abs(np.arange(rows) - centres[:, None]) / max(step, 1.0)).clip(min=0)
    return weights / weights.sum(axis=1, keepdims=True)


def _axis_matrix(rows: int, pixels: int, stride: int) -> AxisMatrix:
    return None if rows * stride == pixels else float32(level_matrix(rows, pixels, stride))


@constant_when_traced
def _kept_matrices(pyramid: PyramidBackbone, key: str, device: str) -> Matrices:
    """The matrices for images of the size that a key names; a trace takes them as constants."""
    height, width = map(int, key.split("x"))
    return pyramid._placements.get(key, device, lambda: pyramid._make_matrices((height, width)))


def _resample(spatial: Tensor, rows: AxisMatrix, cols: AxisMatrix) -> Tensor:
    """Rows · map · colsᵀ, computed in at least float32; the map itself where there is no matrix."""
    if rows is None and cols is None:
        return spatial
    values = spatial.to(torch.promote_types(spatial.dtype, torch.float32))
    with full_precision(values.device):
        if cols is not None:
            values = values @ cols.to(values).mT
        if rows is not None:  # a matrix on the right takes one product for all channels
            values = (values.mT @ rows.to(values).mT).mT
    return values.to(spatial.dtype).contiguous()


def _reduction(own: int, width: int) -> nn.Module:
    """The 1×1 convolution. It runs before a map is resampled, which is the same, both being linear, and less work."""
    return nn.Conv2d(own, width, 1, bias=False)


def _refinement(width: int) -> nn.Module:
    """What follows the 1×1 convolution."""
    return nn.Sequential(ChannelNorm(width), nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width))


def _maps(features: Any) -> tuple[Tensor, ...]:
    """The maps of features; inside `torch.nn.DataParallel` the model answers with `ReplicaFeatures`."""
    if isinstance(features, ReplicaFeatures):
        return tuple(tensor for name, tensor in features.items() if name.startswith("map"))
    return features.maps


def _map_strides(model: MultiScale) -> list[float]:
    """For each of a model's maps its pixels a cell, for an image of the size of the largest scale."""
    geometry = model.geometry(model.placement(model.image_hw), model.image_hw)
    return [math.sqrt(each.stride[0] * each.stride[1]) for each in geometry]


def _source(stride: int, found: list[float]) -> int:
    """The index of the coarsest map whose stride is at most that of a level, else of the finest."""
    fine_enough = [k for k, own in enumerate(found) if own <= stride]
    if fine_enough:
        return max(fine_enough, key=lambda k: found[k])
    return min(range(len(found)), key=lambda k: found[k])


def _checked_model(model: object) -> MultiScale:
    """A wrapped model; S2WrapError for anything else, and for one whose maps are of several layers."""
    if not isinstance(model, MultiScale):
        raise S2WrapError(
            f"PyramidBackbone() was given a {type(model).__name__}; give a wrapped model: s2wrap.wrap(model, "
            f"scales=(1, 2), fuse='pyramid')"
        )
    if not model.options.join_layers:
        raise S2WrapError(
            f"PyramidBackbone() was given a model with join_layers=False, with a map for each of layers="
            f"{model.backbone.layers}, and a level takes one map; wrap with join_layers=True, or with one layer"
        )
    return model


def _checked_channels(out_channels: object) -> int | None:
    width = whole_number(out_channels)
    if out_channels is not None and (width is None or width < 1):
        raise S2WrapError(
            f"out_channels={out_channels!r} is no number of channels; use 1 or more, such as 256, or None for the "
            f"model's own"
        )
    return width


def _checked_strides(strides: object) -> tuple[int, ...]:
    """Strides as they were asked for: powers of two, ascending, each once."""
    numbers = [whole_number(stride) for stride in strides] if isinstance(strides, list | tuple) else []
    known = [number for number in numbers if number is not None and number > 0 and number & (number - 1) == 0]
    if not known or len(known) < len(numbers) or known != sorted(set(known)):
        raise S2WrapError(
            f"strides={strides!r}; use powers of two, ascending, each once, such as {_nearest_strides(numbers)}"
        )
    return tuple(known)


def _nearest_strides(numbers: list[int | None]) -> tuple[int, ...]:
    """Strides that work, near to some that do not."""
    powers = {2 ** max(0, round(math.log2(number))) for number in numbers if number and number > 0}
    return tuple(sorted(powers)) or (4, 8, 16, 32)
