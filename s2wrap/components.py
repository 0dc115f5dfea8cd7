"""What features look like: their principal components as colours, and how alike they are."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from s2wrap.errors import S2WrapError


def principal_components(maps: Sequence[Float[Tensor, "_b c _h _w"]]) -> list[np.ndarray]:
    """The first three principal components that maps have in common, as colours: an array (b, h, w, 3) in 0…1 a map.

    Every map has the same weight, however many cells it has. The colours of all maps share one range, from the 2nd to
    the 98th percentile of each component, so that equal colours are equal components. A component's sign, which is
    arbitrary, is such that its largest weight is positive.

    Args:
        maps: of the same channels, of any device and floating type.

    Raises:
        S2WrapError: values that are not finite.

    >>> [colours.shape for colours in principal_components([torch.rand(1, 8, 4, 6), torch.rand(1, 8, 8, 12)])]
    [(1, 4, 6, 3), (1, 8, 12, 3)]
    """
    cells = [rearrange(spatial.detach().double().cpu(), "b c h w -> (b h w) c") for spatial in maps]
    mean = torch.stack([each.mean(dim=0) for each in cells]).mean(dim=0)
    if not bool(mean.isfinite().all()):
        raise S2WrapError("these features are not finite, and have no principal components; try a higher precision")
    root = mean.new_zeros(0, len(mean))  # has the components of all cells so far, in as many rows as channels at most
    for each in cells:
        root = torch.linalg.qr(torch.cat([root, (each - mean) / len(each) ** 0.5]), mode="r").R
    directions = torch.linalg.svd(root, full_matrices=False)[2][:3]
    directions = directions * directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    values = [F.pad((each - mean) @ directions.T, (0, 3 - len(directions))).numpy() for each in cells]
    low, high = np.quantile(np.concatenate(values), (0.02, 0.98), axis=0)
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    return [
        rearrange(np.clip((each - low) / span, 0, 1), "(b h w) c -> b h w c", b=len(spatial), h=spatial.shape[2])
        for each, spatial in zip(values, maps, strict=True)
    ]


def likeness(spatial: Float[Tensor, "b c h w"], vectors: Float[Tensor, "*n c"]) -> Float[Tensor, "b h w"]:
    """The cosine, −1…1, of every cell of maps to a vector (c,), or to the most alike of several (n, c).

    >>> likeness(torch.ones(1, 8, 2, 3), torch.ones(8)).shape
    torch.Size([1, 2, 3])
    """
    unit = F.normalize(torch.atleast_2d(vectors).to(spatial), dim=-1)
    return torch.einsum("nc,bchw->bnhw", unit, F.normalize(spatial, dim=1)).amax(dim=1)
