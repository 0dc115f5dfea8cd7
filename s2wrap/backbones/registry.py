"""From a model, or from the name of one, to a `Backbone`."""

import difflib
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.nn import DataParallel
from torch.nn.parallel import DistributedDataParallel

from s2wrap.backbones import (
    from_features_only,
    from_hub_dino,
    from_open_clip,
    from_radio,
    from_timm,
    from_torchvision,
    from_transformers,
    sample,
)
from s2wrap.backbones.base import Backbone
from s2wrap.backbones.family import Family
from s2wrap.backbones.probed import NO_OPTIONS, ProbedBackbone
from s2wrap.errors import S2WrapError
from s2wrap.options import BackboneOptions
from s2wrap.scales import Scale, parse_scale

ADAPTERS = (
    sample,
    from_timm,
    from_features_only,
    from_open_clip,
    from_transformers,
    from_torchvision,
    from_hub_dino,
    from_radio,
)
FAMILIES: dict[str, Family] = {adapter.FAMILY.name: adapter.FAMILY for adapter in ADAPTERS}
"""Later ones are asked first whether a model is theirs."""

BUILT = ("size", "patch")
"""What a spec can say of how a backbone is built: its input size, and the side of its patches, in pixels."""


@dataclass(frozen=True)
class Spec:
    """The name of a wrapped model: `FAMILY:NAME[.TAG][:size=PIXELS][:patch=PIXELS]@SCALES`."""

    family: str
    name: str
    scales: tuple[Scale, ...]
    size: int | None = None
    patch: int | None = None

    @property
    def backbone(self) -> str:
        """What stands before the scales."""
        built = [f":{key}={value}" for key in BUILT if (value := getattr(self, key)) is not None]
        return f"{self.family}:{self.name}{''.join(built)}"

    def __str__(self) -> str:
        return f"{self.backbone}@{','.join(map(str, self.scales))}"


def parse_spec(text: object) -> Spec:
    """A spec's parts; without `@SCALES` it is the plain backbone at scale 1.

    >>> parse_spec("timm:vit_base_patch14_dinov2.lvd142m@1,448px").scales[1].in_pixels
    True
    >>> parse_spec("sample:dinov2_s14:size=224:patch=7@1").patch
    7
    """
    if not isinstance(text, str):
        raise S2WrapError(f"{text!r} is no model; write FAMILY:NAME@SCALES, or use wrap() for a model that you have")
    model, _, scales = text.partition("@")
    family, _, rest = model.partition(":")
    name, *words = re.split(r":(?=\w+=)", rest)
    if not family or not name:
        if "/" in text and ":" not in text:
            raise S2WrapError(
                f"{text!r}: there is no such folder of a saved model; a model by name is FAMILY:NAME@SCALES"
            )
        raise S2WrapError(f"{text!r} is no model; write FAMILY:NAME@SCALES, such as sample:dinov2_s14@1,2")
    if family not in FAMILIES or FAMILIES[family].load is None:
        known = ", ".join(name for name, family in FAMILIES.items() if family.load)
        raise S2WrapError(f"{text!r}: family {family!r} is unknown; use one of {known}")
    parsed = tuple(parse_scale(part.strip()) for part in (scales if "@" in text else "1").split(","))
    return Spec(family, name, parsed, **_built(text, words))


def _built(text: str, words: list[str]) -> dict[str, int]:
    """How a backbone is to be built, from the words of a spec such as "patch=8"."""
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in BUILT or key in found or not (value.isdecimal() and 0 < int(value) <= 2**15):
            raise S2WrapError(
                f"{text!r}: {word!r} is not understood; after the name write size=PIXELS (build the backbone for this "
                f"input size) or patch=PIXELS (resample its patches), once each, such as sample:dinov2_s14:patch=7@1"
            )
        found[key] = int(value)
    return found


