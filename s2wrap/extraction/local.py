"""The work of a run done by this machine: by its processors, or by a GPU that they decode for."""

import gc
import os
import pickle
import sys
from collections.abc import Generator, Iterable, Iterator
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
from s2wrap.wrapper import MultiScale

CALLS = 2
"""Backbone calls that a block of pictures is worth, about: enough to outweigh its way to a worker and back."""
BYTES = 16 << 20
"""Bytes of a block's files, where those are in memory, about."""
Packed = Tensor | np.ndarray
"""Rows and failures, and the error that ended them, or None, as the bytes of a pickle."""


def encode_here(
    model: Encoder,
    keep: Keep,
    dtype: torch.dtype,
    workers: int | None,
    reject_attacks: bool,
    sections: list[Section],
    mark: Mark,
) -> Generator[Row | Failure]:
    """What `encode_all` gives for the pictures after a mark, in their order.

    Args:
        model: on its device.
        keep: what of a picture's features.
        dtype: of what is kept.
        workers: processes. On Linux, for a module on a CPU, each decodes and encodes, with one thread: no thread waits
            for others at the end of every layer. Otherwise they decode: for a GPU, and for exported files and
            functions, which may have threads of their own. 0: this process does all. None: one a processor, two a
            processor where pictures come from a server, so that one can wait; this process alone where there is not a
            block of pictures for each. Where they decode, one less; elsewhere than on Linux, one.
        reject_attacks: as for `decode_all`.
        sections: where the pictures are.
        mark: the last picture that is done.
    """
    pictures = pictures_after(sections, mark)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    if workers != 0 and _can_be_copied(model):
        blocks = _blocks(pictures, model)
        if workers is None:
            first = list(islice(blocks, 1))
            fetched = any(is_remote(picture.name) and picture.content is None for picture in chain(*first))
            workers = processors * (1 + fetched)
            first += islice(blocks, workers - 1)
            blocks = chain(first, blocks)
            if len(first) < workers:
                workers = 0
        if workers:
            return _encode_by_workers(model, blocks, keep, dtype, workers, reject_attacks)
        pictures = chain.from_iterable(blocks)
    workers = processors - 1 if workers is None else workers
    pin = model.device.type == "cuda"
    decoded = decode_all(pictures, workers=workers, pin=pin, reject_attacks=reject_attacks)
    return encode_all(model, decoded, keep, dtype=dtype)


def _can_be_copied(model: Encoder) -> bool:
    """Whether a copy of this process can run the model: not on a GPU, nor with threads that are not torch's."""
    if sys.platform != "linux" or not isinstance(model, MultiScale):
        return False
    backbone = model.backbone
    return model.device.type == "cpu" and isinstance(backbone.owner or backbone.model, nn.Module)


def _blocks(pictures: Iterator[Picture], model: MultiScale) -> Iterator[list[Picture]]:
    """The pictures in blocks, by what they are worth and by their bytes."""
    tiles = model.plan(model.backbone.image_hw).num_tiles
    count = max(1, CALLS * model.tile_batch_for(1, model.device) // tiles)
    return grouped(pictures, lambda picture: len(picture.content or b""), count=count, most=BYTES)


def _encode_by_workers(
    model: MultiScale,
    blocks: Iterator[list[Picture]],
    keep: Keep,
    dtype: torch.dtype,
    workers: int,
    reject_attacks: bool,
) -> Generator[Row | Failure]:
    work = partial(_encode_block, model, keep, dtype, reject_attacks)

    def crashed(block: list[Picture]) -> Packed:
        if len(block) > 1:  # one of them did it
            alone = iter([[picture] for picture in block])
            return _joined(by_workers(alone, work, crashed, workers=1, ahead=1, fork=True))
        (picture,) = block
        reason = f"{picture.name}: the process that worked on it crashed, or was killed for its memory"
        return _packed([Failure(picture.name, reason, picture.mark)])

    gc.freeze()  # else its next full round would write to every object, and so to pages that all processes share
    try:
        for packed in by_workers(blocks, work, crashed, workers=workers, ahead=2, fork=True):
            items, error = _unpacked(packed)
            yield from items
            if error is not None:
                raise error
    finally:
        gc.unfreeze()


def _encode_block(model: Encoder, keep: Keep, dtype: torch.dtype, reject_attacks: bool, block: list[Picture]) -> Packed:
    """What is made of pictures, in memory that all processes see."""
    items: list[Row | Failure] = []
    failed = None
    try:
        decoded = decode_all(block, workers=0, reject_attacks=reject_attacks)
        for item in encode_all(model, decoded, keep, dtype=dtype):
            items.append(item)
    except Exception as error:
        failed = portable(error)
    packed = _packed(items, failed)
    try:
        return packed.share_memory_()  # as the loader does out of sight, where an error is a wait without end
    except RuntimeError as error:
        full = f"no shared memory to hand features over ({first_line(error)}); use fewer --workers, or 0"
        return _packed([], S2WrapError(f"{full}; the same command again goes on from here")).numpy()


def _joined(blocks: Iterable[Packed]) -> Packed:
    """One block of several, up to and with the first error."""
    items: list[Row | Failure] = []
    for packed in blocks:
        more, error = _unpacked(packed)
        items += more
        if error is not None:
            return _packed(items, error)
    return _packed(items)


def _packed(items: list[Row | Failure], error: Exception | None = None) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps((items, error))), dtype=torch.uint8)


def _unpacked(packed: Packed) -> tuple[list[Row | Failure], Exception | None]:
    return pickle.loads(np.asarray(packed).data)
