"""Every name of TensorRT's that the export code uses exists in TensorRT 10 and 11 and in TensorRT-RTX.

`data/tensorrt_names.json` lists the public names of three versions: class → members. The source is walked as text, so
neither library is needed. Names that only TensorRT-RTX has may stand in functions whose own name ends in `_rtx`; those
are called only below an `if` that asks for "tensorrt_rtx".
"""

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = json.loads((Path(__file__).parent / "data" / "tensorrt_names.json").read_text())
RTX = {title: classes for title, classes in NAMES.items() if title.startswith("tensorrt_rtx")}
VARIABLES = {
    "library.py": {},
    "progress.py": {},
    "build.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "problem": "ParserError",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
        "layer": "IAttentionInputLayer",  # has ILayer's members, and `attention`
        "attention": "IAttention",
        "serialized": "IHostMemory",
        "timings": "ITimingCache",
    },
    "engine_session.py": {
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "config": "IRuntimeConfig",
        "cache": "IRuntimeCache",
    },
}
"""Which class of TensorRT's a variable or attribute holds, in the files that use the library."""
OWN = {"tail"}
"""Methods of our subclasses of TensorRT's classes that TensorRT does not call."""
GUARDED = {
    "engine_session.py save IRuntimeCache.serialize": "there is a cache only for TensorRT-RTX; checked at the top",
}
"""Uses outside of `_rtx` functions that need no check, with the reason."""

Use = tuple[str, str, str | None]  # function, class, member


def uses(source: str, variables: dict[str, str]) -> Iterator[Use]:
    """Every use of one of TensorRT's names: the function it stands in, the class, and the member."""

    def walk(node: ast.AST, function: str) -> Iterator[Use]:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.ClassDef):
            for base in map(named_class, node.bases):
                methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
                yield from ((function, base, name) for name in methods if base and name not in OWN and name[:1] != "_")
        if isinstance(node, ast.Attribute) and not node.attr.startswith("_"):
            if named_class(node):
                yield function, node.attr, None
            elif owner := named_class(node.value) or variables.get(last_name(node.value)):
                yield function, owner, node.attr
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    yield from walk(ast.parse(source), "")


