"""Ridge regression from tokens to tokens, exact for all penalties at once, from sums over pictures."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from einops import rearrange
from torch import Tensor

from s2wrap.compare.folds import Fold, inner_folds
from s2wrap.errors import S2WrapError

PENALTIES = 10.0 ** np.arange(-8, 4)
"""Candidate penalties, which are added to the variance, 1, of every source channel."""
BATCH = 32
"""Pictures whose tokens are multiplied at a time."""


def fit(
    target: Sequence[Tensor],
    source: Sequence[Tensor],
    fold: Fold,
    contents: Sequence[str],
    chosen: dict[int, np.ndarray],
) -> "Ridge":
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
    errors = np.sum([Ridge(total - gram, width).errors(gram) for gram in grams], axis=0)
    return Ridge(total, width, float(PENALTIES[np.argmin(errors)]))


def tokens_of(maps: Sequence[Tensor], index: int, chosen: dict[int, np.ndarray]) -> np.ndarray:
    """Return the chosen tokens of a picture, or all if none are chosen: (tokens, c), float64."""
    tokens = rearrange(maps[index].numpy(), "c h w -> (h w) c")
    return np.asarray(tokens[chosen[index]] if index in chosen else tokens, dtype=np.float64)


def _gram(
    target: Sequence[Tensor], source: Sequence[Tensor], pictures: np.ndarray, chosen: dict[int, np.ndarray]
) -> np.ndarray:
    """Return the sum over tokens of the outer product of (source channels, target channels, 1) with itself."""
    gram: Any = 0.0
    for start in range(0, len(pictures), BATCH):
        batch = [int(index) for index in pictures[start : start + BATCH]]
        inputs, outputs = (np.concatenate([tokens_of(maps, i, chosen) for i in batch]) for maps in (source, target))
        joined = np.concatenate([inputs, outputs, np.ones((len(inputs), 1))], axis=1)
        gram = gram + joined.T @ joined
    return gram


def _centred_products(gram: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the sums of products of channels minus `mean`, from a `_gram`."""
    sums, count = gram[:-1, -1], gram[-1, -1]
    return gram[:-1, :-1] - np.outer(sums, mean) - np.outer(mean, sums - count * mean)


class Ridge:
    """Ridge regression from sums of products: the errors of all penalties at once, and the fit of one.

    With V diag(λ) Vᵀ the covariance of standardised source channels, and C their covariance with the target's, the
    weight for penalty p is V diag(1 / (λ + p)) Vᵀ C.
    """

    def __init__(self, gram: np.ndarray, width: int, penalty: float = 1.0):
        """Fit the channels of a `_gram` from its first `width` channels, those of the source."""
        count = gram[-1, -1]
        self.width, self.penalty, self.tokens = width, penalty, int(count)
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

    @property
    def constant(self) -> np.ndarray:
        """The mean of the target's channels (d,): the best guess without a source."""
        return self.mean[self.width :]

    @cached_property
    def weight(self) -> np.ndarray:
        """The weight (c, d) for channels that are centred, not standardised."""
        return self.basis @ (self.projected / (self.eigenvalues + self.penalty)[:, None])

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """Return outputs (t, d) of tokens (t, c)."""
        return (tokens - self.mean[: self.width]) @ self.weight + self.constant

    def errors(self, gram: np.ndarray) -> np.ndarray:
        """Return the sum of squared errors |Y|² − 2 Y·XW + |XW|² of each penalty, on the tokens of another `_gram`."""
        products = _centred_products(gram, self.mean)
        xx, xy = products[: self.width, : self.width], products[: self.width, self.width :]
        yy = np.trace(products[self.width :, self.width :])
        linear = (self.projected * (self.basis.T @ xy)).sum(axis=1)
        quadratic = (self.basis.T @ xx @ self.basis) * (self.projected @ self.projected.T)
        inverses = 1 / (self.eigenvalues + PENALTIES[:, None])
        return yy - 2 * inverses @ linear + ((inverses @ quadratic) * inverses).sum(axis=1)
