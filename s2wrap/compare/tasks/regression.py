"""Predict a measurement of each pixel, such as depth, from frozen maps: a linear map of tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from torch import Tensor

from s2wrap.compare.data import load_target
from s2wrap.compare.folds import Fold
from s2wrap.compare.ridge import fit
from s2wrap.compare.score import Score, score
from s2wrap.compare.tasks.base import Bench, Task
from s2wrap.compare.tasks.masks import averaging_matrix
from s2wrap.errors import S2WrapError

TOKENS = 20_000
"""Most training tokens of a fold, equally many of each picture."""
RATIO = 1.25
"""A pixel counts as right where neither of prediction and target is more than so many times the other."""


class Regression(Task):
    """The task: the share of pixels that are right to a factor of 1.25 decides; the error (RMSE) stands beside it."""

    forms = ("measured",)

    def __init__(self, bench: Bench):
        super().__init__(bench)
        self.targets = [load_target(path) for path in bench.pictures.masks or [] if path is not None]

    def score(self, spec: str) -> dict[str, Score]:
        """As `Task.score`."""
        pictures = self.bench.pictures
        return regress(self.bench.maps(spec), self.targets, pictures.folds, pictures.contents)


def regress(
    maps: Sequence[Tensor], targets: Sequence[np.ndarray], folds: Sequence[Fold], contents: Sequence[str]
) -> dict[str, Score]:
    """Return "δ<1.25" and "RMSE" of a ridge regression from tokens to the mean of the target in their cells.

    The penalty is chosen among the training pictures of a fold. Predictions are interpolated bilinearly to the pixels
    of the target, and no smaller than the smallest value in training.

    Args:
        maps: (c, h, w) of each picture.
        targets: (H, W) of each picture; pixels that are not above 0 do not count.
        folds: which pictures train and which test; each is tested at most once.
        contents: a hash of each picture.
    """
    means = [
        cell_means(target, (spatial.shape[1], spatial.shape[2])) for target, spatial in zip(targets, maps, strict=True)
    ]
    parts: dict[int, Any] = {}
    for fold in folds:
        values = torch.cat([means[int(index)].flatten() for index in fold.train])
        if not (values > 0).any():
            raise S2WrapError("no cell of the training targets is measured by half or more; use denser targets")
        count = max(1, TOKENS // len(fold.train))
        chosen = {int(index): _choose(means[index], int(index), count) for index in fold.train}
        ridge = fit(means, maps, fold, contents, chosen)
        least = float(values[values > 0].min())
        for index in fold.test:
            tokens = rearrange(maps[index].double().numpy(), "c h w -> (h w) c")
            cells = torch.from_numpy(ridge.predict(tokens)).reshape(1, 1, *maps[index].shape[1:])
            fine = F.interpolate(cells, size=targets[index].shape, mode="bilinear", align_corners=False)
            parts[int(index)] = _compare(fine[0, 0].numpy().clip(least), targets[index])
    by_picture = np.stack([parts[index] for index in sorted(parts)])
    return {
        "δ<1.25": score(by_picture, lambda sums: sums[:, 0] / sums[:, 2]),
        "RMSE": score(by_picture, lambda sums: np.sqrt(sums[:, 1] / sums[:, 2])),
    }


def cell_means(target: np.ndarray, grid_hw: tuple[int, int]) -> Tensor:
    """Return the mean of a target in each cell (1, h, w), over the pixels that count; 0 where less than half do.

    >>> cell_means(np.array([[2.0, 4.0, 0.0, 0.0]]), (1, 2)).tolist()
    [[[3.0, 0.0]]]
    """
    rows, cols = (averaging_matrix(pixels, cells) for pixels, cells in zip(target.shape, grid_hw, strict=True))
    counted = rows @ (target > 0) @ cols.T
    return torch.from_numpy(np.where(counted >= 0.5, rows @ target @ cols.T / counted.clip(1e-9), 0))[None]


def _choose(means: Tensor, index: int, count: int) -> np.ndarray:
    """Return the indices of a picture's training tokens, drawn from those with a target."""
    measured = np.flatnonzero(means[0].flatten() > 0)
    return np.random.default_rng(index).permutation(measured)[:count]


def _compare(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return how many pixels are right, the sum of squared errors, and how many count: (3,)."""
    counted = target > 0
    one, other = predicted[counted], target[counted]
    right = np.maximum(one / other, other / one) < RATIO
    return np.array([right.sum(), np.square(one - other).sum(), counted.sum()])
