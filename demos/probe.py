"""A linear probe and a LoRA fine-tune of the same wrapped model, on pictures of a textile, with their curves.

    pip install -c constraints.txt -e ".[demo,integrations]" && python demos/probe.py

The pictures (those of defects.py: without a defect, with a torn spot, or woven differently) are split into two halves.
Both ways train the same linear head, from the same start, on the mean and the maximum over the map. The probe trains it
alone, on features that are computed once. LoRA trains small matrices beside the attention of the last blocks too, so
that every epoch runs the backbone again. Figures are in docs/pages/tutorials/linear-probe.md.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import typer
from command import start
from defects import KINDS, check_installed, spread, textiles
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import s2wrap
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.files import whole_file

BATCH, RATE, BLOCKS = 4, 2e-3, 4
"""Pictures a step, the learning rate, and how many of the last blocks get adapters."""


@dataclass
class Run:
    """One way to train: the number of weights that it trains, seconds, and (loss, accuracy) of every epoch."""

    weights: int
    curves: dict[str, list[tuple[float, float]]]
    seconds: float = 0.0


def main(
    model: Annotated[str, typer.Option(help="A ViT of timm or of sample: with scales.")] = "sample:dinov2_s14@1,2",
    pictures: Annotated[int, typer.Option(min=4, max=500, help="Pictures of each kind: half to train on.")] = 16,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of both ways.")] = 6,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("probe.png"),
) -> None:
    """Train both, print the table and write the picture."""
    check_installed()
    if find_spec("peft") is None:
        raise MissingExtraError("peft, which has LoRA,", "integrations")
    import peft

    pictures -= pictures % 2
    wrapped = s2wrap.load(model)
    blocks = len(getattr(wrapped.backbone.model, "blocks", ()))
    if not blocks:
        raise S2WrapError(f"{model} has no blocks of attention; use a ViT, such as sample:dinov2_s14@1,2")
    paths = [path for kind in KINDS for path in spread(textiles(kind), pictures)]
    transform = wrapped.transform(image_hw=wrapped.image_hw)
    images = torch.stack([transform(Image.open(path)) for path in paths])
    labels = torch.arange(len(KINDS)).repeat_interleave(pictures)
    start = time.perf_counter()
    with torch.no_grad():
        features = torch.cat([vectors(wrapped, part) for part in images.split(BATCH)])
    seconds = time.perf_counter() - start
    torch.manual_seed(0)
    head = nn.Sequential(nn.LayerNorm(features.shape[1]), nn.Linear(features.shape[1], len(KINDS)))
    runs = {"linear probe": train(copy.deepcopy(head), lambda rows: features[rows], labels, epochs)}
    runs["linear probe"].seconds += seconds
    last = "|".join(map(str, range(blocks - BLOCKS, blocks)))
    config = peft.LoraConfig(r=8, target_modules=rf".*\.blocks\.({last})\.attn\.qkv", lora_dropout=0.1)
    adapted = peft.get_peft_model(wrapped, config)  # the wrapped model is frozen; its adapters train
    runs["LoRA"] = train(head, lambda rows: vectors(adapted, images[rows]), labels, epochs, adapted)
    show_table(runs, len(images) // 2)
    with whole_file(output) as file:
        draw(runs, file)
    print(f"wrote {output}")


def vectors(model: nn.Module, images: Tensor) -> Tensor:
    """Return the mean and the maximum over the map of each image."""
    spatial = model(images).spatial
    return torch.cat([spatial.mean((2, 3)), spatial.amax((2, 3))], dim=1)


def train(head: nn.Module, vectors_of: Callable[[Tensor], Tensor], labels: Tensor, epochs: int, *others: Any) -> Run:
    """Train a head, and what has gradients in other modules, on pictures of even numbers; odd ones validate."""
    modules = nn.ModuleList([head, *others])
    weights = [weight for weight in modules.parameters() if weight.requires_grad]
    run = Run(sum(weight.numel() for weight in weights), {"train": [], "validation": []}, -time.perf_counter())
    optimizer, generator = torch.optim.AdamW(weights, lr=RATE), torch.Generator().manual_seed(0)
    for _ in track(range(epochs), "training", console=Console(stderr=True)):
        for first, (half, curve) in enumerate(run.curves.items()):
            modules.train(half == "train")
            loss_sum, right = 0.0, 0
            for numbers in torch.randperm(len(labels) // 2, generator=generator).split(BATCH):
                rows = 2 * numbers + first
                with torch.set_grad_enabled(half == "train"):
                    logits = head(vectors_of(rows))
                    loss = functional.cross_entropy(logits, labels[rows], reduction="sum")
                if half == "train":
                    optimizer.zero_grad()
                    (loss / len(rows)).backward()
                    optimizer.step()
                loss_sum += loss.item()
                right += int((logits.argmax(dim=1) == labels[rows]).sum())
            curve.append((loss_sum / (len(labels) // 2), right / (len(labels) // 2)))
    run.seconds += time.perf_counter()
    return run


def show_table(runs: dict[str, Run], count: int) -> None:
    """Print a line a way to train."""
    table = Table("way", "weights trained", "train", "validation", "seconds", title=f"accuracy; {count} pictures each")
    for name, run in runs.items():
        (_, trained), (_, right) = run.curves["train"][-1], run.curves["validation"][-1]
        error = (right * (1 - right) / count) ** 0.5
        accuracy = f"{right:.0%} (standard error {error:.0%})"
        table.add_row(name, f"{run.weights:,}", f"{trained:.0%}", accuracy, f"{run.seconds:.0f}")
    Console(width=100).print(table)


def draw(runs: dict[str, Run], file: Path) -> None:
    """Draw loss and accuracy of every epoch: dashed for training, a line for validation."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for (name, run), colour in zip(runs.items(), ("tab:blue", "tab:orange"), strict=True):
        for half, curve in run.curves.items():
            style = {"color": colour, "linestyle": "--" if half == "train" else "-", "marker": "."}
            for ax, values in zip(axes, zip(*curve, strict=True), strict=True):
                ax.plot(range(1, len(values) + 1), values, label=f"{name}, {half}", **style)
    for ax, what in zip(axes, ("cross-entropy", "accuracy"), strict=True):
        ax.set(xlabel="epoch", ylabel=what)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].axhline(1 / len(KINDS), color="0.6", linewidth=1)
    axes[1].set(ylim=(0, 1.03), title="the grey line is chance")
    figure.savefig(file, dpi=110, format="png")


if __name__ == "__main__":
    start(main)
