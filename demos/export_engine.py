"""Export DINOv2-S at 1×, 2×, 3× as ONNX and as a TensorRT-RTX engine, on any computer, and draw their features.

    pip install -c constraints.txt -e ".[demo,export,tensorrt-rtx]" && python demos/export_engine.py

Writes both files, prints their differences from PyTorch token by token, and draws the features of a photograph by each:
the first three principal components, in the same colours for all. The engine itself runs only where there is an NVIDIA
GPU that TensorRT-RTX supports; the graph that it was built from runs everywhere.
"""

from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import typer
from einops import rearrange
from photos import photo
from rich.console import Console

import s2wrap
from s2wrap.components import principal_components
from s2wrap.export import export, load
from s2wrap.files import whole_file


def main(
    folder: Annotated[Path, typer.Option(help="Where the files go.")] = Path(),
    model: Annotated[str, typer.Option(help="FAMILY:NAME@SCALES.")] = "sample:dinov2_s14@1,2,3",
    targets: Annotated[str, typer.Option(help="GPU generations of the engine.")] = "sm80,sm89,sm120",
    side: Annotated[int, typer.Option(help="Height and width of the images in pixels.")] = 512,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("export_engine.png"),
) -> None:
    """Export, compare and draw."""
    console, name = Console(), model.partition(":")[2].partition("@")[0]
    wrapped = s2wrap.load(model)
    pixels = torch.from_numpy(photo("astronaut"))
    images = rearrange(pixels, "h w c -> 1 c h w")
    images = torch.nn.functional.interpolate(images.float(), (side, side), mode="bicubic", antialias=True)
    images = images.round().clamp(0, 255).to(torch.uint8)
    with torch.inference_mode():
        results = {"PyTorch, float32": wrapped(images).spatial}
    options: dict[str, Any] = {"image_hw": (side, side), "precision": "fp16", "pixels": "uint8", "console": console}
    builds: dict[str, dict[str, Any]] = {".onnx": {}, ".rtx": {"targets": targets.split(",")}}
    for suffix, build_options in builds.items():
        path = folder / (name + suffix)
        export(wrapped, path, **options, **build_options)
        console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", highlight=False)
    results["ONNX Runtime, float16"] = load(folder / f"{name}.onnx")(images).spatial
    if torch.cuda.is_available():
        results["TensorRT-RTX, float16"] = load(folder / f"{name}.rtx")(images).spatial.cpu()
    draw(pixels.numpy(), results, output, title=f"{model}: the same features from the exported graph")
    console.print(f"wrote {output}", highlight=False)


def draw(pixels, results: dict[str, torch.Tensor], output: Path, *, title: str) -> None:
    """Draw the photograph beside the principal components of each map, with its cosine to the first."""
    expected, *_ = maps = list(results.values())
    figure, axes = plt.subplots(1, 1 + len(results), figsize=(3.2 * (1 + len(results)), 4.1), layout="constrained")
    figure.suptitle(title, fontsize=13)
    pictures = [pixels, *(colours[0] for colours in principal_components(maps))]
    titles = ["photograph\n"]
    for name, spatial in results.items():
        cosine = torch.cosine_similarity(spatial.float(), expected, dim=1)
        titles.append(f"{name}\n" + ("" if spatial is expected else f"least cosine {cosine.min():.6f}"))
    for axis, picture, text in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(text, fontsize=11)
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=80)


if __name__ == "__main__":
    typer.run(main)
