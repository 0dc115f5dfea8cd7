"""Wrap every model of four libraries, and compare each with the library's own feature call.

    python benchmarks/zoo.py [--library timm] [--pattern 'vit_*'] [--part 0/2]

Random weights, the models' own input sizes. Models above `--reduce-above` million parameters keep the first and last
of each row of equal blocks: every kind of layer is there, at its width, but the depth is not. Goes on where it stopped:
a model that is in the table already is not run again. Scale 1 must be the library's features, and scale 2 those of a
plain loop over four tiles, to 1e-4 of the largest value.
"""

import csv
import fnmatch
import gc
import logging
import signal
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import s2wrap
from s2wrap.backbones.registry import FAMILIES, Spec, load_backbone

RESULTS = Path(__file__).parent / "results" / "zoo.csv"
LIBRARIES = ("timm", "open_clip", "transformers", "torchvision")
BIG = 2**16
"""Tensors above this many values are drawn uniformly, and quickly."""
TOLERANCE = 1e-4


class TooLong(BaseException):
    """Not an Exception: nobody on the way up may take it for an answer of the model."""


@dataclass(frozen=True)
class Row:
    """What was seen of one model."""

    library: str
    model: str
    result: str  # "equal", "refused", "wrong" or "failed"
    kind: str = ""  # "values" or "reduced"
    parameters_m: str = ""
    input_hw: str = ""
    layout: str = ""
    grid_hw: str = ""
    prefix_tokens: str = ""
    channels: str = ""
    error_1: str = ""
    error_2: str = ""
    reason: str = ""
    seconds: str = ""


def main(
    library: Annotated[
        str | None, typer.Option(help="timm, open_clip, transformers or torchvision; all by default.")
    ] = None,
    pattern: Annotated[str, typer.Option(help="Which names.")] = "*",
    part: Annotated[str, typer.Option(help="Which of how many equal parts: 0/2 and 1/2 can run side by side.")] = "0/1",
    reduce_above: Annotated[float, typer.Option(help="Million parameters of a model in full depth.")] = 10,
    time_limit: Annotated[int, typer.Option(help="Seconds for a model; it is called failed after that.")] = 300,
    output: Annotated[Path, typer.Option(help="The table; it is added to.")] = RESULTS,
) -> None:
    """Wrap every model and print how many are equal, refused or wrong."""
    quiet()
    signal.signal(signal.SIGALRM, _too_long)
    torch.manual_seed(0)
    libraries = [library] if library else LIBRARIES
    wanted = [(name, model) for name in libraries for model in models_of(name) if fnmatch.fnmatch(model, pattern)]
    first, _, step = part.partition("/")
    done = {(row.library, row.model) for row in read(output)}
    todo = [pair for pair in wanted[int(first) :: int(step)] if pair not in done]
    output.parent.mkdir(exist_ok=True)
    if not output.exists():
        append(output, [[field.name for field in fields(Row)]])
    for name, model in track(todo, description="zoo", console=Console(stderr=True)):
        signal.alarm(time_limit)
        append(output, [list(asdict(look(name, model, reduce_above)).values())])
        signal.alarm(0)
        timm_grid.cache_clear()
        gc.collect()
    show([row for row in read(output) if (row.library, row.model) in set(wanted)])


def models_of(library: str) -> list[str]:
    """Every architecture of a library, without the tags of weights."""
    names = FAMILIES[library].names()
    tags = {"timm": ".", "open_clip": "/"}.get(library)
    return sorted({name for name in names if tags is None or tags not in name})


def look(library: str, name: str, reduce_above: float) -> Row:
    """Wrap one model and compare it; in full depth where it cannot do without the blocks that were taken out."""
    row = _look(library, name, reduce_above)
    if row.kind == "reduced" and row.result != "equal":
        row = _look(library, name, float("inf"))
    return row


def _look(library: str, name: str, reduce_above: float) -> Row:
    start = time.perf_counter()
    seen: dict[str, str] = {"library": library, "model": name}
    try:
        with quick_weights():
            model = build(library, name)
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        seen |= {"parameters_m": f"{count:.1f}", "kind": "values"}
        if count > reduce_above:
            seen["kind"] = "reduced"
            shorten(model)
        fill(model)
        seen |= compare(library, model)
    except s2wrap.S2WrapError as error:
        seen |= {"result": "refused", "reason": first_line(error)}
    except (Exception, TooLong) as error:
        seen |= {"result": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}
    return Row(**seen, seconds=f"{time.perf_counter() - start:.1f}")


def build(library: str, name: str) -> Any:
    """The model as its library makes it, with random weights."""
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=0).eval()
    if library == "open_clip":
        import open_clip

        return open_clip.create_model(name, load_weights=False, pretrained_hf=False).eval().visual  # type: ignore[union-attr]
    return load_backbone(Spec(library, name, ("1",)), pretrained=False).model.eval()


