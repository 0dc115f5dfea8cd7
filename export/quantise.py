"""Linear and convolution layers in int8 or fp8: calibrated on pictures, and left out where they cost too much.

A layer's input is rounded with one scale, its weights with one scale an output channel, both around zero, as
TensorRT's Q/DQ wants them. What is computed is the product of the rounded values; all the rest stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from s2wrap.errors import S2WrapError
from s2wrap.export.graph import Graph
from s2wrap.export.options import Gate
from s2wrap.export.parity import compare
from s2wrap.export.ranges import within

Quantised = Literal["int8", "fp8"]
CODES: dict[Quantised, tuple[torch.dtype, float]] = {
    "int8": (torch.int8, 127.0),
    "fp8": (torch.float8_e4m3fn, 448.0),
}
"""The type of the codes, and the largest value that they hold."""
BINS = 2048
"""Of the histogram of a layer's inputs."""
CLIPS = torch.linspace(0.1, 1.0, 91, dtype=torch.float64)
"""The shares of the largest input at which it is tried to clip."""
MARGIN = 0.05
"""How much nearer than the gate the choice must come, in shares of what the gate allows: a runtime rounds otherwise."""
SMALLEST = 1e-7
"""The smallest scale: above 0 in float16 too."""
WORST = 1e9
"""The error of a layer that makes values infinite, as JSON has no infinity."""


@dataclass
class Histogram:
    """How often each absolute value came, in equal bins up to a largest one that grows.

    Attributes:
        counts: one a bin.
        top: the upper edge of the last bin.
    """

    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))
    top: float = 0.0

    def add(self, values: Tensor) -> None:
        """Count values; those that are not finite count nowhere."""
        values = values.detach().float().abs().flatten()
        values = values[values.isfinite()]
        largest = float(values.max()) if len(values) else 0.0
        if self.top == 0:
            self.top = largest
        while largest > self.top > 0:
            pairs = self.counts.reshape(-1, 2).sum(dim=1)
            self.counts = torch.cat([pairs, torch.zeros_like(pairs)])
            self.top *= 2
        if self.top > 0:
            self.counts += torch.histc(values, BINS, 0, self.top).double()

    def scale(self, kind: Quantised) -> float:
        """The scale whose rounding has the least squared error."""
        if self.top == 0:
            return 1.0
        values = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (self.top / BINS)
        scales = CLIPS * self.top / CODES[kind][1]
        errors = [(self.counts * (_rounded(values, scale, kind) - values) ** 2).sum() for scale in scales]
        return float(scales[int(torch.stack(errors).argmin())])


