"""What models know of pictures: scores are added to the rows of a comparison."""

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


def _extract(
    spec: str, model: MultiScale, pictures: Pictures, folder: Path | None, progress: Progress, *, maps: bool = False
) -> list[dict[str, torch.Tensor]]:
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
    """Add accuracies of classifiers on pooled features, see `classify`.

    Args:
        rows: to which they are added.
        models: by the specs of the rows.
        pictures: labelled ones.
        folder: where features are kept, if at all.
        pools: what a picture's vector is, see `vectors_of`.
        shots: pictures a class of few-shot classifiers.
        progress: where it is shown.
    """
    from threadpoolctl import threadpool_limits

    vectors = {
        row.spec: vectors_of(_extract(row.spec, models[row.spec], pictures, folder, progress), pools) for row in rows
    }
    with threadpool_limits(1):  # many small fits, which threads only slow down
        for row in progress.track(rows, description="classifying"):
            known = vectors[row.spec], pictures.labels, pictures.folds, pictures.contents
            row.scores |= classify(*known, shots=tuple(shots))


def add_segmentation(
    rows: list[Row], models: Mapping[str, MultiScale], pictures: Pictures, folder: Path | None, progress: Progress
) -> None:
    """Add the mIoU of a linear segmentation, see `segment`. Raises S2WrapError for masks of one class."""
    masks = [load_mask(path) for path in pictures.masks or []]
    counted = [int(mask[mask != IGNORED].max(initial=0)) for mask in masks]
    if max(counted) == 0:
        raise S2WrapError(
            f"all masks hold class 0 and {IGNORED} only, and {IGNORED} does not count; write a second class as 1"
        )
    shown = partial(progress.track, description="segmenting")
    for row in rows:
        maps = maps_of(_extract(row.spec, models[row.spec], pictures, folder, progress, maps=True))
        known = maps, masks, pictures.folds, pictures.contents
        row.scores["mIoU"] = segment(*known, classes=max(counted) + 1, progress=shown)


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
        comparison: to whose rows and facts it is added.
        target: whose features are recovered.
        reference: whose information is I*.
        models: by spec, the target among them.
        make: `make(spec, target_grid=(rows, columns))` makes a model on the target's grid.
        pictures: any.
        folder: where features are kept, if at all.
        progress: where it is shown.

    Raises:
        S2WrapError: no model but those with the target's own weights, which would hold the answer.
    """
    rows, facts = comparison.rows, comparison.facts
    named = [row.spec for row in rows] + ([reference] if reference else [])
    names = [name for name in dict.fromkeys(named) if weights_of(name) != weights_of(target)]
    if not names:
        raise S2WrapError(
            f"no model but {target} and its own weights is named, which hold its features; name others, from which it "
            f"is to be reconstructed"
        )
    if reference is not None and reference not in names:
        raise S2WrapError(f"{reference} has the weights of the target; I* is that of another, larger model")
    facts["reconstructed"] = f"the features of {target}"
    goals = maps_of(_extract(target, models[target], pictures, folder, progress, maps=True))
    grid_hw = tuple(goals[0].shape[1:])
    sources = {
        name: maps_of(_extract(name, make(name, target_grid=grid_hw), pictures, folder, progress, maps=True))
        for name in names
    }
    shown = partial(progress.track, description="reconstructing")
    found = reconstruct(goals, sources, pictures.folds, pictures.contents, reference=reference, progress=shown)
    if reference is not None:
        best = found[reference]
        facts["I*"] = f"{best.information.value:.3f} ({best.information_train:.3f} in training), of {reference}"
    for row in rows:
        if (one := found.get(row.spec)) is not None:
            row.scores[INFORMATION] = one.information
            names = ["information_train", "ratio_train", "ratio_test", "loss_train", "loss_test"]
            figures = {name: getattr(one, name) for name in names}
            row.details |= {name: value for name, value in figures.items() if value is not None}
