"""Extraction on a Ray cluster; the process that started the run is the only one that writes.

Ray Data runs four steps: one task lists the pictures, tasks read tars (for files, only names are sent), tasks decode,
and actors that hold the model encode. A block is one row: a pickle of some pictures. Blocks arrive in the order of the
pictures, so the store is the same as without Ray, and can be resumed with or without it. Ray repeats work that is lost
with a node; if a step raises an error, that is sent on in place of its pictures.
"""

import os
import pickle
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from s2wrap.allocator import keep_freed_memory
from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.addresses import is_remote
from s2wrap.extraction.decode import Decoded, decode_all
from s2wrap.extraction.encode import Encoder, Keep, encode_all, weights_of
from s2wrap.extraction.fleet import Fleet, silent_logs
from s2wrap.extraction.picture import Failure, Mark, Picture, Row
from s2wrap.extraction.sources import Piece, Section, pieces_after
from s2wrap.extraction.workers import grouped, portable
from s2wrap.images import Reading
from s2wrap.wrapper import MultiScale

FILES = 64
"""The most pictures in a block: enough to outweigh Ray's overhead (milliseconds), few enough to repeat."""
BYTES = 64 << 20
"""The most bytes in a block; a larger picture is a block of its own."""
RETRIES = 10
"""Retries of a block whose node or process died; the run ends if all of them die."""


@dataclass(frozen=True)
class EncodingOptions:
    """How to decode and encode; pickled and sent to the nodes.

    Attributes:
        load: loads the model, on the CPU, or opens the exported file.
        keep: picks the arrays to store from the features of one picture.
        dtype: the dtype of the stored arrays.
        weights: the expected `weights_of` the model.
        reading: how pictures are read.
    """

    load: Callable[[], Encoder]
    keep: Keep
    dtype: torch.dtype
    weights: str
    reading: Reading


def encode_on(fleet: Fleet, options: EncodingOptions, sections: list[Section], mark: Mark) -> Generator[Row | Failure]:
    """The results of `encode_all` for the pictures after a mark, in order, computed by a cluster.

    Raises:
        S2WrapError: a source or server does not answer, a node has other files, weights or another version of s2wrap
            than this machine, or the processes that work on a block die every time.
    """
    from ray.exceptions import RayError

    try:
        with silent_logs():
            dataset = _pipeline(fleet, options, sections, mark)
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for items in _unpack(block):
                    if isinstance(items, Exception):
                        raise items
                    for item in items:
                        _check_reachable(item)
                        yield item
    except RayError as error:
        raise S2WrapError(f"Ray gave up: {first_line(error)}; the same command again goes on from here") from error


