"""Measure what was tried for the same scores at less work, or for better ones, and is not built in.

DINOv2 ViT-S/14 at 1× and 2×, on the made-up sets of `tasks_data.py`. Beside the average of both scales: tokens of the
2× tiles merged (as ToMe, arXiv 2210.09461), or left out where 1× cannot have missed much, and position embeddings of a
tile cut from the whole picture's. Beside detail fusion: polynomials of lower degrees. Differences are paired.

    pip install -c constraints.txt -e ".[demo]" && python benchmarks/tried.py [--pictures 12] [--seed 0]
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
import typer
from einops import rearrange, reduce, repeat
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table
from tasks import commit
from tasks_data import WRITERS
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import s2wrap
from s2wrap.compare.data import Pictures, read_folder
from s2wrap.compare.tasks import TASKS, Bench
from s2wrap.images import load_image
from s2wrap.resample import resize

SPEC, SIDE, GRID = "sample:dinov2_s14", 224, 16
"""The backbone, the pixels of a tile's side, and the tokens of one."""
SETS = {"scenes": "neighbours", "defects": "anomaly", "relief": "regression"}
AVERAGE, DETAIL = "averaged", "detail fusion, degree 4"
"""What the ways are compared with: the average of both scales, and the default of detail fusion."""
DEGREES = {DETAIL: 4} | {f"detail fusion, degree {degree}": degree for degree in (0, 1, 2)}


class KnownMaps(Bench):
    """What tasks work with, where the maps (c, h, w) of all pictures are known, by the name of a way."""

    def __init__(self, pictures: Pictures, maps: dict[str, list[Tensor]]):
        super().__init__({}, list(maps), pictures, None, Progress(), make=s2wrap.wrap)
        self.known = maps

    def maps(self, spec: str, model: object = None) -> list[Tensor]:
        """As `Bench.maps`."""
        return self.known[spec]


def main(
    pictures: Annotated[int, typer.Option(min=4, help="Pictures of each set.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the pictures.")] = 0,
    sets: Annotated[str, typer.Option(help="Which sets, with commas.")] = ",".join(SETS),
) -> None:
    """Print the table."""
    title = f"{SPEC}@1,2, commit {commit()}, {pictures} pictures a set, seed {seed}"
    table = Table("set", "measure", "way", "multiply-adds, %", "value, %", "difference", "95 % interval", title=title)
    for name in sets.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            folder = read_folder(WRITERS[name](Path(scratch) / name, pictures, seed))
            maps, work = evaluate(folder)
            task = TASKS[SETS[name]](KnownMaps(folder, maps))
            scores = {way: next(iter(task.score(way).items())) for way in maps}  # the measure that decides is the first
            for way, (measure, score) in scores.items():
                base = DETAIL if way in DEGREES else AVERAGE
                difference, low, high = (100 * value for value in score.difference(scores[base][1]))
                shown = ["", ""] if way == base else [f"{difference:+.1f}", f"{low:+.1f} … {high:+.1f}"]
                table.add_row(name, measure, way, f"{100 * work[way]:.0f}", f"{100 * score.value:.1f}", *shown)
            table.add_section()
    Console(width=150).print(table)


