"""Wrap every model of four libraries, and compare each with the library's own feature call.

    python benchmarks/zoo.py [--library timm] [--pattern 'vit_*'] [--part 0/2]

Models have random weights and their own input sizes. Those above `--reduce-above` million parameters keep the first and
last of each run of equal blocks: every kind of layer at its width, but not the depth. Small models come first, and an
interrupted run continues: a model that is already in the table is not run again. Scale 1 must give the library's
features, and scale 2 those of a plain loop over four tiles, to 1e-4 of the largest value; where patches do not cover
the tile, after averaging both over even cells.
"""

import csv
import fnmatch
import gc
import importlib
import logging
import math
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
from s2wrap.backbones import from_transformers
from s2wrap.backbones.registry import FAMILIES

RESULTS = Path(__file__).parent / "results" / "zoo.csv"
LIBRARIES = ("timm", "open_clip", "transformers", "torchvision")
BIG = 2**16
"""Tensors with more values than this are drawn uniformly, which is quick."""
TOLERANCE = 1e-4
BGR = ("mobilevit", "mobilevitv2", "pp_ocrv6_small_rec", "pp_ocrv6_tiny_rec", "uvdoc")
"""Model types of transformers whose image processor reverses the channels."""


class TooLong(BaseException):
    """The time limit has passed. Not an Exception, so that no handler takes it for an error of the model."""


@dataclass(frozen=True)
class Row:
    """The result of one model."""

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
    silence_libraries()
    signal.signal(signal.SIGALRM, _too_long)
    torch.manual_seed(0)
    libraries = [library] if library else LIBRARIES
    selected = [(name, model) for name in libraries for model in models_of(name) if fnmatch.fnmatch(model, pattern)]
    first, _, step = part.partition("/")
    remaining = sorted(set(selected[int(first) :: int(step)]) - finished(output), key=lambda pair: work(*pair))
    output.parent.mkdir(exist_ok=True)
    if not output.exists():
        append(output, [[field.name for field in fields(Row)]])
    for name, model in track(remaining, description="zoo", console=Console(stderr=True)):
        if (name, model) in finished(output):  # by a parallel run
            continue
        signal.alarm(time_limit)
        append(output, [list(asdict(check_model(name, model, reduce_above)).values())])
        signal.alarm(0)
        timm_grid.cache_clear()
        gc.collect()
    show([row for row in read(output) if (row.library, row.model) in set(selected)])


def models_of(library: str) -> list[str]:
    """Return every architecture of a library, without the tags of weights."""
    names = FAMILIES[library].names()
    tags = {"timm": ".", "open_clip": "/"}.get(library)
    return sorted({name for name in names if tags is None or tags not in name})


def check_model(library: str, name: str, reduce_above: float, channels: int = 3) -> Row:
    """Return the result of one model; in full depth if it is not equal without the blocks that were removed."""
    row = _check_model(library, name, reduce_above, channels)
    if row.kind == "reduced" and row.result != "equal":
        row = _check_model(library, name, float("inf"), channels)
    return row


def _check_model(library: str, name: str, reduce_above: float, channels: int) -> Row:
    start = time.perf_counter()
    values: dict[str, str] = {"library": library, "model": name}
    if library == "transformers" and (options := missing_options(name)):
        values["reason"] = f"not in its default configuration, with which it fails: {', '.join(options)} given"
    try:
        with quick_weights():
            model = build(library, name, channels)
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        values |= {"parameters_m": f"{count:.1f}", "kind": "values"}
        if count > reduce_above:
            values["kind"] = "reduced"
            shorten(model)
        fill(model)
        comparison = compare_with_library(library, model)
        reasons = [each["reason"] for each in (values, comparison) if "reason" in each]
        values |= comparison | {"reason": "; ".join(reasons)}
    except s2wrap.S2WrapError as error:
        values |= {"result": "refused", "reason": first_line(error)}
    except (Exception, TooLong) as error:
        values |= {"result": "failed", "reason": f"{type(error).__name__}: {first_line(error)}"}
    return Row(**values, seconds=f"{time.perf_counter() - start:.1f}")


def work(library: str, name: str) -> float:
    """Return a rough estimate of a model's work, parameters times pixels; 0 if it cannot be made."""
    try:
        with torch.device("meta"):
            model = build(library, name)
        height, width = input_hw(model)
    except (Exception, TooLong):
        return 0
    return sum(parameter.numel() for parameter in model.parameters()) * height * width


def input_hw(model: Any) -> tuple[int, int]:
    """Return height and width of the images that a model takes by its configuration; 224 by default."""
    config = getattr(model, "config", model)
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or getattr(config, "pretrained_cfg", {}).get("input_size") or 224
    return (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))