@torch.no_grad()
def compare(library: str, model: Any) -> dict[str, str]:
    """What was found about a model, and the largest differences from the library's own features at scales 1 and 2."""
    wrapped = s2wrap.wrap(model, scales=(1, 2), fuse="pyramid", whole=False)
    backbone, layout = wrapped.backbone, wrapped.backbone.layout
    found = {
        "input_hw": by(backbone.image_hw),
        "layout": layout.order,
        "grid_hw": by(layout.grid_hw),
        "prefix_tokens": str(layout.num_prefix_tokens),
        "channels": str(layout.num_features),
    }
    height, width = backbone.image_hw
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    doubled = functional.interpolate(image, (2 * height, 2 * width), mode=backbone.interpolation, antialias=True)
    own = OWN[library]
    one, two = wrapped(image).maps
    reference, prefix = own(model, image, layout.grid_hw)
    if reference.shape != one.shape or prefix not in (None, layout.num_prefix_tokens):
        shapes = f"{tuple(one.shape)} with {layout.num_prefix_tokens} prefix tokens"
        reason = f"{shapes}; the library has {tuple(reference.shape)} with {prefix}"
        return found | {"result": "wrong", "reason": reason}
    rows = [
        torch.cat([own(model, tile.contiguous(), layout.grid_hw)[0] for tile in row.split(width, dim=3)], dim=3)
        for row in doubled.split(height, dim=2)
    ]
    stitched = torch.cat(rows, dim=2)
    error_1 = difference(one, reference)
    found |= {"error_1": f"{error_1:.1e}"}
    if layout.patch_hw != (height / layout.grid_hw[0], width / layout.grid_hw[1]):  # a rest is unseen between the tiles
        found["reason"] = "scale 2 not compared: its patches do not divide the tile"
        return found | {"result": "equal" if error_1 <= TOLERANCE else "wrong"}
    error_2 = difference(two, stitched)
    equal = max(error_1, error_2) <= TOLERANCE
    return found | {"error_2": f"{error_2:.1e}", "result": "equal" if equal else "wrong"}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference as a share of the largest value; infinite for other shapes or for no finite numbers."""
    if ours.shape != theirs.shape or not theirs.isfinite().all() or theirs.abs().max() == 0:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max())


def timm_features(model: Any, image: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, int | None]:
    """Timm's map by its own words: `forward_features`, read by `num_features`, else its last intermediate map."""
    answer = model.forward_features(image.clone())
    if not isinstance(answer, Tensor) or (answer.ndim == 3 and answer.shape[1] <= 2):
        maps = model.forward_intermediates(image.clone(), norm=True, intermediates_only=True, output_fmt="NCHW")
        return maps[-1], 0
    if answer.ndim == 4:
        last = answer.shape[3] == model.num_features and answer.shape[1] != model.num_features
        if answer.shape[1] == answer.shape[3]:  # the library's own word for it
            last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return (answer.movedim(3, 1) if last else answer), 0
    rows, cols = timm_grid(model, tuple(image.shape))
    prefix = answer.shape[1] - rows * cols
    return answer[:, prefix:].transpose(1, 2).reshape(1, -1, rows, cols), prefix


