"""Features that were written, read back: pictures by path, batches, tables, search."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.extraction.encode import encode_vectors, weights_of
from s2wrap.extraction.int8 import Recall
from s2wrap.options import as_tuples
from s2wrap.wrapper import MultiScale

FILE_ENDINGS = (".onnx", ".plan", ".engine", ".rtx", ".pt2")
BATCH = 256
"""Pictures that are read at a time."""


class Found(NamedTuple):
    """A picture that is like another one: its path, and the cosine of the two vectors."""

    path: str
    cosine: float


class FeatureStore(ABC):
    """The features of pictures, as `s2wrap features` writes them; open it with `s2wrap.open`.

    Attributes:
        path: of the store.
        made_by: what made it: spec, options, weights_sha256, s2wrap_version, dtype, reading; vector (.parquet).
        paths: of its pictures, in order.
        image_hw: height and width of each picture in pixels, (pictures, 2).
        recall: for vectors of int8, what they keep of the nearest neighbours, as the last run of 20 pictures or more
            measured it; else None.
    """

    path: str
    made_by: Mapping[str, Any]
    paths: Sequence[str]
    image_hw: np.ndarray
    recall: Recall | None = None

    @abstractmethod
    def rows(self, first: int, end: int) -> list[dict[str, Tensor]]:
        """The arrays of successive pictures: `vector` (channels,), or `spatial` (c, h, w) and `prefix` (p, c)."""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, picture: int | str) -> dict[str, Tensor]:
        """The arrays of one picture, by its number or its path."""
        number = self._numbers.get(picture) if isinstance(picture, str) else picture
        if number is None:
            raise S2WrapError(f"{self.path} has no picture {picture!r}; its paths begin as {self.paths[0]!r}")
        if not -len(self) <= number < len(self):
            raise S2WrapError(f"{self.path} has {len(self)} pictures, and no number {number}")
        return self.rows(number % len(self), number % len(self) + 1)[0]

    def batches(self, size: int = BATCH) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
        """Paths and stacked arrays of successive pictures, of which few are in memory.

        Raises:
            S2WrapError: the pictures have grids of different sizes; take them one by one.
        """
        for first in range(0, len(self), size):
            rows = self.rows(first, min(first + size, len(self)))
            if any(row[name].shape != rows[0][name].shape for row in rows for name in rows[0]):
                raise S2WrapError(f"pictures of {self.path} have grids of different sizes; take store[path] of each")
            yield (
                list(self.paths[first : first + size]),
                {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
            )

    def dataset(self, transform: Callable[[str, dict[str, Tensor]], Any] | None = None) -> torch.utils.data.Dataset:
        """A data set for a DataLoader, whose items are (path, arrays), or what `transform` makes of them."""
        return _Dataset(self, transform)

    def to_pandas(self) -> Any:
        """A table with path, height, width and vector; the spatial mean where the store has maps."""
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("pandas", "compare") from error
        vectors = [vector for _, batch in self._vectors() for vector in batch.numpy()]
        height, width = self.image_hw.T
        return pandas.DataFrame({"path": list(self.paths), "height": height, "width": width, "vector": vectors})

    def load_model(self, *, pretrained: bool = True) -> MultiScale:
        """The model that made the store, so that other pictures are encoded alike.

        Args:
            pretrained: False for a store that `s2wrap features --random-weights` made: they are drawn again.

        Raises:
            S2WrapError: its weights are not those that made the store.
        """
        from s2wrap.factory import load

        spec = self.made_by["spec"]
        if spec.endswith(FILE_ENDINGS):
            raise S2WrapError(f"{self.path} was made by the file {spec}; give it: model=s2wrap.export.load({spec!r})")
        if not pretrained:
            torch.manual_seed(0)  # as s2wrap features does
        model = load(spec, pretrained=pretrained, **as_tuples(dict(self.made_by["options"])))
        if weights_of(model) != self.made_by["weights_sha256"]:
            raise S2WrapError(
                f"{self.made_by['spec']} has other weights now than those that made {self.path}; give the model: "
                f"search(…, model=model)"
            )
        return model

    def search(self, pictures: object, k: int = 5, *, model: MultiScale | None = None) -> list[list[Found]]:
        """The pictures of the store that are most alike to others, by the cosine of their vectors; exact.

        Args:
            pictures: paths, PIL images, arrays, tensors, or one of these; vectors (n, channels) as a tensor.
            k: how many.
            model: that encodes the pictures; by default the one that made the store. Of a store with another `vector`
                than the mean, queries are vectors of that kind.

        Returns:
            For each picture, the nearest first. The whole store is read once, and few of it are in memory.

        Raises:
            S2WrapError: no pictures, or a model of other channels.
        """
        if isinstance(pictures, Tensor) and pictures.ndim == 2 and pictures.is_floating_point():
            queries = pictures.float()
        else:
            model = self.load_model() if model is None else model
            queries = encode_vectors(model, pictures, self.made_by.get("vector", "mean"))
        queries = functional.normalize(queries, dim=-1)
        best, numbers, first = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long), 0
        for paths, vectors in self._vectors():
            if vectors.shape[1] != queries.shape[1]:
                raise S2WrapError(f"vectors of {queries.shape[1]} channels, and {self.path} has {vectors.shape[1]}")
            cosines = queries @ functional.normalize(vectors, dim=-1).T
            own = torch.arange(first, first + len(paths)).expand(len(queries), -1)
            best, chosen = torch.cat([best, cosines], dim=1).sort(dim=1, descending=True, stable=True)
            numbers = torch.cat([numbers, own], dim=1).gather(1, chosen)[:, :k]
            best, first = best[:, :k], first + len(paths)
        return [
            [Found(str(self.paths[number]), cosine) for number, cosine in zip(row, values, strict=True)]
            for row, values in zip(numbers.tolist(), best.tolist(), strict=True)
        ]

    def _vectors(self) -> Iterator[tuple[list[str], Tensor]]:
        for first in range(0, len(self), BATCH):
            rows = self.rows(first, min(first + BATCH, len(self)))
            yield list(self.paths[first : first + BATCH]), torch.stack([_pooled(row) for row in rows])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {path: number for number, path in enumerate(self.paths)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} pictures of {self.made_by.get('spec')})"


class _Dataset(torch.utils.data.Dataset):
    """The pictures of a store, one by one."""

    def __init__(self, store: FeatureStore, transform: Callable[[str, dict[str, Tensor]], Any] | None):
        self.store, self.transform = store, transform

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> Any:
        item = self.store.paths[number], self.store[number]
        return item if self.transform is None else self.transform(*item)


def _pooled(row: Mapping[str, Tensor]) -> Tensor:
    """The vector of a picture: the one that is stored, or the mean of its map, of all maps of a pyramid joined."""
    if "vector" in row:
        return row["vector"].float()
    return torch.cat([array.float().mean(dim=(1, 2)) for name, array in row.items() if name.startswith("spatial")])
