"""The parts of what a model returns: which of them hold features."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor

from s2wrap.backbones.probe import describe
from s2wrap.errors import S2WrapError


def parts_of(answer: Any) -> dict[Any, Any]:
    """The parts of a dict, tuple, list or dataclass by key, index or field; empty for anything else."""
    if isinstance(answer, Mapping):  # dicts, and the outputs of transformers
        return dict(answer)
    if hasattr(answer, "_asdict"):
        return answer._asdict()
    if isinstance(answer, tuple | list):
        return dict(enumerate(answer)) | ({-1: answer[-1]} if answer else {})
    return dict(vars(answer)) if is_dataclass(answer) else {}


def only_features(parts: dict[Any, Any], returned: str) -> Any:
    """The key of the only part that can hold features: tokens or a map. Raises S2WrapError for several, or none."""
    shapes = {key: describe(part) for key, part in parts.items() if key != -1}
    candidates = _candidates(parts)
    if len(candidates) != 1:
        seen = " of " + ", ".join(f"{key!r}: {shape}" for key, shape in shapes.items()) if shapes else ""
        remedy = "wrap a model that returns features"
        if candidates:
            remedy = f"pass output={candidates[0]!r}, or another of these, or layers=(0, 1) for several of them"
        raise S2WrapError(
            f"{returned}{seen}; s2wrap needs one tensor (b, n, c), (b, c, h, w) or (b, h, w, c): {remedy}"
        )
    return candidates[0]


def numbered_maps(parts: dict[Any, Any], layers: Sequence[int], returned: str) -> list[Any]:
    """The keys of the parts that layers count: those that can hold features, in their order."""
    candidates = _candidates(parts)
    count = len(candidates)
    if not all(-count <= layer < count for layer in layers):
        raise S2WrapError(f"layers={tuple(layers)}, but {returned} of {count} maps; use 0 to {count - 1}")
    return [candidates[layer] for layer in layers]


def _candidates(parts: dict[Any, Any]) -> list[Any]:
    """The keys of parts that can hold features: tokens or maps."""
    return [
        key
        for key, part in parts.items()
        if key != -1 and isinstance(part, Tensor) and part.is_floating_point() and part.ndim in (3, 4)
    ]
