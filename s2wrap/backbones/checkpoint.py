"""Weights from files and hubs, without running any code that a file holds."""

import argparse
import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from s2wrap.errors import S2WrapError, first_line

Answer = TypeVar("Answer")
WRAPPERS = ("state_dict", "model")
"""The keys under which training scripts save a state dict, the first that is there before the next."""


def read_tensors(path: str | Path, wrappers: Collection[str] = WRAPPERS) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch file, which is never unpickled.

    It may lie under one of the keys `wrappers`, beside what else a training script saves; prefixes of keys that
    DistributedDataParallel and torch.compile add are taken away.

    Raises:
        S2WrapError: a file that holds more than tensors and plain values, that cannot be read, or without tensors.
    """
    from safetensors.torch import load_file

    try:
        content = load_file(path) if Path(path).suffix == ".safetensors" else _read_torch(path)
    except S2WrapError:
        raise
    except Exception as error:
        raise S2WrapError(f"{path} cannot be read as weights: {first_line(error)}") from error
    if isinstance(content, dict):
        content = next((content[key] for key in wrappers if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(part, Tensor) for part in content.values()):
        raise S2WrapError(f"{path} holds no state dict, but a {type(content).__name__}; save model.state_dict()")
    if not content:
        raise S2WrapError(f"{path} holds no tensors; save model.state_dict()")
    return {re.sub(r"^(_orig_mod\.|module\.)+", "", key): tensor for key, tensor in content.items()}


def _read_torch(path: str | Path) -> Any:
    """What a torch file holds, once it is known to ask for no code."""
    cure = "nothing is unpickled here; save model.state_dict() with torch.save, or as .safetensors, where it was made"
    with safe_globals([argparse.Namespace]):  # the options that timm's training script saves: plain values
        if zipfile.is_zipfile(path) and (code := get_unsafe_globals_in_checkpoint(path)):
            raise S2WrapError(f"{path} holds more than tensors ({', '.join(sorted(code)[:3])}), and {cure}")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # a file of torch before 1.6, or no file of torch
            raise S2WrapError(f"{path} is no torch file, or holds more than tensors, and {cure}") from error


def misfit(missing: Collection[str], left_over: Collection[str], misshapen: Collection[str]) -> str:
    """What does not fit: how many keys are missing, left over and of another shape, and three of each; "" if none."""
    wrong = {"missing": missing, "left over": left_over, "of another shape": misshapen}
    return "; ".join(f"{len(keys)} {what}: {', '.join(sorted(keys)[:3])}" for what, keys in wrong.items() if keys)


def fitting(
    model: nn.Module,
    tensors: dict[str, Tensor],
    name: str,
    source: object,
    *,
    optional: str | None = None,
    unused: Callable[[], Collection[str]] = tuple,
) -> dict[str, Tensor]:
    """The tensors that a model takes, once each that it needs is there with its shape, and none is left over.

    Missing without harm: the batches that a batch norm has counted, which matter to training alone. Left over without
    harm, and ignored: `mask_token`, which stands for hidden patches in training, and buffers that the model computes
    (files of older versions hold them).

    Args:
        model: a model that is to take the weights.
        tensors: the weights by the model's own keys.
        name: of the model, for the error.
        source: of the weights, for the error.
        optional: keys with this word may be missing too.
        unused: more keys that may be left over; called if any are.

    Raises:
        S2WrapError: keys that are missing, left over or of another shape: how many, and the first three.
    """
    own = model.state_dict()
    missing = [key for key in own.keys() - tensors.keys() if not key.endswith("num_batches_tracked")]
    missing = [key for key in missing if optional is None or optional not in key]
    left_over = tensors.keys() - own.keys() - {key for key, _ in model.named_buffers()}
    left_over = {key for key in left_over if key.rpartition(".")[2] != "mask_token"}
    left_over -= set(unused()) if left_over else set()
    misshapen = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if tensors[key].shape != own[key].shape
    ]
    if words := misfit(missing, left_over, misshapen):
        raise S2WrapError(f"the weights in {source} are not those of {name}: {words}")
    return {key: tensor for key, tensor in tensors.items() if key in own}


def load_exactly(model: nn.Module, path: str | Path, name: str, optional: str | None = None) -> None:
    """Load a file into a model.

    Raises:
        S2WrapError: weights that do not fit, as `fitting` says; keys with the word `optional` may be missing.
    """
    weights = model.state_dict()  # with the versions of its modules, by which some rename the keys of older files
    weights.update(fitting(model, read_tensors(path), name, path, optional=optional))
    model.load_state_dict(weights)


@contextmanager
def exact_loading(name: str, source: object, unused: Callable[[], Collection[str]] = tuple) -> Iterator[None]:
    """Refuse weights that do not fit, as `fitting` says, while a library makes a model and loads them into it.

    A library renames and resamples what a file holds, so that only what reaches `load_state_dict` can be compared with
    the model; and it may be told to leave what is missing random. The model exists only once that is done: therefore
    every module that this thread makes meanwhile gets a hook, which compares if it is the one that is loaded.
    """
    thread, watched, handles = get_ident(), set(), []

    def compare_weights(module: nn.Module, tensors: dict[str, Tensor], prefix: str, *_rest: object) -> None:
        if prefix:
            return  # a part of the model
        taken = fitting(module, tensors, name, source, unused=unused)
        for key in tensors.keys() - taken.keys():
            del tensors[key]

    def watch(module: nn.Module, _name: str, _part: nn.Module | None) -> None:
        if get_ident() == thread and module not in watched:
            watched.add(module)
            handles.append(module.register_load_state_dict_pre_hook(compare_weights))

    handles.append(register_module_module_registration_hook(watch))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cached_file(repo: str, filenames: Iterable[str]) -> str | None:
    """The first of these files of a Hugging Face repository that was downloaded before; None if there is none."""
    import huggingface_hub

    found = (huggingface_hub.try_to_load_from_cache(repo, filename) for filename in filenames)
    return next((path for path in found if isinstance(path, str)), None)


def from_hub(get: Callable[[], Answer], name: str) -> Answer:
    """What a library fetches from its hub. Raises S2WrapError with what to do where there is none."""
    try:
        return get()
    except S2WrapError:
        raise
    except Exception as error:
        raise S2WrapError(
            f"the weights or configuration of {name} could not be had ({first_line(error)}); "
            f"give a file with --checkpoint FILE (checkpoint=) where the model has one, draw random weights "
            f"(pretrained=False), or use packaged ones such as sample:dinov2_s14"
        ) from error


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
