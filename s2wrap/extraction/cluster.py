"""The work of a run done by a Ray cluster, while the process that began it stays the only one that writes.

Ray Data runs four steps: one task lists the pictures, tasks read tars (of files, only the names travel), tasks decode,
and actors that hold the model encode. What passes between them is a pickle of some pictures, one a block. Blocks arrive
here in the order of the pictures, so that a store is what a run without Ray makes, and is gone on with likewise. What
dies with its node is done again by Ray; an error of a step travels on in place of its pictures.
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
from s2wrap.extraction.fleet import Fleet
from s2wrap.extraction.picture import Failure, Mark, Picture, Row
from s2wrap.extraction.sources import Piece, Section, pieces_after
from s2wrap.extraction.workers import grouped, portable
from s2wrap.wrapper import MultiScale

FILES = 64
"""Pictures of a block, at most: enough to outweigh Ray's work on one (milliseconds), few enough to do again."""
BYTES = 64 << 20
"""Bytes of a block, about: a larger picture is a block of its own."""
RETRIES = 10
"""Times that a block is tried again whose node or process died; a block that kills them all ends the run."""


@dataclass(frozen=True)
class Job:
    """What the actors need; all of it travels to them.

    Attributes:
        load: gives the model, on the CPU, or the exported file.
        keep: what of a picture's features.
        dtype: of what is kept.
        weights: what `weights_of` the model must be.
        reject_attacks: as for `decode_all`.
    """

    load: Callable[[], Encoder]
    keep: Keep
    dtype: torch.dtype
    weights: str
    reject_attacks: bool


def encode_on(fleet: Fleet, job: Job, sections: list[Section], mark: Mark) -> Generator[Row | Failure]:
    """What `encode_all` gives for the pictures after a mark, in their order, computed by a cluster.

    Raises:
        S2WrapError: a source or server that gives no answer, a node that sees other files, weights or another version
            than this machine, or a block whose processes die again and again.
    """
    from ray.exceptions import RayError

    try:
        for batch in _pipeline(fleet, job, sections, mark).iter_batches(batch_size=None, batch_format="pyarrow"):
            for given in _unpacked(batch):
                if isinstance(given, Exception):
                    raise given
                for item in given:
                    _check_seen(item)
                    yield item
    except RayError as error:
        raise S2WrapError(f"Ray gave up: {first_line(error)}; the same command again goes on from here") from error


def _pipeline(fleet: Fleet, job: Job, sections: list[Section], mark: Mark) -> Any:
    """The steps as a dataset of Ray Data, which computes a block when it is asked for, and some ahead.

    Steps that wait hold no CPU, so that the two that compute always find one.
    """
    import ray.data
    from ray.data import ActorPoolStrategy, TaskPoolStrategy
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tars = sum(section.tar for section in sections)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)  # lists may be here only
    step = partial(partial, _step, os.getcwd())
    with fleet.settings():
        rows: Any = ray.data.from_items([{"block": _packed(mark)}], override_num_blocks=1)
        whole = {"batch_size": None, "batch_format": "pyarrow"}
        listed = step(partial(_pieces if tars else _files, sections))
        rows = rows.map_batches(listed, **whole, num_cpus=0, compute=TaskPoolStrategy(1), scheduling_strategy=here)
        if tars:
            readers = TaskPoolStrategy(min(tars, fleet.actors + 1))
            rows = rows.map_batches(step(_read), **whole, num_cpus=0, compute=readers, max_retries=RETRIES)
        rows = rows.map_batches(step(partial(_decode, job.reject_attacks)), **whole, num_cpus=1, max_retries=RETRIES)
        return rows.map_batches(
            _Encoder,
            fn_constructor_args=(job, fleet.device, version("s2wrap"), os.getcwd()),
            **whole,
            **fleet.needs(),
            compute=ActorPoolStrategy(size=fleet.actors),
            max_restarts=-1,
            max_task_retries=RETRIES,
        )


def _pieces(sections: list[Section], mark: Mark) -> Iterator[Piece]:
    return pieces_after(sections, mark, files=FILES)


def _files(sections: list[Section], mark: Mark) -> Iterator[list[Picture]]:
    for read in pieces_after(sections, mark, files=FILES):
        yield list(read())


def _read(piece: Piece) -> Iterator[list[Picture]]:
    return grouped(piece(), lambda picture: len(picture.content or b""), count=FILES, most=BYTES)


def _decode(reject_attacks: bool, pictures: list[Picture]) -> Iterator[list[Decoded]]:
    # a process beside this one decodes: Ray would try a picture that crashes its own again and again
    decoded = decode_all(pictures, workers=1, reject_attacks=reject_attacks)
    return grouped(
        decoded, lambda picture: 0 if picture.image is None else picture.image.nbytes, count=FILES, most=BYTES
    )


class _Encoder:
    """An actor: it loads the model once."""

    def __init__(self, job: Job, device: str, s2wrap: str, home: str):
        self.job, self.home, self.problem = job, home, None
        keep_freed_memory()
        try:
            _go_to(home)
            if version("s2wrap") != s2wrap:
                raise S2WrapError(f"a node has s2wrap {version('s2wrap')}, and this machine {s2wrap}; install the same")
            model = job.load()
            if weights_of(model) != job.weights:
                raise S2WrapError(
                    "a node loads other weights than this machine; give all the same ones, as by --checkpoint"
                )
            self.model = model.to(device) if isinstance(model, MultiScale) else model
        except Exception as error:  # Ray would start the actor again
            self.problem = error

    def __call__(self, batch: Any) -> Iterator[Any]:
        """Blocks of rows from one of decoded pictures."""
        return _step(self.home, self._encode, batch)

    def _encode(self, pictures: list[Decoded]) -> Iterator[list[Row | Failure]]:
        if self.problem is not None:
            raise self.problem
        items = encode_all(self.model, pictures, self.job.keep, dtype=self.job.dtype)
        return grouped(
            items,
            lambda item: sum(array.nbytes for array in getattr(item, "arrays", {}).values()),
            count=FILES,
            most=BYTES,
        )


def _step(home: str, work: Callable[[Any], Iterator[Any]], batch: Any) -> Iterator[Any]:
    """What Ray calls with a block: does the work on what it holds, and gives a block for each thing that comes out."""
    _go_to(home)
    for given in _unpacked(batch):
        if isinstance(given, Exception):
            yield _table(given)
            return
        try:
            for made in work(given):
                yield _table(made)
        except Exception as error:
            yield _table(portable(error))


def _packed(content: Any) -> bytes:
    return pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)


def _table(content: Any) -> Any:
    """Anything as a block of one row, which Ray does not divide."""
    import pyarrow as pa

    return pa.table({"block": pa.array([_packed(content)], pa.large_binary())})


def _unpacked(batch: Any) -> Iterator[Any]:
    """What is in a block; a step that gave nothing makes one without columns."""
    for packed in batch["block"] if batch.num_rows else ():
        yield pickle.loads(packed.as_buffer())


def _go_to(home: str) -> None:
    """Let paths mean what they mean where the run was begun."""
    with suppress(OSError):  # a node without that folder can still read servers and absolute paths
        os.chdir(home)


def _check_seen(item: Row | Failure) -> None:
    """Refuse a failure that is one of the cluster, not of the picture."""
    missing = isinstance(item, Failure) and item.reason.endswith("there is no such file")
    if missing and not is_remote(item.name) and os.path.isfile(item.name):
        raise S2WrapError(
            f"{item.name} is on this machine, but not on the node that was to read it; all nodes need the pictures at "
            f"the same addresses"
        )
