"""The whole way from addresses to a store or file of features."""

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from s2wrap.errors import S2WrapError
from s2wrap.extraction.addresses import kind
from s2wrap.extraction.cluster import Job, encode_on
from s2wrap.extraction.encode import Encoder, weights_of, whole_maps
from s2wrap.extraction.fleet import Cluster, connected
from s2wrap.extraction.formats import make_writer
from s2wrap.extraction.local import encode_here
from s2wrap.extraction.picture import Failure, Mark, Row
from s2wrap.extraction.single import SingleFile
from s2wrap.extraction.sources import Section, count_pictures, find_sections
from s2wrap.extraction.store import Store, check_parent, check_place, opened_store
from s2wrap.extraction.tars import container
from s2wrap.extraction.writer import PartWriter, Writer
from s2wrap.files import whole_file

GONE = 1000
"""Pictures in a row that may be gone before it is asked whether their disk or server is."""
Shapes = dict[str, tuple[int, ...]]
Work = Callable[[list[Section], Mark], Generator[Row | Failure]]


@dataclass(frozen=True)
class State:
    """Where a run is: the picture that it has just done (None at the beginning), pictures done, expected at the end.

    The pictures of tars are not counted beforehand: the expected ones are then guessed from the tars that are done.
    """

    item: Row | Failure | None
    done: int
    expected: int | None


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        rows: pictures whose features are in the output, those of earlier runs included.
        failed: pictures that could not be read, likewise.
        shapes: the shapes of a picture's arrays, by name, that this run saw.
    """

    rows: int
    failed: int
    shapes: list[Shapes]


def extract_features(
    addresses: Iterable[str],
    output: Path,
    *,
    load: Callable[[], Encoder],
    spec: str,
    options: Mapping[str, Any],
    dtype: str = "float32",
    shard: int | None = None,
    workers: int | None = None,
    cluster: Cluster | None = None,
    errors: Path | None = None,
    reject_attacks: bool = False,
    tell: Callable[[State], object] = lambda state: None,
) -> Outcome:
    """Write the features of pictures to a store, going on where an earlier run ended; or to one file.

    Args:
        addresses: as for `find_sections`.
        output: a folder NAME.parquet (pooled vectors), NAME.zarr (maps), NAME.safetensors with `shard` (maps in part
            files); or a file NAME.safetensors or NAME.npz, which is kept in memory until all pictures are done.
        load: gives the model on its device; called once the output is known to be possible. With `cluster`, on the
            CPU: here for its weights' hash, and, pickled by cloudpickle, once an actor, which moves it.
        spec: what the model is called.
        options: whatever else decides what the features are; both are kept with them, and compared when going on.
        dtype: "float32", "float16", or "bfloat16" (.safetensors).
        shard: pictures of a part file or chunk, see `make_writer`.
        workers: processes that work, 0 for none beside this one; see `encode_here`.
        cluster: the Ray that reads, decodes and encodes, instead of this machine and its `workers`.
        errors: where to write the list of pictures that could not be read: a line {"path": …, "reason": …} each.
        reject_attacks: whether pictures that look like an attack on image scaling count as unreadable, see
            `s2wrap.scaling_attacks`.
        tell: told after every picture.

    Raises:
        S2WrapError: an impossible output, sources that are missing or not those of before, another model or options
            than before, a full disk, no picture that could be read, or a cluster that is not there or of no use.
    """
    _check_workers(workers, cluster)
    if errors is not None:
        check_parent(errors)
    writer, sections = make_writer(output, dtype, shard), find_sections(addresses)
    total = count_pictures(sections)
    with _place(output, writer) as draft, nullcontext() if cluster is None else connected(cluster) as fleet:
        model = load()
        description = {
            "spec": spec,
            "options": dict(options),
            "weights_sha256": weights_of(model),
            "s2wrap_version": version("s2wrap"),
            "dtype": dtype,
            "shard": writer.block if isinstance(writer, PartWriter) else shard,
            "reject_scaling_attacks": reject_attacks,
        }
        keep, number = writer.keep if writer else whole_maps, getattr(torch, dtype)
        work: Work
        if fleet is None:
            work = partial(encode_here, model, keep, number, workers, reject_attacks)
        else:
            work = partial(encode_on, fleet, Job(load, keep, number, description["weights_sha256"], reject_attacks))
        del model
        into: AbstractContextManager[Store | SingleFile]
        if writer is None:
            into = nullcontext(SingleFile(output, draft, description))
        else:
            into = opened_store(output, writer, description)
        with into as sink:
            with _listed(sink, errors), closing(work(sections, sink.mark)) as items:
                shapes = _fill(sink, _checked(items, sink.rows), total, len(sections), tell)
            return Outcome(sink.rows, sink.failed, shapes)


def _check_workers(workers: int | None, cluster: Cluster | None) -> None:
    if cluster is not None and workers is not None:
        raise S2WrapError(f"--workers {workers} with Ray: every free CPU of the cluster decodes; leave it out")
    if workers is not None and workers < 0:
        raise S2WrapError(f"--workers {workers} is no number of processes; use 0 (none) or more")


def _fill(
    sink: Store | SingleFile,
    items: Iterable[Row | Failure],
    total: int | None,
    sections: int,
    tell: Callable[[State], object],
) -> list[Shapes]:
    """Give the sink all pictures that it does not have yet."""
    tell(State(None, sink.rows + sink.failed, total))
    shapes: list[Shapes] = []
    added = True
    try:
        for item in items:
            if isinstance(item, Row):
                _check_overflow(item)
                seen = {name: tuple(array.shape) for name, array in item.arrays.items()}
                if not shapes:
                    _check_room(item, total and total - sink.rows - sink.failed, sink.folder)
                if seen not in shapes[:2]:
                    shapes.append(seen)
            added = False
            sink.add(item)
            added = True
            done = sink.rows + sink.failed
            tell(State(item, done, total or _guess(done, item.mark.section, sections)))
    except (KeyboardInterrupt, SystemExit):
        if added:  # not in the midst of it
            sink.commit()
        raise
    sink.commit(finished=True)
    if sink.rows == 0:
        raise S2WrapError(f"none of {sink.failed} pictures could be read; nothing was written")
    return shapes


def _checked(items: Iterable[Row | Failure], before: int) -> Iterator[Row | Failure]:
    """The same, but pictures that are gone are failures only while those before them are there.

    Of a disk that is unmounted, or a bucket that is closed, every picture left would be a failure otherwise.

    Args:
        items: from the place where earlier runs ended.
        before: rows of earlier runs.

    Raises:
        S2WrapError: the last picture that could be read is gone too; or, going on, none can be read any more.
    """
    gone: list[Failure] = []
    last: str | None = None
    for item in items:
        if isinstance(item, Failure) and item.gone:
            gone.append(item)
            if len(gone) == GONE:
                _check_there(gone, last, before)
                yield from gone
                gone.clear()
            continue
        yield from gone
        gone.clear()
        last = item.name if isinstance(item, Row) else last
        yield item
    if gone:
        _check_there(gone, last, before)
        yield from gone


def _check_there(gone: list[Failure], last: str | None, before: int) -> None:
    """Raise S2WrapError where the sources are gone, not only these pictures."""
    there = before == 0
    if last is not None:
        with suppress(S2WrapError):
            there = kind(container(last)) is not None
    if not there:
        raise S2WrapError(
            f"{len(gone)} pictures in a row cannot be reached ({gone[0].reason}), nor what was read before; the same "
            f"command again goes on from here"
        )


@contextmanager
def _listed(sink: Store | SingleFile, path: Path | None) -> Iterator[None]:
    """Write the list of failures at the end, however that comes."""
    try:
        yield
    except BaseException:
        if path is not None:
            with suppress(S2WrapError):  # the first error is to be told
                sink.copy_failures(path)
        raise
    if path is not None:
        sink.copy_failures(path)


def _guess(done: int, section: int, sections: int) -> int | None:
    """The pictures of all sections, from those of the first ones; None before one is done."""
    return round(done * sections / (section + 0.5)) if section else None


@contextmanager
def _place(output: Path, writer: Writer | None) -> Iterator[Path]:
    """Find what cannot be written before the work, not after; gives the draft of a single file."""
    if writer is not None:
        check_place(output)
        yield output
        return
    with whole_file(output) as draft:
        yield draft


def _check_room(row: Row, count: int | None, folder: Path) -> None:
    """Refuse before the work what the disk cannot hold after it."""
    needed = (count or 0) * sum(array.nbytes for array in row.arrays.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise S2WrapError(f"{count} pictures make {needed / 1e6:.1f} MB, but the disk has {free / 1e6:.1f} MB left")


def _check_overflow(row: Row) -> None:
    """Refuse features that a small number format turned to infinity."""
    for name, array in row.arrays.items():
        if array.dtype == torch.float16 and bool(array.isinf().any()):
            raise S2WrapError(f"the {name} of {row.name} holds values beyond 65504, which float16 cannot; use float32")
