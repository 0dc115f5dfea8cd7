"""A comparison of models with made-up figures, for the tests of what shows it; and the sizes of a tiny ViT."""

import numpy as np

from s2wrap.compare.comparison import Comparison, Row
from s2wrap.compare.score import Score
from s2wrap.cost import Cost

TINY_VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
"""Arguments of many configurations of transformers: three blocks, 4 × 4 patches."""
SPECS = (
    "sample:dinov2_s14@1",
    "sample:dinov2_s14@1,2",
    "sample:dinov2_s14@1,2,3",
    "sample:dinov2_s14@2:whole",
    "timm:vit_base_patch14_dinov2.lvd142m@1",
    "timm:vit_base_patch14_dinov2.lvd142m@1,448px",
    "timm:vit_large_patch14_dinov2.lvd142m@1",
    "timm:vit_small_patch16_224:patch=8@1",
    "open_clip:ViT-B-16/laion2b_s34b_b88k@1",
    "open_clip:ViT-B-16/laion2b_s34b_b88k@1,2",
    "torchvision:convnext_tiny@1",
    "torchvision:convnext_tiny@1,2",
    "torchvision:resnet50@1",
    "transformers:facebook/dinov2-small@1",
    "transformers:facebook/dinov2-small@1,2",
)
BILLIONS = (5.5, 27.5, 77, 26, 22, 110, 78, 23, 17.6, 88, 4.5, 22.5, 4.1, 5.6, 27.6)
VALUES = (0.86, 0.9, 0.91, 0.885, 0.893, 0.92, 0.905, 0.88, 0.84, 0.875, 0.81, 0.84, 0.78, 0.86, 0.9)


def row(number=0, *, measures=("accuracy",), timed=True, **changes):
    value = VALUES[number]
    cost = Cost(
        parameters=22_100_000,
        tiles=5,
        tokens=1285,
        peak_tokens=257,
        multiply_adds=int(BILLIONS[number] * 1e9),
        attention=2_000_000,
        activations=11_000_000,
    )
    figures = dict.fromkeys(("median_ms", "p90_ms", "p99_ms"), 2.0 * BILLIONS[number])
    timings = {"eager": {**figures, "images_per_second": 79.0}} if timed else {}
    scores = {
        name: Score(value, np.linspace(value - 0.05, value + 0.03, 401), np.full(150, value)) for name in measures
    }
    return Row(SPECS[number], **{"cost": cost, "memory": 30_000_001, "timings": timings, "scores": scores, **changes})


def comparison(count=3, *, measures=("accuracy",), timed=True, **changes):
    rows = [row(number, measures=measures, timed=timed) for number in range(count)]
    for one in rows if measures else ():
        one.on_front = not any(
            other.cost.multiply_adds <= one.cost.multiply_adds
            and other.scores[measures[0]].value >= one.scores[measures[0]].value
            for other in rows
            if other is not one
        )
    facts = {"pictures": "150 pictures in 3 classes", "device": "CPU (x86_64)", "torch": "2.11"}
    told = {
        "verdict": ["The best is first."],
        "pairs": ["One against another: worse."],
        "skipped": ["broken.jpg: truncated"],
        "pictures": [f"{number}.jpg" for number in range(150)],
        **changes,
    }
    return Comparison(rows, facts, {f"task of {name}": (name,) for name in measures}, **told)
