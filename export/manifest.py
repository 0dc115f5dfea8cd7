"""The manifest: a JSON file beside every exported file, `FILE.json`, that says what it is and how it was verified."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NotRequired, get_args

import torch
from torch import Tensor
from typing_extensions import TypedDict  # pydantic refuses typing's before Python 3.12

from s2wrap.backbones.checkpoint import weights_sha256
from s2wrap.backbones.probe import Layout
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.export.graph import Graph, ModelGraph
from s2wrap.export.options import Batch, Gate, Output, Pixels, Precision
from s2wrap.features import Features
from s2wrap.geometry import Geometry
from s2wrap.inputs import ModelInput
from s2wrap.options import Options, as_tuples, make_options
from s2wrap.plan import Axis, Plan, ScalePlan
from s2wrap.policies import POLICIES, Pair, Policy
from s2wrap.scales import Fit, Scale
from s2wrap.view import View
from s2wrap.wrapper import MultiScale

Kind = Literal["onnx", "tensorrt", "tensorrt_rtx", "aotinductor"]
FORMAT = 4
KINDS: dict[str, Kind] = {
    ".onnx": "onnx",
    ".plan": "tensorrt",
    ".engine": "tensorrt",
    ".rtx": "tensorrt_rtx",
    ".pt2": "aotinductor",
}
"""The kind of a file, by its ending."""
ENGINES: tuple[Kind, ...] = ("tensorrt", "tensorrt_rtx")
"""The kinds that run on GPUs alone."""
NEXT = ".next"
"""What the name of a manifest ends with until the file that it describes has its name."""


class PortFacts(TypedDict):
    """An input or output of the graph."""

    name: str
    dtype: str
    shape: tuple[int | Literal["batch"], ...]


class BackboneFacts(TypedDict):
    """What is said of the backbone."""

    name: str
    layers: tuple[int, ...] | None
    layouts: tuple[Layout, ...]
    lacks_cls: str
    convolutional: bool
    weights_sha256: str


class ScaleFacts(TypedDict):
    """A `Scale` with everything decided; of a policy of the caller's, the name."""

    size: int | float | str
    fit: Fit
    whole: bool
    policy: str | None
    max_tiles: int | None


class OptionFacts(TypedDict):
    """The `Options` of the model; the others are checked where they are used."""

    scales: tuple[ScaleFacts, ...]


class BuildFacts(TypedDict):
    """How an engine or package was built."""

    library: str
    version: str
    device: NotRequired[Literal["cpu", "cuda"]]


class RecipeFacts(TypedDict):
    """What `load` was given to make the model."""

    spec: str


class Manifest(TypedDict):
    """What every manifest says: of which types the values are when it is read."""

    format: int
    kind: Kind
    part: Literal["model", "tiles"]
    file: str
    sha256: str
    weights: str | None
    backbone: BackboneFacts
    input: ModelInput
    options: OptionFacts
    precision: Precision
    pixels: Pixels
    image_hw: Pair
    batch: Batch
    fp32_layers: tuple[str, ...]
    inputs: tuple[PortFacts, ...]
    outputs: tuple[PortFacts, ...]
    plan: Plan | None
    geometry: tuple[Geometry, ...] | None
    gate: Gate
    build: NotRequired[BuildFacts]
    notes: NotRequired[dict[str, Any]]
    recipe: RecipeFacts | None


def kind_of(path: Path) -> Kind:
    """The kind of a file, by its ending; S2WrapError for another ending."""
    if path.suffix not in KINDS:
        raise S2WrapError(f"{path}: the ending must be {', '.join(KINDS)}")
    return KINDS[path.suffix]


def manifest_path(path: Path) -> Path:
    """Where the manifest of a file lies."""
    return path.with_name(path.name + ".json")


def usual_device(path: str | Path) -> Literal["cpu", "cuda"]:
    """The kind of device that an exported file runs on by default; S2WrapError for a package without its manifest."""
    path = Path(path)
    kind = kind_of(path)
    if kind == "aotinductor":
        return _parsed(manifest_path(path)).get("build", {}).get("device", "cpu")
    return "cpu" if kind == "onnx" else "cuda"


def describe(graph: Graph, model: MultiScale, *, precision: Precision) -> dict[str, Any]:
    """What a manifest says of a graph, before it is a file, but for its inputs and outputs; the same each time.

    Args:
        graph: what was traced.
        model: of which it is a graph.
        precision: of the graph.
    """
    backbone, plan, geometry = graph.backbone, None, None
    if isinstance(graph, ModelGraph):
        plan = asdict(replace(graph.placement.plan, image_hw=graph.image_hw))
        geometry = [asdict(each) for each in graph.geometry]
    return {
        "format": FORMAT,
        "part": "model" if isinstance(graph, ModelGraph) else "tiles",
        "spec": (model.recipe or {}).get("spec"),
        "backbone": {
            "name": backbone.name,
            "layers": backbone.layers,
            "layouts": [asdict(layout) for layout in backbone.layouts],
            "lacks_cls": backbone.lacks_cls,
            "convolutional": model.backbone.convolutional,
            "weights_sha256": weights_sha256(model.backbone),
        },
        "input": model.input.to_json(),
        "options": describe_options(model),
        "precision": precision,
        "pixels": graph.pixels,
        "image_hw": graph.image_hw,
        "plan": plan,
        "geometry": geometry,
        "versions": {name: _version(name) for name in ("s2wrap", "torch")},
    }


