"""Compare models: their cost, their quality on pictures, and whether a difference is more than noise."""

from s2wrap.compare.budget import propose
from s2wrap.compare.comparison import Comparison, Row
from s2wrap.compare.run import compare
from s2wrap.compare.score import Score

__all__ = ["Comparison", "Row", "Score", "compare", "propose"]
