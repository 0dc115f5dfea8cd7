"""Maps at the resolution of the image, by linear interpolation, in bounded memory."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.policies import Pair
from s2wrap.resample import full_precision, resize_matrix
from s2wrap.scales import whole_number, whole_pair

LARGEST = 512 << 20
"""Bytes of a result that is made without its size being asked for."""
STRIP = 32 << 20
"""Bytes of a strip of the default height, at most, unless one row has more."""


def upsample(spatial: Float[Tensor, "b c rows columns"], size: Pair) -> Float[Tensor, "b c height width"]:
    """Maps interpolated to a size, as `F.interpolate(mode="bilinear", align_corners=False)` does.

    Cells and pixels are compared by their centres; beyond the outermost centres the nearest cell counts. Each pixel
    is a mix of the four cells around it, so a size smaller than the map samples it and does not average.

    Args:
        spatial: of any floating type; half precision is computed in float32 and rounded once.
        size: height and width of the result.

    Raises:
        S2WrapError: the size is no pair of whole numbers from 1.

    >>> upsample(torch.rand(2, 8, 16, 16), (48, 100)).shape
    torch.Size([2, 8, 48, 100])
    """
    height, width = checked_size(size)
    result = spatial.new_empty(*spatial.shape[:2], height, width)
    for top, strip in upsample_strips(spatial, size):
        result[:, :, top : top + strip.shape[2]] = strip
    return result


def upsample_strips(
    spatial: Float[Tensor, "b c rows columns"], size: Pair, height: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """The result of `upsample` in strips of full width from top to bottom.

    Memory holds the strip that is being made and the one that the caller still has: two to three strips at the peak.

    Args:
        spatial: as for `upsample`.
        size: height and width of the whole.
        height: rows of pixels of a strip; the last may have fewer. Default: as many as make 32 MiB.

    Yields:
        The row of pixels that a strip begins at, and the strip (b, c, up to `height`, width).

    Raises:
        S2WrapError: the size or the height is no whole number from 1.
    """
    total, width = checked_size(size)
    return _strips(spatial, total, width, checked_height(height, result_bytes(spatial, (1, width))))


def _strips(spatial: Tensor, total: int, width: int, step: int) -> Iterator[tuple[int, Tensor]]:
    """The strips themselves: what is wrong with the arguments was said before the first is asked for."""
    values = spatial.to(torch.promote_types(spatial.dtype, torch.float32))
    rows, columns = _matrix(spatial.shape[2], total, values), _matrix(spatial.shape[3], width, values)
    for top in range(0, total, step):
        with full_precision(values.device):
            strip = rows[top : top + step] @ values @ columns.T
        yield top, strip.to(spatial.dtype)
        del strip  # so that the next is made after this one's memory is free


def result_bytes(spatial: Tensor, size: Pair) -> int:
    """Bytes of maps once they have that size."""
    return spatial.shape[0] * spatial.shape[1] * size[0] * size[1] * spatial.element_size()


def check_result(spatial: Tensor, size: Pair) -> None:
    """Raise S2WrapError where a result of that size is larger than what is made without asking."""
    if (needed := result_bytes(spatial, size)) > LARGEST:
        b, c = spatial.shape[:2]
        raise S2WrapError(
            f"{b}×{c} channels at {size[0]}×{size[1]} pixels take {needed / 2**30:.2f} GiB, more than the "
            f"{LARGEST >> 20} MiB that upsample() makes unasked; use upsample_strips(), a smaller size=, "
            f"fewer images (features[0]), or size={tuple(size)} to have it all"
        )


def _matrix(cells: int, pixels: int, like: Tensor) -> Tensor:
    return torch.from_numpy(resize_matrix(cells, pixels, interpolation="bilinear", antialias=False)).to(like)


def checked_size(size: Pair) -> Pair:
    """Height and width of a result, checked."""
    pair = whole_pair(tuple(size) if isinstance(size, torch.Size) else size)
    if pair is None or min(pair) < 1:
        raise S2WrapError(f"size={size!r} is no size of a result; use (height, width) in whole pixels from 1")
    return pair


def checked_height(height: int | None, row_bytes: int) -> int:
    """Rows of pixels of a strip, checked; as many as make 32 MiB where None are asked for."""
    step = max(1, STRIP // max(1, row_bytes)) if height is None else whole_number(height)
    if step is None or step < 1:
        raise S2WrapError(f"height={height!r} is no height of a strip; use a whole number of pixels from 1, or None")
    return step