def load_backbone(
    spec: Spec,
    options: BackboneOptions = NO_OPTIONS,
    *,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
) -> Backbone:
    """The backbone that a spec names.

    Args:
        spec: from `parse_spec`; its scales do not matter here.
        options: `image_size` and `in_channels`: what it is built for; the others go before what it says of itself.
        pretrained: load the trained weights, else draw random ones.
        checkpoint: a .safetensors or torch file with the weights, instead of a download. Never unpickled.

    Raises:
        S2WrapError: an unknown name, or weights that cannot be had.
    """
    family = FAMILIES[spec.family]
    if family.load is None:
        raise S2WrapError(f"{spec.family} has no names; wrap the model that you have")
    names = tuple(family.names())
    if spec.name not in names and not (family.open_ended and "/" in spec.name):
        near = difflib.get_close_matches(spec.name, names, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(f'{spec.family}:{name}' for name in near)}?" if near else ""
        raise S2WrapError(f"{spec.family} knows no model {spec.name!r}{hint}")
    if checkpoint is not None and not pretrained:
        raise S2WrapError(f"random weights and the checkpoint {str(checkpoint)!r} are asked for; choose one")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise S2WrapError(f"there is no checkpoint file {str(checkpoint)!r}")
    if spec.size is not None and options.image_size is not None:
        raise S2WrapError(f"{spec} names an input size, and image_size={options.image_size} another; use one of them")
    if spec.patch is not None and not family.resamples_patches:
        able = ", ".join(name for name, each in FAMILIES.items() if each.resamples_patches)
        raise S2WrapError(f"{spec}: patches can be resampled in models of {able}, not of {spec.family}")
    options = options if spec.size is None else replace(options, image_size=spec.size)
    resampled: dict[str, Any] = {} if spec.patch is None else {"patch": spec.patch}
    return family.load(spec.name, options, pretrained=pretrained, checkpoint=checkpoint, **resampled)


def as_backbone(model: object, options: BackboneOptions = NO_OPTIONS) -> Backbone:
    """Any model as a `Backbone`: by the adapter of its family, else by the probe alone.

    Args:
        model: of a family that is known, or any callable from images to tokens or a map.
        options: what the caller knows of it.
    """
    model = without_peft(model)
    if isinstance(model, Backbone):
        if known := options.changed():
            raise S2WrapError(f"{', '.join(known)} came with a Backbone, which has them already; give them to it")
        return model
    if not callable(model):
        raise S2WrapError(
            f"a {type(model).__name__} is no backbone; give a module or a function of images, or use load()"
        )
    if type(model).__name__ == "OptimizedModule":  # importing the class would take seconds
        raise S2WrapError(
            "this model is compiled, but not its feature call; wrap the model itself, and compile the result: "
            "torch.compile(wrap(model))"
        )
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise S2WrapError(
            f"a {type(model).__name__} gives the answer of its model's forward alone; wrap the model inside "
            f"(model.module), and parallelise the result: {type(model).__name__}(wrap(model.module))"
        )
    for family in reversed(FAMILIES.values()):  # those of users first
        if family.matches(model):
            return family.adapt(model, options)
    return ProbedBackbone(model, options)


def without_peft(model: Any) -> Any:
    """The model inside a `PeftModel`, with its adapters in it; any other model as it is."""
    peft: Any = sys.modules.get("peft")  # a model of PEFT has imported it
    if peft is None or not isinstance(model, peft.PeftModel):
        return model
    config = model.active_peft_config
    if config.is_prompt_learning:
        raise S2WrapError(
            f"{config.peft_type.value} adds tokens beside a model, which a call for features does not see; use an "
            f"adapter inside the model, such as LoRA"
        )
    return model.get_base_model()


def register_backbone(
    name: str,
    adapt: Callable[..., Backbone],
    *,
    matches: Callable[[Any], bool] | None = None,
    names: Iterable[str] = (),
    load: Callable[..., Backbone] | None = None,
) -> None:
    """Add a family of models: `wrap` then knows them by their looks, and `load` by `NAME:MODEL@SCALES`.

    Args:
        name: the word before the colon.
        adapt: `adapt(model, options)` returns a `Backbone`: often a class that derives from `ProbedBackbone` and
            overrides `call`. The options are `BackboneOptions`.
        matches: `matches(model)` says whether a model is of this family; without it, `wrap` does not look.
        names: the names that `load` knows.
        load: `load(name, options, pretrained=, checkpoint=)` returns a `Backbone`; without it, `adapt` is for models
            that the user has.

    Raises:
        S2WrapError: a name that is taken or holds a colon, names without `load`, or something that is no function.

    >>> class Halved(ProbedBackbone):
    ...     def call(self, tiles):
    ...         return self.model(tiles / 2)
    >>> register_backbone("halved", Halved, matches=lambda model: getattr(model, "halved", False))
    >>> unregister_backbone("halved")
    """
    if not isinstance(name, str) or not name.isidentifier() or name in FAMILIES:
        raise S2WrapError(f"{name!r} cannot name a family: use a new word; taken are {', '.join(FAMILIES)}")
    for word, part in (("adapt", adapt), ("matches", matches), ("load", load)):
        if not callable(part) and not (part is None and word != "adapt"):
            raise S2WrapError(f"{word}={part!r} is no function")
    if names and load is None:
        raise S2WrapError(f"family {name!r} has names but no load=; give the function that makes a Backbone of a name")
    FAMILIES[name] = Family(name, adapt, matches or (lambda model: False), lambda: names, load)


def unregister_backbone(name: str) -> None:
    """Forget a family that `register_backbone` added."""
    FAMILIES.pop(name, None)
