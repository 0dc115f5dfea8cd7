"""Find defective parts from pictures of flawless ones, and show where the defect is. Nothing is trained.

    python benchmarks/tasks_data.py made && python demos/inspect_parts.py made/defects
    python demos/inspect_parts.py mvtec/bottle --export bottle.onnx

A folder as MVTec AD, MVTec AD 2 or VisA has it: `train/good`, `test/good`, `test/KIND` for each kind of defect, and
masks in `ground_truth/KIND/`. The first line makes a woven cloth with planted defects, from a seed.

A bank keeps tokens of flawless training pictures; a spot of a new picture is as odd as its token is far from
the nearest of the bank (as in PatchCore, arXiv 2106.08265, with cosines). A quarter of the flawless pictures stays out
of the bank: a part is rejected if its oddest spots are odder than those of all but `--false-alarms` of them, so no
defect has to be seen before. With `--export` model and bank become one file whose output "head" is the map of oddness,
with the threshold in its manifest; the file is then loaded, and its answer compared.
"""

import math
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from command import start
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import s2wrap
from s2wrap.compare.data import load_mask, read_folder
from s2wrap.compare.tasks.anomaly import TOP, AnomalyMap, make_bank, pixel_scores
from s2wrap.export.manifest import kind_of
from s2wrap.export.pipeline import check_unwritten
from s2wrap.files import whole_file
from s2wrap.upsample import upsample

SHOWN = 3
"""Pictures of each kind in the figure."""


def main(
    folder: Annotated[Path, typer.Argument(help="A set of parts, as MVTec AD, MVTec AD 2 or VisA has it.")],
    model: Annotated[str, typer.Option(help="As for s2wrap.load.")] = "sample:dinov2_s14@1:phases=2,2",
    fuse: Annotated[str, typer.Option(help="How scales are fused.")] = "detail",
    layer: Annotated[
        int, typer.Option(help="The block whose features are taken; middle ones tell textures best.")
    ] = -6,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="For a quick try.")] = False,
    false_alarms: Annotated[
        float, typer.Option(min=0, max=1, help="Share of flawless parts that may be rejected.")
    ] = 0.05,
    export: Annotated[
        Path | None, typer.Option(help="Write the model with its bank into this file: .onnx, .plan, .rtx or .pt2.")
    ] = None,
    output: Annotated[Path, typer.Option(help="The figure.")] = Path("inspect_parts.png"),
) -> None:
    """Print how many parts of each kind are rejected, and draw where the defects are."""
    console = Console()
    if export is not None:  # said before the work
        kind_of(export)
        check_unwritten(export, overwrite=False)
    pictures = read_folder(folder)
    if pictures.kind != "defective":
        raise typer.BadParameter(f"{folder} has no train/good and test/KIND, as MVTec AD has them")
    options: dict[str, Any] = {"fuse": fuse, "layers": (layer,), "pretrained": not random_weights}
    wrapped = s2wrap.load(model, **options)
    (fold,), paths = pictures.folds, pictures.paths
    with torch.inference_mode():
        maps = {
            index: wrapped(paths[index]).spatial[0].float() for index in track([*fold.train, *fold.test], "looking")
        }
    kept = set(list(fold.train)[::4])  # a quarter sets the threshold
    nearest = AnomalyMap(make_bank([maps[index] for index in fold.train if index not in kept]))
    heats = {index: nearest(maps[index][None])[0, 0] for index in [*kept, *fold.test]}
    flawless = [oddness(heats[index]) for index in kept]
    threshold = float(np.quantile(flawless, 1 - false_alarms))
    test = {index: (paths[index].parent.name, oddness(heats[index])) for index in fold.test}
    show_table(test, threshold, console)
    masks = [mask_of(pictures, index) for index in fold.test]
    for name, value in pixel_scores([heats[index] for index in fold.test], iter(masks)).items():
        low, high = value.interval()
        console.print(f"{name}: {value.value:.3f} ({low:.3f} to {high:.3f})", highlight=False)
    draw(
        {index: (Image.open(paths[index]), heats[index], mask_of(pictures, index)) for index in first_of(test)},
        test,
        threshold,
        output,
    )
    console.print(f"wrote {output}", highlight=False)
    if export is not None:
        write(wrapped, nearest, threshold, export, paths[fold.test[0]], console)


