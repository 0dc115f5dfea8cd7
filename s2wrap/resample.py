"""Everything around the backbone is linear and separable: a pair of small matrices an image size.

    image at scale k  =  R_h · image · R_wᵀ                              `resize_matrix`
    merged features   =  Σ over tiles  A_h[tile] · X[tile] · A_w[tile]ᵀ  `merge_matrix`

numpy builds the matrices in float64.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from jaxtyping import Float
from torch import Tensor, nn

from s2wrap.plan import Axis

Array = np.ndarray


def resize(
    images: Float[Tensor, "batch chans height width"],
    image_hw: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    antialias: bool = True,
) -> Float[Tensor, "batch chans new_height new_width"]:
    """Images resized to `image_hw` pixels (height, width), in at least float32.

    Eager code calls PyTorch's `interpolate`; an exported graph holds two constant matrix products instead, because
    no other runtime computes an antialiased cubic resize alike. A test keeps the two equal.

    Args:
        images: any floating values; half precision is widened to float32 first.
        image_hw: the new height and width in pixels.
        interpolation: "bicubic" or "bilinear".
        antialias: widen the kernel when shrinking, as PIL does. Without it PyTorch's cubic kernel has a = -0.75,
            with it a = -0.5.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    old_h, old_w = images.shape[-2:]
    new_h, new_w = image_hw
    if (old_h, old_w) == (new_h, new_w):
        return images
    if not _exporting():
        return F.interpolate(images, size=image_hw, mode=interpolation, antialias=antialias, align_corners=False)
    rows = _matrix_tensor(old_h, new_h, interpolation, antialias).to(images)
    cols = _matrix_tensor(old_w, new_w, interpolation, antialias).to(images)
    with full_precision(images.device):
        return rows @ images @ cols.T


def full_precision(device: torch.device) -> AbstractContextManager:
    """A context without autocast, which would compute matrix products in half precision."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


@torch.compiler.assume_constant_result
def _exporting() -> bool:
    """Whether torch.export is tracing. Asked as a constant: PyTorch 2.11 would say yes inside torch.compile too."""
    return torch.compiler.is_exporting()


@torch.compiler.assume_constant_result
def _matrix_tensor(old: int, new: int, interpolation: str, antialias: bool) -> Tensor:
    """`resize_matrix` as a constant of a traced graph."""
    return torch.from_numpy(resize_matrix(old, new, interpolation=interpolation, antialias=antialias).astype("float32"))


class Constants(nn.Module):
    """Buffers that follow the model to its device but stay float32, and are not saved with it."""

    def __init__(self, **arrays: np.ndarray):
        super().__init__()
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array, np.float32)), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> "Constants":
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in list(self.named_buffers()):
            setattr(self, name, exact[name].to(moved.device))
        return self


def resize_matrix(old: int, new: int, *, interpolation: str, antialias: bool) -> Array:
    """The (new, old) matrix that resizes one axis as `F.interpolate(…, align_corners=False)` does.

    Antialiasing widens the kernel by the shrinking factor and drops taps outside the image (PIL's way); without it,
    outside taps repeat the border pixel.

    >>> resize_matrix(4, 2, interpolation="bilinear", antialias=True).round(3).tolist()
    [[0.429, 0.429, 0.143, 0.0], [0.0, 0.143, 0.429, 0.429]]
    """
    ratio = old / new
    spread = max(ratio, 1.0) if antialias else 1.0
    centers = (np.arange(new) + 0.5) * ratio - 0.5
    if antialias:
        distance = (np.arange(old) - centers[:, None]) / spread
        weights = _kernel(distance, interpolation, -0.5)
        return weights / weights.sum(axis=1, keepdims=True)
    first = np.floor(centers).astype(int) - 1
    taps = first[:, None] + np.arange(4)
    weights = _kernel(taps - centers[:, None], interpolation, -0.75)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix


def _kernel(distance: Array, interpolation: str, a: float) -> Array:
    """Keys' cubic convolution kernel (Keys 1981, eq. 4, with parameter a), or the triangle of linear interpolation."""
    x = np.abs(distance)
    if interpolation == "bilinear":
        return np.clip(1 - x, 0, None)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def merge_matrix(axis: Axis, *, tokens: int, patch: float, cells: int) -> Array:
    """The (tiles, cells, tokens) matrices that average the tiles' tokens into the cells of one axis.

    A token's value holds for the pixels that it saw; a cell is the average over its pixels. So any number of cells,
    any tile position and patches that do not divide the tile need no special case: pixels that no token saw (the
    rest when `tokens · patch < tile`) do not count.

    Args:
        axis: the tiles; each answers for the pixels that it owns.
        tokens: tokens of a tile along this axis.
        patch: pixels that a token saw.
        cells: cells of the result along this axis.

    >>> merge_matrix(Axis(size=4, tile=2, starts=(0, 2)), tokens=2, patch=1, cells=2).tolist()
    [[[0.5, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.5, 0.5]]]
    """
    cell_edges = np.linspace(0, axis.size, cells + 1)

    def shared_pixels(token_edges: Array) -> Array:
        parts = [
            _intersections(cell_edges, (start + token_edges).clip(*limits))
            for start, limits in zip(axis.starts, axis.owned, strict=True)
        ]
        return np.stack(parts)

    seen = np.arange(tokens + 1) * patch
    weights = shared_pixels(seen)
    blind = weights.sum(axis=(0, 2)) == 0
    if blind.any():  # a cell of unseen pixels only: it takes the token beside it
        weights[:, blind] = shared_pixels(np.append(seen[:-1], axis.tile))[:, blind]
    return weights / weights.sum(axis=(0, 2))[:, None]


def _intersections(first_edges: Array, second_edges: Array) -> Array:
    """Length that interval i of the first edges shares with interval j of the second."""
    low = np.maximum(first_edges[:-1, None], second_edges[:-1])
    high = np.minimum(first_edges[1:, None], second_edges[1:])
    return (high - low).clip(0)


def adaptive_matrix(tiles: int, tokens: int, cells: int) -> Array:
    """The (tiles, cells, tokens) matrices of PyTorch's adaptive average pooling over stitched tiles.

    Cell i averages tokens ⌊i·n/cells⌋ to ⌈(i+1)·n/cells⌉ of the n stitched ones: cells overlap unless they divide n
    (`F.interpolate(mode="area")`, which the original s2wrapper uses). `merge_matrix` is exact where this is not.
    """
    count = tiles * tokens
    index, cell = np.arange(count), np.arange(cells)[:, None]
    inside = (index >= cell * count // cells) & (index < -(-(cell + 1) * count // cells))
    weights = inside / inside.sum(axis=1, keepdims=True)
    return weights.reshape(cells, tiles, tokens).transpose(1, 0, 2)
