"""Which pictures train and which test; no picture does both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2wrap.errors import S2WrapError

FOLDS = 5
"""Parts that pictures are dealt into, each tested once; fewer where a class has fewer."""
INNER_FOLDS = 3
"""Parts of the pictures that train, among which regularisation is chosen."""


@dataclass(frozen=True)
class Fold:
    """Indices of pictures: those that train, those that test."""

    train: np.ndarray
    test: np.ndarray


def deal(labels: Any, contents: Sequence[str], count: int = FOLDS) -> list[Fold]:
    """The pictures dealt into folds, always the same; each is tested once, and copies of a picture stay together.

    Args:
        labels: (n,) class numbers, spread evenly over the folds; None for pictures without labels.
        contents: (n) what is the same for the same picture, such as a hash.
        count: of folds; no more than the rarest class has different pictures.

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


def inner_folds(fold: Fold, labels: Any, contents: Sequence[str]) -> list[Fold]:
    """The training pictures of a fold dealt again, to choose regularisation: indices into `fold.train`."""
    known = None if labels is None else np.asarray(labels)[fold.train]
    return deal(known, [contents[int(index)] for index in fold.train], INNER_FOLDS)


def check_folds(folds: Sequence[Fold], contents: Sequence[str]) -> None:
    """Raise S2WrapError where a picture both trains and is tested, by index or by content, or is tested twice."""
    tested: set[int] = set()
    for number, fold in enumerate(folds):
        shared = {contents[i] for i in fold.train} & {contents[i] for i in fold.test}
        if shared:
            first = sorted(i for i in fold.test if contents[i] in shared)
            raise S2WrapError(
                f"{len(shared)} pictures of fold {number} train and are tested too, such as picture {first[0]}: its "
                f"score would be a memory, not a skill"
            )
        if twice := tested & set(fold.test):
            raise S2WrapError(f"picture {min(twice)} is tested in two folds; test each once")
        tested |= set(fold.test)
