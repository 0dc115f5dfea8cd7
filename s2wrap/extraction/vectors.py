"""Pooled vectors as Parquet: a folder of part files that pyarrow, pandas, DuckDB and Polars can read directly."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2wrap.errors import MissingExtraError
from s2wrap.extraction.picture import Row
from s2wrap.extraction.pooling import VECTORS
from s2wrap.extraction.writer import PartWriter, intact

GEOMETRY, GEO = "geometry", "geo"
"""The column of outlines, and the key of the metadata that describes it."""
GEO_METADATA = {
    "version": "1.1.0",
    "primary_column": GEOMETRY,
    "columns": {GEOMETRY: {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"]}},
}
"""As GeoParquet 1.1 asks for it; without a CRS, coordinates are OGC:CRS84: longitude, latitude."""


class VectorWriter(PartWriter):
    """Part files with columns path, height, width and vector (a fixed-size list); the description is metadata.

    Vectors of int8 have a column scale (float32) beside them: the vector is int8 × scale. If the first picture is
    georeferenced, there is a column geometry, as GeoParquet has it.

    Attributes:
        vector: the kind of vector, a name of `VECTORS`.
        located: whether there is a column geometry; the part files of a store say it, or its first row.
    """

    ending = ".parquet"

    def __init__(self, folder: Path, dtype: str, block: int, vector: str):
        open_pyarrow()
        super().__init__(folder, dtype, block)
        self.vector, self.keep = vector, VECTORS[vector]
        self.located = False

    def size_block(self, row: Row) -> None:
        """Have a column geometry if the first row of the store has one."""
        self.located = row.footprint is not None

    def start(self, rows: int, description: Mapping[str, object]) -> list[Row]:
        """As `PartWriter.start`."""
        open_pyarrow()
        import pyarrow.parquet as pq

        first = self._path(0)
        if rows and first.is_file():
            with intact(first):
                self.located = GEOMETRY in pq.read_schema(first).names
        return super().start(rows, description)

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
        dictionary: list[str] = []
        if self.dtype == "int8":
            columns["scale"] = pa.array(np.stack([row.arrays["scale"].numpy() for row in rows]))
            dictionary = ["vector.list.element"]  # a byte a value: Parquet has no integers of 8 bits otherwise
        description = dict(self.description)
        if self.located:
            columns[GEOMETRY] = pa.array([row.footprint for row in rows], pa.binary())
            description[GEO] = GEO_METADATA
        table = pa.table(columns).replace_schema_metadata({key: text(value) for key, value in description.items()})
        pq.write_table(table, path, use_dictionary=dictionary, write_statistics=["path", "height", "width"])  # type: ignore[arg-type] (its stubs know only yes or no)

    def read_part(self, path: Path) -> list[Row]:
        """The rows of a part file."""
        open_pyarrow()
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        arrays = [{"vector": vector} for vector in matrix_of(table.column("vector"))]
        if self.dtype == "int8":
            scales = torch.from_numpy(table.column("scale").to_numpy(zero_copy_only=False).copy())
            arrays = [each | {"scale": scale} for each, scale in zip(arrays, scales, strict=True)]
        footprints = table.column(GEOMETRY).to_pylist() if self.located else [None] * len(table)
        columns = [table.column(name).to_pylist() for name in ("path", "height", "width")]
        return [
            Row(name, height, width, each, footprint=footprint)
            for name, height, width, each, footprint in zip(*columns, arrays, footprints, strict=True)
        ]

    def read_metadata(self, path: Path) -> dict[str, str]:
        """The description in a part file."""
        open_pyarrow()
        import pyarrow.parquet as pq

        return {key.decode(): value.decode() for key, value in (pq.read_schema(path).metadata or {}).items()}


def matrix_of(column: Any) -> Tensor:
    """A column of fixed-size lists as a tensor (rows, length)."""
    return torch.from_numpy(np.array(column.combine_chunks().flatten()).reshape(len(column), -1))


def printable(name: str) -> str:
    r"""A name as valid UTF-8, with invalid bytes escaped as \udcXX."""
    return name.encode(errors="backslashreplace").decode()


def text(value: object) -> str:
    """A value of the description as text, for metadata."""
    return value if isinstance(value, str) else json.dumps(value)


def open_pyarrow() -> Any:
    """The library for Parquet."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError("pyarrow", "features") from error
    return pyarrow
