"""What a wrapped model costs, counted by PyTorch."""

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
        attention: the part of them that multiplies features with features: queries with keys, and the result with
            values.
        activations: values that convolutions and linear layers put out, on all tiles. They predict run time better
            than multiply-adds do ("Fast and Accurate Model Scaling", Dollár et al. 2021, section 3).
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
        """With one of attention's two products: how the S² paper's tables seem to count some models (tables 5, 6)."""
        return self.multiply_adds - self.attention // 2


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
    work = Counter[str]()
    for tile_hw, count in counts.items():
        work.update({name: count * amount for name, amount in _work(backbone, tile_hw).items()})
    return Cost(
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        tiles=sum(counts.values()),
        tokens=sum(count * tokens[tile_hw] for tile_hw, count in counts.items()),
        peak_tokens=max(at_once[tile_hw] * tokens[tile_hw] for tile_hw in counts),
        multiply_adds=work["multiply_adds"],
        attention=work["attention"],
        activations=work["activations"],
    )


def _work(backbone: Backbone, tile_hw: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds, those of attention, and activations of a tile."""
    tile = torch.zeros(1, 3, *tile_hw, dtype=backbone.dtype, device=backbone.device)
    # the counter does not know every fused attention kernel: have attention computed by plain matrix products
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
    """Counts the values that convolutions and linear layers put out."""

    LAYERS = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.linear)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func.overloadpacket in self.LAYERS and isinstance(answer, Tensor):
            self.count += answer.numel()
        return answer
