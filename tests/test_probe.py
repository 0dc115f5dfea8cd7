import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange

import s2wrap
from s2wrap import BackboneOptions, ProbedBackbone, S2WrapError


def probed(call, **known):
    return ProbedBackbone(call, BackboneOptions(**known))


def patches(images, size=16, channels=8):
    """A map (b, c, h, w) that is local, and different in every channel."""
    colours = F.avg_pool2d(images, size)
    mixing = torch.linspace(-1, 1, 3 * channels).reshape(channels, 3)
    return torch.einsum("kc,bchw->bkhw", mixing, colours)


@pytest.mark.parametrize("order", ["bchw", "bhwc", "bnc"])
@pytest.mark.parametrize("channels", [3, 4, 8])
def test_the_three_layouts_give_the_same_map(order, channels):
    def call(images):
        return rearrange(
            patches(images, channels=channels), f"b c h w -> {'b (h w) c' if order == 'bnc' else ' '.join(order)}"
        )

    backbone = probed(call, image_size=64)
    images = torch.rand(2, 3, 64, 64)
    assert backbone.layout.order == order
    assert backbone.layout.num_features == channels
    torch.testing.assert_close(backbone(images).spatial, patches(images, channels=channels))


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("image_hw", [(32, 32), (48, 48), (64, 64), (48, 96)])
def test_prefix_tokens_are_counted_even_on_tiny_grids(prefix, image_hw):
    """10 tokens may be 1 + 3×3 or 6 + 2×2: only looking tells."""

    def call(images):
        tokens = rearrange(patches(images), "b c h w -> b (h w) c")
        leading = images.mean(dim=(1, 2, 3)).reshape(-1, 1, 1).expand(-1, prefix, 8)
        return torch.cat([leading, tokens], dim=1)

    backbone = probed(call, image_size=image_hw)
    assert backbone.layout.num_prefix_tokens == prefix
    assert backbone.layout.grid_hw == (image_hw[0] // 16, image_hw[1] // 16)
    images = torch.rand(2, 3, *image_hw)
    torch.testing.assert_close(backbone(images).spatial, patches(images))


def test_square_maps_are_told_apart_by_looking():
    """8×8×8 can be read with the channels first or last."""
    images = torch.rand(1, 3, 128, 128)
    for order in ("bchw", "bhwc"):
        backbone = probed(lambda x, order=order: rearrange(patches(x), f"b c h w -> {' '.join(order)}"), image_size=128)
        assert backbone.layout.order == order
        torch.testing.assert_close(backbone(images).spatial, patches(images))


def test_tokens_with_the_channels_first_do_not_pass_for_tokens():
    def call(images):  # (b, 9, 16): nine channels, sixteen tokens; as "bnc" they would be a 3×3 grid
        return rearrange(patches(images, channels=9), "b c h w -> b c (h w)")

    with pytest.raises(S2WrapError, match="channels first"):
        probed(call, image_size=64)


def test_what_looking_cannot_tell_is_asked():
    def call(images):  # every token the same: nothing follows the image
        return images.mean(dim=(1, 2, 3)).reshape(-1, 1, 1).expand(-1, 10, 4)

    with pytest.raises(S2WrapError) as error:
        probed(call, image_size=48)
    assert "'bnc' with 1 prefix tokens and a 3×3 grid or 'bnc' with 6 prefix tokens and a 2×2 grid" in str(error.value)
    assert "pass layout= ('bnc', 'bchw' or 'bhwc'), num_prefix_tokens= and grid=" in str(error.value)
    assert probed(call, image_size=48, num_prefix_tokens=1, layout="bnc").layout.grid_hw == (3, 3)
    assert probed(call, image_size=48, grid=(2, 2), layout="bnc").layout.num_prefix_tokens == 6


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"layout": "bnc"}, "given layout='bnc'"),
        ({"num_prefix_tokens": 1}, "given num_prefix_tokens=1"),
        ({"grid": (3, 3)}, "given grid=(3, 3)"),
    ],
)
def test_what_is_given_must_fit(known, words):
    with pytest.raises(S2WrapError) as error:
        probed(patches, image_size=64, **known)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: (patches(x), x), "a tuple of 0: (1, 8, 4, 4) torch.float32, 1: (1, 3, 64, 64) torch.float32"),
        (
            lambda x: {"features": patches(x), "logits": x},
            "a dict of 'features': (1, 8, 4, 4) torch.float32, 'logits': (1, 3, 64, 64)",
        ),
        (lambda x: None, "returned a NoneType"),
        (lambda x: x.mean(dim=(2, 3)), "(1, 3) torch.float32"),
        (lambda x: patches(x).long(), "torch.int64"),
        (lambda x: torch.cat([patches(x)] * 2), "(2, 8, 4, 4)"),
        (lambda x: x[:, :, :50, :7].flatten(2), "is no such grid of tokens"),
        (lambda x: x.mean(dim=(2, 3))[:, None], "(1, 1, 3) for an image of (1, 3, 64, 64), which is no such grid"),
    ],
)
def test_answers_that_are_no_features_are_refused(answer, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.wrap(answer, image_size=64)
    assert words in str(error.value)


def test_a_backbone_that_fails_names_the_size_and_the_cure():
    def call(images):
        raise RuntimeError("Input height (64) doesn't match model (224).\nmore")

    with pytest.raises(
        S2WrapError,
        match=r"\(1, 3, 64, 64\): RuntimeError: Input height .*; if it takes another size",
    ):
        probed(call, image_size=64)


def test_a_callable_needs_its_size():
    with pytest.raises(S2WrapError, match="pass image_size= in pixels"):
        s2wrap.wrap(patches)
    with pytest.raises(S2WrapError, match="a str is no backbone; give a module or a function of images, or use load"):
        s2wrap.wrap("sample:dinov2_s14")
    with pytest.raises(S2WrapError, match="which has them already"):
        s2wrap.wrap(probed(patches, image_size=64), image_size=64)


@pytest.mark.parametrize(("side", "patch"), [(384, 14), (40, 12), (224, 15), (96, 16), (67, 32)])
def test_the_patch_is_found_where_it_does_not_divide_the_tile(side, patch):
    backbone = probed(lambda images: F.avg_pool2d(images, patch), image_size=side)
    assert backbone.layout.grid_hw == (side // patch, side // patch)
    assert backbone.layout.patch_hw == (patch, patch)


def test_pixels_that_dead_weights_do_not_see_are_no_rest_of_a_patch():
    """A fresh ResNet ends its blocks with zeros: it sees few pixels, but its cells still divide the tile."""
    assert s2wrap.wrap(timm.create_model("resnet18")).backbone.layout.patch_hw == (32, 32)


def test_the_patch_can_be_given():
    backbone = probed(lambda images: F.avg_pool2d(images, 12), image_size=40, patch_size=(12, 11.5))
    assert backbone.layout.patch_hw == (12, 11.5)
    with pytest.raises(S2WrapError, match="patch_size=14: 3 patches of it do not fit into 40 pixels"):
        probed(lambda images: F.avg_pool2d(images, 12), image_size=40, patch_size=14)


def test_a_map_that_is_rounded_up_covers_the_tile_evenly():
    backbone = probed(lambda images: F.avg_pool2d(images, 32, ceil_mode=True), image_size=260)
    assert backbone.layout.grid_hw == (9, 9)
    assert backbone.layout.patch_hw == (260 / 9, 260 / 9)


TIMM = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "vit_base_patch16_siglip_224",
    "volo_d1_224",
    "hiera_tiny_224",
    "mvitv2_tiny",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "mambaout_femto",
    "resnet18",
    "convnext_atto",
    "efficientnet_lite0",
    "maxvit_nano_rw_256",
    "mobilevit_xxs",
    "test_vit",
    "test_resnet",
    "test_efficientnet",
    "test_convnext",
]


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_give_the_values_of_their_own_calls(name):
    """Against `forward_features`, and against the grid that `forward_intermediates` reports on its own."""
    backbone = timm.create_model(name, num_classes=0).eval()
    model = s2wrap.wrap(backbone, (1,))
    height, width = model.backbone.image_hw
    images = torch.randn(1, 3, height, width)
    with torch.no_grad():
        features, own = model(images), backbone.forward_features(images)
        grid = backbone.forward_intermediates(images, indices=1, output_fmt="NCHW", intermediates_only=True)[-1].shape[
            -2:
        ]
    assert features.spatial.shape[-2:] == grid
    if own.ndim == 4:
        expected = own if own.shape[-2:] == grid else own.permute(0, 3, 1, 2)
        torch.testing.assert_close(features.spatial, expected, atol=1e-5, rtol=1e-5)
    else:
        prefix = own.shape[1] - grid.numel()
        torch.testing.assert_close(features.prefix, own[:, :prefix], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features.tokens, own[:, prefix:], atol=1e-5, rtol=1e-5)


def test_timm_models_say_their_own_size_mean_and_std():
    model = s2wrap.wrap(timm.create_model("vit_small_patch14_dinov2", img_size=(224, 336), num_classes=0))
    assert model.backbone.image_hw == (224, 336)
    assert model.backbone.layout.grid_hw == (16, 24)
    assert model.input.mean == (0.485, 0.456, 0.406)
    assert model(torch.rand(1, 3, 100, 100)).spatial.shape == (1, 768, 16, 24)
    other = s2wrap.wrap(timm.create_model("test_resnet"), image_size=320, mean=(0, 0, 0), std=(1, 1, 1))
    assert other.backbone.image_hw == (320, 320)
    assert other.input.mean == (0, 0, 0)


@pytest.mark.parametrize(
    ("call", "known", "grid"),
    [
        (lambda x: F.avg_pool2d(x, (16, 8)), {"layout": "bchw", "grid": (4, 8)}, (4, 8)),
        (
            lambda x: rearrange(F.avg_pool2d(x, (16, 8)), "b c h w -> b (h w) c"),
            {"layout": "bnc", "num_prefix_tokens": 0, "grid": (4, 8)},
            (4, 8),
        ),
        (
            lambda x: torch.cat([x.new_zeros(1, 20, 8), rearrange(patches(x), "b c h w -> b (h w) c")], dim=1),
            {"layout": "bnc", "num_prefix_tokens": 20},
            (4, 4),
        ),
    ],
)
def test_what_is_given_goes_before_what_is_likely(call, known, grid):
    layout = probed(call, image_size=64, **known).layout
    assert layout.grid_hw == grid
    assert layout.num_prefix_tokens == known.get("num_prefix_tokens", 0)


def test_a_backbone_may_change_its_input():
    kernel = torch.randn(4, 3, 14, 14)
    layout = probed(lambda images: F.conv2d(images.sub_(0.5), kernel, stride=14), image_size=64).layout
    assert (layout.order, layout.grid_hw, layout.patch_hw) == ("bchw", (4, 4), (14, 14))


def test_a_method_of_a_module_moves_and_freezes_the_module():
    backbone = timm.create_model("test_resnet", num_classes=0).train()
    statistics = backbone.bn1.running_mean.clone()
    model = s2wrap.wrap(backbone.forward_features, image_size=160)
    assert not backbone.training
    assert torch.equal(backbone.bn1.running_mean, statistics)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert model.double().backbone.dtype == torch.float64


def test_a_wrap_that_fails_leaves_the_model_in_its_mode():
    backbone = timm.create_model("test_vit", num_classes=0).train()
    with pytest.raises(S2WrapError):
        s2wrap.wrap(backbone, image_size=100)
    assert backbone.training
