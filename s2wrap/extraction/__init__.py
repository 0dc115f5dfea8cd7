"""Feature extraction for many pictures: from folders, lists, tars and object stores into resumable stores."""

from s2wrap.extraction.fleet import Cluster
from s2wrap.extraction.run import Outcome, extract_features
from s2wrap.extraction.sources import find_sections

__all__ = ["Cluster", "Outcome", "extract_features", "find_sections"]
