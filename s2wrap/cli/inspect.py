"""`s2wrap inspect`: what was found about a backbone, and what wrapping it costs."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from s2wrap.cli import model as options
from s2wrap.cost import count_cost
from s2wrap.wrapper import load


def describe(
    spec: Annotated[str, typer.Argument(help=options.SPEC_HELP)],
    *,
    image_size: options.ImageSize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what was found about a backbone and what an image costs. Needs no weights: nothing is downloaded."""
    model = load(spec, pretrained=False, image_size=image_size)
    backbone, layout, plan = model.backbone, model.backbone.layout, model.plan(model.backbone.image_hw)
    cost = count_cost(model)
    scales = [
        {
            "scale": str(scale),
            "image_hw": part.image_hw,
            "tiles": (len(part.rows.starts), len(part.cols.starts)),
            "grid_hw": grid,
        }
        for scale, part, grid in zip(model.scales, plan.scales, model.grids_hw, strict=True)
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
        "result_chw": (model.num_features, *min(model.grids_hw)),
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
            f"scale {part['scale']}": f"{_by(part['image_hw'])} pixels, {_by(part['tiles'])} tiles, "
            f"own grid {_by(part['grid_hw'])}"
            for part in scales
        },
        "result": f"{model.num_features} channels on {_by(min(model.grids_hw))}",
        "an image costs": f"{cost.tiles} tiles, {cost.tokens:,} tokens, at most {cost.peak_tokens:,} in one call",
        "": f"{cost.multiply_adds / 1e9:.2f} G multiply-adds (PyTorch's FLOP counter ÷ 2, attention in full)",
    }
    table = Table(title=spec, show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    Console().print(table)


def _by(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g}×{pair[1]:g}"


def _numbers(values: tuple[float, ...] | None) -> str:
    return "unknown" if values is None else "(" + ", ".join(f"{value:g}" for value in values) + ")"