def build(library: str, name: str, channels: int = 3) -> Any:
    """Return a model with random weights, made by its library; of models for images and text the vision tower.

    timm and transformers make models for other channels than three too.
    """
    if library == "timm":
        import timm

        options: dict[str, Any] = {"num_classes": 0} | ({} if channels == 3 else {"in_chans": channels})
        return timm.create_model(name, **options).eval()
    if library == "open_clip":
        from open_clip import model as clip

        config: Any = clip_config(name)
        tower = clip._build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))
        return tower.eval()
    if library == "transformers":
        config = default_config(name)
        if channels != 3:
            config.num_channels = channels
        model = from_transformers.make(config).eval()
        from_transformers.vision_tower(model)  # raises here for refused models, before large weights are drawn
        return model
    from torchvision import models

    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}  # otherwise they warn
    return models.get_model(name, weights=None, **options).eval()


def clip_config(name: str) -> Any:
    """Return open_clip's configuration of a model, without timm's weights."""
    import open_clip

    config: Any = open_clip.get_model_config(name)
    return config | {"vision_cfg": config["vision_cfg"] | {"timm_model_pretrained": False}}


def default_config(kind: str) -> Any:
    """Return the default configuration of a model type of transformers, completed so that the model runs."""
    config = from_transformers.default_config(kind)
    for key, value in missing_options(kind).items():
        setattr(config, key, value)
    return config


