"""transformers models: the vision tower's `last_hidden_state`, or its feature map."""

import inspect
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.checkpoint import from_hub, load_exactly
from s2wrap.backbones.family import Family, allowed, made_by
from s2wrap.backbones.from_timm import TimmBackbone
from s2wrap.backbones.last_norm import LastNorm, find_last_norm
from s2wrap.backbones.probed import NO_OPTIONS
from s2wrap.backbones.processors import processor_options
from s2wrap.backbones.transformers_models import POOLER, default_config, library, make, names, pretrained_model
from s2wrap.backbones.vision_tower import InterpolatingBackbone, is_backbone, parameters, vision_tower
from s2wrap.errors import S2WrapError
from s2wrap.features import Features, join
from s2wrap.inputs import Origin, has_values
from s2wrap.options import BackboneOptions

OUTPUTS = ("feature_maps", "last_hidden_state", "encoder_last_hidden_state")
UNTOLD_STRIDES: dict[str, tuple[int, int]] = dict.fromkeys(
    ["swin", "swinv2", "donut-swin", "maskformer-swin", "focalnet", "dinov3_convnext"], (32, 32)
)
UNTOLD_STRIDES["levit"] = (64, 64)
LINE_STRIDES = dict.fromkeys(
    ["pp_ocrv5_mobile_rec", "pp_ocrv5_server_rec", "pp_ocrv6_small_rec", "pp_ocrv6_tiny_rec"], (48, 8)
)
"""Pixels between the tokens, down and across, of kinds whose answer can be read in several ways, and whose embeddings
tell no prefix; and of those that read a line of text, whose map has one row."""
PREFIX_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens", "cls_register_token")
"""Parameters that are prefix tokens: as many as they have rows."""
BGR = (
    "mobilevit",
    "mobilevitv2",
    "pp_ocrv6_medium_det",
    "pp_ocrv6_small_det",
    "pp_ocrv6_small_rec",
    "pp_ocrv6_tiny_rec",
    "uvdoc",
)
"""Kinds whose image processor gives them blue first."""
OPTIONAL_PARTS = {"add_pooling_layer": "pooler", "use_mask_token": "mask_token"}
"""Arguments of some classes, and the word in the keys of the part that they add."""
OWN_MODULES = "transformers.models."
"""Where the classes of transformers itself lie; the code of repositories lies elsewhere."""


