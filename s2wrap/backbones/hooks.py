"""What accelerate and FSDP do around a module's forward, done around other calls of it too.

accelerate brings offloaded weights to where they compute before `forward`, and takes them away after it; FSDP gathers
sharded weights and frees them. Calls such as timm's `forward_features` go past that.
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def call_as_forward(module: nn.Module | None, call: Callable[[Tensor], Any], tiles: Tensor) -> Any:
    """The answer of a call that uses a module's weights, as if it were the module's forward.

    Args:
        module: that the call uses; None for a function of which nothing is known.
        call: of tiles.
        tiles: images (b, c, h, w).
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # importing it would take a second
    if fsdp is not None and isinstance(module, fsdp.FSDPModule):
        call = partial(_gathered(module, fsdp), call)
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None:
        return call(tiles)
    args, kwargs = hook.pre_forward(module, tiles)
    return hook.post_forward(module, call(*args, **kwargs))


def execution_device(modules: Iterable[nn.Module]) -> torch.device | None:
    """Where accelerate has the first of some modules compute, wherever their weights are; None without accelerate."""
    for module in modules:
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", [hook]):  # several in a row are one SequentialHook
            if (device := getattr(part, "execution_device", None)) is not None:
                return torch.device(device)
    return None


def _gathered(module: Any, fsdp: Any) -> Callable[..., Any]:
    """A function (call, tiles) around which FSDP gathers and frees the weights of a module."""
    if not hasattr(module, "_s2wrap_call"):
        module._s2wrap_call = _call
        fsdp.register_fsdp_forward_method(module, "_s2wrap_call")
    return module._s2wrap_call


def _call(call: Callable[[Tensor], Any], tiles: Tensor) -> Any:
    return call(tiles)
