"""Does an exported file compute what PyTorch computes? Token by token, on photographs and on noise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
from s2wrap.export.graph import ModelGraph, TilesGraph
from s2wrap.images import find_images, load_image

Graph = ModelGraph | TilesGraph
Run = Callable[[Tensor], dict[str, Tensor]]
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea")
"""Of scikit-image, when no pictures are given."""


@dataclass(frozen=True)
class Gate:
    """What a precision must reach, for every output.

    Attributes:
        mean: least mean cosine between a token and PyTorch's.
        low: least 1st percentile of these cosines.
        error: largest relative error: length of the difference of all values ÷ length of PyTorch's.
    """

    mean: float
    low: float
    error: float


GATES = {
    "fp32": Gate(0.9999, 0.9999, 0.001),
    "fp16": Gate(0.999, 0.995, 0.01),
    "bf16": Gate(0.999, 0.995, 0.04),
    "quantised": Gate(0.98, 0.93, 0.2),
}
"""fp16 as NVIDIA gates its own DINOv3 exports; in bfloat16 the error may be what such cosines leave room for."""


def parse_gate(gate: Any) -> Gate:
    """Three numbers as a `Gate`."""
    numbers = tuple(gate) if isinstance(gate, Sequence) and not isinstance(gate, str) else ()
    if len(numbers) != 3 or not all(isinstance(number, int | float) and 0 <= number <= 1 for number in numbers):
        raise S2WrapError(
            f"gate={gate!r} is no gate; give the least mean cosine, the least 1st percentile and the largest relative "
            f"error, such as (0.999, 0.995, 0.01)"
        )
    return Gate(*numbers)


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
    """What a verification found.

    Attributes:
        ran: what computed the outputs, such as "ONNX Runtime 1.32.0 on cpu".
        note: what it does not show; empty if nothing.
        gate: what every output had to reach.
        images: how many photographs and how many of noise.
        batches: the batch sizes, in order.
        outputs: one `Parity` each.
    """

    ran: str
    note: str
    gate: Gate
    images: tuple[int, int]
    batches: tuple[int, ...]
    outputs: tuple[Parity, ...]

    @property
    def passed(self) -> bool:
        """Whether every output is as near as it must be."""
        return all(parity.passes(self.gate) for parity in self.outputs)

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {"passed": self.passed} | asdict(self)

    def table(self) -> Table:
        """For the terminal."""
        photographs, noise = self.images
        title = f"{self.ran} against PyTorch in float32: {photographs} photographs, {noise} of noise, batches of "
        names = ("output", "cosine mean", "1st percentile", "least", "relative error", "largest error", "")
        caption = f"must reach {self.gate.mean}, {self.gate.low}, relative error {self.gate.error}"
        table = Table(*names, title=title + ", ".join(map(str, self.batches)), caption=caption)
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


def compare(name: str, found: Tensor, expected: Tensor) -> Parity:
    """How far an output is from PyTorch's.

    Args:
        name: of the output: spatial (b, c, h, w), tokens or prefix (b, n, c), or pooled (b, c).
        found: in any precision.
        expected: of the same shape.

    Raises:
        S2WrapError: another shape, or expected values that are not finite: then the model itself is at fault.
    """
    if found.shape != expected.shape:
        raise S2WrapError(f"{name} has shape {tuple(found.shape)}; PyTorch gives {tuple(expected.shape)}")
    if not expected.isfinite().all():
        raise S2WrapError(f"{name} is not finite in PyTorch itself, in float32; nothing can be compared with it")
    ours, theirs = _tokens(found.double().cpu()), _tokens(expected.double().cpu())
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
    console: Console,
) -> Report:
    """Compare what `run` gives with what `reference` gives.

    Args:
        run: images as the graph takes them → outputs by name; words may follow a name: "spatial (in bfloat16)".
        reference: the same, in float32 by PyTorch.
        samples: photographs and noise in turn, one image each, see `sample_images`.
        sizes: of the batches.
        gate: what every output must reach.
        ran: what `run` is, in words.
        note: what it does not show.
        console: for progress.
    """
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress, torch.no_grad():
        source = _endless(samples)
        for size in progress.track(sizes, description="Verifying"):
            images = torch.stack([next(source) for _ in range(size)])
            expected = reference(images)
            for name, found in run(images).items():
                pairs.setdefault(name, []).append((found.cpu(), expected[name.partition(" ")[0]]))
    outputs = []
    for name, parts in pairs.items():
        found, expected = zip(*parts, strict=True)
        outputs.append(compare(name, torch.cat(found), torch.cat(expected)))
    seen = sum(sizes)
    return Report(ran, note, gate, ((seen + 1) // 2, seen // 2), tuple(sizes), tuple(outputs))


def batch_sizes(batch: tuple[int, int, int], device: torch.device) -> list[int]:
    """MIN, MIN + 1 and MIN + 2 images, as far as MAX allows; on a GPU OPT as well."""
    low, best, high = batch
    return sorted({min(low + more, high) for more in range(3)} | ({best} if device.type == "cuda" else set()))


def sample_images(graph: Graph, pictures: Sequence[str | Path] | None, count: int = 6) -> list[Tensor]:
    """Photographs and noise in turn, of the shape and type that a graph takes; the same each time.

    Args:
        graph: in any precision.
        pictures: files or folders, of which the first are taken; photographs of scikit-image if None.
        count: how many.

    Raises:
        S2WrapError: no picture can be read, or none is given and scikit-image is not installed.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = graph.image_hw
    found = [_fit(picture, (height, width)) for picture in _photographs(pictures, (count + 1) // 2)]
    noise = torch.randint(0, 256, (count // 2, 3, height, width), generator=generator, dtype=torch.uint8)
    samples = [part for pair in zip(_endless(found), noise, strict=False) for part in pair]
    samples += found[:1] if count % 2 else []
    if graph.pixels == "uint8":
        return [rearrange(sample, "c h w -> h w c") for sample in samples]
    mean, std = (graph.backbone.mean or (0.5,) * 3), (graph.backbone.std or (0.25,) * 3)
    mean, std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    return [(sample.float() / 255 - mean) / std for sample in samples]


def _photographs(pictures: Sequence[str | Path] | None, count: int) -> list[Tensor]:
    if pictures is not None:
        return [load_image(path) for path in find_images(pictures)[:count]]
    try:
        from skimage import data
    except ImportError as error:
        raise S2WrapError(
            "verification wants photographs: give some with --pictures DIR (pictures=), or install scikit-image, which "
            'carries some: pip install "s2wrap[export]"'
        ) from error
    return [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1) for name in PHOTOGRAPHS[:count]]


def _fit(picture: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """A picture (3, h, w) of uint8 at another size."""
    resized = F.interpolate(picture[None].float(), image_hw, mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _tokens(values: Tensor) -> Tensor:
    """One row a token."""
    return rearrange(values, "b c h w -> (b h w) c") if values.ndim == 4 else values.flatten(0, -2)


def _endless(items: Sequence[Tensor]) -> Iterator[Tensor]:
    while True:
        yield from items
