"""What tasks on masks share: the classes of cells, and the scores of masks that are predicted."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from torch import Tensor

from s2wrap.compare.data import IGNORED, load_mask
from s2wrap.compare.folds import Fold
from s2wrap.compare.score import Score, score
from s2wrap.compare.tasks.base import Bench, Task
from s2wrap.errors import S2WrapError
from s2wrap.plan import Axis
from s2wrap.resample import merge_matrix

BAND = 0.02
"""Parts of the shorter side up to which a pixel lies beside a border of classes."""


Classifier = Callable[[np.ndarray], np.ndarray]
"""Maps tokens (t, c) to logits, or votes (t, classes)."""


@dataclass(frozen=True)
class Cells:
    """Tokens (t, c), and each class's share of their cells (t, classes), where ignored pixels are in no share."""

    tokens: np.ndarray
    shares: np.ndarray


class Masks(Task):
    """What tasks on masks share: the masks, and the scores of masks that are predicted.

    Attributes:
        measures: names of the mIoU over all pixels, and of that beside the borders of classes.
        most: tokens that train in a fold, at most, equally many of each picture, though at least one of each.
    """

    forms = ("masked",)
    measures: ClassVar[tuple[str, str]]
    most: ClassVar[int]

    def __init__(self, bench: Bench):
        super().__init__(bench)
        self.masks = [load_mask(path) for path in bench.pictures.masks or [] if path is not None]
        highest = max(int(mask[mask != IGNORED].max(initial=0)) for mask in self.masks)
        if highest == 0:
            raise S2WrapError(
                f"all masks hold class 0 and {IGNORED} only, and {IGNORED} does not count; write a second class as 1"
            )
        self.classes = highest + 1
        self.bands = [band(mask) for mask in self.masks]

    def score(self, spec: str) -> dict[str, Score]:
        """As `Task.score`; without the second measure where no tested mask has a border."""
        maps, pictures = self.bench.maps(spec), self.bench.pictures
        cells = draw_cells(maps, self.masks, pictures.folds, self.classes, self.most)
        predicted = predict(maps, self.masks, pictures.folds, lambda fold: self.fit(cells, fold, pictures.contents))
        scores = {self.measures[0]: iou_score(predicted, self.masks, self.classes)}
        if any(self.bands[index].any() for index in predicted):
            scores[self.measures[1]] = iou_score(predicted, self.masks, self.classes, self.bands)
        return scores

    @staticmethod
    @abstractmethod
    def fit(cells: Sequence[Cells], fold: Fold, contents: Sequence[str]) -> Classifier:
        """Return what classifies tokens, after training on a fold.

        Args:
            cells: of each picture.
            fold: which pictures train.
            contents: a hash of each picture; copies have the same.
        """


def predict(
    maps: Sequence[Tensor], masks: Sequence[np.ndarray], folds: Sequence[Fold], fit: Callable[[Fold], Classifier]
) -> dict[int, np.ndarray]:
    """Return the class of each pixel (H, W) of the test pictures, by index.

    Logits of a map's cells are interpolated bilinearly to the mask's pixels before the argmax.

    Args:
        maps: (c, h, w) of each picture; grids may differ.
        masks: (H, W) of each picture.
        folds: which pictures train and which test.
        fit: returns the classifier of a fold.
    """
    predicted = {}
    for fold in folds:
        classifier = fit(fold)
        for index in map(int, fold.test):
            logits = torch.from_numpy(classifier(rearrange(maps[index].numpy(), "c h w -> (h w) c")))
            coarse = rearrange(logits, "(h w) classes -> 1 classes h w", h=maps[index].shape[1])
            fine = F.interpolate(coarse, size=np.shape(masks[index]), mode="bilinear", align_corners=False)
            predicted[index] = fine[0].argmax(dim=0).to(torch.uint8).numpy()
    return predicted


