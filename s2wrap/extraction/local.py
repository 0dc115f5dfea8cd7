"""The work of a run done by this machine: by its processors, or by a GPU that they decode for."""

import gc
import os
import pickle
import sys
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from itertools import chain, islice

import torch
from torch import nn

from s2wrap.extraction.addresses import is_remote
from s2wrap.extraction.decode import decode_all
from s2wrap.extraction.encode import Encoder, Keep, encode_all
from s2wrap.extraction.picture import Failure, Mark, Picture, Row
from s2wrap.extraction.sources import Section, pictures_after
from s2wrap.extraction.workers import by_workers, portable
from s2wrap.wrapper import MultiScale

CALLS = 2
"""Backbone calls that a block of pictures is worth: enough to outweigh its way to a worker and back (2 ms)."""


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
        workers: processes. For a model on a CPU, each decodes and encodes, with one thread: no thread waits for others
            at the end of every layer. For a GPU, and for exported files, which have threads of their own, they decode.
            0: this process does all. None: one a processor; two where pictures come from a server, so that one can
            wait; and one less where this process has work of its own.
        reject_attacks: as for `decode_all`.
        sections: where the pictures are.
        mark: the last picture that is done.
    """
    pictures = pictures_after(sections, mark)
    whole = _can_be_copied(model)
    if workers is None:
        first = list(islice(pictures, 1))
        fetched = any(is_remote(picture.name) and picture.content is None for picture in first)
        pictures = chain(first, pictures)
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = processors * (1 + fetched) if whole else processors - 1
    if whole and workers:
        return _encode_by_workers(model, pictures, keep, dtype, workers, reject_attacks)
    pin = model.device.type == "cuda"
    decoded = decode_all(pictures, workers=workers, pin=pin, reject_attacks=reject_attacks)
    return encode_all(model, decoded, keep, dtype=dtype)


def _can_be_copied(model: Encoder) -> bool:
    """Whether a copy of this process can run the model: not on a GPU, nor with threads that are not torch's."""
    if sys.platform != "linux" or not isinstance(model, MultiScale):
        return False
    return model.device.type == "cpu" and isinstance(model.backbone.model, nn.Module)


def _encode_by_workers(
    model: MultiScale,
    pictures: Iterator[Picture],
    keep: Keep,
    dtype: torch.dtype,
    workers: int,
    reject_attacks: bool,
) -> Generator[Row | Failure]:
    tiles = model.plan(model.backbone.image_hw).num_tiles
    size = max(1, CALLS * model.tile_batch_for(1, model.device) // tiles)
    blocks = iter(lambda: list(islice(pictures, size)), [])
    work = partial(_encode_block, model, keep, dtype, reject_attacks)

    def crashed(block: list[Picture]) -> bytes:
        if len(block) > 1:  # one of them did it
            alone = iter([[picture] for picture in block])
            return _joined(by_workers(alone, work, crashed, workers=1, ahead=1, fork=True))
        (picture,) = block
        reason = f"{picture.name}: the process that worked on it crashed, or was killed for its memory"
        return pickle.dumps(([Failure(picture.name, reason, picture.mark)], None))

    gc.freeze()  # else its next full round would write to every object, and so to pages that all processes share
    try:
        for packed in by_workers(blocks, work, crashed, workers=workers, ahead=2, fork=True):
            items, error = pickle.loads(packed)
            yield from items
            if error is not None:
                raise error
    finally:
        gc.unfreeze()


def _encode_block(model: Encoder, keep: Keep, dtype: torch.dtype, reject_attacks: bool, block: list[Picture]) -> bytes:
    """Rows and failures of pictures, and the error that ended them, or None; as a pickle, which needs no file."""
    items: list[Row | Failure] = []
    try:
        decoded = decode_all(block, workers=0, reject_attacks=reject_attacks)
        for item in encode_all(model, decoded, keep, dtype=dtype):
            items.append(item)
    except Exception as error:
        return pickle.dumps((items, portable(error)))
    return pickle.dumps((items, None))


def _joined(blocks: Iterable[bytes]) -> bytes:
    """One block of several, up to and with the first error."""
    items: list[Row | Failure] = []
    for packed in blocks:
        more, error = pickle.loads(packed)
        items += more
        if error is not None:
            return pickle.dumps((items, error))
    return pickle.dumps((items, None))
