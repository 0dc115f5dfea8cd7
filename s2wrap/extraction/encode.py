"""Decoded pictures in, features out; tiles of several pictures share backbone calls."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from s2wrap.backbones.checkpoint import weights_sha256
from s2wrap.errors import S2WrapError
from s2wrap.extraction.decode import Decoded
from s2wrap.extraction.picture import Arrays, Failure, Row
from s2wrap.features import Features
from s2wrap.wrapper import MultiScale

Keep = Callable[[Features], Arrays]
Encoder = Any
"""A `MultiScale`, or an exported file as `s2wrap.export.load` gives it; this package does not import export."""


def weights_of(model: Encoder) -> str:
    """What tells models of the same name apart: the SHA-256 of their weights, or of the exported file."""
    return weights_sha256(model.backbone) if isinstance(model, MultiScale) else model.manifest["sha256"]


def whole_maps(features: Features) -> Arrays:
    """The map and prefix tokens of one picture; numbered for a pyramid."""
    named = {}
    for k, (spatial, prefix) in enumerate(zip(features.maps, features.prefixes, strict=True)):
        number = f"_{k}" if len(features.maps) > 1 else ""
        named["spatial" + number], named["prefix" + number] = spatial[0], prefix[0]
    return named


def pooled_vector(features: Features) -> Arrays:
    """The average of the map of one picture; for a pyramid those of all maps, one after the other."""
    return {"vector": torch.cat([reduce(spatial[0].float(), "c h w -> c", "mean") for spatial in features.maps])}


def encode_all(
    model: Encoder, pictures: Iterable[Decoded], keep: Keep, *, dtype: torch.dtype
) -> Generator[Row | Failure]:
    """What is kept of the features of each picture, in their order; or why there are none.

    A window holds as many pictures as a backbone call holds tiles, so that calls are full. On a GPU, the next window
    is begun before the last one is waited for.

    Args:
        model: on its device.
        pictures: asked for a window at a time.
        keep: what of a picture's features.
        dtype: of what is kept.
    """
    pictures = iter(pictures)
    size = model.tile_batch_for(1, model.device)
    before: _Window | None = None
    while window := list(islice(pictures, size)):
        begun = _begin(model, window, keep, dtype)
        if before is not None:
            yield from before.rows()
        before = begun
        if model.device.type == "cpu":  # nothing runs beside: rows are safe sooner
            yield from before.rows()
            before = None
    if before is not None:
        yield from before.rows()


@dataclass
class _Window:
    """Pictures on their way through the backbone."""

    pictures: list[Decoded]
    answers: list[Arrays | S2WrapError]
    copied: torch.cuda.Event | None

    def rows(self) -> Iterator[Row | Failure]:
        if self.copied is not None:
            self.copied.synchronize()
        for picture, answer in zip(self.pictures, self.answers, strict=True):
            if picture.image is None:
                yield Failure(picture.name, picture.problem, picture.mark, picture.gone)
            elif isinstance(answer, S2WrapError):
                reason = str(answer).removeprefix("image 0: ")
                yield Failure(picture.name, f"{picture.name}: {reason}", picture.mark)
            else:
                height, width = picture.image.shape[-2:]
                if self.copied is not None:  # out of the memory that the GPU writes to, of which there is little
                    answer = {name: array.clone() for name, array in answer.items()}
                yield Row(picture.name, height, width, answer, picture.mark)


@torch.inference_mode()
def _begin(model: Encoder, pictures: list[Decoded], keep: Keep, dtype: torch.dtype) -> _Window:
    """Enqueue the work on a window, and the copy of what comes out."""
    device = model.device
    images = [picture.image for picture in pictures if picture.image is not None]
    answers = iter([_moved(answer, keep, dtype) for answer in _encode(model, images)])
    nothing = S2WrapError("not decoded")
    in_order = [nothing if picture.image is None else next(answers) for picture in pictures]
    copied = None
    if device.type == "cuda":
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(device))
    return _Window(pictures, in_order, copied)


def _encode(model: Encoder, images: list[Tensor]) -> list[Features | S2WrapError]:
    """The features of images together; where the model refuses one, each alone."""
    device = model.device
    try:
        return list(model.encode(image.to(device, non_blocking=True) for image in images))
    except S2WrapError as error:
        if len(images) == 1:
            return [error]
        return [answer for image in images for answer in _encode(model, [image])]


def _moved(answer: Features | S2WrapError, keep: Keep, dtype: torch.dtype) -> Arrays | S2WrapError:
    """What is kept of an answer, on its way to the CPU."""
    if isinstance(answer, S2WrapError):
        return answer
    kept = {name: array.to(dtype) for name, array in keep(answer).items()}
    return {name: array.to("cpu", non_blocking=array.device.type == "cuda") for name, array in kept.items()}
