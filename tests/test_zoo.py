"""A sample of the four libraries, each model against its library's own feature call (see benchmarks/zoo.py)."""

import csv
from pathlib import Path

import pytest
import torch
import zoo
from torch import nn

TIMM = [
    "beit_base_patch16_224",
    "caformer_s18",
    "cait_xxs24_224",
    "coat_tiny",
    "coatnet_nano_rw_224",
    "convnext_atto",
    "convnextv2_atto",
    "crossvit_9_240",
    "davit_tiny",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientnet_b0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "ghostnet_100",
    "hiera_tiny_224",
    "hgnetv2_b0",
    "inception_next_atto",
    "levit_128s",
    "levit_conv_128s",
    "maxvit_rmlp_pico_rw_256",
    "mambaout_femto",
    "mixer_s32_224",
    "mobilenetv4_conv_small",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nest_tiny",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "repvit_m0_9",
    "resnet18",
    "resnetrs50",
    "rexnet_100",
    "shvit_s1",
    "starnet_s1",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "test_vit",
    "test_vit2",
    "test_vit3",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_dinov3",
    "vit_tiny_patch16_224",
    "volo_d1_224",
    "xcit_nano_12_p16_224",
]
OPEN_CLIP = [
    "RN50",
    "ViT-B-32",
    "ViT-B-16-SigLIP",
    "coca_ViT-B-32",
    "convnext_base_w",
    "MobileCLIP-S1",
    "ViTamin-S",
    "EVA02-B-16",
]
TRANSFORMERS = [
    "beit",
    "clip_vision_model",
    "convnext",
    "convnextv2",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_convnext",
    "dinov3_vit",
    "hiera",
    "ijepa",
    "maskformer-swin",
    "mobilevitv2",
    "pp_ocrv6_tiny_rec",
    "pvt",
    "pvt_v2",
    "resnet",
    "segformer",
    "siglip2_vision_model",
    "siglip_vision_model",
    "swin",
    "swinv2",
    "vit",
    "vit_mae",
]
TORCHVISION = [
    "densenet121",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "regnet_y_400mf",
    "squeezenet1_0",
    "swin_t",
    "vit_b_32",
]
SAMPLE = [
    *(("timm", name) for name in TIMM),
    *(("open_clip", name) for name in OPEN_CLIP),
    *(("transformers", name) for name in TRANSFORMERS),
    *(("torchvision", name) for name in TORCHVISION),
]


@pytest.mark.parametrize(("library", "name"), SAMPLE)
def test_features_are_the_librarys_own(library, name):
    if library == "transformers":
        pytest.importorskip("transformers")
    row = zoo.check_model(library, name, reduce_above=0)
    assert row.result == "equal", row


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("timm", "test_vit"),
        ("timm", "resnet18"),
        ("timm", "swin_tiny_patch4_window7_224"),
        ("transformers", "vit"),
        ("transformers", "swin"),
        ("transformers", "mobilevitv2"),
    ],
)
def test_models_for_other_channels_than_three_are_the_librarys_own_too(library, name, channels):
    row = zoo.check_model(library, name, reduce_above=0, channels=channels)
    assert row.result == "equal", row


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("detr", "returns what its decoder makes of an image"),
        ("videomae", "takes videos"),
        ("qwen2_5_vl_vision", "its forward needs hidden_states, grid_thw too"),
        ("minicpmv4_7_vision", "its forward needs target_sizes too"),
        ("lw_detr", "returns what its decoder makes of an image"),
        ("lightglue", "takes pairs of images"),
    ],
)
def test_what_has_no_map_of_an_image_is_refused_with_the_reason(name, reason):
    pytest.importorskip("transformers")
    row = zoo.check_model("transformers", name, reduce_above=0)
    assert row.result == "refused"
    assert reason in row.reason


def test_a_wrong_answer_would_be_seen(monkeypatch):
    monkeypatch.setitem(zoo.LIBRARY_FEATURES, "timm", lambda *given: (zoo.timm_features(*given)[0].flip(3), None))
    assert zoo.check_model("timm", "test_vit", reduce_above=60).result == "wrong"


def test_tokens_that_leave_a_rest_of_the_tile_unseen_are_compared_on_even_cells():
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=14
    )  # 4 patches of 14 pixels
    found = zoo.compare_with_library("transformers", transformers.SiglipVisionModel(config).eval())
    assert (found["result"], found["grid_hw"]) == ("equal", "4x4")
    assert "unseen" in found["reason"]


def test_small_models_come_first():
    models = [("timm", "vit_base_patch16_224"), ("timm", "test_vit"), ("open_clip", "RN50"), ("timm", "resnet18")]
    assert sorted(models, key=lambda pair: zoo.work(*pair)) == [models[1], models[3], models[2], models[0]]


def test_shortened_models_keep_the_ends_of_runs_of_equal_blocks_and_all_stages():
    def block(width):
        return nn.Sequential(*(nn.Linear(width, width) for _ in range(6)))

    widths = [(4,) * 5, (4, 8, 16), (4, 4, 4, 8, 8, 8, 8, 4)]
    model = nn.Sequential(*(nn.Sequential(*(block(width) for width in row)) for row in widths))
    zoo.shorten(model)
    kept = [[next(iter(block.parameters())).shape[0] for block in row.children()] for row in model.children()]
    assert kept == [[4, 4], [4, 8, 16], [4, 4, 8, 8, 4]]
    assert model[0](torch.zeros(1, 4)).shape == (1, 4)


def test_the_table_that_is_told_of_holds_no_wrong_or_failed_model():
    with Path(zoo.RESULTS).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len({(row["library"], row["model"]) for row in rows}) == len(rows) > 1000
    assert {row["result"] for row in rows} <= {"equal", "refused"}
    assert all(row["reason"] for row in rows if row["result"] == "refused")
