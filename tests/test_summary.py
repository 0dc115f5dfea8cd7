import pytest
import torch

import s2wrap


@pytest.mark.parametrize("bands", [3, 400])
def test_a_models_summary_is_short_whatever_it_holds(bands):
    scales = tuple(1 + k / 100 for k in range(60))
    backbone = torch.nn.Conv2d(bands, 4, 8, 8)
    model = s2wrap.wrap(backbone, scales, image_size=64, mean=(0.123456,) * bands, std=(0.2,) * bands, whole=False)
    assert len(repr(model)) < 2000
    assert len(model._repr_html_()) < 2200
    assert f"{bands} channels, 64×64 pixels, mean (0.123456" in repr(model)
