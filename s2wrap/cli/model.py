"""Options as flags, made of the classes that hold them: those of a model are the same in every command."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, signature
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from s2wrap.cli.output import with_parameters
from s2wrap.errors import S2WrapError
from s2wrap.options import LoadOptions, option_defaults, option_help, option_types

if TYPE_CHECKING:
    import torch

SPEC_HELP = "FAMILY:NAME@SCALES, such as sample:dinov2_s14@1,2,3 or timm:resnet50.a1_in1k@1,448px."
FILE_ENDINGS = (".onnx", ".plan", ".engine", ".rtx", ".pt2")
"""Of exported files, which some commands take in a model's place."""
NO_FLAGS = ("scales", "processor", "frozen", "console", "pictures", "overwrite", "head", "notes")
"""Options that are no flags: the spec has the scales, the others are objects, no command trains weights, and
a command that takes pictures, or overwrites files, has a flag of its own for that."""
FLAG_NAMES = {
    "whole": "--whole/--tiled",
    "pretrained": "--pretrained/--random-weights",
    "output": "--output-part",  # --output is where a command writes
    "image_hw": "--image",
    "workspace_mib": "--workspace",
}
"""Flags that are not called as their option."""

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
    ['spec', 'options_fit', 'options_policy']
    """
    return option_flags(LoadOptions, "options", defaults, unless="checkpoint")


def option_flags(
    kind: type,
    name: str,
    defaults: Mapping[str, Any] | None = None,
    *,
    unless: str | None = None,
    flag_names: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command a flag for every option of a kind.

    Args:
        kind: a class of options.
        name: of the command's keyword parameter in their place: a dict of those that were given, by name.
        defaults: of this command, where they are not those of the options.
        unless: an option beside which these defaults do not count.
        flag_names: flags that this command calls otherwise.
    """
    defaults = dict(defaults or {})
    called = {option: flag_name(option, kind) for option in option_types(kind) if option not in NO_FLAGS}
    called |= flag_names or {}

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        flags = {option: _parameter(kind, option, flag, f"{name}_", defaults) for option, flag in called.items()}

        @wraps(command)
        def run(**arguments: Any) -> None:
            values = {option: arguments.pop(parameter.name) for option, parameter in flags.items()}
            given = {option: read_option(option, value, kind) for option, value in values.items() if value is not None}
            command(**arguments, **{name: given if unless in given else defaults | given})

        own = [parameter for parameter in signature(command).parameters.values() if parameter.name != name]
        return with_parameters(run, [*own, *flags.values()])

    return decorated


def flag_name(name: str, kind: type = LoadOptions) -> str:
    """The flag of an option, or its two, such as "--whole/--tiled"."""
    flag, switch = name.replace("_", "-"), option_types(kind)[name] is bool
    return FLAG_NAMES.get(name, f"--{flag}/--no-{flag}" if switch else f"--{flag}")


def _parameter(kind: type, name: str, flag: str, prefix: str, defaults: Mapping[str, Any]) -> Parameter:
    """The parameter of a flag: None where it is not given, whatever the option's default is."""
    hint, default = option_types(kind)[name], {**option_defaults(kind), **defaults}[name]
    kinds = set(_kinds(hint)) - {type(None)}
    value = kinds.pop() if len(kinds) == 1 and kinds <= {bool, int} else str
    if isinstance(default, bool):
        default = flag.split("/")[0 if default else 1].removeprefix("--")
    elif isinstance(default, tuple):
        default = ":".join(map(str, default)) or None
    option = typer.Option(
        flag,
        help=option_help(kind)[name],
        metavar=_metavar(hint),
        show_default=False if default is None else str(default),
    )
    return Parameter(prefix + name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[value | None, option])


def _metavar(hint: Any) -> str | None:
    """What may stand behind a flag: the words and forms of numbers; None for a switch or any text."""
    forms: list[str] = []
    for kind in _kinds(hint):
        if get_origin(kind) is Literal:
            forms += get_args(kind)
        elif get_origin(kind) is tuple:
            forms.append("N:N:N" if len(get_args(kind)) == 3 else "NxN" if int in get_args(kind) else "N,N")
        elif get_origin(kind) is Sequence:
            forms.append("NAME,NAME,…" if _is_text(kind) else "N,N,…")
        elif kind in (int, float):
            forms.append("N")
    return "|".join(forms) or None


def read_option(name: str, value: Any, kind: type = LoadOptions) -> Any:
    """The value of an option from its text; what cannot be read stays text, for the option's own error.

    >>> read_option("target_grid", "48x64"), read_option("target_grid", "-1"), read_option("mean", "0.5")
    ((48, 64), -1, (0.5,))
    """
    hint = option_types(kind)[name]
    kinds = _kinds(hint)
    several = [kind for kind in kinds if get_origin(kind) in (tuple, Sequence)]
    if not isinstance(value, str) or not (hint is Any or several):
        return value
    if any(map(_is_text, several)):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    numbers = [_number(part) for part in re.split("[x,:]", value)]
    if None in numbers:
        return value
    single = len(numbers) == 1 and (hint is Any or int in kinds or float in kinds)
    return numbers[0] if single else tuple(numbers)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that an option may have."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_text(kind: Any) -> bool:
    """Whether a type is a sequence of words."""
    (part, *_) = get_args(kind)
    return part is str or get_origin(part) is Literal


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
