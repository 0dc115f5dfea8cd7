"""What a model returns: `Features`."""

from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from s2wrap.errors import S2WrapError


@dataclass(frozen=True)
class Features:
    """The features of a batch of images: one map, or one a scale for `fuse="pyramid"`.

    Attributes:
        maps: spatial maps (b, c, h, w), top row first.
        prefixes: prefix tokens (b, p, c): CLS first, then registers; p is 0 where the backbone has none.
    """

    maps: tuple[Float[Tensor, "b _c _h _w"], ...]
    prefixes: tuple[Float[Tensor, "b _p _c"], ...]

    @property
    def spatial(self) -> Float[Tensor, "b c h w"]:
        """The spatial map. Raises S2WrapError for a pyramid: see `maps`."""
        return _only(self.maps, "maps")

    @property
    def prefix(self) -> Float[Tensor, "b p c"]:
        """The prefix tokens. Raises S2WrapError for a pyramid: see `prefixes`."""
        return _only(self.prefixes, "prefixes")

    @property
    def tokens(self) -> Float[Tensor, "b n c"]:
        """The spatial map as a sequence, row by row, without prefix tokens."""
        return rearrange(self.spatial, "b c h w -> b (h w) c")

    @property
    def pooled(self) -> Float[Tensor, "b c"]:
        """The average of the spatial map: one vector an image."""
        return reduce(self.spatial, "b c h w -> b c", "mean")


def _only(tensors: tuple[Tensor, ...], name: str) -> Tensor:
    if len(tensors) != 1:
        raise S2WrapError(f"these features are a pyramid of {len(tensors)} scales; use features.{name}[k]")
    return tensors[0]


torch.export.register_dataclass(Features, serialized_type_name="s2wrap.Features")
