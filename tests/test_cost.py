from functools import cache

import pytest
import timm
import torch

import s2wrap
from s2wrap import S2WrapError
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


@pytest.mark.parametrize(
    ("name", "image_size", "scales", "printed"),
    [  # tables 5 and 6, G "FLOPs", which are multiply-adds
        ("vit_base_patch16_224", 224, (1,), 17.6),
        ("vit_base_patch16_224", 224, (1, 2), 88.1),
        ("vit_base_patch16_224", 224, (1, 2, 3), 246.0),
        ("vit_large_patch16_224", 224, (1,), 61.6),
    ],
)
def test_multiply_adds_are_those_that_the_paper_prints(name, image_size, scales, printed):
    cost = cost_of(name, image_size, scales)
    assert cost.multiply_adds / 1e9 == pytest.approx(printed, rel=0.005)


@pytest.mark.parametrize(
    ("name", "image_size", "scales", "printed", "in_full"),
    [
        ("vit_base_patch14_dinov2", 224, (1,), 22.6, 23.2),
        ("vit_base_patch14_dinov2", 224, (1, 2), 112.8, 115.8),
        ("vit_base_patch14_dinov2", 224, (1, 2, 3), 315.9, 324.3),
    ],
)
def test_some_models_of_the_paper_have_attention_counted_once(name, image_size, scales, printed, in_full):
    cost = cost_of(name, image_size, scales)
    assert cost.multiply_adds_attention_once / 1e9 == pytest.approx(printed, rel=0.0025)
    assert cost.multiply_adds / 1e9 == pytest.approx(in_full, rel=0.002)


@pytest.mark.parametrize(
    ("name", "parameters", "head", "activations"),
    [  # millions, as timm's model cards have them, and the classifier that a backbone lacks
        ("resnet50", 25.6, 2048 * 1000 + 1000, 11.1),
        ("vit_base_patch16_224", 86.6, 768 * 1000 + 1000, 16.5),
        ("tf_efficientnet_lite0", 4.7, 1280 * 1000 + 1000, 6.7),
        ("convnext_tiny", 28.6, 768 * 1000 + 1000, 13.4),
    ],
)
def test_parameters_and_activations_are_those_of_timms_tables(name, parameters, head, activations):
    cost = cost_of(name, None, (1,))
    assert (cost.parameters + head) / 1e6 == pytest.approx(parameters, abs=0.05)
    assert cost.activations / 1e6 == pytest.approx(activations, abs=0.1)


def test_activations_are_what_convolutions_put_out():
    """With a hook on every layer, which does not share the code."""
    network, values = timm.create_model("resnet18", num_classes=0).eval(), []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: values.append(output.numel()))
    network(torch.zeros(1, 3, 224, 224))
    expected = sum(values)
    assert count_cost(s2wrap.wrap(network, (1,))).activations == expected
    assert count_cost(s2wrap.wrap(network, (1, 2), whole=False)).activations == 5 * expected


@cache
def backbone_of(name, image_size):
    """Without weights, which are slow to draw."""
    options = {} if image_size is None else {"img_size": image_size}
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0, **options)


def cost_of(name, image_size, scales):
    return count_cost(s2wrap.wrap(backbone_of(name, image_size), scales))


def test_selected_tiles_are_counted_with_all_of_the_smallest_scale(vit):
    one = count_cost(s2wrap.wrap(vit, (1,)))
    cost = count_cost(s2wrap.wrap(vit, (2, 1)), select=3)
    assert (cost.tiles, cost.multiply_adds) == (4, 4 * one.multiply_adds)
    assert cost.peak_tokens == 3 * one.tokens


@pytest.mark.parametrize("select", [5, -1])
def test_tiles_that_there_are_not_have_no_cost(vit, select):
    with pytest.raises(S2WrapError, match="has 4 tiles beyond the smallest scale; use 0 to 4"):
        count_cost(s2wrap.wrap(vit, (1, 2)), select=select)
