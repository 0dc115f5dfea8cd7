"""How much of a larger model's features a linear map recovers from another's (the S² paper, section 4, Table 2)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from s2wrap.compare.folds import Fold, check_folds, inner_folds
from s2wrap.compare.score import Score, score
from s2wrap.errors import S2WrapError

TOKENS = 50_000
"""Training tokens of a fold at most, or one of each picture."""
PENALTIES = 10.0 ** np.arange(-8, 4)
"""What regularisation is chosen from: added to the variance, 1, of every source channel."""
AT_ONCE = 32
"""Pictures whose tokens are multiplied at a time."""


@dataclass(frozen=True)
class Reconstruction:
    """How well one model's features are recovered from another's, in training and on held-out pictures.

    Losses are squared errors averaged over all tokens and channels (of all folds); information is −log(l / l0), in
    nats, with l0 the loss of the best constant vector.

    Attributes:
        loss_train: l on the training tokens.
        loss_test: l on all tokens of the pictures that were tested.
        constant_train: l0 on the training tokens.
        constant_test: l0 on the tokens that were tested, of the vector that is best for the training tokens. The paper
            does not say of which pictures; the map's own constant comes from these, so that a map that found nothing
            has information 0, and a constant fitted to the test would have seen it.
        information: on held-out pictures, with its noise; below 0 if the map is worse than the constant.
        information_train: on the training tokens.
        regularisation: the penalty that was chosen, a fold.
        tokens: that trained, a fold.
        ratio_train: I / I*, to the information that the reference recovers there; None without a reference, or if it
            recovers none.
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
class _Part:
    """What a fold gave: sums (pictures, 3) of squared errors, of those of the constant, and how many they are."""

    train: np.ndarray
    test: np.ndarray
    penalty: float
    tokens: int


