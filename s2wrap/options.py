"""Every option of a wrapped model, once: its type, its words, its default, and a sentence of help.

`Options` says how images are looked at, `BackboneOptions` what a caller knows of a backbone, `LoadOptions` how `load`
makes one. `wrap` and `load` take their fields as keyword arguments (`takes_options`), the command line makes its flags
of them, and manifests, stores and saved models keep them.
"""

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from s2wrap.errors import S2WrapError
from s2wrap.policies import Policy, PolicyName, policy_name
from s2wrap.scales import Fit, Scale, check_phases, check_policy, check_word, parse_scales, whole_number, whole_pair

Fusion = Literal["concat", "mean", "sum", "max", "weighted", "detail", "pyramid", "auto"]
Norm = Literal["none", "l2", "layer", "std"]
Blend = Literal["smooth", "trim", "constant", "triangular", "gaussian"]
Prefix = Literal["area", "base", "drop"]
GridWord = Literal["coarsest", "finest"]
Interpolation = Literal["bicubic", "bilinear"]
Order = Literal["bnc", "bchw", "bhwc"]

MAX_CELLS = 4096
"""The most rows or columns of a result."""
MAX_SIDE = 2**15
"""The largest side of a backbone's input in pixels."""

P = ParamSpec("P")
Model = TypeVar("Model")
Group = TypeVar("Group", bound="Checked")


class Checked:
    """A dataclass of options whose words are checked when it is made."""

    __no_type_check__ = True  # run-time type checkers leave it alone: its own errors say what would work

    def __post_init__(self) -> None:
        for name, hint in option_types(type(self)).items():
            if words := option_words(hint):
                check_word(name, getattr(self, name), words)

    def _set(self, **values: Any) -> None:
        """Replace fields by their checked values, while the frozen object is made."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def changed(self) -> dict[str, Any]:
        """The options that are not at their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)  # pyright: ignore[reportArgumentType] (subclasses are dataclasses)
            if getattr(self, field.name) != field.default
        }

    def to_json(self) -> dict[str, Any]:
        """Every option by name as JSON keeps it; `from_json` makes equal options of it.

        A `processor` is left out: what it said is in the model's `input`. A policy is kept by its name.

        Raises:
            S2WrapError: a policy that is a function of the caller's, or another value that JSON cannot keep.
        """
        values = {name: getattr(self, name) for name in option_types(type(self)) if name != "processor"}
        return {name: _json_value(name, value) for name, value in values.items()}

    @classmethod
    def from_json(cls: type[Group], saved: Mapping[str, Any]) -> Group:
        """The options that `to_json` wrote. Raises S2WrapError for names that are no options, and impossible values."""
        values = as_tuples(dict(saved))
        if "scales" in values:
            values["scales"] = tuple(Scale(**scale) for scale in values["scales"])
        return make_options(cls, f"{cls.__name__}.from_json()", values)