def evaluate(pictures: Pictures) -> tuple[dict[str, list[Tensor]], dict[str, float]]:
    """Return each way's maps (c, 32, 32) of all pictures, and its share of the multiply-adds of both scales."""
    model = s2wrap.load(f"{SPEC}@1,2", fuse="mean", norm="l2", target_grid="finest")
    vit: Any = model.backbone.model
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.input.mean, model.input.std))
    ways, work = make_ways(vit), dict.fromkeys(DEGREES, 1.0)
    maps: dict[str, list[Tensor]] = {way: [] for way in [*ways, *DEGREES]}
    with torch.inference_mode():
        for path in track(pictures.paths, console=Console(stderr=True)):
            pixels = load_image(path)[None].float() / 255
            small, large = ((resize(pixels, (k * SIDE, k * SIDE)) - mean) / std for k in (1, 2))
            coarse = join(vit.forward_features(small)[:, 1:], 1)
            spread = F.interpolate(coarse, scale_factor=2, mode="bilinear")
            tiles, found, operations = rearrange(large, "1 c (r h) (q w) -> (r q) c h w", r=2, q=2), {}, {}
            for way, run in ways.items():
                # attention as plain products, since the counter does not know every fused kernel
                with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                    fine = join(run(tiles), 2)
                found[way] = torch.where(fine.isnan(), spread, fine)  # not a number: was not run
                operations[way] = counter.get_total_flops()
                maps[way].append(((F.normalize(spread, dim=1) + F.normalize(found[way], dim=1)) / 2)[0])
            for way, degree in DEGREES.items():
                maps[way].append(detail_fusion(coarse, spread, found[AVERAGE], degree)[0])
            work |= {way: (1 + 4 * count / operations[AVERAGE]) / 5 for way, count in operations.items()}
            if (
                path == pictures.paths[0]
            ):  # what is written here is what the library does, and nothing merged the backbone
                detail = s2wrap.wrap(model.backbone, (1, 2), fuse="detail")
                same = [(maps[AVERAGE][0], model.encode([path])[0].spatial[0])]
                same += [(maps[DETAIL][0], detail.encode([path])[0].spatial[0])]
                same += [(join(merged_tokens(vit, tiles, 0, 0), 2), found[AVERAGE])]
                for ours, other in same:
                    torch.testing.assert_close(ours, other, rtol=0, atol=1e-4)
    return maps, work


