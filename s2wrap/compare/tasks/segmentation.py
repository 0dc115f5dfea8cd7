"""Quality on pictures with masks: the mIoU of a linear segmentation on frozen maps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from einops import rearrange

from s2wrap.compare.folds import Fold, inner_folds
from s2wrap.compare.score import Score
from s2wrap.compare.tasks.base import Result
from s2wrap.compare.tasks.masks import (
    Cells,
    Masks,
    border_score,
    check_maps,
    classes_of_pixels,
    draw_cells,
    iou_score,
    join_cells,
    miou,
)
from s2wrap.errors import S2WrapError

STRENGTHS = tuple(10.0 ** np.arange(-3, 3))
"""Candidate values of C times the mean squared length of a token, from a constant guess to hardly any penalty."""
TOKENS = 10_000
"""Most training tokens of a classifier, equally many of each picture, though at least one of each."""

Classifier = Callable[[np.ndarray], np.ndarray]
"""Maps tokens (t, c) to logits (t, classes)."""


class Segmentation(Masks):
    """The task: the classes of pixels from a map by a linear classifier, see `segment`; also beside borders alone."""

    def score(self, spec: str) -> Result:
        """As `Task.score`."""
        maps, pictures = self.bench.maps(spec), self.bench.pictures
        inputs = maps, self.masks, pictures.folds, pictures.contents
        predicted = predict(*inputs, classes=self.classes, progress=self.bench.track)
        scores = {"mIoU": iou_score(predicted, self.masks, self.classes)}
        return Result(scores | border_score("boundary mIoU", predicted, self.masks, self.classes, self.bands))


def segment(
    maps: Sequence[Any],
    masks: Sequence[Any],
    folds: Sequence[Fold],
    contents: Sequence[str],
    *,
    classes: int,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Score:
    """Return the mIoU of a linear segmentation: the mean over classes of intersection over union, in pixels.

    A linear classifier (logistic regression with an L2 penalty) is fitted to standardised tokens, with the exact
    cross-entropy against the shares of the classes in each token's cell of the mask. It is trained on at most `TOKENS`
    tokens, drawn the same way for every model. C is chosen among the training pictures of a fold, by the mIoU over
    cells. Logits of the test maps are interpolated bilinearly to the mask's pixels before the argmax. Intersections
    and unions are summed over all test pictures; the mean is over the classes that occur in their masks.

    Linear segmentation on frozen features is how DINOv2 (arXiv 2304.07193, section 7.4, "lin.") measures dense
    features; there the settings of the optimiser take the place of C.

    Args:
        maps: (c, h, w) of each picture, finite numbers; grids may differ.
        masks: (H, W) of each picture, class numbers 0 … classes - 1; pixels of 255 do not count. Cells are an even
            grid over the mask, and share a pixel that lies on their edge.
        folds: which pictures train and which test; each is tested at most once.
        contents: a hash of each picture; copies have the same.
        classes: number of classes, 255 at most.
        progress: wraps the list of folds.

    Raises:
        S2WrapError: a picture in both training and test; a mask of other numbers; a single class in training; no
            pixel that counts in test; maps that are not finite or differ in channels; lengths that differ.
    """
    return iou_score(predict(maps, masks, folds, contents, classes=classes, progress=progress), masks, classes)


def predict(
    maps: Sequence[Any],
    masks: Sequence[Any],
    folds: Sequence[Fold],
    contents: Sequence[str],
    *,
    classes: int,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> dict[int, np.ndarray]:
    """Return the class of each pixel (H, W) of the test pictures, by index; see `segment`."""
    spatials = check_maps(maps, masks, folds, contents, classes)
    cells = draw_cells(spatials, masks, folds, classes, TOKENS)
    predicted = {}
    for number, fold in enumerate(progress(list(folds))):
        train = join_cells(cells, fold.train)
        _check_train(train, number)
        inner = [Fold(fold.train[part.train], fold.train[part.test]) for part in inner_folds(fold, None, contents)]
        classifier = next(_fit_all(train, (_best_strength(cells, inner),)))
        for index in fold.test:
            logits = classifier(rearrange(spatials[index].numpy(), "c h w -> (h w) c"))
            predicted[int(index)] = classes_of_pixels(logits, spatials[index].shape[1], np.shape(masks[index]))
    return predicted


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


def _check_train(train: Cells, number: int) -> None:
    classes = np.flatnonzero(train.shares.sum(axis=0))
    if len(classes) < 2:
        raise S2WrapError(
            f"the masks that train in fold {number} hold class {classes.tolist()} only; a classifier needs two or "
            f"more: add pictures, or deal them otherwise"
        )
