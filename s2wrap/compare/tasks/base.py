"""What a task of `compare` is, and what it works with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.progress import Progress
from torch import Tensor

from s2wrap.compare.data import Pictures
from s2wrap.compare.extract import extract, keep, maps_of, model_key, vectors_of
from s2wrap.compare.score import Score
from s2wrap.wrapper import MultiScale, largest_hw


@dataclass
class Bench:
    """The models, the pictures, and the features of one by the other: what every task works with.

    Attributes:
        models: by spec; among them the target of a reconstruction.
        specs: of the models that are compared.
        pictures: the same for all models, with their folds.
        folder: the cache folder of features; None for no cache.
        progress: display of the progress.
        make: `make(spec, target_grid=(rows, columns))` makes a model on another grid.
        pools: how a map becomes a vector, see `vectors_of`.
        target: spec of the model whose features are reconstructed.
        facts: how figures are measured, which tasks add to.
    """

    models: dict[str, MultiScale]
    specs: list[str]
    pictures: Pictures
    folder: Path | None
    progress: Progress
    make: Callable[..., MultiScale]
    pools: tuple[str, ...] = ("mean",)
    target: str | None = None
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """The side in pixels of the square that tasks resize pictures to: of the largest scale of all models."""
        return max(largest_hw(self.models[spec] for spec in self.specs))

    def maps(self, spec: str, model: MultiScale | None = None) -> list[Tensor]:
        """Return a model's map (c, h, w) of each picture. Raises UnableError for several maps."""
        return maps_of(self._features(spec, model, maps=True))

    def vectors(self, spec: str) -> np.ndarray:
        """Return a model's vector of each picture, (n, d). Raises UnableError where the model lacks a pooling."""
        return vectors_of(self._features(spec, None, maps=False), self.pools)

    def track(self, things: Iterable[object], description: str = "scoring") -> Iterable[Any]:
        """Return the things, and show how many of them are done."""
        return self.progress.track(list(things), description=description)

    def kept(self, spec: str, kind: str, compute: Callable[[int], dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return what `compute(index)` gives for each picture and a model, from the cache where it was computed before.

        Args:
            spec: of the model.
            kind: names all that the result depends on beside the model and the picture.
            compute: returns small tensors for the picture of an index.
        """
        folder = None if self.folder is None else self.folder / kind / model_key(self.models[spec])
        return keep(folder, self.pictures.contents, lambda batch: map(compute, batch), self._advance(spec), batch=1)

    def _features(self, spec: str, model: MultiScale | None, *, maps: bool) -> list[dict[str, Tensor]]:
        return extract(model or self.models[spec], self.pictures, self.folder, self._advance(spec), maps=maps)

    def _advance(self, spec: str) -> Callable[[int], object]:
        task = self.progress.add_task(spec.partition(":")[2], total=len(self.pictures.paths))
        return partial(self.progress.advance, task)


class Task(ABC):
    """A task: made once for a comparison, it scores each model on the same pictures.

    Attributes:
        forms: the forms of folders that it needs: "labelled", "masked", … ("plain" pictures are part of every form).
        default: whether it is run on such folders where no tasks were named.
    """

    forms: ClassVar[tuple[str, ...]]
    default: ClassVar[bool] = True

    def __init__(self, bench: Bench):
        """Prepare what is the same for all models. Raises S2WrapError for pictures that cannot be used."""
        self.bench = bench

    @abstractmethod
    def score(self, spec: str) -> dict[str, Score]:
        """Return the scores of a model by measure, the deciding one first. Raises UnableError where it cannot do it."""