def _pipeline(fleet: Fleet, options: EncodingOptions, sections: list[Section], mark: Mark) -> Any:
    """The steps as a Ray Data dataset, which computes blocks lazily, some ahead of the consumer.

    Steps that mostly wait reserve no CPU, so that decoding and encoding always get one.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tars = sum(section.tar for section in sections)
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )  # lists may exist only on this machine
    step = partial(partial, _step, os.getcwd())
    with fleet.settings():
        rows: Any = ray.data.from_items([{"block": _pack(mark)}], override_num_blocks=1)
        whole = {"batch_size": None, "batch_format": "pyarrow"}
        list_pictures = step(partial(pieces_after if tars else _files, sections, files=FILES))
        rows = rows.map_batches(
            list_pictures, **whole, num_cpus=0, compute=TaskPoolStrategy(1), scheduling_strategy=here
        )
        if tars:
            readers = TaskPoolStrategy(min(tars, fleet.actors + 1))
            rows = rows.map_batches(step(_read), **whole, num_cpus=0, compute=readers, max_retries=RETRIES)
        rows = rows.map_batches(step(partial(_decode, options.reading)), **whole, num_cpus=1, max_retries=RETRIES)
        return rows.map_batches(
            _Encoder,
            fn_constructor_args=(options, fleet.device, version("s2wrap"), os.getcwd()),
            **whole,
            **fleet.needs(),
            compute=ActorPoolStrategy(size=fleet.actors),
            max_restarts=-1,
            max_task_retries=RETRIES,
        )


def _files(sections: list[Section], mark: Mark, *, files: int) -> Iterator[list[Picture]]:
    for read_piece in pieces_after(sections, mark, files=files):
        yield list(read_piece())


def _read(piece: Piece) -> Iterator[list[Picture]]:
    return grouped(piece(), lambda picture: len(picture.content or b""), count=FILES, most=BYTES)


def _decode(reading: Reading, pictures: list[Picture]) -> Iterator[list[Decoded]]:
    # in a process of its own, as Ray would retry a picture that crashes a Ray process again and again
    decoded = decode_all(pictures, reading, workers=1)
    return grouped(decoded, _tensor_bytes, count=FILES, most=BYTES)


def _tensor_bytes(item: Decoded | Row | Failure) -> int:
    if isinstance(item, Row):
        return sum(array.nbytes for array in item.arrays.values())
    return item.image.nbytes if isinstance(item, Decoded) and item.image is not None else 0


class _Encoder:
    """A Ray actor that loads the model once and encodes blocks of decoded pictures."""

    def __init__(self, options: EncodingOptions, device: str, s2wrap: str, folder: str):
        self.options, self.folder, self.error = options, folder, None
        keep_freed_memory()
        try:
            _change_folder(folder)
            if version("s2wrap") != s2wrap:
                raise S2WrapError(f"a node has s2wrap {version('s2wrap')}, and this machine {s2wrap}; install the same")
            model = options.load()
            if weights_of(model) != options.weights:
                raise S2WrapError(
                    "a node loads other weights than this machine; give all the same ones, as by --checkpoint"
                )
            self.model = model.to(device) if isinstance(model, MultiScale) else model
        except Exception as error:  # reported with the first block, as Ray would restart the actor
            self.error = error

    def __call__(self, block: object) -> Iterator[Any]:
        """Blocks of rows and failures, from a block of decoded pictures."""
        return _step(self.folder, self._encode, block)

    def _encode(self, pictures: list[Decoded]) -> Iterator[list[Row | Failure]]:
        if self.error is not None:
            raise self.error
        items = encode_all([self.model], pictures, self.options.keep, dtype=self.options.dtype)
        return grouped(items, _tensor_bytes, count=FILES, most=BYTES)


def _step(folder: str, work: Callable[[Any], Iterator[Any]], block: object) -> Iterator[Any]:
    """A block for each result of `work` on the content of a block; called by Ray."""
    _change_folder(folder)
    for content in _unpack(block):
        if isinstance(content, Exception):
            yield _table(content)
            return
        try:
            for result in work(content):
                yield _table(result)
        except Exception as error:
            yield _table(portable(error))


def _pack(content: object) -> bytes:
    return pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)


def _table(content: object) -> Any:
    """A block of one row, which Ray does not split."""
    import pyarrow as pa

    return pa.table({"block": pa.array([_pack(content)], pa.large_binary())})


def _unpack(block: Any) -> Iterator[Any]:
    """The content of a block; one without rows, from a step that gave nothing, has no columns either."""
    for packed in block["block"] if block.num_rows else ():
        yield pickle.loads(packed.as_buffer())


def _change_folder(folder: str) -> None:
    """Make the folder where the run was started the current one, for relative paths."""
    with suppress(OSError):  # a node without that folder can still read servers and absolute paths
        os.chdir(folder)


def _check_reachable(item: Row | Failure) -> None:
    """Raise S2WrapError if a picture failed because its node does not see a file that is on this machine."""
    missing = isinstance(item, Failure) and item.reason.endswith("there is no such file")
    if missing and not is_remote(item.name) and os.path.isfile(item.name):
        raise S2WrapError(
            f"{item.name} is on this machine, but not on the node that was to read it; all nodes need the pictures at "
            f"the same addresses"
        )
