"""Retrieve pictures of the same class, without training: each picture asks all others, nearest first by cosine."""

from collections.abc import Sequence

import numpy as np

from s2wrap.compare.score import Score, mean_score
from s2wrap.compare.tasks.base import Task


class Retrieval(Task):
    """The task: mean average precision decides; how often the nearest picture is of the class stands beside it."""

    forms = ("labelled",)

    def score(self, spec: str) -> dict[str, Score]:
        """As `Task.score`."""
        pictures = self.bench.pictures
        assert pictures.labels is not None
        return retrieve(self.bench.vectors(spec), pictures.labels, pictures.contents)


def retrieve(vectors: np.ndarray, labels: np.ndarray, contents: Sequence[str]) -> dict[str, Score]:
    """Return "mAP" and "recall@1" over all pictures, each of which asks the others.

    Args:
        vectors: (n, d), one a picture.
        labels: (n,) class numbers.
        contents: a hash of each picture; its copies are left out of what it finds.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    copies = np.unique(list(contents), return_inverse=True)[1]
    precisions, firsts = [], []
    for vector, label, copy in zip(unit, labels, copies, strict=True):
        others = np.flatnonzero(copies != copy)
        order = others[np.argsort(-(unit[others] @ vector), kind="stable")]
        right = labels[order] == label
        ranks = np.flatnonzero(right) + 1
        precisions.append(float((np.arange(1, len(ranks) + 1) / ranks).mean()))
        firsts.append(bool(right[0]))
    return {"mAP": mean_score(precisions), "recall@1": mean_score(firsts)}
