"""Whether a backbone computes what it did when it was saved: samples of its features, and versions of libraries."""

import sys
from collections.abc import Mapping
from typing import Any

import torch

from s2wrap.backbones.base import Backbone
from s2wrap.version import installed_version

SAMPLES = 16
"""Values of every feature map that are kept, to be compared after loading."""
TOLERANCE, COARSE_TOLERANCE = 1e-3, 5e-2
"""How far features may be from the saved ones, in units of their size: other machines round otherwise. The coarse one
is for types of less than 32 bits."""


def sample_features(backbone: Backbone) -> list[dict[str, Any]]:
    """What a backbone computes of a fixed image of noise: for every map the shape, the size and some of the values."""
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(1, backbone.input.channels, *backbone.image_hw, generator=generator)
    with backbone.evaluating(), torch.no_grad():
        features = backbone(tile.to(backbone.device, backbone.dtype))
    facts = []
    for tensor in (*features.maps, *features.prefixes):
        values = tensor.detach().cpu().double().nan_to_num().flatten()
        chosen = torch.linspace(0, len(values) - 1, min(SAMPLES, len(values))).long()
        size = float(values.square().mean().sqrt()) if len(values) else 0.0
        facts.append({"shape": list(tensor.shape), "size": size, "values": values[chosen].tolist()})
    return facts


def compare_samples(saved: list[dict[str, Any]], found: list[dict[str, Any]], dtype: torch.dtype) -> str:
    """How features differ from saved ones in more than rounding, in words; empty if they do not."""
    shapes = [[tuple(one["shape"]) for one in facts] for facts in (saved, found)]
    if shapes[0] != shapes[1]:
        return f"their shapes are {shapes[1]}, not {shapes[0]}"
    tolerance = TOLERANCE if torch.finfo(dtype).bits >= 32 else COARSE_TOLERANCE
    for then, now in zip(saved, found, strict=True):
        pairs = zip(then["values"] + [then["size"]], now["values"] + [now["size"]], strict=True)
        error = max(abs(one - other) for one, other in pairs)
        if error > tolerance * then["size"]:
            return f"they differ by {error / (then['size'] or 1):.2g} of their size, more than rounding ({tolerance:g})"
    return ""


def library_versions(backbone: Backbone) -> dict[str, str | None]:
    """The versions of s2wrap, torch, and the library of the backbone's model."""
    versions: dict[str, str | None] = {"s2wrap": installed_version("s2wrap"), "torch": torch.__version__}
    for part in backbone.children():
        library = type(part).__module__.partition(".")[0]
        if library not in (*versions, "__main__"):
            versions[library] = getattr(sys.modules.get(library), "__version__", None)
    return versions


def changed_versions(then: Mapping[str, str | None], now: Mapping[str, str | None]) -> str:
    """Which libraries have another version now, in words."""
    changed = [
        f"{name} was {number}, and is {now.get(name)}" for name, number in then.items() if number != now.get(name)
    ]
    return ", ".join(changed) or "the libraries are the same: give the model that was saved"
