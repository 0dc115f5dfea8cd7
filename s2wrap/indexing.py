"""Which images of a batch an index means."""

from collections.abc import Sequence
from typing import SupportsIndex

import numpy as np
import torch
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.scales import whole_number

Images = SupportsIndex | slice | Sequence[int] | Sequence[bool] | Tensor | np.ndarray
"""Which images of a batch: one, a slice, a list of numbers, or a tensor of numbers or of one bool an image."""


def choose_images(images: Images, count: int) -> slice | Tensor:
    """An index of tensors that chooses some of `count` images and keeps the batch axis, as a view where it can.

    Raises:
        IndexError: an image that is not there.
        S2WrapError: something else than numbers, or a mask of another length.

    >>> choose_images(-1, 4), choose_images([2, 0], 4)
    (slice(3, 4, None), tensor([2, 0]))
    """
    if isinstance(images, slice):
        return images if (images.step or 1) > 0 else torch.tensor(range(count)[images], dtype=torch.long)
    index = _index(images)
    mask = index is not None and index.dtype == torch.bool
    if index is not None and index.ndim == 0 and (number := whole_number(index.item())) is not None:
        number = range(count)[number]
        return slice(number, number + 1)
    if index is None or index.ndim != 1 or index.is_floating_point() or (mask and len(index) != count):
        raise S2WrapError(
            f"a batch of {count} images has no images [{images!r}]; use a number, a slice, a list of numbers, or "
            f"{count} bools"
        )
    if not mask and len(index) and not -count <= int(index.min()) <= int(index.max()) < count:
        raise IndexError(f"a batch of {count} images has no images {index.tolist()}")
    return index if mask else index.long()


def _index(images: object) -> Tensor | None:
    """A tensor of numbers or bools on the CPU, which may index tensors anywhere; None for what makes none."""
    try:
        index = torch.as_tensor(images).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    return index if index.numel() else index.long()
