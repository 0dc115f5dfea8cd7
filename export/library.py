"""The Python modules of TensorRT and TensorRT-RTX, and their loggers."""

import importlib
from collections import deque
from types import ModuleType
from typing import Any

from s2wrap.errors import MissingExtraError, S2WrapError, first_line

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX", "aotinductor": "AOTInductor"}
OLDEST = {"tensorrt": (10, 12), "tensorrt_rtx": (1, 1)}
NEEDED = {
    "tensorrt": ".plan and .engine files need (.onnx files do not, and .rtx files are built without a GPU)",
    "tensorrt_rtx": ".rtx files need (.onnx files do not)",
}


def load_library(kind: str) -> ModuleType:
    """The module of TensorRT ("tensorrt") or TensorRT-RTX ("tensorrt_rtx"), of a version with strongly typed networks.

    Raises:
        MissingExtraError: the library is not installed.
        S2WrapError: the library is too old, or fails to import.
    """
    try:
        trt = importlib.import_module(kind)
    except ModuleNotFoundError as error:
        if error.name != kind:
            raise _broken(kind, error) from error
        raise MissingExtraError(f"{kind}, which {NEEDED[kind]},", kind.replace("_", "-")) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(kind, error) from error
    oldest = OLDEST[kind]
    if tuple(int(part) for part in trt.__version__.split(".")[:2]) < oldest:
        raise S2WrapError(f"{TITLES[kind]} {trt.__version__} is too old; use {oldest[0]}.{oldest[1]} or later")
    return trt


def make_logger(trt: ModuleType) -> Any:
    """A logger that prints nothing and stores errors and warnings; its method `tail` returns the last ones as text."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=100)
            self.warnings: deque[str] = deque(maxlen=100)

        def log(self, severity, msg):
            if severity <= trt.ILogger.ERROR:
                self.errors.append(msg.strip())
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(msg.strip())

        def tail(self, count: int = 3) -> str:
            errors = [text for text in self.errors if "cudaError 35" not in text]  # without a GPU, it follows any error
            last = list(dict.fromkeys(errors or self.errors or self.warnings))[-count:]
            return "; ".join(last) or "it gave no message"

    return Logger()


def _broken(kind: str, error: Exception) -> S2WrapError:
    return S2WrapError(f"{kind} is installed but cannot be loaded: {first_line(error)}")
