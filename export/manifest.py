"""The manifest: a JSON file beside every exported file, `FILE.json`, that says what it is and how it was checked."""

import hashlib
import json
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2wrap.backbones.checkpoint import weights_sha256
from s2wrap.errors import S2WrapError
from s2wrap.export.graph import OUTPUTS, ModelGraph, TilesGraph
from s2wrap.features import Features
from s2wrap.geometry import Geometry
from s2wrap.plan import Axis, Plan, ScalePlan
from s2wrap.view import View
from s2wrap.wrapper import MultiScale

FORMAT = 1
KINDS = {".onnx": "onnx", ".plan": "tensorrt", ".engine": "tensorrt", ".rtx": "tensorrt_rtx"}
"""What the ending of a file says."""


def kind_of(path: Path) -> str:
    """What a file is by its ending: "onnx", "tensorrt" or "tensorrt_rtx"."""
    if path.suffix not in KINDS:
        raise S2WrapError(f"{path}: the ending must be {', '.join(KINDS)}")
    return KINDS[path.suffix]


NEEDED = ("kind", "part", "sha256", "precision", "batch", "image_hw", "inputs", "outputs")
"""What every manifest says."""


def real_path(path: str | Path) -> Path:
    """A path, or the file that it links to: the manifest lies beside that."""
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def manifest_path(path: Path) -> Path:
    """Where the manifest of a file lies."""
    return path.with_name(path.name + ".json")


