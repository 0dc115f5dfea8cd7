"""Measure how well a linear map recovers a larger model's features from another's (S² paper, section 4, Table 2)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from s2wrap.compare.folds import Fold, check_folds, inner_folds
from s2wrap.compare.score import Score, score
from s2wrap.compare.tasks.base import Bench, Result, Task
from s2wrap.compare.ways import weights_of
from s2wrap.errors import S2WrapError

TOKENS = 50_000
"""Most training tokens of a fold, though at least one of each picture."""
PENALTIES = 10.0 ** np.arange(-8, 4)
"""Candidate penalties, which are added to the variance, 1, of every source channel."""
BATCH = 32
"""Pictures whose tokens are multiplied at a time."""


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


def _tokens(maps: Sequence[Tensor], index: int, chosen: dict[int, np.ndarray]) -> np.ndarray:
    """Return the chosen tokens of a picture, or all if none are chosen: (tokens, c), float64."""
    tokens = rearrange(maps[index].numpy(), "c h w -> (h w) c")
    return np.asarray(tokens[chosen[index]] if index in chosen else tokens, dtype=np.float64)


@dataclass(frozen=True)
class Fit:
    """A fitted linear map: its weight (c, d), the means of its inputs (c,) and outputs (d,), and how it was fitted."""

    weight: np.ndarray
    mean: np.ndarray
    constant: np.ndarray
    penalty: float
    tokens: int

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """Return outputs (t, d) of tokens (t, c)."""
        return (tokens - self.mean) @ self.weight + self.constant


def fit(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    fold: Fold,
    contents: Sequence[str],
    chosen: dict[int, np.ndarray],
) -> Fit:
    """Return the ridge regression from the tokens of some maps to those of others.

    Args:
        target: (d, h, w) of each picture.
        source: (c, h, w) of each picture.
        fold: the pictures that train; the penalty is chosen by cross-validation among them.
        contents: a hash of each picture.
        chosen: indices of the tokens of each training picture.
    """
    width = source[0].shape[0]
    held_out = [fold.train[inner.test] for inner in inner_folds(fold, None, contents)]
    grams = [_gram(target, source, pictures, chosen) for pictures in held_out]
    total = np.sum(grams, axis=0)
    errors = np.sum([_Ridge(total - gram, width).errors(gram) for gram in grams], axis=0)
    penalty = float(PENALTIES[np.argmin(errors)])
    ridge = _Ridge(total, width)
    return Fit(ridge.weight(penalty), ridge.mean[:width], ridge.mean[width:], penalty, int(total[-1, -1]))


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
            wanted = _tokens(target, index, chosen)
            centred, residual = wanted - ridge.constant, wanted - ridge.predict(_tokens(source, index, chosen))
            sums.append((np.square(residual).sum(), np.square(centred).sum(), centred.size))
        return np.array(sums)

    return _FoldResult(losses(fold.train), losses(fold.test), ridge.penalty, ridge.tokens)


def _gram(
    target: Sequence[Tensor], source: Sequence[Tensor], pictures: np.ndarray, chosen: dict[int, np.ndarray]
) -> np.ndarray:
    """Return the sum over tokens of the outer product of (source channels, target channels, 1) with itself."""
    gram: Any = 0.0
    for start in range(0, len(pictures), BATCH):
        batch = [int(index) for index in pictures[start : start + BATCH]]
        inputs, outputs = (np.concatenate([_tokens(maps, i, chosen) for i in batch]) for maps in (source, target))
        joined = np.concatenate([inputs, outputs, np.ones((len(inputs), 1))], axis=1)
        gram = gram + joined.T @ joined
    return gram


def _centred_products(gram: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the sums of products of channels minus `mean`, from a `_gram`."""
    sums, count = gram[:-1, -1], gram[-1, -1]
    return gram[:-1, :-1] - np.outer(sums, mean) - np.outer(mean, sums - count * mean)


class _Ridge:
    """Ridge regression for all penalties at once, from sums of products.

    With V diag(λ) Vᵀ the covariance of standardised source channels, and C their covariance with the target's, the
    weight for penalty p is V diag(1 / (λ + p)) Vᵀ C.
    """

    def __init__(self, gram: np.ndarray, width: int):
        """Fit the channels of a `_gram` from its first `width` channels, those of the source."""
        count = gram[-1, -1]
        self.width = width
        self.mean = gram[:-1, -1] / count
        covariance = _centred_products(gram, self.mean) / count
        if np.trace(covariance[width:, width:]) <= 1e-12 * np.trace(gram[width:-1, width:-1]) / count:
            raise S2WrapError("the target's features are the same everywhere in training: there is nothing to recover")
        # the variance of a constant channel is rounding error, which must not be scaled up to 1
        variance, mean_square = np.diag(covariance)[:width], np.diag(gram)[:width] / count
        deviation = np.sqrt(np.where(variance > 1e-12 * mean_square, variance, 1.0))
        eigenvalues, eigenvectors = np.linalg.eigh(covariance[:width, :width] / np.outer(deviation, deviation))
        self.eigenvalues = eigenvalues.clip(0)
        self.basis = eigenvectors / deviation[:, None]
        self.projected = self.basis.T @ covariance[:width, width:]

    def weight(self, penalty: float) -> np.ndarray:
        """Return the weight (source channels, target channels) for channels that are centred, not standardised."""
        return self.basis @ (self.projected / (self.eigenvalues + penalty)[:, None])

    def errors(self, gram: np.ndarray) -> np.ndarray:
        """Return the sum of squared errors |Y|² − 2 Y·XW + |XW|² of each penalty, on the tokens of another `_gram`."""
        products = _centred_products(gram, self.mean)
        xx, xy = products[: self.width, : self.width], products[: self.width, self.width :]
        yy = np.trace(products[self.width :, self.width :])
        linear = (self.projected * (self.basis.T @ xy)).sum(axis=1)
        quadratic = (self.basis.T @ xx @ self.basis) * (self.projected @ self.projected.T)
        inverses = 1 / (self.eigenvalues + PENALTIES[:, None])
        return yy - 2 * inverses @ linear + ((inverses @ quadratic) * inverses).sum(axis=1)


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
