"""Split pictures into training and test folds; no picture is in both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from s2wrap.errors import S2WrapError

FOLDS = 5
"""Number of folds; fewer where a class has fewer different pictures."""
INNER_FOLDS = 3
"""Number of folds of the training pictures, by which regularisation is chosen."""


@dataclass(frozen=True)
class Fold:
    """Indices of the training pictures and of the test pictures."""

    train: np.ndarray
    test: np.ndarray


def deal(labels: ArrayLike | None, contents: Sequence[str], count: int = FOLDS) -> list[Fold]:
    """Return folds that test each picture once, with copies of a picture kept together; the same on every call.

    Args:
        labels: (n,) class numbers, spread evenly over the folds; None for pictures without labels.
        contents: (n) a hash of each picture; copies have the same.
        count: number of folds; at most as many as the rarest class has different pictures.

    >>> [len(fold.test) for fold in deal([0, 0, 1, 1], "abcd")]
    [2, 2]
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    groups = np.unique(list(contents), return_inverse=True)[1]
    if labels is None:
        labels = np.zeros(len(groups), dtype=int)
    labels = np.asarray(labels)
    different = [len(set(groups[labels == label])) for label in np.unique(labels)]
    count = min(count, *different, len(groups))
    if count < 2:
        raise S2WrapError(f"{min(different)} different pictures of a class cannot be dealt into training and test")
    if len(different) == 1:
        splitter: Any = GroupKFold(count, shuffle=True, random_state=0)
    else:
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    return [Fold(*parts) for parts in splitter.split(np.zeros(len(groups)), labels, groups)]


def inner_folds(fold: Fold, labels: ArrayLike | None, contents: Sequence[str]) -> list[Fold]:
    """Return folds of a fold's training pictures, to choose regularisation by: indices into `fold.train`."""
    of_train = None if labels is None else np.asarray(labels)[fold.train]
    return deal(of_train, [contents[int(index)] for index in fold.train], INNER_FOLDS)
