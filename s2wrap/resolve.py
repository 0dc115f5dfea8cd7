"""What a model's options come to with one backbone: every scale decided, and nothing left without effect."""

import math

from s2wrap.backbones.base import Backbone
from s2wrap.errors import S2WrapError
from s2wrap.options import Options
from s2wrap.plan import round_to
from s2wrap.policies import Pair
from s2wrap.scales import Fit, ResolvedScale, Scale, parse_scales


def resolve_scales(options: Options, backbone: Backbone) -> tuple[ResolvedScale, ...]:
    """The scales of a model with every option decided.

    A scale runs whole where it is asked to; by default where the backbone is a convolutional network or the scale is
    below 1, unless its policy chooses tiles, and the backbone takes such sizes.

    Raises:
        S2WrapError: a whole scale on a backbone of one size; an option that has no effect with this backbone.
    """
    scales = parse_scales(options.scales)
    resolved = tuple(_resolve(scale, options, backbone) for scale in scales)
    if options.policy is not None and all(scale.policy is None for scale in resolved):
        raise _no_tiles_to_choose("policy", options.policy, *resolved)
    for name, why in _without_effect(options, scales, resolved, backbone).items():
        if name in options.changed():
            raise S2WrapError(f"{name}={getattr(options, name)!r} has no effect: {why}; leave it out")
    tokens = min(backbone.layout.grid_hw)
    if options.overlap >= tokens:
        raise S2WrapError(
            f"overlap={options.overlap} tokens, but a tile of {backbone.name} has {tokens}; use 0 to {tokens - 1}"
        )
    if not options.join_layers and backbone.layers is None:
        raise S2WrapError(
            "join_layers=False has no effect without layers; give layers=, such as (-7, -1), or leave it out"
        )
    if backbone.norm_layers is not None and backbone.layers is None:
        raise S2WrapError(
            f"norm_layers={backbone.norm_layers} has no effect without layers; give layers=, such as (-1,), or leave "
            f"it out"
        )
    grids = {layout.grid_hw for layout in backbone.layouts}
    if options.fuse == "pyramid" and options.join_layers and len(grids) > 1:
        raise S2WrapError(
            f"fuse='pyramid' with layers of {backbone.name} on grids of {', '.join(f'{h}×{w}' for h, w in grids)}, "
            f"which cannot be joined on channels; use join_layers=False: a map a scale and layer"
        )
    return resolved


def _resolve(scale: Scale, options: Options, backbone: Backbone) -> ResolvedScale:
    fit = scale.fit or options.fit
    policy = scale.policy or options.policy or ("closest" if fit == "aspect" else None)
    box_hw = scale.box_hw(backbone.image_hw)
    smaller = min(box_hw) < min(backbone.image_hw)
    whole = options.whole if scale.whole is None else scale.whole
    if box_hw == backbone.image_hw and fit == "stretch":
        whole = False  # a tile is the whole
    elif whole is None:
        wanted = scale.policy is None and options.policy is None and (backbone.convolutional or smaller)
        whole = wanted and not backbone.refuses_other_sizes and not _why_no_multiple(box_hw, fit, backbone)
    if whole and backbone.refuses_other_sizes:
        remedy = f"{backbone.remedy_for_sizes}, or " * bool(backbone.remedy_for_sizes)
        raise S2WrapError(
            f"scale {scale} cannot run whole: {backbone.name} takes images of {backbone.image_hw[0]}×"
            f"{backbone.image_hw[1]} pixels only ({backbone.refuses_other_sizes}); {remedy}use whole=False: tiles"
        )
    if whole and (why := _why_no_multiple(box_hw, fit, backbone)):
        raise S2WrapError(f"scale {scale} cannot run whole: {why}")
    phases = scale.phases or options.phases
    if phases > (most := min(backbone.stride_hw)):
        raise S2WrapError(
            f"phases={phases} at scale {scale}, but {backbone.name} has {most} pixels from one token to the next; use "
            f"1 to {most}"
        )
    resolved = ResolvedScale(scale, box_hw, fit, whole, None if whole or fit == "stretch" else policy, phases)
    for name, value in (("policy", scale.policy), ("max_tiles", scale.max_tiles)):
        if value is not None and resolved.policy is None:
            raise _no_tiles_to_choose(name, value, resolved)
    return resolved


def _why_no_multiple(box_hw: Pair, fit: Fit, backbone: Backbone) -> str:
    """Why a backbone, such as one with windows, does not take the sizes of a whole scale; empty if it takes them."""
    multiple_hw = backbone.whole_multiple_hw
    if multiple_hw == backbone.stride_hw:
        return ""  # every image is resized to whole strides
    remedy = f"{backbone.remedy_for_sizes}, or " * bool(backbone.remedy_for_sizes)
    needs = f"{backbone.name} takes whole images in multiples of {multiple_hw[0]}×{multiple_hw[1]} pixels only"
    if fit != "stretch":
        return f"{needs}, and fit={fit!r} makes others; {remedy}use whole=False"
    size_hw = round_to(box_hw, backbone.stride_hw)
    if all(side % multiple == 0 for side, multiple in zip(size_hw, multiple_hw, strict=True)):
        return ""
    side = math.ceil(size_hw[0] / multiple_hw[0]) * multiple_hw[0]
    return (
        f'{needs}, and this is {size_hw[0]}×{size_hw[1]}; {remedy}use a scale such as "{side}px", or whole=False: tiles'
    )


def _without_effect(
    options: Options, scales: tuple[Scale, ...], resolved: tuple[ResolvedScale, ...], backbone: Backbone
) -> dict[str, str]:
    """The options that change nothing beside the others, and why."""
    without = {
        name: f"every scale has a {name} of its own"
        for name in ("fit", "policy", "whole", "phases")
        if all(getattr(scale, name) is not None for scale in scales)
    }
    tiled = [scale for scale in resolved if not _in_one_call(scale, backbone)]
    looks = any(scale.phases > 1 for scale in resolved)  # which overlap, and are blended
    if not tiled:
        passes = "in one pass each, " * (not looks)
        names = ("overlap",) if looks else ("overlap", "blend")
        seen = f"{backbone.name} sees every image at scale {', '.join(str(scale.scale) for scale in resolved)}"
        without |= dict.fromkeys(names, f"{seen} {passes}without tiles")
    elif not looks and not options.overlap and not any(_overlaps(scale, backbone) for scale in tiled):
        without["blend"] = "no tiles overlap (overlap=0)"
    if not any(layout.num_prefix_tokens for layout in backbone.layouts) and options.prefix == "base":
        without["prefix"] = f"{backbone.name} has no prefix tokens"
    return without


def _overlaps(scale: ResolvedScale, backbone: Backbone) -> bool:
    """Whether tiles may overlap although nobody asked for it, as where they do not divide the resized image."""
    return scale.fit == "pad" or any(box % tile for box, tile in zip(scale.box_hw, backbone.image_hw, strict=True))


def _in_one_call(scale: ResolvedScale, backbone: Backbone) -> bool:
    """Whether every image is seen in one call at a scale, so that there are no tiles to overlap."""
    fits = all(box <= tile for box, tile in zip(scale.box_hw, backbone.image_hw, strict=True))
    return scale.whole or (scale.fit == "stretch" and fits)


def _no_tiles_to_choose(name: str, value: object, *scales: ResolvedScale) -> S2WrapError:
    """The error for a policy or its budget where no tiles are chosen."""
    return S2WrapError(
        f"{name}={value!r} has no effect on scale {', '.join(map(str, scales))}; use fit='aspect', or fit='pad' with a "
        f"policy, and whole=False: tiles"
    )
