"""Comparison of exported files with PyTorch, token by token, on photographs and on noise."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.export.graph import PIXEL_DTYPES, Graph, ModelGraph, tensors_of
from s2wrap.export.layers import Layers
from s2wrap.export.options import Gate
from s2wrap.images import find_images, load_image
from s2wrap.options import Interpolation
from s2wrap.policies import Pair
from s2wrap.resample import resize

Run = Callable[[Tensor], dict[str, Tensor]]
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")
"""Of scikit-image, for when no pictures are given."""


GATES = {
    "fp32": Gate(0.9999, 0.9999, 0.001),
    "fp16": Gate(0.999, 0.995, 0.01),
    "bf16": Gate(0.999, 0.995, 0.04),
    "quantised": Gate(0.98, 0.93, 0.2),
}
"""fp16 as NVIDIA gates its own DINOv3 exports; in bfloat16 the error may be what such cosines leave room for."""


@dataclass(frozen=True)
class Parity:
    """How far one output is from PyTorch's in float32.

    Attributes:
        output: its name.
        cosine_mean: mean over all tokens of the cosine between a token and PyTorch's.
        cosine_p1: 1st percentile of these.
        cosine_min: the least.
        relative_error: length of the difference of all values ÷ length of PyTorch's.
        largest_error: largest absolute difference.
        largest_value: largest absolute value of PyTorch's.
        finite: whether every value is.
    """

    output: str
    cosine_mean: float
    cosine_p1: float
    cosine_min: float
    relative_error: float
    largest_error: float
    largest_value: float
    finite: bool

    def passes(self, gate: Gate) -> bool:
        """Whether it is as near as it must be."""
        near = self.cosine_mean >= gate.mean and self.cosine_p1 >= gate.low and self.relative_error <= gate.error
        return self.finite and near


@dataclass(frozen=True)
class Report:
    """The result of a verification.

    Attributes:
        ran: what computed the outputs, such as "ONNX Runtime 1.32.0 on cpu".
        note: what the verification does not show; empty if nothing.
        gate: what every output had to reach.
        images: how many photographs and how many of noise.
        batches: the batch sizes, in order.
        outputs: one `Parity` each.
        own_sizes: the same of photographs that the graph sees stretched and the model, by `encode`, at their own size;
            no part of the gate, as it is the image size that differs. Empty where it cannot be said.
        layers: what was found inside the file; None where nobody looked.
    """

    ran: str
    note: str
    gate: Gate
    images: tuple[int, int]
    batches: tuple[int, ...]
    outputs: tuple[Parity, ...]
    own_sizes: tuple[Parity, ...] = ()
    layers: Layers | None = None

    @property
    def passed(self) -> bool:
        """Whether every output is as near as it must be."""
        return all(parity.passes(self.gate) for parity in self.outputs)

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"passed": self.passed} | asdict(self)

    def show(self, console: Console) -> None:
        """Print it."""
        console.print(self.table())
        for note in filter(None, (self.note, self.own_sizes_text())):
            console.print(note, highlight=False)
        if self.layers is not None:
            self.layers.show(console)

    def own_sizes_text(self) -> str:
        """How far the features of stretched photographs are from those at their own size, in a sentence."""
        if not self.own_sizes:
            return ""
        figures = "; ".join(
            f"{parity.output}: cosine mean {parity.cosine_mean:.4f}, relative error {parity.relative_error:.2g}"
            for parity in self.own_sizes
        )
        return f"Photographs stretched to the image size of the file, against the model at their own size: {figures}"

    def table(self) -> Table:
        """For the terminal."""
        photographs, noise = self.images
        title = f"{self.ran} against PyTorch in float32: {photographs} photographs, {noise} of noise, batches of "
        names = ("output", "cosine mean", "1st percentile", "least", "relative error", "largest error", "")
        caption = f"must reach {self.gate.mean}, {self.gate.low}, relative error {self.gate.error}"
        sizes = ", ".join(map(str, dict.fromkeys(self.batches)))
        table = Table(*names, title=title + sizes, caption=caption)
        for parity in self.outputs:
            cosines = (parity.cosine_mean, parity.cosine_p1, parity.cosine_min)
            verdict = "[green]passes[/]" if parity.passes(self.gate) else "[bold red]fails[/]"
            table.add_row(
                parity.output,
                *(f"{cosine:.6f}" for cosine in cosines),
                f"{parity.relative_error:.1e}",
                f"{parity.largest_error:.1e} of {parity.largest_value:.3g}" if parity.finite else "not finite",
                verdict,
            )
        return table


def compare(name: str, output: Tensor, expected: Tensor) -> Parity:
    """How far an output is from PyTorch's.

    Args:
        name: of the output: spatial (b, c, h, w), tokens or prefix (b, n, c), pooled (b, c), or head (b, …).
        output: in any precision.
        expected: of the same shape.

    Raises:
        S2WrapError: another shape, or expected values that are not finite: then the model itself is at fault.
    """
    if output.shape != expected.shape:
        raise S2WrapError(f"{name} has shape {tuple(output.shape)}; PyTorch gives {tuple(expected.shape)}")
    if not expected.isfinite().all():
        raise S2WrapError(f"{name} is not finite in PyTorch itself, in float32; nothing can be compared with it")
    ours, theirs = _tokens(output.double().cpu()), _tokens(expected.double().cpu())
    finite = bool(ours.isfinite().all())
    ours = ours.nan_to_num(0, 0, 0)
    nothing = (ours.norm(dim=1) == 0) & (theirs.norm(dim=1) == 0)
    cosines = torch.where(nothing, torch.ones_like(ours[:, 0]), F.cosine_similarity(ours, theirs, dim=1, eps=1e-30))
    return Parity(
        output=name,
        cosine_mean=float(cosines.mean()),
        cosine_p1=float(cosines.quantile(0.01)),
        cosine_min=float(cosines.min()),
        relative_error=float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30)),
        largest_error=float((ours - theirs).abs().max()),
        largest_value=float(theirs.abs().max()),
        finite=finite,
    )


def verify_run(
    run: Run,
    reference: Run,
    samples: Sequence[Tensor],
    *,
    sizes: Sequence[int],
    gate: Gate,
    ran: str,
    note: str = "",
    own_sizes: tuple[Parity, ...] = (),
    console: Console,
) -> Report:
    """A report of how the outputs of `run` compare with those of `reference`.

    Args:
        run: images as the graph takes them → outputs by name; words may follow a name: "spatial (in bfloat16)".
        reference: the same, in float32 by PyTorch.
        samples: photographs and noise in turn, one image each, see `sample_images`.
        sizes: of the batches.
        gate: what every output must reach.
        ran: what `run` is, in words.
        note: what it does not show.
        own_sizes: as `compare_own_sizes` gives them.
        console: for progress.
    """
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
    with bar as progress, torch.no_grad():
        source = cycle(samples)
        for size in progress.track(sizes, description="Verifying"):
            images = torch.stack([next(source) for _ in range(size)])
            expected = reference(images)
            for name, output in run(images).items():
                pairs.setdefault(name, []).append((output.cpu(), expected[name.partition(" ")[0]]))
    count = sum(sizes)
    return Report(ran, note, gate, ((count + 1) // 2, count // 2), tuple(sizes), _parities(pairs), own_sizes)


def compare_own_sizes(reference: Run, graph: ModelGraph, pictures: Sequence[str | Path] | None) -> tuple[Parity, ...]:
    """How far photographs that are stretched for a graph are from what the model makes of them at their own size.

    Args:
        reference: the graph in float32 by PyTorch, so that the image size is all that differs.
        graph: of which it is.
        pictures: as for `sample_images`.

    Returns:
        One `Parity` an output; nothing for a model that cannot take pictures, or whose scales keep their shape.
    """
    known = graph.model.input
    stretched = all(scale.fit == "stretch" for scale in graph.model.scales)
    if not stretched or not (known.normalises or known.value_range):
        return ()
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for picture in _photographs(pictures, 3, known.channels):
        (features,) = graph.model.encode([picture])
        features = graph.add_head(features)
        expected = [tensor for kind in graph.outputs for tensor in tensors_of(features, kind)]
        outputs = reference(_as_graph_takes(_fit(picture, graph.image_hw, known.interpolation), graph)[None])
        for name, values in zip(graph.names, expected, strict=True):
            pairs.setdefault(name, []).append((outputs[name].cpu(), values))
    return _parities(pairs)


def _parities(pairs: dict[str, list[tuple[Tensor, Tensor]]]) -> tuple[Parity, ...]:
    """One `Parity` for the outputs and expected values of every name."""
    columns = {name: tuple(map(torch.cat, zip(*parts, strict=True))) for name, parts in pairs.items()}
    return tuple(compare(name, *values) for name, values in columns.items())


def batch_sizes(batch: tuple[int, int, int], device: torch.device) -> list[int]:
    """MIN, MIN + 1 and MIN + 2 images, as far as MAX allows; on a GPU OPT as well."""
    low, best, high = batch
    return sorted({min(low + more, high) for more in range(3)} | ({best} if device.type == "cuda" else set()))


def sample_images(graph: Graph, pictures: Sequence[str | Path] | None, count: int = 6) -> list[Tensor]:
    """Photographs and noise in turn, of the shape, type and range that a graph takes; the same each time.

    A graph of one channel gets the average of the colours of each photograph; one of more than three gets the colours
    again and again: R, G, B, R, G, … Noise differs in every channel.

    Args:
        graph: in any precision.
        pictures: files or folders, of which the first are taken; photographs of scikit-image if None.
        count: how many.

    Raises:
        S2WrapError: no picture can be read, or none is given and scikit-image is not installed.
    """
    generator = torch.Generator().manual_seed(0)
    known, image_hw = graph.backbone.input, graph.image_hw
    photographs = _photographs(pictures, (count + 1) // 2, known.channels)
    photographs = [_fit(picture, image_hw, known.interpolation) for picture in photographs]
    noise = torch.randint(0, 256, (count // 2, known.channels, *image_hw), generator=generator, dtype=torch.uint8)
    samples = [part for pair in zip(cycle(photographs), noise, strict=False) for part in pair]
    samples += photographs[:1] if count % 2 else []
    return [_as_graph_takes(sample, graph) for sample in samples]


def calibration_images(graph: Graph, pictures: Sequence[str | Path], most: int = 64) -> list[Tensor]:
    """Photographs as a graph takes them, evenly out of all, without the three that `sample_images` takes if possible.

    Raises:
        S2WrapError: no picture can be read.
    """
    files = find_images(pictures)
    files = files[3:] if len(files) > 3 else files
    files = [files[number * len(files) // most] for number in range(most)] if len(files) > most else files
    known = graph.backbone.input
    loaded = (_to_channels(load_image(file), known.channels) for file in files)
    return [_as_graph_takes(_fit(picture, graph.image_hw, known.interpolation), graph) for picture in loaded]


def _as_graph_takes(sample: Tensor, graph: Graph) -> Tensor:
    """An image (c, h, w) of uint8 in the type, range and layout that a graph takes."""
    dtype, known = PIXEL_DTYPES[graph.pixels], graph.backbone.input
    values, bounds = sample.float() / 255, known.range_of(dtype)
    if bounds is not None:
        values = values * (bounds[1] - bounds[0]) + bounds[0]
        return values if dtype.is_floating_point else rearrange(values.round().to(dtype), "c h w -> h w c")
    if not known.normalises:
        known = replace(known, mean=(0.5,) * known.channels, std=(0.25,) * known.channels)
    mean, std = known.mean_std("cpu")
    return (values - mean) / std


def _photographs(pictures: Sequence[str | Path] | None, count: int, channels: int) -> list[Tensor]:
    """Photographs (channels, h, w) of uint8 at their own sizes."""
    if pictures is not None:
        return [_to_channels(load_image(path), channels) for path in find_images(pictures)[:count]]
    try:
        from skimage import data
    except ImportError as error:
        raise S2WrapError(
            "verification wants photographs: give some with --pictures DIR (pictures=), or install scikit-image, which "
            'carries some: pip install "s2wrap[export]"'
        ) from error
    loaded = [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1) for name in PHOTOGRAPHS[:count]]
    return [_to_channels(picture, channels) for picture in loaded]


def _fit(picture: Tensor, image_hw: Pair, interpolation: Interpolation) -> Tensor:
    """A picture (c, h, w) of uint8 at another size."""
    resized = resize(picture[None].float(), image_hw, interpolation=interpolation)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _to_channels(picture: Tensor, channels: int) -> Tensor:
    """A picture (3, h, w) of uint8 with another number of channels; see `sample_images`."""
    if channels == 1:
        return picture.float().mean(dim=0, keepdim=True).round().to(torch.uint8)
    return picture[[channel % 3 for channel in range(channels)]]


def _tokens(values: Tensor) -> Tensor:
    """One row a token; tokens of one number, which have no direction, make one row together."""
    rows = rearrange(values, "b c h w -> (b h w) c") if values.ndim == 4 else values.flatten(0, -2)
    return rows.T if rows.shape[1] == 1 else rows
