"""Recognise from their names which models are sizes of one family."""

import itertools
import re
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


def family_of(family: str, name: str) -> tuple[Any, ...]:
    """Return a value that is equal for names that differ in size only; other patches make another family.

    >>> family_of("timm", "resnet18.a1_in1k") == family_of("timm", "resnet50.a1_in1k")
    True
    """
    head = re.split("/" if family == "open_clip" else r"\.(?=\D)", name, maxsplit=1)[0]
    matches = list(_SIZE.finditer(head)) or list(itertools.islice(_NUMBER.finditer(head), 1))
    edges = [0, *(edge for match in matches for edge in match.span()), len(head)]
    between = [head[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    patches = [match.groupdict().get("patch") or "" for match in matches]
    return *between, *patches, _TRAINING_LENGTH.sub("", name[len(head) :])
