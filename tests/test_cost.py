import pytest
import timm

import s2wrap
from s2wrap.cost import count_cost


def test_a_vits_multiply_adds_are_those_of_the_formula():
    """12·n·d² + 2·n²·d a block, and the patch embedding; n = 257 tokens, d = 384, 12 blocks, 14 tiles."""
    backbone = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0)
    cost = count_cost(s2wrap.wrap(backbone, (1, 2, 3)))
    block = 12 * 257 * 384**2 + 2 * 257**2 * 384
    assert cost.multiply_adds == 14 * (12 * block + 256 * 384 * 3 * 14 * 14)
    assert cost.tiles == 14
    assert cost.tokens == 14 * 257
    assert cost.peak_tokens == 4 * 257
    assert cost.parameters == sum(parameter.numel() for parameter in backbone.parameters())


def test_a_resnets_multiply_adds_are_the_known_ones():
    cost = count_cost(s2wrap.wrap(timm.create_model("resnet50", num_classes=0), (1,)))
    assert cost.multiply_adds == pytest.approx(4.09e9, rel=0.01)  # He et al. 2016 count 3.8, with the stride elsewhere


def test_a_whole_scale_costs_what_it_is():
    """A convolution costs by the pixel: 2 × 2 tiles, or four times the image at once."""
    network = timm.create_model("resnet50", num_classes=0)
    one = count_cost(s2wrap.wrap(network, (1,)))
    whole, tiled = (count_cost(s2wrap.wrap(network, (2,), whole=whole)) for whole in (True, False))
    assert (whole.tiles, tiled.tiles) == (1, 4)
    assert whole.multiply_adds == tiled.multiply_adds == 4 * one.multiply_adds
    assert whole.tokens == tiled.tokens == 4 * 49
    assert whole.peak_tokens == 4 * 49


def test_an_images_shape_counts_where_it_is_kept():
    model = s2wrap.wrap(timm.create_model("test_vit", num_classes=0), (1, 2), fit="aspect")
    assert [count_cost(model, image_hw).tiles for image_hw in ((100, 100), (100, 200))] == [5, 3]
