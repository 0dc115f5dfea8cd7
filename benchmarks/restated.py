"""A plain reimplementation of the original S² algorithm, to compare with; it uses nothing of s2wrap."""

import math

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor


def original_forward(
    model,
    images: Tensor,
    scales=None,
    img_sizes=None,
    max_split_size=None,
    resize_output_to_idx=0,
    num_prefix_token=0,
    output_shape="bnc",
    split_forward=False,
) -> Tensor:
    """Return the original's features: cubic resize, split, call a scale or tile, stitch, area pool, concatenate."""
    batch, side = images.shape[0], images.shape[-1]
    sizes = img_sizes or [int(side * scale) for scale in scales or ()]
    split = max_split_size or side
    counts = [math.ceil(size / split) for size in sizes]
    maps, prefixes = [], []
    for size, count in zip(sizes, counts, strict=True):
        resized = F.interpolate(images.float(), size=(size, size), mode="bicubic").to(images.dtype)
        rows = torch.cat(torch.split(resized, size // count, dim=2))
        tiles = torch.cat([torch.cat(torch.split(row, size // count, dim=3)) for row in rows.split(batch)])
        output = torch.cat([model(part) for part in tiles.split(batch)]) if split_forward else model(tiles)
        if output_shape == "bnc":
            prefix, output = output[:, :num_prefix_token], output[:, num_prefix_token:]
            grid = int(output.shape[1] ** 0.5)
            prefixes.append(torch.stack(prefix.split(batch)).mean(dim=0))
            output = output.transpose(1, 2).unflatten(2, (grid, grid))
        stitched = [output[k * batch : (k + 1) * batch] for k in range(count * count)]
        lines = [torch.cat(stitched[r * count : (r + 1) * count], dim=3) for r in range(count)]
        maps.append(torch.cat(lines, dim=2))
    grid = maps[resize_output_to_idx].shape[-1]
    pooled = [F.interpolate(spatial.float(), size=grid, mode="area").to(spatial.dtype) for spatial in maps]
    result = torch.cat(pooled, dim=1)
    if output_shape == "bchw":
        return result
    return torch.cat([torch.cat(prefixes, dim=-1), result.flatten(2).transpose(1, 2)], dim=1)
