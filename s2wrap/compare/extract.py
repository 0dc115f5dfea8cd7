"""Compute the features of pictures once, and cache them on disk by the hashes of model and picture."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2wrap.backbones.checkpoint import weights_sha256
from s2wrap.compare.data import Pictures
from s2wrap.compare.selecting import Selecting
from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.files import disk_errors, whole_file
from s2wrap.version import installed_version
from s2wrap.wrapper import MultiScale

POOLS = ("mean", "max", "cls")
"""How a map becomes a vector: the mean or the largest value over the cells, or the first prefix token."""
LIBRARIES = ("s2wrap", "torch", "torchvision", "timm", "open_clip_torch", "transformers")
"""Packages whose versions are part of the cache key."""
BATCH = 8
"""Pictures that are encoded, and then cached, at a time."""
MOST_BYTES = 10 * 2**30
"""Bytes of the default cache folder, after each task."""


class UnableError(S2WrapError):
    """A model cannot do a task; the others can."""


def extract(
    model: MultiScale, pictures: Pictures, folder: Path | None, done: Callable[[int], object], *, maps: bool = False
) -> list[dict[str, Tensor]]:
    """Return for each picture the `mean_k`, `max_k` and `cls_k`, or `map_k`, of its k-th map: float32 on the CPU.

    Args:
        model: made by `s2wrap.load`.
        pictures: pictures to encode.
        folder: the cache folder; None for no cache.
        done: called with the number of pictures that became ready.
        maps: return whole maps instead of pooled vectors.

    Raises:
        S2WrapError: features that are not finite, a full disk, a folder that cannot be written to.
    """

    def compute(batch: list[int]) -> list[dict[str, Tensor]]:
        paths = [pictures.paths[index] for index in batch]
        with torch.inference_mode():
            features = [_pooled(each, maps) for each in model.encode(paths)]
        for path, tensors in zip(paths, features, strict=True):
            check_finite(tensors.values(), path, model)
        return features

    folder = None if folder is None else folder / ("maps" if maps else "vectors") / model_key(model)
    return keep(folder, pictures.contents, compute, done)


def check_finite(tensors: Iterable[Tensor], path: Path, model: MultiScale) -> None:
    """Raise S2WrapError for features of a picture that are not finite."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise S2WrapError(
            f"the features of {path} by {model.backbone.name} hold NaN or infinite values; a comparison "
            f"needs finite ones: use float32, or leave the picture or the model out"
        )


def keep(
    folder: Path | None,
    contents: Sequence[str],
    compute: Callable[[list[int]], Iterable[dict[str, Tensor]]],
    done: Callable[[int], object],
    *,
    batch: int = BATCH,
) -> list[dict[str, Tensor]]:
    """Return the tensors of each picture: from a folder, or computed, and then written there.

    Args:
        folder: where a file a picture lies; None for no cache.
        contents: a hash of each picture.
        compute: returns the tensors of the pictures of some indices.
        done: called with the number of pictures that became ready.
        batch: pictures that are computed at a time.
    """
    if folder is not None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    found = [None if folder is None else _load(folder / f"{content}.safetensors") for content in contents]
    missing = [index for index, tensors in enumerate(found) if tensors is None]
    done(len(found) - len(missing))
    for start in range(0, len(missing), batch):
        indices = missing[start : start + batch]
        for index, tensors in zip(indices, compute(indices), strict=True):
            if folder is not None:
                _save(folder / f"{contents[index]}.safetensors", tensors)
            found[index] = tensors
        done(len(indices))
    return [tensors for tensors in found if tensors is not None]


def _load(file: Path) -> dict[str, Tensor] | None:
    """Return the tensors of a file; None if there is none, or none that can be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
        os.utime(file)  # it was used: `trim` deletes others first
        return found
    except (FileNotFoundError, SafetensorError):
        return None


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole_file(file) as draft:
        try:
            save_file(tensors, draft)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise S2WrapError(f"cannot keep features in {file.parent}: {error}; give another --cache") from error


def vectors_of(features: list[dict[str, Tensor]], pool: tuple[str, ...]) -> np.ndarray:
    """Return one vector a picture (n, d): the poolings that `pool` names, of all maps, concatenated."""
    names = [name for how in pool for name in features[0] if name.startswith(f"{how}_")]
    missing = [how for how in pool if not any(name.startswith(f"{how}_") for name in names)]
    if missing:
        raise UnableError(f"there is no {', '.join(missing)} of a model without prefix tokens; use pool='mean'")
    return np.stack([np.concatenate([tensors[name].numpy() for name in names]) for tensors in features])


def maps_of(features: list[dict[str, Tensor]]) -> list[Tensor]:
    """Return the only map (c, h, w) of each picture. Raises UnableError for models with several maps."""
    if (count := len(features[0])) != 1:
        raise UnableError(f"{count} maps a picture; this comparison needs one: use another fuse than 'pyramid'")
    return [next(iter(tensors.values())) for tensors in features]


def model_key(model: MultiScale) -> str:
    """Return a hash of all that features depend on: options, selected tiles, input, weights and package versions.

    Raises:
        S2WrapError: a policy that is a function, which has no lasting name.
    """
    from_options = ("checkpoint", "processor", "policy")  # their effects are among the weights, the input, the options
    facts: dict[str, Any] = {name: value for name, value in (model.recipe or {}).items() if name not in from_options}
    facts |= {"options": model.options.to_json(), "input": model.input.to_json()}
    facts |= model.call if isinstance(model, Selecting) else {}
    facts |= {"weights": weights_sha256(model.backbone), "device": model.backbone.device.type}
    facts |= {package: installed_version(package) for package in LIBRARIES}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def default_folder() -> Path:
    """Return the default cache folder: in the user's cache folder of this system."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("s2wrap")) / "compare"


def trim(folder: Path, most_bytes: int = MOST_BYTES) -> tuple[int, int]:
    """Delete the features in a cache folder that were least recently used, until the rest takes no more than a limit.

    Returns:
        How many files were deleted, and their bytes.
    """
    files = []
    for path in folder.rglob("*.safetensors"):
        with suppress(FileNotFoundError):  # another comparison may delete it at the same time
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total, count, freed = sum(size for _, size, _ in files), 0, 0
    for _, size, path in sorted(files, key=lambda entry: entry[0]):
        if total - freed <= most_bytes:
            break
        path.unlink(missing_ok=True)
        count, freed = count + 1, freed + size
    return count, freed


def _pooled(features: Features, maps: bool) -> dict[str, Tensor]:
    """Return the tensors of one picture that are cached: its maps, or their pooled vectors."""
    tensors = {}
    for k, (spatial, prefix) in enumerate(zip(features.maps, features.prefixes, strict=True)):
        if maps:
            tensors[f"map_{k}"] = spatial[0]
            continue
        tensors[f"mean_{k}"] = spatial[0].mean(dim=(1, 2))
        tensors[f"max_{k}"] = spatial[0].amax(dim=(1, 2))
        if prefix.shape[1]:
            tensors[f"cls_{k}"] = prefix[0, 0]
    return {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
