"""Compare models: their cost, their quality on pictures, and whether a difference is more than noise."""

from s2wrap.compare.budget import propose
from s2wrap.compare.comparison import Comparison, Row
from s2wrap.compare.disagree import Disagreement, disagreements
from s2wrap.compare.report import to_csv, to_frame, to_html, to_json, write_report
from s2wrap.compare.run import compare
from s2wrap.compare.score import Score
from s2wrap.compare.tasks import TASKS
from s2wrap.compare.tasks.anomaly import AnomalyMap, make_bank
from s2wrap.compare.tasks.correspondence import correspondence
from s2wrap.compare.warps import Warp, draw_warps

__all__ = [
    "TASKS",
    "AnomalyMap",
    "Comparison",
    "Disagreement",
    "Row",
    "Score",
    "Warp",
    "compare",
    "correspondence",
    "disagreements",
    "draw_warps",
    "make_bank",
    "propose",
    "to_csv",
    "to_frame",
    "to_html",
    "to_json",
    "write_report",
]
