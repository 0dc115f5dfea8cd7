"""timm models: what they say about themselves, and their `forward_features`."""

import inspect
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.checkpoint import cached_file, exact_loading, read_tensors
from s2wrap.backbones.family import Family, Place, allowed
from s2wrap.backbones.probed import NO_OPTIONS, ProbedBackbone
from s2wrap.errors import S2WrapError, first_line
from s2wrap.features import Features
from s2wrap.options import BackboneOptions, Interpolation

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where timm looks for the weights in a file of a training script: averaged ones first."""


class TimmBackbone(ProbedBackbone):
    """A model made by `timm.create_model`: `forward_features`, with size, mean and std from its own configuration."""

    def __init__(self, model: Any, options: BackboneOptions = NO_OPTIONS, *, facts: BackboneOptions = NO_OPTIONS):
        """As `ProbedBackbone`."""
        own = replace(
            timm_facts(model, model.pretrained_cfg),
            layout="bnc" if _is_levit(model) and not model.use_conv else None,
            num_prefix_tokens=_prefix_tokens(model),
        )
        super().__init__(model, options, facts=facts.over(own))

    def call(self, tiles: Tensor) -> Any:
        """Timm's features after the last norm: (b, n, c), (b, c, h, w) or (b, h, w, c)."""
        if self.only_intermediates:
            return self.model.forward_intermediates(tiles, indices=1, norm=True, intermediates_only=True)[-1]
        return self.model.forward_features(tiles)

    def call_layers(self, tiles: Tensor) -> Features:
        """Timm's features of blocks, after its last norm where the width allows it, unless `norm_layers` is False."""
        call = getattr(self.model, "forward_intermediates", None)
        if call is None:
            raise S2WrapError(f"layers={self.layers}: timm tells no features of the blocks of {self.name}")
        known = inspect.signature(call).parameters
        options: dict[str, Any] = {"indices": list(self.layers or ()), "intermediates_only": True}
        options |= {"norm": self.norm_layers is not False}
        options |= {"return_prefix_tokens": True, "stop_early": True}
        if self.norm_layers is not None and "norm" not in known:
            raise S2WrapError(
                f"norm_layers={self.norm_layers}: timm gives the blocks of {self.name} one way; leave it out"
            )
        try:
            answer = call(tiles, **{name: value for name, value in options.items() if name in known})
        except (AssertionError, IndexError, ValueError) as error:
            raise S2WrapError(f"layers={self.layers} are not all blocks of {self.name}: {error}") from error
        maps, prefixes = [], []
        for part in answer:
            spatial, prefix = part if isinstance(part, tuple | list) else (part, None)
            maps.append(spatial)
            prefixes.append(spatial.new_zeros(spatial.shape[0], 0, spatial.shape[1]) if prefix is None else prefix)
        return Features(tuple(maps), tuple(prefixes))

    @property
    def remedy_for_sizes(self) -> str:
        """The argument of timm, for models that have it."""
        fixed = getattr(self.model, "dynamic_img_size", None) is False
        return "make it with timm.create_model(…, dynamic_img_size=True)" if fixed else ""

    def any_size(self, allow: bool) -> bool:
        """Let a ViT interpolate its position embeddings, as if made with `dynamic_img_size=True`, or no longer."""
        return interpolate_positions(self.model, allow)

    @property
    def lacks_cls(self) -> str:
        """As `Backbone.lacks_cls`; a ViT of timm without `cls_token` has registers alone."""
        if not super().lacks_cls and getattr(self.model, "cls_token", self.model) is None:
            return f"{self.name} has {self.layout.num_prefix_tokens} registers as prefix tokens, and no CLS token"
        return super().lacks_cls

    @property
    def only_intermediates(self) -> bool:
        """Whether `forward_features` keeps no map, or several: then the last map of `forward_intermediates` counts."""
        kind = type(self.model).__name__
        return kind in ("PoolingVisionTransformer", "CrossVit", "EfficientViM", "EfficientViMDistilled") or (
            kind == "CoaT" and self.model.parallel_blocks is not None
        )


