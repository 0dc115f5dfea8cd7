"""`compare` measures the cost and the quality of several models. The module to read first."""

import zlib
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from s2wrap.backbones import parse_spec
from s2wrap.compare.comparison import Comparison, Row
from s2wrap.compare.data import Pictures, read_folder
from s2wrap.compare.extract import POOLS, UnableError, default_folder, trim
from s2wrap.compare.latency import check_backends, time_models
from s2wrap.compare.memory import peak_bytes
from s2wrap.compare.selecting import CALL, Selecting
from s2wrap.compare.tasks import TASKS, Bench, choose_tasks
from s2wrap.compare.verdict import judge, pareto_front, recommend
from s2wrap.compare.ways import split_name
from s2wrap.cost import count_cost
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.factory import load
from s2wrap.policies import Pair
from s2wrap.timing import describe_device
from s2wrap.wrapper import MultiScale, largest_hw


def compare(
    specs: Sequence[str],
    *,
    data: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    target: str | None = None,
    pool: str | Sequence[str] = "mean",
    backends: Sequence[str] = ("eager",),
    seconds: float = 2.0,
    batch: int = 1,
    image_hw: Pair | None = None,
    device: str | torch.device = "cpu",
    cache: str | Path | bool = True,
    skip_errors: bool = False,
    console: Console | None = None,
    **options: object,
) -> Comparison:
    """Return the cost of several models for one image, and with pictures their quality on those.

    Args:
        specs: model specs, `FAMILY:NAME[:size=PIXELS][:patch=PIXELS]@SCALES`: larger models, several scales, a
            larger input in one pass ("…@2:whole", or size=), smaller patches (patch=). Behind it may stand options of
            that model alone: "sample:dinov2_s14@1,2,3 fuse=detail overlap=5", and how many tiles of its finer scales
            run: "sample:dinov2_s14@1,3 select=3 by=saliency".
        data: a folder of pictures, see `read_folder`. Without one only costs are compared, with random weights: nothing
            is downloaded.
        tasks: what is measured on them, names in `s2wrap.compare.TASKS`. By default what the form of the folder is for:
            with classes classification, with masks segmentation, with neither correspondence and stability.
        target: spec of the larger model whose features are reconstructed (the paper, section 4), which adds the task
            "reconstruction"; by default, where that task is named, the model with the most parameters.
        pool: how a model's map becomes a vector: one or more of mean, max, cls, separated by commas.
        backends: the backends that are timed: eager, compile, max-autotune, cuda-graph, onnx, tensorrt, tensorrt-rtx;
            an empty sequence for no timing.
        seconds: how long each model and backend is timed, with ten runs at least.
        batch: batch size for timing.
        image_hw: height and width of the images for costs and times, the same for all; by default of the largest scale
            of all models.
        device: the device that models run on.
        cache: the folder in which features are cached by the hashes of model and picture, from which an interrupted
            comparison continues. True stands for the user's cache folder, whose least recently used files go when it
            takes more than 10 GiB; False for no cache.
        skip_errors: leave out pictures that cannot be read.
        console: where progress is shown; nowhere by default.
        **options: passed on for every model, as to `s2wrap.load`: fuse, fit, norm, overlap and so on.

    Raises:
        MissingExtraError: scikit-learn or another library of the [compare] extra is not installed.
        S2WrapError: a repeated spec, models that cannot be loaded or compared, pictures that cannot be used.

    >>> compare(["timm:test_vit@1", "timm:test_vit@1,2"], backends=()).rows[1].cost.tiles
    5
    """
    specs, target = _check_specs(specs, data, target)
    check_backends(backends)
    pools = _parse_pools(pool)
    with _show_progress(console or Console(quiet=True)) as progress:
        pictures, names = None, []
        if data is not None:
            _check_installed()
            track = partial(progress.track, description="reading")
            pictures = read_folder(data, skip_errors=skip_errors, progress=track)
            names = choose_tasks(tasks, pictures.kind, target is not None)
        options = {"pretrained": pictures is not None or "checkpoint" in options} | options
        if "reconstruction" in names:
            _check_reconstruction(options)
        make = partial(_load_seeded, device=device, **options)
        all_specs = list(dict.fromkeys(specs if target is None else [*specs, target]))
        models = {spec: make(spec) for spec in progress.track(all_specs, description="loading")}
        image_hw = image_hw or largest_hw(models[spec] for spec in specs)
        rows = _measure_costs({spec: models[spec] for spec in specs}, image_hw, backends, batch, seconds, progress)
        comparison = Comparison(rows, _facts(pictures, models[specs[0]], image_hw, batch if backends else None))
        if not options["pretrained"]:
            comparison.facts["weights"] = "random"
        if pictures is None:
            return comparison
        comparison.skipped, comparison.pictures = pictures.skipped, [*map(str, pictures.paths)]
        comparison.tested = [path for index, path in enumerate(comparison.pictures) if pictures.is_tested(index)]
        folder = (default_folder() if cache else None) if isinstance(cache, bool) else Path(cache)
        target = target or max(rows, key=lambda row: row.cost.parameters).spec
        bench = Bench(models, specs, pictures, folder, progress, make, pools, target, comparison.facts)
        for name in names:
            _run_task(name, bench, comparison)
            if cache is True:
                trim(default_folder())
    _judge(comparison)
    shown = {name: value for name, value in options.items() if name != "pretrained"}
    unselected = [row for row in rows if not isinstance(models[row.spec], Selecting)]  # s2wrap features runs all tiles
    comparison.verdict += recommend(unselected, comparison.deciding, shown)
    return comparison