def describe(graph: ModelGraph | TilesGraph, model: MultiScale, proto: Any, *, precision: str) -> dict[str, Any]:
    """What a manifest says of a graph, before it is a file; the same each time.

    Args:
        graph: what was traced.
        model: of which it is a graph.
        proto: its ONNX model.
        precision: "fp32", "fp16" or "bf16".
    """
    backbone, whole = graph.backbone, isinstance(graph, ModelGraph)
    plan = asdict(replace(graph.placement.plan, image_hw=graph.image_hw)) if isinstance(graph, ModelGraph) else None
    return {
        "format": FORMAT,
        "part": "model" if whole else "tiles",
        "spec": (model.recipe or {}).get("spec"),
        "backbone": {
            "name": backbone.name,
            "image_hw": backbone.image_hw,
            "layouts": [asdict(layout) for layout in backbone.layouts],
            "interpolation": backbone.interpolation,
            "weights_sha256": weights_sha256(model.backbone),
        },
        "wrapper": _plain(wrapper_options(model)),
        "mean": backbone.mean,
        "std": backbone.std,
        "precision": precision,
        "pixels": graph.pixels,
        "image_hw": graph.image_hw,
        "inputs": [port_of(value) for value in proto.graph.input],
        "outputs": [port_of(value) for value in proto.graph.output],
        "plan": plan,
        "grids": graph.grids if isinstance(graph, ModelGraph) else None,
        "opset": next(entry.version for entry in proto.opset_import if not entry.domain),
        "versions": {name: _version(name) for name in ("s2wrap", "torch", "onnx", "onnxscript")},
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a file, once file and manifest belong together.

    Raises:
        S2WrapError: there is no such file, no manifest, one of another format, or the file is not the one it names.
    """
    path = real_path(path)
    beside = manifest_path(path)
    if not path.is_file():
        raise S2WrapError(f"{path}: there is no such file")
    if not beside.is_file():
        raise S2WrapError(f"{path} has no manifest; {beside.name}, which s2wrap export writes, must lie beside it")
    try:
        manifest = _with_tuples(json.loads(beside.read_text()))
        known = manifest["format"] == FORMAT
        missing = [name for name in NEEDED if name not in manifest]
    except (ValueError, KeyError, TypeError) as error:
        raise S2WrapError(f"{beside} is damaged, or no manifest of s2wrap") from error
    if known and missing:
        raise S2WrapError(f"{beside} is damaged: it does not say {', '.join(missing)}")
    if not known:
        raise S2WrapError(f"{beside} has format {manifest['format']}; this s2wrap reads format {FORMAT}: export again")
    found = file_sha256(path)
    if found != manifest["sha256"]:
        raise S2WrapError(
            f"{path} is not the file that {beside.name} describes: its SHA-256 is {found}, there it is "
            f"{manifest['sha256']}; it is damaged, or one of them is of another export"
        )
    return manifest


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, and of the weights beside it where an ONNX file keeps them apart."""
    digest = hashlib.sha256()
    for part in (path, path.with_name(path.name + ".data")):
        if part.is_file() and (part == path or path.suffix == ".onnx"):
            with part.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def recipe_of(model: MultiScale) -> dict[str, Any] | None:
    """What makes the model again, as `load` was given; None where that does not say it all."""
    return _plain(model.recipe) if model.backbone.dtype == torch.float32 else None


def wrapper_options(model: MultiScale) -> dict[str, Any]:
    """What `MultiScale` was made with, every option of every scale decided; defaults of other options are None."""
    scales = [asdict(look) | {"policy": look.policy if look.chooses_tiles else None} for look in model.looks]
    names = ("overlap", "blend", "fuse", "weights", "norm", "prefix", "join_layers")
    default = "finest" if model.fuse == "detail" else "coarsest"
    grid = None if model.target_grid == default else model.target_grid
    return {"scales": scales, "target_grid": grid} | {name: getattr(model, name) for name in names}


def plan_from(manifest: dict[str, Any]) -> Plan | None:
    """The plan that a manifest describes."""
    if manifest.get("plan") is None:
        return None
    scales = (ScalePlan(Axis(**scale["rows"]), Axis(**scale["cols"])) for scale in manifest["plan"]["scales"])
    return Plan(manifest["plan"]["image_hw"], tuple(scales))


def features_from(manifest: dict[str, Any], tensors: dict[str, Tensor], plan: Plan | None) -> Features:
    """What a graph returned as `Features`.

    Without an output "spatial" its map is made of "tokens", or of "pooled" as a map of one cell; without an output
    "prefix" there are no prefix tokens.
    """
    kinds: dict[str, list[Tensor]] = {kind: [] for kind in OUTPUTS}
    for port in manifest["outputs"]:  # an engine may list its outputs in another order
        kinds[port["name"].partition("_")[0]].append(tensors[port["name"]])
    maps = kinds["spatial"]
    if not maps and kinds["tokens"]:
        grids = manifest["grids"]
        maps = [t.transpose(1, 2).unflatten(2, grid) for t, grid in zip(kinds["tokens"], grids, strict=True)]
    maps = maps or [tensor[:, :, None, None] for tensor in kinds["pooled"]]
    prefixes = kinds["prefix"] or [spatial.new_zeros(len(spatial), 0, spatial.shape[1]) for spatial in maps]
    return Features(tuple(maps), tuple(prefixes), None if plan is None else _view(manifest, maps, plan))


def _view(manifest: dict[str, Any], maps: list[Tensor], plan: Plan) -> View:
    """How one graph looked at its images: at all tiles; it notes no boxes."""
    wrapper = manifest["wrapper"] or {}
    of = "scale" if wrapper.get("fuse") == "pyramid" else "layer"
    geometry = tuple(
        Geometry((spatial.shape[2], spatial.shape[3]), plan.image_hw, **({of: k} if len(maps) > 1 else {}))
        for k, spatial in enumerate(maps)
    )
    ran = tuple(torch.ones(len(maps[0]), *scale.block_size, dtype=torch.bool) for scale in plan.scales)
    return View(plan, geometry, (), ran)


def port_of(value: Any) -> dict[str, Any]:
    """An input or output of an ONNX graph."""
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    sides = [side.dim_value if side.HasField("dim_value") else "batch" for side in tensor.shape.dim]
    return {"name": value.name, "dtype": tensor_dtype_to_np_dtype(tensor.elem_type).name, "shape": sides}


def _with_tuples(value: Any) -> Any:
    """What JSON keeps as a list as the tuple that it was."""
    if isinstance(value, dict):
        return {name: _with_tuples(part) for name, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A value as JSON keeps it; None where it cannot, such as a function of the caller's."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
