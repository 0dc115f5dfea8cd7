"""Recognise from their names which models are sizes of one family, and which specs make a series."""

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WORDS = (
    r"(?:xx?[-_]?)?(?:small|large)|zepto|atto|femto|pico|nano|mini|tiny|little|medium|base|huge|giant(?:opt)?|"
    r"gigantic|enormous|bigg|gopt|so\d+m|\d+[mb]"
)
_SIZE = re.compile(
    rf"(?:(?<![a-z\d])|(?<=vit))(?P<size>(?:{_WORDS})(?:[-_]plus)?|x{{0,2}}[tsmblhge](?:(?!8|14|16|32)\d+)?)"
    r"(?P<patch>[-_]?(?:patch)?(?:8|14|16|32))?(?![a-z\d])",
    re.IGNORECASE,
)
"""Matches a word or letter for a size (tiny, B, s18, so400m, 7b), with the patch size if it follows (patch16, -32)."""
_NUMBER = re.compile(r"(?<![v\d])\d+(?:x\d+)?")
"""Matches the number of resnet50, lite0 or regnety_016, but not a version such as v2."""
_TRAINING_LENGTH = re.compile(r"_s[\d.]+b_b\d+k")
"""Matches how long an OpenCLIP model was trained, which differs between the sizes of a family."""


@dataclass(frozen=True)
class _Member:
    """A possible member of a series: the spec's index, and its name split into sizes, patches and the text between."""

    index: int
    between: tuple[str, ...]
    sizes: tuple[str, ...]
    patches: tuple[str, ...]


def series(specs: Sequence[str]) -> dict[str, list[int]]:
    """Return the series of three or more specs, as lists of indices by a readable name.

    One kind of series is the sizes of a family at the same scales: names that differ only in words, letters or numbers
    for sizes (`vit_tiny_…`, `ViT-L-14`, `resnet50`, `lite0`). Their patches may differ, as in the paper's ViT-B/16,
    L/16 and H/14, unless a size comes with several. The other kind is one backbone at its own size and at several
    lists of scales with the same suffixes after colons. Options such as `:patch=7` make another backbone of a name.

    Args:
        specs: `FAMILY:NAME[.TAG][:OPTION=VALUE…]@SCALES`; of duplicates the first counts.

    >>> series(["timm:resnet18@1", "timm:resnet34@1", "timm:resnet50@1", "timm:resnet50@1,2"])
    {'resnet* at 1': [0, 1, 2]}
    >>> series(["sample:dinov2_s14@1", "sample:dinov2_s14@1,2", "sample:dinov2_s14@1,2,3"])
    {'dinov2_s14 at more scales': [0, 1, 2]}
    """
    models: dict[Any, dict[Any, int]] = defaultdict(dict)
    families: dict[Any, list[_Member]] = defaultdict(list)
    for index, spec in enumerate(specs):
        model, _, text = spec.partition("@")
        name, *words = re.split(r":(?=\w+=)", model)
        family, _, name = name.partition(":")
        options = "".join(f":{word}" for word in sorted(words))
        scales = tuple(sorted(part.strip() for part in (text or "1").split(",")))
        if scales not in models[family, name + options]:
            models[family, name + options][scales] = index
            member, tag = _member(index, family, name)
            families[family, member.between, tag, options, scales].append(member)
    result: dict[str, list[int]] = {}
    for (family, *_, tag, options, scales), members in families.items():
        for sizes in _distinct_sizes(members):
            title = f"{_title(sizes)}{tag}{options} at {','.join(scales)}"
            result[f"{family}:{title}" if title in result else title] = [member.index for member in sizes]
    for (family, name), indices in models.items():
        for suffix, same_suffix in _more_scales(indices).items():
            title = f"{name} at more scales{suffix}"
            result[f"{family}:{title}" if title in result else title] = same_suffix
    return result


def _more_scales(indices: dict[Any, int]) -> dict[str, list[int]]:
    """Return one backbone's series over lists of scales (three or more with its own size), by the scales' suffixes."""
    several: dict[str, list[int]] = defaultdict(list)
    for scales, index in indices.items():
        if len(scales) > 1:
            words = sorted({word for scale in scales for word in scale.split(":")[1:]})
            several[f" ({', '.join(words)})" if words else ""].append(index)
    plain = [index for scales, index in indices.items() if scales == ("1",)]
    return {suffix: sorted(plain + some) for suffix, some in several.items() if len(plain + some) >= 3}


def _member(index: int, family: str, name: str) -> tuple[_Member, str]:
    """Return the parts of a name, and its tag for the weights, without how long they were trained."""
    head = re.split("/" if family == "open_clip" else r"\.(?=\D)", name, maxsplit=1)[0]
    matches = list(_SIZE.finditer(head)) or list(itertools.islice(_NUMBER.finditer(head), 1))
    edges = [0, *(edge for match in matches for edge in match.span()), len(head)]
    between = tuple(head[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    parts = [match.groupdict() or {"size": match[0], "patch": None} for match in matches]
    sizes, patches = (tuple(part[key] or "" for part in parts) for key in ("size", "patch"))
    return _Member(index, between, sizes, patches), _TRAINING_LENGTH.sub("", name[len(head) :])


def _distinct_sizes(members: list[_Member]) -> list[list[_Member]]:
    """Return lists of three or more members of distinct sizes: one, or one a patch where a size has several patches."""
    lists = [members]
    if len({member.sizes for member in members}) < len(members):
        by_patch = defaultdict(list)
        for member in members:
            by_patch[member.patches].append(member)
        lists = list(by_patch.values())
    distinct = [list({member.sizes: member for member in reversed(some)}.values())[::-1] for some in lists]
    return [some for some in distinct if len(some) >= 3]


def _title(members: list[_Member]) -> str:
    """Return their common name, with a star for sizes that differ and without patches that differ."""
    title = members[0].between[0]
    for position, text in enumerate(members[0].between[1:]):
        sizes, patches = ({getattr(member, key)[position] for member in members} for key in ("sizes", "patches"))
        title += ("*" if len(sizes) > 1 else min(sizes)) + (min(patches) if len(patches) == 1 else "") + text
    return title


def family_of(family: str, name: str) -> Any:
    """Return a value that is equal for names that differ in size only; other patches make another family.

    >>> family_of("timm", "resnet18.a1_in1k") == family_of("timm", "resnet50.a1_in1k")
    True
    """
    member, tag = _member(0, family, name)
    return member.between, member.patches, tag
