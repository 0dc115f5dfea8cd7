"""Recognise from a spec how a model spends its compute: on scales, a larger input or a smaller patch."""

from collections.abc import Sequence

from s2wrap.backbones import parse_spec

PLAIN, SCALES, PATCH = "plain", "several scales", "a smaller patch"
LARGER, SMALLER = "a larger input", "a smaller input"


def way_of(spec: str) -> str:
    """Return how a model of this spec spends its compute: `PLAIN`, `SCALES`, `LARGER`, `SMALLER` or `PATCH`.

    A size in pixels (`448px`, `:size=448`) counts as a larger input, and any other patch as a smaller one.

    >>> way_of("sample:dinov2_s14@1,2"), way_of("sample:dinov2_s14@2:whole")
    ('several scales', 'a larger input')
    """
    parsed = parse_spec(spec)
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
    parsed = parse_spec(spec)
    return f"{parsed.family}:{parsed.name}"


def short_names(specs: Sequence[str]) -> list[str]:
    """Return the specs, without the family if all have the same.

    >>> short_names(["timm:a@1", "timm:b@1,2"])
    ['a@1', 'b@1,2']
    """
    shared = len({spec.partition(":")[0] for spec in specs}) == 1
    return [spec.partition(":")[2] if shared and ":" in spec else spec for spec in specs]
