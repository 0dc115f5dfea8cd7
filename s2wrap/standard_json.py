"""Results as standard JSON."""

import json
import math
from collections.abc import Mapping
from typing import Any


def dump_json(value: object) -> str:
    """The JSON text of a value of containers and numbers, with null for numbers that are not finite.

    >>> print(dump_json([1.5, float("nan")]))
    [
      1.5,
      null
    ]
    """
    return json.dumps(_to_standard(value), indent=2, allow_nan=False)


def _to_standard(value: Any) -> Any:
    """A value of plain containers and Python numbers, with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _to_standard(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_standard(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
