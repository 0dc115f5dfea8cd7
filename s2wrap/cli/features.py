"""`s2wrap features`: pictures in, a store or file of features out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

import s2wrap
from s2wrap.allocator import keep_freed_memory
from s2wrap.cli import model as flags
from s2wrap.cli import output as out
from s2wrap.errors import S2WrapError
from s2wrap.images.options import Reading, ReadOptions, WindowOptions
from s2wrap.options import LoadOptions, Options, make_options, option_types

if TYPE_CHECKING:
    import torch

    import s2wrap.extraction.fleet
    import s2wrap.extraction.run

NOT_KEPT = ("scales", "tile_batch", "frozen", "name", "pretrained", "checkpoint")
"""Options that a store does not keep: those that change no feature, and what its spec and hash of weights say."""
SHOWN = 20
"""Pictures that could not be read of which a line is printed; the list has all."""


@flags.model_options()
@flags.option_flags(ReadOptions, "read_options")
@flags.option_flags(WindowOptions, "window_options")
def extract(
    photos: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, folders, patterns in quotes, lists (.txt, or .parquet with a column path) or tars; also as "
            "s3://… and whatever fsspec opens."
        ),
    ],
    *,
    model: Annotated[
        str, typer.Option(help=f"{flags.SPEC_HELP} Or an exported file: .onnx, .plan, .engine, .rtx, .pt2.")
    ],
    output: Annotated[
        Path, typer.Option(help=".parquet: vectors; .zarr, .safetensors or .npz: maps and prefix tokens.")
    ],
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to run: cpu, cuda, cuda:1, mps, GPUs together as cuda:0,cuda:1 (default: cpu; CUDA for a "
            "TensorRT file)."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of what is written: float32, float16, bfloat16 (.safetensors), or int8 (.parquet).")
    ] = ("float32"),
    vector: Annotated[
        str | None,
        typer.Option(
            metavar="mean|cls|cls+mean|joint",
            help="Which vector (.parquet): mean of the map (default), CLS token, both concatenated, or the joint "
            "embedding with text (open_clip).",
        ),
    ] = None,
    shard: Annotated[
        int | None,
        typer.Option(
            help="Pictures of a part file (.parquet: 10000; .safetensors: all in one file) or of a chunk (.zarr: 4 MB)."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes at work; 0: this one alone (default: one a processor, with many pictures)."),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Work on Ray: the cluster that RAY_ADDRESS names, or one of this machine.")
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option(help="Work on the Ray cluster with its head at HOST:PORT, or on this node's (auto).")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(help="Ray's processes with a model each (default: one a GPU; or CPU, less one).")
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(help="Where to list the pictures that could not be read: JSON lines of path, reason, try_again."),
    ] = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Exit with 0 although pictures could not be read, not with 3.")
    ] = False,
    as_json: out.Json = False,
    overwrite: out.Overwrite = False,
    options: dict[str, Any],
    read_options: dict[str, Any],
    window_options: dict[str, Any],
) -> None:
    """Write the features of pictures, as many as there are.

    `NAME.parquet` is a folder of part files with a row a picture: path, height, width and a vector (`--vector`).
    `NAME.zarr` holds the maps (pictures, channels, rows, columns) and prefix tokens (pictures, tokens, channels), and
    `NAME.safetensors` with `--shard N` is a folder of files of N pictures each. After a kill, a crash or a full disk,
    the same command goes on where it stopped; another model or option is refused, unless `--overwrite` has the store
    begun anew.

    `NAME.safetensors` without `--shard`, and `NAME.npz`, are one file, kept in memory until the end. Where the
    pictures' shapes give them grids of different sizes (fit aspect or pad), each has arrays of its own, under its
    number: `0/spatial`, `0/prefix`, `1/spatial`, …

    A picture that cannot be read is counted and passed over; the exit code is 3 then. One that is missing, or whose
    server, disk or memory failed, is tried again at the end, and by the next run of the same command.

    With `--ray` or `--ray-address`, the nodes of a Ray cluster read, decode and encode, and this process, on one of
    them, writes the same store; a node or process that dies is replaced. All nodes need the same version of s2wrap, and
    the pictures and weights at the same addresses. `--device cuda` gives each of the `--actors` a GPU; every free CPU
    decodes.
    """
    import torch

    from s2wrap.export.manifest import usual_device
    from s2wrap.extraction.run import extract_features

    if not output.is_dir():  # a store goes on, and so does its list of errors
        out.check_overwrite([path for path in (output, errors) if path is not None], overwrite)
    exported = model.endswith(flags.FILE_ENDINGS)
    usual = usual_device(model) if exported else "cpu"
    cluster, windows = _cluster(ray, ray_address, actors, device or usual), WindowOptions(**window_options)
    devices = [] if cluster else [flags.device(name) for name in (device or "cpu").split(",")]
    if len({place.type for place in devices}) > 1 or (len(devices) > 1 and (exported or windows.window)):
        raise S2WrapError(f"--device {device}: several must be of one kind, for a model by its name, without --window")
    if exported:
        make = partial(_open_file, model, None if device is None else devices[0], options)
    else:  # actors move the model themselves: this machine may have no GPU
        place = torch.device("cpu") if cluster else devices[0]
        make = partial(_load_model, model, place, options)
    keep_freed_memory()
    console = out.notes()
    continued = shard is not None or output.suffix in (".parquet", ".zarr")
    reading = Reading(**read_options)
    common: dict[str, Any] = {
        "load": make,
        "spec": model,
        "options": options if exported else _kept(model, options),
        "dtype": dtype,
        "reading": reading,
        "overwrite": overwrite,
    }
    with _Bar(console) as bar, _last_words(bar, console, output if continued else None):
        if windows.window is not None:
            given = {"--vector": vector, "--shard": shard, "--workers": workers, "--errors": errors, "--ray": cluster}
            given["--skip-errors"] = skip_errors or None
            _check_scene(photos, exported, [flag for flag, value in given.items() if value is not None])
            from s2wrap.extraction.scene import extract_scene

            outcome = extract_scene(photos[0], output, windows=windows, tell=bar.show, **common)
        else:
            outcome = extract_features(
                photos,
                output,
                vector=vector,
                shard=shard,
                workers=workers,
                devices=devices[1:],
                cluster=cluster,
                errors=errors,
                tell=bar.show,
                **common,
            )
        if outcome.left_out:
            out.print_line(f"left out, as no pictures by their endings: {outcome.left_out}", console, "yellow")
    if as_json:
        counts = {"pictures": outcome.rows, "failed": outcome.failed, "left_out": outcome.left_out}
        if outcome.recall is not None:
            counts["recall"] = asdict(outcome.recall)
        counts = {} if windows.window is not None else counts
        out.print_json({"output": str(output), **counts, "shapes": outcome.shapes})
    else:
        out.print_line(_summary(outcome, output, windows))
    if outcome.failed and not skip_errors:
        raise typer.Exit(3)


def _check_scene(photos: list[str], exported: bool, flags_without_effect: list[str]) -> None:
    """Raise S2WrapError for what a run over windows of one picture cannot take."""
    if len(photos) != 1:
        raise S2WrapError(f"--window with {len(photos)} pictures; give one, and a store for each")
    if exported:
        raise S2WrapError("--window with an exported file; give the model that it was made of, as FAMILY:NAME@SCALES")
    if flags_without_effect:
        raise S2WrapError(f"{', '.join(flags_without_effect)} has no effect with --window; leave it out")


def _load_model(spec: str, device: "torch.device", options: dict[str, Any]) -> "s2wrap.MultiScale":
    import torch

    if not options.get("pretrained", True):
        torch.manual_seed(0)  # so that a run that goes on, and every actor, draws them again
    return s2wrap.load(spec, **options).to(device)


def _open_file(path: str, device: "torch.device | None", options: dict[str, Any]) -> Any:
    """An exported file; S2WrapError where it has no say in what is asked, or where pictures do not fit it."""
    if fixed := [flags.flag_name(name) for name in options if name not in option_types(Options)]:
        raise S2WrapError(f"{', '.join(fixed)}: {path} is exported, with its weights and its input; export it again")
    from s2wrap.export import load as open_file

    engine = open_file(path, device=device, **options)
    engine.encode([])  # refuses a graph that pictures cannot be stretched for
    return engine


def _kept(spec: str, options: dict[str, Any]) -> dict[str, Any]:
    """Every option of a model that changes its features, for the store: it refuses to go on with others."""
    from s2wrap.backbones import parse_spec

    chosen = make_options(LoadOptions, "s2wrap features", {"scales": parse_spec(spec).scales, **options})
    return {name: value for name, value in chosen.to_json().items() if name not in NOT_KEPT}


@contextmanager
def _last_words(bar: "_Bar", console: Console, store: Path | None) -> Iterator[None]:
    """Say how far a run came that is interrupted, and whether the same command goes on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C and SIGTERM
        kept = "nothing is written: a single file is whole or not at all; .parquet, .zarr or --shard N can be continued"
        kept = kept if store is None else f"the same command goes on with {store}"
        out.print_line(f"stopped after {bar.done} pictures; {kept}", console, "yellow")
        raise


