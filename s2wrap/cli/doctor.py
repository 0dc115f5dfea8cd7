"""`s2wrap doctor`: what works here, and what to install for the rest."""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import distribution, metadata, requires
from importlib.util import find_spec
from os import environ, pathsep
from typing import Any, Literal

import typer
from packaging.requirements import Requirement

from s2wrap.cli import output
from s2wrap.errors import first_line
from s2wrap.version import installed_version

CORE = "core"
ALSO = ("torchvision",)
"""Packages that s2wrap uses, and only its dependencies ask for."""
FOR_DEVELOPERS = ("dev",)
RUNTIMES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
STYLES = {"works": None, "missing": "yellow", "broken": "red"}
TIMEOUT = 120
"""Seconds after which an import counts as hanging."""


@dataclass(frozen=True)
class Part:
    """The core or an extra.

    Attributes:
        state: whether all its packages are there, of a version that is asked for, and can be imported.
        problem: what does not work, in words; None if all does.
        remedy: the pip line that helps.
    """

    state: Literal["works", "missing", "broken"]
    problem: str | None = None
    remedy: str | None = None


def examine(*, as_json: output.Json = False) -> None:
    """Show what works here, and what to install for the rest.

    The packages of the core and of every extra are imported in a process of their own, so that one that crashes does
    no harm. The exit code is 1 if the core does not work.
    """
    extras = [extra for extra in metadata("s2wrap").get_all("Provides-Extra") or () if extra not in FOR_DEVELOPERS]
    asked = {CORE: list(needed("s2wrap"))} | {extra: list(needed("s2wrap", extra)) for extra in extras}
    names = dict.fromkeys([*ALSO, *(requirement.name for part in asked.values() for requirement in part)])
    versions = {name: installed for name in names if (installed := installed_version(name)) is not None}
    modules = {name: module for name in versions if (module := _module(name)) is not None}
    with output.notes().status("Importing what is installed"):
        errors, devices = try_imports(list(modules.values()))
    failures = {name: error for name, module in modules.items() if (error := errors[module]) is not None}
    parts = {name: _judge(name, part, versions, failures) for name, part in asked.items()}
    runtimes = {module: _runtime(module, versions, failures, devices or {}) for module in RUNTIMES}
    facts = {
        "s2wrap": installed_version("s2wrap"),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    if as_json:
        shown = {name: asdict(part) for name, part in parts.items()}
        packages = {"packages": versions, "devices": devices, "runtimes": runtimes, "parts": shown}
        output.print_json(facts | packages)
    else:
        _print(facts, versions, devices, runtimes, parts)
    if parts[CORE].state != "works":
        raise typer.Exit(1)


def needed(package: str, extra: str = "") -> Iterator[Requirement]:
    """What a package asks for on this machine, or what an extra of it adds, with the extras of those packages."""
    for text in requires(package) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if (always and extra) or (marker is not None and not marker.evaluate({"extra": extra})):
            continue
        if requirement.name != package:
            yield requirement
        for inner in sorted(requirement.extras):
            if installed_version(requirement.name) is not None:
                yield from needed(requirement.name, inner)


def _module(package: str) -> str | None:
    """The module that a package is imported by; None where its files do not say."""
    plain = package.replace("-", "_").lower()
    if find_spec(plain) is not None:
        return plain
    listed = (distribution(package).read_text("top_level.txt") or "").split()
    listed += [file.parts[0] for file in distribution(package).files or () if file.parts[1:] == ("__init__.py",)]
    return next((name for name in listed if not name.startswith("_") and find_spec(name) is not None), None)


def try_imports(modules: list[str]) -> tuple[dict[str, str | None], dict[str, Any] | None]:
    """Why each module cannot be imported, None if it can; and the devices, None where torch cannot say.

    One process imports one after the other; after a crash, another goes on behind the module that it was at.
    """
    errors: dict[str, str | None] = {}
    program = [sys.executable, "-P", "-c", "from s2wrap.cli.doctor import report; report()"]
    while True:
        left = modules[len(errors) :]
        environment = {**environ, "PYTHONPATH": pathsep.join(filter(None, sys.path))}
        try:
            ended = subprocess.run(
                [*program, *left], capture_output=True, env=environment, timeout=TIMEOUT, check=False
            )
            answers, crash = ended.stdout, f"importing it ends Python with exit code {ended.returncode}"
        except subprocess.TimeoutExpired as error:
            answers, crash = error.stdout or b"", f"importing it takes more than {TIMEOUT} seconds"
        lines = [json.loads(line) for line in answers.splitlines()]
        errors |= dict(zip(left, lines, strict=False))
        if len(lines) >= len(left):
            return errors, lines[len(left)] if len(lines) > len(left) else None
        errors[left[len(lines)]] = crash


def report() -> None:
    """Import the modules that the command line names, and print for each a line of JSON; at last, the devices."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    for module in sys.argv[1:]:
        try:
            import_module(module)
            error = None
        except BaseException as raised:  # a package may raise anything, SystemExit too
            error = first_line(raised)
        print(json.dumps(error), file=answers, flush=True)
    print(json.dumps(_devices()), file=answers, flush=True)


def _devices() -> dict[str, Any] | None:
    """What torch and ONNX Runtime can run on."""
    try:
        import torch
    except Exception:
        return None
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    providers = getattr(sys.modules.get("onnxruntime"), "get_available_providers", list)()
    facts = {"cpu_threads": torch.get_num_threads(), "cuda": gpus, "mps": torch.backends.mps.is_available()}
    return facts | {"onnxruntime": [name.removesuffix("ExecutionProvider") for name in providers]}


def _judge(name: str, asked: list[Requirement], versions: dict[str, str], failures: dict[str, str]) -> Part:
    """Whether a part works, and if not, the cause and the remedy."""
    target = "s2wrap" if name == CORE else f'"s2wrap[{name}]"'
    missing = dict.fromkeys(requirement.name for requirement in asked if requirement.name not in versions)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        return Part("missing", f"{', '.join(missing)} {verb} not installed", f"pip install {target}")
    for requirement in asked:
        package, number = requirement.name, versions[requirement.name]
        if not requirement.specifier.contains(number, prereleases=True):
            problem = f"{package} {number} is installed, and {package}{requirement.specifier} is needed"
            return Part("broken", problem, f"pip install -U {target}")
        if package in failures:
            problem = f"{package} {number} is installed, but cannot be imported ({failures[package]})"
            return Part("broken", problem, f"pip install --force-reinstall {package}=={number}")
    return Part("works")


def _runtime(module: str, versions: dict[str, str], failures: dict[str, str], devices: dict[str, Any]) -> str | None:
    """Where a runtime runs exported files; None if it does not work here."""
    if module not in versions or module in failures:
        return None
    if module == "onnxruntime":
        return ", ".join(devices.get(module, ())) or None
    gpus = ", ".join(devices.get("cuda", ()))
    return gpus or ("builds .rtx files, and needs a GPU to run them" if module == "tensorrt_rtx" else None)


def _print(
    facts: dict[str, str],
    versions: dict[str, str],
    devices: dict[str, Any] | None,
    runtimes: dict[str, str | None],
    parts: dict[str, Part],
) -> None:
    """The same for readers."""
    console = output.results()
    output.print_line(f"s2wrap {facts['s2wrap']}, Python {facts['python']}, {facts['platform']}")
    if devices is None:
        output.print_line("devices: torch does not say")
    else:
        gpus = ", ".join(devices["cuda"]) or "no CUDA GPU"
        output.print_line(f"devices: CPU ({devices['cpu_threads']} threads), {gpus}{', MPS' if devices['mps'] else ''}")
    for module, title in RUNTIMES.items():
        output.print_line(f"{title}: {runtimes[module] or 'does not run here'}")
    console.print(", ".join(f"{name} {number}" for name, number in versions.items()), highlight=False, markup=False)
    for name, part in parts.items():
        detail = "" if part.state == "works" else f": {part.problem}; {part.remedy}"
        output.print_line(f"{name}: {part.state}{detail}", style=STYLES[part.state])
