"""`compare`: what models cost and what they know, beside each other. The page to read first."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from s2wrap.backbones import parse_spec
from s2wrap.compare.comparison import INFORMATION, Comparison, Row
from s2wrap.compare.curves import crossing, fit_curve
from s2wrap.compare.data import Pictures, read_folder
from s2wrap.compare.extract import POOLS, default_folder
from s2wrap.compare.families import series
from s2wrap.compare.latency import check_backends, time_models
from s2wrap.compare.memory import peak_bytes
from s2wrap.compare.quality import add_accuracy, add_reconstruction, add_segmentation
from s2wrap.compare.verdict import judge, pareto_front
from s2wrap.cost import count_cost
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.policies import Pair
from s2wrap.timing import describe_device
from s2wrap.wrapper import MultiScale, load


def compare(
    specs: Sequence[str],
    *,
    data: str | Path | None = None,
    target: str | None = None,
    reference: str | None = None,
    pool: Any = "mean",
    shots: Sequence[int] = (1, 5),
    backends: Sequence[str] = ("eager",),
    seconds: float = 2.0,
    batch: int = 1,
    image_hw: Pair | None = None,
    device: str | torch.device = "cpu",
    cache: str | Path | bool = True,
    skip_errors: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Comparison:
    """Models beside each other: what an image costs, and with pictures what they know of them.

    Args:
        specs: names of models, `FAMILY:NAME[:size=PIXELS][:patch=PIXELS]@SCALES`: larger models, several scales, a
            larger input in one pass ("…@2:whole", or size=), smaller patches (patch=).
        data: a folder of pictures, see `read_folder`. With classes: accuracy of a logistic regression, k-NN and few
            shots. With masks: mIoU of a linear segmentation. With neither: reconstruction. Without a folder only costs
            are compared, with random weights: nothing is downloaded.
        target: the larger model whose features are to be reconstructed (the paper, section 4); of pictures without
            labels by default the one with the most parameters.
        reference: the model of which the information I* is, to which the others are compared; larger than the target.
        pool: what of a model's map a picture's vector is: some of mean, max, cls, with commas.
        shots: pictures a class that few-shot classifiers learn from.
        backends: what is timed: some of eager, compile, max-autotune, cuda-graph, onnx, tensorrt, tensorrt-rtx; none
            for no timing.
        seconds: time of each, and ten runs at least.
        batch: images in a call that is timed.
        image_hw: height and width of the images whose cost is counted and timed; each model's own by default.
        device: where models run.
        cache: a folder where features are kept, by the hash of model and picture; True is the user's cache folder,
            False keeps none. An interrupted comparison goes on from there.
        skip_errors: leave out pictures that cannot be read.
        console: where progress is shown; nowhere by default.
        **options: for every model, as for `s2wrap.load`: fuse, fit, norm, overlap and so on.

    Raises:
        MissingExtraError: scikit-learn or another library of the [compare] extra is not installed.
        S2WrapError: a model twice, models that cannot be had or compared, pictures that cannot be used.

    >>> compare(["timm:test_vit@1", "timm:test_vit@1,2"], backends=()).rows[1].cost.tiles
    5
    """
    specs, target, reference = _check(specs, data, target, reference)
    check_backends(backends)
    pools = _pools(pool)
    console = console or Console(quiet=True)
    with _progress(console) as progress:
        pictures = None
        if data is not None:
            _check_installed()
            pictures = read_folder(
                data, skip_errors=skip_errors, progress=partial(progress.track, description="reading")
            )
        options = {"pretrained": pictures is not None} | options
        reconstructs = pictures is not None and (target or reference or pictures.kind == "plain")
        if reconstructs:
            _check_reconstruction(options)
        make = partial(_load, device=device, **options)
        others = [spec for spec in (target, reference) if spec is not None]
        named = list(dict.fromkeys([*specs, *others]))
        models = {spec: make(spec) for spec in progress.track(named, description="loading")}
        rows = _costs({spec: models[spec] for spec in specs}, image_hw, backends, batch, seconds, progress)
        facts = _facts(pictures, models[specs[0]], batch if backends else None)
        if not options["pretrained"]:
            facts["weights"] = "random"
        comparison = Comparison(rows, facts)
        if pictures is None:
            return comparison
        comparison.skipped = pictures.skipped
        folder = (default_folder() if cache else None) if isinstance(cache, bool) else Path(cache)
        if pictures.kind == "labelled":
            add_accuracy(rows, models, pictures, folder, pools, shots, progress)
        if pictures.kind == "masked":
            add_segmentation(rows, models, pictures, folder, progress)
        if reconstructs:
            target = target or max(rows, key=lambda row: row.cost.parameters).spec
            add_reconstruction(comparison, target, reference, models, make, pictures, folder, progress)
    _judge(comparison, pictures)
    return comparison


def _check(
    specs: Sequence[str], data: Any, target: str | None, reference: str | None
) -> tuple[list[str], str | None, str | None]:
    """The specs in one spelling. Raises S2WrapError for what can be seen before any work."""
    if isinstance(specs, str) or not specs:
        raise S2WrapError(f"compare() takes a list of models, not {specs!r}; give one spec or more")
    named = [str(parse_spec(spec)) for spec in specs]
    if len(twice := [spec for spec in named if named.count(spec) > 1]):
        raise S2WrapError(f"{twice[0]} is named twice; name each model once")
    if data is None and (target or reference):
        raise S2WrapError("a target or reference is reconstructed on pictures; give a folder of them (data, --data)")
    goal, best = (None if spec is None else str(parse_spec(spec)) for spec in (target, reference))
    return named, goal, best


def _check_reconstruction(options: dict[str, Any]) -> None:
    """Raise S2WrapError for options with which no map can be fitted between models."""
    for name, wanted in (("fit", "stretch"), ("target_grid", None)):
        if options.get(name, wanted) != wanted:
            raise S2WrapError(
                f"{name}={options[name]!r} with a reconstruction, which has one grid for all models; leave it out"
            )
    if options.get("fuse") == "pyramid":
        raise S2WrapError("fuse='pyramid' has several maps, and a reconstruction needs one; use another fusion")


def _load(spec: str, device: str | torch.device, **options: Any) -> MultiScale:
    """A model; where its weights are random, the same for every spec of a backbone, and every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(parse_spec(spec).backbone.encode()))
        return load(spec, **options).to(device)