def has_manifest(path: Path) -> bool:
    """Whether a manifest lies beside a file, or beside what it is a link to."""
    return any(manifest_path(each).is_file() for each in (path, path.resolve()))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a file, after a check that it describes this file.

    Raises:
        S2WrapError: there is no such file, it has no manifest, or one of another format or for another file.
    """
    path = Path(path)
    if not path.is_file():
        raise S2WrapError(f"{path}: there is no such file")
    beside = manifest_path(path)
    if path.is_symlink() and not beside.is_file():
        beside = manifest_path(path.resolve())
    following = beside.with_name(beside.name + NEXT)  # of an export that was stopped before it was renamed
    if following.is_file():
        with suppress(S2WrapError):
            if (manifest := _parsed(following))["sha256"] == file_sha256(path, manifest["weights"]):
                return manifest
    if not beside.is_file():
        raise S2WrapError(f"{path} has no manifest; {beside.name}, which s2wrap export writes, must lie beside it")
    manifest = _parsed(beside)
    digest = file_sha256(path, manifest["weights"])
    if digest != manifest["sha256"]:
        raise S2WrapError(
            f"{path} is not the file that {beside.name} describes: its SHA-256 is {digest}, there it is "
            f"{manifest['sha256']}; it is damaged, or one of them is of another export"
        )
    return manifest


def _parsed(path: Path) -> dict[str, Any]:
    """A manifest that says all that it must, in the right types."""
    try:
        from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
        from pydantic_core import from_json
    except ImportError as error:
        raise MissingExtraError("pydantic", "export") from error
    try:
        content = path.read_bytes()
        manifest = from_json(content)
        found = manifest["format"]
    except OSError as error:
        raise S2WrapError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise S2WrapError(f"{path} is damaged, or no manifest of s2wrap") from error
    if found != FORMAT:
        raise S2WrapError(f"{path} has format {found}; this s2wrap reads format {FORMAT}: export again")
    try:
        TypeAdapter(with_config(ConfigDict(strict=True))(Manifest)).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise S2WrapError(f"{path} is damaged: {place}: {first['msg']}; export again") from error
    if (senseless := _senseless(as_tuples(manifest))) is not None:
        raise S2WrapError(f"{path} is damaged: {senseless}; export again")
    return as_tuples(manifest)


def _senseless(manifest: dict[str, Any]) -> str | None:
    """What cannot be, of values that have the right types; None if all can."""
    weights, known = manifest["weights"], manifest["input"]
    if weights is not None and Path(weights).name != weights:
        return f"weights: {weights!r} does not lie beside the file"
    for name in ("mean", "std"):
        values = known.get(name)
        if values is not None and (len(values) != known["channels"] or (name == "std" and min(values) <= 0)):
            return f"input.{name}: {values} for {known['channels']} channels"
    kinds = {port["name"].partition("_")[0] for port in manifest["outputs"]}
    if not manifest["inputs"] or not kinds or not kinds <= set(get_args(Output)):
        return f"inputs, outputs: one input and some of {', '.join(get_args(Output))}"
    lacking = [name for name in ("plan", "geometry") if manifest["part"] == "model" and manifest[name] is None]
    return f"{lacking[0]}: a whole model has one" if lacking else None


def file_sha256(path: Path, weights: str | None) -> str:
    """The SHA-256 of a file, and of the weights of this name beside it where an ONNX file keeps them apart."""
    digest = hashlib.sha256()
    for part in (path, *([path.with_name(weights)] if weights else [])):
        try:
            with part.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise S2WrapError(f"cannot read {part}: {error.strerror or error}") from error
    return digest.hexdigest()


def free_weights_name(path: Path) -> str:
    """A name for weights apart from an ONNX file, which no file has: those of an export it replaces stay till then."""
    names = (f"{path.name}.data", *(f"{path.name}.{number}.data" for number in range(2, 1000)))
    return next(name for name in names if not path.with_name(name).exists())


def recipe_of(model: MultiScale) -> dict[str, Any] | None:
    """What makes the model again, as `load` was given; None where that does not say it all."""
    return _plain(model.recipe) if model.backbone.dtype == torch.float32 else None


def describe_options(model: MultiScale) -> dict[str, Any]:
    """The options of a model as JSON keeps them, with every scale decided; of a policy of the caller's, its name."""
    policy = _policy_text(model.options.policy)
    options = replace(model.options, policy=policy if policy in POLICIES else None)
    facts = replace(options, scales=(1,) * len(model.scales)).to_json() | {"scales": []}
    for scale in model.scales:
        decided = scale.as_scale()
        text = _policy_text(decided.policy)
        facts["scales"].append(replace(decided, policy=None).to_json() | {"policy": text})
    return facts


