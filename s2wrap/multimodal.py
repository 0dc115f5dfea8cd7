"""`wrap_tower`: a multimodal model of transformers whose vision tower looks at several scales."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Annotated, Any

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.from_tower import TowerBackbone
from s2wrap.errors import S2WrapError
from s2wrap.options import Options, make_options, part_of, takes_options
from s2wrap.tower import OF_TRANSFORMERS, VisionTower
from s2wrap.wrapper import MultiScale

NAMES = ("vision_tower", "image_tower", "vision_model", "vision_encoder", "image_encoder", "visual")
"""What multimodal models call their vision tower."""
INSIDE = {"kosmos-2": "model", "ovis2": "transformer"}
"""The part of the vision tower that answers hidden states, in kinds of models whose tower makes more of them."""
REFUSED: dict[str, str] = dict.fromkeys(
    ("deepseek_ocr2", "unlimited_ocr"), "gives its vision tower images of two sizes: whole ones and smaller crops"
)
REFUSED |= {
    "granite_docling": "reads pooler_output and deepstack_features of its vision tower, which are no hidden states",
    "nemotron_h_omni": "reads features of its vision tower, which are no hidden states",
}
"""Kinds of models whose tower takes images, and that still need more than a wrapped tower gives."""
KEPT = "s2wrap"
"""The entry of a model's config that keeps the options."""


@dataclass(frozen=True)
class TowerOptions(Options):
    """What `wrap_tower` takes."""

    _: KW_ONLY
    image_size: Annotated[
        int | tuple[int, int] | None, "The tower's input size in pixels, where its config says none."
    ] = None


@takes_options(TowerOptions)
def wrap_tower(model: Any, scales: Any = None, **options: Any) -> Any:
    """A multimodal model of transformers, changed in place: its vision tower looks at images at several scales.

    As many image tokens of the same width come out as before, so that projector, text and language model stay. The
    tower answers what the model's config reads of it: its last hidden state, and those of `vision_feature_layer`. Give
    it images as large as the largest scale.

    `model.config.s2wrap` keeps the options, so that `save_pretrained` does, and the checkpoint has the keys of the
    model without s2wrap. `from_pretrained` makes that model, whose tower looks at one scale until
    `wrap_tower(model)`, without scales, wraps it as it was. With `frozen` (the default) the tower's weights are.

    Args:
        model: generates text from images, such as `LlavaForConditionalGeneration`.
        scales: as for `wrap`; None for the options that `model.config.s2wrap` keeps.
        **options: of `Options`; `fuse` is "mean" by default, and can be any that keeps the width. And `image_size`:
            that of the tower in pixels, where its config says none (towers of timm, Florence-2).

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
        tower = _inner(tower)
    chosen = _options(model, scales, options)
    kept = chosen.to_json()
    try:
        backbone = TowerBackbone(tower, _places_read(model.config), chosen.image_size)
    except S2WrapError as error:
        raise S2WrapError(f"the vision tower of {type(model).__name__} cannot be wrapped: {error}") from error
    wrapped = MultiScale(backbone, _kept_tokens(part_of(Options, chosen), backbone))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, VisionTower(wrapped))
    setattr(model.config, KEPT, kept)
    return model


def _inner(tower: VisionTower) -> Any:
    """The tower that was wrapped. Raises S2WrapError where it is none of transformers."""
    backbone = tower.model.backbone
    if not isinstance(backbone, OF_TRANSFORMERS):
        raise S2WrapError(
            f"the vision tower of this model is a wrapped {backbone.name}, which is none of transformers; put another "
            f"in its place: VisionTower(s2wrap.wrap(backbone, scales, …))"
        )
    return backbone.model


def _tower_path(model: Any) -> str:
    """Where the vision tower of a model lies. Raises S2WrapError for models that are no multimodal ones."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    if kind == "vision-encoder-decoder":
        return "encoder"
    name = type(model).__name__
    if kind in REFUSED:
        raise S2WrapError(
            f"{name} {REFUSED[kind]}; models such as LLaVA, PaliGemma, Gemma 3, InternVL and Idefics 3 can be wrapped"
        )
    if not (hasattr(model, "can_generate") and (model.can_generate() or hasattr(model, "language_model"))):
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
    path = min(paths, key=lambda path: path.count("."))
    return f"{path}.{INSIDE[kind]}" if kind in INSIDE else path


def _places_read(config: Any) -> tuple[int, ...]:
    """The indices of hidden states that a model reads of its tower, beside the last hidden state."""
    if hasattr(config, "spatial_vision_layer"):  # Granite 4 Vision
        return (*{layer for layer, _ in config.deepstack_layer_map or ()}, config.spatial_vision_layer)
    layers = getattr(config, "vision_feature_layer", None)
    of_timm = hasattr(getattr(config, "vision_config", None), "architecture")
    if layers is None or of_timm:  # of a tower of timm the last map is read
        return ()
    return (layers,) if isinstance(layers, int) else tuple(layers)


def _options(model: Any, scales: Any, options: dict[str, Any]) -> TowerOptions:
    """The options that were given, or that the model's config keeps."""
    if scales is not None:
        return make_options(TowerOptions, "wrap_tower()", {"scales": scales, "fuse": "mean", **options})
    kept = getattr(model.config, KEPT, None)
    if kept is None or options:
        beside = f" beside {', '.join(options)}" if options else ""
        raise S2WrapError(
            f"wrap_tower() was given no scales{beside}, and the config of {type(model).__name__} keeps "
            f"{'none' if kept is None else 'its own'}; give them, such as scales=(1, 2)"
        )
    return TowerOptions.from_json(kept)


def _kept_tokens(options: Options, backbone: Backbone) -> Options:
    """The options with the grid of the tower. Raises S2WrapError where the tokens would not be those of the tower."""
    grid_hw = backbone.layout.grid_hw
    fits = "projector and text take the tokens of the tower as it is"
    if options.fuse in ("concat", "pyramid"):
        raise S2WrapError(
            f"fuse={options.fuse!r} does not keep the width of {backbone.layout.num_features}, and {fits}; use "
            f"fuse='mean' or 'detail', or a VisionTower and a projector of your own"
        )
    if options.fuse == "auto":
        raise S2WrapError(f"fuse='auto' brings tokens to another length, and {fits}; use fuse='mean' or 'detail'")
    if options.target_grid not in (None, grid_hw):
        raise S2WrapError(
            f"target_grid={options.target_grid!r}, and {fits}, of {grid_hw[0]}×{grid_hw[1]} cells; leave it out, or "
            f"use a VisionTower"
        )
    if options.prefix == "drop" and backbone.layout.num_prefix_tokens:
        raise S2WrapError(f"prefix='drop' leaves out CLS, and {fits}; use prefix='area' or 'base'")
    return replace(options, target_grid=grid_hw, join_layers=backbone.layers is None)
