"""What a scale is: parsed once from a number or text, then resolved for one backbone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal, get_args

from s2wrap.errors import S2WrapError
from s2wrap.policies import POLICIES, Pair, Policy, PolicyName, policy_name

Fit = Literal["stretch", "aspect", "pad"]

MAX_SCALE = 32
"""The largest scale: at 32 times a 224-pixel backbone an image already makes 1,024 tiles."""
WHOLE_WORDS = {"whole": True, "tiled": False}
"""What a scale's text says for `whole`."""


@dataclass(frozen=True)
class Scale:
    """One look at the image, where a number does not say enough. What is None, the model's own options decide.

    Args:
        size: a multiple of the backbone's own input size (1 is the size it was trained at), up to 32, as a number or
            text; or a side in pixels as text: "448px".
        fit: "stretch", "aspect" or "pad".
        whole: True: one backbone call on the whole resized image; False: tiles of the backbone's own size.
        policy: how "aspect" chooses the rows and columns of tiles: "closest", "nvila", "internvl", "anyres" or a
            function (`s2wrap.policies`). With "pad", the image is fitted into that grid.
        max_tiles: the most tiles that the policy may choose. Default: the tiles of the square scale, size².
        phases: how often the image is looked at down and across, each time a part of a patch further on: 2 means four
            looks, and a grid twice as fine.

    Attributes:
        number: the number in `size`.
        in_pixels: whether it is a side in pixels rather than a multiple.

    Raises:
        S2WrapError: a size that is no number, or a word that does not exist.
    """

    __no_type_check__ = True  # run-time type checkers leave it alone: its own errors say what would work

    size: float | str
    fit: Fit | None = None
    whole: bool | None = None
    policy: PolicyName | Policy | None = None
    max_tiles: int | None = None
    phases: int | None = None
    number: float = field(init=False, repr=False, compare=False)
    in_pixels: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        number, in_pixels = _read_size(self.size)
        check_word("fit", self.fit, (*get_args(Fit), None))
        check_word("whole", self.whole, (True, False, None))
        check_policy(self.policy)
        max_tiles = whole_number(self.max_tiles)
        if self.max_tiles is not None and (max_tiles is None or max_tiles < 1):
            raise S2WrapError(f"max_tiles={self.max_tiles!r} is no number of tiles; use 1 or more")
        phases = None if self.phases is None else check_phases(self.phases)
        size = self.size if in_pixels else int(number) if number.is_integer() else number
        for name, value in (
            ("size", size),
            ("number", number),
            ("in_pixels", in_pixels),
            ("max_tiles", max_tiles),
            ("phases", phases),
        ):
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        whole = next((word for word, value in WHOLE_WORDS.items() if value is self.whole), None)
        phases = None if self.phases is None else f"phases={self.phases}"
        return ":".join(word for word in (str(self.size), self.fit, whole, phases) if word)

    def to_json(self) -> dict[str, Any]:
        """The arguments that make this scale again, as JSON keeps them; S2WrapError for a function of the caller.

        >>> Scale("448px", policy="nvila").to_json()
        {'size': '448px', 'fit': None, 'whole': None, 'policy': 'nvila', 'max_tiles': None, 'phases': None}
        """
        return {
            "size": self.size if isinstance(self.size, str | int) else self.number,
            "fit": self.fit,
            "whole": self.whole,
            "policy": None if self.policy is None else policy_name(self.policy),
            "max_tiles": self.max_tiles,
            "phases": self.phases,
        }

    def box_hw(self, tile_hw: Pair) -> Pair:
        """Height and width in pixels of the box that the scale resizes an image to.

        Args:
            tile_hw: the backbone's own input size in pixels.

        Raises:
            S2WrapError: a scale of no pixel, or larger than 32 tiles a side.

        >>> Scale(2).box_hw((224, 224)), Scale("336px").box_hw((224, 224))
        ((448, 448), (336, 336))
        """
        height, width = tile_hw
        if self.in_pixels and height != width:
            raise S2WrapError(
                f"scale {self.size!r} gives one side, but the backbone takes {height}×{width} pixels; use a multiple "
                f"such as 2"
            )
        multiple = self.number / height if self.in_pixels else self.number
        if multiple * min(tile_hw) < 1:
            raise S2WrapError(f"scale {self.size!r} leaves no pixel of the image; use a scale above 0, such as 0.5")
        if multiple > MAX_SCALE:
            hint = "" if self.in_pixels else f"; for a side of {self.number:.0f} pixels write '{self.number:.0f}px'"
            raise S2WrapError(
                f"scale {self.size!r} makes an image {multiple:g} times the backbone's {height}×{width} pixels; the "
                f"largest scale is {MAX_SCALE}{hint}"
            )
        return math.floor(multiple * height + 0.5), math.floor(multiple * width + 0.5)


