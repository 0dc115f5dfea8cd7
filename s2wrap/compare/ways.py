"""Read the name of a compared model: its spec, its own options, and how it spends its compute."""

from collections.abc import Sequence
from typing import Any

from s2wrap.backbones import parse_spec
from s2wrap.errors import S2WrapError

PLAIN, SCALES, PATCH = "plain", "several scales", "a smaller patch"
LARGER, SMALLER = "a larger input", "a smaller input"


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """Return the spec of a compared model, and the options that are its own: "SPEC fuse=detail overlap=5".

    >>> split_name("timm:test_vit@1,2 fuse=weighted weights=0.5,0.5")
    ('timm:test_vit@1,2', {'fuse': 'weighted', 'weights': (0.5, 0.5)})
    """
    spec, *words = name.split()
    if wrong := [word for word in words if "=" not in word]:
        raise S2WrapError(f"{name!r}: {wrong[0]!r} is no option; write options behind the spec: SPEC fuse=detail")
    options = {key: _value(text) for key, _, text in (word.partition("=") for word in words)}
    if len(options) < len(words):
        raise S2WrapError(f"{name!r} names an option twice; give each once")
    return spec, options


def _value(text: str) -> Any:
    """Return a number, some numbers, True, False, or the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        numbers = [float(part) if "." in part else int(part) for part in text.split(",")]
    except ValueError:
        return text
    return tuple(numbers) if len(numbers) > 1 else numbers[0]


def way_of(spec: str) -> str:
    """Return how a model of this spec spends its compute: `PLAIN`, `SCALES`, `LARGER`, `SMALLER` or `PATCH`.

    A size in pixels (`448px`, `:size=448`) counts as a larger input, and any other patch as a smaller one.

    >>> way_of("sample:dinov2_s14@1,2"), way_of("sample:dinov2_s14@2:whole")
    ('several scales', 'a larger input')
    """
    parsed = parse_spec(split_name(spec)[0])
    first, *more = parsed.scales
    if more:
        return SCALES
    if parsed.patch is not None:
        return PATCH
    if first.in_pixels or parsed.size is not None:
        return LARGER
    return PLAIN if first.number == 1 else LARGER if first.number > 1 else SMALLER


def weights_of(spec: str) -> str:
    """Return the name of a spec's trained weights, `FAMILY:NAME`, without options and scales."""
    parsed = parse_spec(split_name(spec)[0])
    return f"{parsed.family}:{parsed.name}"


def short_names(specs: Sequence[str]) -> list[str]:
    """Return the specs, without the family if all have the same.

    >>> short_names(["timm:a@1", "timm:b@1,2"])
    ['a@1', 'b@1,2']
    """
    shared = len({spec.partition(":")[0] for spec in specs}) == 1
    return [spec.partition(":")[2] if shared and ":" in spec else spec for spec in specs]
