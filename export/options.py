"""Every option of an export, once: its type, its words, its default, and a sentence of help.

`export` takes the fields of `ExportOptions` as keyword arguments, `write_repository` those of `TritonOptions`, and the
command line makes its flags of both.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

from rich.console import Console

from s2wrap.errors import S2WrapError
from s2wrap.options import Checked
from s2wrap.plan import parse_image_hw
from s2wrap.policies import Pair
from s2wrap.scales import whole_number

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Pixels = Literal["float32", "uint8", "uint16"]
Output = Literal["spatial", "tokens", "prefix", "pooled", "head"]
Batch = tuple[int, int, int]
P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Gate:
    """The limits that every output of a precision must keep.

    Attributes:
        mean: least mean cosine between a token and PyTorch's.
        low: least 1st percentile of these cosines.
        error: largest relative error: length of the difference of all values ÷ length of PyTorch's.
    """

    mean: float
    low: float
    error: float


def parse_gate(gate: Any) -> Gate:
    """Three numbers as a `Gate`."""
    numbers = tuple(gate) if isinstance(gate, Sequence) and not isinstance(gate, str) else ()
    if len(numbers) != 3 or not all(isinstance(number, int | float) and 0 <= number <= 1 for number in numbers):
        raise S2WrapError(
            f"gate={gate!r} is no gate; give the least mean cosine, the least 1st percentile and the largest relative "
            f"error, such as (0.999, 0.995, 0.01)"
        )
    return Gate(*numbers)


def check_batch(batch: Any) -> tuple[int, int, int]:
    """The batch profile (MIN, OPT, MAX) as integers; S2WrapError unless 1 ≤ MIN ≤ OPT ≤ MAX."""
    numbers = [whole_number(part) for part in batch] if isinstance(batch, tuple | list) else []
    if len(numbers) == 3:
        low, usual, high = (number or 0 for number in numbers)
        if 1 <= low <= usual <= high:
            return low, usual, high
    raise S2WrapError(f"batch={batch!r} is no profile; use (MIN, OPT, MAX), 1 ≤ MIN ≤ OPT ≤ MAX, such as (1, 8, 32)")


@dataclass(frozen=True, kw_only=True)
class GraphOptions(Checked):
    """What an exported graph takes, computes and returns.

    Raises:
        S2WrapError: a word, size or batch that cannot be, or options that exclude each other.
    """

    image_hw: Annotated[
        Pair | None,
        "Height and width of the images in pixels, as 480x640 (default: of the largest scale, so that no detail is "
        "lost).",
    ] = None
    batch: Annotated[
        Batch, "Smallest, most frequent and largest number of images (with tiles: of tiles) in a call, as 1:8:32."
    ] = (1, 8, 32)
    precision: Annotated[
        Precision,
        "Precision of the backbone: fp32, fp16, bf16; or int8 or fp8 for the layers that bear it, calibrated on the "
        "pictures, and the others fp16 (fp32 in .onnx). Resizing and merging stay float32.",
    ] = "fp32"
    pixels: Annotated[
        Pixels,
        "What the file takes: float32, images (b, c, h, w) as the model takes them; or uint8 or uint16, pixels "
        "(b, h, w, c) that it normalises itself. uint16 is for .onnx and .pt2 only.",
    ] = "float32"
    outputs: Annotated[
        Sequence[Output] | None,
        "Some of spatial, tokens, prefix, pooled, head (default: spatial and, where any, prefix and head).",
    ] = None
    head: Annotated[
        Callable[..., Any] | None,
        "A torch.nn.Module that the file ends with, such as a linear probe: it takes the maps (b, c, h, w) in float32, "
        "and returns a float32 tensor (b, …), the output head.",
    ] = None
    tiles: Annotated[
        bool, "Export the backbone alone, on tiles; s2wrap.export.load puts the rest around it, for images of any size."
    ] = False
    fp32_layers: Annotated[
        Sequence[str], "Modules of the backbone that stay float32, by name, with * and ?, such as blocks.11.*,norm."
    ] = ()
    opset: Annotated[
        int | None,
        "Version of the ONNX operators, 20 to 23 (default: 20 for .onnx, 23 in bf16; for engines the newest that the "
        "library reads; .pt2 files have none).",
    ] = None
    onnx: Annotated[
        Path | str | None,
        "A ready ONNX file of the same inputs and outputs to take instead, such as a quantised one with Q/DQ.",
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        image_hw = None if self.image_hw is None else parse_image_hw(self.image_hw)
        outputs = None if self.outputs is None else tuple(self.outputs)
        self._set(
            image_hw=image_hw, batch=check_batch(self.batch), outputs=outputs, fp32_layers=tuple(self.fp32_layers)
        )
        known = get_args(Output)
        if outputs is not None and (not outputs or len(set(outputs)) < len(outputs) or not set(outputs) <= set(known)):
            raise S2WrapError(f"outputs={outputs!r}: use some of {', '.join(known)}, each once")
        if self.tiles and (image_hw is not None or outputs is not None or self.pixels != "float32"):
            raise S2WrapError(
                "tiles (--tiles) exports the backbone alone, on its own tiles: image size, outputs and pixels are "
                "chosen when it is loaded; leave them out"
            )
        if self.tiles and self.head is not None:
            raise S2WrapError("head= takes the maps of the whole model, and tiles exports the backbone alone; drop one")
        if outputs is not None and (("head" in outputs) != (self.head is not None) or outputs == ("head",)):
            raise S2WrapError(
                f"outputs={outputs!r} with head={self.head!r}: head= (in Python) and the output head go together, "
                f"beside another output: ('pooled', 'head') is the least"
            )
        if self.onnx is not None and (self.opset is not None or self.fp32_layers):
            raise S2WrapError("opset and fp32_layers are for a graph that is traced; a ready ONNX file has its own")
        if self.onnx is not None and self.quantised:
            raise S2WrapError(
                f"precision={self.precision!r} quantises a graph that is traced; a ready ONNX file (onnx) is as it is: "
                f"leave the precision out"
            )
        if self.fp32_layers and self.precision == "fp32":
            raise S2WrapError(
                f"fp32_layers={','.join(self.fp32_layers)!r} with precision='fp32', where all layers are float32 "
                f"already"
            )

    @property
    def quantised(self) -> bool:
        """Whether layers are to be quantised."""
        return self.precision in ("int8", "fp8")

    def unquantised(self, kind: str) -> "GraphOptions":
        """The same with the precision of what is not quantised in a kind of file."""
        if not self.quantised:
            return self
        return replace(self, precision="fp32" if kind == "onnx" else "fp16", fp32_layers=())


@dataclass(frozen=True, kw_only=True)
class BuildOptions(Checked):
    """How TensorRT or TensorRT-RTX builds an engine, or PyTorch compiles a package.

    Raises:
        S2WrapError: a number that cannot be.
    """

    workspace_mib: Annotated[int | None, "The most scratch memory that an engine may use, in MiB."] = None
    optimization_level: Annotated[int | None, "Effort of the builder: 0 (fast build) to 5 (fast engine)."] = None
    timing_cache: Annotated[
        Path | str | None, "A file that makes later TensorRT builds faster; read if it exists, and written."
    ] = None
    version_compatible: Annotated[bool, "Whether the engine loads in later TensorRT versions too."] = False
    hardware_compatible: Annotated[bool, "Whether the TensorRT engine runs on every GPU since Ampere."] = False
    targets: Annotated[
        Sequence[str], "GPU generations of an .rtx file, such as sm80,sm89,sm120 (default: the library's own choice)."
    ] = ()
    device: Annotated[
        Literal["cpu", "cuda"], "What a .pt2 file is compiled for: the CPU of this machine, or its GPU."
    ] = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(targets=tuple(dict.fromkeys(target.lower() for target in self.targets)))
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise S2WrapError(f"workspace_mib={self.workspace_mib} must be 1 MiB or more")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise S2WrapError(
                f"optimization_level={self.optimization_level} must be from 0 (fast build) to 5 (fast engine)"
            )


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Checked):
    """How a file is compared with PyTorch."""

    gate: Annotated[
        Sequence[float] | None,
        "Least mean cosine of a token, least 1st percentile and largest relative error to reach, as 0.999,0.995,0.01 "
        "(default: by precision).",
    ] = None
    pictures: Annotated[
        Sequence[Path | str] | None,
        "Pictures or folders: the first three are compared on (default: photographs of scikit-image), int8 and fp8 are "
        "calibrated on 64 of the others.",
    ] = None
    console: Annotated[Console | None, "Where progress and the comparison are shown (default: nowhere)."] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate is not None:
            parse_gate(self.gate)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(GraphOptions, BuildOptions, VerifyOptions):
    """What `export` takes."""

    notes: Annotated[
        Mapping[str, Any] | None,
        "What the manifest keeps for whoever reads the file, as JSON: a threshold, the names of classes.",
    ] = None
    verify: Annotated[bool, "Compare the file with PyTorch before it gets its name."] = True
    overwrite: Annotated[bool, "Whether to replace a file that is there already."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            notes = json.loads(json.dumps(self.notes, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise S2WrapError(f"notes={self.notes!r} cannot be JSON: {error}; use numbers, texts, lists") from error
        if not isinstance(notes, dict | None):
            raise S2WrapError(f"notes={self.notes!r} have no names; give a dict, such as {{'threshold': 0.3}}")
        self._set(notes=notes)
        if self.quantised and self.pictures is None:
            raise S2WrapError(
                f"precision={self.precision!r} is calibrated on pictures: give some like those that the model will see "
                f"(pictures=, --pictures DIR)"
            )


@dataclass(frozen=True, kw_only=True)
class TritonOptions(Checked):
    """How Triton Inference Server serves an exported file.

    Raises:
        S2WrapError: a name or number that cannot be, or options that exclude each other.
    """

    name: Annotated[str | None, "Name of the model on the server (default: the file's name without its ending)."] = None
    backend: Annotated[
        Literal["native", "python"],
        "What runs the file: native (Triton's own backend for such files: images of the file's size) or python "
        "(s2wrap, in Triton's python backend: pictures of any size, also as the bytes of JPEG or PNG files).",
    ] = "native"
    version: Annotated[
        Literal["first", "new"],
        "Whether the model folder is new (first), or gets its next version (new), which must take and give the same; "
        "its config.pbtxt stays as it is.",
    ] = "first"
    max_pixels: Annotated[
        int, "The most pixels of a picture that the python backend takes; larger ones are answered with an error."
    ] = 50_000_000
    instances: Annotated[
        int, "Model instances for each GPU that run at the same time; 2 overlap copying with computing."
    ] = 1
    queue_delay_us: Annotated[
        int, "Microseconds that a request may wait to be batched; 1000 is less than one picture takes."
    ] = 1000
    cuda_graphs: Annotated[
        bool, "Whether to capture CUDA graphs for batches of 1, OPT and MAX (TensorRT engines only)."
    ] = False
    overwrite: Annotated[bool, "Whether to replace a model folder that is there already."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise S2WrapError(
                f"name={self.name!r} makes no model name; use letters, digits and _ . - such as 'dinov2_s14'"
            )
        for option, least in (("instances", 1), ("queue_delay_us", 0), ("max_pixels", 4)):
            if (value := getattr(self, option)) < least:
                raise S2WrapError(f"{option}={value!r} is impossible; use a whole number from {least}")
        if self.version == "new" and self.overwrite:
            raise S2WrapError("version='new' adds to a model folder and overwrite=True replaces it; leave one out")
        if self.backend == "python" and self.cuda_graphs:
            raise S2WrapError("cuda_graphs=True with backend='python': only Triton's TensorRT backend has them")
        if self.backend == "native" and self.max_pixels != TritonOptions.max_pixels:
            raise S2WrapError("max_pixels is for backend='python'; the native backends take one image size alone")


def takes_two_and_options(
    options: Callable[P, object],
) -> Callable[[Callable[..., Result]], Callable[Concatenate[Any, Any, P], Result]]:
    """As `s2wrap.options.takes_options`, for a function of two parameters and the fields of a class of options."""

    def typed(function: Callable[..., Result]) -> Callable[Concatenate[Any, Any, P], Result]:
        return function

    return typed
