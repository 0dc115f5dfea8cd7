"""`s2wrap inspect`: what was found about a backbone, and what wrapping it costs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from s2wrap.cli import model as options
from s2wrap.cost import count_cost
from s2wrap.wrapper import MultiScale, load


def describe(
    spec: Annotated[str, typer.Argument(help=options.SPEC_HELP)],
    *,
    image_size: options.ImageSize = None,
    fit: options.Fit = None,
    whole: options.Whole = None,
    overlap: options.Overlap = None,
    target_grid: options.TargetGrid = None,
    fuse: options.Fuse = None,
    weights: options.Weights = None,
    image: options.Image = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what was found about a backbone and what an image costs. Needs no weights: nothing is downloaded."""
    model = load(
        spec,
        pretrained=False,
        image_size=image_size,
        **options.given(
            fit=fit,
            whole=whole,
            overlap=overlap,
            target_grid=options.target_grid(target_grid),
            fuse=fuse,
            weights=options.weights(weights),
        ),
    )
    found = _found(model, options.image_hw(image) if image else model.backbone.image_hw)
    if as_json:
        print(json.dumps({"model": spec, **found}, indent=2))
        return
    table = Table(title=spec, show_header=False)
    for name, text in _rows(found).items():
        table.add_row(name, text)
    Console().print(table)


def _found(model: MultiScale, image_hw: tuple[int, int]) -> dict[str, Any]:
    """What was found about a backbone, and what an image of this size costs."""
    backbone, layout = model.backbone, model.backbone.layout
    plan, (own_hw, result_hw) = model.plan(image_hw), model.grids(image_hw)
    grids_hw = own_hw if model.fuse == "pyramid" else [result_hw]
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
    return {
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
        "maps_chw": [(model.num_features, *grid_hw) for grid_hw in grids_hw],
        **asdict(count_cost(model, image_hw)),
    }


def _rows(found: dict[str, Any]) -> dict[str, str]:
    """The same in words: the lines of a table."""
    grids = ", ".join(_by(grid_hw) for _, *grid_hw in found["maps_chw"])
    return {
        "backbone": f"{found['backbone']}, {found['parameters'] / 1e6:.1f} M parameters",
        "input size": f"{_by(found['input_hw'])} pixels, {found['interpolation']}",
        "mean, std": f"{_rgb(found['mean'])}, {_rgb(found['std'])}",
        "layout": f"{found['layout']}, {_by(found['grid_hw'])} tokens of {_by(found['patch_hw'])} pixels, "
        f"{found['prefix_tokens']} prefix tokens",
        "channels": str(found["channels"]),
        **{
            f"scale {part['scale']}": f"{_by(part['image_hw'])} pixels, {_tiles(part)}, own grid {_by(part['grid_hw'])}"
            for part in found["scales"]
        },
        "result": f"{found['maps_chw'][0][0]} channels on {grids}",
        f"an image of {_by(found['looked_at_hw'])} costs": f"{found['tiles']} tiles, {found['tokens']:,} tokens, "
        f"at most {found['peak_tokens']:,} in one call",
        "": f"{found['multiply_adds'] / 1e9:.2f} G multiply-adds (PyTorch's FLOP counter ÷ 2, attention in full)",
    }


def _tiles(part: dict[str, Any]) -> str:
    whole = part["tiles"] == (1, 1) and part["tile_hw"] == part["image_hw"]
    padded = f" with {_by(part['padding_hw'])} pixels of padding" if any(part["padding_hw"]) else ""
    return ("whole" if whole else f"{_by(part['tiles'])} tiles") + padded


def _by(pair: Sequence[float]) -> str:
    return f"{pair[0]:g}×{pair[1]:g}"


def _rgb(values: tuple[float, ...] | None) -> str:
    return "unknown" if values is None else "(" + ", ".join(f"{value:g}" for value in values) + ")"
