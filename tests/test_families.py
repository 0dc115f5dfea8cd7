import pytest

from s2wrap.compare.families import series

SIZES = {
    "vit_*_patch16_224.augreg_in21k at 1": [
        f"timm:vit_{size}_patch16_224.augreg_in21k@1" for size in ("tiny", "small", "base", "large")
    ],
    "vit_*_224 at 1": [
        "timm:vit_base_patch16_224@1",
        "timm:vit_large_patch16_224@1",
        "timm:vit_huge_patch14_224@1",
    ],
    "resnet*.a1_in1k at 1": [f"timm:resnet{depth}.a1_in1k" for depth in (18, 34, 50)],
    "convnext_* at 1,2": [f"timm:convnext_{size}@1,2" for size in ("atto", "tiny", "xxlarge")],
    "tf_efficientnet_lite* at 1": [f"timm:tf_efficientnet_lite{number}@1" for number in range(5)],
    "efficientnet_* at 1": [f"torchvision:efficientnet_b{number}@1" for number in (0, 1, 7)],
    "edgenext_* at 1": ["timm:edgenext_xx_small@1", "timm:edgenext_x_small@1", "timm:edgenext_small@1"],
    "vit_*_patch16_dinov3 at 1": [
        f"timm:vit_{size}_patch16_dinov3@1" for size in ("small", "large", "huge_plus", "7b")
    ],
    "ViT-*/openai at 1": ["open_clip:ViT-B-32/openai@1", "open_clip:ViT-L-14/openai@1", "open_clip:ViT-H-16/openai@1"],
    "ViT-*-14/laion2b at 1": [
        f"open_clip:ViT-{tail}@1"
        for tail in ("L-14/laion2b_s32b_b82k", "H-14/laion2b_s32b_b79k", "bigG-14/laion2b_s39b_b160k")
    ],
    "facebook/dinov2-* at 1": [f"transformers:facebook/dinov2-{size}@1" for size in ("small", "base", "giant")],
    "vit_* at 1": ["torchvision:vit_b_16@1", "torchvision:vit_l_16@1", "torchvision:vit_h_14@1"],
    "dinov2_vit*14_reg at 1": [f"hub_dino:dinov2_vit{size}14_reg@1" for size in "sblg"],
    "efficientnet_lite* at 1": [f"sample:efficientnet_lite{number}@1" for number in range(3)],
}


@pytest.mark.parametrize(("name", "specs"), SIZES.items())
def test_sizes_of_a_family_at_the_same_scales_are_a_series(name, specs):
    assert series(specs) == {name: list(range(len(specs)))}
    mixed = ["sample:dinov2_s14@1", *reversed(specs), specs[0]]
    assert series(mixed) == {name: list(range(1, len(specs) + 1))}
    assert series(specs[:2]) == {}


def test_one_backbone_at_three_lists_of_scales_is_a_series():
    specs = ["sample:dinov2_s14", "sample:dinov2_s14@1,2", "sample:dinov2_s14@1,2,3", "sample:dinov2_s14@2, 1"]
    assert series(specs) == {"dinov2_s14 at more scales": [0, 1, 2]}
    assert series(specs[:2]) == {}


@pytest.mark.parametrize(
    "specs",
    [
        ["timm:resnet18@1", "timm:resnet34@1", "timm:resnet50@1,2"],
        ["timm:resnet18@1", "timm:resnet34@1", "torchvision:resnet50@1"],
        ["timm:resnet18@1", "timm:resnet34@1", "timm:resnet50d@1"],
        ["timm:vit_tiny_patch16_224@1", "timm:vit_small_patch16_224@1", "timm:vit_base_patch16_384@1"],
        ["timm:vit_small_patch16_224.dino@1", "timm:vit_base_patch16_224.mae@1", "timm:vit_large_patch16_224.mae@1"],
        ["timm:vit_base_patch8_224@1", "timm:vit_base_patch16_224@1", "timm:vit_base_patch32_224@1"],
        ["open_clip:ViT-B-16@1", "open_clip:ViT-B-32@1", "open_clip:ViT-L-14@1"],
        ["sample:dinov2_s14:patch=7@1", "sample:dinov2_s14@1,2", "sample:dinov2_s14@1,2,3"],
        ["sample:dinov2_s14:size=112@1", "sample:dinov2_s14:size=224@1", "sample:dinov2_s14:size=448@1"],
        ["timm:resnet18:size=256@1", "timm:resnet34@1", "timm:resnet50@1"],
        ["timm:mobilenetv2_100@1", "timm:mobilenetv3_100@1", "timm:mobilenetv4_100@1"],
        ["timm:inception_v3@1", "timm:inception_v4@1", "timm:inception_v5@1"],
    ],
)
def test_what_differs_in_more_than_size_is_no_series(specs):
    assert series(specs) == {}


def test_where_sizes_come_with_several_patches_each_patch_is_a_series():
    specs = [f"timm:mixer_{size}{patch}_224@1" for patch in (16, 32) for size in "sbl"]
    assert series(specs) == {"mixer_*16_224 at 1": [0, 1, 2], "mixer_*32_224 at 1": [3, 4, 5]}


def test_options_are_part_of_a_series_and_of_its_name():
    specs = [f"timm:resnet{depth}:size=256@1" for depth in (18, 34, 50)]
    assert series(specs) == {"resnet*:size=256 at 1": [0, 1, 2]}
    one = [f"sample:dinov2_s14:{options}@{scales}" for options, scales in
           (("size=98:patch=7", "1"), ("patch=7:size=98", "1,2"), ("size=98:patch=7", "1,2,3"))]  # fmt: skip
    assert series(one) == {"dinov2_s14:patch=7:size=98 at more scales": [0, 1, 2]}


def test_series_of_the_same_name_in_two_families_are_told_apart():
    specs = [f"{family}:resnet{depth}@1" for family in ("timm", "torchvision") for depth in (18, 34, 50)]
    assert series(specs) == {"resnet* at 1": [0, 1, 2], "torchvision:resnet* at 1": [3, 4, 5]}


def test_a_larger_input_and_another_way_to_look_are_no_more_scales():
    specs = [
        f"sample:dinov2_s14@{scales}" for scales in ("2:whole", "1", "1,2", "1,2:whole", "1,2,3", "1,2:whole,3:whole")
    ]
    expected = {"dinov2_s14 at more scales": [1, 2, 4], "dinov2_s14 at more scales (whole)": [1, 3, 5]}
    assert series(specs) == expected
