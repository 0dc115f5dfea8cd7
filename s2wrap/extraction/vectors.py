"""Pooled vectors as Parquet: a folder of part files that pyarrow, pandas, DuckDB and Polars can read directly."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2wrap.errors import MissingExtraError
from s2wrap.extraction.picture import Row
from s2wrap.extraction.pooling import VECTORS
from s2wrap.extraction.writer import PartWriter


class VectorWriter(PartWriter):
    """Part files with columns path, height, width and vector (a fixed-size list); the description is metadata."""

    ending = ".parquet"

    def __init__(self, folder: Path, dtype: str, block: int, vector: str):
        open_pyarrow()
        super().__init__(folder, dtype, block)
        self.vector, self.keep = vector, VECTORS[vector]

    def write_part(self, rows: Sequence[Row], path: Path) -> None:
        """Write rows to a part file."""
        pa = open_pyarrow()
        import pyarrow.parquet as pq

        vectors = np.stack([row.arrays["vector"].numpy() for row in rows])
        columns = {
            "path": pa.array([printable(row.name) for row in rows], pa.string()),
            "height": pa.array([row.height for row in rows], pa.int32()),
            "width": pa.array([row.width for row in rows], pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        }
        table = pa.table(columns).replace_schema_metadata({key: text(value) for key, value in self.description.items()})
        pq.write_table(table, path, use_dictionary=False, write_statistics=["path", "height", "width"])  # type: ignore[arg-type] (its stubs know only yes or no)

    def read_part(self, path: Path) -> list[Row]:
        """The rows of a part file."""
        open_pyarrow()
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        vectors = table.column("vector").combine_chunks()
        matrix = np.array(vectors.flatten().to_numpy(zero_copy_only=False)).reshape(len(table), -1)
        columns = [table.column(name).to_pylist() for name in ("path", "height", "width")]
        return [
            Row(name, height, width, {"vector": torch.from_numpy(vector)})
            for name, height, width, vector in zip(*columns, matrix, strict=True)
        ]


def printable(name: str) -> str:
    r"""A name as valid UTF-8, with invalid bytes escaped as \udcXX."""
    return name.encode(errors="backslashreplace").decode()


def text(value: Any) -> str:
    """A value of the description as text, for metadata."""
    return value if isinstance(value, str) else json.dumps(value)


def open_pyarrow() -> Any:
    """The library for Parquet."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError("pyarrow", "features") from error
    return pyarrow