def _cluster(
    ray: bool, address: str | None, actors: int | None, device: str
) -> "s2wrap.extraction.fleet.Cluster | None":
    """The Ray that is asked for."""
    from s2wrap.extraction.fleet import Cluster, quiet_ray

    if ray or address is not None:
        quiet_ray()
        return Cluster(address, actors, device)
    if actors is not None:
        raise S2WrapError(f"--actors {actors} are processes of Ray; add --ray or --ray-address")
    return None


def _summary(outcome: "s2wrap.extraction.run.Outcome", output: Path, windows: WindowOptions) -> str:
    """One line: how many pictures, of which shape, where."""
    if windows.window is not None:
        return f"a map {outcome.shapes[0]['spatial']} → {output}" if outcome.shapes else f"{output} was finished before"
    seen = outcome.shapes[0] if outcome.shapes else {}
    shapes = [shape for name, shape in seen.items() if shape and not name.startswith("prefix")]
    told = " + ".join(map(str, shapes)) + " each" if len(outcome.shapes) == 1 else "each on a grid of its own"
    told = told if outcome.shapes else "all there before"
    unread = f"; {outcome.failed} could not be read" if outcome.failed else ""
    return f"{outcome.rows} pictures, {told} → {output}{unread}{_recall(outcome)}"