@dataclass(frozen=True)
class ResolvedScale:
    """A scale for one backbone, with everything decided.

    Attributes:
        scale: as it was asked for.
        box_hw: height and width in pixels of the box that an image is resized to.
        fit: how images meet that box.
        whole: whether the resized image is seen in one call, without tiles.
        policy: what chooses the rows and columns of tiles; None where nothing has to be chosen.
        phases: how often the image is looked at down and across, each time a part of a patch further on.
    """

    scale: Scale
    box_hw: Pair
    fit: Fit
    whole: bool
    policy: PolicyName | Policy | None
    phases: int = 1

    def as_scale(self) -> Scale:
        """A scale that resolves to this one whatever the model's options are."""
        phases = None if self.phases == 1 else self.phases
        return Scale(self.scale.size, self.fit, self.whole, self.policy, self.scale.max_tiles, phases)

    def __str__(self) -> str:
        return str(self.as_scale())


def parse_scale(scale: Any) -> Scale:
    """A scale as users write it: a `Scale`, a number, or text with options after colons.

    Raises:
        S2WrapError: a word that does not exist, or two that exclude each other.

    >>> str(parse_scale("3:whole:aspect"))
    '3:aspect:whole'
    """
    if not isinstance(scale, str):
        return scale if isinstance(scale, Scale) else Scale(scale)
    size, *words = (word.strip() for word in scale.split(":"))
    options: dict[str, Any] = {}
    for word in words:
        if word in WHOLE_WORDS:
            name, value = "whole", WHOLE_WORDS[word]
        elif word in get_args(Fit):
            name, value = "fit", word
        elif word.startswith("phases="):
            name, value = "phases", check_phases(_number_or_text(word.removeprefix("phases=")))
        else:
            known = ", ".join([*WHOLE_WORDS, *get_args(Fit), "phases=2"])
            raise S2WrapError(f"scale {scale!r}: {word!r} is unknown; after the size write {known}")
        if options.get(name, value) != value:
            said = [other for other in words if _option_of(other) == name]
            raise S2WrapError(f"scale {scale!r} says {' and '.join(said)}; use one of them")
        options[name] = value
    return Scale(size, **options)


def parse_scales(scales: object) -> tuple[Scale, ...]:
    """The scales of a model; S2WrapError for what is no sequence of scales."""
    if not isinstance(scales, Sequence) or isinstance(scales, str) or not scales:
        raise S2WrapError(f"scales={scales!r} names no scales; use a sequence such as (1, 2, 3)")
    return tuple(map(parse_scale, scales))


def check_word(name: str, value: object, words: Sequence[object]) -> None:
    """Raise S2WrapError for a value that is not one of the words of an option."""
    if not any(type(value) is type(word) and value == word for word in words):
        known = ", ".join(str(word) for word in words if word is not None)
        raise S2WrapError(f"{name}={value!r} is unknown; use one of {known}")


def check_policy(policy: object) -> None:
    """Raise S2WrapError for what is neither a function nor the name of a policy."""
    if policy is not None and not callable(policy) and not (isinstance(policy, str) and policy in POLICIES):
        raise S2WrapError(f"policy={policy!r} is unknown; use a function or one of {', '.join(POLICIES)}")


def check_phases(phases: object) -> int:
    """A number of phases. Raises S2WrapError for what is none."""
    number = whole_number(phases)
    if number is None or number < 1:
        raise S2WrapError(f"phases={phases!r} is no number of looks; use 1, or 2 for half a patch from one to the next")
    return number


def _number_or_text(text: str) -> Any:
    return int(text) if text.isdecimal() else text


def _option_of(word: str) -> str:
    """The option that a word of a scale's text stands for."""
    return "whole" if word in WHOLE_WORDS else "phases" if word.startswith("phases=") else "fit"


def whole_number(value: Any) -> int | None:
    """A whole number of any library as an int; None for what is none, such as 1.5 or True."""
    if isinstance(value, bool):
        return None
    try:
        return index(value)
    except TypeError:
        return None


def whole_pair(values: object) -> Pair | None:
    """Two whole numbers; None for anything else."""
    numbers = [whole_number(value) for value in values] if isinstance(values, tuple | list) else []
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        return None
    return numbers[0], numbers[1]


def _read_size(size: Any) -> tuple[float, bool]:
    """The number in a scale's size, and whether it is a side in pixels ("448px") rather than a multiple."""
    in_pixels = isinstance(size, str) and size.strip().endswith("px")
    try:
        value = float(size.strip().removesuffix("px") if isinstance(size, str) else size)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or isinstance(size, bool):
        raise S2WrapError(
            f"scale {size!r} is no scale; use a multiple of the backbone's own size such as 2, or a side in pixels "
            f"such as '448px'"
        )
    return value, in_pixels
