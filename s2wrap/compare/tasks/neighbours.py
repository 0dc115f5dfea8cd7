"""Segment without training: a token takes the labels of the most similar labelled tokens.

As the dense evaluation of Hummingbird (Balažević et al., arXiv 2306.01667, section 3) does it: the nearest neighbours
by cosine in a bank of training tokens, weighed by a softmax of their cosines.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

from s2wrap.compare.folds import Fold
from s2wrap.compare.tasks.masks import Cells, Classifier, Masks, join_cells
from s2wrap.compare.warps import chunks

NEIGHBOURS, TEMPERATURE = 30, 0.02
"""As in the paper: how many neighbours vote, and what their cosines are divided by before the softmax."""


class Neighbours(Masks):
    """The task: the classes of pixels by the neighbours of tokens, over all pixels and beside borders."""

    measures = ("k-NN mIoU", "boundary k-NN")
    most = 20_000

    @staticmethod
    def fit(cells: Sequence[Cells], fold: Fold, contents: Sequence[str]) -> Classifier:
        """As `Masks.fit`; there is nothing to fit."""
        train = join_cells(cells, fold.train)
        bank, shares = F.normalize(torch.from_numpy(train.tokens), dim=1), torch.from_numpy(train.shares)

        def classify(tokens: np.ndarray) -> np.ndarray:
            return vote(F.normalize(torch.from_numpy(tokens), dim=1), bank, shares).numpy()

        return classify


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
