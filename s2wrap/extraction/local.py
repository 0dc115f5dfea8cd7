"""Extraction on this machine: worker processes decode and encode, or decode for a GPU."""

import gc
import os
import pickle
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor, nn

from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.addresses import is_remote
from s2wrap.extraction.decode import decode_all
from s2wrap.extraction.encode import Encoder, Keep, encode_all
from s2wrap.extraction.picture import Failure, Mark, Picture, Row
from s2wrap.extraction.sources import Section, pictures_after
from s2wrap.extraction.workers import by_workers, grouped, portable
from s2wrap.images import Reading
from s2wrap.wrapper import MultiScale

CALLS = 2
"""Backbone calls per block of pictures, about: enough to outweigh sending it to a worker and back."""
BYTES = 16 << 20
"""The most bytes of the files of a block, where those are in memory (a larger file is a block of its own)."""
Packed = Tensor | np.ndarray
"""The bytes of a pickle: a list of rows and failures, and the error that ended it or None."""


def encode_here(
    models: Sequence[Encoder],
    keep: Keep,
    dtype: torch.dtype,
    workers: int | None,
    reading: Reading,
    sections: list[Section],
    mark: Mark,
) -> Generator[Row | Failure]:
    """The results of `encode_all` for the pictures after a mark, in order.

    On Linux, with a module on a CPU, each worker decodes and encodes with a single thread, so that no thread waits for
    others at the end of every layer. Otherwise (on a GPU, or with exported files and functions, which may have threads
    of their own), workers only decode.

    Args:
        models: the model, once on each of its devices.
        keep: picks the arrays to store from the features of one picture.
        dtype: the dtype of the stored arrays.
        workers: number of processes; 0 works in this process alone. None: one per processor less one if they only
            decode (one in all outside Linux); if they encode, one per processor, or two if pictures come from a server,
            so that one can wait, and none if there are fewer blocks of pictures than that.
        reading: how pictures are read.
        sections: the sources.
        mark: the position of the last picture that is done.
    """
    pictures = pictures_after(sections, mark)
    model = models[0]
    if workers != 0 and len(models) == 1 and _can_fork(model):
        blocks = _blocks(pictures, model)
        if workers is None:
            workers, blocks = _choose_workers(blocks)
        if workers:
            return _encode_by_workers(model, blocks, keep, dtype, workers, reading)
        pictures = chain.from_iterable(blocks)
    workers = _processors() - 1 if workers is None else workers
    on_gpu = model.device.type == "cuda"
    decoded = decode_all(pictures, reading, workers=workers, pin=on_gpu)
    return encode_all(models, decoded, keep, dtype=dtype)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def _can_fork(model: Encoder) -> bool:
    """Whether forked processes can run the model: not on a GPU, nor where it may have threads other than torch's."""
    if sys.platform != "linux" or not isinstance(model, MultiScale):
        return False
    backbone = model.backbone
    return model.device.type == "cpu" and isinstance(backbone.owner or backbone.model, nn.Module)


def _blocks(pictures: Iterator[Picture], model: MultiScale) -> Iterator[list[Picture]]:
    """The pictures in blocks, limited by backbone calls and by bytes."""
    tiles = model.plan(model.backbone.image_hw).num_tiles
    count = max(1, CALLS * model.tile_batch_for(1, model.device) // tiles)
    return grouped(pictures, lambda picture: len(picture.content or b""), count=count, most=BYTES)


def _choose_workers(blocks: Iterator[list[Picture]]) -> tuple[int, Iterator[list[Picture]]]:
    """The number of workers that encode, 0 if there are fewer blocks than that; and all blocks, from the first."""
    first = list(islice(blocks, 1))
    from_server = any(is_remote(picture.name) and picture.content is None for picture in chain(*first))
    workers = _processors() * (1 + from_server)
    first += islice(blocks, workers - 1)
    return workers if len(first) == workers else 0, chain(first, blocks)


def _encode_by_workers(
    model: MultiScale,
    blocks: Iterator[list[Picture]],
    keep: Keep,
    dtype: torch.dtype,
    workers: int,
    reading: Reading,
) -> Generator[Row | Failure]:
    work = partial(_encode_block, model, keep, dtype, reading)

    def crashed(block: list[Picture]) -> Packed:
        if len(block) > 1:  # find the picture that caused it
            single = iter([[picture] for picture in block])
            return _join(by_workers(single, work, crashed, workers=1, ahead=1, fork=True))
        (picture,) = block
        reason = f"{picture.name}: the process that worked on it crashed, or was killed for its memory"
        return _pack([Failure(picture.name, reason, picture.mark)])

    gc.freeze()  # a full collection writes to every object, and so would copy all pages shared with the workers
    try:
        for packed in by_workers(blocks, work, crashed, workers=workers, ahead=2, fork=True):
            items, error = _unpack(packed)
            yield from items
            if error is not None:
                raise error
    finally:
        gc.unfreeze()


def _encode_block(model: Encoder, keep: Keep, dtype: torch.dtype, reading: Reading, block: list[Picture]) -> Packed:
    """The results of a block of pictures, in shared memory."""
    items: list[Row | Failure] = []
    cause = None
    try:
        decoded = decode_all(block, reading, workers=0)
        for item in encode_all([model], decoded, keep, dtype=dtype):
            items.append(item)
    except Exception as error:
        cause = portable(error)
    packed = _pack(items, cause)
    try:
        return packed.share_memory_()  # the DataLoader would do this too, but hang if it fails
    except RuntimeError as error:
        problem = f"no shared memory to hand features over ({first_line(error)}); use fewer --workers, or 0"
        return _pack([], S2WrapError(f"{problem}; the same command again goes on from here")).numpy()


def _join(blocks: Iterable[Packed]) -> Packed:
    """One block of several, up to and including the first error."""
    items: list[Row | Failure] = []
    for packed in blocks:
        more, error = _unpack(packed)
        items += more
        if error is not None:
            return _pack(items, error)
    return _pack(items)


def _pack(items: list[Row | Failure], error: Exception | None = None) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps((items, error))), dtype=torch.uint8)


def _unpack(packed: Packed) -> tuple[list[Row | Failure], Exception | None]:
    return pickle.loads(np.asarray(packed).data)
