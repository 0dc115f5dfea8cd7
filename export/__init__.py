"""From a wrapped model to files that other runtimes read. Install with: pip install "s2wrap[export]"."""

from s2wrap.export.graph import to_onnx

__all__ = ["to_onnx"]
