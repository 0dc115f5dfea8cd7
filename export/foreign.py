"""Verification of files that others built of a model: no manifest says what they take and give."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from rich.console import Console
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.export import trace
from s2wrap.export.graph import ModelGraph
from s2wrap.export.layers import compare_layers
from s2wrap.export.manifest import kind_of
from s2wrap.export.options import Gate, GraphOptions, Pixels
from s2wrap.export.parity import GATES, Report, batch_sizes, compare, sample_images, verify_run
from s2wrap.export.ports import Port, Session
from s2wrap.export.session import open_session, runner_of
from s2wrap.features import Features
from s2wrap.wrapper import MultiScale

GATE_OF = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""The gate of files by the type of what they give; that of fp32 for others."""


def verify_foreign(
    path: Path,
    model: MultiScale,
    *,
    gate: Gate | None,
    pictures: Sequence[str | Path] | None,
    layers: bool,
    console: Console,
) -> Report:
    """How the outputs of a file compare with what a model makes of the same images.

    The file takes images (b, c, h, w) of floats, as the model takes them, or of uint8, or pixels (b, h, w, c) of uint8.
    Each of its outputs is compared with that of the model which has its shape: the map, with channels first or last,
    tokens with or without prefix tokens, prefix tokens, the mean of the map, or the first prefix token; with the
    nearest of those where several have it.

    Args:
        path: the file: .onnx, .plan, .engine or .rtx.
        model: on any device and in any precision.
        gate: what every output must reach; by default that of the type of the outputs, or of quantised files.
        pictures: files or folders; photographs of scikit-image if None.
        layers: look inside too (.onnx).
        console: for progress.

    Raises:
        S2WrapError: the file cannot run here, takes something else, or gives what the model does not.
    """
    kind = kind_of(path)
    session = open_session(path, kind=kind)
    port, give = _input(path, session, model)
    graph = ModelGraph(model, GraphOptions(image_hw=_image_hw(port, give), pixels=give.pixels))
    samples = sample_images(graph, pictures)
    chosen = _choose(path, session, port, graph, give, samples[0])
    names = {name: f"{name} (as {what})" for name, what in chosen.items()}

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = session.run({port.name: give(images).to(session.device)})
        return {names[name]: outputs[name] for name in chosen}

    def reference(images: Tensor) -> dict[str, Tensor]:
        known = _answers(_features(graph, images))
        return {names[name].partition(" ")[0]: known[what] for name, what in chosen.items()}

    quantised = kind == "onnx" and trace.is_quantised(_graph_of(path))
    gate = gate or GATES["quantised" if quantised else GATE_OF.get(session.outputs[0].dtype, "fp32")]
    sizes = batch_sizes(session.batch or (1, 2, 3), session.device)
    note = (
        "The file has no manifest: what its outputs are was told by their shapes, and its input taken as the model's."
    )
    ran = runner_of(session, kind)
    report = verify_run(run, reference, samples, sizes=sizes, gate=gate, ran=ran, note=note, console=console)
    if not layers:
        return report
    images = _repeated(samples[0], session)
    inside = compare_layers(path, graph, images, give(images), error=gate.error, passed=report.passed)
    return replace(report, layers=inside)


class _Give:
    """Images as a graph of ours takes them → as the file does."""

    def __init__(self, pixels: Pixels, dtype: torch.dtype, channels_first: bool):
        self.pixels: Pixels = pixels
        self.dtype, self.channels_first = dtype, channels_first

    def __call__(self, images: Tensor) -> Tensor:
        images = rearrange(images, "b h w c -> b c h w") if self.pixels == "uint8" and self.channels_first else images
        return images.to(self.dtype).contiguous()


def _input(path: Path, session: Session, model: MultiScale) -> tuple[Port, _Give]:
    """The file's input, and how images are given to it."""
    if len(session.inputs) == 1:
        (port,), channels = session.inputs, model.input.channels
        first, last = port.shape[1:2] == (channels,), port.shape[3:4] == (channels,)
        if len(port.shape) == 4 and port.dtype in (torch.float32, torch.float16) and first:
            return port, _Give("float32", port.dtype, channels_first=True)
        if len(port.shape) == 4 and port.dtype == torch.uint8 and (first or last):
            return port, _Give("uint8", port.dtype, channels_first=first)
    takes = ", ".join(f"{port.name} {'×'.join(map(str, port.shape))} of {port.dtype}" for port in session.inputs)
    raise S2WrapError(
        f"{path} takes {takes}; to be compared it must take one batch of images ({model.input.channels} channels) of "
        f"float32 or float16, channels first, or of uint8"
    )


def _image_hw(port: Port, give: _Give) -> tuple[int, int]:
    height, width = port.shape[2:] if give.channels_first else port.shape[1:3]
    return int(height), int(width)


def _repeated(image: Tensor, session: Session) -> Tensor:
    """An image as the smallest batch that a session takes."""
    return image.expand(session.batch[0] if session.batch else 1, *image.shape)


def _choose(
    path: Path, session: Session, port: Port, graph: ModelGraph, give: Callable[[Tensor], Tensor], image: Tensor
) -> dict[str, str]:
    """What each output of the file is, by name: the answer of the model that has its shape and is the nearest."""
    images = _repeated(image, session)
    known = _answers(_features(graph, images))
    chosen = {}
    for name, found in session.run({port.name: give(images).to(session.device)}).items():
        fits = {what: values for what, values in known.items() if values.shape == found.shape}
        if not fits:
            shapes = ", ".join(f"{what} {'×'.join(map(str, values.shape))}" for what, values in known.items())
            shape = "×".join(map(str, found.shape))
            raise S2WrapError(f"{path} gives {name} of shape {shape}; {graph.backbone.name} gives {shapes}")
        chosen[name] = min(fits, key=lambda what: compare(name, found.cpu(), fits[what]).relative_error)
    return chosen


@torch.no_grad()
def _features(graph: ModelGraph, images: Tensor) -> Features:
    return graph.model(images if graph.pixels == "float32" else rearrange(images, "b h w c -> b c h w"))


def _answers(features: Features) -> dict[str, Tensor]:
    """All that a file may give of features, by what it is."""
    answers: dict[str, Tensor] = {}
    for number, (spatial, prefix) in enumerate(zip(features.maps, features.prefixes, strict=True)):
        ending = f"_{number}" if len(features.maps) > 1 else ""
        tokens = rearrange(spatial, "b c h w -> b (h w) c")
        answers |= {f"spatial{ending}": spatial, f"tokens{ending}": tokens, f"pooled{ending}": tokens.mean(dim=1)}
        answers[f"spatial{ending}, channels last"] = rearrange(spatial, "b c h w -> b h w c")
        if prefix.shape[1]:
            answers |= {f"prefix{ending}": prefix, f"cls{ending}": prefix[:, 0]}
            answers[f"prefix{ending} and tokens{ending}"] = torch.cat([prefix, tokens], dim=1)
    return answers


def _graph_of(path: Path) -> object:
    import onnx

    return onnx.load(path, load_external_data=False)
