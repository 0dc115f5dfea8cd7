"""Which format an output's ending stands for."""

from pathlib import Path

from s2wrap.errors import S2WrapError
from s2wrap.extraction.maps import MapWriter
from s2wrap.extraction.tensors import TensorWriter
from s2wrap.extraction.vectors import VectorWriter
from s2wrap.extraction.writer import Writer

DTYPES = {
    ".parquet": ("float32", "float16"),
    ".zarr": ("float32", "float16"),
    ".safetensors": ("float32", "float16", "bfloat16"),
    ".npz": ("float32", "float16"),
}
"""The number formats that each kind of file knows."""
PART = 10_000
"""Vectors of a part file: 100 million pictures make 10,000 of them, some megabytes to 100 megabytes each."""


def make_writer(output: Path, dtype: str, shard: int | None) -> Writer | None:
    """The writer of a store by the ending of its folder; None for one file that is kept in memory.

    Args:
        output: ends in .parquet, .zarr, .safetensors or .npz.
        dtype: float32, float16, or (.safetensors) bfloat16.
        shard: pictures of a part file (.parquet, default 10,000; .safetensors, default all in one file) or of a chunk
            (.zarr, default 4 MB).

    Raises:
        S2WrapError: another ending, or what this format does not know.
        MissingExtraError: the format's package is not installed.
    """
    ending = output.suffix
    if ending not in DTYPES:
        raise S2WrapError(f"cannot write {output}: the ending must be {', '.join(DTYPES)}")
    if dtype not in DTYPES[ending]:
        raise S2WrapError(f"{ending} files hold no {dtype!r}; use {' or '.join(DTYPES[ending])}")
    if shard is not None and shard < 1:
        raise S2WrapError(f"--shard {shard} is no number of pictures; use 1 or more")
    if ending == ".parquet":
        return VectorWriter(output, dtype, shard or PART)
    if ending == ".zarr":
        return MapWriter(output, dtype, shard)
    if shard is None:
        return None
    if ending == ".npz":
        raise S2WrapError(f"--shard {shard} with {output}: an .npz is one file; use .safetensors for shards")
    return TensorWriter(output, dtype, shard)
