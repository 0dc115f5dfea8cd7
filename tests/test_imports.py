"""What an import costs and changes: facts about a fresh process."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from PIL import Image

import s2wrap

NEVER = ("torch._dynamo", "sympy", "timm", "open_clip", "torchvision", "transformers", "PIL", "rich", "typer", "onnx")
STATE = """
import ctypes, json, logging, signal, sys, warnings
def handler():
    # libtiff's handler is what setting another one gives back
    from PIL import Image
    library = ctypes.CDLL(Image.core.__file__)
    if not hasattr(library, "TIFFSetErrorHandler"):
        return None
    setter = library.TIFFSetErrorHandler
    setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    now = setter(None)
    setter(now)
    return now is not None
def state():
    import os
    loggers = [logging.getLogger(name) for name in (None, "PIL", "s2wrap", "torch")]
    return {
        "filters": [str(entry) for entry in warnings.filters],
        "loggers": [[str(each.handlers), each.level] for each in loggers],
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)],
        "environment": dict(os.environ),
        "libtiff": handler(),
    }
"""


def fresh(code, *arguments):
    """What a program prints last, as JSON."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def modules(code):
    """The modules that a program has imported at its end."""
    return set(fresh(f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"))


def test_import_s2wrap_imports_no_library_but_the_one_that_makes_it_lazy():
    assert not modules("import s2wrap").intersection(("torch", "numpy", "einops", "jaxtyping", *NEVER))


def test_wrap_and_load_import_torch_and_no_heavy_library_beside_it():
    seen = modules(
        "import s2wrap; s2wrap.wrap, s2wrap.load, s2wrap.MultiScale, s2wrap.VisionTower, s2wrap.PyramidBackbone"
    )
    assert "torch" in seen
    of_torch = modules("import torch")
    assert not (seen - of_torch).intersection(NEVER)
    others = {name.partition(".")[0] for name in seen - of_torch if not name.startswith("_")}
    assert others <= {"s2wrap", "lazy_loader", "einops", "jaxtyping", "numpy", "torch", "fractions", "decimal", "html"}


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_the_help_of_the_command_line_imports_no_torch(arguments):
    code = f"sys.argv = ['s2wrap', *{arguments}]\nfrom s2wrap.cli import main\ntry:\n main()\nexcept SystemExit: pass"
    seen = modules(code)
    assert "typer" in seen
    assert not seen.intersection(("torch", "numpy", "PIL", "timm"))


@pytest.mark.parametrize(
    "code",
    [
        "import s2wrap, s2wrap.cli, s2wrap.images, s2wrap.compare, s2wrap.extraction",
        "import s2wrap.images; s2wrap.images.load_image(sys.argv[1])",
        "import s2wrap.images, s2wrap.allocator; s2wrap.images.decode_image(open(sys.argv[1], 'rb').read(), 'a')",
    ],
)
def test_imports_and_reading_a_picture_change_nothing_process_wide(tmp_path, code):
    path = tmp_path / "a.tif"
    Image.new("RGB", (8, 8), "red").save(path)
    # what torch, numpy and PIL change when they are imported is not ours
    first = (
        "import torch, numpy, PIL.Image, PIL.TiffImagePlugin, einops, jaxtyping, typer, rich.console, scipy, sklearn"
    )
    program = f"{STATE}\n{first}\nbefore = state()\n{code}\nprint(json.dumps([before, state()]))"
    before, after = fresh(program, str(path))
    assert after == before


def test_a_program_silences_the_decoders():
    code = "import s2wrap.images\nbefore = state()\ns2wrap.images.silence_decoders()"
    before, after = fresh(f"{STATE}\n{code}\nprint(json.dumps([before, state()]))")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"filters", "loggers"}


def test_help_and_completion_of_every_command_import_no_torch():
    code = """
import sys
from s2wrap.cli import COMMANDS, main
for name in COMMANDS:
    sys.argv = ["s2wrap", name, "-h"]
    try:
        main()
    except SystemExit:
        pass
"""
    assert not modules(code).intersection(("torch", "numpy", "PIL", "timm", "open_clip"))


def test_a_model_of_timm_runs_without_the_other_libraries():
    code = "import torch, s2wrap; s2wrap.load('timm:test_vit', pretrained=False)(torch.zeros(1, 3, 160, 160))"
    assert not modules(code).intersection(("open_clip", "transformers", "onnx"))


def test_no_modules_of_compare_import_each_other_in_a_circle_not_even_in_functions():
    root = Path(s2wrap.__file__).parent
    imports = {}
    for path in (root / "compare").rglob("*.py"):
        name = ".".join(["s2wrap", *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
        nodes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        imports[name] = {str(node.module) for node in nodes} | {
            f"{node.module}.{x.name}" for node in nodes for x in node.names
        }
    order = list(TopologicalSorter({name: seen & set(imports) for name, seen in imports.items()}).static_order())
    assert order.index("s2wrap.compare.comparison") < order.index("s2wrap.compare.plots")
