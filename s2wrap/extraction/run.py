"""Feature extraction from addresses to a store or file."""

import copy
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType

import torch

from s2wrap.errors import S2WrapError
from s2wrap.extraction.addresses import can_be_read
from s2wrap.extraction.cluster import EncodingOptions, encode_on
from s2wrap.extraction.control import control_folder, write_control
from s2wrap.extraction.encode import Encoder, made_by, whole_maps
from s2wrap.extraction.fleet import Cluster, connected
from s2wrap.extraction.formats import make_writer
from s2wrap.extraction.int8 import RECALL, Quantizer, Recall
from s2wrap.extraction.local import encode_here
from s2wrap.extraction.picture import START, Failure, Mark, Row
from s2wrap.extraction.pooling import check_vector
from s2wrap.extraction.single import SingleFile
from s2wrap.extraction.sources import Section, count_pictures, files_left_out, find_sections, sections_of, tar_of
from s2wrap.extraction.store import Store, check_parent, check_place, opened_store
from s2wrap.extraction.vectors import VectorWriter
from s2wrap.extraction.writer import PartWriter, Writer
from s2wrap.files import disk_errors, whole_file
from s2wrap.images.folders import LeftOut
from s2wrap.images.options import USUAL, Reading

GONE = 1000
"""Successive pictures that cannot be reached after which their disk or server is checked."""
GONE_SECONDS = 60.0
"""Seconds of such a series after which it is checked too: a server may take long not to answer."""
Shapes = dict[str, tuple[int, ...]]
Encode = Callable[[list[Section], Mark], Generator[Row | Failure]]


