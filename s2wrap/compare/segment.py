"""Quality on pictures with masks: linear segmentation on frozen maps."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange

from s2wrap.compare.data import IGNORED
from s2wrap.compare.folds import Fold, check_folds, inner_folds
from s2wrap.compare.score import Score, score
from s2wrap.errors import S2WrapError
from s2wrap.plan import Axis
from s2wrap.resample import merge_matrix

STRENGTHS = tuple(10.0 ** np.arange(-3, 3))
"""What C times the squared length of a token is tried at: from guessing by frequency to hardly any penalty."""
TOKENS = 10_000
"""Tokens that train a classifier at most, as many of each picture; at least one of each."""

Logits = Callable[[np.ndarray], np.ndarray]


def segment(
    maps: Sequence[Any],
    masks: Sequence[Any],
    folds: Sequence[Fold],
    contents: Sequence[str],
    *,
    classes: int,
    progress: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Score:
    """The mIoU of a linear segmentation: the mean over classes of pixels right / pixels that are or are told to be it.

    A linear classifier (logistic regression with an L2 penalty) is fitted to tokens, standardised, with the exact
    cross-entropy against the shares of the classes in each token's cell of the mask. At most `TOKENS` train it, drawn
    the same way for every model. C is chosen among the training pictures of a fold, by the mIoU over cells. Logits of
    the tested maps are interpolated bilinearly to the mask's pixels, and the largest counts. Pixels of all tested
    pictures are put together; classes are those that are in their masks.

    Linear segmentation on frozen features is how DINOv2 (arXiv 2304.07193, section 7.4, "lin.") measures dense
    features; there with the optimiser's settings in place of C.

    Args:
        maps: (c, h, w) of each picture, finite numbers; grids may differ.
        masks: (H, W) of each picture, class numbers 0 … classes - 1; pixels of 255 do not count. Cells are an even
            grid over the mask, and share a pixel that lies on their edge.
        folds: which pictures train and which test; each is tested at most once.
        contents: a hash of each picture; copies have the same.
        classes: number of classes, 255 at most.
        progress: wraps the list of folds.

    Raises:
        S2WrapError: a picture trains and is tested; a mask of other numbers; one class to train; no pixel that counts
            to test; maps that are not finite or differ in channels; lengths that differ.
    """
    _check(maps, masks, contents, classes)
    check_folds(folds, contents)
    spatials = [torch.as_tensor(spatial).detach().cpu().float() for spatial in maps]
    _check_channels(spatials)
    count = max(1, TOKENS // min(len(fold.train) for fold in folds))
    cells = [
        _cells(spatial, mask, classes, count, seed)
        for seed, (spatial, mask) in enumerate(zip(spatials, masks, strict=True))
    ]
    counted = {}
    for number, fold in enumerate(progress(list(folds))):
        train = _join(cells, fold.train)
        _check_train(train, number)
        inner = [Fold(fold.train[part.train], fold.train[part.test]) for part in inner_folds(fold, None, contents)]
        logits = next(_fits(train, (_best(cells, inner),)))
        for index in fold.test:
            counted[index] = _count_pixels(logits, spatials[index], np.asarray(masks[index]), classes)
    parts = np.stack([counted[index] for index in sorted(counted)])
    if not parts.any():
        raise S2WrapError(f"none of {len(parts)} tested masks has a pixel that counts; {IGNORED} is what does not")
    return score(parts, miou)


def miou(totals: np.ndarray) -> np.ndarray:
    """The mean IoU (r,) over the classes that are there.

    Args:
        totals: (r, 3, classes) of each class: pixels right, pixels of the class, pixels that are told to be it.

    >>> miou(np.array([[[1, 2, 0], [2, 2, 0], [1, 3, 0]]])).round(3).tolist()
    [0.583]
    """
    right, truth, told = np.moveaxis(totals, 1, 0)
    there = truth > 0
    shares = right / np.where(there, truth + told - right, 1)
    return np.where(there, shares, 0).sum(axis=1) / there.sum(axis=1).clip(1)


@dataclass(frozen=True)
class _Cells:
    """Tokens (t, c), and which share of its cell each class has (t, classes); what does not count is in no share."""

    tokens: np.ndarray
    shares: np.ndarray


def _cells(spatial: torch.Tensor, mask: Any, classes: int, count: int, seed: int) -> _Cells:
    """As many as `count` cells of a picture, drawn from those where a pixel counts."""
    tokens = rearrange(spatial.numpy(), "c h w -> (h w) c")
    shares = cell_shares(np.asarray(mask), (spatial.shape[1], spatial.shape[2]), classes)
    some = np.flatnonzero(shares.sum(axis=1) > 1e-9)
    drawn = np.sort(np.random.default_rng(seed).permutation(some)[:count])
    return _Cells(tokens[drawn], shares[drawn].astype(np.float32))


def cell_shares(mask: np.ndarray, grid_hw: tuple[int, int], classes: int) -> np.ndarray:
    """The share of its pixels that each class has in each cell: (h · w, classes), row by row.

    >>> cell_shares(np.array([[0, 1], [0, 255]]), (1, 2), 2).tolist()
    [[1.0, 0.0], [0.0, 0.5]]
    """
    rows, cols = (_areas(pixels, cells) for pixels, cells in zip(mask.shape, grid_hw, strict=True))
    shares = np.zeros((len(rows) * len(cols), classes))
    for label in np.unique(mask[mask != IGNORED]):
        shares[:, label] = rearrange(rows @ (mask == label) @ cols.T, "h w -> (h w)")
    return shares


def _areas(pixels: int, cells: int) -> np.ndarray:
    """The (cells, pixels) matrix that averages pixels over an even grid."""
    axis = Axis(size=pixels, tile=pixels, starts=(0,), content=pixels)
    return merge_matrix(axis, tokens=pixels, patch=1, cells=cells, blend="constant")[0]


def _join(cells: Sequence[_Cells], pictures: np.ndarray) -> _Cells:
    parts = [cells[index] for index in pictures]
    return _Cells(np.concatenate([part.tokens for part in parts]), np.concatenate([part.shares for part in parts]))


def _best(cells: Sequence[_Cells], folds: Sequence[Fold]) -> float:
    """The strength with the largest mIoU over the cells of the pictures that the folds test; of several, the first."""
    totals: Any = 0
    for fold in folds:
        train, test = _join(cells, fold.train), _join(cells, fold.test)
        totals = totals + np.stack([_count(fit(test.tokens), test.shares) for fit in _fits(train, STRENGTHS)])
    return STRENGTHS[int(miou(totals).argmax())]


def _fits(cells: _Cells, strengths: Sequence[float]) -> Iterator[Logits]:
    """Logits (t, classes) of tokens (t, c), by classifiers fitted with ever weaker penalties."""
    from sklearn.preprocessing import StandardScaler

    scaler: Any = StandardScaler().fit(cells.tokens)
    train = _Cells(scaler.transform(cells.tokens), cells.shares)
    weights = np.zeros((train.tokens.shape[1] + 1, train.shares.shape[1]))
    for strength in strengths:
        weights = fit_softmax(train.tokens, train.shares, strength, start=weights)
        yield lambda tokens, weights=weights: scaler.transform(tokens) @ weights[:-1] + weights[-1]


def fit_softmax(tokens: np.ndarray, shares: np.ndarray, strength: float, *, start: np.ndarray) -> np.ndarray:
    """The weights (c + 1, classes) of a multinomial logistic regression, the last row those without a token.

    The minimum, by L-BFGS, of Σ −share · log probability + |weights|² / (2 C), the last row not punished.

    Args:
        tokens: (t, c), standardised.
        shares: (t, classes) how much of each token is of each class: what a row counts.
        strength: C times the mean squared length of a token.
        start: weights to begin at.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    total = shares.sum()
    penalty = (np.square(tokens).sum(axis=1).mean() or 1.0) / (strength * total)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape)
        single = weights.astype(tokens.dtype)
        logs = log_softmax(tokens @ single[:-1] + single[-1], axis=1)
        gaps = (np.exp(logs) * shares.sum(axis=1, keepdims=True) - shares) / total
        gradient = np.concatenate([tokens.T @ gaps + penalty * weights[:-1], gaps.sum(axis=0, keepdims=True)])
        value = -(shares * logs).sum(dtype=np.float64) / total + penalty / 2 * np.square(weights[:-1]).sum()
        return float(value), gradient.ravel().astype(np.float64)

    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "gtol": 1e-5})
    return found.x.reshape(start.shape)


