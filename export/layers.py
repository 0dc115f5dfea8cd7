"""Where an ONNX file departs from PyTorch: its values inside, layer by layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from s2wrap.errors import MissingExtraError, S2WrapError, first_line
from s2wrap.export.graph import Graph

AT_ONCE = 64
"""Values of the graph that are fetched in one run."""
SAMPLE = 4096
"""Numbers of a value by which its counterpart is looked for."""
NEAR = 5.0
"""How many times a gate's relative error a value inside may be off and still be the same one."""


@dataclass(frozen=True)
class LayerError:
    """One module of the backbone and the value of the graph that is nearest to what it answers.

    Attributes:
        module: its name in PyTorch; "" is the backbone itself.
        node: the name of the value in the graph.
        error: length of the difference ÷ length of PyTorch's answer.
    """

    module: str
    node: str
    error: float


@dataclass(frozen=True)
class Layers:
    """What was found inside a file.

    Attributes:
        found: the modules whose answers the graph has, in the order in which they run.
        departure: the first module from which on the graph has no answer that is near; None if there is none.
    """

    found: tuple[LayerError, ...]
    departure: LayerError | None

    def show(self, console: Console, most: int = 40) -> None:
        """Print the errors, of every so many modules, and the departure."""
        step = -(-len(self.found) // most) if self.found else 1
        table = Table("module", "value of the graph", "relative error", title="Inside, on one image")
        for layer in self.found[::step]:
            table.add_row(layer.module or "the backbone", layer.node, f"{layer.error:.1e}")
        console.print(table)
        console.print(self.text(), highlight=False)

    def text(self) -> str:
        """The departure in a sentence."""
        if self.departure is None:
            return "No layer of the backbone departs."
        layer = self.departure
        return (
            f"The first layer that departs is {layer.module or 'the backbone'} (value {layer.node} of the graph): "
            f"relative error {layer.error:.2g}"
        )

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        layers = [vars(layer) for layer in self.found]
        return {"layers": layers, "departure": None if self.departure is None else vars(self.departure)}


@torch.no_grad()
def compare_layers(path: Path, graph: Graph, images: Tensor, given: Tensor, *, error: float, passed: bool) -> Layers:
    """Which modules of a backbone a graph agrees with, on a batch of images.

    The values of the graph carry no names of modules, so each module's answer is looked for among those of as many
    numbers: one that is near is the same value. Modules whose answers the graph has not, since they are computed
    otherwise there, are passed by.

    Args:
        path: an .onnx file of the same backbone.
        graph: of the model in float32.
        images: as the graph takes them.
        given: the same, as the file takes them.
        error: the relative error that the file's outputs may have.
        passed: whether they keep it; then no layer departs.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        S2WrapError: the file cannot be read or run.
    """
    answers = _answers(graph, images)
    wanted = {values.numel() for values in answers.values()}
    values = list(_values(path, given.numpy(), wanted))
    nearest = [_nearest(module, answer, values) for module, answer in answers.items()]
    layers = [layer for layer in nearest if layer is not None]
    agreeing = [number for number, layer in enumerate(layers) if layer.error <= NEAR * error]
    following = agreeing[-1] + 1 if agreeing else 0
    departs = not passed and following < len(layers)
    return Layers(tuple(layers[number] for number in agreeing), layers[following] if departs else None)


def _answers(graph: Graph, images: Tensor) -> dict[str, Tensor]:
    """What every module of the backbone answers in its first call, in the order in which they end."""
    model, answers = graph.backbone.model, dict[str, Tensor]()
    if not isinstance(model, nn.Module):
        raise S2WrapError(f"{graph.backbone.name} is no torch module, so it has no layers to compare")

    def keep(name: str, answer: object) -> None:
        answer = answer[0] if isinstance(answer, tuple | list) and answer else answer
        if isinstance(answer, Tensor) and answer.is_floating_point() and answer.numel() > 1:
            answers.setdefault(name, answer.detach().clone())

    handles = [
        module.register_forward_hook(lambda _module, _inputs, answer, name=name: keep(name, answer))
        for name, module in model.named_modules()
        if not isinstance(module, nn.Dropout | nn.Identity)
    ]
    try:
        graph(images)
    finally:
        for handle in handles:
            handle.remove()
    return answers


def _values(path: Path, images: object, wanted: set[int]) -> Iterator[tuple[str, Tensor]]:
    """The values of a graph that have one of the wanted counts of numbers, in the graph's order."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnx with onnxruntime", "export") from error
    proto = onnx.load(path)
    names = [name for node in proto.graph.node for name in node.output if name]
    (given,) = (value.name for value in proto.graph.input)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in part)
        try:
            session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            found = session.run(part, {given: images})
        except Exception as error:  # neither protobuf's errors nor those of ONNX Runtime have a common class
            raise S2WrapError(f"{path} cannot be looked into: {first_line(error)}") from error
        for name, value in zip(part, found, strict=True):
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size in wanted:
                yield name, torch.from_numpy(value.astype(np.float32)).flatten()


def _nearest(module: str, answer: Tensor, values: Sequence[tuple[str, Tensor]]) -> LayerError | None:
    """The value of the graph that is nearest to a module's answer; None where none has as many numbers."""
    answer = answer.float().flatten()
    places = torch.linspace(0, answer.numel() - 1, min(SAMPLE, answer.numel())).long()
    fits = [(name, value) for name, value in values if value.numel() == answer.numel()]
    if not fits:
        return None
    sample = answer[places]
    name, value = min(fits, key=lambda each: float((each[1][places] - sample).norm()))
    return LayerError(module, name, float((value - answer).norm() / answer.norm().clamp(min=1e-30)))
