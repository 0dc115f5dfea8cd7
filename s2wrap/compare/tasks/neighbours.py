"""Segment without training: a token takes the labels of the most similar labelled tokens.

As the dense evaluation of Hummingbird (Balažević et al., arXiv 2306.01667, section 3) does it: the nearest neighbours
by cosine in a bank of training tokens, weighed by a softmax of their cosines.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from torch import Tensor

from s2wrap.compare.folds import Fold
from s2wrap.compare.tasks.base import Result
from s2wrap.compare.tasks.masks import (
    Masks,
    border_score,
    check_maps,
    classes_of_pixels,
    draw_cells,
    iou_score,
    join_cells,
)
from s2wrap.compare.warps import chunks

BANK = 20_000
"""Most tokens of a bank, equally many of each training picture."""
NEIGHBOURS, TEMPERATURE = 30, 0.02
"""As in the paper: how many neighbours vote, and what their cosines are divided by before the softmax."""


class Neighbours(Masks):
    """The task: the classes of pixels by the neighbours of tokens, over all pixels and beside borders."""

    def score(self, spec: str) -> Result:
        """As `Task.score`."""
        pictures = self.bench.pictures
        inputs = self.bench.maps(spec), self.masks, pictures.folds, pictures.contents
        predicted = predict_by_neighbours(*inputs, classes=self.classes)
        scores = {"k-NN mIoU": iou_score(predicted, self.masks, self.classes)}
        return Result(scores | border_score("boundary k-NN", predicted, self.masks, self.classes, self.bands))


def predict_by_neighbours(
    maps: Sequence[Any], masks: Sequence[Any], folds: Sequence[Fold], contents: Sequence[str], *, classes: int
) -> dict[int, np.ndarray]:
    """Return the class of each pixel (H, W) of the test pictures, by index; the arguments are those of `segment`."""
    spatials = check_maps(maps, masks, folds, contents, classes)
    cells = draw_cells(spatials, masks, folds, classes, BANK)
    predicted = {}
    for fold in folds:
        train = join_cells(cells, fold.train)
        bank, shares = F.normalize(torch.from_numpy(train.tokens), dim=1), torch.from_numpy(train.shares)
        for index in fold.test:
            tokens = F.normalize(rearrange(spatials[index], "c h w -> (h w) c"), dim=1)
            votes = vote(tokens, bank, shares).numpy()
            predicted[int(index)] = classes_of_pixels(votes, spatials[index].shape[1], np.shape(masks[index]))
    return predicted


def vote(tokens: Tensor, bank: Tensor, shares: Tensor) -> Tensor:
    """Return each token's share of the classes (t, classes), from those of its neighbours.

    Args:
        tokens: (t, c), of unit length.
        bank: (n, c), of unit length.
        shares: (n, classes) of the bank.
    """
    votes = []
    for part in chunks(len(tokens), 1024):
        cosines, nearest = (tokens[part] @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1)
        votes.append(torch.einsum("tk,tkc->tc", (cosines / TEMPERATURE).softmax(dim=1), shares[nearest]))
    return torch.cat(votes)
