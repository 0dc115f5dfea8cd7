"""Tiles in, sums out: the tiles of many images and scales go through the backbone in full batches, one stream."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

from s2wrap.backbones.base import Backbone
from s2wrap.features import Features, join
from s2wrap.fusion import correct_tiles, float32, merge_tiles
from s2wrap.inputs import normalise_values
from s2wrap.placement import Placement
from s2wrap.policies import Pair
from s2wrap.resample import resize

Tensors = tuple[Tensor, ...]


@dataclass
class Job:
    """Images of one size, which of their tiles to run, and what was seen so far.

    Attributes:
        images: (b, c, height, width).
        placement: the matrices for their size, on their device.
        todo: [scale] indices of the tiles to run.
        sums: [scale] what its tiles make on its grid: a map and prefix tokens a layer.
        averages: [scale] the average feature (b, c, 1, 1) a layer, for detail fusion only.
        dtype: the precision of the backbone's answers.
        bounds: which of the images' values stand for 0 and 1, to normalise them once they are resized, when they are
            small; None for images that are normalised.
        selects: whether tiles will be selected by what the smallest scale saw.
        own: that on its own grid, a map a layer, where its sums are on another.
    """

    images: Tensor
    placement: Placement
    todo: list[list[int]]
    sums: dict[int, Features] = field(default_factory=dict)
    averages: dict[int, Tensors] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    bounds: tuple[float, float] | None = None
    selects: bool = False
    own: Tensors = ()

    def __post_init__(self):
        self.missing = sum(map(len, self.todo))

    def add(self, features: Features, scale: int, first: int, tiles: int, *, correct: bool = True) -> None:
        """Merge some tiles of a scale, all images of a tile together; for detail fusion, corrected by the coarser."""
        position = self.placement.order.index(scale)
        coarser = self.sums[self.placement.order[position - 1]].maps if position else None
        merged, averages, own = [], [], []
        layers = zip(self.placement.scales[scale].layers, features.maps, features.prefixes, strict=True)
        for n, (matrices, spatial, prefix) in enumerate(layers):
            if matrices.own is not None and self.selects:
                own.append(merge_tiles(matrices.own, spatial, prefix, first=first, tiles=tiles).spatial)
            if matrices.average is not None:
                averages.append(merge_tiles(matrices.average, spatial, prefix, first=first, tiles=tiles).spatial)
            if matrices.correction is not None and coarser is not None and correct:
                spatial = correct_tiles(matrices.correction, spatial, coarser[n], first=first, tiles=tiles)
            merged.append(merge_tiles(matrices.merge, spatial, prefix, first=first, tiles=tiles))
        total = self.sums.get(scale, Features((), ()))
        maps, prefixes = [part.spatial for part in merged], [part.prefix for part in merged]
        self.sums[scale] = Features(_added(total.maps, maps), _added(total.prefixes, prefixes))
        self.averages[scale] = _added(self.averages.get(scale, ()), averages)
        if own:
            self.own = _added(self.own, own)

    @property
    def base(self) -> Features:
        """What the smallest scale saw, on its own grid; for a job that selects."""
        seen = self.sums[self.placement.order[0]]
        return Features(self.own, seen.prefixes) if self.own else seen

    def only(self, image: int, todo: list[list[int]]) -> "Job":
        """The job of one of the images, with other tiles to run, from what was seen of it."""
        now = slice(image, image + 1)
        sums = {k: seen[now] for k, seen in self.sums.items()}
        averages = {k: tuple(average[now] for average in of_scale) for k, of_scale in self.averages.items()}
        own = tuple(part[now] for part in self.own)
        return Job(self.images[now], self.placement, todo, sums, averages, self.dtype, self.bounds, self.selects, own)

    def fill(self) -> None:
        """Put what the smallest scale saw in place of all tiles of other scales that are not to run."""
        seen, (_, *others) = self.base, self.placement.order
        for k in others:
            scale = self.placement.plan.scales[k]
            left_out = sorted(set(range(len(scale.origins))) - set(self.todo[k]))
            if not left_out:
                continue
            matrices = [
                [float32(matrix).to(spatial) for matrix in tokens.spread_matrices(_hw(spatial))]
                for tokens, spatial in zip(self.placement.tokens[k], seen.maps, strict=True)
            ]
            for index in left_out:
                row, col = divmod(index, scale.block_size[1])
                maps = tuple(
                    rows[row] @ spatial @ cols[col].T for (rows, cols), spatial in zip(matrices, seen.maps, strict=True)
                )
                self.add(Features(maps, seen.prefixes), k, index, 1, correct=False)

    def ran(self, before: int | None) -> tuple[Tensor, ...]:
        """Which tiles the backbone saw, (b, rows, columns) a scale; all of the scale that it saw before."""
        masks = []
        for k, (scale, tiles) in enumerate(zip(self.placement.plan.scales, self.todo, strict=True)):
            mask = torch.full((self.images.shape[0], len(scale.origins)), k == before, device="cpu")
            mask[:, tiles] = True
            masks.append(mask.unflatten(1, scale.block_size))
        return tuple(masks)


def stream(
    jobs: Iterable[Job], backbone: Backbone, tile_batch: int | None, see: Callable[[Tensor], Features] | None = None
) -> Iterator[Job]:
    """The jobs in order, each once all its tiles are seen; tiles of all jobs share backbone calls.

    Args:
        jobs: read one after the other, when there is space in a batch.
        backbone: sees tiles of one size a call.
        tile_batch: the most tiles in one call; all that come in a row if None.
        see: another call of the backbone than its features, such as `Backbone.embeddings`.
    """
    waiting: list[Job] = []
    for batch in _batches(_parts(jobs, waiting, backbone), tile_batch):
        _run_batch(batch, backbone, tile_batch, see or backbone)
        batch.clear()  # frees the resized image before the next is made
        while waiting and waiting[0].missing == 0:
            yield waiting.pop(0)
    yield from waiting  # those without any tile left to see


def _added(totals: Tensors, parts: list[Tensor]) -> Tensors:
    """Totals with parts added in place; the parts if there are none yet."""
    if not totals:
        return tuple(parts)
    for total, part in zip(totals, parts, strict=True):
        total.add_(part)
    return totals


@dataclass
class _Part:
    """One tile (b, c, h, w) of one scale of a job, and its index."""

    job: Job
    scale: int
    index: int
    tile: Tensor


def _parts(jobs: Iterable[Job], waiting: list[Job], backbone: Backbone) -> Iterator[_Part]:
    """The tiles of all jobs, from the smallest scale to the largest, as views of a resized image; one such is held."""
    for job in jobs:
        waiting.append(job)
        for k in job.placement.order:
            if not job.todo[k]:
                continue
            scale = job.placement.scales[k]
            resized = _pad(_resized(job, scale.image_hw, backbone), scale.padding_hw, backbone)
            height, width = scale.tile_hw
            for index in job.todo[k]:
                top, left = scale.origins[index]
                yield _Part(job, k, index, resized[:, :, top : top + height, left : left + width])
            del resized


def _batches(parts: Iterable[_Part], tile_batch: int | None) -> Iterator[list[_Part]]:
    """Tiles of one size, `tile_batch` of them at a time or all."""
    batch: list[_Part] = []
    size = 0
    for part in parts:
        count = part.tile.shape[0]
        too_many = tile_batch is not None and size + count > tile_batch
        if batch and (_hw(batch[0].tile) != _hw(part.tile) or too_many):
            yield batch
            batch, size = [], 0
        batch.append(part)
        size += count
        del part  # frees the resized image of its scale once the batch is done
        if tile_batch is not None and size >= tile_batch:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _run_batch(
    batch: list[_Part], backbone: Backbone, tile_batch: int | None, see: Callable[[Tensor], Features]
) -> None:
    """Run the backbone on a batch of tiles of one size, and give each job what comes out."""
    tiles = torch.cat([part.tile for part in batch]).to(backbone.dtype)
    (height, width), (own_h, own_w) = _hw(tiles), backbone.image_hw
    area = max(1, height * width // (own_h * own_w))  # a whole scale counts as so many tiles
    if tile_batch is None or area == 1:
        features = see(tiles)
    else:
        features = join([see(part) for part in tiles.split(max(1, tile_batch // area))])
    first = 0
    for run in _runs(batch):
        last = first + sum(part.tile.shape[0] for part in run)
        maps = tuple(spatial[first:last] for spatial in features.maps)
        prefixes = tuple(prefix[first:last] for prefix in features.prefixes)
        job, first = run[0].job, last
        job.dtype = maps[0].dtype
        job.add(Features(maps, prefixes), run[0].scale, run[0].index, len(run))
        job.missing -= len(run)


def _runs(batch: list[_Part]) -> Iterator[list[_Part]]:
    """The neighbours among the tiles of a batch: one scale of one job, index after index."""
    run = batch[:1]
    for part in batch[1:]:
        last = run[-1]
        if part.job is last.job and part.scale == last.scale and part.index == last.index + 1:
            run.append(part)
        else:
            yield run
            run = [part]
    yield run


def _resized(job: Job, image_hw: Pair, backbone: Backbone) -> Tensor:
    """The images of a job resized, and normalised then: a large image is never held as floats."""
    images = resize(job.images, image_hw, interpolation=backbone.input.interpolation)
    return images if job.bounds is None else normalise_values(images, job.bounds, job.placement.mean_std)


def _pad(images: Tensor, padding_hw: Pair, backbone: Backbone) -> Tensor:
    """Images with padding below and to the right: 0, the mean colour of normalised images.

    The image's last pixels are repeated for one patch first, so that the patch of no token that counts holds padding.
    What a backbone sees beyond a token's own patch, by attention or convolution, may.
    """
    below, right = padding_hw
    if not (below or right):
        return images
    patch_h, patch_w = edge_padding(backbone)
    edge_h, edge_w = min(patch_h, below), min(patch_w, right)
    return F.pad(F.pad(images, (0, edge_w, 0, edge_h), mode="replicate"), (0, right - edge_w, 0, below - edge_h))


def edge_padding(backbone: Backbone) -> Pair:
    """Rows and columns of padding that repeat the image's last pixels, where there is that much: the largest patch."""
    patches = [layout.patch_hw for layout in backbone.layouts] + [backbone.stride_hw]
    height, width = (math.ceil(max(sides)) for sides in zip(*patches, strict=True))
    return height, width


def _hw(images: Tensor) -> Pair:
    return images.shape[-2], images.shape[-1]