@dataclass(frozen=True)
class Options(Checked):
    """How a wrapped model looks at images: everything but the backbone.

    Raises:
        S2WrapError: a word or number that cannot be, or an option that has no effect beside the others.

    >>> Options((1, 2), fuse="detail").result_grid
    'finest'
    """

    scales: Annotated[
        Sequence[float | str | Scale],
        "Multiples of the backbone's own input size, sides such as '448px', or Scales; up to 32 times that size.",
    ] = (1, 2)
    _: KW_ONLY
    fit: Annotated[
        Fit,
        "How images meet the scales: stretch (as in the paper), aspect (rows and columns of tiles that suit the "
        "image's shape) or pad (aspect kept, filled up with the mean colour).",
    ] = "stretch"
    policy: Annotated[
        PolicyName | Policy | None,
        "How fit aspect chooses rows and columns of tiles: closest (default), nvila, anyres, internvl, or a function; "
        "with fit pad the image is fitted into that grid.",
    ] = None
    whole: Annotated[
        bool | None,
        "Scales in one pass each, or in tiles (default: whole for convolutional networks, tiles for others).",
    ] = None
    overlap: Annotated[int, "Tokens that neighbouring tiles share, at least."] = 0
    blend: Annotated[Blend, "How tiles share what they overlap on."] = "smooth"
    phases: Annotated[
        int,
        "How often each scale is looked at down and across, each time a part of a patch further on: 2 makes four times "
        "the tiles and grids twice as fine. One scale alone: '1:phases=2'.",
    ] = 1
    fuse: Annotated[
        Fusion,
        "How scales are fused: concat (on channels, as in the paper), mean, sum, max, weighted, detail (coarse scales "
        "with the detail of finer ones, no tile borders), pyramid (each scale on its own grid) or auto (the fusion, "
        "norm and grid that won on tasks for such backbones).",
    ] = "concat"
    weights: Annotated[Sequence[float] | None, "For fuse weighted: one factor a scale, such as 0.5,0.3,0.2."] = None
    norm: Annotated[Norm, "The scales on one footing before they are fused: each token or map normalised."] = "none"
    target_grid: Annotated[
        GridWord | int | tuple[int, int] | None,
        "Rows and columns of the result: coarsest (default), finest (default of fuse detail), the index of a scale, "
        "or 48x64.",
    ] = None
    prefix: Annotated[
        Prefix, "Prefix tokens (CLS, registers): area (averaged over tiles), base (of the smallest scale) or drop."
    ] = "area"
    join_layers: Annotated[bool, "Join several layers on channels; else features.maps has one a layer."] = True
    tile_batch: Annotated[
        int | None, "The most tiles in one backbone call (default: 4 on a CPU, else 32 or as many as images)."
    ] = None
    frozen: Annotated[
        bool,
        "Switch off the gradients of the weights, and stay in evaluation mode; PEFT's adapters that train still do.",
    ] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        scales = parse_scales(self.scales)
        check_policy(self.policy)
        overlap, tile_batch = whole_number(self.overlap), whole_number(self.tile_batch)
        if overlap is None or overlap < 0:
            raise S2WrapError(f"overlap={self.overlap!r} is no number of tokens; use 0 or more")
        if self.tile_batch is not None and (tile_batch is None or tile_batch < 1):
            raise S2WrapError(f"tile_batch={self.tile_batch!r} is no number of tiles; use 1 or more, or None")
        self._set(phases=check_phases(self.phases))
        self._set(scales=scales, overlap=overlap, tile_batch=tile_batch, weights=self._weights(len(scales)))
        if self.fuse == "pyramid" and self.target_grid is not None:
            raise S2WrapError(
                f"target_grid={self.target_grid!r} with fuse='pyramid', which leaves each scale on its own grid; use "
                f"target_grid=None, or another fusion"
            )
        if self.fuse == "auto" and self.norm != "none":
            raise S2WrapError(f"norm={self.norm!r} with fuse='auto', which chooses the norm; use another fusion")
        if self.fuse == "detail" and self.norm != "none":
            raise S2WrapError(f"norm={self.norm!r} with fuse='detail', which mixes scales as they are; use norm='none'")
        self._set(target_grid=self._target_grid(len(scales)))

    @property
    def result_grid(self) -> GridWord | int | tuple[int, int]:
        """The grid of the result, with the default of the fusion; of no meaning for a pyramid."""
        default: GridWord = "finest" if self.fuse == "detail" else "coarsest"
        return default if self.target_grid is None else self.target_grid

    def _weights(self, scales: int) -> tuple[float, ...] | None:
        """The factors of `fuse="weighted"`, checked."""
        if (self.fuse == "weighted") != (self.weights is not None):
            raise S2WrapError(
                f"fuse={self.fuse!r} with weights={self.weights}; weights belong to fuse='weighted': give {scales} "
                f"numbers, one a scale"
            )
        if self.weights is None:
            return None
        try:
            numbers = tuple(float(weight) for weight in self.weights)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != scales or not all(map(math.isfinite, numbers)):
            raise S2WrapError(f"weights={self.weights} for {scales} scales; give one finite number a scale")
        return numbers

    def _target_grid(self, scales: int) -> GridWord | int | tuple[int, int] | None:
        """The grid that was asked for, checked."""
        if self.target_grid is None or (isinstance(self.target_grid, str) and self.target_grid in get_args(GridWord)):
            return self.target_grid
        if (scale := whole_number(self.target_grid)) is not None and -scales <= scale < scales:
            return scale
        if (pair := whole_pair(self.target_grid)) and all(1 <= cells <= MAX_CELLS for cells in pair):
            return pair
        raise S2WrapError(
            f"target_grid={self.target_grid!r} is no grid; use 'coarsest', 'finest', the index of one of {scales} "
            f"scales, or (rows, columns) of 1 to {MAX_CELLS} cells"
        )


