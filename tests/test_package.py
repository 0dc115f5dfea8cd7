import os
import subprocess
import sys
import zipfile
from pathlib import Path

import s2wrap

ROOT = Path(__file__).parent.parent
HEAVY = (
    "timm",
    "open_clip",
    "torchvision",
    "PIL",
    "rich",
    "typer",
    "onnx",
    "safetensors",
    "sklearn",
    "pandas",
    "matplotlib",
)


def loaded_by(statement):
    code = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_s2wrap_stays_light():
    assert loaded_by("import s2wrap") == []
    assert loaded_by("import s2wrap.compat") == []
    assert "timm" in loaded_by("import s2wrap, timm")  # the test can fail


def test_s2wrap_never_imports_export():
    code = "import sys, s2wrap, s2wrap.cli, s2wrap.compat, s2wrap.cost; print('s2wrap.export' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_public_names_are_there_and_described():
    for name in s2wrap.__all__:
        assert getattr(s2wrap, name).__doc__


def test_a_wheel_holds_everything_and_works_outside_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {"s2wrap/__init__.py", "s2wrap/py.typed", "s2wrap/export/graph.py", "s2wrap/backbones/probe.py"} <= names
        assert not [name for name in names if name.startswith(("export/", "tests/", "benchmarks/", "demos/"))]
        archive.extractall(tmp_path / "site")
    code = (
        "import s2wrap, s2wrap.export, s2wrap.cli, pathlib, sys; "
        "print(s2wrap.__file__); print(s2wrap.export.__file__); "
        "print(s2wrap.load('timm:test_vit@1,2', pretrained=False).num_features)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    package, export, channels = result.stdout.split()
    assert package == str(tmp_path / "site" / "s2wrap" / "__init__.py")
    assert export == str(tmp_path / "site" / "s2wrap" / "export" / "__init__.py")
    assert channels == "128"


def test_the_link_to_export_is_relative():
    assert os.readlink(ROOT / "s2wrap" / "export") == "../export"
