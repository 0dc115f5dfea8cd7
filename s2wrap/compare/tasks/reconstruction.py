"""Measure how well a linear map recovers a larger model's features from another's (S² paper, section 4, Table 2)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2wrap.compare.folds import Fold, check_folds
from s2wrap.compare.ridge import fit, tokens_of
from s2wrap.compare.score import Score, score
from s2wrap.compare.tasks.base import Bench, Result, Task
from s2wrap.compare.ways import weights_of
from s2wrap.errors import S2WrapError

TOKENS = 50_000
"""Most training tokens of a fold, though at least one of each picture."""


@dataclass(frozen=True)
class Recovery:
    """How well one model's features are recovered from another's, in training and on held-out pictures.

    Losses are squared errors averaged over all tokens and channels (of all folds); information is −log(l / l0), in
    nats, with l0 the loss of the best constant vector.

    Attributes:
        loss_train: l on the training tokens.
        loss_test: l on all tokens of the test pictures.
        constant_train: l0 on the training tokens.
        constant_test: l0 on the test tokens, of the constant that is best for the training tokens. The paper does not
            say which pictures it is fitted to. The map's own constant is fitted to these, so that a map that learnt
            nothing has information 0; a constant fitted to the test pictures would have seen them.
        information: information on held-out pictures, with its noise; below 0 if the map is worse than the constant.
        information_train: information on the training tokens.
        regularisation: the chosen penalty of each fold.
        tokens: number of training tokens of each fold.
        ratio_train: I / I* in training, with I* the information of the reference; None without a reference, or if
            that recovers nothing.
        ratio_test: the same on held-out pictures.
    """

    loss_train: float
    loss_test: float
    constant_train: float
    constant_test: float
    information: Score
    information_train: float
    regularisation: tuple[float, ...]
    tokens: tuple[int, ...]
    ratio_train: float | None = None
    ratio_test: float | None = None


@dataclass(frozen=True)
class _FoldResult:
    """Losses of one fold: for each picture the summed squared errors of map and constant, and their count (n, 3)."""

    train: np.ndarray
    test: np.ndarray
    penalty: float
    tokens: int


class Reconstruction(Task):
    """The task: how much of a target's features a linear map recovers from a model's, see `reconstruct`."""

    forms = ("plain",)
    default = False  # it needs a target, and holds the features of all pictures

    def __init__(self, bench: Bench):
        super().__init__(bench)
        self.target, self.reference = str(bench.target), bench.reference
        named = dict.fromkeys(bench.specs + ([self.reference] if self.reference else []))
        self.sources = [spec for spec in named if weights_of(spec) != weights_of(self.target)]
        if not self.sources:
            raise S2WrapError(
                f"no model but {self.target} and its own weights is named, which hold its features; name others, from "
                f"which it is to be reconstructed"
            )
        if self.reference is not None and self.reference not in self.sources:
            raise S2WrapError(f"{self.reference} has the weights of the target; I* is that of another, larger model")
        bench.facts["reconstructed"] = f"the features of {self.target}"
        self.maps = bench.maps(self.target)
        self.best = None if self.reference is None else self._recover(self.reference)
        if self.best is not None:
            value, in_training = self.best.information.value, self.best.information_train
            bench.facts["I*"] = f"{value:.3f} ({in_training:.3f} in training), of {self.reference}"

    def score(self, spec: str) -> Result:
        """As `Task.score`."""
        if spec not in self.sources:
            return Result({})
        found = compared(self._recover(spec), self.best)
        details = ("information_train", "ratio_train", "ratio_test", "loss_train", "loss_test")
        figures = {name: value for name in details if (value := getattr(found, name)) is not None}
        return Result({"information": found.information}, figures)

    def _recover(self, spec: str) -> Recovery:
        maps = self.bench.maps(spec, self.bench.make(spec, target_grid=tuple(self.maps[0].shape[1:])))
        inputs = self.maps, {spec: maps}, self.bench.pictures.folds, self.bench.pictures.contents
        return reconstruct(*inputs, progress=self.bench.track)[spec]


def reconstruct(
    target: Sequence[Tensor],
    sources: Mapping[str, Sequence[Tensor]],
    folds: Sequence[Fold],
    contents: Sequence[str],
    *,
    reference: str | None = None,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> dict[str, Recovery]:
    """Return how well ridge regression recovers the target's tokens from each source's, by source name.

    Every fold trains on the same number of tokens of each training picture, `TOKENS` in all at most, drawn once for
    all sources. Source channels are scaled to variance 1 over them. The penalty is the one of `PENALTIES` with the
    least error in cross-validation over whole training pictures; with it the map is fitted to all training tokens,
    and tested on all tokens of the test pictures. Everything is computed in float64.

    The penalty is relative to a mean: scikit-learn's `Ridge(alpha=penalty * tokens)` on standardised channels. The
    solution is exact, from one eigendecomposition for all penalties; memory grows with channels², not with tokens.

    Args:
        target: (c, h, w) of each picture, the features to recover.
        sources: by name, (c', h, w) of each picture, on the grid of the target.
        folds: which pictures train and which test.
        contents: a hash of each picture; copies have the same.
        reference: the source whose information is I*: a model larger than the target.
        progress: wraps the list of fits, one a source and fold.

    Raises:
        S2WrapError: different numbers of pictures or different grids, values that are not finite, a constant target, a
            reference that is not a source, or pictures in both training and test.
    """
    _check(target, sources, contents, reference)
    check_folds(folds, contents)
    chosen = [_choose_tokens(target, fold) for fold in folds]
    results: dict[str, list[_FoldResult]] = {name: [] for name in sources}
    for name, number in progress([(name, number) for name in sources for number in range(len(folds))]):
        results[name].append(_recover(target, sources[name], folds[number], contents, chosen[number]))
    order = np.argsort(np.concatenate([fold.test for fold in folds]))
    summaries = {name: _summarise(results[name], order) for name in sources}
    best = None if reference is None else summaries[reference]
    return {name: compared(summary, best) for name, summary in summaries.items()}


def compared(one: Recovery, best: Recovery | None) -> Recovery:
    """Return a result with its ratios to that of the reference."""
    if best is None:
        return one
    ratio_train = _ratio(one.information_train, best.information_train)
    return replace(one, ratio_train=ratio_train, ratio_test=_ratio(one.information.value, best.information.value))


def _check(target: Any, sources: Any, contents: Any, reference: str | None) -> None:
    """Raise S2WrapError for missing features, different grids, or values that are not finite."""
    if reference is not None and reference not in sources:
        raise S2WrapError(f"reference={reference!r} is no source; use one of {', '.join(sources)}")
    for name, maps in {"the target": target, **sources}.items():
        if len(maps) != len(contents):
            raise S2WrapError(f"{name} has features of {len(maps)} pictures, but there are {len(contents)}")
        for number, (spatial, target_map) in enumerate(zip(maps, target, strict=True)):
            grid, target_grid = ("×".join(map(str, each.shape[1:])) for each in (spatial, target_map))
            if grid != target_grid:
                raise S2WrapError(
                    f"{name} has a grid of {grid} tokens for picture {number}, the target one of {target_grid}; a "
                    f"linear map goes from token to token: resize one to the grid of the other"
                )
            if not spatial.sum(dtype=torch.float64).isfinite():  # far quicker than to test every value
                raise S2WrapError(
                    f"{name} has features of picture {number} that are infinite or no numbers; compute them in float32"
                )


def _choose_tokens(target: Sequence[Tensor], fold: Fold) -> dict[int, np.ndarray]:
    """Return indices of the training tokens of each training picture: equally many of each, where it has enough."""
    rng, count = np.random.default_rng(0), max(1, TOKENS // len(fold.train))
    return {int(index): rng.permutation(target[index][0].numel())[:count] for index in fold.train}


def _recover(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    fold: Fold,
    contents: Sequence[str],
    chosen: dict[int, np.ndarray],
) -> _FoldResult:
    """Return the result of one fold, whose penalty is chosen by cross-validation."""
    ridge = fit(target, source, fold, contents, chosen)

    def losses(pictures: np.ndarray) -> np.ndarray:
        sums = []
        for index in map(int, pictures):
            wanted = tokens_of(target, index, chosen)
            centred, residual = wanted - ridge.constant, wanted - ridge.predict(tokens_of(source, index, chosen))
            sums.append((np.square(residual).sum(), np.square(centred).sum(), centred.size))
        return np.array(sums)

    return _FoldResult(losses(fold.train), losses(fold.test), ridge.penalty, ridge.tokens)


def _summarise(folds: list[_FoldResult], order: np.ndarray) -> Recovery:
    """Return the result over all folds, without ratios.

    `order` sorts the test pictures by index, so that all models' scores are resampled by the same pictures.
    """
    train = np.concatenate([fold.train for fold in folds]).sum(axis=0)
    pictures = np.concatenate([fold.test for fold in folds])[order]
    test = pictures.sum(axis=0)
    return Recovery(
        loss_train=float(train[0] / train[2]),
        loss_test=float(test[0] / test[2]),
        constant_train=float(train[1] / train[2]),
        constant_test=float(test[1] / test[2]),
        information=score(pictures, _information),
        information_train=float(_information(train[None])[0]),
        regularisation=tuple(fold.penalty for fold in folds),
        tokens=tuple(fold.tokens for fold in folds),
    )


def _information(sums: np.ndarray) -> np.ndarray:
    """Return −log(l / l0) (r,) from sums (r, 3)."""
    return -np.log(sums[:, 0] / sums[:, 1])


def _ratio(information: float, best: float) -> float | None:
    return information / best if best > 0 else None