def _check_specs(specs: Sequence[str], data: object, target: str | None) -> tuple[list[str], str | None]:
    """Return all specs in their canonical spelling. Raises S2WrapError for specs that cannot be compared."""
    if isinstance(specs, str) or not specs:
        raise S2WrapError(f"compare() takes a list of models, not {specs!r}; give one spec or more")
    parsed = [_canonical(spec) for spec in specs]
    if repeated := [spec for spec in parsed if parsed.count(spec) > 1]:
        raise S2WrapError(f"{repeated[0]} is named twice; name each model once")
    if data is None and target:
        raise S2WrapError(
            "the features of a target are reconstructed on pictures; give a folder of them (data, --data)"
        )
    return parsed, target and _canonical(target)


def _canonical(name: str) -> str:
    spec, *words = name.split() or [""]
    return " ".join([str(parse_spec(spec)), *sorted(words)])


def _check_reconstruction(options: dict[str, Any]) -> None:
    """Raise S2WrapError for options that give models different grids, or several maps."""
    for name, default in (("fit", "stretch"), ("target_grid", None)):
        if options.get(name, default) != default:
            raise S2WrapError(
                f"{name}={options[name]!r} with a reconstruction, which has one grid for all models; leave it out"
            )
    if options.get("fuse") == "pyramid":
        raise S2WrapError("fuse='pyramid' has several maps, and a reconstruction needs one; use another fusion")


def _load_seeded(spec: str, device: str | torch.device, **options: object) -> MultiScale:
    """Return a model, with random weights, if any, that depend on the backbone's name only."""
    spec, own = split_name(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(parse_spec(spec).backbone.encode()))
        call = {name: own.pop(name) for name in CALL if name in own}
        model = load(spec, **(options | own)).to(device)
        return Selecting(model, call) if call else model


def _check_installed() -> None:
    for package in ("sklearn", "scipy", "platformdirs"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "compare")


def _parse_pools(pool: str | Sequence[str]) -> tuple[str, ...]:
    pools = tuple(part.strip() for part in pool.split(",")) if isinstance(pool, str) else tuple(pool)
    if not pools or not set(pools) <= set(POOLS) or len(set(pools)) < len(pools):
        raise S2WrapError(f"pool={pool!r} is unknown; use some of {', '.join(POOLS)}, with commas")
    return pools


def _show_progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_interactive)


def _facts(pictures: Pictures | None, model: MultiScale, image_hw: Pair, batch: int | None) -> dict[str, str]:
    """Return how the figures are measured: pictures, device, versions, precision, image and batch size."""
    facts = {} if pictures is None else {"pictures": _describe_pictures(pictures)}
    facts |= describe_device(model.backbone.device) | {"s2wrap": version("s2wrap")}
    facts["precision"] = str(model.backbone.dtype).removeprefix("torch.")
    facts["image counted" if batch is None else "image timed"] = f"{image_hw[0]}×{image_hw[1]}"
    return facts if batch is None else facts | {"batch timed": str(batch)}


def _describe_pictures(pictures: Pictures) -> str:
    count = f"{len(pictures.paths)} pictures"
    if pictures.classes:
        count += f" in {len(pictures.classes)} classes"
    if pictures.kind == "plain":
        return count
    if len(pictures.folds) == 1:
        return f"{count}, {len(pictures.folds[0].test)} of them tested"
    return f"{count}, each tested once in {len(pictures.folds)} folds"


def _measure_costs(
    models: dict[str, MultiScale],
    image_hw: Pair,
    backends: Sequence[str],
    batch: int,
    seconds: float,
    progress: Progress,
) -> list[Row]:
    """Return a row for each model, with its cost, peak memory and times."""
    rows = []
    for spec, model in progress.track(models.items(), description="counting"):
        images = torch.randn(1, model.input.channels, *image_hw, device=model.backbone.device)
        with torch.inference_mode():
            model(images)  # matrices that are made once and cached are no part of a call's memory
            memory = peak_bytes(partial(model, images), model.backbone.device)
        select = model.call["select"] if isinstance(model, Selecting) else None
        rows.append(Row(spec, count_cost(model, image_hw, select), memory=memory))
    if backends:
        task = progress.add_task("timing", total=1)

        def update(share: float) -> None:
            progress.update(task, completed=share)

        timings = time_models(models, backends, image_hw, batch=batch, seconds=seconds, progress=update)
        for row in rows:
            row.timings = timings[row.spec]
    return rows


def _run_task(name: str, bench: Bench, comparison: Comparison) -> None:
    """Add the scores of a task to the rows, and its measures to the comparison."""
    task, measures = TASKS[name](bench), {}
    for row in bench.track(comparison.rows, description=name):
        try:
            scores = task.score(row.spec)
        except UnableError as error:
            row.unable[name] = str(error)
            continue
        row.scores |= scores
        measures |= dict.fromkeys(scores)
    comparison.tasks[name] = tuple(measures)


def _judge(comparison: Comparison) -> None:
    """Fill in the Pareto front and the verdict."""
    rows = comparison.rows
    for number, measure in enumerate(comparison.deciding):
        scored = [row for row in rows if measure in row.scores]
        if number == 0:
            for row in pareto_front(scored, measure, lambda row: row.cost.multiply_adds):
                row.on_front = len(scored) > 1
        verdict, pairs = judge(scored, measure, comparison.facts["pictures"])
        comparison.verdict += [sentence for sentence in verdict if sentence not in comparison.verdict]
        comparison.pairs += pairs
