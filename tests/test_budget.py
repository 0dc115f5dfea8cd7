import pytest

import s2wrap
from s2wrap import S2WrapError
from s2wrap.backbones import parse_spec
from s2wrap.compare.budget import LADDER, parse_budget, propose, siblings
from s2wrap.cost import count_cost


@pytest.mark.parametrize(
    ("text", "amount"), [("20GMAC", 20e9), ("20 gmacs", 20e9), ("500MMAC", 5e8), ("1.5TMACs", 1.5e12), (".5GMAC", 5e8)]
)
def test_a_budget_is_in_multiply_adds(text, amount):
    assert parse_budget(text) == pytest.approx(amount)


@pytest.mark.parametrize("text", ["20", "GMAC", "20 GFLOP", "15ms", "-3GMAC", "0GMAC", "", "2e9"])
def test_another_budget_is_told(text):
    with pytest.raises(S2WrapError, match="write the multiply-adds of an image, such as 20GMAC"):
        parse_budget(text)


def test_siblings_are_the_other_sizes_of_a_family():
    names = siblings(parse_spec("sample:efficientnet_lite1@1,2"))
    assert names == [f"sample:efficientnet_lite{size}" for size in (1, 0, 2)]
    names = siblings(parse_spec("timm:vit_small_patch16_224:patch=8@1"))
    assert {"timm:vit_base_patch16_224:patch=8", "timm:vit_tiny_patch16_224:patch=8"} <= set(names)
    assert not any("." in name or "dinov2" in name for name in names)


def test_what_is_proposed_fits_and_what_is_left_out_does_not():
    found = propose(["timm:test_vit@1,2,2.5"], "0.25GMAC")
    plain = count_cost(s2wrap.load("timm:test_vit@1", pretrained=False)).multiply_adds
    assert found["timm:test_vit@1"] == plain
    assert found["timm:test_vit@1,2"] == 5 * plain
    assert "timm:test_vit@2:whole" in found
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert max(found.values()) <= 0.25e9
    for scales in (*LADDER, "1,2,2.5"):
        spec = f"timm:test_vit@{scales}"
        if spec not in found:
            assert count_cost(s2wrap.load(spec, pretrained=False)).multiply_adds > 0.25e9


def test_an_images_shape_counts_where_it_is_kept():
    """In a square 2× has four tiles, in a long image two: 3 backbone passes with 1×."""
    budgets = {}
    for image_hw in ((160, 160), (100, 200)):
        budgets[image_hw] = propose(["timm:test_vit@1"], "0.12GMAC", image_hw=image_hw, fit="aspect")
    assert "timm:test_vit@1,2" not in budgets[160, 160]
    plain = count_cost(s2wrap.load("timm:test_vit@1", pretrained=False)).multiply_adds
    assert budgets[100, 200]["timm:test_vit@1,2"] == 3 * plain


def test_where_nothing_fits_the_nearest_is_named():
    words = r"nothing fits a budget of 0.001 G multiply-adds; the nearest is timm:test_\w+@1 with 0\.\d+ G"
    with pytest.raises(S2WrapError, match=words):
        propose(["timm:test_vit@1"], "1MMAC")


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        (["timm:test_vit@1,2 select=1"], "'timm:test_vit@1,2 select=1' has options of its own"),
        ([], r"a list of models, not \[\]"),
        ("timm:test_vit@1,2", "a list of models, not 'timm"),
    ],
)
def test_models_that_cannot_be_proposed_for_are_told(specs, words):
    with pytest.raises(S2WrapError, match=words):
        propose(specs, "1GMAC")
