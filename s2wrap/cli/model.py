"""The options of a model as flags, made of `LoadOptions`, so that every command has the same."""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from s2wrap.errors import S2WrapError
from s2wrap.options import LoadOptions, option_defaults, option_help, option_types

if TYPE_CHECKING:
    import torch

SPEC_HELP = "FAMILY:NAME@SCALES, such as sample:dinov2_s14@1,2,3 or timm:resnet50.a1_in1k@1,448px."
FILE_ENDINGS = (".onnx", ".plan", ".engine", ".rtx")
"""Of exported files, which some commands take in a model's place."""
NO_FLAGS = ("scales", "processor", "frozen")
"""Options that are no flags: the spec has the scales, a processor is an object, and no command trains weights."""
FLAG_NAMES = {
    "whole": "--whole/--tiled",
    "pretrained": "--pretrained/--random-weights",
    "output": "--output-part",  # --output is where a command writes
}
"""Flags that are not called as their option."""
PREFIX = "option_"
"""What the parameters of flags begin with in a command's signature, where a parameter may be called as an option."""

Device = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps.")]
Image = Annotated[str | None, typer.Option(help="Height and width of the images in pixels, as 480x640.")]


def model_options(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command a flag for every option of a model.

    The command has a keyword parameter `options` in their place: a dict of those that were given, by name, for `load`.

    Args:
        **defaults: of this command, where they are not those of `load`; they do not count beside a checkpoint.

    >>> @model_options(pretrained=False)
    ... def command(spec: str, *, options: dict): ...
    >>> list(signature(command).parameters)[:3]
    ['spec', 'option_fit', 'option_policy']
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        flags = {name: _parameter(name, defaults) for name in option_types(LoadOptions) if name not in NO_FLAGS}

        @wraps(command)
        def run(**arguments: Any) -> None:
            values = {name: arguments.pop(PREFIX + name) for name in flags}
            given = {name: read_option(name, value) for name, value in values.items() if value is not None}
            command(**arguments, options=given if "checkpoint" in given else defaults | given)

        own = [parameter for parameter in signature(command).parameters.values() if parameter.name != "options"]
        shown = [*own, *flags.values()]
        run.__signature__ = Signature(shown)  # pyright: ignore[reportAttributeAccessIssue] (functions may have one)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        return run

    return decorated


def flag_name(name: str) -> str:
    """The flag of an option, or its two, such as "--whole/--tiled"."""
    switch = option_types(LoadOptions)[name] is bool
    flag = name.replace("_", "-")
    return FLAG_NAMES.get(name, f"--{flag}/--no-{flag}" if switch else f"--{flag}")


def _parameter(name: str, defaults: dict[str, Any]) -> Parameter:
    """The parameter of a flag: None where it is not given, whatever the option's default is."""
    hint, default = option_types(LoadOptions)[name], {**option_defaults(LoadOptions), **defaults}[name]
    kinds = set(_kinds(hint)) - {type(None)}
    kind = kinds.pop() if len(kinds) == 1 and kinds <= {bool, int} else str
    if isinstance(default, bool):
        default = flag_name(name).split("/")[0 if default else 1].removeprefix("--")
    option = typer.Option(
        flag_name(name),
        help=option_help(LoadOptions)[name],
        metavar=_metavar(hint),
        show_default=False if default is None else str(default),
    )
    return Parameter(PREFIX + name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option])


def _metavar(hint: Any) -> str | None:
    """What may stand behind a flag: the words and forms of numbers; None for a switch or any text."""
    forms: list[str] = []
    for kind in _kinds(hint):
        if get_origin(kind) is Literal:
            forms += get_args(kind)
        elif get_origin(kind) is tuple:
            forms.append("NxN" if int in get_args(kind) else "N,N")
        elif get_origin(kind) is Sequence:
            forms.append("N,N,…")
        elif kind in (int, float):
            forms.append("N")
    return "|".join(forms) or None


def read_option(name: str, value: Any) -> Any:
    """The value of an option from its text; what cannot be read stays text, for the option's own error.

    >>> read_option("target_grid", "48x64"), read_option("target_grid", "-1"), read_option("mean", "0.5")
    ((48, 64), -1, (0.5,))
    """
    hint = option_types(LoadOptions)[name]
    kinds = _kinds(hint)
    if not isinstance(value, str) or not (hint is Any or any(get_origin(kind) in (tuple, Sequence) for kind in kinds)):
        return value
    numbers = [_number(part) for part in re.split("[x,]", value)]
    if None in numbers:
        return value
    single = len(numbers) == 1 and (hint is Any or int in kinds or float in kinds)
    return numbers[0] if single else tuple(numbers)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that an option may have."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _number(text: str) -> float | None:
    """The number in a text, an int where it is one; None where there is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def image_hw(text: str) -> tuple[int, int]:
    """Height and width from their text."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise S2WrapError(f"--image {text!r} is no size; write height and width as 480x640")
    return int(height), int(width)


def device(name: str) -> "torch.device":
    """A device that is there."""
    import torch

    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise S2WrapError(f"device {name!r} is unknown; try cpu, cuda, cuda:1 or mps")
    try:
        place = torch.device(name)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise S2WrapError(f"device {name!r} cannot be used: {str(error).partition(chr(10))[0]}; try cpu") from error
    return place