def input_from(manifest: dict[str, Any]) -> ModelInput:
    """What the exported model takes."""
    return ModelInput.from_json(manifest["input"])


def options_from(manifest: dict[str, Any], changes: dict[str, Any]) -> Options:
    """The options of the exported model, with some changed.

    Raises:
        S2WrapError: an option that does not exist or cannot be, one without effect on scales that are decided already,
            or scales whose policy is a function of the caller's, which no manifest keeps.
    """
    facts = manifest["options"] | changes
    if "scales" not in changes:
        unknown = [scale["policy"] for scale in facts["scales"] if scale["policy"] not in (None, *POLICIES)]
        if unknown:
            raise S2WrapError(
                f"{manifest['file']} was exported with a policy of your own; give scales= again, with {unknown[0]} as "
                f"policy"
            )
        for name in ("fit", "whole", "policy"):
            if name in changes:
                raise S2WrapError(
                    f"{name}={changes[name]!r} has no effect on the scales of {manifest['file']}, which are decided; "
                    f"give scales= too"
                )
            facts.pop(name, None)
        facts["scales"] = [Scale(**scale) for scale in facts["scales"]]
    return make_options(Options, "load()", facts)


def images_hw(manifest: dict[str, Any]) -> Pair:
    """The image size that an exported file takes; of the backbone alone, that of its largest scale."""
    if manifest["part"] == "model":
        return manifest["image_hw"]
    sizes = [Scale(**scale).box_hw(manifest["image_hw"]) for scale in manifest["options"]["scales"]]
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def plan_from(manifest: dict[str, Any]) -> Plan:
    """Where the tiles of the graph of a whole model lie."""
    scales = (ScalePlan(Axis(**scale["rows"]), Axis(**scale["cols"])) for scale in manifest["plan"]["scales"])
    return Plan(manifest["plan"]["image_hw"], tuple(scales))


def features_from(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> Features:
    """The outputs of a graph as `Features`, without a view.

    Without an output "spatial" the map is made of "tokens", or of "pooled" as a map of one cell; without an output
    "prefix" there are no prefix tokens.
    """
    kinds: dict[Output, list[Tensor]] = {kind: [] for kind in get_args(Output)}
    for port in manifest["outputs"]:  # an engine may list its outputs in another order
        kinds[port["name"].partition("_")[0]].append(tensors[port["name"]])
    maps = kinds["spatial"]
    if not maps and kinds["tokens"]:
        grids = [geometry["grid"] for geometry in manifest["geometry"]]
        maps = [t.transpose(1, 2).unflatten(2, grid) for t, grid in zip(kinds["tokens"], grids, strict=True)]
    maps = maps or [tensor[:, :, None, None] for tensor in kinds["pooled"]]
    prefixes = kinds["prefix"] or [spatial.new_zeros(len(spatial), 0, spatial.shape[1]) for spatial in maps]
    return Features(tuple(maps), tuple(prefixes), heads=tuple(kinds["head"]))


def view_of(plan: Plan, maps: Sequence[Tensor], geometry: Sequence[Geometry]) -> View:
    """How a graph looked at a batch of images: at all tiles. It notes no boxes."""
    count = len(maps[0])
    ran = tuple(torch.ones(count, *scale.block_size, dtype=torch.bool) for scale in plan.scales)
    return View(plan, tuple(geometry), (), ran)


def port_of(value: Any) -> dict[str, Any]:
    """An input or output of an ONNX graph."""
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    sides = [side.dim_value if side.HasField("dim_value") else "batch" for side in tensor.shape.dim]
    return {"name": value.name, "dtype": tensor_dtype_to_np_dtype(tensor.elem_type).name, "shape": sides}


def describe_proto(proto: Any) -> dict[str, Any]:
    """What a manifest says of an ONNX model besides: inputs and outputs, opset, and the versions of what wrote it."""
    return {
        "inputs": [port_of(value) for value in proto.graph.input],
        "outputs": [port_of(value) for value in proto.graph.output],
        "opset": next(entry.version for entry in proto.opset_import if not entry.domain),
        "versions": {name: _version(name) for name in ("s2wrap", "torch", "onnx", "onnxscript")},
    }


def _policy_text(policy: Policy | str | None) -> str | None:
    """A policy by its name; a function of the caller's with its module, so that no policy of ours is called so."""
    if policy is None or isinstance(policy, str):
        return policy
    names = [name for name, function in POLICIES.items() if function is policy]
    return names[0] if names else f"{policy.__module__}.{getattr(policy, '__qualname__', type(policy).__name__)}"


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
