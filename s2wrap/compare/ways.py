"""The four ways to spend compute on a backbone, as a spec tells them."""

from collections.abc import Sequence

from s2wrap.backbones import parse_spec

PLAIN, SCALES, LARGER, PATCH = "plain", "several scales", "a larger input", "a smaller patch"


def way_of(spec: str) -> str:
    """How a model of this spec looks at an image: `PLAIN`, `SCALES`, `LARGER` or `PATCH`.

    >>> way_of("sample:dinov2_s14@1,2"), way_of("sample:dinov2_s14@2:whole")
    ('several scales', 'a larger input')
    """
    parsed = parse_spec(spec)
    first, *more = parsed.scales
    if more:
        return SCALES
    if parsed.patch is not None:
        return PATCH
    return PLAIN if first.partition(":")[0] == "1" and parsed.size is None else LARGER


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
