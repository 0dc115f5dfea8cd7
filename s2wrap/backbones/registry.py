"""From a model, or from the name of one, to a `Backbone`."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2wrap.backbones import from_timm, sample
from s2wrap.backbones.backbone import Backbone
from s2wrap.errors import S2WrapError
from s2wrap.plan import parse_scale

FAMILIES = {"timm": from_timm, "sample": sample}
"""Each room has `names()`, and `load(name, pretrained=, image_size=, checkpoint=)` that makes a `Backbone`."""


@dataclass(frozen=True)
class Spec:
    """The name of a wrapped model: `FAMILY:NAME[.TAG]@SCALES`."""

    family: str
    name: str
    scales: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.family}:{self.name}@{','.join(self.scales)}"


def parse_spec(text: Any) -> Spec:
    """A spec's parts; without `@SCALES` it is the plain backbone at scale 1.

    >>> parse_spec("timm:vit_base_patch14_dinov2.lvd142m@1,448px").scales
    ('1', '448px')
    """
    if not isinstance(text, str):
        raise S2WrapError(f"{text!r} is no model; write FAMILY:NAME@SCALES, or use wrap() for a model that you have")
    model, _, scales = text.partition("@")
    family, colon, name = model.partition(":")
    if not (colon and name):
        raise S2WrapError(f"{text!r} is no model; write FAMILY:NAME@SCALES, such as sample:dinov2_s14@1,2")
    if family not in FAMILIES:
        raise S2WrapError(f"{text!r}: family {family!r} is unknown; use one of {', '.join(FAMILIES)}")
    parts = tuple(part.strip() for part in (scales or "1").split(","))
    for part in parts:
        parse_scale(part)
    return Spec(family, name, parts)


def load_backbone(
    spec: Spec,
    *,
    pretrained: bool = True,
    image_size: int | tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
) -> Backbone:
    """The backbone that a spec names.

    Args:
        spec: from `parse_spec`; its scales do not matter here.
        pretrained: load the trained weights, else draw random ones.
        image_size: input size in pixels, where the model should be built for another than its own.
        checkpoint: a .safetensors or torch file with the weights, instead of a download. Never unpickled.

    Raises:
        S2WrapError: an unknown name, or weights that cannot be had.
    """
    room = FAMILIES[spec.family]
    names = room.names()
    if spec.name not in names:
        near = difflib.get_close_matches(spec.name, names, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(f'{spec.family}:{name}' for name in near)}?" if near else ""
        raise S2WrapError(f"{spec.family} knows no model {spec.name!r}{hint}")
    if checkpoint is not None and not pretrained:
        raise S2WrapError(f"random weights and the checkpoint {str(checkpoint)!r} are asked for; choose one")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise S2WrapError(f"there is no checkpoint file {str(checkpoint)!r}")
    return room.load(spec.name, pretrained=pretrained, image_size=image_size, checkpoint=checkpoint)


def as_backbone(model: Any, **known: Any) -> Backbone:
    """Any model as a `Backbone`: by the adapter of its family, else by the probe alone.

    Args:
        model: a timm model, or any callable from images to tokens or a map.
        **known: anything `Backbone` takes.
    """
    if isinstance(model, Backbone):
        if known:
            raise S2WrapError(
                f"{', '.join(known)} came with a Backbone, which has them already; give them to Backbone()"
            )
        return model
    if not callable(model):
        raise S2WrapError(
            f"a {type(model).__name__} is no backbone; give a module or a function of images, or use load()"
        )
    if from_timm.is_timm(model):
        return from_timm.TimmBackbone(model, **known)
    if "image_size" not in known:
        raise S2WrapError(
            f"the image size that {getattr(model, '__name__', type(model).__name__)} takes is unknown; "
            f"pass image_size= in pixels, such as 224"
        )
    return Backbone(model, **known)
