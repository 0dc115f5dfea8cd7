"""Measure how well models do on pictures, and add the scores to the rows of a comparison."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.progress import Progress

from s2wrap.compare.classify import classify
from s2wrap.compare.comparison import INFORMATION, Comparison, Row
from s2wrap.compare.data import IGNORED, Pictures, load_mask
from s2wrap.compare.extract import Extractor, maps_of, vectors_of
from s2wrap.compare.reconstruct import reconstruct
from s2wrap.compare.segment import segment
from s2wrap.compare.ways import weights_of
from s2wrap.errors import S2WrapError
from s2wrap.wrapper import MultiScale


def _encode(
    spec: str, model: MultiScale, pictures: Pictures, folder: Path | None, progress: Progress, *, maps: bool = False
) -> list[dict[str, torch.Tensor]]:
    """Return the cached or computed features of each picture, and show the progress."""
    task = progress.add_task(spec.partition(":")[2], total=len(pictures.paths))
    return Extractor(model, folder, maps=maps)(pictures, lambda count: progress.advance(task, count))


def add_accuracy(
    rows: list[Row],
    models: Mapping[str, MultiScale],
    pictures: Pictures,
    folder: Path | None,
    pools: tuple[str, ...],
    shots: Sequence[int],
    progress: Progress,
) -> None:
    """Add the accuracies of classifiers on pooled features, see `classify`.

    Args:
        rows: the rows that scores are added to.
        models: models by the specs of the rows.
        pictures: pictures with labels.
        folder: the cache folder of features; None for no cache.
        pools: how a map becomes a vector, see `vectors_of`.
        shots: training pictures a class of few-shot classifiers.
        progress: display of the progress.
    """
    from threadpoolctl import threadpool_limits

    vectors = {
        row.spec: vectors_of(_encode(row.spec, models[row.spec], pictures, folder, progress), pools) for row in rows
    }
    with threadpool_limits(1):  # threads slow down many small fits
        for row in progress.track(rows, description="classifying"):
            inputs = vectors[row.spec], pictures.labels, pictures.folds, pictures.contents
            row.scores |= classify(*inputs, shots=tuple(shots))


def add_segmentation(
    rows: list[Row], models: Mapping[str, MultiScale], pictures: Pictures, folder: Path | None, progress: Progress
) -> None:
    """Add the mIoU of a linear segmentation, see `segment`. Raises S2WrapError for masks of one class."""
    masks = [load_mask(path) for path in pictures.masks or []]
    highest = max(int(mask[mask != IGNORED].max(initial=0)) for mask in masks)
    if highest == 0:
        raise S2WrapError(
            f"all masks hold class 0 and {IGNORED} only, and {IGNORED} does not count; write a second class as 1"
        )
    track = partial(progress.track, description="segmenting")
    for row in rows:
        maps = maps_of(_encode(row.spec, models[row.spec], pictures, folder, progress, maps=True))
        inputs = maps, masks, pictures.folds, pictures.contents
        row.scores["mIoU"] = segment(*inputs, classes=highest + 1, progress=track)


def add_reconstruction(
    comparison: Comparison,
    target: str,
    reference: str | None,
    models: Mapping[str, MultiScale],
    make: Callable[..., MultiScale],
    pictures: Pictures,
    folder: Path | None,
    progress: Progress,
) -> None:
    """Add how much of the target's features a linear map recovers from those of each model, see `reconstruct`.

    Args:
        comparison: the comparison to whose rows and facts the results are added.
        target: spec of the model whose features are recovered.
        reference: spec of the model whose information is I*.
        models: models by spec, the target among them.
        make: `make(spec, target_grid=(rows, columns))` makes a model on the target's grid.
        pictures: pictures of any kind.
        folder: the cache folder of features; None for no cache.
        progress: display of the progress.

    Raises:
        S2WrapError: no model with other weights than the target's, from whose own features the map would be trivial.
    """
    rows, facts = comparison.rows, comparison.facts
    specs = dict.fromkeys([row.spec for row in rows] + ([reference] if reference else []))
    names = [spec for spec in specs if weights_of(spec) != weights_of(target)]
    if not names:
        raise S2WrapError(
            f"no model but {target} and its own weights is named, which hold its features; name others, from which it "
            f"is to be reconstructed"
        )
    if reference is not None and reference not in names:
        raise S2WrapError(f"{reference} has the weights of the target; I* is that of another, larger model")
    facts["reconstructed"] = f"the features of {target}"
    target_maps = maps_of(_encode(target, models[target], pictures, folder, progress, maps=True))
    grid_hw = tuple(target_maps[0].shape[1:])
    sources = {
        name: maps_of(_encode(name, make(name, target_grid=grid_hw), pictures, folder, progress, maps=True))
        for name in names
    }
    track = partial(progress.track, description="reconstructing")
    inputs = target_maps, sources, pictures.folds, pictures.contents
    results = reconstruct(*inputs, reference=reference, progress=track)
    if reference is not None:
        best = results[reference]
        facts["I*"] = f"{best.information.value:.3f} ({best.information_train:.3f} in training), of {reference}"
    for row in rows:
        if (result := results.get(row.spec)) is not None:
            row.scores[INFORMATION] = result.information
            details = ["information_train", "ratio_train", "ratio_test", "loss_train", "loss_test"]
            row.details |= {name: value for name in details if (value := getattr(result, name)) is not None}