def _check_installed() -> None:
    for package in ("sklearn", "scipy", "platformdirs"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "compare")


def _pools(pool: Any) -> tuple[str, ...]:
    pools = tuple(part.strip() for part in pool.split(",")) if isinstance(pool, str) else tuple(pool)
    if not pools or not set(pools) <= set(POOLS) or len(set(pools)) < len(pools):
        raise S2WrapError(f"pool={pool!r} is unknown; use some of {', '.join(POOLS)}, with commas")
    return pools


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield progress


def _facts(pictures: Pictures | None, model: MultiScale, batch: int | None) -> dict[str, str]:
    """What is to be told beside the figures."""
    facts = {} if pictures is None else {"pictures": _described(pictures)}
    facts |= describe_device(model.backbone.device) | {"s2wrap": version("s2wrap")}
    facts["precision"] = str(model.backbone.dtype).removeprefix("torch.")
    return facts if batch is None else facts | {"batch timed": str(batch)}


def _described(pictures: Pictures) -> str:
    count = f"{len(pictures.paths)} pictures"
    if pictures.classes:
        count += f" in {len(pictures.classes)} classes"
    if len(pictures.folds) == 1:
        return f"{count}, {len(pictures.folds[0].test)} of them tested"
    return f"{count}, each tested once in {len(pictures.folds)} folds"


def _costs(
    models: dict[str, MultiScale],
    image_hw: Pair | None,
    backends: Sequence[str],
    batch: int,
    seconds: float,
    progress: Progress,
) -> list[Row]:
    """A row for each model, with what it costs."""
    sizes = {spec: image_hw or model.backbone.image_hw for spec, model in models.items()}
    rows = []
    for spec, model in progress.track(models.items(), description="counting"):
        images = torch.randn(1, 3, *sizes[spec], device=model.backbone.device)
        with torch.inference_mode():
            model(images)  # what is made once is no part of a call's memory
            memory = peak_bytes(partial(model, images), model.backbone.device)
        rows.append(Row(spec, count_cost(model, sizes[spec]), memory=memory))
    if backends:
        task = progress.add_task("timing", total=100)

        def told(done: float) -> None:
            progress.update(task, completed=round(100 * done))

        timings = time_models(models, backends, sizes, batch=batch, seconds=seconds, progress=told)
        for row in rows:
            row.timings = timings[row.spec]
    return rows


def _judge(comparison: Comparison, pictures: Pictures) -> None:
    """Fill in the measures, the Pareto front, the curves and the verdict."""
    rows = comparison.rows
    comparison.measures = tuple(dict.fromkeys(name for row in rows for name in row.scores))
    if not comparison.measures:
        return
    first = comparison.measures[0]
    scored = [row for row in rows if first in row.scores]
    for row in pareto_front(scored, first, lambda row: row.cost.multiply_adds):
        row.on_front = len(scored) > 1
    crossings = [] if first == INFORMATION else _curves(comparison, scored, first)  # information is no share, 0…1
    found = judge(scored, first, comparison.facts["pictures"], crossings)
    comparison.verdict, comparison.pairs = found.verdict, found.pairs


def _curves(comparison: Comparison, rows: list[Row], measure: str) -> list[str]:
    """Fit a curve to every series of models; what is to be said of those that share a range of compute."""
    for name, members in series([row.spec for row in rows]).items():
        chosen = [rows[index] for index in members]
        costs = [row.cost.multiply_adds for row in chosen]
        if len(set(costs)) >= 3:
            comparison.curves[name] = fit_curve(costs, [row.scores[measure] for row in chosen])
    pairs = combinations(comparison.curves.items(), 2)
    found = [(one, other, crossing(curve, rival)) for (one, curve), (other, rival) in pairs]
    return [f"As curves: {each.sentence(one, other)}." for one, other, each in found if each.shared is not None]
