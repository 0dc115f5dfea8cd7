"""open_clip models: the vision tower's tokens or map, and the embeddings that text is compared with."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.checkpoint import cached_file, exact_loading, from_hub, load_exactly
from s2wrap.backbones.family import Family, Place, check_rgb, made_by, structure
from s2wrap.backbones.from_timm import TimmBackbone
from s2wrap.backbones.probed import NO_OPTIONS, ProbedBackbone
from s2wrap.errors import S2WrapError
from s2wrap.features import Features
from s2wrap.options import BackboneOptions, Interpolation, as_tuples

NOTED = ("image_mean", "image_std", "preprocess_cfg")
"""What open_clip notes of the preprocessing of a tower."""


class _Tower(ProbedBackbone):
    """What both kinds of tower have in common: the preprocessing that open_clip notes, and the embedding."""

    def embed(self, tiles: Tensor) -> Tensor:
        """The image embeddings (b, d), as `encode_image` gives them before they are normalised."""
        answer = self.tower(tiles)
        return answer[0] if isinstance(answer, tuple) else answer

    @property
    def tower(self) -> Any:
        """The vision tower itself."""
        return self.model


class OpenClipBackbone(_Tower):
    """open_clip's own towers: VisionTransformer (CLS and tokens) and ModifiedResNet (a map)."""

    def __init__(self, visual: Any, options: BackboneOptions = NO_OPTIONS):
        """As `ProbedBackbone`, of a vision tower."""
        facts = replace(_tower_facts(visual), num_prefix_tokens=1 if _is_transformer(visual) else None)
        super().__init__(visual, options, facts=facts)

    def call(self, tiles: Tensor) -> Any:
        """Tokens (b, 1 + n, c) after the last norm (without it, where a pooling comes before it), or a map."""
        visual = self.model
        if _is_transformer(visual):
            tokens = visual.transformer(visual._embeds(tiles))
            return visual.ln_post(tokens) if self.normed else tokens
        return visual.forward_intermediates(tiles, indices=1, intermediates_only=True)["image_intermediates"][-1]

    def call_layers(self, tiles: Tensor) -> Features:
        """The features of blocks, after the last norm where `call` has it, or as `norm_layers` says."""
        options: dict[str, Any] = {"indices": list(self.layers or ()), "intermediates_only": True, "stop_early": True}
        if _is_transformer(self.model):
            norm = self.normed if self.norm_layers is None else self.norm_layers
            options |= {"output_extra_tokens": True, "normalize_intermediates": norm}
        elif self.norm_layers is not None:
            raise S2WrapError(
                f"norm_layers={self.norm_layers}: {self.name} is a ResNet without a last norm; leave it out"
            )
        try:
            answer = self.model.forward_intermediates(tiles, **options)
        except (AssertionError, IndexError, ValueError) as error:
            raise S2WrapError(f"layers={self.layers} are not all blocks of {self.name}: {error}") from error
        maps = tuple(answer["image_intermediates"])
        none = [spatial.new_zeros(spatial.shape[0], 0, spatial.shape[1]) for spatial in maps]
        return Features(maps, tuple(answer.get("image_intermediates_prefix", none)))

    @property
    def normed(self) -> bool:
        """Whether the last norm belongs to tokens: CoCa pools before it, others average before it."""
        return self.model.attn_pool is None and not self.model.final_ln_after_pool


class OpenClipTimmBackbone(_Tower, TimmBackbone):
    """open_clip's timm towers: the features of the trunk."""

    def __init__(self, visual: Any, options: BackboneOptions = NO_OPTIONS):
        """As `ProbedBackbone`, of a vision tower."""
        super().__init__(visual.trunk, options, facts=_tower_facts(visual))
        self.visual = visual

    @property
    def tower(self) -> Any:
        """The trunk with open_clip's head."""
        return self.visual


def adapt(model: object, options: BackboneOptions = NO_OPTIONS) -> Backbone:
    """A backbone of a CLIP, CoCa, … or of its vision tower alone."""
    visual = getattr(model, "visual", model)
    if hasattr(visual, "trunk"):
        return OpenClipTimmBackbone(visual, options)
    if not hasattr(visual, "forward_intermediates"):
        raise S2WrapError(f"a {type(model).__name__} of open_clip has no vision tower that s2wrap knows")
    return OpenClipBackbone(visual, options)


def names() -> tuple[str, ...]:
    """Every architecture, and every architecture with a tag of its weights: ViT-B-16/openai."""
    import open_clip

    return (*open_clip.list_models(), *(f"{name}/{tag}" for name, tag in open_clip.list_pretrained()))


