"""Time models on several backends in turns, so that disturbances of the machine hit all of them alike."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2wrap import timing
from s2wrap.compare.selecting import Selecting
from s2wrap.errors import S2WrapError
from s2wrap.policies import Pair
from s2wrap.timing import time_calls, torch_call, when_first_called
from s2wrap.wrapper import MultiScale

ENDINGS = {"onnx": ".onnx", "tensorrt": ".plan", "tensorrt-rtx": ".rtx"}
"""File suffixes of the backends that run exported files."""
BACKENDS = (*timing.BACKENDS, *ENDINGS)


def check_backends(backends: Sequence[str]) -> None:
    """Raise S2WrapError for unknown or repeated names. Backends that are not installed get a reason when timed."""
    if len(set(backends)) < len(backends):
        raise S2WrapError(f"backends {', '.join(backends)} name one twice; name each once")
    for backend in backends:
        if backend not in BACKENDS:
            raise S2WrapError(f"backend {backend!r} is unknown; use some of {', '.join(BACKENDS)}")


def time_models(
    models: Mapping[str, MultiScale],
    backends: Sequence[str],
    image_hw: Pair,
    *,
    batch: int,
    seconds: float,
    progress: Callable[[float], object],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return `Timing.figures` by model and backend, or {"reason": why} where a model cannot run.

    Args:
        models: by name, all on one device.
        backends: some of `BACKENDS`. For those that run files the model is exported (in float32, and verified) to a
            temporary folder before it is timed.
        image_hw: height and width of the images, the same for all.
        batch: batch size.
        seconds: how long each call is timed, with ten runs at least.
        progress: called with the share that is done, 0…1.
    """
    device = next(iter(models.values())).backbone.device
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        calls: dict[str, Callable[[], object]] = {}
        for number, model in enumerate(models.values()):
            images = torch.randn(batch, model.input.channels, *image_hw, device=device)
            for backend in backends:
                make = partial(_make_call, backend, model, images, Path(folder) / str(number))
                calls[f"{number} {backend}"] = when_first_called(make)
        timings = iter(time_calls(calls, seconds=seconds, device=device, progress=progress))  # in the order of calls
        figures: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in models}
        for name in models:
            for backend in backends:
                timing = next(timings)
                reason = timing.reason
                figures[name][backend] = timing.figures(batch) if reason is None else {"reason": reason}
    return figures


def _make_call(backend: str, model: MultiScale, images: Tensor, stem: Path) -> Callable[[], object]:
    """Return a function that runs the model on these images by a backend."""
    if backend not in ENDINGS:
        return torch_call(backend, model, images)
    from s2wrap.export import export, load
    from s2wrap.export.library import load_library

    if backend != "onnx":
        load_library(backend.replace("-", "_"))
        if images.device.type != "cuda":
            raise S2WrapError(f"engines run on a CUDA device, and the models are on {images.device}")
    if isinstance(model, Selecting):
        raise S2WrapError(f"select={model.call['select']} depends on the image, and an exported file runs all tiles")
    path = stem.with_name(f"{stem.name}{ENDINGS[backend]}")
    count = len(images)
    export(model, path, image_hw=(images.shape[-2], images.shape[-1]), batch=(count, count, count))
    engine = load(path, device=images.device, eager=True)
    return lambda: engine(images)
