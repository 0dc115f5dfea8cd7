"""`s2wrap inspect`: what is known of a model and from where, and what an image costs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table

import s2wrap
from s2wrap.cli import model as flags
from s2wrap.cli import output


@flags.model_options(pretrained=False)
def describe(
    spec: Annotated[str, typer.Argument(help=flags.SPEC_HELP)],
    *,
    image: flags.Image = None,
    as_json: output.Json = False,
    options: dict[str, Any],
) -> None:
    """Show what is known of a model and what an image costs; no weights are downloaded.

    Beside what the model takes stands where that is known from. Weights are random unless a checkpoint is given.
    """
    model = s2wrap.load(spec, **options)
    facts = _facts(model, flags.image_hw(image) if image else model.backbone.image_hw)
    if as_json:
        output.print_json({"model": spec, **facts})
        return
    table = Table(title=spec, show_header=False)
    for name, text in _rows(facts).items():
        table.add_row(name, text)
    output.results().print(table)


def _facts(model: "s2wrap.MultiScale", image_hw: tuple[int, int]) -> dict[str, Any]:
    """What is known of a model, and what an image of this size costs."""
    from s2wrap.cost import count_cost

    backbone, layout = model.backbone, model.backbone.layout
    plan, (own_hw, _) = model.plan(image_hw), model.grids(image_hw)
    scales = [
        {
            "scale": str(scale.scale),
            "image_hw": part.image_hw,
            "padding_hw": part.padding_hw,
            "tile_hw": part.tile_hw,
            "tiles": part.block_size,
            "grid_hw": own,
        }
        for scale, part, own in zip(model.scales, plan.scales, own_hw, strict=True)
    ]
    return {
        "backbone": backbone.name,
        "layout": layout.order,
        "patch_hw": layout.patch_hw,
        "grid_hw": layout.grid_hw,
        "prefix_tokens": layout.num_prefix_tokens,
        "channels": layout.num_features,
        "input": {
            name: {"value": getattr(model.input, name), "text": text, "known_from": origin}
            for name, (text, origin) in model.input.describe().items()
        },
        "scales": scales,
        "looked_at_hw": image_hw,
        "maps_chw": model.map_shapes(image_hw),
        **asdict(count_cost(model, image_hw)),
    }


def _rows(facts: dict[str, Any]) -> dict[str, str]:
    """The same in words: the lines of a table."""
    maps = ", ".join(f"{channels} channels on {_by(grid_hw)}" for channels, *grid_hw in facts["maps_chw"])
    return {
        "backbone": f"{facts['backbone']}, {facts['parameters'] / 1e6:.1f} M parameters",
        **{
            f"input: {name.replace('_', ' ')}": f"{fact['text']} (known from: {fact['known_from']})"
            for name, fact in facts["input"].items()
        },
        "layout": f"{facts['layout']}, {_by(facts['grid_hw'])} tokens of {_by(facts['patch_hw'])} pixels, "
        f"{facts['prefix_tokens']} prefix tokens",
        "features": f"{facts['channels']} channels",
        **{
            f"scale {part['scale']}": f"{_by(part['image_hw'])} pixels, {_tiles(part)}, own grid {_by(part['grid_hw'])}"
            for part in facts["scales"]
        },
        "result": maps,
        f"an image of {_by(facts['looked_at_hw'])} costs": f"{facts['tiles']} tiles, {facts['tokens']:,} tokens, "
        f"at most {facts['peak_tokens']:,} in one call",
        "": f"{facts['multiply_adds'] / 1e9:.2f} G multiply-adds (PyTorch's FLOP counter ÷ 2, attention in full)",
    }


def _tiles(part: dict[str, Any]) -> str:
    whole = part["tiles"] == (1, 1) and part["tile_hw"] == part["image_hw"]
    padded = f" with {_by(part['padding_hw'])} pixels of padding" if any(part["padding_hw"]) else ""
    return ("whole" if whole else f"{_by(part['tiles'])} tiles") + padded


def _by(pair: Sequence[float]) -> str:
    return f"{pair[0]:g}×{pair[1]:g}"
