import pytest

import s2wrap
from s2wrap import S2WrapError
from s2wrap.backbones import parse_spec
from s2wrap.compare import budget as budget_module
from s2wrap.compare.budget import LADDER, parse_budget, propose, siblings
from s2wrap.cost import count_cost


@pytest.mark.parametrize(
    ("text", "amount", "timed"),
    [
        ("20GMAC", 20e9, False),
        ("20 gmacs", 20e9, False),
        ("500MMAC", 5e8, False),
        ("1.5TMACs", 1.5e12, False),
        (".5GMAC", 5e8, False),
        ("15ms", 15, True),
        ("0.2 s", 200, True),
    ],
)
def test_a_budget_is_work_or_time(text, amount, timed):
    found = parse_budget(text)
    assert (found.amount, found.timed) == (pytest.approx(amount), timed)


@pytest.mark.parametrize("text", ["20", "GMAC", "20 GFLOP", "-3ms", "0ms", "", "2e9"])
def test_another_budget_is_told(text):
    with pytest.raises(S2WrapError, match="write multiply-adds or a time, such as 20GMAC or 15ms"):
        parse_budget(text)


def test_siblings_are_the_other_sizes_of_a_family():
    names = siblings(parse_spec("sample:efficientnet_lite1@1,2"))
    assert names == [f"sample:efficientnet_lite{size}" for size in (1, 0, 2)]
    names = siblings(parse_spec("timm:vit_small_patch16_224:patch=8@1"))
    assert {"timm:vit_base_patch16_224:patch=8", "timm:vit_tiny_patch16_224:patch=8"} <= set(names)
    assert not any("." in name or "dinov2" in name for name in names)


def test_what_is_proposed_fits_and_what_is_left_out_does_not():
    found = {each.spec: each.multiply_adds for each in propose(["timm:test_vit@1,2,2.5"], "0.25GMAC")}
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
        found = propose(["timm:test_vit@1"], "0.12GMAC", image_hw=image_hw, fit="aspect")
        budgets[image_hw] = {each.spec: each.multiply_adds for each in found}
    assert "timm:test_vit@1,2" not in budgets[160, 160]
    plain = count_cost(s2wrap.load("timm:test_vit@1", pretrained=False)).multiply_adds
    assert budgets[100, 200]["timm:test_vit@1,2"] == 3 * plain


def test_where_nothing_fits_the_nearest_is_named():
    words = r"nothing fits a budget of 0.001 G multiply-adds; the nearest is timm:test_\w+@1 with 0\.\d+ G"
    with pytest.raises(S2WrapError, match=words):
        propose(["timm:test_vit@1"], "1MMAC")


def test_a_time_is_measured_where_it_may_fit(monkeypatch):
    """By a clock on which time is work: 10 ms for the plain model."""
    timed = []

    def by_work(models, backends, image_hw, **options):
        timed.extend(models)
        times = {spec: count_cost(model).multiply_adds for spec, model in models.items()}
        plain = count_cost(s2wrap.load("timm:test_vit@1", pretrained=False)).multiply_adds
        return {spec: {"eager": {"median_ms": 10 * work / plain}} for spec, work in times.items()}

    monkeypatch.setattr(budget_module, "time_models", by_work)
    monkeypatch.setattr(budget_module, "siblings", lambda spec: [spec.backbone])
    found = {each.spec: each.milliseconds for each in propose(["timm:test_vit@1"], "60ms")}
    assert found["timm:test_vit@1,2"] == pytest.approx(50)
    assert "timm:test_vit@1,2,3" not in found
    assert "timm:test_vit@1,2,3,4" not in timed
    with pytest.raises(S2WrapError, match=r"nothing fits a budget of 5 ms; the nearest is timm:test_vit@1 with 10 ms"):
        propose(["timm:test_vit@1"], "5ms")
