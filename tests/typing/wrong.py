"""A user's program with planted mistakes: type checkers must report each marked line, and no other."""

import torch

import s2wrap

network = torch.nn.AvgPool2d(16)
s2wrap.wrap(network, (1, 2), image_size=224, fuze="mean")  # wrong
s2wrap.wrap(network, (1, 2), image_size=224, overlap="lots")  # wrong
s2wrap.wrap(network, (1, 2), image_size=224, norm=3)  # wrong
s2wrap.wrap(network, (1, 2), image_size=224, fit="stretchy")  # wrong
s2wrap.load("timm:test_vit@1,2", pretraned=False)  # wrong
model = s2wrap.load("timm:test_vit@1,2")
model(torch.zeros(1, 3, 224, 224)).spatal  # wrong
number: int = model(torch.zeros(1, 3, 224, 224)).pooled  # wrong
text: str = model.encode(["cat.jpg"])[0].plan.num_tiles  # wrong