def _recall(outcome: "s2wrap.extraction.run.Outcome") -> str:
    """What int8 vectors keep of the nearest neighbours, in words; empty for others."""
    if outcome.recall is None:
        return ""
    count, share = outcome.recall.pictures, outcome.recall.recall_at_10
    if share is None:
        return f"; recall of int8 not measured: this run had {count} pictures, too few"
    return f"; recall@10 of int8 against float32: {share:.3f}, on {count} of this run's pictures"


class _Speed(ProgressColumn):
    """Pictures a second of this run."""

    def render(self, task: Task) -> Text:
        done = task.completed - task.fields["before"]
        return Text(f"{done / task.elapsed:.1f} pictures/s" if done and task.elapsed else "")


class _Bar(Progress):
    """One bar for the whole run, and a line for each of the first failures."""

    def __init__(self, console: Console):
        columns = (TextColumn("features"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
        super().__init__(*columns, console=console, transient=True, disable=not console.is_interactive)
        self.failures, self.done, self.told = 0, 0, set[str]()
        self.number = self.add_task("features", total=None, start=False, before=0)

    def show(self, state: "s2wrap.extraction.run.State") -> None:
        """Move the bar to a state."""
        from s2wrap.extraction.picture import Failure

        if state.item is None:
            if state.again:
                text = f"tried again at the end, as they could not be read before: {state.again}"
                out.print_line(text, self.console, "yellow")
            self.start_task(self.number)
            self.update(self.number, before=state.done)
        self.done = state.done
        self.update(self.number, completed=state.done, total=state.expected)
        if isinstance(state.item, Failure) and state.item.name not in self.told:  # a second attempt says the same
            self.failures += 1
            if self.failures <= SHOWN:
                self.told.add(state.item.name)
                out.print_line(f"skipped {state.item.reason}", self.console, "yellow")
            elif self.failures == SHOWN + 1:
                out.print_line("further ones are counted; --errors FILE lists them", self.console, "yellow")