def last_name(node: ast.AST) -> str:
    """The name after the last dot: `config` of `self.config`."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def named_class(node: ast.AST) -> str:
    """`X` of `trt.X` and `self.trt.X`, else nothing."""
    module = isinstance(node, ast.Attribute) and last_name(node.value) == "trt"
    return node.attr if module and not node.attr.startswith("_") else ""


def wrong_uses(file: str, source: str) -> list[str]:
    """The uses that some version would not know."""
    wrong = []
    for function, owner, member in uses(source, VARIABLES[file]):
        use = f"{owner}.{member}" if member else owner
        for title, classes in (RTX if function.endswith("_rtx") else NAMES).items():
            known = owner in classes and (member is None or member in classes[owner])
            if not known and f"{file} {function} {use}" not in GUARDED:
                wrong.append(f"{file}: {use} in {function}() is not in {title}")
    return wrong


def unguarded_calls(source: str) -> list[str]:
    """Calls of `_rtx` functions that no `if` about "tensorrt_rtx" stands above."""
    found = []

    def walk(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.Call) and last_name(node.func).endswith("_rtx") and not guarded:
            found.append(last_name(node.func))
        if isinstance(node, ast.If):
            inside = guarded or "'tensorrt_rtx'" in ast.unparse(node.test)
            for child in node.body:
                walk(child, inside)
            for child in (node.test, *node.orelse):
                walk(child, guarded)
            return
        inside = guarded or (isinstance(node, ast.FunctionDef) and node.name.endswith("_rtx"))
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(ast.parse(source), False)
    return found


@pytest.mark.parametrize("file", VARIABLES)
def test_every_name_exists_in_every_version(file):
    source = (ROOT / "export" / file).read_text()
    assert wrong_uses(file, source) == []
    assert unguarded_calls(source) == []


def test_no_other_file_uses_the_library():
    for path in (ROOT / "export").glob("*.py"):
        text = path.read_text()
        assert "import tensorrt" not in text, f"{path.name}: use s2wrap.export.library.load_library"
        if path.name not in VARIABLES:
            assert "trt." not in text, f"{path.name} uses TensorRT: add it to VARIABLES"


def test_the_walk_sees_the_code():
    seen = set()
    for file, variables in VARIABLES.items():
        source = (ROOT / "export" / file).read_text()
        seen |= {f"{owner}.{member}" if member else owner for _, owner, member in uses(source, variables)}
    for name in (
        "Builder",
        "BuilderFlag.TF32",
        "Builder.build_serialized_network",
        "INetworkDefinition.num_layers",
        "OnnxParser.parse_from_file",
        "ParserError.node_operator",
        "IBuilderConfig.progress_monitor",
        "IBuilderConfig.set_compute_capability",
        "IOptimizationProfile.set_shape",
        "IAttention.decomposable",
        "IProgressMonitor.step_complete",
        "ILogger.log",
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.execute_async_v3",
        "IRuntimeCache.deserialize",
    ):
        assert name in seen


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("build.py", "trt.NoSuchClass()", "NoSuchClass"),
        ("build.py", "config.set_flag(trt.BuilderFlag.FP16)", "BuilderFlag.FP16"),
        ("build.py", "self.builder.platform_has_fast_fp16", "Builder.platform_has_fast_fp16"),
        ("build.py", "self.config.int8_calibrator = None", "IBuilderConfig.int8_calibrator"),
        ("build.py", "network.add_plugin_v3(a)", "INetworkDefinition.add_plugin_v3"),
        ("build.py", "self.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "EXPLICIT_BATCH"),
        ("build.py", "config.num_compute_capabilities = 1", "IBuilderConfig.num_compute_capabilities"),
        ("engine_session.py", "self.engine.device_memory_size", "ICudaEngine.device_memory_size"),
        ("engine_session.py", "runtime.get_engine_validity(b'')", "Runtime.get_engine_validity"),
        ("engine_session.py", "context.execute_async_v2(b)", "IExecutionContext.execute_async_v2"),
        ("progress.py", "class M(trt.IProgressMonitor):\n  def step_done(self): ...", "IProgressMonitor.step_done"),
    ],
)
def test_a_wrong_name_is_found(file, line, wrong):
    body = line.replace("\n", "\n    ")
    found = wrong_uses(file, f"def work(trt, config, network, runtime, context):\n    {body}\n")
    assert any(wrong in text for text in found)


def test_names_of_rtx_alone_need_their_guard():
    use = "def {name}(config):\n    config.num_compute_capabilities = 1\n"
    assert wrong_uses("build.py", use.format(name="choose_rtx")) == []
    assert len(wrong_uses("build.py", use.format(name="choose"))) == 2  # TensorRT 10 and 11
    assert unguarded_calls("choose_rtx(config)") == ["choose_rtx"]
    assert unguarded_calls("if kind == 'tensorrt':\n    choose_rtx(config)") == ["choose_rtx"]
    assert unguarded_calls("if kind == 'tensorrt_rtx':\n    pass\nelse:\n    choose_rtx(config)") == ["choose_rtx"]
    assert unguarded_calls("if kind == 'tensorrt_rtx':\n    choose_rtx(config)") == []


def test_the_list_agrees_with_the_installed_library():
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs tensorrt_rtx")
    import tensorrt_rtx

    if not tensorrt_rtx.__version__.startswith("1.7.1"):
        pytest.skip("the list is of 1.7.1")
    (classes,) = RTX.values()
    for owner in {*VARIABLES["build.py"].values(), *VARIABLES["engine_session.py"].values()}:
        assert set(classes[owner]) <= set(dir(getattr(tensorrt_rtx, owner)))