class QuantisedWeight(nn.Module):
    """A layer's weights as codes with one scale an output channel, in place of its own while `on`."""

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor, kind: Quantised):
        super().__init__()
        dtype, limit = CODES[kind]
        self.on, self.transposed = False, weight.ndim == 2  # so that a product takes it without a Transpose
        scale = weight.detach().float().flatten(1).abs().amax(dim=1) / limit
        scale = scale.clamp(min=SMALLEST).to(weight.dtype).float()
        codes = _codes(weight.detach().float() / scale.reshape(-1, *[1] * (weight.ndim - 1)), kind)
        self.register_buffer("codes", codes.t().contiguous() if self.transposed else codes)
        self.register_buffer("scale", scale.to(weight.dtype))
        self.register_buffer("zero", torch.zeros(len(scale)).to(dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """The weights that a layer computes with."""
        if not self.on:
            return weight
        axis = 1 if self.transposed else 0
        if torch.compiler.is_exporting():
            words = {"axis": axis}
            values = _symbolic("DequantizeLinear", self.codes, self.scale, self.zero, self.scale.dtype, words)
        else:
            sides = [-1 if side == axis else 1 for side in range(self.codes.ndim)]
            values = self.codes.to(self.scale.dtype) * self.scale.reshape(sides)
        return values.t() if self.transposed else values


class QuantisedInput(nn.Module):
    """A layer's input rounded with one scale."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: float, kind: Quantised, dtype: torch.dtype):
        super().__init__()
        self.kind: Quantised = kind
        self.register_buffer("scale", torch.tensor(max(scale, SMALLEST), dtype=dtype))
        self.register_buffer("zero", torch.zeros(()).to(CODES[kind][0]))

    def forward(self, values: Tensor) -> Tensor:
        """The rounded values, of the same type."""
        if torch.compiler.is_exporting():
            codes = _symbolic("QuantizeLinear", values, self.scale, self.zero, self.zero.dtype, {})
            return _symbolic("DequantizeLinear", codes, self.scale, self.zero, values.dtype, {})
        return _rounded(values.float(), self.scale.float(), self.kind).to(values.dtype)


@dataclass
class Layer:
    """A layer that can be quantised.

    Attributes:
        name: of its module.
        multiply_adds: for one image.
        scale: of its input.
        error: relative error of the model's outputs when it alone is quantised.
    """

    name: str
    multiply_adds: float
    scale: float
    error: float = 0.0


@dataclass
class Recipe:
    """Which layers of a model are quantised, and how.

    Attributes:
        kind: int8 or fp8.
        layers: those that are.
        kept: those that are not, the most sensitive first.
        pictures: how many pictures the scales were chosen on.
        share: the share of the multiply-adds of the whole graph that is quantised.
    """

    kind: Quantised
    layers: list[Layer]
    kept: list[Layer]
    pictures: int
    share: float

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "kind": self.kind,
            "pictures": self.pictures,
            "share_of_multiply_adds": round(self.share, 4),
            "layers": {layer.name: layer.scale for layer in self.layers},
            "kept": [
                {"name": layer.name, "relative_error_alone": layer.error, "multiply_adds": layer.multiply_adds}
                for layer in self.kept
            ],
        }

    def text(self) -> str:
        """What is quantised and what stays, in a sentence."""
        text = (
            f"{self.kind}: {len(self.layers)} of {len(self.layers) + len(self.kept)} layers, {self.share:.0%} of the "
        )
        text += f"multiply-adds, calibrated on {self.pictures} pictures"
        if not self.kept:
            return text
        errors = ", ".join(f"{layer.name} {layer.error:.2g}" for layer in self.kept)
        return f"{text}; as they were, with the relative error that each makes alone: {errors}"

    def apply(self, graph: Graph) -> None:
        """Quantise the layers of a graph, in the precision that it has; nothing may convert it afterwards."""
        attached = Attached(graph.backbone.model)
        attached.add(self.layers, self.kind)
        attached.switch({layer.name for layer in self.layers})


class Attached:
    """Quantisers at layers of a model, which can be switched on and off.

    Attributes:
        modules: the layers by name.
        on: the names of those that are quantised now.
    """

    def __init__(self, model: Any):
        self.model, self.modules, self.on = model, dict[str, Any](), set[str]()
        self.hooks: list[Any] = []
        self.weights: dict[str, nn.Parameter] = {}

    def add(self, layers: Sequence[Layer], kind: Quantised) -> None:
        """Put quantisers at layers, switched off."""
        for layer in layers:
            module = self.modules[layer.name] = self.model.get_submodule(layer.name)
            weight = self.weights[layer.name] = module.weight
            module.weight = nn.Parameter(weight.data, requires_grad=False)  # of its own: the model's stays untouched
            module.quantised_input = QuantisedInput(layer.scale, kind, weight.dtype)

            def round_input(module: Any, inputs: Any, named: Any, name: str = layer.name) -> Any:
                if name not in self.on:
                    return None
                if inputs:
                    return (module.quantised_input(inputs[0]), *inputs[1:]), named
                return inputs, {word: module.quantised_input(value) for word, value in named.items()}

            self.hooks.append(module.register_forward_pre_hook(round_input, with_kwargs=True))
            parametrize.register_parametrization(module, "weight", QuantisedWeight(weight, kind), unsafe=True)

    def switch(self, names: set[str]) -> None:
        """Quantise these layers and no others."""
        self.on = names
        for name, module in self.modules.items():
            module.parametrizations.weight[0].on = name in names

    def remove(self) -> None:
        """Leave the model as it was, wherever `add` was interrupted."""
        for hook in self.hooks:
            hook.remove()
        for name, module in self.modules.items():
            module._modules.pop("quantised_input", None)
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            module.weight = self.weights[name]


class Products(TorchFunctionMode):
    """Notes the tensors that linear layers and convolutions take as weights.

    Attributes:
        weights: their ids.
    """

    def __init__(self):
        super().__init__()
        self.weights: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.linear, F.conv2d):
            self.weights.add(id(kwargs["weight"] if "weight" in kwargs else args[1]))
        return func(*args, **kwargs)


def quantise(
    graph: Graph,
    *,
    pictures: Sequence[Tensor],
    judged: Sequence[Tensor],
    kind: Quantised,
    gate: Gate,
    wide_layers: Sequence[str] = (),
    console: Console | None = None,
) -> Recipe:
    """Which layers of a model can be quantised so that its outputs keep a gate.

    Every layer is quantised alone first, which ranks them by error² ÷ multiply-adds. Then all are, but as many of the
    worst as it takes.

    Args:
        graph: in float32; it is left as it was.
        pictures: images as the graph takes them, one each, on which the scales are chosen.
        judged: images on which errors are measured, best others.
        kind: int8 or fp8.
        gate: what every output must reach.
        wide_layers: modules that stay as they are, by name, with * and ?.
        console: where progress is shown; by default nowhere.

    Raises:
        S2WrapError: a model without such layers, no module of a name in wide_layers, or no layer that keeps the gate.
    """
    console = console or Console(quiet=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as progress:
        modules = _layers_of(graph, wide_layers)
        layers, total = _calibrate(graph, modules, pictures, kind, progress)
        attached = Attached(graph.backbone.model)
        try:
            attached.add(layers, kind)
            with torch.no_grad():
                _measure_alone(graph, attached, layers, judged[:2], progress)
                order = sorted(layers, key=lambda layer: layer.error**2 / layer.multiply_adds, reverse=True)
                count = _fewest_kept(graph, attached, order, judged, gate, progress)
        finally:
            attached.remove()
    kept, quantised = order[:count], order[count:]
    if not quantised:
        worst = ", ".join(f"{layer.name} ({layer.error:.2g})" for layer in order[:3])
        raise S2WrapError(
            f"{graph.backbone.name} in {kind} misses its gate ({gate.mean}, {gate.low}, {gate.error}) with any layer: "
            f"the relative errors of the worst alone are {worst}; use fp16, or a wider gate (--gate)"
        )
    share = sum(layer.multiply_adds for layer in quantised) / total
    return Recipe(kind, quantised, kept, len(pictures), share)


def _layers_of(graph: Graph, wide_layers: Sequence[str]) -> dict[str, Any]:
    """The linear and convolution layers of a model by name, without those that stay as they are."""
    model, name = graph.backbone.model, graph.backbone.name
    modules: dict[str, Any] = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    for pattern in wide_layers:
        if not any(within(each, pattern) for each in modules):
            known = ", ".join(list(modules)[1:6])
            raise S2WrapError(f"fp32_layers={pattern!r}: {name} has no such module; it has {known}, …")
    layers = {
        each: module
        for each, module in modules.items()
        if isinstance(module, nn.Linear | nn.Conv2d) and not any(within(each, pattern) for pattern in wide_layers)
    }
    # a weight that is computed from others, as by weight_norm, is no parameter
    layers = {each: module for each, module in layers.items() if isinstance(module._parameters.get("weight"), Tensor)}
    if not layers:
        others = " besides fp32_layers" if wide_layers else ""
        raise S2WrapError(f"{name} has no linear or convolution layers{others} that could be quantised; use fp16")
    return layers


@torch.no_grad()
def _calibrate(
    graph: Graph, modules: dict[str, Any], pictures: Sequence[Tensor], kind: Quantised, progress: Progress
) -> tuple[list[Layer], float]:
    """The layers with their scales, and the multiply-adds of the graph for one image.

    Layers that are not called, or compute with something else than their weights, as a convolution that standardises
    them, are left out.
    """
    found = dict[str, tuple[Histogram, list[int]]]()
    handles = []
    for name, module in modules.items():

        def look(module: Any, inputs: Any, named: Any, output: Tensor, name: str = name) -> None:
            histogram, work = found.setdefault(name, (Histogram(), []))
            histogram.add(inputs[0] if inputs else next(iter(named.values())))
            work.append(output.numel() * module.weight[0].numel())

        handles.append(module.register_forward_hook(look, with_kwargs=True))
    try:
        for image in progress.track(pictures, description=f"Calibrating {kind}"):
            graph(image[None])
    finally:
        for handle in handles:
            handle.remove()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), Products() as products:
        graph(pictures[0][None])
    layers = [
        Layer(name, sum(work) / len(pictures), histogram.scale(kind))
        for name, (histogram, work) in found.items()
        if id(modules[name].weight) in products.weights
    ]
    if not layers:
        raise S2WrapError(f"{graph.backbone.name} has no linear or convolution layers that could be {kind}; use fp16")
    return layers, counter.get_total_flops() / 2


def _measure_alone(
    graph: Graph, attached: Attached, layers: Sequence[Layer], images: Sequence[Tensor], progress: Progress
) -> None:
    """Fill in the error of every layer."""
    attached.switch(set())
    batch = torch.stack(list(images))
    expected = graph(batch)
    for layer in progress.track(layers, description="Measuring a layer at a time"):
        attached.switch({layer.name})
        outputs = zip(graph(batch), expected, strict=True)
        errors = [(found - wanted).norm() / wanted.norm().clamp(min=1e-30) for found, wanted in outputs]
        layer.error = float(torch.stack(errors).nan_to_num(WORST, WORST).clamp(max=WORST).max())


def _fewest_kept(
    graph: Graph, attached: Attached, order: Sequence[Layer], images: Sequence[Tensor], gate: Gate, progress: Progress
) -> int:
    """How many of the worst layers must stay as they are, found by halving."""
    attached.switch(set())
    expected = [graph(image[None]) for image in images]
    gate = Gate(1 - (1 - gate.mean) * (1 - MARGIN), 1 - (1 - gate.low) * (1 - MARGIN), gate.error * (1 - MARGIN))

    def passes(count: int) -> bool:
        attached.switch({layer.name for layer in order[count:]})
        found = [graph(image[None]) for image in images]
        columns = zip(graph.names, zip(*found, strict=True), zip(*expected, strict=True), strict=True)
        return all(compare(name, torch.cat(ours), torch.cat(theirs)).passes(gate) for name, ours, theirs in columns)

    low, high = 0, len(order)
    task = progress.add_task("Choosing the layers that stay", total=len(order).bit_length())
    while low < high:
        middle = 0 if (low, high) == (0, len(order)) else (low + high) // 2  # often all can be
        if passes(middle):
            high = middle
        else:
            low = middle + 1
        progress.advance(task)
    return low


def _rounded(values: Tensor, scale: Tensor, kind: Quantised) -> Tensor:
    """Values rounded to codes of a scale."""
    return _codes(values / scale, kind).to(values.dtype) * scale


def _codes(values: Tensor, kind: Quantised) -> Tensor:
    """Values in units of their scale as codes, as QuantizeLinear makes them."""
    dtype, limit = CODES[kind]
    if kind == "int8":
        return values.round().clamp(-limit - 1, limit).to(dtype)
    return values.clamp(-limit, limit).to(dtype)


def _symbolic(operator: str, values: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype, words: Any) -> Tensor:
    """A node of ONNX in an exported graph."""
    return torch.onnx.ops.symbolic(operator, (values, scale, zero), words, dtype=dtype, shape=values.shape, version=20)
