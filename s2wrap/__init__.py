"""s2wrap: multi-scale features from any frozen vision backbone (Scaling on Scales, arXiv 2403.13043)."""

from s2wrap.backbones import Backbone, ProbedBackbone, register_backbone
from s2wrap.errors import MissingExtraError, S2WrapError
from s2wrap.factory import load, wrap
from s2wrap.features import Features
from s2wrap.geometry import Geometry
from s2wrap.inputs import ModelInput
from s2wrap.options import BackboneOptions, Options
from s2wrap.projector import dynamic_s2, merge_blocks, pixel_unshuffle, split_blocks
from s2wrap.scales import Scale
from s2wrap.select import inside, similar_to
from s2wrap.tower import VisionTower
from s2wrap.wrapper import MultiScale

__all__ = [
    "Backbone",
    "BackboneOptions",
    "Features",
    "Geometry",
    "MissingExtraError",
    "ModelInput",
    "MultiScale",
    "Options",
    "ProbedBackbone",
    "S2WrapError",
    "Scale",
    "VisionTower",
    "dynamic_s2",
    "inside",
    "load",
    "merge_blocks",
    "pixel_unshuffle",
    "register_backbone",
    "similar_to",
    "split_blocks",
    "wrap",
]
