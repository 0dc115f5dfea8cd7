import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_tracing_without_shape_checks():
    """The tests in tests/untyped: PyTorch's tracer cannot look through the shape checks that other tests run with."""
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-o", "testpaths=", str(TESTS / "untyped")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent)
    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
