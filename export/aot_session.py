"""Sessions that run an AOTInductor package (.pt2) on the CPU or the GPU that it was compiled for."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2wrap.errors import S2WrapError, first_line
from s2wrap.export.aot import this_platform
from s2wrap.export.engine_session import cuda_device
from s2wrap.export.ports import Port, Session

MODEL = "model"
"""The name of the model in a package."""
CAPABILITIES = {"avx2": "avx2", "avx512": "avx512_f", "avx512_vnni": "avx512_vnni", "amx_tile": "amx_tile"}
"""What PyTorch calls the ability of a CPU, by the name of a vector instruction set."""


class AotSession(Session):
    """A session in PyTorch's own runtime of compiled graphs.

    Threads may share it: calls run one after another, and on a CPU each with all of PyTorch's threads.
    """

    def __init__(self, path: Path, device: str | torch.device | None):
        library: Any = torch._C._aoti.AOTIModelPackageLoader  # pyright: ignore[reportAttributeAccessIssue] (no stub)
        try:
            metadata = library.load_metadata_from_package(str(path), MODEL)
            note = json.loads(metadata["s2wrap"])
            self.inputs, self.outputs = (tuple(map(_port, note[key])) for key in ("inputs", "outputs"))
            low, usual, high = note["batch"]
            kind = metadata["AOTI_DEVICE_KEY"]
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise S2WrapError(f"{path} is damaged, or no package of s2wrap: {first_line(error)}") from error
        self.path, self.batch = path, (low, usual, high)
        self.device = find_device(path, kind, device)
        try:
            with self._on_device():
                self.loader = library(str(path), MODEL, False, 1, -1 if kind == "cpu" else self.device.index)
        except RuntimeError as error:
            raise S2WrapError(f"PyTorch cannot load {path}; is the file whole? It said: {first_line(error)}") from error

    def _run(self, inputs: dict[str, Tensor], batch: int) -> dict[str, Tensor]:
        try:
            with self._on_device():
                outputs = self.loader.run([inputs[port.name] for port in self.inputs])
        except RuntimeError as error:
            raise S2WrapError(f"PyTorch cannot run {self.path}. It said: {first_line(error)}") from error
        return {port.name: tensor.contiguous() for port, tensor in zip(self.outputs, outputs, strict=True)}

    def _on_device(self) -> Any:
        return nullcontext() if self.device.type == "cpu" else torch.cuda.device(self.device)


def find_device(path: Path, kind: str, device: str | torch.device | None) -> torch.device:
    """The device that runs a package, with its index; S2WrapError for one of another kind than it was compiled for."""
    if kind == "cuda":
        return cuda_device(path, device)
    if torch.device(device or "cpu").type != "cpu":
        raise S2WrapError(
            f"device={device} cannot run {path.name}, which was compiled for the CPU; use device=cpu, or export it "
            f"with device='cuda' (--device cuda) on that GPU"
        )
    return torch.device("cpu")


def check_package_here(path: Path, build: dict[str, Any], device: str | torch.device | None) -> None:
    """Raise S2WrapError for a package that another PyTorch compiled, or for another device or CPU."""
    if _release(build["version"]) != _release(torch.__version__):
        raise S2WrapError(
            f"{path} was compiled by PyTorch {build['version']}, and {torch.__version__} is installed, which may not "
            f"run it; install torch=={_release(build['version'])}.*, or export again"
        )
    place = find_device(path, build.get("device", "cpu"), device)
    if (wanted := build.get("platform", this_platform())) != this_platform():
        raise S2WrapError(f"{path} was compiled for {wanted}; this is {this_platform()}: export again here")
    if place.type == "cpu":
        lacking = [name for name in build.get("instructions", "").split() if not _has(name)]
        if lacking:
            raise S2WrapError(
                f"{path} was compiled for a CPU with {', '.join(lacking)}, which this one lacks: export again here"
            )
        return
    here, wanted = "{}.{}".format(*torch.cuda.get_device_capability(place)), build.get("compute_capability")
    if wanted and wanted != here:
        raise S2WrapError(
            f"{path} was compiled for {build.get('gpu')} (compute capability {wanted}); this is "
            f"{torch.cuda.get_device_name(place)} ({here}): export again here"
        )


def _port(facts: dict[str, Any]) -> Port:
    return Port(facts["name"], getattr(torch, facts["dtype"]), tuple(facts["shape"]))


def _release(version: str) -> str:
    """Major and minor number of a version: PyTorch changes what it calls in compiled files between these."""
    return ".".join(version.partition("+")[0].split(".")[:2])


def _has(name: str) -> bool:
    """Whether this CPU has a vector instruction set, as far as PyTorch tells."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get(CAPABILITIES.get(name), True))
