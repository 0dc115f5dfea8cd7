"""What tasks on masks share: the classes of cells, and the scores of masks that are predicted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange

from s2wrap.compare.data import IGNORED, load_mask
from s2wrap.compare.folds import Fold, check_folds
from s2wrap.compare.score import Score, score
from s2wrap.compare.tasks.base import Bench, Task
from s2wrap.errors import S2WrapError
from s2wrap.plan import Axis
from s2wrap.resample import merge_matrix

BAND = 0.02
"""Parts of the shorter side up to which a pixel lies beside a border of classes."""


class Masks(Task):
    """What tasks on masks share: the masks, and the scores of masks that are predicted."""

    forms = ("masked",)

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


def iou_score(
    predicted: Mapping[int, np.ndarray], masks: Sequence[Any], classes: int, bands: Sequence[np.ndarray] | None = None
) -> Score:
    """Return the mIoU of predicted masks, by index; with bands (H, W) only over the pixels in those."""
    counts = []
    for index in sorted(predicted):
        mask = np.asarray(masks[index])
        counted = (mask != IGNORED) if bands is None else bands[index]
        pairs = np.bincount(mask[counted].astype(int) * classes + predicted[index][counted], minlength=classes**2)
        confusion = pairs.reshape(classes, classes)
        counts.append(np.stack([confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)]))
    by_picture = np.stack(counts)
    if not by_picture.any():
        raise S2WrapError(f"none of {len(counts)} tested masks has a pixel that counts; {IGNORED} is what does not")
    return score(by_picture, miou)


def border_score(
    name: str, predicted: Mapping[int, np.ndarray], masks: Sequence[Any], classes: int, bands: Sequence[np.ndarray]
) -> dict[str, Score]:
    """Return the mIoU beside the borders of classes, by its name; nothing where no tested mask has a border."""
    if not any(bands[index].any() for index in predicted):
        return {}
    return {name: iou_score(predicted, masks, classes, bands)}


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


def classes_of_pixels(logits: np.ndarray, rows: int, image_hw: tuple[int, ...]) -> np.ndarray:
    """Return the class of each pixel (H, W), from cells' logits (cells, classes) that are interpolated bilinearly."""
    coarse = rearrange(torch.from_numpy(logits), "(h w) classes -> 1 classes h w", h=rows)
    fine = F.interpolate(coarse, size=image_hw, mode="bilinear", align_corners=False)
    return fine[0].argmax(dim=0).to(torch.uint8).numpy()


@dataclass(frozen=True)
class Cells:
    """Tokens (t, c), and each class's share of their cells (t, classes), where ignored pixels are in no share."""

    tokens: np.ndarray
    shares: np.ndarray


def draw_cells(
    spatials: Sequence[torch.Tensor], masks: Sequence[Any], folds: Sequence[Fold], classes: int, most: int
) -> list[Cells]:
    """Return cells of each picture, drawn from those with a pixel that counts: `most` in all that train in a fold."""
    count = max(1, most // min(len(fold.train) for fold in folds))
    return [
        _draw_cells(spatial, mask, classes, count, seed)
        for seed, (spatial, mask) in enumerate(zip(spatials, masks, strict=True))
    ]


def _draw_cells(spatial: torch.Tensor, mask: Any, classes: int, count: int, seed: int) -> Cells:
    """Return at most `count` cells of a picture, drawn from those with a pixel that counts."""
    tokens = rearrange(spatial.numpy(), "c h w -> (h w) c")
    shares = cell_shares(np.asarray(mask), (spatial.shape[1], spatial.shape[2]), classes)
    labelled = np.flatnonzero(shares.sum(axis=1) > 1e-9)
    drawn = np.sort(np.random.default_rng(seed).permutation(labelled)[:count])
    return Cells(tokens[drawn], shares[drawn].astype(np.float32))


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


def check_maps(
    maps: Sequence[Any], masks: Sequence[Any], folds: Sequence[Fold], contents: Sequence[str], classes: int
) -> list[torch.Tensor]:
    """Return the maps as float32 on the CPU, after checking that they, masks and folds can be used."""
    _check(maps, masks, contents, classes)
    check_folds(folds, contents)
    spatials = [torch.as_tensor(spatial).detach().cpu().float() for spatial in maps]
    _check_channels(spatials)
    return spatials


def _check(maps: Sequence[Any], masks: Sequence[Any], contents: Sequence[str], classes: int) -> None:
    if not len(maps) == len(masks) == len(contents):
        raise S2WrapError(f"{len(maps)} maps, {len(masks)} masks and {len(contents)} contents; give one each a picture")
    for index, mask in enumerate(masks):
        values = np.unique(mask)
        unknown = values[(values >= classes) & (values != IGNORED)]
        if np.ndim(mask) != 2 or len(unknown):
            raise S2WrapError(
                f"the mask of picture {index} is {np.shape(mask)} and holds {unknown.tolist()}; a mask is (H, W), of "
                f"class numbers 0 to {classes - 1}, and {IGNORED} for pixels that do not count"
            )


def _check_channels(spatials: Sequence[torch.Tensor]) -> None:
    for index, spatial in enumerate(spatials):
        if spatial.ndim != 3 or len(spatial) != len(spatials[0]) or not bool(spatial.isfinite().all()):
            raise S2WrapError(
                f"the map of picture {index} is {tuple(spatial.shape)} beside {tuple(spatials[0].shape)} of the first; "
                f"maps are (c, h, w), of as many channels, and finite"
            )
