"""AOTInductor packages (.pt2) from graph modules: PyTorch compiles a graph for the CPU or the GPU of this machine."""

import copy
import logging
import platform
import shutil
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from s2wrap.errors import S2WrapError, first_line
from s2wrap.export.graph import Graph
from s2wrap.export.options import Batch, BuildOptions, GraphOptions

LOGGERS = ("torch._inductor", "torch.utils.cpp_extension", "torch._dynamo", "torch._export", "torch.export")
"""Loggers of PyTorch's compiler, whose warnings are about its own work."""
SETTINGS: dict[str, dict[str, Any]] = {
    "cpu": {
        "freezing": True,  # what depends on weights alone is computed once, and weights are laid out for the CPU
        "cpp.dynamic_threads": True,  # else the file keeps the number of threads of this process
        "cpp.march": "",  # else it needs every instruction of this CPU, not only those of its vector instruction set
    },
    "cuda": {},
}
"""The compiler's settings for a kind of device, where PyTorch's own would not do."""
DROPPED = (".cpp", "/serialization_id")
"""Endings of parts of a package that nothing needs: sources with paths of this machine, and a random number."""
ARCHIVE_DATE = (1980, 1, 1, 0, 0, 0)


def check_package(path: Path, graph_options: GraphOptions, build_options: BuildOptions) -> None:
    """Raise S2WrapError for options that no package has, and where nothing can be compiled here."""
    if changed := [name for name in build_options.changed() if name != "device"]:
        raise S2WrapError(f"{', '.join(changed)}: these are for engines, and {path.name} is compiled by PyTorch")
    for name in ("opset", "onnx"):
        if (value := getattr(graph_options, name)) is not None:
            raise S2WrapError(
                f"{name}={value} is for .onnx files and engines; {path.name} is made of PyTorch's own graph, with no "
                f"ONNX between: leave it out"
            )
    if graph_options.quantised:
        raise S2WrapError(
            f"precision={graph_options.precision!r} is for .onnx files and engines; use fp32, fp16 or bf16 for "
            f"{path.name}"
        )
    _check_compiler(path)
    if build_options.device == "cuda" and not torch.cuda.is_available():
        raise S2WrapError(
            f"device='cuda' compiles {path.name} on the GPU that will run it, and this machine shows none; use "
            f"device='cpu', or export there"
        )


def trace_program(graph: Graph, batch: Batch, device: str) -> Any:
    """The `torch.export.ExportedProgram` of a graph module on a kind of device, for batches of MIN to MAX.

    Raises:
        S2WrapError: the model cannot be exported; the message is PyTorch's.
    """
    low, _, high = batch
    sizes = ({0: torch.export.Dim("batch", min=low, max=high)},) if low < high else None
    count = low if low == high else max(low, 2)  # a batch size of 1 would be treated as a constant
    module = graph if device == "cpu" else copy.deepcopy(graph).to(device)
    with _quiet(), torch.no_grad(), _told(f"{graph.backbone.name} cannot be exported by PyTorch"):
        example = (graph.example(count).to(device),)
        return torch.export.export(module, example, dynamic_shapes=sizes, strict=False)


def ports_of(graph: Graph, program: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The inputs and outputs of an exported program, as manifests say them."""
    (answers,) = program.graph.output_node().args
    images = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"][-1]
    values = [node.meta["val"] for node in answers[-len(graph.names) :]]
    named = zip(graph.names, values, strict=True)
    return [_port(graph.input_name, images)], [_port(name, value) for name, value in named]


def build_package(program: Any, draft: Path, *, name: str, device: str, note: str, console: Console) -> dict[str, Any]:
    """Compile a program, write the package to `draft`, and return facts about it for the manifest.

    All that the compiler writes lies beside the draft until it ends. Sources are left out of the package, and folders
    of this machine do not stand in it.

    Args:
        program: of `trace_program`.
        draft: the file to write; the caller renames it.
        name: of the model, in messages.
        device: "cpu" or "cuda".
        note: the text that the package keeps under "s2wrap" in its metadata.
        console: where to show what is being done.

    Returns:
        `library`, `version`, `device`, `platform` and `bytes`; for the CPU also the vector `instructions` that the file
        needs, for a GPU `gpu` and `compute_capability`.

    Raises:
        S2WrapError: the compiler failed; the message is its own.
    """
    from torch._inductor.utils import fresh_cache

    work = draft.with_name("inductor")
    work.mkdir()
    place = "the CPU" if device == "cpu" else torch.cuda.get_device_name()
    settings = {**SETTINGS[device], "aot_inductor.enable_line_tables": False, "aot_inductor.metadata": {"s2wrap": note}}
    known = set(torch._inductor.list_options())
    console.print(f"Compiling {name} for {place}, which takes a minute or more", highlight=False)
    with console.status(f"Compiling {name}"), _quiet(), _told(f"{name} cannot be compiled for {place}"):
        with fresh_cache(dir=str(work)), torch.no_grad():
            package = torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(work / "model.pt2"),
                inductor_configs={key: value for key, value in settings.items() if key in known},
            )
        folders = (work.resolve(), Path(torch.__file__).parent.parent)
        _copy_package(Path(package), draft, [str(folder).encode() for folder in folders])
    shutil.rmtree(work)
    return _facts(draft, device)


def instructions() -> str:
    """The vector instruction set that the compiler uses on this CPU, such as "avx512 avx512_vnni"."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return str(pick_vec_isa())


def this_platform() -> str:
    """The operating system and the machine, such as "linux x86_64"."""
    return f"{sys.platform} {platform.machine()}"


def _facts(package: Path, device: str) -> dict[str, Any]:
    facts = {"library": "torch", "version": torch.__version__, "device": device, "platform": this_platform()}
    facts |= {"bytes": package.stat().st_size}
    if device == "cpu":
        return facts | {"instructions": instructions()}
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    return facts | {"gpu": torch.cuda.get_device_name(), "compute_capability": capability}


def _check_compiler(path: Path) -> None:
    """Raise S2WrapError where there is no C++ compiler."""
    with _quiet():
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError) as error:
            raise S2WrapError(
                f"{path.name} needs a C++ compiler, and none works here: install g++ (apt install g++), or name one in "
                f"CXX; .onnx needs none"
            ) from error


def _port(name: str, value: Any) -> dict[str, Any]:
    """An input or output; of a shape with an open side, that is the batch."""
    shape = [side if isinstance(side, int) else "batch" for side in value.shape]
    return {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape}


def _copy_package(package: Path, target: Path, folders: list[bytes]) -> None:
    """Copy a package without what nothing needs, and with slashes in place of the names of these folders."""
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(target, "w") as copied:
        for part in source.namelist():
            if part.endswith(DROPPED):
                continue
            content = source.read(part)
            for folder in folders:
                content = content.replace(folder, b"/" * len(folder))  # of the same length: programs have offsets
            copied.writestr(zipfile.ZipInfo(part, ARCHIVE_DATE), content)


@contextmanager
def _told(problem: str) -> Iterator[None]:
    """Tell an error of PyTorch's compiler, of which there are many classes, as one of ours; a full disk stays one."""
    try:
        yield
    except (S2WrapError, OSError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise S2WrapError(f"{problem}: {first_line(cause)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back warnings of PyTorch's compiler, but for errors, and for what TORCH_LOGS asks for."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            if not logger.isEnabledFor(logging.INFO):
                logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