@cache
def timm_grid(model: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of timm's last intermediate map for an image of this shape."""
    maps = model.forward_intermediates(torch.zeros(shape), indices=1, intermediates_only=True, output_fmt="NCHW")
    return maps[-1].shape[-2], maps[-1].shape[-1]


def open_clip_features(model: Any, image: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, int | None]:
    """open_clip's map by its own `forward_intermediates`; of timm trunks by timm's."""
    if hasattr(model, "trunk"):
        return timm_features(model.trunk, image, grid_hw)
    if not hasattr(model, "attn_pool"):
        return model.forward_intermediates(image, indices=1)["image_intermediates"][-1], 0
    plain = model.attn_pool is not None or model.final_ln_after_pool
    options = {"normalize_intermediates": not plain, "output_extra_tokens": True, "intermediates_only": True}
    answer = model.forward_intermediates(image, indices=1, **options)
    return answer["image_intermediates"][-1], answer["image_intermediates_prefix"][-1].shape[1]


def torchvision_features(model: Any, image: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, int | None]:
    """What the last module before the pooling returns while the whole model runs."""
    if hasattr(model, "encoder"):
        tokens = outputs(model, image, model.encoder)[-1]
        side = model.image_size // model.patch_size
        return tokens[:, 1:].transpose(1, 2).reshape(1, -1, side, side), 1
    if hasattr(model, "classifier") and hasattr(model, "features"):
        found = outputs(model, image, model.features)[-1]
        return (functional.relu(found) if type(model).__name__ == "DenseNet" else found), 0
    found = [part for part in outputs(model, image, *model.modules()) if part.ndim == 4 and part.shape[-1] > 1]
    return found[-1], 0


def transformers_features(model: Any, image: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, int | None]:
    """The library's last hidden state; its tokens are read by the model's own patch size or stride."""
    options: dict[str, Any] = {}
    kind, config = model.config.model_type, model.config
    if kind == "vit_mae":  # nothing masked, nothing shuffled
        options["noise"] = torch.arange((image.shape[-1] // config.patch_size) ** 2)[None]
    if kind == "siglip2_vision_model":
        side = config.patch_size
        patches = functional.unfold(image, side, stride=side).transpose(1, 2)
        patches = patches.unflatten(2, (3, side * side)).transpose(2, 3).flatten(2)
        rows, cols = (int(length) // side for length in image.shape[-2:])
        options = {"pixel_attention_mask": torch.ones(1, rows * cols, dtype=torch.int32)}
        options["spatial_shapes"] = torch.tensor([[rows, cols]])
        image = patches
    answer = model(pixel_values=image, **options)
    features = answer.get("last_hidden_state")
    features = answer["feature_maps"][-1] if features is None else features
    if features.ndim == 4:
        last = features.shape[1:3] == grid_hw and features.shape[3] not in grid_hw
        return (features.movedim(3, 1) if last else features), 0
    if kind == "yolos":
        features = features[:, : -config.num_detection_tokens]
    prefix = features.shape[1] - grid_hw[0] * grid_hw[1]
    return features[:, prefix:].transpose(1, 2).reshape(1, -1, *grid_hw), None


OWN = {
    "timm": timm_features,
    "open_clip": open_clip_features,
    "torchvision": torchvision_features,
    "transformers": transformers_features,
}


def outputs(model: nn.Module, image: Tensor, *modules: nn.Module) -> list[Tensor]:
    """What modules return, in the order of their calls, while a model runs."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, answer: Any) -> None:
        if isinstance(answer, Tensor):
            found.append(answer.clone())

    handles = [module.register_forward_hook(keep) for module in modules if module is not model]
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found


class _Unfilled(TorchFunctionMode):
    """Leaves large parameters as memory gives them: `fill` draws them, after `shorten`."""

    IN_PLACE = frozenset(
        ["normal_", "uniform_", "erfinv_", "mul_", "div_", "add_", "clamp_", "zero_", "fill_", "copy_"]
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        drawn = name in self.IN_PLACE or getattr(nn.init, name, None) is func
        target = args[0] if args else (kwargs or {}).get("tensor")
        if drawn and isinstance(target, nn.Parameter) and target.numel() > BIG:
            return target
        return func(*args, **(kwargs or {}))


@contextmanager
def quick_weights() -> Any:
    """Models are made without drawing their large weights."""
    with _Unfilled():
        yield


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Draw the large weights, so that variances are kept, and shake norms and biases off their 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() > BIG:
            inputs = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.uniform_(-((3 / inputs) ** 0.5), (3 / inputs) ** 0.5, generator=generator)
        elif parameter.ndim <= 1 and parameter.is_floating_point():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


def shorten(model: nn.Module) -> None:
    """Keep the first and the last of every row of more than two equal blocks."""
    for parent in list(model.modules()):
        for row in list(parent.children()):
            blocks = list(row.children())
            equal = len({type(block) for block in blocks}) == 1 and sum(1 for _ in blocks[0].modules()) > 5
            if isinstance(row, nn.Sequential | nn.ModuleList) and len(blocks) > 2 and equal and not stages(row):
                row._modules = {"0": blocks[0], "1": blocks[-1]}


def stages(row: nn.Module) -> bool:
    """Whether the members of a row differ in width: stages, which must all stay."""
    shapes = [[tuple(parameter.shape) for parameter in block.parameters()] for block in list(row.children())[1:]]
    return any(shape != shapes[-1] for shape in shapes)


def quiet() -> None:
    """No warnings of libraries between the lines of progress."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def append(path: Path, rows: list[list[Any]]) -> None:
    """Add lines to the table, each in one write."""
    with path.open("a", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def read(path: Path) -> list[Row]:
    """The table so far."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [Row(**row) for row in csv.DictReader(stream)]


def show(rows: list[Row]) -> None:
    """How many models of each library are equal, refused, wrong or failed."""
    results = ("equal", "refused", "wrong", "failed")
    table = Table("library", "models", *results)
    for library in LIBRARIES:
        counts = Counter(row.result for row in rows if row.library == library)
        table.add_row(library, str(counts.total()), *(str(counts[result]) for result in results))
    Console().print(table)


def _too_long(*_signal: Any) -> None:
    raise TooLong("it took longer than the time limit")


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().partition("\n")[0][:300]


def by(pair: tuple[int, int]) -> str:
    """A pair as text."""
    return f"{pair[0]}x{pair[1]}"


if __name__ == "__main__":
    typer.run(main)
