"""One interface for every model; the adapters here know the libraries, nothing else does."""

from s2wrap.backbones.base import Backbone
from s2wrap.backbones.probed import ProbedBackbone
from s2wrap.backbones.registry import as_backbone, load_backbone, parse_spec, register_backbone

__all__ = ["Backbone", "ProbedBackbone", "as_backbone", "load_backbone", "parse_spec", "register_backbone"]