def missing_options(kind: str) -> dict[str, Any]:
    """Return the options without which the default configuration of a model type fails in transformers' own forward."""
    configs: Any = importlib.import_module("transformers")
    stages = configs.HGNetV2Config(out_indices=[1, 2, 3, 4])
    if kind == "aya_vision":
        return {"num_attention_heads": 16}  # 14 do not divide its width of 1152
    if kind in ("edgetam", "edgetam_vision_model"):  # a backbone that returns all its stages
        features = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
        return {"backbone_config": configs.TimmWrapperConfig(architecture="repvit_m1", model_args=features)}
    if kind == "pp_ocrv5_mobile_rec":  # its pooling needs a map of three rows
        return {"backbone_config": configs.PPLCNetV3Config(block_configs=line_strides())}
    if kind == "pp_ocrv6_small_det":
        return {"backbone_config": stages, "layer_list_out_channels": stages.stage_out_channels}
    if kind == "pp_ocrv6_medium_det":
        blocks: dict[str, Any] = {"reduce_channel": (1, 1, 0), "return_channel": (1, 1, 0)}
        for word, side in (("long", 7), ("mid", 5), ("short", 3)):
            blocks[f"vertical_long_to_small_conv_{word}ratio"] = ((side, 1), 1, (side // 2, 0))
            blocks[f"horizontal_small_to_long_conv_{word}ratio"] = ((1, side), 1, (0, side // 2))
            blocks[f"symmetric_conv_long_{word}ratio"] = (side, 1, side // 2)
        return {"backbone_config": stages, "intraclass_block_config": blocks, "scale_factor_list": [1, 2, 4, 8]}
    if kind == "timm_backbone":
        return {"backbone": "resnet18"}
    if kind == "uvdoc":  # its head joins all stages
        return {"backbone_config": configs.UVDocBackboneConfig(out_indices=[1, 2, 3, 4, 5, 6])}
    return {}


def line_strides() -> list[Any]:
    """Return the stages of PP-LCNet for lines of text, which halve the height three times and the width once."""
    configs: Any = importlib.import_module("transformers")
    stages = configs.PPLCNetV3Config().block_configs
    for (first, *_), stride in zip(stages, [1, (2, 1), (1, 2), (2, 1), (2, 1)], strict=True):
        first[3] = stride
    return stages


@torch.no_grad()
def compare_with_library(library: str, model: Any) -> dict[str, str]:
    """Return a model's layout, and the largest differences from the library's own features at scales 1 and 2."""
    wrapped = s2wrap.wrap(model, scales=(1, 2), fuse="pyramid", whole=False)
    backbone, layout = wrapped.backbone, wrapped.backbone.layout
    values = {
        "input_hw": by(backbone.image_hw),
        "layout": layout.order,
        "grid_hw": by(layout.grid_hw),
        "prefix_tokens": str(layout.num_prefix_tokens),
        "channels": str(layout.num_features),
    }
    height, width = backbone.image_hw
    image = torch.randn(1, wrapped.input.channels, height, width, generator=torch.Generator().manual_seed(1))
    doubled = functional.interpolate(image, (2 * height, 2 * width), mode=backbone.input.interpolation, antialias=True)
    of_library = LIBRARY_FEATURES[library]
    one, two = wrapped(image).maps
    reference, prefix = of_library(model, image, layout.grid_hw)
    if reference.shape != one.shape or prefix not in (None, layout.num_prefix_tokens):
        shapes = f"{tuple(one.shape)} with {layout.num_prefix_tokens} prefix tokens"
        reason = f"{shapes}; the library has {tuple(reference.shape)} with {prefix}"
        return values | {"result": "wrong", "reason": reason}
    rows = []
    for row in doubled.split(height, dim=2):
        tiles = [tile.contiguous() for tile in row.split(width, dim=3)]
        rows.append(torch.cat([of_library(model, tile, layout.grid_hw)[0] for tile in tiles], dim=3))
    stitched = torch.cat(rows, dim=2)
    if layout.patch_hw != (height / layout.grid_hw[0], width / layout.grid_hw[1]):
        values["reason"] = "its patches leave a rest of a tile unseen: compared with averages over even cells"
        reference, stitched = (on_even_cells(each, layout, backbone.image_hw) for each in (reference, stitched))
    error_1, error_2 = difference(one, reference), difference(two, stitched)
    equal = max(error_1, error_2) <= TOLERANCE
    return values | {
        "error_1": f"{error_1:.1e}",
        "error_2": f"{error_2:.1e}",
        "result": "equal" if equal else "wrong",
    }


def on_even_cells(stitched: Tensor, layout: Any, tile_hw: tuple[int, int]) -> Tensor:
    """Return the tokens of adjacent tiles averaged over even cells by the pixels that cell and token share."""
    for dim, tile, tokens, patch in zip((2, 3), tile_hw, layout.grid_hw, layout.patch_hw, strict=True):
        numbers = torch.arange(stitched.shape[dim], dtype=torch.float64)
        token = numbers // tokens * tile + numbers % tokens * patch  # its first pixel
        cell = (numbers * tile / tokens)[:, None]
        shared = (torch.minimum(cell + tile / tokens, token + patch) - torch.maximum(cell, token)).clamp(min=0)
        weights = (shared / shared.sum(dim=1, keepdim=True)).to(stitched)
        stitched = (stitched.movedim(dim, -1) @ weights.T).movedim(-1, dim)
    return stitched


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinite for other shapes or non-finite values."""
    if ours.shape != theirs.shape or not theirs.isfinite().all() or theirs.abs().max() == 0:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max())


def timm_features(model: Any, image: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, int | None]:
    """Return timm's map: `forward_features`, with channels found by `num_features`, or the last intermediate map."""
    output = model.forward_features(image.clone())
    if not isinstance(output, Tensor) or (output.ndim == 3 and output.shape[1] <= 2):
        maps = model.forward_intermediates(image.clone(), norm=True, intermediates_only=True, output_fmt="NCHW")
        return maps[-1], 0
    if output.ndim == 4:
        last = output.shape[3] == model.num_features and output.shape[1] != model.num_features
        if output.shape[1] == output.shape[3]:  # sizes do not tell; timm does
            last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return (output.movedim(3, 1) if last else output), 0
    rows, cols = timm_grid(model, tuple(image.shape))
    prefix = output.shape[1] - rows * cols
    return output[:, prefix:].transpose(1, 2).reshape(1, -1, rows, cols), prefix


@cache
def timm_grid(model: Any, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the grid of timm's last intermediate map, after the merger of Qwen3 or the aligner of DeepSeek."""
    maps = model.forward_intermediates(torch.zeros(shape), indices=1, intermediates_only=True, output_fmt="NCHW")
    merger = getattr(getattr(model, "encoder", None), "merger", None)
    aligner = getattr(getattr(model, "encoder", None), "aligner", None)
    side = merger.merge_size if merger is not None else aligner.downsample_ratio if aligner is not None else 1
    return math.ceil(maps[-1].shape[-2] / side), math.ceil(maps[-1].shape[-1] / side)


def open_clip_features(model: Any, image: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, int | None]:
    """Return open_clip's map by its own `forward_intermediates`, or timm's for timm trunks."""
    if hasattr(model, "trunk"):
        return timm_features(model.trunk, image, grid_hw)
    if not hasattr(model, "attn_pool"):
        return model.forward_intermediates(image, indices=1)["image_intermediates"][-1], 0
    plain = model.attn_pool is not None or model.final_ln_after_pool
    options = {"normalize_intermediates": not plain, "output_extra_tokens": True, "intermediates_only": True}
    output = model.forward_intermediates(image, indices=1, **options)
    return output["image_intermediates"][-1], output["image_intermediates_prefix"][-1].shape[1]


def torchvision_features(model: Any, image: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, int | None]:
    """Return the output of the last module before the pooling while the whole model runs."""
    if hasattr(model, "encoder"):
        tokens = outputs(model, image, model.encoder)[-1]
        side = model.image_size // model.patch_size
        return tokens[:, 1:].transpose(1, 2).reshape(1, -1, side, side), 1
    if hasattr(model, "classifier") and hasattr(model, "features"):
        spatial = outputs(model, image, model.features)[-1]
        return (functional.relu(spatial) if type(model).__name__ == "DenseNet" else spatial), 0
    maps = [each for each in outputs(model, image, *model.modules()) if each.ndim == 4 and each.shape[-1] > 1]
    return maps[-1], 0


def transformers_features(model: Any, image: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, int | None]:
    """Return the library's last hidden state as a map."""
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
    if kind in BGR:
        image = image[:, [2, 1, 0]] if image.shape[1] == 3 else image
    output = getattr(model, "mgp_str", model)(pixel_values=image, **options)  # MGP-STR returns words
    features = output.get("last_hidden_state", output.get("encoder_last_hidden_state"))
    features = output["feature_maps"][-1] if features is None else features
    if features.ndim == 4:
        last = features.shape[1:3] == grid_hw and features.shape[3] not in grid_hw
        return (features.movedim(3, 1) if last else features), 0
    if kind == "yolos":
        features = features[:, : -config.num_detection_tokens]
    prefix = features.shape[1] - grid_hw[0] * grid_hw[1]
    return features[:, prefix:].transpose(1, 2).reshape(1, -1, *grid_hw), None


LIBRARY_FEATURES = {
    "timm": timm_features,
    "open_clip": open_clip_features,
    "torchvision": torchvision_features,
    "transformers": transformers_features,
}


def outputs(model: nn.Module, image: Tensor, *modules: nn.Module) -> list[Tensor]:
    """Return the outputs of modules, in the order of their calls, while a model runs."""
    tensors: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            tensors.append(output.clone())

    handles = [module.register_forward_hook(keep) for module in modules if module is not model]
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    return tensors


class _Uninitialised(TorchFunctionMode):
    """Leaves large parameters uninitialised; `fill` draws them, after `shorten`."""

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
    """Make models without drawing their large weights."""
    with _Uninitialised():
        yield


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Draw the large weights so that variances are preserved, and add noise to norms and biases of 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() > BIG:
            inputs = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.uniform_(-((3 / inputs) ** 0.5), (3 / inputs) ** 0.5, generator=generator)
        elif parameter.ndim <= 1 and parameter.is_floating_point():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


def shorten(model: nn.Module) -> None:
    """Remove the inner blocks of every run of more than two equal ones, and keep the first and the last."""
    for parent in list(model.modules()):
        for row in list(parent.children()):
            blocks = list(row.children())
            same_type = len({type(block) for block in blocks}) == 1 and sum(1 for _ in blocks[0].modules()) > 5
            if isinstance(row, nn.Sequential | nn.ModuleList) and len(blocks) > 2 and same_type:
                shapes = [[tuple(parameter.shape) for parameter in block.parameters()] for block in blocks]
                triples = zip(shapes[:-2], shapes[1:-1], shapes[2:], strict=True)
                inner = [before == shape == after for before, shape, after in triples]
                kept = [block for block, remove in zip(blocks, [False, *inner, False], strict=True) if not remove]
                row._modules = {str(number): block for number, block in enumerate(kept)}


def silence_libraries() -> None:
    """Suppress libraries' warnings, which would break the progress display."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def append(path: Path, rows: list[list[Any]]) -> None:
    """Add lines to the table, each in one write."""
    with path.open("a", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def read(path: Path) -> list[Row]:
    """Return the rows of the table so far."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [Row(**row) for row in csv.DictReader(stream)]


def finished(path: Path) -> set[tuple[str, str]]:
    """Return library and name of the models in the table."""
    return {(row.library, row.model) for row in read(path)}


def show(rows: list[Row]) -> None:
    """Print how many models of each library are equal, refused, wrong or failed."""
    results = ("equal", "refused", "wrong", "failed")
    table = Table("library", "models", *results)
    for library in LIBRARIES:
        counts = Counter(row.result for row in rows if row.library == library)
        table.add_row(library, str(counts.total()), *(str(counts[result]) for result in results))
    Console().print(table)


def _too_long(*_signal: Any) -> None:
    raise TooLong("it took longer than the time limit")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0][:300]


def by(pair: tuple[int, int]) -> str:
    """Return a pair as text, such as "16x16"."""
    return f"{pair[0]}x{pair[1]}"


if __name__ == "__main__":
    typer.run(main)
