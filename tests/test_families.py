import pytest

from s2wrap.compare.families import family_of

SAME = [
    ("timm", ["vit_tiny_patch16_224.augreg_in21k", "vit_large_patch16_224.augreg_in21k"]),
    ("timm", ["resnet18.a1_in1k", "resnet34.a1_in1k", "resnet50.a1_in1k"]),
    ("timm", ["convnext_atto", "convnext_tiny", "convnext_xxlarge"]),
    ("timm", ["tf_efficientnet_lite0", "tf_efficientnet_lite4"]),
    ("timm", ["edgenext_xx_small", "edgenext_x_small", "edgenext_small"]),
    ("timm", ["vit_small_patch16_dinov3", "vit_huge_plus_patch16_dinov3", "vit_7b_patch16_dinov3"]),
    ("open_clip", ["ViT-L-14/laion2b_s32b_b82k", "ViT-H-14/laion2b_s32b_b79k", "ViT-bigG-14/laion2b_s39b_b160k"]),
    ("transformers", ["facebook/dinov2-small", "facebook/dinov2-base", "facebook/dinov2-giant"]),
    ("hub_dino", ["dinov2_vits14_reg", "dinov2_vitl14_reg", "dinov2_vitg14_reg"]),
    ("sample", ["efficientnet_lite0", "efficientnet_lite2"]),
]
OTHERS = [
    ("timm", ["resnet34", "resnet50d"]),
    ("timm", ["vit_small_patch16_224", "vit_base_patch16_384"]),
    ("timm", ["vit_small_patch16_224.dino", "vit_base_patch16_224.mae"]),
    ("timm", ["vit_base_patch8_224", "vit_base_patch16_224"]),
    ("open_clip", ["ViT-B-16", "ViT-B-32"]),
    ("timm", ["mobilenetv2_100", "mobilenetv3_100"]),
    ("timm", ["inception_v3", "inception_v4"]),
]


@pytest.mark.parametrize(("family", "names"), SAME)
def test_sizes_are_one_family(family, names):
    assert len({family_of(family, name) for name in names}) == 1


@pytest.mark.parametrize(("family", "names"), OTHERS)
def test_what_differs_in_more_than_size_is_another_family(family, names):
    assert len({family_of(family, name) for name in names}) == len(names)
