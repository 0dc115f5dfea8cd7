"""Sizes of a family, as names tell them, and which specs make a series."""

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
"""A word or letter for a size (tiny, B, s18, so400m, 7b), with the side of patches if it follows (patch16, -32)."""
_NUMBER = re.compile(r"(?<![v\d])\d+(?:x\d+)?")
"""The number of resnet50, lite0 or regnety_016; not that of a version, v2."""
_TRAINED = re.compile(r"_s[\d.]+b_b\d+k")
"""How long OpenCLIP's models were trained, which differs among the sizes of a family."""


@dataclass(frozen=True)
class _Member:
    """A spec of a possible series: its index; of its name what is around the sizes, the sizes, and their patches."""

    index: int
    around: tuple[str, ...]
    sizes: tuple[str, ...]
    patches: tuple[str, ...]


def series(specs: Sequence[str]) -> dict[str, list[int]]:
    """Which specs make a series of three or more, by a readable name: their indices.

    Sizes of a family at the same scales: names alike but for words, letters or numbers for sizes (`vit_tiny_…`,
    `ViT-L-14`, `resnet50`, `lite0`). Their patches may differ, as those of the paper's ViT-B/16, L/16 and H/14 do,
    unless a size comes with several. And one backbone at its own size and at several lists of scales, of which all say
    the same after colons. Options such as `:patch=7` make another backbone of a name.

    Args:
        specs: `FAMILY:NAME[.TAG][:OPTION=VALUE…]@SCALES`; of two that are the same the first counts.

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
            families[family, member.around, tag, options, scales].append(member)
    found: dict[str, list[int]] = {}
    for (family, *_, tag, options, scales), members in families.items():
        for some in _sizes_once(members):
            title = f"{_title(some)}{tag}{options} at {','.join(scales)}"
            found[f"{family}:{title}" if title in found else title] = [member.index for member in some]
    for (family, name), indices in models.items():
        for way, some in _more_scales(indices).items():
            title = f"{name} at more scales{way}"
            found[f"{family}:{title}" if title in found else title] = some
    return found


def _more_scales(indices: dict[Any, int]) -> dict[str, list[int]]:
    """One backbone at its own size and at three or more lists of scales in all, by what those say after colons."""
    several: dict[str, list[int]] = defaultdict(list)
    for scales, index in indices.items():
        if len(scales) > 1:
            ways = sorted({word for scale in scales for word in scale.split(":")[1:]})
            several[f" ({', '.join(ways)})" if ways else ""].append(index)
    plain = [index for scales, index in indices.items() if scales == ("1",)]
    return {way: sorted(plain + some) for way, some in several.items() if len(plain + some) >= 3}


def _member(index: int, family: str, name: str) -> tuple[_Member, str]:
    """The parts of a name, and its tag: what weights these are, without how long they were trained."""
    head = re.split("/" if family == "open_clip" else r"\.(?=\D)", name, maxsplit=1)[0]
    places = list(_SIZE.finditer(head)) or list(itertools.islice(_NUMBER.finditer(head), 1))
    edges = [0, *(edge for place in places for edge in place.span()), len(head)]
    around = tuple(head[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    parts = [place.groupdict() or {"size": place[0], "patch": None} for place in places]
    sizes, patches = (tuple(part[key] or "" for part in parts) for key in ("size", "patch"))
    return _Member(index, around, sizes, patches), _TRAINED.sub("", name[len(head) :])


def _sizes_once(members: list[_Member]) -> list[list[_Member]]:
    """Lists of three or more in which no size comes twice: where one has several patches, a list for each patch."""
    lists = [members]
    if len({member.sizes for member in members}) < len(members):
        by_patch = defaultdict(list)
        for member in members:
            by_patch[member.patches].append(member)
        lists = list(by_patch.values())
    once = [list({member.sizes: member for member in reversed(some)}.values())[::-1] for some in lists]
    return [some for some in once if len(some) >= 3]


def _title(members: list[_Member]) -> str:
    """Their name, with a star for sizes that differ; patches that differ are left out."""
    title = members[0].around[0]
    for place, rest in enumerate(members[0].around[1:]):
        sizes, patches = ({getattr(member, key)[place] for member in members} for key in ("sizes", "patches"))
        title += ("*" if len(sizes) > 1 else min(sizes)) + (min(patches) if len(patches) == 1 else "") + rest
    return title


def family_of(family: str, name: str) -> Any:
    """What the names of a family of sizes share, to be compared; patches are told apart.

    >>> family_of("timm", "resnet18.a1_in1k") == family_of("timm", "resnet50.a1_in1k")
    True
    """
    member, tag = _member(0, family, name)
    return member.around, member.patches, tag
