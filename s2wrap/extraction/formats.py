"""The output formats, chosen by file suffix."""

from pathlib import Path

from s2wrap.errors import S2WrapError
from s2wrap.extraction.maps import MapWriter
from s2wrap.extraction.pooling import VECTORS
from s2wrap.extraction.tensors import TensorWriter
from s2wrap.extraction.vectors import VectorWriter
from s2wrap.extraction.writer import Writer
from s2wrap.scales import check_word

DTYPES = {
    ".parquet": ("float32", "float16", "int8"),
    ".zarr": ("float32", "float16"),
    ".safetensors": ("float32", "float16", "bfloat16"),
    ".npz": ("float32", "float16"),
}
"""The dtypes that each format supports, by suffix."""
PART = 10_000
"""Vectors per part file: 100 million pictures make 10,000 files of some megabytes to 100 megabytes each."""


def make_writer(output: Path, dtype: str, shard: int | None, vector: str | None = None) -> Writer | None:
    """The writer for a store, by the suffix of its folder; None for a single file, which is kept in memory.

    Args:
        output: path with suffix .parquet, .zarr, .safetensors or .npz.
        dtype: "float32", "float16", "bfloat16" (.safetensors), or "int8" (.parquet).
        shard: pictures per part file (.parquet, default 10,000; .safetensors, default all in one file) or per chunk
            (.zarr, default 4 MB).
        vector: which vector of a picture (.parquet, default "mean").

    Raises:
        S2WrapError: the suffix is another one, or the format does not support the dtype, shards or vectors.
        MissingExtraError: the package for the format is not installed.
    """
    suffix = output.suffix
    if suffix not in DTYPES:
        raise S2WrapError(f"cannot write {output}: the ending must be {', '.join(DTYPES)}")
    if dtype not in DTYPES[suffix]:
        raise S2WrapError(f"{suffix} files hold no {dtype!r}; use {' or '.join(DTYPES[suffix])}")
    if shard is not None and shard < 1:
        raise S2WrapError(f"--shard {shard} is no number of pictures; use 1 or more")
    if suffix == ".parquet":
        check_word("vector", vector, (*VECTORS, None))
        return VectorWriter(output, dtype, shard or PART, vector or "mean")
    if vector is not None:
        raise S2WrapError(
            f"vector {vector} with {output}, which holds maps and prefix tokens; write vectors to a .parquet, or "
            f"leave it out"
        )
    if suffix == ".zarr":
        return MapWriter(output, dtype, shard)
    if shard is None:
        return None
    if suffix == ".npz":
        raise S2WrapError(f"--shard {shard} with {output}: an .npz is one file; use .safetensors for shards")
    return TensorWriter(output, dtype, shard)
