"""Features → the bodies of answers, as safetensors or JSON."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from s2wrap.errors import S2WrapError
from s2wrap.serve.source import About

SAFETENSORS, JSON = "application/x-safetensors", "application/json"


def parse_names(texts: Sequence[str], about: About) -> list[str]:
    """The names of features that a request asks for: those of the query, with commas between, or the default.

    Raises:
        S2WrapError: a name that is none, or one that the model does not have, with the reason.
    """
    names = [part.strip().replace(" ", "+") for text in texts for part in text.split(",")]  # a query's + is a space
    for name in names:
        if name in about.lacks:
            raise S2WrapError(f"features={name}: {about.lacks[name]}")
        if name not in about.features:
            raise S2WrapError(f"features={name[:40]!r} is unknown; ask for {', '.join(about.features)}")
    return list(dict.fromkeys(names)) or [about.default]


def join_pictures(pictures: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The arrays of all pictures: joined to one of each name, or numbered where their shapes differ.

    >>> one, other = {"spatial": torch.zeros(1, 8, 2, 2)}, {"spatial": torch.zeros(1, 8, 2, 3)}
    >>> [list(join_pictures(pictures)) for pictures in ([one, one], [one, other])]
    [['spatial'], ['spatial/0', 'spatial/1']]
    """
    joined: dict[str, Tensor] = {}
    for name in pictures[0]:
        arrays = [arrays[name] for arrays in pictures]
        if len({array.shape for array in arrays}) == 1:
            joined[name] = torch.cat(arrays)
        else:
            joined |= {f"{name}/{number}": array for number, array in enumerate(arrays)}
    return joined


def write_answer(arrays: dict[str, Tensor], *, as_json: bool) -> bytes:
    """The body of an answer.

    As JSON: for every name the shape, and the values as lists in lists; null for values that are not finite.
    """
    tensors = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
    if not as_json:
        from safetensors.torch import save

        return save(tensors)
    shown = {name: {"shape": list(array.shape), "values": _values(array)} for name, array in tensors.items()}
    return json.dumps(shown, allow_nan=False).encode()


def wants_json(accept: str, chosen: str | None) -> bool:
    """Whether an answer is JSON: as the query chose, or else where the Accept header names it and not safetensors."""
    if chosen is not None:
        return chosen == "json"
    return "json" in accept.lower() and SAFETENSORS not in accept.lower()


def _values(array: Tensor) -> list:
    plain = array.float()
    if bool(plain.isfinite().all()):
        return plain.tolist()
    from s2wrap.standard_json import dump_json

    return json.loads(dump_json(plain.tolist()))
