"""A check for values that overflow in float16, by recording those of the model in float32."""

import fnmatch
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
MOST = 0.5
"""The largest share of the weights that may stay float32 in a file that is called float16."""


class Ranges(TorchDispatchMode):
    """Records the largest absolute values while a model runs.

    Attributes:
        inside: the largest value of the operators that a module calls, and of the sums inside reductions, by its name;
            "" is the model itself.
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
            _record(self.inside, name, _inner_sum(func, args, output))
        return output

    @contextmanager
    def naming(self, model: nn.Module) -> Iterator[None]:
        """Within the block, the modules of a model are tracked by forward hooks."""
        handles = []
        for name, module in model.named_modules():

            def leave_module(_module: object, _inputs: object, output: object, name: str = name) -> None:
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


@dataclass(frozen=True)
class Fit:
    """How a model fits float16.

    Attributes:
        largest: the largest absolute value of what runs in float16.
        kept: the modules that must stay in float32, besides those that were given.
    """

    largest: float
    kept: tuple[str, ...]


def fit_float16(graph: Graph, images: Tensor, fp32_layers: Sequence[str] = ()) -> Fit:
    """The modules of a model that must stay in float32 when the rest runs in float16.

    A module of which a value is too large, or a sum inside a reduction, stays in float32. So does the one around it
    where what it hands on is too large as well.

    Args:
        graph: the graph in float32.
        images: its input.
        fp32_layers: modules that stay in float32 in any case, of which only the outputs must fit into float16.

    Raises:
        S2WrapError: the whole model would stay in float32, or more than half of its weights; the message names the
            modules and remedies.
    """
    model, ranges = graph.backbone.model, watch(graph, images)
    kept: list[str] = []
    first: dict[str, float] = {}
    while True:
        values = _values_in_float16(ranges, (*fp32_layers, *kept))
        beyond = {name: value for name, value in values.items() if value > LARGEST}
        first = first or beyond
        if not beyond:
            break
        kept = list(dict.fromkeys([*kept, *(name.rpartition(".")[0] if name in kept else name for name in beyond)]))
        if "" in kept or _share(model, kept) > MOST:
            raise _too_large(graph.backbone.name, first)
    kept = [name for name in kept if not any(name.startswith(f"{other}.") for other in kept)]
    return Fit(max(values.values(), default=0.0), tuple(kept))


def _values_in_float16(ranges: Ranges, fp32_layers: Sequence[str]) -> dict[str, float]:
    """The largest value of every module in float16, and of what those in float32 hand on to them."""
    in_float32 = {name for name in ranges.answers if any(within(name, pattern) for pattern in fp32_layers)}
    values = {name: value for name, value in ranges.inside.items() if name not in in_float32}
    for name in in_float32:
        if name.rpartition(".")[0] not in in_float32:
            values[name] = ranges.answers[name]
    return values


def _share(model: Any, names: Sequence[str]) -> float:
    """The share of the weights that lies in these modules."""
    parameters = dict(model.named_parameters())
    inside = (weight for name, weight in parameters.items() if any(name.startswith(f"{each}.") for each in names))
    return sum(weight.numel() for weight in inside) / max(1, sum(weight.numel() for weight in parameters.values()))


def _too_large(backbone: str, beyond: dict[str, float]) -> S2WrapError:
    names = list(beyond)  # as they run: the first may be the cause of the others
    places = ", ".join(f"{name or 'the model itself'} ({beyond[name]:.3g})" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return S2WrapError(
        f"{backbone} does not fit float16, which ends at 65,504: values were larger in {places}{more}, and most of it "
        f"would have to stay float32; use precision bf16"
    )


def _inner_sum(func: Any, args: Sequence[Any], output: Any) -> Tensor | None:
    """The sums that a reduction makes inside, in the types that ONNX's reference evaluator uses; None for others.

    Sums of absolute values in means, of powers in norms, of squared differences from the mean in layer norms and the
    like. Sums alone and variances are computed in float32 there.
    """
    aten, name = torch.ops.aten, func.overloadpacket
    if name is aten.mean:
        return func(args[0].abs(), *args[1:]) * (args[0].numel() / output.numel())
    if name in (aten.linalg_vector_norm, aten.norm):
        power = next((each for each in args[1:2] if each is not None), 2)
        return output.abs() ** power if 0 < power < float("inf") else None
    if name is aten.native_layer_norm:
        dims = tuple(range(-len(args[1]), 0))
        return args[0].var(dims, correction=0) * math.prod(args[1])
    if name is aten.native_group_norm:
        batch, groups = args[3], args[6]
        cells = args[0].reshape(batch, groups, -1)
        return cells.var(2, correction=0) * cells.shape[2]
    if name is aten.native_batch_norm and args[5]:  # InstanceNormalization: it computes the mean and variance
        dims = (0, *range(2, args[0].ndim))
        return args[0].var(dims, correction=0) * (args[0].numel() / args[0].shape[1])
    return None


def within(name: str, pattern: str) -> bool:
    """Whether a module or one of its parents matches a pattern."""
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, f"{pattern}.*")


def _record(table: dict[str, float], name: str, output: object) -> None:
    """Update the largest absolute value in `table` from an output, ignoring infinite values and masks."""
    for tensor in output if isinstance(output, tuple | list) else [output]:
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel():
            values = tensor.detach().abs()
            largest = float(values.amax())
            if not largest < MASK:
                largest = float(torch.where(values < MASK, values, torch.zeros_like(values)).amax())
            table[name] = max(largest, table.get(name, 0.0))
