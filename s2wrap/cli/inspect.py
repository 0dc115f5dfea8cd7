"""`s2wrap inspect`: what was found about a backbone, and what wrapping it costs."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from s2wrap.cli import model as options
from s2wrap.cost import count_cost
from s2wrap.errors import S2WrapError
from s2wrap.wrapper import load


def describe(
    spec: Annotated[str, typer.Argument(help=options.SPEC_HELP)],
    *,
    image_size: options.ImageSize = None,
    fit: options.Fit = "stretch",
    whole: options.Whole = None,
    overlap: options.Overlap = 0,
    target_grid: options.TargetGrid = None,
    fuse: options.Fuse = "concat",
    image: Annotated[str | None, typer.Option(help="Height and width of the image, as 480x640.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what was found about a backbone and what an image costs. Needs no weights: nothing is downloaded."""
    grid = options.target_grid(target_grid)
    asked: dict[str, Any] = {"fit": fit, "whole": whole, "overlap": overlap, "target_grid": grid, "fuse": fuse}
    model = load(spec, pretrained=False, image_size=image_size, **asked)
    backbone, layout = model.backbone, model.backbone.layout
    image_hw = _image_hw(image) if image else backbone.image_hw
    plan, (own_hw, result_hw) = model.plan(image_hw), model.grids(image_hw)
    cost = count_cost(model, image_hw)
    scales = [
        {
            "scale": str(scale),
            "image_hw": part.image_hw,
            "padding_hw": part.padding_hw,
            "tile_hw": part.tile_hw,
            "tiles": part.block_size,
            "grid_hw": own,
        }
        for scale, part, own in zip(model.scales, plan.scales, own_hw, strict=True)
    ]
    found = {
        "model": spec,
        "backbone": backbone.name,
        "input_hw": backbone.image_hw,
        "layout": layout.order,
        "patch_hw": layout.patch_hw,
        "grid_hw": layout.grid_hw,
        "prefix_tokens": layout.num_prefix_tokens,
        "channels": layout.num_features,
        "mean": backbone.mean,
        "std": backbone.std,
        "interpolation": backbone.interpolation,
        "scales": scales,
        "looked_at_hw": image_hw,
        "result_chw": (model.num_features, *result_hw),
        **asdict(cost),
    }
    if as_json:
        print(json.dumps(found, indent=2))
        return
    rows = {
        "backbone": f"{backbone.name}, {cost.parameters / 1e6:.1f} M parameters",
        "input size": f"{_by(backbone.image_hw)} pixels, {backbone.interpolation}",
        "mean, std": f"{_numbers(backbone.mean)}, {_numbers(backbone.std)}",
        "layout": f"{layout.order}, {_by(layout.grid_hw)} tokens of {_by(layout.patch_hw)} pixels, "
        f"{layout.num_prefix_tokens} prefix tokens",
        "channels": str(layout.num_features),
        **{
            f"scale {part['scale']}": f"{_by(part['image_hw'])} pixels, {_tiles(part)}, own grid {_by(part['grid_hw'])}"
            for part in scales
        },
        "result": f"{model.num_features} channels on {_by(result_hw)}",
        f"an image of {_by(image_hw)} costs": f"{cost.tiles} tiles, {cost.tokens:,} tokens, "
        f"at most {cost.peak_tokens:,} in one call",
        "": f"{cost.multiply_adds / 1e9:.2f} G multiply-adds (PyTorch's FLOP counter ÷ 2, attention in full)",
    }
    table = Table(title=spec, show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    Console().print(table)


def _tiles(part: dict[str, Any]) -> str:
    whole = part["tiles"] == (1, 1) and part["tile_hw"] == part["image_hw"]
    padded = f" with {_by(part['padding_hw'])} pixels of padding" if any(part["padding_hw"]) else ""
    return ("whole" if whole else f"{_by(part['tiles'])} tiles") + padded


def _image_hw(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise S2WrapError(f"--image {text!r} is no size; write height and width as 480x640")
    return int(height), int(width)


def _by(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g}×{pair[1]:g}"


def _numbers(values: tuple[float, ...] | None) -> str:
    return "unknown" if values is None else "(" + ", ".join(f"{value:g}" for value in values) + ")"
