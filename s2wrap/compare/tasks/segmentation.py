"""Quality on pictures with masks: the mIoU of a linear segmentation on frozen maps."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from s2wrap.compare.folds import Fold, inner_folds
from s2wrap.compare.tasks.masks import Cells, Classifier, Masks, join_cells, miou
from s2wrap.errors import S2WrapError

STRENGTHS = tuple(10.0 ** np.arange(-3, 3))
"""Candidate values of C times the mean squared length of a token, from a constant guess to hardly any penalty."""


class Segmentation(Masks):
    """The task: the classes of pixels from a map by a linear classifier.

    Logistic regression with an L2 penalty is fitted to standardised tokens, with the exact cross-entropy against the
    shares of the classes in each token's cell of the mask. C is chosen among the training pictures of a fold, by the
    mIoU over cells. Linear segmentation on frozen features is how DINOv2 (arXiv 2304.07193, section 7.4, "lin.")
    measures dense features; there the settings of the optimiser take the place of C.
    """

    measures = ("mIoU", "boundary mIoU")
    most = 10_000

    @staticmethod
    def fit(cells: Sequence[Cells], fold: Fold, contents: Sequence[str]) -> Classifier:
        """As `Masks.fit`. Raises S2WrapError for a single class in training."""
        train = join_cells(cells, fold.train)
        classes = np.flatnonzero(train.shares.sum(axis=0))
        if len(classes) < 2:
            raise S2WrapError(
                f"the masks that train in a fold hold class {classes.tolist()} only; a classifier needs two or more: "
                f"add pictures, or deal them otherwise"
            )
        inner = [Fold(fold.train[part.train], fold.train[part.test]) for part in inner_folds(fold, None, contents)]
        return next(_fit_all(train, (_best_strength(cells, inner),)))


def _best_strength(cells: Sequence[Cells], folds: Sequence[Fold]) -> float:
    """Return the strength with the largest mIoU over the cells of the folds' test pictures; of equals, the first."""
    totals: Any = 0
    for fold in folds:
        train, test = join_cells(cells, fold.train), join_cells(cells, fold.test)
        totals = totals + np.stack([_count(fit(test.tokens), test.shares) for fit in _fit_all(train, STRENGTHS)])
    return STRENGTHS[int(miou(totals).argmax())]


def _fit_all(cells: Cells, strengths: Sequence[float]) -> Iterator[Classifier]:
    """Yield a classifier for each strength, fitted from the weights of the one before."""
    from sklearn.preprocessing import StandardScaler

    scaler: Any = StandardScaler().fit(cells.tokens)
    train = Cells(scaler.transform(cells.tokens), cells.shares)
    weights = np.zeros((train.tokens.shape[1] + 1, train.shares.shape[1]))
    for strength in strengths:
        weights = fit_softmax(train.tokens, train.shares, strength, start=weights)
        yield lambda tokens, weights=weights: scaler.transform(tokens) @ weights[:-1] + weights[-1]


def fit_softmax(tokens: np.ndarray, shares: np.ndarray, strength: float, *, start: np.ndarray) -> np.ndarray:
    """Return the weights (c + 1, classes) of a multinomial logistic regression, with the biases in the last row.

    They minimise, by L-BFGS, Σ −share · log probability + |weights|² / (2 C), with biases left out of the penalty.

    Args:
        tokens: (t, c), standardised.
        shares: (t, classes) each class's share of a token's cell; a row's sum is the token's weight.
        strength: C times the mean squared length of a token.
        start: initial weights.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    total = shares.sum()
    penalty = (np.square(tokens).sum(axis=1).mean() or 1.0) / (strength * total)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape)
        single = weights.astype(tokens.dtype)
        logs = log_softmax(tokens @ single[:-1] + single[-1], axis=1)
        by_logit = (np.exp(logs) * shares.sum(axis=1, keepdims=True) - shares) / total
        gradient = np.concatenate([tokens.T @ by_logit + penalty * weights[:-1], by_logit.sum(axis=0, keepdims=True)])
        value = -(shares * logs).sum(dtype=np.float64) / total + penalty / 2 * np.square(weights[:-1]).sum()
        return float(value), gradient.ravel().astype(np.float64)

    result = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "gtol": 1e-5})
    return result.x.reshape(start.shape)


def _count(logits: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return for each class the correct, the actual and the predicted amount over cells: (3, classes)."""
    predicted = np.eye(shares.shape[1])[logits.argmax(axis=1)]
    return np.stack([(shares * predicted).sum(axis=0), shares.sum(axis=0), shares.sum(axis=1) @ predicted])
