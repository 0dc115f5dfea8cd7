"""Measure how well a linear map recovers a larger model's features from another's (S² paper, section 4, Table 2)."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from s2wrap.compare.folds import Fold
from s2wrap.compare.ridge import fit, tokens_of
from s2wrap.compare.score import Score, score
from s2wrap.compare.tasks.base import Bench, Task
from s2wrap.compare.ways import weights_of
from s2wrap.errors import S2WrapError

TOKENS = 50_000
"""Most training tokens of a fold, though at least one of each picture."""


class Reconstruction(Task):
    """The task: how much of a target's features a linear map recovers from a model's, see `reconstruct`."""

    forms = ("plain",)
    default = False  # it needs a target, and holds the features of all pictures

    def __init__(self, bench: Bench):
        super().__init__(bench)
        self.target = str(bench.target)
        if all(weights_of(spec) == weights_of(self.target) for spec in bench.specs):
            raise S2WrapError(
                f"no model but {self.target} and its own weights is named, which hold its features; name others, from "
                f"which it is to be reconstructed"
            )
        bench.facts["reconstructed"] = f"the features of {self.target}"
        self.maps = bench.maps(self.target)

    def score(self, spec: str) -> dict[str, Score]:
        """As `Task.score`; nothing for the target's own weights."""
        if weights_of(spec) == weights_of(self.target):
            return {}
        maps = self.bench.maps(spec, self.bench.make(spec, target_grid=tuple(self.maps[0].shape[1:])))
        return reconstruct(self.maps, maps, self.bench.pictures.folds, self.bench.pictures.contents)


def reconstruct(
    target: Sequence[Tensor], source: Sequence[Tensor], folds: Sequence[Fold], contents: Sequence[str]
) -> dict[str, Score]:
    """Return the "information" about a target's tokens in a source's, and the same on the "training" tokens.

    Information is −log(l / l0), in nats: l is the squared error of a ridge regression on all tokens of the test
    pictures, and l0 that of the mean of the training tokens, so that a map that learnt nothing has information 0, and
    a worse one less. Every fold trains on the same number of tokens of each training picture, `TOKENS` in all at most,
    drawn once for all sources. The penalty is the one of `PENALTIES` with the least error in cross-validation over
    whole training pictures. It is scikit-learn's `Ridge(alpha=penalty * tokens)` on standardised channels, in float64.

    Args:
        target: (c, h, w) of each picture, the features to recover.
        source: (c', h, w) of each picture, on the grid of the target.
        folds: which pictures train and which test.
        contents: a hash of each picture; copies have the same.

    Raises:
        S2WrapError: a target that is the same everywhere.
    """
    sums = np.zeros((2, len(target), 2))
    for fold in folds:
        rng, count = np.random.default_rng(0), max(1, TOKENS // len(fold.train))
        chosen = {int(index): rng.permutation(target[index][0].numel())[:count] for index in fold.train}
        ridge = fit(target, source, fold, contents, chosen)
        for of_part, pictures in zip(sums, (fold.train, fold.test), strict=True):
            for index in map(int, pictures):
                wanted = tokens_of(target, index, chosen)
                errors = wanted - ridge.predict(tokens_of(source, index, chosen)), wanted - ridge.constant
                of_part[index] += [np.square(each).sum() for each in errors]
    train, test = (np.unique(np.concatenate([getattr(fold, part) for fold in folds])) for part in ("train", "test"))
    return {
        "information": score(sums[1][test], _information),
        "training information": score(sums[0][train], _information),
    }


def _information(sums: np.ndarray) -> np.ndarray:
    """Return −log(l / l0) (r,) from sums of both (r, 2)."""
    return -np.log(sums[:, 0] / sums[:, 1])
