"""The norm after the last block of a model of transformers, found by looking at what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LastNorm:
    """The norm that a model puts its last hidden state through.

    Attributes:
        name: of the module, as `get_submodule` takes it.
        width: channels that it takes.
        in_states: whether the last of the model's `hidden_states` has gone through it.
    """

    name: str
    width: int
    in_states: bool


@torch.no_grad()
def find_last_norm(model: nn.Module, run: Callable[[], Any]) -> LastNorm | None:
    """The norm whose output is the model's last hidden state; None if there is none.

    Args:
        model: of transformers.
        run: calls the model with `output_hidden_states=True` on an image with values.
    """
    outputs: dict[str, tuple[nn.Module, Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        in_block = any(part.isdigit() for part in name.split("."))
        if "norm" in type(module).__name__.lower() and not in_block and hasattr(module, "weight"):
            keep = _keeper(outputs, name)
            hooks.append(module.register_forward_hook(keep))
    try:
        answer = run()
    finally:
        for hook in hooks:
            hook.remove()
    last: Tensor = answer.last_hidden_state
    for name, (module, output) in outputs.items():
        if output.shape == last.shape and torch.equal(output, last):
            weight: Any = module.weight
            return LastNorm(name, weight.shape[-1], torch.equal(answer.hidden_states[-1], last))
    return None


def _keeper(outputs: dict[str, tuple[nn.Module, Tensor]], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs[name] = (module, output)

    return keep
