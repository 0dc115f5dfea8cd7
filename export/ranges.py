"""A check for values that overflow in float16, by recording those of the model in float32."""

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from s2wrap.errors import S2WrapError
from s2wrap.export.graph import Graph

LARGEST = torch.finfo(torch.float16).max
"""65,504: larger values become infinite in float16."""
MASK = 1e30
"""Larger values are not activations but masks, which hold the smallest number of any dtype."""


class Ranges(TorchDispatchMode):
    """Records the largest absolute values while a model runs.

    Attributes:
        inside: the largest value of the operators that a module calls, by its name; "" is the model itself.
        answers: the largest value of the outputs of a module, by its name.
    """

    def __init__(self):
        super().__init__()
        self.stack: list[str | None] = [None]
        self.inside: dict[str, float] = {}
        self.answers: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if (name := self.stack[-1]) is not None:
            _record(self.inside, name, output)
        return output

    @contextmanager
    def naming(self, model: nn.Module) -> Iterator[None]:
        """Within the block, the modules of a model are tracked by forward hooks."""
        handles = []
        for name, module in model.named_modules():

            def leave_module(_module: Any, _inputs: Any, output: Any, name: str = name) -> None:
                self.stack.pop()
                _record(self.answers, name, output)

            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name)))
            handles.append(module.register_forward_hook(leave_module))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@torch.no_grad()
def watch(graph: Graph, images: Tensor) -> Ranges:
    """The largest values in the backbone of a graph, including its weights, for these images.

    Attention is computed by separate products rather than a fused kernel, so that its scores are recorded.

    Args:
        graph: a graph in float32.
        images: its input.
    """
    model, ranges = graph.backbone.model, Ranges()
    if not isinstance(model, nn.Module):
        return ranges
    with ranges, ranges.naming(model), sdpa_kernel(SDPBackend.MATH):
        graph(images)
    for name, module in model.named_modules():
        _record(ranges.inside, name, list(module.parameters(recurse=False)))
    return ranges


def check_float16(graph: Graph, images: Tensor, fp32_layers: Sequence[str] = ()) -> float:
    """The largest absolute value of a model that is to run in float16.

    Args:
        graph: the graph in float32.
        images: its input.
        fp32_layers: modules that stay in float32, of which only the outputs must fit into float16.

    Raises:
        S2WrapError: a value is beyond 65,504; the message names the modules and remedies.
    """
    ranges = watch(graph, images)
    in_float32 = {name for name in ranges.answers if any(_within(name, pattern) for pattern in fp32_layers)}
    values = {name: value for name, value in ranges.inside.items() if name not in in_float32}
    for name in in_float32:
        if name.rpartition(".")[0] not in in_float32:
            values[name] = ranges.answers[name]
    beyond = sorted((name for name in values if values[name] > LARGEST), key=lambda name: -values[name])
    if beyond:
        places = ", ".join(f"{name or 'the model itself'} ({values[name]:.3g})" for name in beyond[:5])
        more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
        names = ",".join(name for name in beyond[:3] if name)
        remedy = f", or fp32 for the modules that these values pass through: --fp32-layers {names} (fp32_layers=)"
        raise S2WrapError(
            f"{graph.backbone.name} does not fit float16, which ends at 65,504: values were larger in {places}{more}; "
            f"use precision bf16{remedy if names else ''}"
        )
    return max(values.values(), default=0.0)


def _within(name: str, pattern: str) -> bool:
    """Whether a module or one of its parents matches a pattern."""
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"{pattern}.*")


def _record(table: dict[str, float], name: str, output: Any) -> None:
    """Update the largest absolute value in `table` from an output, ignoring infinite values and masks."""
    for tensor in output if isinstance(output, tuple | list) else [output]:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            values = tensor.detach().abs()
            largest = float(values.amax())
            if not largest < MASK:
                largest = float(torch.where(values < MASK, values, torch.zeros_like(values)).amax())
            table[name] = max(largest, table.get(name, 0.0))
