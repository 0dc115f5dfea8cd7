"""PyTorch's own attention module as plain layers, which can be watched, quantised and exported like any others."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from einops import rearrange
from torch import Tensor, nn

NEAR = 1e-4
"""How near the plain layers must come to the module that they replace, relative to its largest value."""
PARAMETERS = (
    *("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal"),
)
"""Of a call, in their order."""
LOOKS_INSIDE = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that read the weights of their attention themselves, which must stay what it is."""


class SelfAttention(nn.Module):
    """The self-attention of an `nn.MultiheadAttention`, by two linear layers and a fused product.

    That module hides its projections and scores: no hook sees their values, and no layer of it can be quantised.
    """

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.heads, self.batch_first = attention.num_heads, attention.batch_first
        self.in_proj = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(self, *inputs: object, **named: object) -> tuple[Tensor, None]:
        """What the module answers to a plain call: tokens of the shape of `query`, and no weights."""
        if not _is_plain(call := _call(inputs, named)):
            raise ValueError("an attention is called in two ways, of which one is no plain self-attention")
        query = call["query"]
        tokens = query if self.batch_first else query.transpose(0, 1)
        query, key, value = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in self.in_proj(tokens).chunk(3, dim=2)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        output = self.out_proj(rearrange(attended, "b h n d -> b n (h d)"))
        return output if self.batch_first else output.transpose(0, 1), None


@torch.no_grad()
def open_attention(model: nn.Module, run: Callable[[], Any]) -> None:
    """Replace every `nn.MultiheadAttention` whose calls are plain self-attention, where the layers answer the same.

    Args:
        model: on the CPU, in float32; changed in place.
        run: calls the model on an example.
    """
    kept = {id(each.self_attn) for each in model.modules() if isinstance(each, LOOKS_INSIDE)}
    attentions = {
        name: each
        for name, each in model.named_modules()
        if isinstance(each, nn.MultiheadAttention) and id(each) not in kept
    }
    if not attentions:
        return
    calls: dict[str, list[tuple[Tensor, Tensor | None]]] = {}

    def keep(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], answer: Any, *, name: str) -> None:
        call = _call(inputs, named)
        calls.setdefault(name, []).append((call["query"], answer[0] if _is_plain(call) else None))

    handles = [
        module.register_forward_hook(partial(keep, name=name), with_kwargs=True) for name, module in attentions.items()
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for name, seen in calls.items():
        module = attentions[name]
        plain = module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn
        if not plain or any(answer is None for _, answer in seen):
            continue
        layers = SelfAttention(module).eval()
        answers = [(layers(tokens, tokens, tokens, need_weights=False)[0], answer) for tokens, answer in seen]
        if all(answer is not None and _near(found, answer) for found, answer in answers):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layers)


def _call(inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """What an attention was called with, by name."""
    return dict(zip(PARAMETERS, inputs, strict=False)) | named


def _is_plain(call: dict[str, Any]) -> bool:
    """Whether a call is self-attention, without masks or an answer's weights."""
    same = call["query"] is call["key"] is call["value"]
    masks = (call.get(name) for name in ("key_padding_mask", "attn_mask"))
    asks = call.get("need_weights", True) or call.get("is_causal", False)
    return same and not asks and all(mask is None for mask in masks)


def _near(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= NEAR * float(expected.abs().max())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