def iou_score(
    predicted: Mapping[int, np.ndarray],
    masks: Sequence[np.ndarray],
    classes: int,
    bands: Sequence[np.ndarray] | None = None,
) -> Score:
    """Return the mIoU of predicted masks, by index; with bands (H, W) only over the pixels in those."""
    counts = []
    for index in sorted(predicted):
        mask = np.asarray(masks[index])
        counted = (mask != IGNORED) if bands is None else bands[index]
        pairs = np.bincount(mask[counted].astype(int) * classes + predicted[index][counted], minlength=classes**2)
        confusion = pairs.reshape(classes, classes)
        counts.append(np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)]))
    return score(np.stack(counts), miou)


def miou(totals: np.ndarray) -> np.ndarray:
    """Return the mean IoU (r,) over the classes that occur.

    Args:
        totals: (r, 3, classes) for each class: correct pixels, pixels of the class, pixels predicted to be of it.

    >>> miou(np.array([[[1, 2, 0], [2, 2, 0], [1, 3, 0]]])).round(3).tolist()
    [0.583]
    """
    correct, actual, predicted = np.moveaxis(totals, 1, 0)
    occurs = actual > 0
    ious = correct / np.where(occurs, actual + predicted - correct, 1)
    return np.where(occurs, ious, 0).sum(axis=1) / occurs.sum(axis=1).clip(1)


def band(mask: np.ndarray) -> np.ndarray:
    """Return which pixels (H, W) lie within `BAND` of the shorter side of a border between two classes.

    >>> band(np.array([[0, 0, 0, 1, 1, 255]])).tolist()
    [[False, False, True, True, False, False]]
    """
    from scipy.ndimage import distance_transform_edt

    border = np.zeros(mask.shape, dtype=bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (mask[one] != mask[other]) & (mask[one] != IGNORED) & (mask[other] != IGNORED)
        border[one] |= differ
        border[other] |= differ
    if not border.any():
        return border
    distance: Any = distance_transform_edt(~border)
    return (distance <= max(1, round(BAND * min(mask.shape))) - 1) & (mask != IGNORED)


def draw_cells(
    maps: Sequence[Tensor], masks: Sequence[np.ndarray], folds: Sequence[Fold], classes: int, most: int
) -> list[Cells]:
    """Return cells of each picture, drawn from those with a pixel that counts: `most` in all that train in a fold."""
    count, cells = max(1, most // min(len(fold.train) for fold in folds)), []
    for seed, (spatial, mask) in enumerate(zip(maps, masks, strict=True)):
        shares = cell_shares(np.asarray(mask), (spatial.shape[1], spatial.shape[2]), classes)
        labelled = np.flatnonzero(shares.sum(axis=1) > 1e-9)
        drawn = np.sort(np.random.default_rng(seed).permutation(labelled)[:count])
        tokens = rearrange(spatial.numpy(), "c h w -> (h w) c")
        cells.append(Cells(tokens[drawn], shares[drawn].astype(np.float32)))
    return cells


def join_cells(cells: Sequence[Cells], pictures: np.ndarray) -> Cells:
    """Return the cells of some pictures as one."""
    chosen = [cells[index] for index in pictures]
    return Cells(np.concatenate([each.tokens for each in chosen]), np.concatenate([each.shares for each in chosen]))


def cell_shares(mask: np.ndarray, grid_hw: tuple[int, int], classes: int) -> np.ndarray:
    """Return each class's share of the pixels of each cell: (h · w, classes), row by row.

    >>> cell_shares(np.array([[0, 1], [0, 255]]), (1, 2), 2).tolist()
    [[1.0, 0.0], [0.0, 0.5]]
    """
    rows, cols = (averaging_matrix(pixels, cells) for pixels, cells in zip(mask.shape, grid_hw, strict=True))
    shares = np.zeros((len(rows) * len(cols), classes))
    for label in np.unique(mask[mask != IGNORED]):
        shares[:, label] = rearrange(rows @ (mask == label) @ cols.T, "h w -> (h w)")
    return shares


def averaging_matrix(pixels: int, cells: int) -> np.ndarray:
    """Return the (cells, pixels) matrix that averages pixels over an even grid."""
    axis = Axis(size=pixels, tile=pixels, starts=(0,), content=pixels)
    return merge_matrix(axis, tokens=pixels, patch=1, cells=cells, blend="constant")[0]