@dataclass(frozen=True, kw_only=True)
class BackboneOptions(Checked):
    """What is known of a backbone; None where it says so itself, or where looking at its answer tells.

    Raises:
        S2WrapError: a number or word that cannot be.
    """

    image_size: Annotated[int | tuple[int, int] | None, "The input size in pixels: one side, or (height, width)."] = (
        None
    )
    in_channels: Annotated[int | None, "Channels of its images: 3 for RGB, 1 for grey, or bands."] = None
    mean: Annotated[
        Sequence[float] | None, "What to subtract from values in 0…1, one a channel; needed for integer images."
    ] = None
    std: Annotated[Sequence[float] | None, "What to divide by after that, one a channel."] = None
    value_range: Annotated[
        tuple[float, float] | None,
        "Which values of floating and of uint16 images stand for 0 and 1: given, they are normalised with mean and "
        "std. Default: floating images are normalised already, uint16 reaches to 65535.",
    ] = None
    processor: Annotated[Any, "An image processor of transformers that says mean, std and interpolation."] = None
    interpolation: Annotated[Interpolation | None, "How images are resized: bicubic (default) or bilinear."] = None
    name: Annotated[str | None, "A name for messages and manifests."] = None
    output: Annotated[Any, "Which part of its answer holds the features: a key, an index or an attribute."] = None
    layout: Annotated[Order | None, "How the features lie: tokens bnc, or a map bchw or bhwc."] = None
    num_prefix_tokens: Annotated[int | None, "Leading tokens that are not spatial (CLS, registers)."] = None
    grid: Annotated[tuple[int, int] | None, "Rows and columns of spatial tokens."] = None
    patch_size: Annotated[float | tuple[float, float] | None, "Pixels that a token covers: a number, or two."] = None
    layers: Annotated[
        Sequence[int] | None,
        "Blocks whose features are wanted, or maps of a model that returns several: increasing indices, negative ones "
        "from the end.",
    ] = None
    norm_layers: Annotated[
        bool | None,
        "Put each of the layers through the model's last norm, or none of them; by default as its library does: "
        "transformers does not, the others do.",
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        image_hw = None if self.image_size is None else _image_hw(self.image_size)
        channels = whole_number(self.in_channels)
        if self.in_channels is not None and (channels is None or channels < 1):
            raise S2WrapError(f"in_channels={self.in_channels!r} is no number of channels; use 1 or more")
        self._set(
            image_size=image_hw,
            in_channels=channels,
            mean=_channel_values("mean", self.mean),
            std=_channel_values("std", self.std),
            value_range=_value_range(self.value_range),
            layers=_layers(self.layers),
            patch_size=_patch_size(self.patch_size),
            grid=_grid(self.grid),
        )
        tokens = whole_number(self.num_prefix_tokens)
        if self.num_prefix_tokens is not None and (tokens is None or tokens < 0):
            raise S2WrapError(f"num_prefix_tokens={self.num_prefix_tokens!r} is no number of tokens; use 0 or more")
        if self.name is not None and not isinstance(self.name, str):
            raise S2WrapError(f"name={self.name!r} is no text")

    def named(self, name: str) -> "BackboneOptions":
        """These options with a name, unless they have one."""
        return self if self.name else replace(self, name=name)

    def over(self, facts: "BackboneOptions") -> "BackboneOptions":
        """These options, and where one is None that of `facts`."""
        return replace(facts, **self.changed())


@dataclass(frozen=True)
class WrapOptions(BackboneOptions, Options):
    """What `wrap` takes."""


@dataclass(frozen=True)
class LoadOptions(WrapOptions):
    """What `load` takes: as `wrap`, and how to make the backbone. `image_size` builds it for that size."""

    _: KW_ONLY
    pretrained: Annotated[bool, "Load the trained weights, else draw random ones."] = True
    checkpoint: Annotated[
        str | Path | None, "A .safetensors or torch file with the weights, instead of a download. Never unpickled."
    ] = None


def as_tuples(value: Any) -> Any:
    """A value read from JSON, with its lists as the tuples that they were."""
    if isinstance(value, dict):
        return {name: as_tuples(part) for name, part in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def _json_value(name: str, value: Any) -> Any:
    """The value of an option as JSON gives it back, but for tuples."""
    if name == "scales":
        return [scale.to_json() for scale in value]
    if name == "policy" and value is not None:
        return policy_name(value)
    try:
        return json.loads(json.dumps(str(value) if isinstance(value, Path) else value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise S2WrapError(f"{name}={value!r} cannot be kept in a file; use text, numbers or tuples of them") from error


def takes_options(
    options: Callable[P, object],
) -> Callable[[Callable[..., Model]], Callable[Concatenate[Any, P], Model]]:
    """A decorator that tells editors and type checkers that a function takes the fields of a class of options."""

    def typed(function: Callable[..., Model]) -> Callable[Concatenate[Any, P], Model]:
        return function

    return typed


def make_options(kind: type[Group], call: str, values: Mapping[str, Any]) -> Group:
    """Options of a kind from what a call was given; S2WrapError for a name that is none, with the nearest ones."""
    known = option_types(kind)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}"
            if name in option_types(LoadOptions):
                hint = "load() has it, which makes the model by its name"
            raise S2WrapError(f"{call} has no option {name!r}; {hint}")
    return kind(**values)


def part_of(kind: type[Group], options: Checked) -> Group:
    """The options of a kind among those of a larger one."""
    return kind(**{name: value for name, value in options.changed().items() if name in option_types(kind)})


def option_types(kind: type) -> dict[str, Any]:
    """The type of every option of a kind, by name."""
    return {field.name: get_args(field.type)[0] for field in fields(kind)}


def option_words(hint: Any) -> tuple[Any, ...]:
    """The words of an option's type, None among them where it may be left out; empty for other types."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words: tuple[Any, ...] = ()
    for part in parts:
        if get_origin(part) is Literal:
            words += get_args(part)
        elif part in (bool, NoneType):
            words += (True, False) if part is bool else (None,)
        else:
            return ()
    return words


def option_defaults(kind: type) -> dict[str, Any]:
    """The default of every option of a kind, by name."""
    return {field.name: field.default for field in fields(kind)}


def option_help(kind: type) -> dict[str, str]:
    """The sentence of help of every option of a kind, by name."""
    return {field.name: get_args(field.type)[1] for field in fields(kind)}


def _image_hw(image_size: Any) -> tuple[int, int]:
    pair = whole_pair(image_size if isinstance(image_size, tuple | list) else [image_size] * 2)
    if pair is None or not all(2 <= side <= MAX_SIDE for side in pair):
        raise S2WrapError(
            f"image_size={image_size!r} is no image size; use one side in pixels or (height, width), each a whole "
            f"number from 2 to {MAX_SIDE}"
        )
    return pair


def _channel_values(name: str, values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
        raise S2WrapError(f"{name}={values!r} is no {name}; use one number a channel{' above 0' * (name == 'std')}")
    return numbers


def _patch_size(patch: Any) -> Any:
    if patch is None:
        return None
    sides = patch if isinstance(patch, tuple | list) else (patch, patch)
    if len(sides) != 2 or not all(isinstance(side, int | float) and not isinstance(side, bool) for side in sides):
        raise S2WrapError(f"patch_size={patch!r} is no patch; use pixels, such as 14, or (height, width)")
    return tuple(sides)


def _grid(grid: Any) -> tuple[int, int] | None:
    if grid is not None and (whole_pair(grid) is None or min(grid) < 1):
        raise S2WrapError(f"grid={grid!r} is no grid; use (rows, columns), each 1 or more")
    return whole_pair(grid)


def _value_range(values: Any) -> tuple[float, float] | None:
    if values is None:
        return None
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise S2WrapError(f"value_range={values!r} is no range; use two numbers, the lower first, such as (0, 1)")
    return low, high


def _layers(layers: Any) -> tuple[int, ...] | None:
    if layers is None:
        return None
    try:
        numbers = tuple(-1 if (number := whole_number(layer)) is None else number for layer in layers)
        valid = all(whole_number(layer) is not None for layer in layers)
    except TypeError:
        numbers, valid = (), False
    increasing = all(first < second for first, second in pairwise(numbers))
    if not numbers or not valid or not increasing or numbers[0] < 0 <= numbers[-1]:
        raise S2WrapError(
            f"layers={layers!r} names no layers; use increasing indices such as (5, 11), or (-7, -1) from the end"
        )
    return numbers
