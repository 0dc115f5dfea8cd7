"""What a wrapped model costs, counted by PyTorch."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2wrap.backbones import Backbone
from s2wrap.wrapper import MultiScale


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    Attributes:
        parameters: weights of the backbone.
        tiles: backbone passes, one a tile; a whole scale is one.
        tokens: spatial and prefix tokens of all tiles.
        peak_tokens: tokens in one backbone call one image at a time, on this device.
        multiply_adds: of the backbone on all tiles: half of the floating-point operations that PyTorch's
            FlopCounterMode counts, in matrix products, convolutions and attention (counted in full). Element-wise
            work, norms and the wrapper's own resizing and merging are not counted.
    """

    parameters: int
    tiles: int
    tokens: int
    peak_tokens: int
    multiply_adds: int


@torch.no_grad()
def count_cost(model: MultiScale, image_hw: tuple[int, int] | None = None) -> Cost:
    """The cost of one image.

    Args:
        model: a wrapped model.
        image_hw: height and width of the image in pixels, which matter unless it is stretched; the backbone's own by
            default.

    >>> import timm, s2wrap
    >>> count_cost(s2wrap.wrap(timm.create_model("test_vit", num_classes=0), scales=(1, 2))).tiles
    5
    """
    backbone = model.backbone
    counts = Counter[tuple[int, int]]()
    for scale in model.plan(image_hw or backbone.image_hw).scales:
        counts[scale.tile_hw] += len(scale.origins)
    prefix = backbone.layouts[-1].num_prefix_tokens
    tokens = {tile_hw: math.prod(backbone.grid_hw(tile_hw, -1)) + prefix for tile_hw in counts}
    room = model.tile_batch_for(1, backbone.device)
    at_once = {tile_hw: min(count, room) if tile_hw == backbone.image_hw else 1 for tile_hw, count in counts.items()}
    return Cost(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        tiles=sum(counts.values()),
        tokens=sum(count * tokens[tile_hw] for tile_hw, count in counts.items()),
        peak_tokens=max(at_once[tile_hw] * tokens[tile_hw] for tile_hw in counts),
        multiply_adds=sum(count * _multiply_adds(backbone, tile_hw) for tile_hw, count in counts.items()),
    )


def _multiply_adds(backbone: Backbone, tile_hw: tuple[int, int]) -> int:
    tile = torch.zeros(1, 3, *tile_hw, dtype=backbone.dtype, device=backbone.device)
    # the counter does not know every fused attention kernel: have attention computed by plain matrix products
    with backbone.evaluating(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backbone(tile)
    return counter.get_total_flops() // 2
