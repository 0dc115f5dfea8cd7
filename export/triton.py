"""Model folders for Triton Inference Server: an exported file with a config.pbtxt that fits its batch profile."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from s2wrap.errors import S2WrapError
from s2wrap.export.manifest import kind_of, manifest_path, read_manifest
from s2wrap.export.options import GraphOptions, TritonOptions, takes_two_and_options
from s2wrap.export.triton_config import limits_of, messages, model_config, text_of
from s2wrap.export.triton_versions import check_same, next_version, read_config
from s2wrap.files import check_free, disk_errors, same_disk, whole_folder
from s2wrap.options import make_options

MODEL = '''"""A file that s2wrap exported, run by Triton's python backend."""

from s2wrap.export.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
"""The model.py of the python backend."""


@takes_two_and_options(TritonOptions)
def write_repository(file: str | Path, folder: str | Path, **options: object) -> Path:
    """Add an exported file to a model repository of Triton Inference Server, and return the new model folder.

    `folder/NAME` gets `config.pbtxt` and, as version 1, a copy of the file and its manifest: `1/model.plan`,
    `1/model.onnx`, or, for an ONNX model with separate weights, the folder `1/model.onnx` with them in it. For the
    python backend it gets `1/model.py`, and beside it the file under its own name. With `version="new"`, a model folder
    that is there gets the next version, and no other file of it changes. All of it appears in one renaming, and drafts
    lie beside the repository, where a server that polls does not see them (in it, where it is a disk of its own).

    Requests are batched dynamically up to MAX of the batch profile; the server warms up with batches of 1, OPT and MAX.
    The parameter `s2wrap` holds the manifest.

    Args:
        file: an exported file with its manifest beside it.
        folder: the repository (`tritonserver --model-repository=FOLDER`); created if it does not exist.
        **options: of `TritonOptions`.

    Raises:
        MissingExtraError: tritonclient is not installed.
        S2WrapError: Triton cannot serve the file, its smallest batch size is not 1, an option is invalid, the model
            folder exists already and is not to be overwritten, a new version would take or give something else, or the
            disk cannot be written to.
    """
    chosen = _named(make_options(TritonOptions, "write_repository()", options), Path(file))
    file, folder = Path(file), Path(folder)
    manifest = read_manifest(file)
    _check(file, manifest, chosen)
    config, model = model_config(manifest, chosen), folder / str(chosen.name)
    grows = chosen.version == "new" and model.is_dir() and any(model.iterdir())
    if grows:
        check_same(model, read_config(model), config, chosen)
    else:
        with disk_errors(model):
            folder.mkdir(parents=True, exist_ok=True)
    target = model / str(next_version(model)) if grows else model
    hidden = _beside(folder) or (model if grows else None)  # Triton reads no folder of a model that is no number
    with whole_folder(target, replace=chosen.overwrite, drafts=hidden) as draft:
        if not grows:
            (draft / "config.pbtxt").write_text(text_of(config), encoding="utf-8")
        _write_version(draft if grows else draft / "1", file, manifest, chosen.backend)
    return model


def check_repository(file: Path, folder: Path, graph: GraphOptions, options: TritonOptions) -> None:
    """Raise the errors of `write_repository` that are known before the file exists, from the options of its graph."""
    options = _named(options, file)
    dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[graph.unquantised(kind_of(file)).precision]
    output = {"name": "spatial", "dtype": dtype, "shape": ["batch"]}
    about = {"kind": kind_of(file), "part": "unknown", "batch": graph.batch, "inputs": [], "outputs": [output]}
    _check(file, about, options)
    messages()
    model = folder / str(options.name)
    if options.version == "new":
        if model.is_dir() and any(model.iterdir()):
            read_config(model)
    elif not options.overwrite:
        check_free(model)


def check_stretched(file: Path, fits: Iterable[str]) -> None:
    """Raise S2WrapError if the python backend must not stretch pictures to the one image size of a file.

    Args:
        file: with the graph of a whole model.
        fits: of the scales of that model.
    """
    others = "/".join(sorted(set(fits) - {"stretch"}))
    if others:
        raise S2WrapError(
            f"{file} is for one image size and fit={others}: stretching pictures to it would undo that; export the "
            f"backbone alone (--tiles), or use backend='native' for images of that size"
        )


def _named(options: TritonOptions, file: Path) -> TritonOptions:
    """The options with a name, by default that of the file."""
    return options if options.name else replace(options, name=file.stem)


def _check(file: Path, manifest: dict[str, Any], options: TritonOptions) -> None:
    """Raise S2WrapError for a file that Triton would reject or handle wrongly."""
    if options.backend == "python":
        if manifest["part"] == "model":
            check_stretched(file, [scale["fit"] for scale in manifest["options"]["scales"]])
        return
    kind, (smallest, usual, largest) = manifest["kind"], limits_of(manifest)
    if kind == "tensorrt_rtx":
        raise S2WrapError(
            f"{file} is for TensorRT-RTX, and Triton has no backend for it; export a .plan on the GPU that serves, or "
            f"an .onnx, or use backend='python'"
        )
    if kind == "aotinductor":
        raise S2WrapError(
            f"{file} is an AOTInductor package, which s2wrap configures no backend of Triton's own for; use "
            f"backend='python', or export an .onnx or .plan"
        )
    if smallest != 1:
        raise S2WrapError(
            f"{file} takes batches of {smallest} to {largest}, but Triton sends single requests too; export with a "
            f"batch of 1:{usual}:{largest}, or use backend='python'"
        )
    tensors = [*manifest["inputs"], *manifest["outputs"]]
    if any(isinstance(tensor["shape"][0], int) for tensor in tensors):
        raise S2WrapError(
            f"{file} takes one image at a time, by its graph, and Triton's backends batch only an open dimension; "
            f"give a graph with one, or use backend='python'"
        )
    if kind == "onnx" and any(tensor["dtype"] == "bfloat16" for tensor in tensors):
        raise S2WrapError(
            f"{file} has bfloat16 inputs or outputs, which Triton's ONNX Runtime backend refuses; export with "
            f"precision fp16 or fp32, or a .plan"
        )
    if options.cuda_graphs and kind != "tensorrt":
        raise S2WrapError(f"cuda_graphs=True with {file}: only Triton's TensorRT backend has them; export a .plan")


def _beside(repository: Path) -> Path | None:
    """The folder above a repository, for drafts; None where they could not be renamed into it, or not be written."""
    parent = repository.resolve().parent
    return parent if same_disk(parent, repository) and os.access(parent, os.W_OK) else None


def _write_version(version: Path, file: Path, manifest: dict[str, Any], backend: str) -> None:
    """Copy a file, its weights and its manifest into the folder of a version."""
    version.mkdir(exist_ok=True)
    if backend == "python":
        name, folder = file.name, version
        (version / "model.py").write_text(MODEL, encoding="utf-8")
        (version / "__pycache__").touch()  # else Python writes there, and a server that polls loads the model anew
    else:
        name = "model.onnx" if file.suffix == ".onnx" else "model.plan"
        folder = version / name if manifest["weights"] else version
    folder.mkdir(exist_ok=True)
    shutil.copyfile(file, folder / name)
    manifest_path(folder / name).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    if manifest["weights"]:
        shutil.copyfile(file.with_name(manifest["weights"]), folder / manifest["weights"])  # the graph asks for it