class TransformersBackbone(InterpolatingBackbone):
    """A vision model, or the vision tower of a model for images and text."""

    def __init__(self, model: object, options: BackboneOptions = NO_OPTIONS):
        """As `ProbedBackbone`."""
        tower = vision_tower(model)
        self.kind: str = tower.config.model_type
        self.patches: int | None = tower.config.patch_size if "spatial_shapes" in parameters(tower) else None
        if self.kind == "vit_mae":
            tower.config.mask_ratio = 0.0  # a frozen backbone sees the whole image; its order is kept by `noise`
        self._last_norm: LastNorm | None = None
        self._norm_sought = False
        facts, origins = tower_facts(tower, options, self.patches)
        super().__init__(tower, options, facts=facts, origins=origins)
        if self.kind in BGR and self.input.channels == 3:
            self.input = replace(self.input, channel_order="BGR")

    def call(self, tiles: Tensor) -> Any:
        """The last hidden state, (b, n, c) or (b, c, h, w); after the last norm, where the model has one."""
        if self.kind == "pixtral" and len(tiles) > 1:  # it joins the images of a batch to one sequence
            return torch.cat([self.call(tile) for tile in tiles.split(1)])
        answer = self._run(tiles)
        if self.output is not None:
            return answer
        found: Any = next((answer[key] for key in OUTPUTS if answer.get(key) is not None), answer)
        found = found[-1] if isinstance(found, tuple | list) else found
        if self.kind == "yolos":  # its detection tokens come last
            return found[:, : -self.model.config.num_detection_tokens]
        return found

    def call_layers(self, tiles: Tensor) -> Features:
        """The hidden states after blocks, as the model gives them (mostly without its last norm) or `norm_layers` says.

        Of a model with `out_features` (`Dinov2Backbone`, `AutoBackbone`, …): its maps, as `layers` counts them.
        """
        if is_backbone(self.model):
            return self._feature_maps(tiles)
        if self.kind == "pixtral" and len(tiles) > 1:
            return join([self.call_layers(tile) for tile in tiles.split(1)])
        states = self._run(tiles, output_hidden_states=True).hidden_states
        count = len(states) - 1  # the first is what the blocks are given
        numbers = [layer + count if layer < 0 else layer for layer in self.layers or ()]
        if not all(0 <= number < count for number in numbers):
            raise S2WrapError(f"layers={self.layers} are not all blocks of {self.name}, which has {count}")
        normed = self._norm(count - 1 in numbers)
        maps, prefixes = [], []
        for number in numbers:
            state = states[number + 1]
            if normed is not None and not (normed.in_states and number == count - 1):
                if state.shape[-1] != normed.width:
                    raise S2WrapError(
                        f"norm_layers=True: layer {number} of {self.name} has {state.shape[-1]} channels, and its last "
                        f"norm takes {normed.width}; leave it out"
                    )
                state = self.model.get_submodule(normed.name)(state)
            if state.ndim == 3 and self.layout.order == "bnc":
                prefix = self.layout.num_prefix_tokens
                rows = self.grid_hw((tiles.shape[-2], tiles.shape[-1]))[0] if number == count - 1 else None
                rows = rows or _rows(state.shape[1] - prefix, tiles)
                maps.append(rearrange(state[:, prefix:], "b (h w) c -> b c h w", h=rows))
                prefixes.append(state[:, :prefix])
            else:
                state = rearrange(state, "b h w c -> b c h w") if self.layout.order == "bhwc" else state
                maps.append(state)
                prefixes.append(state.new_zeros(state.shape[0], 0, state.shape[1]))
        return Features(tuple(maps), tuple(prefixes))

    def _norm(self, with_last: bool) -> LastNorm | None:
        """The norm that layers are to be put through; None if they are taken as they are.

        Args:
            with_last: the last block is among the layers.
        """
        if self.norm_layers is None:
            return None
        if not self._norm_sought:
            generator = torch.Generator().manual_seed(0)  # the caller's own random numbers stay as they were
            tile = torch.randn(1, self.input.channels, *self.image_hw, generator=generator, device="cpu")
            tile = tile.to(self.device, self.dtype)
            if not has_values(tile):
                raise S2WrapError(
                    f"norm_layers={self.norm_layers} of {self.name}, which has no values: on meta or fake"
                )
            self._last_norm = find_last_norm(self.model, lambda: self._run(tile, output_hidden_states=True))
            self._norm_sought = True
        if self._last_norm is None and self.norm_layers:
            raise S2WrapError(
                f"norm_layers=True: {self.name} puts no norm on the tokens of its last block; leave it out"
            )
        if self._last_norm is not None and self._last_norm.in_states and with_last and not self.norm_layers:
            raise S2WrapError(
                f"norm_layers=False: transformers gives the last block of {self.name} after its last norm alone; use "
                f"norm_layers=True, or layers before the last"
            )
        return self._last_norm if self.norm_layers else None

    def _feature_maps(self, tiles: Tensor) -> Features:
        """The maps of `out_features` that `layers` counts."""
        if self.norm_layers is not None:
            raise S2WrapError(
                f"norm_layers={self.norm_layers} of a {type(self.model).__name__}, whose config has apply_layernorm "
                f"for it where it can; leave it out"
            )
        answer = self._run(tiles).feature_maps
        if not all(-len(answer) <= layer < len(answer) for layer in self.layers or ()):
            raise S2WrapError(
                f"layers={self.layers}, but a {type(self.model).__name__} with out_features="
                f"{list(self.model.out_features)} returns {len(answer)} maps; use 0 to {len(answer) - 1}"
            )
        maps, prefixes = [], []
        for layer in self.layers or ():
            spatial, prefix = answer[layer], 0
            if spatial.ndim == 3:  # reshape_hidden_states=False: tokens, with those before the patches
                prefix = self.layout.num_prefix_tokens
                rows = _rows(spatial.shape[1] - prefix, tiles)
                prefixes.append(spatial[:, :prefix])
                maps.append(rearrange(spatial[:, prefix:], "b (h w) c -> b c h w", h=rows))
            else:
                prefixes.append(spatial.new_zeros(len(spatial), 0, spatial.shape[1]))
                maps.append(spatial)
        return Features(tuple(maps), tuple(prefixes))

    def _run(self, tiles: Tensor, **options: object) -> Any:
        if self.kind in BGR and tiles.shape[1] == 3:
            tiles = tiles.flip(1)
        if self.patches is not None:  # NaFlex: patches instead of pixels, rows and columns beside them
            grid = torch.tensor([[side // self.patches for side in tiles.shape[-2:]]] * len(tiles), device=tiles.device)
            tiles = rearrange(tiles, "b c (h p) (w q) -> b (h w) (p q c)", p=self.patches, q=self.patches)
            mask = torch.ones(tiles.shape[:2], dtype=torch.int32, device=tiles.device)
            options |= {"pixel_attention_mask": mask, "spatial_shapes": grid}
        if self.kind == "vit_mae":
            count = self.model.embeddings.patch_embeddings.num_patches
            options["noise"] = torch.arange(count, device=tiles.device).expand(len(tiles), -1)
        return self.model(pixel_values=tiles, return_dict=True, **self.size_options, **options)


def _prefix_tokens(tower: Any) -> int | None:
    """CLS, distillation and register tokens among the embeddings' parameters; None if the probe must look."""
    found = {name.rpartition(".")[2]: part for name, part in tower.named_parameters() if "embeddings" in name}
    counts = [part.shape[-2] if part.ndim > 1 else 1 for name, part in found.items() if name in PREFIX_TOKENS]
    has_positions = any("position_embedding" in name for name, _ in tower.named_parameters())
    return sum(counts) if counts or has_positions else None


def _rows(count: int, tiles: Tensor) -> int:
    return round((count * tiles.shape[-2] / tiles.shape[-1]) ** 0.5)


def image_size_of(config: object) -> Any:
    """The size in pixels of images that a config says; None where it says none."""
    size = getattr(config, "image_size", None) or getattr(getattr(config, "backbone_config", None), "image_size", None)
    return tuple(size) if isinstance(size, list) else size


def tower_facts(tower: Any, options: BackboneOptions, patches: int | None) -> tuple[BackboneOptions, dict[str, Origin]]:
    """What is known of a vision tower, and where from if not from its config."""
    kind, config = tower.config.model_type, tower.config
    processed, origin = _processed(kind, getattr(config, "name_or_path", ""))
    if hasattr(getattr(tower, "input_conditioner", None), "norm_mean"):  # RADIO normalises for itself
        processed, origin = replace(processed, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), "model"
    origins: dict[str, Origin] = dict.fromkeys(("mean", "std", "interpolation"), origin)
    size = image_size_of(config) or (patches and round(config.num_patches**0.5) * patches)
    if not size:
        origins["image_size"] = origin if processed.image_size else "class default"
    facts = replace(
        processed,
        name=kind,
        num_prefix_tokens=_prefix_tokens(tower),
        image_size=size or processed.image_size or 224,
        in_channels=getattr(config, "num_channels", None),
    )
    if is_backbone(tower):
        if getattr(config, "reshape_hidden_states", False):  # the maps are without them
            facts = replace(facts, num_prefix_tokens=None)
    elif stride_hw := (UNTOLD_STRIDES | LINE_STRIDES).get(kind):
        height, width = options.over(facts).image_size  # pyright: ignore[reportGeneralTypeIssues] (checked: a pair)
        grid = (-(-height // stride_hw[0]), -(-width // stride_hw[1]))
        facts = replace(facts, layout="bnc" if kind in UNTOLD_STRIDES else "bchw", grid=grid)
    return facts, origins


def _processed(kind: str, source: str) -> tuple[BackboneOptions, Origin]:
    """What the image processor of a checkpoint says, where one is at hand; else the default of the class for its kind.

    Args:
        kind: the kind of model.
        source: the repository or folder that the model was loaded from; nothing is downloaded.
    """
    import transformers
    from transformers.models.auto import image_processing_auto

    if source:
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError, ImportError):
            pass  # a model without one, or whose processor is not in the cache
        else:
            return processor_options(processor), "processor"
    processors: Any = vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"]
    entry = processors.get(kind) or processors.get(kind.removesuffix("_vision_model"))
    candidates = list(entry.values()) if isinstance(entry, dict) else list(entry or ())
    name = next((name for name in candidates if isinstance(name, str)), None)
    try:
        processor = getattr(transformers, str(name))()
    except (AttributeError, ImportError, TypeError, ValueError):
        return NO_OPTIONS, "unknown"
    return processor_options(processor), "class default"


def load(
    name: str,
    options: BackboneOptions = NO_OPTIONS,
    *,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
) -> Backbone:
    """A repository of the hub or a folder (facebook/dinov2-small), or a kind (dinov2) in its default configuration."""
    transformers = library()
    spec = f"transformers:{name}"
    if name in names():
        if pretrained and checkpoint is None:
            raise S2WrapError(
                f"{spec} is a kind of model and has no weights; name a repository of the hub, such as "
                f"transformers:facebook/dinov2-small, draw random ones (pretrained=False), or give a file (checkpoint=)"
            )
        config = default_config(name)
    else:
        config = from_hub(lambda: transformers.AutoConfig.from_pretrained(name), spec)
    if options.in_channels is not None:
        config.num_channels = options.in_channels
    if pretrained and checkpoint is None:
        model = pretrained_model(name, config)
        if options.processor is None:
            processor = from_hub(lambda: transformers.AutoImageProcessor.from_pretrained(name), spec)
            options = replace(options, processor=processor)
    else:
        model = make(config)
        if checkpoint is not None:
            load_exactly(model, checkpoint, spec, optional=POOLER)
    return adapt(model, options.named(name))


def describe(backbone: Backbone) -> dict[str, Any] | None:
    """The class of a vision tower, and its configuration; None for classes that are not transformers' own."""
    if type(backbone) is not TransformersBackbone or not type(backbone.model).__module__.startswith(OWN_MODULES):
        return None
    kind, config = type(backbone.model), backbone.model.config
    words = {word for key in backbone.model.state_dict() for word in key.split(".")}
    taken = inspect.signature(kind).parameters
    return {
        "module": kind.__module__,
        "class": kind.__name__,
        "config": json.loads(config.to_json_string(use_diff=False)),
        "attention": config._attn_implementation,
        "arguments": {name: part in words for name, part in OPTIONAL_PARTS.items() if name in taken},
    }


def rebuild(description: dict[str, Any]) -> Any:
    """The vision tower that `describe` described, with random weights."""
    transformers, module = library(), description["module"]
    kind = getattr(import_module(module), description["class"], None) if module.startswith(OWN_MODULES) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise S2WrapError(f"{module}.{description['class']} is no model of transformers {transformers.__version__}")
    config: Any = kind.config_class
    arguments = allowed(description, *OPTIONAL_PARTS)
    attention = description["attention"] if description["attention"] in ("eager", "sdpa") else None
    return kind(config.from_dict(description["config"], attn_implementation=attention), **arguments)


def adapt(model: Any, options: BackboneOptions = NO_OPTIONS) -> Backbone:
    """A backbone of a vision model; of a wrapper around a timm model (`TimmWrapperModel`, …), that of timm's."""
    inner = getattr(model, "timm_model", None)
    if inner is None:
        return TransformersBackbone(model, options)
    checkpoint = getattr(model.config, "pretrained_cfg", None) or {}
    facts = BackboneOptions(mean=checkpoint.get("mean"), std=checkpoint.get("std"))
    return TimmBackbone(inner, options, facts=facts)


def matches(model: object) -> bool:
    """Whether a model is one of transformers'."""
    return made_by(model, "transformers") and hasattr(model, "config")


FAMILY = Family(
    "transformers",
    adapt,
    matches,
    names,
    load,
    open_ended=True,
    describe=describe,
    rebuild=rebuild,
)
