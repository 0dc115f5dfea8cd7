"""What a wrapped model costs, counted by PyTorch."""

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2wrap.wrapper import MultiScale


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    Attributes:
        parameters: weights of the backbone.
        tiles: backbone passes, one a tile.
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
def count_cost(model: MultiScale) -> Cost:
    """The cost of one image of the backbone's own size; every size costs the same.

    >>> import timm, s2wrap
    >>> count_cost(s2wrap.wrap(timm.create_model("test_vit", num_classes=0), scales=(1, 2))).tiles
    5
    """
    backbone = model.backbone
    tile = torch.zeros(1, 3, *backbone.image_hw, dtype=backbone.dtype, device=backbone.device)
    # the counter does not know every fused attention kernel: have attention computed by plain matrix products
    with backbone.evaluating(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        backbone(tile)
    tiles = model.plan(backbone.image_hw).num_tiles
    rows, cols = backbone.layout.grid_hw
    tokens = rows * cols + backbone.layout.num_prefix_tokens
    return Cost(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        tiles=tiles,
        tokens=tiles * tokens,
        peak_tokens=min(tiles, model.tile_batch_for(1, backbone.device)) * tokens,
        multiply_adds=tiles * counter.get_total_flops() // 2,
    )