def _count(logits: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """What of each class is right, what is of it, and what is told to be it: (3, classes)."""
    told = np.eye(shares.shape[1])[logits.argmax(axis=1)]
    return np.stack([(shares * told).sum(axis=0), shares.sum(axis=0), shares.sum(axis=1) @ told])


def _count_pixels(logits: Logits, spatial: torch.Tensor, mask: np.ndarray, classes: int) -> np.ndarray:
    """`_count` of the pixels of a picture."""
    height, width = spatial.shape[1:]
    grid = rearrange(logits(rearrange(spatial.numpy(), "c h w -> (h w) c")), "(h w) k -> 1 k h w", h=height, w=width)
    fine = F.interpolate(torch.from_numpy(grid), size=mask.shape, mode="bilinear", align_corners=False)
    told, counts = fine[0].argmax(dim=0).numpy(), mask != IGNORED
    pairs = np.bincount(mask[counts].astype(int) * classes + told[counts], minlength=classes**2)
    confusion = pairs.reshape(classes, classes)
    return np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)])


def _check(maps: Sequence[Any], masks: Sequence[Any], contents: Sequence[str], classes: int) -> None:
    if not len(maps) == len(masks) == len(contents):
        raise S2WrapError(f"{len(maps)} maps, {len(masks)} masks and {len(contents)} contents; give one each a picture")
    for index, mask in enumerate(masks):
        values = np.unique(mask)
        strange = values[(values >= classes) & (values != IGNORED)]
        if np.ndim(mask) != 2 or len(strange):
            raise S2WrapError(
                f"the mask of picture {index} is {np.shape(mask)} and holds {strange.tolist()}; a mask is (H, W), of "
                f"class numbers 0 to {classes - 1}, and {IGNORED} for pixels that do not count"
            )


def _check_channels(spatials: Sequence[torch.Tensor]) -> None:
    for index, spatial in enumerate(spatials):
        if spatial.ndim != 3 or len(spatial) != len(spatials[0]) or not bool(spatial.isfinite().all()):
            raise S2WrapError(
                f"the map of picture {index} is {tuple(spatial.shape)} beside {tuple(spatials[0].shape)} of the first; "
                f"maps are (c, h, w), of as many channels, and finite"
            )


def _check_train(train: _Cells, number: int) -> None:
    names = np.flatnonzero(train.shares.sum(axis=0))
    if len(names) < 2:
        raise S2WrapError(
            f"the masks that train in fold {number} hold class {names.tolist()} only; a classifier needs two or more: "
            f"add pictures, or deal them otherwise"
        )
