"""Encoding of decoded pictures into features; tiles of several pictures share backbone calls."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from s2wrap.backbones.checkpoint import weights_sha256
from s2wrap.errors import S2WrapError, first_line
from s2wrap.extraction.decode import Decoded
from s2wrap.extraction.picture import Arrays, Failure, Row
from s2wrap.extraction.pooling import VECTORS, check_vector, joint_vector
from s2wrap.features import Features
from s2wrap.images.convert import as_pictures
from s2wrap.wrapper import MultiScale

Answer = Features | Tensor
"""What a model answers to one picture: its features, or for `joint_vector` its embedding."""
Keep = Callable[[Any], Arrays]
"""Picks the arrays to store from the answer to one picture."""
Encoder = Any
"""A `MultiScale`, or an exported file opened by `s2wrap.export.load`; this package does not import export."""


def weights_of(model: Encoder) -> str:
    """The SHA-256 of the weights, or of the exported file, which tells apart models of the same name."""
    return weights_sha256(model.backbone) if isinstance(model, MultiScale) else model.manifest["sha256"]


def made_by(model: Encoder, spec: str, options: Mapping[str, object], dtype: str) -> dict[str, Any]:
    """What makes features, as every store keeps it: a run that goes on with one must have the same."""
    return {
        "spec": spec,
        "options": dict(options),
        "weights_sha256": weights_of(model),
        "s2wrap_version": version("s2wrap"),
        "dtype": dtype,
    }


def whole_maps(features: Features) -> Arrays:
    """The map and prefix tokens of one picture; numbered by scale for a pyramid."""
    arrays = {}
    for k, (spatial, prefix) in enumerate(zip(features.maps, features.prefixes, strict=True)):
        suffix = f"_{k}" if len(features.maps) > 1 else ""
        arrays["spatial" + suffix], arrays["prefix" + suffix] = spatial[0], prefix[0]
    return arrays


def encode_vectors(model: Encoder, pictures: object, vector: str) -> Tensor:
    """The vectors (n, channels) of pictures, on the CPU, as a store of such vectors has them.

    Args:
        model: on its device.
        pictures: as for `MultiScale.encode`.
        vector: a name of `VECTORS`.

    Raises:
        S2WrapError: no pictures, ones that cannot be read, or a model without such vectors.
    """
    check_vector(model, vector)
    keep = VECTORS[vector]
    with torch.inference_mode():
        vectors = [keep(answer)["vector"] for answer in _answers(model, as_pictures(pictures), keep)]
    if not vectors:
        raise S2WrapError("there are no pictures to encode; give at least one")
    return torch.stack(vectors).cpu()


def encode_all(
    models: Sequence[Encoder], pictures: Iterable[Decoded], keep: Keep, *, dtype: torch.dtype
) -> Generator[Row | Failure]:
    """The features to store of each picture, in order, or its failure.

    Pictures are encoded in batches of as many pictures as a backbone call takes tiles, so that calls are full. On
    GPUs, a batch is launched on each, and one more, before the results of the first are awaited.

    Args:
        models: the model, once on each of its devices, which take batches in turn.
        pictures: read lazily, one batch at a time.
        keep: picks the arrays to store from the features of one picture.
        dtype: the dtype of the stored arrays.
    """
    pictures = iter(pictures)
    first, turns = models[0], cycle(models)
    batch_size = first.tile_batch_for(1, first.device)
    ahead = 0 if first.device.type == "cpu" else len(models)  # a CPU gains nothing, and rows can be committed sooner
    launched: deque[_Batch] = deque()
    while decoded := list(islice(pictures, batch_size)):
        launched.append(_launch(next(turns), decoded, keep, dtype))
        if len(launched) > ahead:
            yield from launched.popleft().rows()
    for batch in launched:
        yield from batch.rows()


@dataclass
class _Batch:
    """Pictures whose features are being computed; `copied` is the event after which the results are on the CPU."""

    pictures: list[Decoded]
    results: list[Arrays | S2WrapError]
    copied: torch.cuda.Event | None

    def rows(self) -> Iterator[Row | Failure]:
        if self.copied is not None:
            self.copied.synchronize()
        for picture, result in zip(self.pictures, self.results, strict=True):
            if picture.failure is not None:
                yield picture.failure
            elif isinstance(result, S2WrapError):
                reason, memory = str(result).removeprefix("image 0: "), result.__cause__ is not None
                yield Failure(picture.name, f"{picture.name}: {reason}", picture.mark, again=memory)
            elif reason := not_finite(result):
                yield Failure(picture.name, f"{picture.name}: {reason}", picture.mark)
            elif picture.image is not None:
                height, width = picture.image.shape[-2:]
                if self.copied is not None:  # release the page-locked memory, which is scarce
                    result = {name: array.clone() for name, array in result.items()}
                yield Row(picture.name, height, width, result, picture.mark, picture.footprint)


def not_finite(arrays: Arrays) -> str | None:
    """Why arrays cannot be stored as features: how many values are infinite or no numbers; None if all are finite."""
    for name, array in arrays.items():
        if count := int((~array.isfinite()).sum()):
            remedy = "; float16 holds none beyond 65504, use float32" if array.dtype == torch.float16 else ""
            return f"{count} of {array.numel()} values of its {name} are not finite{remedy}"
    return None


@torch.inference_mode()
def _launch(model: Encoder, pictures: list[Decoded], keep: Keep, dtype: torch.dtype) -> _Batch:
    """A batch whose computation, and the copy of its results to the CPU, are enqueued."""
    device = model.device
    images = [picture.image for picture in pictures if picture.image is not None]
    encoded = iter([_copy_to_cpu(result, keep, dtype) for result in _encode(model, images, keep)])
    placeholder = S2WrapError("not decoded")
    results = [placeholder if picture.image is None else next(encoded) for picture in pictures]
    copied = None
    if device.type == "cuda":
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(device))
    return _Batch(pictures, results, copied)


def _encode(model: Encoder, images: list[Tensor], keep: Keep) -> list[Answer | S2WrapError]:
    """What the model answers to the images, together; or one by one if it rejects any, each with its error."""
    device = model.device
    try:
        return list(_answers(model, (image.to(device, non_blocking=True) for image in images), keep))
    except S2WrapError as error:
        if len(images) <= 1:
            return [error] * len(images)
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not memory:
            raise
        if len(images) == 1:
            problem = S2WrapError(f"not enough memory to encode it ({first_line(error)[:200]})")
            problem.__cause__ = MemoryError()
            return [problem]
    return [result for image in images for result in _encode(model, [image], keep)]


def _answers(model: Encoder, images: object, keep: Keep) -> Iterable[Answer]:
    """For each image what `keep` picks from: its features, or its embedding in the space with text."""
    return model.encode_image(images) if keep is joint_vector else model.encode(images)


def _copy_to_cpu(result: Answer | S2WrapError, keep: Keep, dtype: torch.dtype) -> Arrays | S2WrapError:
    """The arrays to store, whose copy to the CPU may still be under way; errors pass through."""
    if isinstance(result, S2WrapError):
        return result
    arrays = {name: array.to(dtype) for name, array in keep(result).items()}
    return {name: array.to("cpu", non_blocking=array.device.type == "cuda") for name, array in arrays.items()}