def load(
    name: str,
    options: BackboneOptions = NO_OPTIONS,
    *,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
) -> Backbone:
    """The vision tower of a model by name; for text as well, make the model with open_clip and wrap that."""
    import open_clip

    architecture, _, tag = name.partition("/")
    if pretrained and checkpoint is None and not tag:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise S2WrapError(
            f"open_clip:{name} names no weights; "
            + (f"write open_clip:{name}/TAG with a tag of {', '.join(tags)}" if tags else "it has none on the hub")
            + "; or draw random ones (pretrained=False), or give a file (checkpoint=)"
        )
    check_rgb(options, f"open_clip:{name}")
    building: dict[str, Any] = {} if options.image_size is None else {"force_image_size": options.image_size}
    building |= {"pretrained": tag} if pretrained and checkpoint is None else {"pretrained_hf": False}
    hub = "pretrained" in building
    make = partial(open_clip.create_model, architecture, load_weights=hub, require_pretrained=hub, **building)
    try:
        with exact_loading(f"open_clip:{architecture}", name):
            model = from_hub(make, f"open_clip:{name}") if hub else make()
    except OSError as error:
        raise S2WrapError(
            f"open_clip:{name} has a text tower whose configuration is on the Hugging Face hub, which gave none "
            f"({str(error).partition(chr(10))[0]}); make the model where there is a network, and wrap its vision tower"
        ) from error
    if checkpoint is not None:
        load_exactly(model, checkpoint, f"open_clip:{architecture}")
    return adapt(model, options.named(architecture))


def _tower_facts(visual: Any) -> BackboneOptions:
    """What open_clip notes of a tower."""
    noted = getattr(visual, "preprocess_cfg", None) or {}
    return BackboneOptions(
        name=f"the {type(visual).__name__} of open_clip",
        image_size=visual.image_size,
        mean=noted.get("mean") or getattr(visual, "image_mean", None),
        std=noted.get("std") or getattr(visual, "image_std", None),
        interpolation=noted["interpolation"] if noted.get("interpolation") in get_args(Interpolation) else None,
    )


def _is_transformer(visual: object) -> bool:
    return hasattr(visual, "transformer")


def describe(backbone: Backbone) -> dict[str, Any] | None:
    """The configuration of open_clip whose vision tower has the same modules and shapes; None if there is none."""
    if type(backbone) not in (OpenClipBackbone, OpenClipTimmBackbone):
        return None
    import open_clip

    visual: Any = backbone.tower  # pyright: ignore[reportAttributeAccessIssue] (both classes have one)
    wanted, trunk = structure(visual), getattr(visual, "trunk", None)
    for name in open_clip.list_models():
        config: Any = open_clip.get_model_config(name)
        vision, width = config["vision_cfg"], config["embed_dim"]
        if trunk is None:
            transformer = isinstance(vision.get("layers"), int) and "timm_model_name" not in vision
            if transformer != _is_transformer(visual) or width != visual.output_dim:
                continue
        if trunk is not None and trunk.pretrained_cfg.get("architecture") != _architecture(vision):
            continue
        vision = vision | {"image_size": visual.image_size, "timm_model_pretrained": False}
        tower = {"embed_dim": width, "vision_cfg": vision, "quick_gelu": config.get("quick_gelu", False)}
        with torch.device("meta"):
            outline = rebuild(tower)
        if structure(outline) == wanted:
            noted = {key: getattr(visual, key, None) for key in NOTED}
            return tower | {"noted": noted}
    return None


def rebuild(description: dict[str, Any]) -> Any:
    """The vision tower that `describe` described, with random weights: no text tower is made."""
    from open_clip.model import _build_vision_tower

    vision = as_tuples(description["vision_cfg"]) | {"timm_model_pretrained": False}
    if ":" in vision.get("timm_model_name", ""):
        raise S2WrapError(f"timm_model_name={vision['timm_model_name']!r} names a hub or a folder")
    visual: Any = _build_vision_tower(description["embed_dim"], vision, description["quick_gelu"])
    for key, value in as_tuples(description.get("noted", {})).items():
        if key in NOTED:
            setattr(visual, key, value)
    return visual


def _architecture(vision: dict[str, Any]) -> str | None:
    """The timm architecture of a configuration, without the tag of weights."""
    return (vision.get("timm_model_name") or "").partition(".")[0] or None


def where(name: str) -> Place | None:
    """Where the weights of a name are; None for a name without a tag."""
    import open_clip

    config = open_clip.get_pretrained_cfg(*name.split("/")) if "/" in name else {}
    if repo := config.get("hf_hub"):  # as open_clip looks for it: a repository, and a file in it
        repo, _, filename = repo.rpartition("/")
        names = [filename] if filename else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        return "cached" if cached_file(repo, [*names, f"{filename[:-4]}.safetensors"]) else "download"
    file = Path("~/.cache/clip").expanduser() / config.get("url", "").rpartition("/")[2]
    return ("cached" if file.is_file() else "download") if config else None


FAMILY = Family(
    "open_clip",
    adapt,
    lambda model: made_by(model, "open_clip"),
    names,
    load,
    describe=describe,
    rebuild=rebuild,
    tag_mark="/",
    weights=where,
)
