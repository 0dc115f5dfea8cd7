"""A user's program that is right: checked in strict mode by the tests, never run."""

from pathlib import Path

import torch
from torch import Tensor

import s2wrap

network = torch.nn.AvgPool2d(16)
model = s2wrap.wrap(network, (1, 2, "448px"), fit="pad", overlap=3, image_size=224, norm="l2", mean=(0.5, 0.5, 0.5))
features: s2wrap.Features = model(torch.zeros(1, 3, 224, 224), select=2)
spatial: Tensor = features.spatial
tiles: int = model.encode([Path("cat.jpg")])[0].plan.num_tiles
rows, cols = features.geometry[0].grid
loaded = s2wrap.load("timm:test_vit@1,2", fuse="detail", pretrained=False, checkpoint=None, layers=(-2, -1))
loaded = s2wrap.load("timm:test_vit", scales=(1, s2wrap.Scale(2, "aspect")), policy="nvila")
channels: int = loaded.input.channels
mean: tuple[float, ...] | None = loaded.input.mean
print(rows + cols + channels, mean, spatial.shape, [image.pooled for image in features])