def reconstruct(
    target: Sequence[Tensor],
    sources: Mapping[str, Sequence[Tensor]],
    folds: Sequence[Fold],
    contents: Sequence[str],
    *,
    reference: str | None = None,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> dict[str, Reconstruction]:
    """What ridge regression from each source's tokens recovers of the target's, token by token.

    Every fold takes the same number of tokens of each training picture, `TOKENS` together at most, drawn once for all
    sources. Source channels get variance 1 over them. The penalty is the one of `PENALTIES` with the least error on
    training pictures that were left out in turn, whole pictures at a time; with it the map is fitted to all training
    tokens. It is tested on all tokens of the test pictures. Everything is computed in float64.

    The penalty is that of a mean: scikit-learn's `Ridge(alpha=penalty * tokens)` on standardised channels. The least
    error is exact, by one eigendecomposition for all penalties, and needs (channels)² numbers of memory, not tokens.

    Args:
        target: (c, h, w) a picture, features that are to be recovered.
        sources: by name, (c', h, w) a picture, on the grid of the target.
        folds: which pictures train and which test; a given pair is one fold.
        contents: a hash of each picture, the same for copies.
        reference: which source's information is I*: that of a model larger than the target.
        progress: wraps the list of fits, one a source and fold.

    Raises:
        S2WrapError: pictures or grids that do not belong together, values that are not finite, a target that is the
            same everywhere, a reference that is no source, or pictures that train and are tested.
    """
    _check(target, sources, contents, reference)
    check_folds(folds, contents)
    chosen = [_choose_tokens(target, fold) for fold in folds]
    parts: dict[str, list[_Part]] = {name: [] for name in sources}
    for name, number in progress([(name, number) for name in sources for number in range(len(folds))]):
        parts[name].append(_recover(target, sources[name], folds[number], contents, chosen[number]))
    order = np.argsort(np.concatenate([fold.test for fold in folds]))
    found = {name: _summary(parts[name], order) for name in sources}
    if reference is None:
        return found
    best = found[reference]
    return {
        name: replace(
            each,
            ratio_train=_ratio(each.information_train, best.information_train),
            ratio_test=_ratio(each.information.value, best.information.value),
        )
        for name, each in found.items()
    }


def _check(target: Any, sources: Any, contents: Any, reference: str | None) -> None:
    """Raise S2WrapError where features are missing, lie on different grids, or are no numbers."""
    if reference is not None and reference not in sources:
        raise S2WrapError(f"reference={reference!r} is no source; use one of {', '.join(sources)}")
    for name, maps in {"the target": target, **sources}.items():
        if len(maps) != len(contents):
            raise S2WrapError(f"{name} has features of {len(maps)} pictures, but there are {len(contents)}")
        for number, (spatial, wanted) in enumerate(zip(maps, target, strict=True)):
            grid, aim = ("×".join(map(str, each.shape[1:])) for each in (spatial, wanted))
            if grid != aim:
                raise S2WrapError(
                    f"{name} has a grid of {grid} tokens for picture {number}, the target one of {aim}; a linear map "
                    f"goes from token to token: resize one to the grid of the other"
                )
            if not spatial.sum(dtype=torch.float64).isfinite():  # far quicker than to look at each
                raise S2WrapError(
                    f"{name} has features of picture {number} that are infinite or no numbers; compute them in float32"
                )


def _choose_tokens(target: Sequence[Tensor], fold: Fold) -> dict[int, np.ndarray]:
    """Which tokens of each training picture train: the same number of each, where it has as many."""
    rng, count = np.random.default_rng(0), max(1, TOKENS // len(fold.train))
    return {int(index): rng.permutation(target[index][0].numel())[:count] for index in fold.train}


def _tokens(maps: Sequence[Tensor], index: int, chosen: dict[int, np.ndarray]) -> np.ndarray:
    """The chosen tokens of a picture, or all: (tokens, c), float64."""
    tokens = rearrange(maps[index].numpy(), "c h w -> (h w) c")
    return np.asarray(tokens[chosen[index]] if index in chosen else tokens, dtype=np.float64)


def _recover(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    fold: Fold,
    contents: Sequence[str],
    chosen: dict[int, np.ndarray],
) -> _Part:
    """The losses of one fold."""
    width = source[0].shape[0]
    left_out = [fold.train[inner.test] for inner in inner_folds(fold, None, contents)]
    grams = [_gram(target, source, pictures, chosen) for pictures in left_out]
    total = np.sum(grams, axis=0)
    errors = np.sum([_Ridge(total - gram, width).errors(gram) for gram in grams], axis=0)
    penalty = float(PENALTIES[np.argmin(errors)])
    ridge = _Ridge(total, width)
    weight = ridge.weight(penalty)

    def losses(pictures: np.ndarray) -> np.ndarray:
        found = []
        for index in map(int, pictures):
            centred = _tokens(target, index, chosen) - ridge.mean[width:]
            missed = centred - (_tokens(source, index, chosen) - ridge.mean[:width]) @ weight
            found.append((np.square(missed).sum(), np.square(centred).sum(), centred.size))
        return np.array(found)

    return _Part(losses(fold.train), losses(fold.test), penalty, tokens=int(total[-1, -1]))


def _gram(
    target: Sequence[Tensor], source: Sequence[Tensor], pictures: np.ndarray, chosen: dict[int, np.ndarray]
) -> np.ndarray:
    """Sums over tokens of the products of all source channels, target channels and 1 with each other."""
    gram: Any = 0.0
    for start in range(0, len(pictures), AT_ONCE):
        some = [int(index) for index in pictures[start : start + AT_ONCE]]
        given, wanted = (np.concatenate([_tokens(maps, i, chosen) for i in some]) for maps in (source, target))
        joined = np.concatenate([given, wanted, np.ones((len(given), 1))], axis=1)
        gram = gram + joined.T @ joined
    return gram


def _about(gram: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The sums of products of channels less `mean`, from those of channels and 1."""
    sums, count = gram[:-1, -1], gram[-1, -1]
    return gram[:-1, :-1] - np.outer(sums, mean) - np.outer(mean, sums - count * mean)


class _Ridge:
    """Ridge regression for every penalty at once, from sums of products.

    With the covariance V diag(λ) Vᵀ of standardised source channels, and their covariance C with the target's, the
    weight of penalty p is V diag(1 / (λ + p)) Vᵀ C.
    """

    def __init__(self, gram: np.ndarray, width: int):
        """The regression on the first `width` channels of those that a `_gram` is of."""
        count = gram[-1, -1]
        self.width = width
        self.mean = gram[:-1, -1] / count
        covariance = _about(gram, self.mean) / count
        if np.trace(covariance[width:, width:]) <= 1e-12 * np.trace(gram[width:-1, width:-1]) / count:
            raise S2WrapError("the target's features are the same everywhere in training: there is nothing to recover")
        # a channel that never changes has a variance of rounding only, which must not be blown up to 1
        variance, power = np.diag(covariance)[:width], np.diag(gram)[:width] / count
        scale = np.sqrt(np.where(variance > 1e-12 * power, variance, 1.0))
        self.values, vectors = np.linalg.eigh(covariance[:width, :width] / np.outer(scale, scale))
        self.values = self.values.clip(0)
        self.basis = vectors / scale[:, None]
        self.along = self.basis.T @ covariance[:width, width:]

    def weight(self, penalty: float) -> np.ndarray:
        """The weight (source channels, target channels) of centred, but not standardised, channels."""
        return self.basis @ (self.along / (self.values + penalty)[:, None])

    def errors(self, gram: np.ndarray) -> np.ndarray:
        """The sum of squared errors of each penalty on other tokens, |Y|² − 2 Y·XW + |XW|², from their sums."""
        products = _about(gram, self.mean)
        given, wanted = products[: self.width, : self.width], products[: self.width, self.width :]
        agreement = (self.along * (self.basis.T @ wanted)).sum(axis=1)
        power = (self.basis.T @ given @ self.basis) * (self.along @ self.along.T)
        shares = 1 / (self.values + PENALTIES[:, None])
        energy = np.trace(products[self.width :, self.width :])
        return energy - 2 * shares @ agreement + ((shares @ power) * shares).sum(axis=1)


def _summary(parts: list[_Part], order: np.ndarray) -> Reconstruction:
    """Of all folds, without ratios; `order` sorts what was tested, so that draws belong to pictures, not to folds."""
    train = np.concatenate([part.train for part in parts]).sum(axis=0)
    pictures = np.concatenate([part.test for part in parts])[order]
    test = pictures.sum(axis=0)
    return Reconstruction(
        loss_train=float(train[0] / train[2]),
        loss_test=float(test[0] / test[2]),
        constant_train=float(train[1] / train[2]),
        constant_test=float(test[1] / test[2]),
        information=score(pictures, _information),
        information_train=float(_information(train[None])[0]),
        regularisation=tuple(part.penalty for part in parts),
        tokens=tuple(part.tokens for part in parts),
    )


def _information(sums: np.ndarray) -> np.ndarray:
    """−log(l / l0) from sums (r, 3)."""
    return -np.log(sums[:, 0] / sums[:, 1])


def _ratio(information: float, best: float) -> float | None:
    return information / best if best > 0 else None
