"""Wrapped models as files that other runtimes read. Install with: pip install "s2wrap[export]"."""

from s2wrap.export.engine import Engine, load
from s2wrap.export.manifest import read_manifest
from s2wrap.export.pipeline import export
from s2wrap.export.proof import VerificationError, verify

__all__ = ["Engine", "VerificationError", "export", "load", "read_manifest", "verify"]
