"""Train a small DPT head (Ranftl et al., arXiv 2103.13413) on a frozen backbone, at 1× and at two scales.

    pip install -c constraints.txt -e ".[demo]" && python demos/dense_head.py

The head takes the maps of four layers, brings them to strides of a quarter, a half, one and two cells, and fuses them
from coarse to fine by residual convolutions. It learns which texture each pixel of made-up scenes has (`scenes.py`);
colours, sizes and directions do not tell. The backbone is frozen, so its maps of the scenes are made once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
import typer
from command import start
from einops import rearrange
from rich.console import Console
from rich.progress import track
from scenes import TEXTURES, make_scene
from torch import Tensor, nn

import s2wrap
from s2wrap.files import whole_file

WAYS = {"1×": {"scales": (1,)}, "1× and 2×": {"scales": (1, 2), "fuse": "detail"}}
SIDE, WIDTH, BATCH, SHOWN = 224, 48, 4, 4
TESTS = range(1000, 1016)  # seeds of scenes that no head was trained on; the first are shown


class DenseHead(nn.Module):
    """Logits (b, classes, height, width) of four maps (b, channels, h, w), the first layer's first."""

    def __init__(self, channels: int, width: int, classes: int):
        super().__init__()
        finer = [nn.ConvTranspose2d(width, width, times, stride=times) for times in (4, 2)]
        strides = [*finer, nn.Identity(), nn.Conv2d(width, width, 3, stride=2, padding=1)]
        self.reassemble = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, width, 1), each) for each in strides)
        self.before = nn.ModuleList(two_convolutions(width) for _ in strides)
        self.after = nn.ModuleList(two_convolutions(width) for _ in strides)
        self.classify = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1))

    def forward(self, maps: Sequence[Tensor], image_hw: tuple[int, int]) -> Tensor:
        """The logits at a size in pixels."""
        fused = None
        for k in reversed(range(len(maps))):
            level = self.reassemble[k](maps[k])
            level = level + self.before[k](level)
            fused = level if fused is None else level + enlarge(fused, level.shape[2:])
            fused = fused + self.after[k](fused)
        return enlarge(self.classify(fused), image_hw)


def two_convolutions(width: int) -> nn.Sequential:
    """Return what is added to a map in a residual block."""
    return nn.Sequential(*(part for _ in range(2) for part in (nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))))


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps interpolated linearly."""
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def main(
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("dense_head.png"),
    model: Annotated[str, typer.Option(help="A backbone, without scales.")] = "sample:dinov2_s14",
    layers: Annotated[str, typer.Option(help="Four of its blocks, with commas.")] = "2,5,8,11",
    scenes: Annotated[int, typer.Option(min=BATCH, help="Scenes to train on.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help=f"Batches of {BATCH} scenes to train on.")] = 200,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Of a backbone of timm.")] = False,
) -> None:
    """Train a head for each of `WAYS`, print what it gets right, and write the picture."""
    options: dict[str, Any] = {"pretrained": False} if random_weights else {}
    options |= {"layers": [int(layer) for layer in layers.split(",")], "join_layers": False, "norm_layers": True}
    (images, masks), (other_images, other_masks) = make_scenes(range(scenes)), make_scenes(TESTS)
    found = {}
    for name, way in WAYS.items():
        wrapped = s2wrap.load(model, **options, **way)
        maps, other_maps = (encode(wrapped, each, name) for each in (images, other_images))
        head = train(maps, masks, steps, name)
        with torch.inference_mode():
            found[name] = head(other_maps, (SIDE, SIDE)).argmax(dim=1)
        right, iou = score(found[name], other_masks)
        print(
            f"{name}: {maps[0].shape[2]}×{maps[0].shape[3]} cells, trained for {steps} steps on {scenes} scenes: "
            f"{right:.1%} of the pixels of {len(TESTS)} others are right, mean IoU {iou:.1%}"
        )
    draw({"scene": rearrange(other_images, "b c h w -> b h w c"), "target": other_masks, **found}, output)
    print(f"wrote {output}")


def make_scenes(seeds: range) -> tuple[Tensor, Tensor]:
    """Return scenes uint8 (b, 3, h, w) and their masks (b, h, w)."""
    pixels, masks = zip(*(make_scene(seed, SIDE) for seed in seeds), strict=True)
    return rearrange(torch.from_numpy(np.stack(pixels)), "b h w c -> b c h w"), torch.from_numpy(np.stack(masks)).long()


def encode(model: s2wrap.MultiScale, images: Tensor, name: str) -> list[Tensor]:
    """Return the maps of a frozen model's layers, each for all images."""
    with torch.no_grad():
        looks = [model(image).maps for image in track(images.split(1), f"{name}: encode", console=Console(stderr=True))]
    return [torch.cat(of_layer) for of_layer in zip(*looks, strict=True)]


def train(maps: Sequence[Tensor], masks: Tensor, steps: int, name: str) -> DenseHead:
    """Return a head that was trained for some steps."""
    torch.manual_seed(0)
    head = DenseHead(maps[0].shape[1], WIDTH, len(TEXTURES))
    optimizer = torch.optim.AdamW(head.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    for _ in track(range(steps), f"{name}: train", console=Console(stderr=True)):
        chosen = torch.randperm(len(masks))[:BATCH]
        loss = F.cross_entropy(head([each[chosen] for each in maps], (SIDE, SIDE)), masks[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head


def score(found: Tensor, masks: Tensor) -> tuple[float, float]:
    """Return the share of pixels that are right, and the mean IoU of the classes."""
    pairs = [(found == kind, masks == kind) for kind in range(len(TEXTURES))]
    iou = sum(float((ours & theirs).sum() / (ours | theirs).sum()) for ours, theirs in pairs) / len(pairs)
    return float((found == masks).float().mean()), iou


def draw(panels: dict[str, Tensor], output: Path) -> None:
    """Write the picture: a column for each title, with as many scenes."""
    figure, axes = plt.subplots(SHOWN, len(panels), figsize=(9.6, 9.9), layout="constrained")
    for column, (title, pictures) in zip(axes.T, panels.items(), strict=True):
        column[0].set_title(title if title in ("scene", "target") else f"head on {title}", fontsize=11)
        for axis, picture in zip(column, pictures, strict=False):
            axis.imshow(picture.numpy(), cmap="Set2", vmin=-0.5, vmax=7.5, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    edges = np.arange(-0.5, len(TEXTURES))
    bar = figure.colorbar(axes[0, -1].images[0], ax=axes, location="bottom", aspect=60, boundaries=edges)
    bar.set_ticks(range(len(TEXTURES)), labels=TEXTURES)
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    start(main)