def timm_facts(model: Any, cfg: Any) -> BackboneOptions:
    """What the configuration `cfg` of a timm model says of its images."""
    return BackboneOptions(
        name=cfg.get("architecture"),
        image_size=_image_size(model, cfg),
        mean=cfg.get("mean"),
        std=cfg.get("std"),
        interpolation=cfg["interpolation"] if cfg.get("interpolation") in get_args(Interpolation) else None,
    )


def interpolate_positions(model: Any, allow: bool) -> bool:
    """Set timm's `dynamic_img_size` after construction; whether that changed anything."""
    from timm.layers.format import Format

    patches = getattr(model, "patch_embed", None)
    if patches is None or getattr(model, "dynamic_img_size", None) is not (not allow) or patches.flatten is not allow:
        return False  # Swin's patches are no line of tokens
    model.dynamic_img_size = allow
    patches.strict_img_size = patches.flatten = not allow
    patches.output_fmt = Format.NHWC if allow else Format.NCHW
    return True


def _prefix_tokens(model: object) -> int | None:
    """What timm says; its LeViT has none, and does not say so."""
    return 0 if _is_levit(model) else getattr(model, "num_prefix_tokens", None)


def _is_levit(model: object) -> bool:
    return type(model).__name__ in ("Levit", "LevitDistilled")


def is_timm(model: object) -> bool:
    """Whether a model has timm's feature call and configuration."""
    return isinstance(model, nn.Module) and hasattr(model, "forward_features") and hasattr(model, "pretrained_cfg")


def _image_size(model: Any, cfg: Any) -> tuple[int, int] | None:
    """The size the model was built for, else the one its weights were trained at."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or cfg.get("input_size")
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))


@cache
def names() -> tuple[str, ...]:
    """Every architecture, and every architecture with the tag of its weights."""
    import timm

    return (*timm.list_models(), *timm.list_pretrained())


def load(
    name: str,
    options: BackboneOptions = NO_OPTIONS,
    *,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    patch: int | None = None,
) -> TimmBackbone:
    """A timm model by name, with weights from the hub, from a file, or none."""
    source = (checkpoint or _hub_file(name)) if pretrained else None
    weights = None if source is None else read_tensors(source, WRAPPERS)
    return create(name, options, patch=patch, weights=weights, source=source)


def create(
    name: str,
    options: BackboneOptions = NO_OPTIONS,
    *,
    patch: int | None = None,
    weights: dict[str, Tensor] | None = None,
    source: str | Path | None = None,
) -> TimmBackbone:
    """A timm model without classifier.

    Args:
        name: as timm knows it.
        options: `image_size` and `in_channels` say what it is built for, where its architecture depends on a size; the
            others go before what it says of itself.
        patch: build it with patches of this side in pixels; the weights of its patch embedding are resampled to it
            (FlexiViT, Beyer et al. 2023, section 3.4), and its position embeddings to the finer or coarser grid.
        weights: tensors by their keys; random ones if None. timm renames those of other libraries, and resamples
            position embeddings to the image size. Then all must fit; the keys of a classifier are ignored.
        source: of the weights, for errors.

    Raises:
        S2WrapError: weights that do not fit, a patch size for a model without patches, or what timm cannot make.
    """
    import timm

    building: dict[str, Any] = {"num_classes": 0} | _sizes(name, options.image_size, patch)
    building |= {} if options.in_channels is None else {"in_chans": options.in_channels}
    origin = "" if source is None else f" from {source}"
    model: Any
    try:
        if weights is None:
            model = timm.create_model(name, **building)
        else:
            overlay = {"state_dict": weights}
            with exact_loading(name, source, unused=lambda: _outline(name, num_classes=1).state_dict().keys()):
                model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **building)
            model.pretrained_cfg.pop("state_dict", None)  # timm keeps a copy
    except S2WrapError:
        raise
    except Exception as error:
        raise S2WrapError(f"timm cannot make {name}{origin}: {first_line(error)}") from error
    return TimmBackbone(model, options)


def _sizes(name: str, image_size: int | tuple[int, int] | None, patch: int | None) -> dict[str, Any]:
    """The arguments that build a model for these sizes; a convolutional network is built for no image size."""
    if image_size is None and patch is None:
        return {}
    model = _outline(name, num_classes=0)
    arguments = _arguments(type(model))
    sizes: dict[str, Any] = {"img_size": image_size} if image_size is not None and "img_size" in arguments else {}
    if patch is not None:
        if "patch_size" not in arguments and not hasattr(getattr(model, "embeds", None), "patch_size"):  # NaFlexVit
            raise S2WrapError(f"{name} has no patches to resample, as patch={patch} asks; use a transformer")
        sizes["patch_size"] = patch
    return sizes


def _outline(name: str, num_classes: int) -> nn.Module:
    """A model whose tensors have shapes, but take no memory."""
    import timm

    with torch.device("meta"):
        return timm.create_model(name, num_classes=num_classes)


def _arguments(kind: type) -> set[str]:
    """The names that a class takes at construction, with those of its bases that it hands others to."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            names |= parameters.keys()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names


