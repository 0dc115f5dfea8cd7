"""The operations around the backbone in an exported graph: products with constant matrices, for all tiles at once.

    tiles     =  cut(R_h · image · R_wᵀ)                           `CutTiles`
    features  =  Σ over tiles  A_h[tile] · X[tile] · A_wᵀ[tile]    `MergeTiles`, one row of blocks per scale

So the number of nodes hardly depends on the scales, and all runtimes give the same results, since there are no resize
and pooling operators, whose implementations differ.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from s2wrap.backbones.base import Backbone
from s2wrap.fusion import MergeMatrices
from s2wrap.inputs import MeanStd, ModelInput, normalise_values
from s2wrap.options import Interpolation
from s2wrap.placement import LayerMatrices
from s2wrap.plan import Axis, ScalePlan
from s2wrap.policies import Pair
from s2wrap.resample import resize_matrix
from s2wrap.stream import edge_padding


class Constants(nn.Module):
    """Buffers that move with the module but stay float32, and are no part of its `state_dict`."""

    def __init__(self, **arrays: np.ndarray):
        super().__init__()
        for name, array in arrays.items():
            values = torch.from_numpy(np.ascontiguousarray(array, np.float32))
            self.register_buffer(name, values, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Constants":
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in list(self.named_buffers()):
            setattr(self, name, exact[name].to(moved.device))
        return self


class Normalise(Constants):
    """Float32 images (b, c, h, w) with values in `bounds` → (values in 0…1 − mean) ÷ std, as `ModelInput.normalise`."""

    mean: Tensor
    std: Tensor

    def __init__(self, model_input: ModelInput, bounds: tuple[float, float]):
        mean, std = model_input.mean_std("cpu")
        super().__init__(mean=mean.numpy(), std=std.numpy())
        self.bounds = bounds

    def forward(self, images: Tensor) -> Tensor:
        """The normalised images."""
        return normalise_values(images, self.bounds, MeanStd(self.mean, self.std))


class CutTiles(nn.Module):
    """Images (b, c, H, W) → float32 tiles (n · b, c, h, w) of several scales; the batch is the inner dimension.

    One product from the left computes the rows of all scales, one from the right the columns of each scale. Rows and
    columns where tiles overlap are computed once per tile, so that a reshape cuts the tiles. Padding is part of the
    matrices: rows that repeat the last pixel, then rows of zeros. A scale of the image's own size is only cut.
    """

    def __init__(self, image_hw: Pair, scales: Sequence[ScalePlan], backbone: Backbone):
        """Compute the matrices for images of one size and scales with tiles of one size."""
        super().__init__()
        self.image_hw, self.tile_hw, self.channels = image_hw, scales[0].tile_hw, backbone.input.channels
        self.blocks = [scale.block_size for scale in scales]
        edge_h, edge_w = edge_padding(backbone)
        rows: list[np.ndarray] = []
        self.sides = nn.ModuleList()
        for scale in scales:
            if scale.image_hw == image_hw and not any(scale.padding_hw):
                self.sides.append(_SelectPixels(scale))
                continue
            rows.append(_axis_matrix(image_hw[0], scale.rows, edge_h, backbone.input.interpolation))
            cols = _axis_matrix(image_hw[1], scale.cols, edge_w, backbone.input.interpolation)
            self.sides.append(_Columns(cols))
        self.heights = [len(matrix) for matrix in rows]
        self.rows = Constants(rows=np.concatenate(rows)) if rows else None

    def forward(self, images: Tensor) -> Tensor:
        """The tiles, ordered by scale, then row by row."""
        images, (height, width) = images.float(), self.tile_hw
        lines = iter([] if self.rows is None else _split(self.rows.get_buffer("rows") @ images, self.heights, dim=2))
        tiles = []
        for (down, across), side in zip(self.blocks, self.sides, strict=True):
            canvas = side(images if isinstance(side, _SelectPixels) else next(lines))
            if down * across > 1:
                canvas = canvas.reshape(-1, self.channels, down, height, across, width).permute(2, 4, 0, 1, 3, 5)
                canvas = canvas.reshape(-1, self.channels, height, width)
            tiles.append(canvas)
        return tiles[0] if len(tiles) == 1 else torch.cat(tiles)

    @property
    def multiply_adds(self) -> int:
        """The number of multiply-add operations for one image."""
        height, width = self.image_hw
        columns = [len(side.cols.T) for side in self.sides if isinstance(side, _Columns)]
        work = (lines * width * (height + cols) for lines, cols in zip(self.heights, columns, strict=True))
        return self.channels * sum(work)


class MergeTiles(nn.Module):
    """Features of the tiles of several scales → the merged features of each scale, by a few products, in float32.

    With detail fusion, only the detail of each tile is merged, X − P_h X P_wᵀ (`fusion.correct_tiles`); `Spread` adds
    the low frequencies of the coarser scale.
    """

    def __init__(self, scales: Sequence[LayerMatrices]):
        """Combine the merge matrices of the scales as blocks of larger matrices."""
        super().__init__()
        merges = [matrices.merge for matrices in scales]
        averages = [matrices.average for matrices in scales if matrices.average is not None]
        self.sums = _Blocks(merges)
        self.averages = _Blocks(averages) if averages else None
        self.smooth = _Smooth(scales) if any(matrices.correction is not None for matrices in scales) else None
        areas = np.zeros((len(merges), self.sums.tiles))
        for row, first, merge in zip(areas, self.sums.firsts, merges, strict=True):
            row[first : first + len(merge.areas)] = merge.areas.numpy()
        self.areas = Constants(areas=areas)

    def forward(self, spatial: Tensor, prefix: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Maps (b, c, h, w), prefix tokens (b, p, c) and, for detail fusion, averages (b, c, 1, 1), as lists by scale.

        Args:
            spatial: maps of the tiles (n · b, c, y, x); the batch is the inner dimension.
            prefix: prefix tokens of the tiles (n · b, p, c).
        """
        tiles, (channels, _, width) = self.sums.tiles, spatial.shape[1:]
        maps = spatial.float().permute(0, 2, 3, 1).reshape(tiles, -1, width, channels)
        averages = [] if self.averages is None else self.averages(maps)
        sums = self.sums(maps if self.smooth is None else maps - self.smooth(maps))
        return sums, self._prefixes(prefix), averages

    def _prefixes(self, prefix: Tensor) -> list[Tensor]:
        """The prefix tokens of each scale: the average over its tiles, weighted by area."""
        areas, (count, channels) = self.areas.get_buffer("areas"), prefix.shape[1:]
        if not count:
            return [prefix.new_zeros(prefix.shape[0] // self.sums.tiles, 0, channels)] * len(areas)
        tokens = areas @ prefix.float().reshape(self.sums.tiles, -1)
        tokens = tokens.reshape(len(areas), -1, count, channels).permute(1, 2, 0, 3)
        return _split(tokens.reshape(-1, count, len(areas) * channels), [channels] * len(areas), dim=2)

    def multiply_adds(self, channels: int) -> int:
        """The number of multiply-add operations for one image, including those with zeros."""
        total = 0
        for blocks in filter(None, (self.sums, self.averages)):
            cells, tokens_w = blocks.cols.shape[-2:]
            tokens_h = blocks.rows.shape[1]  # of all tiles
            total += channels * cells * tokens_h * (tokens_w + len(blocks.rows))
        if self.smooth is not None:
            height, width = self.smooth.rows.shape[-1], self.smooth.cols.shape[-1]
            total += channels * self.sums.tiles * height * width * (height + width)
        return total


class Spread(Constants):
    """The map of the next coarser scale (b, c, h, w) → its contribution to a scale with detail fusion, on that grid.

    For one tile it is A_h P_h U_h C (A_w P_w U_w)ᵀ; the sum over a grid of tiles is one product from either side.
    """

    rows: Tensor
    cols: Tensor

    def __init__(self, matrices: LayerMatrices, block_size: Pair):
        """Compute the matrices of a scale, not the smallest, with `block_size` rows and columns of tiles."""
        merge, correction, (_, across) = matrices.merge, matrices.correction, block_size
        if correction is None:
            raise ValueError("the smallest scale has nothing coarser")
        super().__init__(
            rows=(merge.rows.double() @ correction.spread_rows.double())[::across].sum(dim=0).numpy(),
            cols=(merge.cols.double() @ correction.spread_cols.double())[:across].sum(dim=0).T.numpy(),
        )

    def forward(self, coarse: Tensor) -> Tensor:
        """The low frequencies (b, c, h, w)."""
        return self.rows @ coarse @ self.cols


class _Columns(Constants):
    """A product from the right: (b, c, y, W) → (b, c, y, columns of all tiles)."""

    cols: Tensor

    def __init__(self, matrix: np.ndarray):
        super().__init__(cols=matrix.T)

    def forward(self, lines: Tensor) -> Tensor:
        return lines @ self.cols


class _SelectPixels(nn.Module):
    """Images → their rows and columns in the order of the tiles, repeated where tiles overlap."""

    def __init__(self, scale: ScalePlan):
        super().__init__()
        for name, axis in (("rows", scale.rows), ("cols", scale.cols)):
            indices = torch.cat([torch.arange(start, start + axis.tile) for start in axis.starts])
            self.register_buffer(name, None if len(indices) == axis.size else indices, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        for dim, indices in ((2, self.rows), (3, self.cols)):
            images = images.index_select(dim, indices) if isinstance(indices, Tensor) else images
        return images


class _Blocks(Constants):
    """The merges of several scales as one, for their tiles in sequence: `rows` has one block per scale."""

    rows: Tensor
    cols: Tensor

    def __init__(self, merges: Sequence[MergeMatrices]):
        counts = [len(merge.areas) for merge in merges]
        tiles, tokens = sum(counts), merges[0].rows.shape[2]
        grids = [(merge.rows.shape[1], merge.cols.shape[1]) for merge in merges]
        firsts = [sum(counts[:k]) for k in range(len(counts))]
        rows = [np.zeros((height, tiles, tokens)) for height, _ in grids]
        cols = np.zeros((tiles, 1, max(width for _, width in grids), merges[0].cols.shape[2]))
        for block, (_, width), first, count, merge in zip(rows, grids, firsts, counts, merges, strict=True):
            of_scale = slice(first, first + count)
            block[:, of_scale] = rearrange(merge.rows.numpy(), "n h y -> h n y")
            cols[of_scale, 0, :width] = merge.cols.numpy()
        super().__init__(rows=rearrange(np.concatenate(rows), "h n y -> h (n y)"), cols=cols)
        self.tiles, self.firsts, self.grids = tiles, firsts, grids

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Merged maps (b, c, h, w), one per scale, from maps of tiles (n, b · y, x, c)."""
        channels, (*_, widest, _) = maps.shape[-1], self.cols.shape
        height = self.rows.shape[1] // self.tiles
        lines = (self.cols @ maps).reshape(self.tiles, -1, height, widest * channels)
        grid = self.rows @ lines.transpose(0, 1).reshape(-1, self.tiles * height, widest * channels)
        if len(set(self.grids)) == 1:
            scales, cells = len(self.grids), self.grids[0]
            grid = grid.reshape(-1, scales, *cells, channels).permute(0, 1, 4, 2, 3)
            return _split(grid.reshape(-1, scales * channels, *cells), [channels] * scales, dim=1)
        grid = grid.reshape(-1, len(self.rows), widest, channels).permute(0, 3, 1, 2)
        parts = _split(grid, [rows for rows, _ in self.grids], dim=2)
        return [part[..., :width] for part, (_, width) in zip(parts, self.grids, strict=True)]


class _Smooth(Constants):
    """Maps of tiles → their low frequencies, which a coarser scale replaces; zero for tiles of the smallest scale."""

    rows: Tensor
    cols: Tensor

    def __init__(self, scales: Sequence[LayerMatrices]):
        rows, cols = [], []
        for merge, correction, *_ in scales:
            tiles, _, tokens_h = merge.rows.shape
            tokens_w = merge.cols.shape[2]
            rows.append(correction.smooth_rows if correction else torch.zeros(tiles, tokens_h, tokens_h))
            cols.append(correction.smooth_cols if correction else torch.zeros(tiles, tokens_w, tokens_w))
        super().__init__(rows=torch.cat(rows)[:, None].numpy(), cols=torch.cat(cols)[:, None].numpy())

    def forward(self, maps: Tensor) -> Tensor:
        """P_h X P_wᵀ for maps X (n, b · y, x, c), in the same shape."""
        (tiles, _, width, channels), height = maps.shape, self.rows.shape[-1]
        lines = (self.cols @ maps).reshape(tiles, -1, height, width * channels)
        return (self.rows @ lines).reshape(tiles, -1, width, channels)


def _axis_matrix(old: int, axis: Axis, edge: int, interpolation: Interpolation) -> np.ndarray:
    """The matrix (tiles · tile size, old) that resizes, pads and cuts along one axis."""
    same = old == axis.content  # without resizing, pixels keep their exact values
    resized = np.eye(old) if same else resize_matrix(old, axis.content, interpolation=interpolation, antialias=True)
    padding = axis.size - axis.content
    repeated = np.repeat(resized[-1:], min(edge, padding), axis=0)
    canvas = np.concatenate([resized, repeated, np.zeros((padding - len(repeated), old))])
    return np.concatenate([canvas[start : start + axis.tile] for start in axis.starts])


def _split(tensor: Tensor, sizes: list[int], dim: int) -> list[Tensor]:
    return [tensor] if len(sizes) == 1 else list(tensor.split(sizes, dim=dim))
