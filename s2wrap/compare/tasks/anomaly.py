"""Find defects: how far is a token from all tokens of flawless pictures?

The bank holds tokens of the flawless training pictures. A token's score is one minus the cosine to the nearest of them
(as in PatchCore, arXiv 2106.08265, with cosines). Scores of tokens are interpolated bilinearly to pixels; a picture's
score is the mean of its largest 1 % of tokens. All measures come from histograms of scores, which add up over pictures.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from torch import Tensor

from s2wrap.compare.data import load_mask
from s2wrap.compare.score import Score, score
from s2wrap.compare.tasks.base import Task
from s2wrap.compare.warps import chunks

BANK = 20_000
"""Most tokens of the bank: equally many of each picture, drawn at random, the same for models of the same grid."""
TOP = 0.01
"""A picture's score is the mean of this share of its tokens, those with the largest scores."""
BINS = 500
"""Bins of scores of pixels, in each of three ways to lay them."""
LARGEST_FPR = 0.3
"""AU-PRO is averaged up to this rate of false positives."""


class Anomaly(Task):
    """The task: AU-PRO decides; AUROC of pictures and of pixels and the best F1 of pixels stand beside it."""

    forms = ("defective",)

    def score(self, spec: str) -> dict[str, Score]:
        """As `Task.score`."""
        maps, (fold,) = self.bench.maps(spec), self.bench.pictures.folds
        bank = make_bank([maps[index] for index in fold.train])
        scores = [distances(maps[index], bank) for index in fold.test]
        paths = self.bench.pictures.masks or []
        sizes = [self.bench.pictures.sizes[index] for index in fold.test]
        masks = (
            np.zeros(size, dtype=bool) if (path := paths[index]) is None else load_mask(path) > 0
            for index, size in zip(fold.test, sizes, strict=True)
        )
        defective = np.array([paths[index] is not None for index in fold.test])
        return pixel_scores(scores, masks) | {"image AUROC": image_auroc(scores, defective)}


def make_bank(maps: list[Tensor]) -> Tensor:
    """Return tokens (n, c) of unit length of maps (c, h, w), `BANK` at most."""
    rng, count, tokens = np.random.default_rng(0), max(1, BANK // len(maps)), []
    for spatial in maps:
        flat = rearrange(spatial, "c h w -> (h w) c")
        tokens.append(F.normalize(flat[np.sort(rng.permutation(len(flat))[:count])], dim=1))
    return torch.cat(tokens)


def distances(spatial: Tensor, bank: Tensor) -> Tensor:
    """Return one minus the cosine of each token of a map (c, h, w) to the nearest of a bank: (h, w)."""
    tokens = F.normalize(rearrange(spatial, "c h w -> (h w) c"), dim=1)
    nearest = torch.cat([(tokens[part] @ bank.T).amax(dim=1) for part in chunks(len(tokens), 1024)])
    return (1 - nearest).reshape(spatial.shape[1:])


def image_auroc(scores: list[Tensor], defective: np.ndarray) -> Score:
    """Return the area under the ROC curve of pictures, from the scores of their tokens and which are defective."""
    values = np.array([float(each.flatten().topk(max(1, round(TOP * each.numel()))).values.mean()) for each in scores])
    bins = np.unique(values, return_inverse=True)[1]
    parts = np.zeros((len(values), 2, bins.max() + 1))
    parts[np.arange(len(values)), defective.astype(int), bins] = 1
    return score(parts, lambda sums: auroc(sums[:, 0], sums[:, 1]))


def pixel_scores(scores: list[Tensor], masks: Iterator[np.ndarray]) -> dict[str, Score]:
    """Return "AU-PRO", "pixel AUROC" and "best F1" (over all thresholds).

    Args:
        scores: (h, w) of each picture, of its cells.
        masks: (H, W) of each picture: which pixels are defective. They are taken one after the other.
    """
    edges = lay_bins(torch.cat([each.flatten() for each in scores]).numpy())
    parts = np.stack([histograms(each, mask, edges) for each, mask in zip(scores, masks, strict=True)])
    return {
        "AU-PRO": score(parts, lambda sums: aupro(sums[:, 0], sums[:, 2])),
        "pixel AUROC": score(parts, lambda sums: auroc(sums[:, 0], sums[:, 1])),
        "best F1": score(parts, lambda sums: best_f1(sums[:, 0], sums[:, 1])),
    }


def lay_bins(values: np.ndarray) -> np.ndarray:
    """Return the inner edges of bins: fine where there are many scores, where they are large, and evenly."""
    shares = np.concatenate([np.linspace(0, 1, BINS), np.linspace(0.95, 1, BINS)])
    return np.unique(np.concatenate([np.quantile(values, shares), np.linspace(values.min(), values.max(), BINS)]))


def histograms(cells: Tensor, mask: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return how many pixels of each bin of scores are flawless, and defective, and each region's share: (3, bins).

    Regions are the connected parts of a mask (corners connect); the third row sums to their number.
    """
    from scipy.ndimage import label

    fine = F.interpolate(cells[None, None], size=mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    bins = np.searchsorted(edges, fine, side="right")
    regions: np.ndarray = label(mask, structure=np.ones((3, 3)))[0]  # type: ignore[assignment] (an array and a count)
    weights = 1 / np.bincount(regions.ravel()).clip(1)[regions[mask]]
    count = len(edges) + 1
    return np.stack(
        [
            np.bincount(bins[~mask], minlength=count),
            np.bincount(bins[mask], minlength=count),
            np.bincount(bins[mask], weights=weights, minlength=count),
        ]
    )


def auroc(negative: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return areas under ROC curves (r,), from histograms (r, bins); those of the same bin count as half."""
    below = negative.cumsum(axis=1) - negative / 2
    pairs = negative.sum(axis=1) * positive.sum(axis=1)
    return _share((positive * below).sum(axis=1), pairs, 0.5)


def aupro(negative: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Return areas under the curves of the regions' overlap, up to `LARGEST_FPR`, as a share of it: (r,)."""
    start = np.zeros((len(negative), 1))
    rates, overlaps = (
        np.concatenate([start, _share(each[:, ::-1].cumsum(axis=1), each.sum(axis=1, keepdims=True), 0)], axis=1)
        for each in (negative, regions)
    )
    widths = np.diff(rates.clip(max=LARGEST_FPR), axis=1)
    # the curve is cut where it crosses the limit: the overlap there lies on the line between two points
    share = _share(widths, np.diff(rates, axis=1), 0)
    ends = overlaps[:, :-1] + share * np.diff(overlaps, axis=1)
    return (widths * (overlaps[:, :-1] + ends) / 2).sum(axis=1) / LARGEST_FPR


def best_f1(negative: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the largest F1 (r,) over all thresholds, from histograms (r, bins)."""
    false, true = (each[:, ::-1].cumsum(axis=1) for each in (negative, positive))
    return _share(2 * true, true + false + positive.sum(axis=1, keepdims=True), 0).max(axis=1)


def _share(one: np.ndarray, of: np.ndarray, otherwise: float) -> np.ndarray:
    """Return quotients, and another value where they are 0 of 0: resamples without a defect."""
    return np.where(of > 0, one / np.where(of > 0, of, 1), otherwise)