def _hub_file(name: str) -> str:
    """The file with a model's hub weights, downloaded unless it is here already."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    repo, filenames = _hub_names(name)
    if repo is None:
        raise S2WrapError(f"timm:{name} has no weights on the hub; give a file: --checkpoint FILE (checkpoint=)")
    if known := cached_file(repo, filenames):
        return known
    try:
        get_session().head(constants.ENDPOINT, timeout=10)  # one try: the library itself goes through ten
        if not huggingface_hub.file_exists(repo, filenames[0]):
            filenames = filenames[1:]
        return huggingface_hub.hf_hub_download(repo, filenames[0])
    except Exception as error:
        raise S2WrapError(
            f"the weights of timm:{name} are on the Hugging Face hub, which gave none ({first_line(error)}); give a "
            f"file with --checkpoint FILE (checkpoint=), or use packaged weights such as sample:dinov2_s14"
        ) from error


def _hub_names(name: str) -> tuple[str | None, list[str]]:
    """The repository of a model's weights, None where there is none, and the names that their file may have."""
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        return None, []
    return cfg.hf_hub_id, [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]


def where(name: str) -> Place | None:
    """Where the weights of a name are."""
    repo, filenames = _hub_names(name)
    return None if repo is None else "cached" if cached_file(repo, filenames) else "download"


def describe(backbone: Backbone) -> dict[str, Any] | None:
    """The architecture and tag of a model, and the arguments of its construction that it shows."""
    if type(backbone) is not TimmBackbone or not backbone.model.pretrained_cfg.get("architecture"):
        return None
    model, cfg = backbone.model, backbone.model.pretrained_cfg
    taken = _arguments(type(model))
    arguments = {"num_classes": model.num_classes, "in_chans": backbone.input.channels}
    pool = getattr(model, "global_pool", None)
    arguments |= {"global_pool": pool} if isinstance(pool, str) and "global_pool" in taken else {}
    for name in ("img_size", "patch_size"):
        size = getattr(getattr(model, "patch_embed", None), name, None)
        arguments |= {name: size} if size is not None and name in taken else {}
    return {"name": ".".join(filter(None, (cfg["architecture"], cfg.get("tag")))), "arguments": arguments}


def rebuild(description: dict[str, Any]) -> Any:
    """The model that `describe` described, with random weights."""
    import timm

    if ":" in description["name"]:
        raise S2WrapError(f"timm:{description['name']} names a hub or a folder, and not an architecture")
    arguments = allowed(description, "num_classes", "in_chans", "global_pool", "img_size", "patch_size")
    return timm.create_model(description["name"], **arguments)


FAMILY = Family(
    "timm",
    TimmBackbone,
    is_timm,
    names,
    load,
    describe=describe,
    rebuild=rebuild,
    resamples_patches=True,
    tag_mark=".",
    weights=where,
)
