"""From a photograph to an engine: DINOv2-S at 1×, 2×, 3× as ONNX and as a TensorRT-RTX engine, on any computer.

    pip install -c constraints.txt -e ".[demo,export,tensorrt-rtx]" && python demos/export_engine.py

Writes both files, prints how near they are to PyTorch token by token, and draws what each sees of a photograph: the
first three principal components of the fused features, in the same colours for all. The engine itself runs where there
is an NVIDIA GPU that TensorRT-RTX knows; elsewhere the graph that it was built from does.
"""

from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import typer
from einops import rearrange
from first_look import pca_pictures
from photos import photo
from rich.console import Console

import s2wrap
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
        seen = {"PyTorch, float32": wrapped(images).spatial}
    options: dict[str, Any] = {"image_hw": (side, side), "precision": "fp16", "pixels": "uint8", "console": console}
    builds: dict[str, dict[str, Any]] = {".onnx": {}, ".rtx": {"targets": targets.split(",")}}
    for ending, build in builds.items():
        path = folder / (name + ending)
        export(wrapped, path, **options, **build)
        console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", highlight=False)
    seen["ONNX Runtime, float16"] = load(folder / f"{name}.onnx")(images).spatial
    if torch.cuda.is_available():
        seen["TensorRT-RTX, float16"] = load(folder / f"{name}.rtx")(images).spatial.cpu()
    draw(pixels.numpy(), seen, output, title=f"{model}: the same features from the exported graph")
    console.print(f"wrote {output}", highlight=False)


def draw(pixels, seen: dict[str, torch.Tensor], output: Path, *, title: str) -> None:
    """The photograph beside the principal components of each map, with its cosine to the first."""
    expected, *_ = maps = list(seen.values())
    figure, axes = plt.subplots(1, 1 + len(seen), figsize=(3.2 * (1 + len(seen)), 4.1), layout="constrained")
    figure.suptitle(title, fontsize=13)
    pictures = [pixels, *pca_pictures(maps)]
    titles = ["photograph\n"]
    for name, found in seen.items():
        cosine = torch.cosine_similarity(found.float(), expected, dim=1)
        titles.append(f"{name}\n" + ("" if found is expected else f"least cosine {cosine.min():.6f}"))
    for axis, picture, text in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(text, fontsize=11)
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=80)


if __name__ == "__main__":
    typer.run(main)
