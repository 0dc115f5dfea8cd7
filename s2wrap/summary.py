"""A model at a glance: what `print(model)` says of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2wrap.wrapper import MultiScale

MAX_LINE = 300
"""Characters of a line of a model's summary, at most: a model may have hundreds of bands."""


def summary(model: "MultiScale") -> dict[str, str]:
    """What is worth knowing of a model, each part on a line that is not too long to read."""
    backbone, options = model.backbone, model.options
    plan, (own_hw, _) = model.plan(backbone.image_hw), model.grids(backbone.image_hw)
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    known = {name: text for name, (text, _) in model.input.describe().items()}
    scales = [
        f"{scale.scale} ({part.image_hw[0]}×{part.image_hw[1]} pixels, "
        + ("whole" if scale.whole else f"{part.block_size[0]}×{part.block_size[1]} tiles")
        + f", grid {own[0]}×{own[1]})"
        for scale, part, own in zip(model.scales, plan.scales, own_hw, strict=True)
    ]
    maps = [f"{channels} channels on {rows}×{cols}" for channels, rows, cols in model.map_shapes(backbone.image_hw)]
    others = {"fit": options.fit, "fuse": options.fuse} | options.changed()
    guessed = " (guessed: the default of a class)" if model.input.guessed else ""
    takes = known["value_range"] if model.input.normalises else "normalised floats only"
    lines = {
        "backbone": f"{backbone.name}, {weights:,} weights, {str(backbone.dtype)[6:]} on {backbone.device}",
        "input": f"{model.input.channels} channels, {known['image_hw']}, mean {known['mean']}, std {known['std']}"
        f"{guessed}; takes {takes}; resized {known['interpolation']}",
        "scales": ", ".join(scales),
        "options": ", ".join(f"{name}={value!r}" for name, value in others.items() if name != "scales"),
        "result": f"{', '.join(maps)} cells",
        "cost": f"{plan.num_tiles} backbone passes for an image of {known['image_hw']}",
    }
    return {name: text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 1]}…" for name, text in lines.items()}
