"""Count the cost of a wrapped model with PyTorch's tools."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from s2wrap.backbones import Backbone
from s2wrap.errors import S2WrapError
from s2wrap.select import check_select
from s2wrap.wrapper import MultiScale


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    Attributes:
        parameters: number of the backbone's weights.
        tiles: number of tiles, where a whole scale is one.
        tokens: spatial and prefix tokens of all tiles.
        peak_tokens: most tokens in one backbone call for a single image, on this device.
        multiply_adds: multiply-adds of the backbone on all tiles: half of the floating-point operations that PyTorch's
            FlopCounterMode counts, in matrix products, convolutions and attention (counted in full). Element-wise
            operations, norms and the wrapper's own resizing and merging are not counted.
        attention: the multiply-adds of attention's two products, queries with keys and weights with values.
        activations: output values of convolutions and linear layers, on all tiles. They predict run time better than
            multiply-adds do ("Fast and Accurate Model Scaling", Dollár et al. 2021, section 3).
    """

    parameters: int
    tiles: int
    tokens: int
    peak_tokens: int
    multiply_adds: int
    attention: int
    activations: int

    @property
    def multiply_adds_attention_once(self) -> int:
        """Multiply-adds with one of attention's products: how the S² paper's tables 5, 6 seem to count some models."""
        return self.multiply_adds - self.attention // 2


@torch.no_grad()
def count_cost(model: MultiScale, image_hw: tuple[int, int] | None = None, select: int | None = None) -> Cost:
    """Return the cost of one image.

    Args:
        model: a wrapped model.
        image_hw: height and width of the image in pixels, which matter unless it is stretched; the backbone's own by
            default.
        select: how many tiles of the finer scales run, as for a call of the model; all if None.

    Raises:
        S2WrapError: `select` of more tiles than there are, or among tiles of several sizes, whose cost depends on the
            image.

    >>> import timm, s2wrap
    >>> count_cost(s2wrap.wrap(timm.create_model("test_vit", num_classes=0), scales=(1, 2))).tiles
    5
    """
    backbone, image_hw = model.backbone, image_hw or model.backbone.image_hw
    tiles = [(scale.tile_hw, len(scale.origins)) for scale in model.plan(image_hw).scales]
    most = model.tile_batch_for(1, backbone.device)
    if select is not None:
        first = tiles.pop(model.order[0])
        select = check_select(select, sum(count for _, count in tiles), image_hw)
        if len(sizes := {tile_hw for tile_hw, _ in tiles}) > 1:
            raise S2WrapError(
                f"select={select} among tiles of {len(sizes)} sizes, which cost more or less with each image; use "
                f"scales that are tiled alike"
            )
        tiles, most = [first, *((tile_hw, select) for tile_hw in sizes)], min(most, max(first[1], select))
    counts = Counter[tuple[int, int]]()
    for tile_hw, count in tiles:
        counts[tile_hw] += count
    prefix = backbone.layouts[-1].num_prefix_tokens
    tokens = {tile_hw: math.prod(backbone.grid_hw(tile_hw, -1)) + prefix for tile_hw in counts}
    batches = {tile_hw: min(count, most) if tile_hw == backbone.image_hw else 1 for tile_hw, count in counts.items()}
    totals = Counter[str]()
    for tile_hw, count in counts.items():
        totals.update({name: count * amount for name, amount in _count_tile(backbone, tile_hw).items()})
    return Cost(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        tiles=sum(counts.values()),
        tokens=sum(count * tokens[tile_hw] for tile_hw, count in counts.items()),
        peak_tokens=max(batches[tile_hw] * tokens[tile_hw] for tile_hw in counts),
        multiply_adds=totals["multiply_adds"],
        attention=totals["attention"],
        activations=totals["activations"],
    )


def _count_tile(backbone: Backbone, tile_hw: tuple[int, int]) -> dict[str, int]:
    """Return the multiply-adds, those of attention, and the activations of one tile."""
    tile = torch.zeros(1, backbone.input.channels, *tile_hw, dtype=backbone.dtype, device=backbone.device)
    # attention as plain matrix products, since the counter does not know every fused kernel
    with (
        backbone.evaluating(),
        FlopCounterMode(display=False) as counter,
        _Activations() as outputs,
        sdpa_kernel(SDPBackend.MATH),
    ):
        backbone(tile)
    products: dict[Any, int] = counter.get_flop_counts()["Global"]
    attention = sum(products.get(product, 0) for product in (torch.ops.aten.bmm, torch.ops.aten.baddbmm))
    return {
        "multiply_adds": counter.get_total_flops() // 2,
        "attention": attention // 2,
        "activations": outputs.count,
    }


class _Activations(TorchDispatchMode):
    """Counts the output values of convolutions and linear layers."""

    LAYERS = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.linear)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in self.LAYERS and isinstance(output, Tensor):
            self.count += output.numel()
        return output
