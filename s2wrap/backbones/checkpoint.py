"""Weights from files and hubs, without running any code that a file holds."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from s2wrap.errors import S2WrapError

Answer = TypeVar("Answer")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file. Raises S2WrapError for one that holds more than tensors."""
    from safetensors.torch import load_file

    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise S2WrapError(
                f"{path} holds more than tensors, and nothing is unpickled here; save model.state_dict() with "
                f"torch.save, or as .safetensors, in the place where it was made"
            ) from error
        raise S2WrapError(f"{path} cannot be read as weights: {type(error).__name__}: {_first_line(error)}") from error
    for key in ("state_dict", "model"):
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict) or not all(isinstance(part, Tensor) for part in found.values()):
        raise S2WrapError(f"{path} holds no state dict, but a {type(found).__name__}; save model.state_dict()")
    return found


def load_exactly(model: nn.Module, path: str | Path, name: str) -> None:
    """Load a file into a model; every key must be there with its shape, and none besides.

    Raises:
        S2WrapError: keys that are missing, left over or of another shape, by name.
    """
    theirs, ours = read_tensors(path), model.state_dict()
    wrong = {
        "missing": sorted(ours.keys() - theirs.keys()),
        "not its own": sorted(theirs.keys() - ours.keys()),
        "of another shape": [
            f"{key} {tuple(theirs[key].shape)} instead of {tuple(ours[key].shape)}"
            for key in ours.keys() & theirs.keys()
            if theirs[key].shape != ours[key].shape
        ],
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in wrong.items() if keys)
        raise S2WrapError(f"the weights in {path} are not those of {name}: {told}")
    model.load_state_dict(theirs)


def from_hub(get: Callable[[], Answer], name: str) -> Answer:
    """What a library fetches from its hub. Raises S2WrapError with what to do where there is none."""
    try:
        return get()
    except S2WrapError:
        raise
    except Exception as error:
        raise S2WrapError(
            f"the weights of {name} could not be had ({type(error).__name__}: {_first_line(error)}); give a file with "
            f"--checkpoint FILE (checkpoint=) where the model has one, draw random ones (pretrained=False), or use "
            f"packaged weights such as sample:dinov2_s14"
        ) from error


def _first_line(error: Any) -> str:
    return str(error).strip().partition("\n")[0]


def weights_sha256(module: nn.Module) -> str:
    """The SHA-256 of a module's weights by name, in float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            values = tensor.detach().cpu()
            values = values.float() if values.is_floating_point() else values
            digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
            digest.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
