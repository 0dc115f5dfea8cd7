"""What float16 cannot hold: values beyond 65,504, found by watching a model in float32."""

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from s2wrap.errors import S2WrapError
from s2wrap.export.graph import ModelGraph, TilesGraph

LARGEST = torch.finfo(torch.float16).max
"""65,504: what is larger becomes infinite in float16."""
MASK = 1e30
"""Values beyond this are no activations: masks hold the least number of their type, whatever that is."""


class Ranges(TorchDispatchMode):
    """The largest absolute values while a model runs.

    Attributes:
        inside: by the name of a module, of what the operators that it calls return; "" is the model itself.
        answers: by the name of a module, of what it hands on.
    """

    def __init__(self):
        super().__init__()
        self.stack: list[str | None] = [None]
        self.inside: dict[str, float] = {}
        self.answers: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if (name := self.stack[-1]) is not None:
            _note(self.inside, name, answer)
        return answer

    @contextmanager
    def naming(self, model: nn.Module) -> Iterator[None]:
        """While it lasts, the modules of a model say when they run."""
        handles = []
        for name, module in model.named_modules():

            def leave(_module: Any, _inputs: Any, answer: Any, name: str = name) -> None:
                self.stack.pop()
                _note(self.answers, name, answer)

            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name)))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def watch(graph: ModelGraph | TilesGraph, images: Tensor) -> Ranges:
    """The largest values in a graph's backbone, weights counted, when it sees these images.

    Attention is computed by plain products, so that its scores are seen.

    Args:
        graph: in float32.
        images: as it takes them.
    """
    model, ranges = graph.backbone.model, Ranges()
    if not isinstance(model, nn.Module):
        return ranges
    with ranges, ranges.naming(model), sdpa_kernel(SDPBackend.MATH):
        graph(images)
    for name, module in model.named_modules():
        _note(ranges.inside, name, list(module.parameters(recurse=False)))
    return ranges


def check_float16(graph: ModelGraph | TilesGraph, images: Tensor, fp32_layers: Sequence[str] = ()) -> float:
    """The largest absolute value that float16 will have to hold.

    Args:
        graph: in float32.
        images: as it takes them.
        fp32_layers: modules that stay float32: only what they hand on must fit.

    Raises:
        S2WrapError: a value is beyond 65,504: in which modules, and the cure.
    """
    ranges = watch(graph, images)
    wide = {name for name in ranges.answers if any(_within(name, pattern) for pattern in fp32_layers)}
    found = {name: value for name, value in ranges.inside.items() if name not in wide}
    for name in wide:
        if name.rpartition(".")[0] not in wide:
            found[name] = ranges.answers[name]
    beyond = sorted((name for name in found if found[name] > LARGEST), key=lambda name: -found[name])
    if beyond:
        said = ", ".join(f"{name or 'the model itself'} ({found[name]:.3g})" for name in beyond[:5])
        more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
        names = ",".join(name for name in beyond[:3] if name)
        wide = f", or fp32 for the modules that these values pass through: --fp32-layers {names} (fp32_layers=)"
        raise S2WrapError(
            f"{graph.backbone.name} does not fit float16, which ends at 65,504: values were larger in {said}{more}; "
            f"use precision bf16{wide if names else ''}"
        )
    return max(found.values(), default=0.0)


def _within(name: str, pattern: str) -> bool:
    """Whether a module is one that a pattern names, or inside of one."""
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"{pattern}.*")


def _note(table: dict[str, float], name: str, answer: Any) -> None:
    """Keep the largest absolute value of tensors, but for infinite ones and masks."""
    for tensor in answer if isinstance(answer, tuple | list) else [answer]:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            values = tensor.detach().abs()
            largest = float(values.amax())
            if not largest < MASK:
                largest = float(torch.where(values < MASK, values, torch.zeros_like(values)).amax())
            table[name] = max(largest, table.get(name, 0.0))
