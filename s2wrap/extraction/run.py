"""Feature extraction from addresses to a store or file."""

import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from s2wrap.errors import S2WrapError
from s2wrap.extraction.addresses import kind
from s2wrap.extraction.cluster import EncodingOptions, encode_on
from s2wrap.extraction.encode import Encoder, made_by, whole_maps
from s2wrap.extraction.fleet import Cluster, connected
from s2wrap.extraction.formats import make_writer
from s2wrap.extraction.int8 import RECALL, Quantizer, Recall
from s2wrap.extraction.local import encode_here
from s2wrap.extraction.picture import Failure, Mark, Row
from s2wrap.extraction.pooling import check_vector
from s2wrap.extraction.single import SingleFile
from s2wrap.extraction.sources import Section, count_pictures, files_left_out, find_sections
from s2wrap.extraction.store import Store, check_parent, check_place, opened_store
from s2wrap.extraction.tars import container
from s2wrap.extraction.vectors import VectorWriter
from s2wrap.extraction.writer import PartWriter, Writer
from s2wrap.files import whole_file
from s2wrap.images.folders import LeftOut
from s2wrap.images.options import USUAL, Reading

GONE = 1000
"""Successive missing pictures after which their disk or server is checked."""
Shapes = dict[str, tuple[int, ...]]
Encode = Callable[[list[Section], Mark], Generator[Row | Failure]]


