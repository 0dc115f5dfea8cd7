"""Find defects: how far is a token from all tokens of flawless pictures?

The bank holds tokens of the flawless training pictures. A token's score is one minus the cosine to the nearest of them
(as in PatchCore, arXiv 2106.08265, with cosines). Scores of tokens are interpolated bilinearly to pixels; a picture's
score is the mean of its largest 1 % of tokens. All measures come from histograms of scores, which add up over pictures.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from s2wrap.compare.data import load_mask
from s2wrap.compare.score import Score, score
from s2wrap.compare.tasks.base import Task
from s2wrap.errors import S2WrapError
from s2wrap.scales import whole_number

DRAWN = 20_000
"""Most tokens that the bank is chosen from: equally many of each picture, drawn at random, the same for equal grids."""
BANK = 2_000
"""Most tokens of the bank."""
PROJECTED = 128
"""Random projections of a token, by which the bank is chosen."""
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
        nearest = AnomalyMap(make_bank([maps[index] for index in fold.train]))
        scores = [nearest(maps[index][None])[0, 0] for index in fold.test]
        paths = self.bench.pictures.masks or []
        sizes = [self.bench.pictures.sizes[index] for index in fold.test]
        masks = (
            np.zeros(size, dtype=bool) if (path := paths[index]) is None else load_mask(path) > 0
            for index, size in zip(fold.test, sizes, strict=True)
        )
        defective = np.array([paths[index] is not None for index in fold.test])
        return pixel_scores(scores, masks) | {"image AUROC": image_auroc(scores, defective)}


def make_bank(maps: Sequence[Tensor], size: int = BANK) -> Tensor:
    """Return tokens (n, c) of unit length of maps (c, h, w), `size` at most: a coreset, as PatchCore's.

    Of `DRAWN` random tokens each is taken that is the farthest from those before it, by `PROJECTED` random projections.

    Raises:
        S2WrapError: no maps, maps of other dimensions or of several numbers of channels, or a size below 1.
    """
    shapes = [tuple(spatial.shape) for spatial in maps]
    if {len(shape) for shape in shapes} != {3} or len({shape[0] for shape in shapes}) > 1:
        raise S2WrapError(f"maps of shapes {shapes[:3]} make no bank; give maps (c, h, w), all of c channels")
    if (whole_number(size) or 0) < 1:
        raise S2WrapError(f"size={size!r} is no number of tokens; use a whole one from 1")
    maps = maps[:: -(-len(maps) // DRAWN)]
    rng, count, tokens = np.random.default_rng(0), DRAWN // len(maps), []
    for spatial in maps:
        flat = rearrange(spatial, "c h w -> (h w) c")
        tokens.append(F.normalize(flat[np.sort(rng.permutation(len(flat))[:count])], dim=1))
    drawn = torch.cat(tokens)
    if len(drawn) <= size:
        return drawn
    points = drawn @ torch.from_numpy(rng.normal(size=(drawn.shape[1], PROJECTED))).to(drawn)
    lengths, chosen = points.square().sum(dim=1), [0]
    nearest = torch.full_like(lengths, torch.inf)
    while len(chosen) < size:
        last = chosen[-1]
        nearest = torch.minimum(nearest, lengths + lengths[last] - 2 * points @ points[last])  # squared distances
        chosen.append(int(nearest.argmax()))
    return drawn[chosen]


class AnomalyMap(nn.Module):
    """One minus the cosine of each token to the nearest of a bank: maps (b, c, h, w) → (b, 1, h, w), 0…2.

    It is also the head of an exported file: `s2wrap.export.export(model, path, head=AnomalyMap(bank))`.

    >>> AnomalyMap(torch.rand(20, 8))(torch.rand(2, 8, 3, 4)).shape
    torch.Size([2, 1, 3, 4])
    """

    bank: Float[Tensor, "n c"]

    def __init__(self, bank: Float[Tensor, "n c"]):
        """A module with a bank of tokens, of any length; S2WrapError for a bank of another shape, or an empty one."""
        super().__init__()
        if bank.ndim != 2 or not bank.numel() or not bank.is_floating_point():
            raise S2WrapError(f"a bank of {bank.dtype} {tuple(bank.shape)} holds no tokens; give floats (n, c)")
        self.register_buffer("bank", F.normalize(bank.detach(), dim=1))

    def forward(self, spatial: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """How far each token is; 1,024 of the bank at a time, which bounds the memory."""
        tokens = F.normalize(spatial, dim=1).flatten(2)
        nearest = torch.stack([(part @ tokens).amax(dim=1) for part in self.bank.split(1024)]).amax(dim=0)
        return (1 - nearest).unflatten(1, (1, *spatial.shape[2:]))


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