def make_ways(vit: Any) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what makes the tokens (4, 256, c) of 2 × 2 tiles (4, 3, 224, 224), by name."""
    whole: Any = s2wrap.load(SPEC, image_size=2 * SIDE).backbone.model
    cut = rearrange(whole.pos_embed[:, 1:], "1 (r h q w) c -> (r q) (h w) c", r=2, h=GRID, q=2)
    shift = F.pad(cut - vit.pos_embed[:, 1:], (0, 0, 1, 0))  # none for the class token
    return {
        AVERAGE: lambda tiles: vit.forward_features(tiles)[:, 1:],
        "averaged, tokens merged, r=16": lambda tiles: merged_tokens(vit, tiles, 16, 0),
        "averaged, tokens merged, r=24 from block 4": lambda tiles: merged_tokens(vit, tiles, 24, 4),
        "averaged, 60 % of the tokens, by detail": lambda tiles: some_tokens(vit, tiles, 0.6),
        "averaged, positions cut from the whole picture's": lambda tiles: vit.norm(
            vit.blocks(vit._pos_embed(vit.patch_embed(tiles)) + shift)
        )[:, 1:],
    }


def join(tokens: Tensor, rows: int) -> Tensor:
    """Return the map (1, c, h, w) of the tokens (tiles, n, c) of as many rows of tiles as columns."""
    return rearrange(tokens, "(r q) (h w) c -> 1 c (r h) (q w)", r=rows, h=GRID)


def some_tokens(vit: Any, tiles: Tensor, share: float) -> Tensor:
    """Return the tokens (4, 256, c) of 2 × 2 tiles, of which a share is run; the others are NaN.

    Run are those of each tile whose pixels differ most from the picture at 1×.
    """
    image = rearrange(tiles, "(r q) c h w -> 1 c (r h) (q w)", r=2)
    lost = (image - resize(resize(image, (SIDE, SIDE)), (2 * SIDE, 2 * SIDE))).square()
    detail = reduce(lost, "1 c (r h y) (q w x) -> (r q) (h w)", "mean", r=2, q=2, h=GRID, w=GRID)
    chosen = detail.topk(round(share * detail.shape[1]), dim=1).indices
    tokens = vit._pos_embed(vit.patch_embed(tiles))
    places = repeat(chosen, "b n -> b n c", c=tokens.shape[2])
    run = vit.norm(vit.blocks(torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, places)], dim=1)))
    return torch.full_like(tokens[:, 1:], torch.nan).scatter(1, places, run[:, 1:])


def merged_tokens(vit: Any, tiles: Tensor, count: int, first: int) -> Tensor:
    """Return the tokens (tiles, n, c) where each block from the first on merges so many, spread to all their places."""
    tokens = vit._pos_embed(vit.patch_embed(tiles))
    sizes = torch.ones_like(tokens[..., :1])  # how many places a token stands for
    places = repeat(torch.arange(tokens.shape[1]), "n -> b n", b=len(tokens))  # the token of each place
    for number, block in enumerate(vit.blocks):
        qkv = block.attn.qkv(block.norm1(tokens))
        queries, keys, values = rearrange(qkv, "b n (three m d) -> three b m n d", three=3, m=block.attn.num_heads)
        weights = rearrange(sizes.log(), "b n 1 -> b 1 1 n").expand(-1, -1, tokens.shape[1], -1)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=weights)
        tokens = tokens + block.ls1(block.attn.proj(rearrange(mixed, "b m n d -> b n (m d)")))
        if count and number >= first:
            targets = merge_targets(reduce(keys, "b m n d -> b n d", "mean"), count)
            sums, sizes = (add_up(values, targets, count) for values in (tokens * sizes, sizes))
            tokens, places = sums / sizes, targets.gather(1, places)
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return vit.norm(tokens).gather(1, repeat(places, "b n -> b n c", c=tokens.shape[2]))[:, 1:]


def merge_targets(keys: Tensor, count: int) -> Tensor:
    """Return the new place (b, n) of each token, by keys (b, n, d), where `count` of them merge into others.

    Every second token looks for the most similar one among the others; those that found the most similar merge. The
    class token, the first, does not; the order stays.
    """
    keys = F.normalize(keys, dim=2)
    cosines = keys[:, 0::2] @ rearrange(keys[:, 1::2], "b n d -> b d n")
    cosines[:, 0] = -torch.inf
    best, partners = cosines.max(dim=2)
    merges = torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(count, dim=1).indices, True)
    stays = torch.ones(keys.shape[:2], dtype=torch.bool)
    stays[:, 0::2] = ~merges
    places = stays.cumsum(dim=1) - 1
    places[:, 0::2] = torch.where(merges, places[:, 1::2].gather(1, partners), places[:, 0::2])
    return places


def add_up(values: Tensor, targets: Tensor, count: int) -> Tensor:
    """Return the sums (b, n - count, c) of values (b, n, c) that share a target (b, n)."""
    b, n, c = values.shape
    return values.new_zeros(b, n - count, c).scatter_add(1, repeat(targets, "b n -> b n c", c=c), values)


def detail_fusion(coarse: Tensor, spread: Tensor, fine: Tensor, degree: int) -> Tensor:
    """Return the detail fusion (1, c, 32, 32) of two scales, with polynomials of a degree.

    Args:
        coarse: the map of 1×, (1, c, 16, 16).
        spread: the same, interpolated to the grid of the other.
        fine: the map of 2 × 2 tiles, (1, c, 32, 32).
        degree: of the polynomials along each axis of a tile.
    """
    basis = np.polynomial.legendre.legvander((2 * np.arange(GRID) + 1) / GRID - 1, degree)
    project = torch.from_numpy(basis @ np.linalg.pinv(basis)).float()
    lacking = rearrange(spread - fine, "1 c (r h) (q w) -> r q c h w", r=2, q=2)
    fused = fine + rearrange(project @ lacking @ project.T, "r q c h w -> 1 c (r h) (q w)")
    average, coarse_average, fine_average = (
        reduce(each, "1 c h w -> 1 c 1 1", "mean") for each in (fused, coarse, fine)
    )
    return fused - average + (coarse_average + fine_average) / 2


if __name__ == "__main__":
    typer.run(main)
