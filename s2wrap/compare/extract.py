"""The features of pictures, computed once: kept on disk under the hash of the model and of the picture."""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2wrap.backbones.checkpoint import weights_sha256
from s2wrap.compare.data import Pictures
from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.files import disk_errors, whole_file
from s2wrap.images import load_image
from s2wrap.wrapper import MultiScale

POOLS = ("mean", "max", "cls")
"""How maps become a vector: the mean or the largest value over the cells, or the first prefix token."""
LIBRARIES = ("s2wrap", "torch", "torchvision", "timm", "open_clip_torch", "transformers")
"""Whose versions features depend on."""
AT_ONCE = 8
"""Pictures that a model is given at a time, and that an interruption costs at most."""


class Extractor:
    """Gets the features of pictures by a model, from disk where they are there.

    Args:
        model: made by `s2wrap.load`.
        folder: where features are kept; None keeps none.
        maps: whole maps are wanted, else vectors.
    """

    def __init__(self, model: MultiScale, folder: Path | None, *, maps: bool = False):
        self.model, self.maps = model, maps
        kind = "maps" if maps else "vectors"
        self.folder = None if folder is None else folder / kind / model_key(model)
        if self.folder is not None:
            with disk_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, pictures: Pictures, done: Callable[[int], object]) -> list[dict[str, Tensor]]:
        """What is kept of each picture: `mean_k`, `max_k`, `cls_k` or `map_k` of its k-th map, float32 on the CPU.

        Args:
            pictures: whose.
            done: told how many more are ready.

        Raises:
            S2WrapError: features that are not finite, a full disk, a folder that cannot be written to.
        """
        found: dict[int, dict[str, Tensor]] = {}
        missing: list[int] = []
        for index, content in enumerate(pictures.contents):
            kept = self._kept(content)
            if kept is None:
                missing.append(index)
            else:
                found[index] = kept
        done(len(found))
        for start in range(0, len(missing), AT_ONCE):
            part = missing[start : start + AT_ONCE]
            found |= zip(part, self._compute([pictures.paths[i] for i in part]), strict=True)
            for index in part:
                self._keep(pictures.contents[index], found[index])
            done(len(part))
        return [found[index] for index in range(len(pictures.paths))]

    def _compute(self, paths: list[Path]) -> list[dict[str, Tensor]]:
        with torch.inference_mode():
            answers = self.model.encode([load_image(path) for path in paths])
        parts = [_parts(answer, self.maps) for answer in answers]
        for path, part in zip(paths, parts, strict=True):
            if not all(bool(tensor.isfinite().all()) for tensor in part.values()):
                raise S2WrapError(
                    f"the features of {path} by {self.model.backbone.name} hold NaN or infinite values; a comparison "
                    f"needs finite ones: use float32, or leave the picture or the model out"
                )
        return parts

    def _kept(self, content: str) -> dict[str, Tensor] | None:
        """What was kept of a picture; None if nothing was, or nothing that can be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.folder is None:
            return None
        try:
            return load_file(self.folder / f"{content}.safetensors")
        except (FileNotFoundError, SafetensorError):
            return None

    def _keep(self, content: str, part: dict[str, Tensor]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        if self.folder is None:
            return
        with whole_file(self.folder / f"{content}.safetensors") as draft:
            try:
                save_file(part, draft)
            except SafetensorError as error:  # the library's own word for a full disk
                raise S2WrapError(f"cannot keep features in {self.folder}: {error}; give another --cache") from error


def vectors_of(parts: list[dict[str, Tensor]], pool: tuple[str, ...]) -> np.ndarray:
    """One vector a picture (n, d): the parts that `pool` names, of all maps, beside each other."""
    names = [name for how in pool for name in parts[0] if name.startswith(f"{how}_")]
    lacking = [how for how in pool if not any(name.startswith(f"{how}_") for name in names)]
    if lacking:
        raise S2WrapError(f"there is no {', '.join(lacking)} of a model without prefix tokens; use pool='mean'")
    return np.stack([np.concatenate([part[name].numpy() for name in names]) for part in parts])


def maps_of(parts: list[dict[str, Tensor]]) -> list[Tensor]:
    """The one map (c, h, w) of each picture."""
    if len(parts[0]) != 1:
        raise S2WrapError(f"{len(parts[0])} maps a picture; this comparison needs one: use another fuse than 'pyramid'")
    return [next(iter(part.values())) for part in parts]


def model_key(model: MultiScale) -> str:
    """A hash of all that features depend on: how the model was made, its weights, and the versions."""
    known: dict[str, Any] = {name: value for name, value in (model.recipe or {}).items() if name != "checkpoint"}
    known |= {"weights": weights_sha256(model.backbone), "device": model.backbone.device.type}
    known |= {package: _version(package) for package in LIBRARIES}
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def default_folder() -> Path:
    """Where features are kept unless told otherwise: the user's cache folder of this system."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("s2wrap"))


def _parts(features: Features, maps: bool) -> dict[str, Tensor]:
    """What is kept of one picture's features."""
    found = {}
    for k, (spatial, prefix) in enumerate(zip(features.maps, features.prefixes, strict=True)):
        if maps:
            found[f"map_{k}"] = spatial[0]
            continue
        found[f"mean_{k}"] = spatial[0].mean(dim=(1, 2))
        found[f"max_{k}"] = spatial[0].amax(dim=(1, 2))
        if prefix.shape[1]:
            found[f"cls_{k}"] = prefix[0, 0]
    return {name: tensor.float().cpu().contiguous() for name, tensor in found.items()}
