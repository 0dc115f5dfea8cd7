"""One face for every model; the rooms here know the libraries, nothing else does."""

from s2wrap.backbones.backbone import Backbone
from s2wrap.backbones.registry import as_backbone, load_backbone, parse_spec, register_backbone

__all__ = ["Backbone", "as_backbone", "load_backbone", "parse_spec", "register_backbone"]
