"""Entries for `torch.hub.load`: `s2wrap`, which is `s2wrap.load`, and `wrap`."""

from s2wrap import load as s2wrap  # noqa: F401
from s2wrap import wrap  # noqa: F401

dependencies = ["torch", "timm", "open_clip", "einops", "jaxtyping", "lazy_loader", "safetensors"]