def oddness(heat: Tensor) -> float:
    """How odd a picture is: the mean of its oddest 1 % of cells."""
    return float(heat.flatten().topk(max(1, round(TOP * heat.numel()))).values.mean())


def mask_of(pictures, index: int) -> np.ndarray:
    """Which pixels of a picture are defective."""
    path = pictures.masks[index]
    return np.zeros(pictures.sizes[index], dtype=bool) if path is None else load_mask(path) > 0


def show_table(test: dict[int, tuple[str, float]], threshold: float, console: Console) -> None:
    """Print how many parts of each kind are rejected."""
    table = Table("kind", "parts", "rejected", "oddness, median", title=f"rejected above {threshold:.3f}")
    for kind in sorted({kind for kind, _ in test.values()}):
        values = [value for name, value in test.values() if name == kind]
        rejected = sum(value > threshold for value in values)
        table.add_row(kind, str(len(values)), f"{rejected} ({rejected / len(values):.0%})", f"{np.median(values):.3f}")
    console.print(table)


def first_of(test: dict[int, tuple[str, float]]) -> list[int]:
    """The first pictures of each kind: none is picked by hand."""
    kinds = sorted({kind for kind, _ in test.values()})
    return [index for kind in kinds for index in [i for i, (name, _) in test.items() if name == kind][:SHOWN]]


def draw(shown: dict[int, tuple[Image.Image, Tensor, np.ndarray]], test, threshold: float, output: Path) -> None:
    """Draw parts with what is odd about them in colour, and the true defect outlined."""
    columns = math.ceil(len(shown) / 2) if len(shown) > 6 else len(shown)
    figure, axes = plt.subplots(
        math.ceil(len(shown) / columns), columns, figsize=(2.4 * columns, 5.6), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (index, (picture, heat, mask)) in zip(axes.flat, shown.items(), strict=False):
        fine = upsample(heat[None, None], (picture.height, picture.width))[0, 0].numpy()
        axis.imshow(picture.convert("L"), cmap="gray")
        over = ((fine - threshold / 2) / threshold).clip(0, 1)
        axis.imshow(fine, cmap="inferno", alpha=0.75 * over, vmin=0, vmax=2 * threshold)
        if mask.any():
            axis.contour(mask, levels=[0.5], colors="#00e5ff", linewidths=1)
        kind, value = test[index]
        wrong = (value > threshold) == (kind == "good")
        axis.set_title(
            f"{kind}: {'rejected' if value > threshold else 'passed'}",
            fontsize=10,
            color="#c62828" if wrong else "black",
        )
    figure.suptitle(
        "bright: unlike any flawless part · blue line: the true defect · red title: a wrong verdict", fontsize=11
    )
    with whole_file(output) as draft:
        figure.savefig(draft, dpi=75)
    plt.close(figure)


def write(
    wrapped: s2wrap.MultiScale, nearest: AnomalyMap, threshold: float, file: Path, picture: Path, console: Console
) -> None:
    """Write the model with its bank as one file, and compare a picture's oddness."""
    from s2wrap.export import export, load

    side, notes = max(wrapped.image_hw), {"threshold": threshold, "top": TOP}
    export(
        wrapped,
        file,
        image_hw=(side, side),
        head=nearest,
        outputs=("pooled", "head"),  # without the features' map, which is large
        notes=notes,
        console=console,
    )
    image = wrapped.transform((side, side))(Image.open(picture).convert("RGB"))[None]
    with torch.inference_mode():
        own = oddness(nearest(wrapped(image).spatial.float()))
    exported = oddness(load(file)(image).head)
    console.print(
        f"wrote {file}: a picture's oddness is {exported:.5f} from the file, {own:.5f} in PyTorch", highlight=False
    )


if __name__ == "__main__":
    start(main)
