"""`MultiScale`: a frozen backbone that looks at an image at several scales. The page to read first."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import Tensor
from torch.nn import functional

from s2wrap.backbones.base import Backbone
from s2wrap.best_fusion import settle_fusion
from s2wrap.errors import S2WrapError
from s2wrap.features import Features, join
from s2wrap.fusion import float32, fuse_scales, level_out, normalise_scales
from s2wrap.geometry import Geometry
from s2wrap.inputs import ModelInput, ValueCheck, is_fake
from s2wrap.notebook import html_table
from s2wrap.options import Options, Prefix
from s2wrap.placement import Placement, PlacementCache, place
from s2wrap.plan import Plan, parse_image_hw, plan_image
from s2wrap.policies import Pair
from s2wrap.replicas import gatherable
from s2wrap.resample import constant_when_traced
from s2wrap.resolve import resolve_scales
from s2wrap.select import Useful, choose_tiles
from s2wrap.stream import Job, Tensors, stream
from s2wrap.summary import summary
from s2wrap.training import TrainableModule, freeze
from s2wrap.view import View

TILES_ON_CPU = 4
"""Tiles a backbone call on a CPU: convolutions run fastest then, and transformers no slower."""
TILES_ON_GPU = 32
"""Tiles a backbone call elsewhere, at least: enough to keep a GPU busy, few enough to need little memory."""
ANY_SIZE = "any"
"""The key of matrices that no image size changes: those of stretched images."""


class MultiScale(TrainableModule):
    """A backbone that looks at an image at several scales and returns one feature grid (S², arXiv 2403.13043).

    The image is resized to each scale, larger sizes are cut into tiles of the backbone's own size, the tiles' maps
    are averaged into one grid as they arrive, and the scales are fused. Tiles of all scales go through the backbone
    in batches of `tile_batch`; memory is one such batch and the result, whatever the scales.

    A traced call (`torch.compile`, `torch.export`) makes one backbone call of all tiles; to keep batches small there,
    compile the backbone's feature call (`torch.compile(model.forward_features)`) and wrap that.
    With another fit than "stretch", every image size is a graph of its own, and PyTorch compiles 8 of them
    (`torch._dynamo.config.recompile_limit`); further sizes run eagerly, or fail with `fullgraph=True`.

    Args:
        backbone: a `Backbone`; `s2wrap.wrap` makes one of any model.
        options: see `Options`. With `whole`, and for a scale below 1, a ViT of timm interpolates its position
            embeddings, and takes other sizes from then on (`dynamic_img_size`); with `frozen`, weights lose their
            gradients, unless PEFT's adapters train. Both change the wrapped model itself, not its features at its own
            size.

    Attributes:
        backbone: the model.
        options: as given, checked, and without `fuse="auto"`: what that came to.
        scales: the scales with everything decided.
        order: indices of the scales, from the smallest to the largest.
        recipe: what `load` was given, if that made the model: `load(**recipe)` makes it again.

    Raises:
        S2WrapError: a whole scale on a backbone of one size, an option without effect.

    >>> import timm, torch, s2wrap
    >>> model = s2wrap.wrap(timm.create_model("test_vit", num_classes=0), scales=(1, 2))
    >>> features = model(torch.randn(2, 3, 320, 320))
    >>> features.spatial.shape, features.prefix.shape
    (torch.Size([2, 128, 10, 10]), torch.Size([2, 1, 128]))
    """

    def __init__(self, backbone: Backbone, options: Options):
        super().__init__()
        self.backbone, self.options = backbone, settle_fusion(options, backbone)
        self.scales = resolve_scales(self.options, backbone)
        self.order = tuple(sorted(range(len(self.scales)), key=lambda k: self.scales[k].box_hw))
        self.recipe: dict[str, Any] | None = None
        self._placements: PlacementCache[Placement] = PlacementCache()
        self._check_values = ValueCheck(backbone.input, backbone.name)
        if any(scale.whole for scale in self.scales):
            backbone.any_size(True)
        self.prepare(backbone.image_hw)
        if options.frozen:
            freeze(self)
            self.eval()

    if TYPE_CHECKING:  # nn.Module's own call returns Any

        def __call__(
            self,
            images: object = None,
            *,
            pixel_values: object = None,
            select: SupportsIndex | None = None,
            by: Useful = "detail",
        ) -> Features:
            """As `forward`."""
            ...

    def forward(
        self,
        images: object = None,
        *,
        pixel_values: object = None,
        select: SupportsIndex | None = None,
        by: Useful = "detail",
    ) -> Features:
        """The features of a batch of images of one size, or of one picture.

        Args:
            images: a tensor (b, c, height, width) of any size, each side at least 2 pixels: floating values as the
                backbone expects them (normalised), or in `value_range` where that option was given; uint8 in 0…255 or
                uint16, which are normalised with the backbone's mean and std. Or one picture: a path, a PIL image or
                an array (height, width, c). Or what an image processor of transformers returns.
            pixel_values: the same by the name of transformers: `model(**processor(pictures))`.
            select: how many of the finer scales' tiles to run for each image: the most useful ones; the others are
                filled from the smallest scale. All if None.
            by: what is useful: "detail", "saliency", or a function, see `s2wrap.select`.

        Raises:
            S2WrapError: another shape or type, no images, values that cannot be right (on a GPU only those of the
                first batch are looked at: each look would stall it), more tiles selected than there are.
        """
        if (images is None) == (pixel_values is None):
            raise S2WrapError("give images or pixel_values: one of them")
        images = self._batch(pixel_values if images is None else images)
        if torch.compiler.is_compiling():
            if select is not None:
                raise S2WrapError(f"select={select!r} depends on the image, and cannot be traced; use select=None")
            return self._fused(next(stream([self._job(images)], self.backbone, None)))
        tile_batch = self.tile_batch_for(len(images), images.device)
        try:
            return join(list(self._run(images.split(tile_batch), tile_batch, select, by)))
        except RuntimeError as error:
            if images.device == self.device:
                raise
            raise S2WrapError(
                f"images are on {images.device}, and {self.backbone.name} computes on {self.device}; give "
                f"images.to({str(self.device)!r}), or move the model"
            ) from error

    def encode(self, images: object, *, select: SupportsIndex | None = None, by: Useful = "detail") -> list[Features]:
        """The features of images of any sizes, one `Features` (of a batch of one) each.

        Tiles of all images share backbone calls. Images are read one after the other, so that memory holds few.

        Args:
            images: a sequence, or any iterable, of paths, PIL images, arrays (height, width, c) or (height, width), or
                tensors (c, height, width) with values as for `forward`; or one of these.
            select: as for `forward`.
            by: as for `forward`.

        Raises:
            S2WrapError: as for `forward`, with the number of the image; a folder.
        """
        from s2wrap.images import as_pictures

        tile_batch = self.tile_batch_for(1, self.device)
        return list(self._run(self._read(as_pictures(images)), tile_batch, select, by))

    def encode_image(self, images: object, *, normalize: bool = False) -> Tensor:
        """Image embeddings (b, d), a row for each image, to compare with the embeddings of text (open_clip models).

        Every tile is embedded as the model's own `encode_image` does. A scale's embedding is the average of those of
        its tiles, by the image area that each answers for; the result is the average over the scales (with
        `fuse="weighted"`, by `weights`), whatever `fuse` is: joining channels would leave the text's space. The
        embedding is a linear projection, so this is the projection of the averaged features.

        Args:
            images: a batch of one size (b, c, height, width), as for `forward`; or pictures of any sizes, as for
                `encode`.
            normalize: divide by the length at the end.

        Raises:
            S2WrapError: as for `forward`, or as for `encode`; no images, a backbone without such embeddings.
        """
        from s2wrap.images import as_pictures

        pictures = as_pictures(images)
        if isinstance(pictures, Tensor):
            batch = self._batch(pictures)
            tile_batch = self.tile_batch_for(len(batch), batch.device)
            groups: Iterable[Tensor] = batch.split(tile_batch)
        else:
            tile_batch = self.tile_batch_for(1, self.device)
            groups = self._read(pictures)
        weights = self.options.weights or [1 / len(self.scales)] * len(self.scales)
        parts = []
        for job in stream(map(self._job, groups), self.backbone, tile_batch, self.backbone.embeddings):
            scales = torch.stack([job.sums[k].prefixes[0][:, 0] for k in range(len(self.scales))])
            parts.append(torch.einsum("kbd,k->bd", scales, scales.new_tensor(weights)).to(job.dtype))
        if not parts:
            raise S2WrapError("encode_image() was given no images; give at least one")
        embeddings = torch.cat(parts)
        return functional.normalize(embeddings, dim=-1) if normalize else embeddings

    def save(self, folder: str | Path, *, overwrite: bool = False, rebuild: bool = True) -> None:
        """Write the model into a folder, from which `s2wrap.load(folder)` makes it again: the same numbers to the bit.

        The folder holds the weights in their own precision (safetensors), and `s2wrap.json`: options, input, how the
        backbone is made again, versions. Before it is written, a second backbone is made by that, and must compute
        the same. Not kept: which weights have gradients, the device, memory formats such as channels_last.

        Args:
            folder: is made; written whole or not at all.
            overwrite: replace a saved model that is there already.
            rebuild: keep how the backbone is made again, for models of timm, transformers, torchvision and open_clip
                in their own architectures, and those of `load`. False for all others: then the model is given when it
                is loaded, `s2wrap.load(folder, backbone=my_model)`.

        Raises:
            S2WrapError: a backbone that cannot be made again, a policy that is a function of yours, something that is
                there already, a disk that cannot be written to.
        """
        from s2wrap.saving import save

        save(self, folder, overwrite=overwrite, rebuild=rebuild)

    def transform(self, image_hw: Pair | None = None) -> Any:
        """What a DataLoader does to pictures before the model sees them, as a transform of torchvision (v2).

        A PIL image or uint8 array is read as `encode` does it (turned by its EXIF data, transparency on white, 16-bit
        grey scaled), and becomes a tensor (c, height, width), normalised with the model's mean and std:
        `model(transform(picture)[None])` gives what `model.encode([picture])[0]` does. Labels and other parts of a
        sample are passed by. It can be sent to worker processes.

        Args:
            image_hw: resize pictures to this height and width in pixels, whatever their shape, with the model's
                interpolation, antialiased, so that they make batches. The scales are then made of the resized
                picture: choose at least the size of the largest scale, to lose no detail.

        Raises:
            S2WrapError: mean and std are unknown; no image size.
        """
        from s2wrap.transform import picture_transform

        return picture_transform(self.input, self.backbone.name, image_hw)

    def plan(self, image_hw: Pair) -> Plan:
        """The sizes and tiles at which an image of this height and width in pixels is looked at."""
        backbone = self.backbone
        return plan_image(
            image_hw,
            self.scales,
            tile_hw=backbone.image_hw,
            patch_hw=backbone.stride_hw,
            overlap=self.options.overlap,
        )

    def prepare(self, image_hw: Pair) -> "MultiScale":
        """Make the matrices for images of this size beforehand: the first call is then as quick as others."""
        self.placement(parse_image_hw(image_hw))
        return self

    def placement(self, image_hw: Pair, device: str = "cpu") -> Placement:
        """The matrices for images of this height and width, on a device; kept for the next call."""
        stretched = all(scale.fit == "stretch" for scale in self.scales)
        return _placement(self, ANY_SIZE if stretched else f"{image_hw[0]}x{image_hw[1]}", device)

    def make_placement(self, image_hw: Pair) -> Placement:
        """The matrices for images of this size, made anew on the CPU."""
        return place(self.plan(image_hw), self.backbone, self.options, self.order)

    def tile_batch_for(self, count: int, device: torch.device) -> int:
        """The most tiles in one backbone call, for that many images on a device."""
        return self.options.tile_batch or (TILES_ON_CPU if device.type == "cpu" else max(count, TILES_ON_GPU))

    @property
    def input(self) -> ModelInput:
        """What the model takes: channels, size, mean, std, value range; and where each is known from."""
        return self.backbone.input

    @property
    def image_hw(self) -> Pair:
        """Height and width in pixels of its largest scale: the size of images that lose no detail and gain none."""
        heights, widths = zip(*(scale.box_hw for scale in self.scales), strict=True)
        return max(heights), max(widths)

    @property
    def device(self) -> torch.device:
        """Where the backbone computes."""
        return self.backbone.device

    @property
    def lacks_cls(self) -> str:
        """Why the first prefix token of its features is no CLS token; empty if it is."""
        if not self.backbone.lacks_cls and self.options.prefix == "drop":
            return f"prefix='drop' leaves out the CLS token of {self.backbone.name}"
        return self.backbone.lacks_cls

    @property
    def num_features(self) -> int:
        """Channels of the result (of each level, for a pyramid); of all layers together."""
        widths = [layout.num_features for layout in self.backbone.layouts]
        return sum(widths) * (len(self.scales) if self.options.fuse == "concat" else 1)

    def map_shapes(self, image_hw: Pair) -> list[tuple[int, int, int]]:
        """Channels, rows and columns of each of the maps of an image of this size."""
        widths = [layout.num_features for layout in self.backbone.layouts]
        joined = len(self.scales) if self.options.fuse == "concat" else 1
        geometry = self.geometry(self.placement(parse_image_hw(image_hw)), image_hw)
        channels = [self.num_features if each.layer is None else widths[each.layer] * joined for each in geometry]
        return [(count, *each.grid) for count, each in zip(channels, geometry, strict=True)]

    def grids(self, image_hw: Pair) -> tuple[list[Pair], Pair]:
        """Rows and columns of each scale's own grid, and of the result, for an image of this size; last layer."""
        placement = self.placement(parse_image_hw(image_hw))
        return [scale.own_hw[-1] for scale in placement.scales], placement.target_hw[-1]

    @property
    def grids_hw(self) -> tuple[Pair, ...]:
        """Rows and columns of each scale's own grid, for an image of the backbone's own shape."""
        return tuple(self.grids(self.backbone.image_hw)[0])

    def geometry(self, placement: Placement, image_hw: Pair) -> tuple[Geometry, ...]:
        """Where the cells of each map lie on an image of this size."""
        joined = self.options.join_layers
        layers = [None] if joined else list(range(len(self.backbone.layouts)))
        if self.options.fuse == "pyramid":
            return tuple(
                Geometry(scale.own_hw[layer or 0], image_hw, scale=k, layer=layer)
                for layer in layers
                for k, scale in enumerate(placement.scales)
            )
        return tuple(Geometry(placement.target_hw[layer or 0], image_hw, layer=layer) for layer in layers)

    def _replicate_for_data_parallel(self) -> "MultiScale":
        """A replica for `torch.nn.DataParallel`, whose features can be gathered."""
        return gatherable(super()._replicate_for_data_parallel())

    def __repr__(self) -> str:
        return "\n".join(["MultiScale(", *(f"  {name}: {text}" for name, text in summary(self).items()), ")"])

    def _repr_html_(self) -> str:
        return html_table("MultiScale", [], summary(self).items())

    def _batch(self, images: object) -> Tensor:
        """A checked batch (b, c, h, w) of whatever a call was given."""
        if not isinstance(images, Tensor):
            from s2wrap.images import as_batch

            images = as_batch(images, self.input.channels, self.input.value_range).to(self.device)
        self.input.check(images, self.backbone.name)
        if not torch.compiler.is_compiling():
            self._check_values(images)
        return images

    def _run(
        self, groups: Iterable[Tensor], tile_batch: int, select: SupportsIndex | None, by: Useful
    ) -> Iterator[Features]:
        """The features of groups of images of one size each: one a group, one an image with `select`."""
        if select is None:
            for job in stream(map(self._job, groups), self.backbone, tile_batch):
                yield self._viewed(job, job.ran(None))
            return
        groups = iter(groups)
        while window := list(islice(groups, tile_batch)):
            first = [self._job(images, base_only=True) for images in window]
            jobs = [job for seen in stream(first, self.backbone, tile_batch) for job in self._select(seen, select, by)]
            for job in stream(jobs, self.backbone, tile_batch):
                yield self._viewed(job, job.ran(self.order[0]))

    def _job(self, images: Tensor, *, base_only: bool = False) -> Job:
        """Images of one size, and the tiles to look at: all, or those of the smallest scale."""
        placement = self._placement_for(images)
        todo = [
            [] if base_only and k != self.order[0] else list(range(len(scale.origins)))
            for k, scale in enumerate(placement.scales)
        ]
        if base_only:  # tiles are chosen by the images themselves
            return Job(self.input.normalise(images, placement.mean_std), placement, todo, selects=True)
        return Job(images, placement, todo, bounds=self.input.range_of(images.dtype))

    def _placement_for(self, images: Tensor) -> Placement:
        """The matrices for images; made anew for images without values, whose tensors must not be kept."""
        image_hw = (images.shape[-2], images.shape[-1])
        if not torch.compiler.is_compiling() and is_fake(images):
            return self.make_placement(image_hw)
        return self.placement(image_hw, str(images.device))

    def _select(self, seen: Job, select: SupportsIndex, by: Useful) -> list[Job]:
        """For each image of a job whose smallest scale was seen: a job for its most useful tiles."""
        todo = choose_tiles(seen.images, seen.base, seen.placement.plan, self.order[0], select, by)
        jobs = [seen.only(image, tiles) for image, tiles in enumerate(todo)]
        for job in jobs:
            job.fill()
        return jobs

    def _viewed(self, job: Job, ran: Tensors) -> Features:
        """The features of a job, and how its images were looked at."""
        height, width = job.images.shape[-2:]
        plan = replace(job.placement.plan, image_hw=(height, width))
        boxes = tuple(float32(scale.boxes * [width, height, width, height]) for scale in job.placement.scales)
        view = View(plan, self.geometry(job.placement, plan.image_hw), boxes, ran)
        return replace(self._fused(job), view=view)

    def _fused(self, job: Job) -> Features:
        """The features of a job, from the sums of its scales."""
        return self.fuse_sums(job.sums, job.averages, job.dtype)

    def fuse_sums(self, sums: dict[int, Features], averages: dict[int, Tensors], dtype: torch.dtype) -> Features:
        """The features of images from what the tiles of each scale came to.

        Args:
            sums: for each scale a map and prefix tokens a layer, on the grid of the result or on its own.
            averages: for each scale the average feature (b, c, 1, 1) a layer, for detail fusion only.
            dtype: the precision of the result.
        """
        layers = [self._fuse_layer(layer, sums, averages, dtype) for layer in range(len(self.backbone.layouts))]
        if len(layers) == 1:
            return layers[0]
        if self.options.join_layers:
            maps = tuple(torch.cat(parts, dim=1) for parts in zip(*(part.maps for part in layers), strict=True))
            prefixes = tuple(torch.cat(parts, dim=2) for parts in zip(*(part.prefixes for part in layers), strict=True))
            return Features(maps, prefixes)
        maps = tuple(spatial for part in layers for spatial in part.maps)
        return Features(maps, tuple(prefix for part in layers for prefix in part.prefixes))

    def _fuse_layer(
        self, layer: int, sums: dict[int, Features], averages: dict[int, Tensors], dtype: torch.dtype
    ) -> Features:
        """The scales of one layer as one, with the prefix tokens asked for."""
        seen = [sums[k] for k in range(len(self.scales))]
        levels = [Features((level.maps[layer],), (level.prefixes[layer],)) for level in seen]
        levels = normalise_scales(levels, self.options.norm, self.order[0])
        base = levels[self.order[0]].prefix.to(dtype)
        if self.options.fuse == "detail":
            spatial = level_out(levels[self.order[-1]].spatial, [averages[k][layer] for k in self.order])
            features = Features((spatial.to(dtype),), (base,))
        else:
            levels = [Features((level.spatial.to(dtype),), (level.prefix.to(dtype),)) for level in levels]
            features = fuse_scales(levels, self.options.fuse, self.options.weights)
        return features if self.options.prefix == "area" else _with_prefix(features, base, self.options.prefix)

    def _read(self, images: Iterable[object]) -> Iterator[Tensor]:
        """Images of any kind as checked batches of one."""
        from s2wrap.images import as_image

        for number, image in enumerate(images):
            try:
                yield self._batch(as_image(image, self.input.channels, self.input.value_range)[None].to(self.device))
            except S2WrapError as error:
                raise S2WrapError(f"image {number}: {error}") from error


@constant_when_traced
def _placement(model: MultiScale, key: str, device: str) -> Placement:
    """The matrices for images of the size that a key names; a trace takes them as constants."""
    image_hw = model.backbone.image_hw
    if key != ANY_SIZE:
        height, width = key.split("x")
        image_hw = (int(height), int(width))
    return model._placements.get(key, device, lambda: model.make_placement(image_hw))


def largest_hw(models: Iterable[MultiScale]) -> Pair:
    """The one image size at which several models can be compared: of the largest scale of all."""
    heights, widths = zip(*(model.image_hw for model in models), strict=True)
    return max(heights), max(widths)


def _with_prefix(features: Features, base: Tensor, prefix: Prefix) -> Features:
    """Features with the prefix tokens of the smallest scale, or with none."""
    kept = base if prefix == "base" else base[:, :0]
    return Features(features.maps, (kept,) * len(features.maps))
