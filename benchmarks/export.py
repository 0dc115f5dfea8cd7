"""Measure the cost of export: times to trace and to build, file sizes, and the nodes and work that the wrapper adds.

    python benchmarks/export.py [--models vit_small_patch14_dinov2] [--precision fp16] [--targets sm89]

Random weights. Builds TensorRT-RTX engines, which needs no GPU. An engine should have at most 1.1 times the bytes of
the weights plus 5 MB, and the wrapper add fewer than 80 nodes to the backbone's own.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import s2wrap
from s2wrap.cost import count_cost
from s2wrap.export.build import build_engine
from s2wrap.export.graph import ModelGraph, TilesGraph
from s2wrap.export.options import BuildOptions, GraphOptions, Precision
from s2wrap.export.trace import save, trace
from s2wrap.options import Fusion

MODELS = "vit_small_patch14_dinov2,vit_base_patch14_dinov2,vit_large_patch14_dinov2"
SCALES = "1,2 1,2,3 1,2,3,4,5,6,7,8"


def main(
    models: Annotated[str, typer.Option(help="Of timm, with commas between.")] = MODELS,
    scales: Annotated[str, typer.Option(help="Sets of scales, with spaces between.")] = SCALES,
    image: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    image_size: Annotated[int, typer.Option(help="Input size of the backbones in pixels.")] = 224,
    precision: Annotated[Precision, typer.Option(help="fp32, fp16 or bf16.")] = "fp16",
    fuse: Annotated[Fusion, typer.Option(help="How scales are fused.")] = "concat",
    targets: Annotated[str, typer.Option(help="GPU generations.")] = "sm89",
) -> None:
    """Print the table."""
    names = ("model", "scales", "trace", "ONNX", "nodes added", "work added", "build", "engine", "at most")
    table = Table(*names, title=f"{precision}, images of {image} pixels, {fuse}, {targets}, opset 23, random weights")
    console = Console(stderr=True)
    for name in models.split(","):
        backbone_nodes: int | None = None
        for text in scales.split():
            options: Any = {"image_size": image_size, "fuse": fuse}
            model = s2wrap.load(f"timm:{name}@{text}", pretrained=False, **options)
            with console.status(f"{name} at {text}"):
                if backbone_nodes is None:
                    backbone_nodes = len(
                        trace(TilesGraph(model, GraphOptions(tiles=True, precision=precision)), opset=23).graph.node
                    )
                table.add_row(name, text, *_figures(model, backbone_nodes, image, precision, targets, console))
    Console().print(table)


def _figures(
    model: s2wrap.MultiScale, backbone_nodes: int, image: int, precision: Precision, targets: str, console: Console
) -> list[str]:
    """Return the figures of one model, whose backbone alone has `backbone_nodes` nodes."""
    with tempfile.TemporaryDirectory() as folder:
        onnx_path, engine = Path(folder) / "model.onnx", Path(folder) / "model.rtx"
        start = time.perf_counter()
        graph = ModelGraph(model, GraphOptions(image_hw=(image, image), precision=precision))
        proto = trace(graph, opset=23)
        trace_s = time.perf_counter() - start
        save(proto, onnx_path, note="", weights="model.onnx.data")
        added_nodes = len(proto.graph.node) - backbone_nodes
        del proto
        start = time.perf_counter()
        build_engine(
            onnx_path,
            engine,
            kind="tensorrt_rtx",
            batch=(1, 8, 32),
            name=model.backbone.name,
            options=BuildOptions(targets=targets.split(",")),
            tf32=precision != "fp32",
            console=Console(quiet=True),
        )
        build_s = time.perf_counter() - start
        weights = sum(parameter.nbytes for parameter in graph.backbone.parameters())
        sizes = onnx_path.stat().st_size, engine.stat().st_size, 1.1 * weights + 5e6
    onnx_mb, engine_mb, most_mb = (f"{size / 1e6:.1f} MB" for size in sizes)
    console.print(f"{model.backbone.name}: {added_nodes} nodes, {engine_mb}", highlight=False)
    work = f"{graph.multiply_adds / count_cost(model).multiply_adds:.2%}"
    return [f"{trace_s:.0f} s", onnx_mb, str(added_nodes), work, f"{build_s:.0f} s", engine_mb, most_mb]


if __name__ == "__main__":
    typer.run(main)
