"""What a model returns: `Features`."""

from dataclasses import dataclass, replace

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.plan import Pair, Plan


@dataclass(frozen=True)
class Features:
    """The features of a batch of images: one map; or one a scale for `fuse="pyramid"`, one a layer for a list of them.

    Attributes:
        maps: spatial maps (b, c, h, w), top row first.
        prefixes: prefix tokens (b, p, c): CLS first, then registers; p is 0 where the backbone has none.
        plan: where the tiles lay; None in a traced model, as the two below.
        boxes: for every scale (h, w, 4): the pixels of the original image that the cell (of the first map, or of the
            scale's own for a pyramid) looked at: left, top, right, bottom.
        ran: for every scale (b, rows, columns): which tiles the backbone saw; all but for `select`.
    """

    maps: tuple[Float[Tensor, "b _c _h _w"], ...]
    prefixes: tuple[Float[Tensor, "b _p _c"], ...]
    plan: Plan | None = None
    boxes: tuple[Float[Tensor, "_h _w 4"], ...] | None = None
    ran: tuple[Bool[Tensor, "b _rows _cols"], ...] | None = None

    @property
    def spatial(self) -> Float[Tensor, "b c h w"]:
        """The spatial map. Raises S2WrapError where there are several: see `maps`."""
        return _only(self.maps, "maps")

    @property
    def prefix(self) -> Float[Tensor, "b p c"]:
        """The prefix tokens. Raises S2WrapError where there are several: see `prefixes`."""
        return _only(self.prefixes, "prefixes")

    @property
    def tokens(self) -> Float[Tensor, "b n c"]:
        """The spatial map as a sequence, row by row, without prefix tokens."""
        return rearrange(self.spatial, "b c h w -> b (h w) c")

    @property
    def pooled(self) -> Float[Tensor, "b c"]:
        """The average of the spatial map: one vector an image."""
        return reduce(self.spatial, "b c h w -> b c", "mean")

    def split(self) -> "list[Features]":
        """Those of each image: a batch of one each, views of this one's tensors."""
        images = range(len(self.maps[0]))
        return [
            replace(
                self,
                maps=tuple(spatial[b : b + 1] for spatial in self.maps),
                prefixes=tuple(prefix[b : b + 1] for prefix in self.prefixes),
                ran=None if self.ran is None else tuple(tiles[b : b + 1] for tiles in self.ran),
            )
            for b in images
        ]

    @property
    def block_size(self) -> Pair:
        """Rows and columns of tiles of the last scale: how `split_blocks` cuts a map on its grid (dynamic-S2)."""
        if self.plan is None:
            raise S2WrapError("a traced model does not note where its tiles lay; see MultiScale.plan")
        return self.plan.scales[-1].block_size

    @property
    def saved(self) -> float:
        """The share of tiles that the backbone was spared by `select`, 0…1, weighed by their pixels."""
        if self.plan is None or self.ran is None:
            raise S2WrapError("a traced model does not note which tiles ran")
        areas = [scale.tile_hw[0] * scale.tile_hw[1] for scale in self.plan.scales]
        total = sum(area * ran.numel() for area, ran in zip(areas, self.ran, strict=True))
        return 1 - sum(area * int(ran.sum()) for area, ran in zip(areas, self.ran, strict=True)) / total


def join(parts: list[Features]) -> Features:
    """The features of parts of a batch as those of the whole."""
    if len(parts) == 1:
        return parts[0]
    maps = zip(*(part.maps for part in parts), strict=True)
    prefixes = zip(*(part.prefixes for part in parts), strict=True)
    joined = Features(tuple(map(torch.cat, maps)), tuple(map(torch.cat, prefixes)), parts[0].plan, parts[0].boxes)
    if parts[0].ran is None:
        return joined
    return replace(joined, ran=tuple(map(torch.cat, zip(*(part.ran or () for part in parts), strict=True))))


def _only(tensors: tuple[Tensor, ...], name: str) -> Tensor:
    if len(tensors) != 1:
        raise S2WrapError(f"these features hold {len(tensors)} maps, one a scale or layer; use features.{name}[k]")
    return tensors[0]


torch.export.register_dataclass(Features, serialized_type_name="s2wrap.Features")