@dataclass(frozen=True)
class State:
    """The progress of a run.

    Attributes:
        item: the result of the last picture; None at the start.
        done: number of pictures done, including earlier runs.
        expected: number of pictures in total; with tars, an estimate from those done so far, or None.
        again: at the start, how many pictures of earlier runs are tried again.
    """

    item: Row | Failure | None
    done: int
    expected: int | None
    again: int = 0


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
    options: Mapping[str, object],
    dtype: str = "float32",
    vector: str | None = None,
    shard: int | None = None,
    workers: int | None = None,
    devices: Sequence[str | torch.device] = (),
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
        devices: more devices for copies of the model (a `MultiScale`), beside the one that it is loaded onto, all of
            one kind; batches of pictures go to them in turn.
        cluster: the Ray cluster that reads, decodes and encodes, instead of worker processes on this machine.
        errors: file for the pictures that could not be read, one JSON line {"path": …, "reason": …, "try_again": …}
            each: whether the next run with the same store tries them again.
        reading: how pictures are read; its range of values is that of the model.
        overwrite: whether a store is begun anew, instead of resumed, and a single file replaced.
        tell: called at the start and after every picture.

    Raises:
        S2WrapError: the output cannot be written, the model has no such vector, sources are missing or have changed,
            the store was made with another model or other options, the disk is full, no picture could be read, or the
            cluster cannot be used.
    """
    _check_workers(workers, cluster)
    if errors is not None:
        _check_errors(errors, output, overwrite)
    writer, sections = make_writer(output, dtype, shard, vector), find_sections(addresses)
    total = count_pictures(sections)
    with (
        _reserved(output, writer, overwrite) as draft,
        nullcontext() if cluster is None else connected(cluster) as fleet,
    ):
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
            models = [model, *(copy.deepcopy(model).to(device) for device in devices)]
            encode = partial(encode_here, models, keep, torch_dtype, workers, reading)
        else:
            sha256 = description["weights_sha256"]
            encode = partial(encode_on, fleet, EncodingOptions(load, keep, torch_dtype, sha256, reading))
        single = SingleFile(output, draft, description)
        with nullcontext(single) if writer is None else opened_store(output, writer, description, overwrite) as sink:
            with _failure_list(sink, errors):
                shapes = fill(sink, partial(_quantized, encode, quantizer), sections, total, tell)
            recall = quantizer.recall() if quantizer else None
            if isinstance(sink, Store) and recall and recall.recall_at_10 is not None:
                write_control(output, RECALL, asdict(recall))
            return Outcome(sink.rows, sink.failed, shapes, files_left_out(sections), recall)


def _quantized(
    encode: Encode, quantizer: Quantizer | None, sections: list[Section], mark: Mark
) -> Generator[Row | Failure]:
    items = encode(sections, mark)
    return items if quantizer is None else quantizer(items)


def _check_errors(path: Path, output: Path, overwrite: bool) -> None:
    """Raise S2WrapError unless the list of failures can be written, and replaces nothing but an earlier one."""
    check_parent(path)
    if path.resolve().parent in (output.resolve(), control_folder(output)):
        raise S2WrapError(f"--errors {path} is in the store; give a name elsewhere")
    if overwrite or not path.is_file():
        return
    with path.open("rb") as file, suppress(ValueError):
        line = file.readline(1 << 20)
        if not line or {"path", "reason"} <= set(json.loads(line)):
            return
    raise S2WrapError(f"--errors {path} exists already, and is no such list; give another name, or add --overwrite")


def _check_workers(workers: int | None, cluster: Cluster | None) -> None:
    if cluster is not None and workers is not None:
        raise S2WrapError(f"--workers {workers} with Ray: every free CPU of the cluster decodes; leave it out")
    if workers is not None and workers < 0:
        raise S2WrapError(f"--workers {workers} is no number of processes; use 0 (none) or more")


def fill(
    sink: Store | SingleFile,
    encode: Encode,
    sections: list[Section],
    total: int | None,
    tell: Callable[[State], object],
) -> list[Shapes]:
    """Add all pictures to the store or file, try those again that may be readable now, and commit.

    The result is at most two shapes of their arrays. However it ends, what was done is committed.
    """
    tell(State(None, sink.rows + sink.failed, total, sum(sink.again.values())))
    shapes: list[Shapes] = []
    failed_to_add = False

    def add(items: Iterable[Row | Failure], count: int | None) -> None:
        nonlocal failed_to_add
        for item in items:
            if isinstance(item, Row):
                item_shapes = {name: tuple(array.shape) for name, array in item.arrays.items()}
                if not shapes:
                    _check_disk_space(item, count and count - sink.rows - sink.failed, sink.folder)
                if len(shapes) < 2 and item_shapes not in shapes:  # two are enough to tell that pictures differ
                    shapes.append(item_shapes)
            failed_to_add = True
            with held_signals():
                sink.add(item)
                failed_to_add = False
            done = sink.rows + sink.failed
            tell(State(item, done, count or _estimate(done, item.mark.section, len(sections))))

    try:
        with closing(encode(sections, sink.mark)) as items:
            add(_check_online(items, sink.last, sections), total)
        if sink.again:
            with closing(encode(sections_of(sections, list(sink.again)), START)) as items:
                marked = (replace(item, mark=sink.mark) for item in items)
                add(_check_online(marked, sink.last, sections, at_end=False), total)
    except BaseException:
        if not failed_to_add:  # the sink may be inconsistent otherwise
            with held_signals(), suppress(S2WrapError):  # the first error matters more
                sink.commit()
        raise
    with held_signals():
        sink.commit(finished=True)
    if sink.rows == 0:
        raise S2WrapError(f"none of {sink.failed} pictures could be read; nothing was written")
    return shapes


def _check_online(
    items: Iterable[Row | Failure], last: str | None, sections: list[Section], *, at_end: bool = True
) -> Iterator[Row | Failure]:
    """The same items, after checks that a series of failures does not mean that their disk or server is gone.

    Otherwise all remaining pictures would fail one by one, each after all attempts.

    Args:
        items: the results of this run.
        last: a picture that could be read in an earlier run, if one is known.
        sections: the sources.
        at_end: whether a series that ends the run is checked too, however short.

    Raises:
        S2WrapError: the last picture that could be read cannot be read any more, or none was yet and no server answers.
    """
    series: list[Failure] = []
    started = time.monotonic()
    for item in items:
        if isinstance(item, Row):
            last = item.name
        if not (isinstance(item, Failure) and (item.gone or item.offline)):
            yield from series
            series, started = [], time.monotonic()
            yield item
            continue
        series.append(item)
        slow = time.monotonic() - started > GONE_SECONDS and len(series) > 1
        if slow or len(series) == GONE:
            _check_series(series, last, sections, unknown=item.offline)
            yield from series
            series, started = [], time.monotonic()
    if series and at_end:
        _check_series(series, last, sections, unknown=False)
    yield from series


def _check_series(series: list[Failure], last: str | None, sections: list[Section], *, unknown: bool) -> None:
    """Raise S2WrapError if what could be read before cannot be read now; `unknown` says so where nothing was."""
    if unknown if last is None else not can_be_read(tar_of(sections, last) or last):
        before = "" if last is None else ", nor what was read before"
        raise S2WrapError(
            f"{len(series)} pictures in a row cannot be reached ({series[0].reason}){before}; the same command again "
            f"goes on from here"
        )


@contextmanager
def held_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM act only after the block, so that nothing is written by half."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in usual:
        signal.signal(number, lambda *received: held.append(received))
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    for number, frame in held:
        if callable(handler := usual[signal.Signals(number)]):
            handler(number, frame)
        elif handler != signal.SIG_IGN:
            signal.raise_signal(number)


@contextmanager
def _failure_list(sink: Store | SingleFile, path: Path | None) -> Iterator[None]:
    """Write the list of failures after the block, even if it raised an error."""
    try:
        yield
    except BaseException:
        if path is not None:
            with suppress(S2WrapError):  # the first error matters more
                _write_failures(sink, path)
        raise
    if path is not None:
        _write_failures(sink, path)


def _write_failures(sink: Store | SingleFile, path: Path) -> None:
    """Write the failures to a file as JSON lines, whole or not at all."""
    with whole_file(path) as draft, disk_errors(path):
        draft.write_text("".join(json.dumps(failure) + "\n" for failure in sink.unread()))


def _estimate(done: int, section: int, sections: int) -> int | None:
    """The estimated pictures of all sections, from the first ones; None before one is done."""
    return round(done * sections / (section + 0.5)) if section else None


@contextmanager
def _reserved(output: Path, writer: Writer | None, overwrite: bool) -> Iterator[Path]:
    """The path to write to (a temporary one for a single file), checked to be writable before the work starts."""
    if writer is not None:
        check_place(output, writer.own())
        yield output
        return
    if output.exists() and not overwrite:
        raise S2WrapError(f"{output} exists already, and is not replaced unasked; choose another name, or overwrite it")
    with whole_file(output) as draft:
        yield draft


def _check_disk_space(row: Row, count: int | None, folder: Path) -> None:
    """Raise S2WrapError if the disk cannot hold so many rows of this size."""
    needed = (count or 0) * sum(array.nbytes for array in row.arrays.values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise S2WrapError(f"{count} pictures make {needed / 1e6:.1f} MB, but the disk has {free / 1e6:.1f} MB left")
