"""The four ways to spend compute on a backbone, as a spec tells them."""

from collections.abc import Sequence

from s2wrap.backbones import parse_spec

PLAIN, SCALES, PATCH = "plain", "several scales", "a smaller patch"
LARGER, SMALLER = "a larger input", "a smaller input"


def way_of(spec: str) -> str:
    """How a model of this spec looks at an image: `PLAIN`, `SCALES`, `LARGER`, `SMALLER` or `PATCH`.

    A size in pixels (`448px`, `:size=448`) and any other patch are taken for a larger input and a smaller patch.

    >>> way_of("sample:dinov2_s14@1,2"), way_of("sample:dinov2_s14@2:whole")
    ('several scales', 'a larger input')
    """
    parsed = parse_spec(spec)
    first, *more = parsed.scales
    if more:
        return SCALES
    if parsed.patch is not None:
        return PATCH
    size = first.partition(":")[0]
    if size.endswith("px") or parsed.size is not None:
        return LARGER
    return PLAIN if float(size) == 1 else LARGER if float(size) > 1 else SMALLER


def weights_of(spec: str) -> str:
    """The trained weights that a spec names: what stays the same whatever the way."""
    parsed = parse_spec(spec)
    return f"{parsed.family}:{parsed.name}"


def short_names(specs: Sequence[str]) -> list[str]:
    """The specs, without their family where all are of one.

    >>> short_names(["timm:a@1", "timm:b@1,2"])
    ['a@1', 'b@1,2']
    """
    shared = len({spec.partition(":")[0] for spec in specs}) == 1
    return [spec.partition(":")[2] if shared and ":" in spec else spec for spec in specs]
