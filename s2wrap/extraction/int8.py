"""Vectors as int8 with one scale a picture, and what that loses: recall of neighbours, measured while a run goes on."""

import random
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from s2wrap.extraction.picture import Failure, Row

LARGEST = 127
MOST, FEWEST = 1000, 20
"""Pictures that are compared at most, which are held in memory; and at least."""
NEAREST = 10
RECALL = "recall.json"
"""Among the control files of a store, the recall of the last run that measured one."""
TIE = 1e-9
"""Cosines (float64) that differ by less are equal, as those of copies of a picture."""


@dataclass(frozen=True)
class Recall:
    """How many neighbours int8 vectors keep.

    Attributes:
        recall_at_10: the share of the ten nearest (cosine, without itself) of each picture by its int8 vector that are
            among the ten nearest by the float32 vectors; None where too few pictures were compared.
        pictures: that were compared, drawn at random from those of one run.
    """

    recall_at_10: float | None
    pictures: int


def quantize(vector: Tensor) -> tuple[Tensor, Tensor]:
    """A vector (c,) as int8 (c,) and its scale, float32: vector ≈ int8 × scale, with the largest value at ±127."""
    scale = vector.abs().max() / LARGEST
    return (vector / scale.where(scale > 0, 1)).round().to(torch.int8), scale


def dequantize(vectors: Tensor, scales: Tensor) -> Tensor:
    """Vectors (n, c) of float32 from int8 (n, c) and scales (n,)."""
    return vectors.float() * scales[:, None]


class Quantizer:
    """Makes the vectors of a run int8, and keeps some of the float32 ones, drawn at random, to measure the loss."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.seen = 0
        self.random = random.Random(0)

    def __call__(self, items: Iterable[Row | Failure]) -> Generator[Row | Failure]:
        """The items with arrays `vector` (int8) and `scale`."""
        for item in items:
            if isinstance(item, Row):
                vector = item.arrays["vector"]
                self._keep(vector)
                quantized, scale = quantize(vector)
                item = replace(item, arrays={"vector": quantized, "scale": scale})
            yield item

    def _keep(self, vector: Tensor) -> None:
        """Keep each of the vectors so far with equal probability (reservoir sampling)."""
        self.seen += 1
        if len(self.kept) < MOST:
            self.kept.append(vector.clone())
        elif (place := self.random.randrange(self.seen)) < MOST:
            self.kept[place] = vector.clone()

    def recall(self) -> Recall:
        """The recall on the pictures that were kept; each is also compared by its int8 vector."""
        count = len(self.kept)
        if count < FEWEST:
            return Recall(None, count)
        vectors, scales = map(torch.stack, zip(*map(quantize, self.kept), strict=True))
        exact, found = _cosines(torch.stack(self.kept)), _cosines(dequantize(vectors, scales))
        tenth = exact.topk(NEAREST).values[:, -1:]
        kept = exact.gather(1, found.topk(NEAREST).indices) >= tenth - TIE
        return Recall(float(kept.double().mean()), count)


def _cosines(vectors: Tensor) -> Tensor:
    """The cosines (n, n) of vectors (n, c) with each other; −∞ with themselves."""
    unit = functional.normalize(vectors.double(), dim=-1)
    return (unit @ unit.T).fill_diagonal_(-torch.inf)