@dataclass(frozen=True)
class State:
    """The progress of a run.

    Attributes:
        item: the result of the last picture; None at the start.
        done: number of pictures done, including earlier runs.
        expected: number of pictures in total; with tars, an estimate from those done so far, or None.
    """

    item: Row | Failure | None
    done: int
    expected: int | None


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        rows: number of pictures whose features are in the output, including earlier runs.
        failed: number of pictures that could not be read, including earlier runs.
        shapes: the shapes of a picture's arrays by name; two entries if pictures differ, none if all were done.
        left_out: the files of folders that are no pictures, counted by ending.
        recall: for int8 vectors, what they keep of the neighbours of this run's pictures; else None.
    """

    rows: int
    failed: int
    shapes: list[Shapes]
    left_out: LeftOut = field(default_factory=LeftOut)
    recall: Recall | None = None


def extract_features(
    addresses: Iterable[str],
    output: Path,
    *,
    load: Callable[[], Encoder],
    spec: str,
    options: Mapping[str, Any],
    dtype: str = "float32",
    vector: str | None = None,
    shard: int | None = None,
    workers: int | None = None,
    cluster: Cluster | None = None,
    errors: Path | None = None,
    reading: Reading = USUAL,
    overwrite: bool = False,
    tell: Callable[[State], object] = lambda state: None,
) -> Outcome:
    """Write the features of pictures to a store, resuming where an earlier run ended, or to a single file.

    Args:
        addresses: as for `find_sections`.
        output: a folder NAME.parquet (pooled vectors), NAME.zarr (maps), or NAME.safetensors with `shard` (maps in part
            files); or a file NAME.safetensors or NAME.npz, which is kept in memory until all pictures are done.
        load: loads the model onto its device; called after the output is checked. With `cluster`, it must load to the
            CPU: it is called here, for the hash of the weights, and (pickled by cloudpickle) once in each actor.
        spec: the name of the model.
        options: all else that determines the features; stored with `spec`, and compared when a run is resumed.
        dtype: "float32", "float16", "bfloat16" (.safetensors), or "int8" (.parquet).
        vector: for .parquet: "mean" (default) of the map, "cls" token, "cls+mean" concatenated, or "joint": the
            embedding in a space with text (models of open_clip), as `encode_image` gives it.
        shard: pictures per part file or chunk, see `make_writer`.
        workers: number of worker processes, 0 for none; see `encode_here`.
        cluster: the Ray cluster that reads, decodes and encodes, instead of worker processes on this machine.
        errors: file for the pictures that could not be read, one JSON line {"path": …, "reason": …} each.
        reading: how pictures are read; its range of values is that of the model.
        overwrite: whether a store is begun anew, instead of resumed.
        tell: called at the start and after every picture.

    Raises:
        S2WrapError: the output cannot be written, the model has no such vector, sources are missing or have changed,
            the store was made with another model or other options, the disk is full, no picture could be read, or the
            cluster cannot be used.
    """
    _check_workers(workers, cluster)
    if errors is not None:
        check_parent(errors)
    writer, sections = make_writer(output, dtype, shard, vector), find_sections(addresses)
    total = count_pictures(sections)
    with _reserved(output, writer) as draft, nullcontext() if cluster is None else connected(cluster) as fleet:
        model = load()
        footprints = isinstance(writer, VectorWriter)
        reading = replace(reading, value_range=model.input.value_range, footprints=footprints)
        description = made_by(model, spec, options, dtype) | {
            "shard": writer.block if isinstance(writer, PartWriter) else shard,
            "reading": {"bands": reading.bands, "reject_scaling_attacks": reading.reject_scaling_attacks},
        }
        if isinstance(writer, VectorWriter):
            check_vector(model, writer.vector)
            description["vector"] = writer.vector
        quantizer = Quantizer() if dtype == "int8" else None
        keep = writer.keep if writer else whole_maps
        torch_dtype = torch.float32 if quantizer else getattr(torch, dtype)
        encode: Encode
        if fleet is None:
            encode = partial(encode_here, model, keep, torch_dtype, workers, reading)
        else:
            sha256 = description["weights_sha256"]
            encode = partial(encode_on, fleet, EncodingOptions(load, keep, torch_dtype, sha256, reading))
        del model
        single = SingleFile(output, draft, description)
        with nullcontext(single) if writer is None else opened_store(output, writer, description, overwrite) as sink:
            with _failure_list(sink, errors), closing(encode(sections, sink.mark)) as encoded:
                items = _check_sources(encoded, sink.rows)
                shapes = fill(sink, quantizer(items) if quantizer else items, total, len(sections), tell)
            recall = quantizer.recall() if quantizer else None
            if isinstance(sink, Store) and recall and recall.recall_at_10 is not None:
                sink.write_note(RECALL, asdict(recall))
            return Outcome(sink.rows, sink.failed, shapes, files_left_out(sections), recall)


def _check_workers(workers: int | None, cluster: Cluster | None) -> None:
    if cluster is not None and workers is not None:
        raise S2WrapError(f"--workers {workers} with Ray: every free CPU of the cluster decodes; leave it out")
    if workers is not None and workers < 0:
        raise S2WrapError(f"--workers {workers} is no number of processes; use 0 (none) or more")


def fill(
    sink: Store | SingleFile,
    items: Iterable[Row | Failure],
    total: int | None,
    sections: int,
    tell: Callable[[State], object],
) -> list[Shapes]:
    """Add all items to the store or file, and commit them; the result is at most two shapes of their arrays."""
    tell(State(None, sink.rows + sink.failed, total))
    shapes: list[Shapes] = []
    adding = False
    try:
        for item in items:
            if isinstance(item, Row):
                _check_overflow(item)
                item_shapes = {name: tuple(array.shape) for name, array in item.arrays.items()}
                if not shapes:
                    _check_disk_space(item, total and total - sink.rows - sink.failed, sink.folder)
                if len(shapes) < 2 and item_shapes not in shapes:  # two are enough to tell that pictures differ
                    shapes.append(item_shapes)
            adding = True
            sink.add(item)
            adding = False
            done = sink.rows + sink.failed
            tell(State(item, done, total or _estimate(done, item.mark.section, sections)))
    except (KeyboardInterrupt, SystemExit):
        if not adding:  # the sink may be inconsistent otherwise
            sink.commit()
        raise
    sink.commit(finished=True)
    if sink.rows == 0:
        raise S2WrapError(f"none of {sink.failed} pictures could be read; nothing was written")
    return shapes


def _check_sources(items: Iterable[Row | Failure], earlier_rows: int) -> Iterator[Row | Failure]:
    """The same items, after checks that a series of missing pictures does not mean that their source is offline.

    Otherwise, if a disk is unmounted or a bucket is closed, all remaining pictures would count as failures.

    Args:
        items: the results of this run.
        earlier_rows: number of rows of earlier runs.

    Raises:
        S2WrapError: the last picture that could be read is missing too, or a resumed run can read none at all.
    """
    gone: list[Failure] = []
    last: str | None = None
    for item in items:
        if isinstance(item, Failure) and item.gone:
            gone.append(item)
            if len(gone) == GONE:
                _check_online(gone, last, earlier_rows)
                yield from gone
                gone.clear()
            continue
        yield from gone
        gone.clear()
        last = item.name if isinstance(item, Row) else last
        yield item
    if gone:
        _check_online(gone, last, earlier_rows)
        yield from gone


def _check_online(gone: list[Failure], last: str | None, earlier_rows: int) -> None:
    """Raise S2WrapError if the sources are offline: `last`, which could be read before, is missing as well."""
    online = earlier_rows == 0
    if last is not None:
        with suppress(S2WrapError):
            online = kind(container(last)) is not None
    if not online:
        raise S2WrapError(
            f"{len(gone)} pictures in a row cannot be reached ({gone[0].reason}), nor what was read before; the same "
            f"command again goes on from here"
        )


@contextmanager
def _failure_list(sink: Store | SingleFile, path: Path | None) -> Iterator[None]:
    """Write the list of failures after the block, even if it raised an error."""
    try:
        yield
    except BaseException:
        if path is not None:
            with suppress(S2WrapError):  # the first error matters more
                sink.copy_failures(path)
        raise
    if path is not None:
        sink.copy_failures(path)


def _estimate(done: int, section: int, sections: int) -> int | None:
    """The estimated pictures of all sections, from the first ones; None before one is done."""
    return round(done * sections / (section + 0.5)) if section else None


@contextmanager
def _reserved(output: Path, writer: Writer | None) -> Iterator[Path]:
    """The path to write to (a temporary one for a single file), checked to be writable before the work starts."""
    if writer is not None:
        check_place(output)
        yield output
        return
    with whole_file(output) as draft:
        yield draft


def _check_disk_space(row: Row, count: int | None, folder: Path) -> None:
    """Raise S2WrapError if the disk cannot hold so many rows of this size."""
    needed = (count or 0) * sum(array.nbytes for array in row.arrays.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise S2WrapError(f"{count} pictures make {needed / 1e6:.1f} MB, but the disk has {free / 1e6:.1f} MB left")


def _check_overflow(row: Row) -> None:
    """Raise S2WrapError if features overflowed in float16."""
    for name, array in row.arrays.items():
        if array.dtype == torch.float16 and bool(array.isinf().any()):
            raise S2WrapError(f"the {name} of {row.name} holds values beyond 65504, which float16 cannot; use float32")
