"""`wrap_tower`: a multimodal model of transformers whose vision tower looks at several scales."""

from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.from_tower import TowerBackbone
from s2wrap.errors import S2WrapError
from s2wrap.options import Options, make_options, takes_options
from s2wrap.tower import VisionTower
from s2wrap.wrapper import MultiScale

NAMES = ("vision_tower", "image_tower", "vision_model", "vision_encoder", "image_encoder", "visual")
"""What multimodal models call their vision tower."""
INSIDE_OF = {
    "kosmos-2": "vision_model.model",
    "ovis2": "model.vision_tower.transformer",
    "vision-encoder-decoder": "encoder",
}
"""Where the tower lies in kinds of models that have more around it under its name."""
READS_MORE = {"granite_docling": "pooler_output and deepstack_features", "nemotron_h_omni": "features"}
"""Kinds of models that read more of their tower than hidden states."""
KEPT = "s2wrap"
"""The entry of a model's config that keeps the options."""

Model = TypeVar("Model", bound=nn.Module)


@takes_options(Options)
def wrap_tower(model: Model, scales: Any = None, *, image_size: Any = None, **options: Any) -> Model:
    """A multimodal model of transformers, changed in place: its vision tower looks at images at several scales.

    As many image tokens of the same width come out as before, so that projector, prompts and language model stay. The
    tower answers what the model's config reads of it: its last hidden state, and those of `vision_feature_layer`. Give
    it images as large as the largest scale.

    `model.config.s2wrap` keeps the options, so that `save_pretrained` does, and the checkpoint has the keys of the
    model without s2wrap. `from_pretrained` makes that model; `wrap_tower(model)`, without scales, wraps it as it was.

    Args:
        model: generates text from images, such as `LlavaForConditionalGeneration`.
        scales: as for `wrap`; None for the options that `model.config.s2wrap` keeps.
        image_size: of the tower in pixels, where its config says none (towers of timm, Florence-2).
        **options: of `Options`; `fuse` is "mean" by default, and can be any that keeps the width.

    Returns:
        The same model.

    Raises:
        S2WrapError: a model without a vision tower, or whose tower takes more than images; options under which the
            projector does not fit; no scales and none kept.

    >>> import transformers
    >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    >>> config = transformers.LlavaConfig(
    ...     vision_config=transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8),
    ...     text_config=transformers.LlamaConfig(**sizes, vocab_size=64),
    ... )
    >>> llava = wrap_tower(transformers.LlavaForConditionalGeneration(config), scales=(1, 2), fuse="detail")
    >>> llava.model.vision_tower.model.grids((64, 64))
    ([(4, 4), (8, 8)], (4, 4))
    """
    path = _tower_path(model)
    tower = model.get_submodule(path)
    if isinstance(tower, VisionTower):  # wrapped before
        tower = tower.model.backbone.model
    kept = getattr(model.config, KEPT, None)
    if scales is None:
        if kept is None or options:
            raise S2WrapError(_no_scales(model, kept, options))
        chosen, image_size = Options.from_json(kept["options"]), image_size or kept["image_size"]
    else:
        chosen = make_options(Options, "wrap_tower()", {"scales": scales, "fuse": "mean", **options})
    try:
        backbone = TowerBackbone(tower, _places_read(model.config), image_size)
    except S2WrapError as error:
        raise S2WrapError(f"the vision tower of {type(model).__name__} cannot be wrapped: {error}") from error
    wrapped = MultiScale(backbone, _kept_tokens(chosen, backbone))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, VisionTower(wrapped))
    setattr(model.config, KEPT, {"options": chosen.to_json(), "image_size": image_size})
    return model


def _tower_path(model: Any) -> str:
    """Where the vision tower of a model lies. Raises S2WrapError for models that are no multimodal ones."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind in INSIDE_OF:
        return INSIDE_OF[kind]
    name = type(model).__name__
    if kind in READS_MORE:
        raise S2WrapError(
            f"{name} reads {READS_MORE[kind]} of its vision tower, which are no hidden states, and a wrapped tower has "
            f"none of them; models such as LLaVA, PaliGemma, Gemma 3, InternVL and Idefics 3 can be wrapped"
        )
    if not isinstance(model, nn.Module) or not hasattr(model, "can_generate") or not model.can_generate():
        raise S2WrapError(
            f"{name} is no model of transformers that generates text from images, such as "
            f"LlavaForConditionalGeneration; for features use s2wrap.wrap(model, scales)"
        )
    paths = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in NAMES]
    if not paths:
        raise S2WrapError(
            f"{name} has no vision tower: no part of it is called {', '.join(NAMES)}; models such as LLaVA, PaliGemma, "
            f"Gemma 3, InternVL and Idefics 3 have one"
        )
    return min(paths, key=lambda path: path.count("."))


def _places_read(config: Any) -> tuple[int, ...]:
    """The indices of hidden states that a model reads of its tower, beside the last hidden state."""
    if hasattr(config, "spatial_vision_layer"):  # Granite 4 Vision
        return (*{layer for layer, _ in config.deepstack_layer_map or ()}, config.spatial_vision_layer)
    layers = getattr(config, "vision_feature_layer", None)
    if layers is None or hasattr(
        getattr(config, "vision_config", None), "architecture"
    ):  # a model of timm: its last map is read
        return ()
    return (layers,) if isinstance(layers, int) else tuple(layers)


def _no_scales(model: Any, kept: Any, options: dict[str, Any]) -> str:
    beside = f" beside {', '.join(options)}" if options else ""
    held = "keeps none" if kept is None else "keeps its own"
    return (
        f"wrap_tower() was given no scales{beside}, and the config of {type(model).__name__} {held}; give them, such "
        f"as scales=(1, 2)"
    )


def _kept_tokens(options: Options, backbone: Backbone) -> Options:
    """The options with the grid of the tower. Raises S2WrapError where the tokens would not be those of the tower."""
    grid_hw = backbone.layout.grid_hw
    fits = "projector and prompt take the tokens of the tower as it is"
    if options.fuse in ("concat", "pyramid"):
        raise S2WrapError(
            f"fuse={options.fuse!r} does not keep the width of {backbone.layout.num_features}, and {fits}; use "
            f"fuse='mean' or 'detail', or a VisionTower and a projector of your own"
        )
    if options.target_grid not in (None, grid_hw):
        raise S2WrapError(
            f"target_grid={options.target_grid!r}, and {fits}, of {grid_hw[0]}×{grid_hw[1]} cells; leave it out, or use "
            f"a VisionTower"
        )
    if options.prefix == "drop" and backbone.layout.num_prefix_tokens:
        raise S2WrapError(f"prefix='drop' leaves out CLS, and {fits}; use prefix='area' or 'base'")
    return replace(options, target_grid=grid_hw, join_layers=backbone.layers is None)
