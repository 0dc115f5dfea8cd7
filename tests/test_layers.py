"""`layers=` and `norm_layers=`: features of blocks as each library gives them; maps of models that return several."""

import pytest
import timm
import torch
from made_up import TINY_VIT
from torch import nn
from torch.nn import functional

import s2wrap
from s2wrap import S2WrapError

transformers = pytest.importorskip("transformers")

NORMS = {"ViT": "layernorm", "Dinov2": "layernorm", "DINOv3ViT": "norm", "SiglipVision": "post_layernorm"}


def as_maps(states, rows=4):
    """The last rows² tokens of each state as a map."""
    return [state[:, -rows * rows :].transpose(1, 2).unflatten(2, (rows, rows)) for state in states]


@pytest.fixture(scope="module", params=sorted(NORMS))
def tower(request):
    torch.manual_seed(0)
    model = getattr(transformers, f"{request.param}Model")(getattr(transformers, f"{request.param}Config")(**TINY_VIT))
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):  # a fresh one would be hard to tell from another
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return model.eval(), next(part for name, part in model.named_modules() if name.endswith(NORMS[request.param]))


@pytest.mark.parametrize("norm", [None, False, True])
def test_layers_of_transformers_go_through_its_last_norm_where_asked(tower, norm):
    model, last_norm = tower
    images = torch.randn(2, 3, 32, 32)
    states = model(images, output_hidden_states=True).hidden_states[1:]
    if norm:
        states = [last_norm(state) for state in states]
    wrapped = s2wrap.wrap(model, (1,), layers=(0, 1, 2), norm_layers=norm, join_layers=False)
    for found, expected in zip(wrapped(images).maps, as_maps(states), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_last_normed_layer_is_the_last_hidden_state(tower):
    model, _ = tower
    images = torch.randn(1, 3, 32, 32)
    found = s2wrap.wrap(model, (1,), layers=(-1,), norm_layers=True)(images)
    torch.testing.assert_close(found.tokens, s2wrap.wrap(model, (1,))(images).tokens)


def test_looking_for_the_norm_leaves_the_caller_s_random_numbers_as_they_were(tower):
    before = torch.get_rng_state()
    s2wrap.wrap(tower[0], (1,), layers=(0,), norm_layers=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_shows_its_last_layer_normed_alone_is_asked_for_no_other():
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(**TINY_VIT, tie_last_hidden_states=True)).eval()
    nn.init.normal_(model.layernorm.weight)
    images = torch.randn(1, 3, 32, 32)
    states = model(images, output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], model(images).last_hidden_state)
    normed = s2wrap.wrap(model, (1,), layers=(1, 2), norm_layers=True, join_layers=False)(images)
    torch.testing.assert_close(list(normed.maps), as_maps([model.layernorm(states[2]), states[3]]))
    with pytest.raises(S2WrapError, match="after its last norm alone; use norm_layers=True, or layers before"):
        s2wrap.wrap(model, (1,), layers=(1, 2), norm_layers=False)
    s2wrap.wrap(model, (1,), layers=(0, 1), norm_layers=False)


def test_a_norm_that_there_is_not_is_refused():
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY_VIT))
    with pytest.raises(S2WrapError, match="norm_layers=True: .* puts no norm on the tokens of its last block"):
        s2wrap.wrap(model, (1,), layers=(0,), norm_layers=True)
    s2wrap.wrap(model, (1,), layers=(0,), norm_layers=False)


def test_a_norm_for_other_channels_is_refused():
    config = transformers.SwinConfig(image_size=64, embed_dim=16, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4)
    with pytest.raises(S2WrapError, match="layer 0 of swin has 32 channels, and its last norm takes 64"):
        s2wrap.wrap(transformers.SwinModel(config), (1,), layers=(0,), norm_layers=True)


def test_a_norm_without_layers_has_no_effect():
    with pytest.raises(S2WrapError, match="norm_layers=True has no effect without layers"):
        s2wrap.wrap(timm.create_model("test_vit"), (1,), norm_layers=True)


@pytest.mark.parametrize("norm", [False, True])
def test_layers_of_timm_go_through_its_last_norm_unless_told_otherwise(norm):
    torch.manual_seed(0)
    model, images = timm.create_model("test_vit").eval(), torch.randn(1, 3, 160, 160)
    nn.init.normal_(model.norm.weight)
    found = s2wrap.wrap(model, (1,), layers=(0, 4), norm_layers=norm, join_layers=False)(images).maps
    expected = model.forward_intermediates(images, indices=[0, 4], norm=norm, intermediates_only=True)
    torch.testing.assert_close(list(found), expected)


@pytest.mark.parametrize("norm", [False, True])
def test_layers_of_open_clip_go_through_its_last_norm_unless_told_otherwise(norm):
    import open_clip

    torch.manual_seed(0)
    tower = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    visual = open_clip.CLIP(32, vision_cfg=tower, text_cfg=text).eval().visual
    nn.init.normal_(visual.ln_post.weight)
    images = torch.randn(1, 3, 32, 32)
    found = s2wrap.wrap(visual, (1,), layers=(0, 2), norm_layers=norm, join_layers=False)(images).maps
    expected = visual.forward_intermediates(images, indices=[0, 2], normalize_intermediates=norm)
    torch.testing.assert_close(list(found), expected["image_intermediates"])


STAGES = {"out_features": ["stage1", "stage3"]}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Dinov2", TINY_VIT | STAGES),
        ("Dinov2", TINY_VIT | STAGES | {"reshape_hidden_states": False}),
        ("ResNet", {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 1, 1], **STAGES}),
    ],
)
def test_the_layers_of_a_backbone_of_transformers_are_its_out_features(kind, config):
    torch.manual_seed(0)
    backbone = getattr(transformers, f"{kind}Backbone")(getattr(transformers, f"{kind}Config")(**config)).eval()
    model = s2wrap.wrap(backbone, (1,), layers=(0, 1), join_layers=False)
    images = torch.randn(1, 3, *model.input.image_hw)
    expected = list(backbone(images).feature_maps)
    if expected[0].ndim == 3:
        expected = as_maps(expected)
    torch.testing.assert_close(list(model(images).maps), expected)
    with pytest.raises(S2WrapError, match=r"out_features=\['stage1', 'stage3'\] returns 2 maps; use 0 to 1"):
        s2wrap.wrap(backbone, (1,), layers=(2,))


FEATURES_ONLY = ["resnet18", "hrnet_w18_small", "test_vit", "swin_tiny_patch4_window7_224", "test_efficientnet"]


@pytest.mark.parametrize("name", FEATURES_ONLY)
def test_features_only_models_of_timm_are_known(name):
    torch.manual_seed(0)
    network = timm.create_model(name, features_only=True).eval()
    cfg = network.pretrained_cfg
    model = s2wrap.wrap(network, (1,))
    assert (model.input.image_hw, model.input.mean) == (cfg["input_size"][1:], cfg["mean"])
    images = torch.randn(1, *cfg["input_size"])
    maps = network(images)
    if getattr(network, "output_fmt", None) == "NHWC":
        maps = [spatial.permute(0, 3, 1, 2) for spatial in maps]
    torch.testing.assert_close(model(images).spatial, maps[-1])
    layered = s2wrap.wrap(network, (1,), layers=(0, len(maps) - 1), join_layers=False)(images)
    torch.testing.assert_close(list(layered.maps), [maps[0], maps[-1]])


def test_a_features_only_model_is_saved_and_made_again(tmp_path):
    network = timm.create_model("test_resnet", features_only=True, out_indices=(1, 3)).eval()
    model = s2wrap.wrap(network, (1, 2), layers=(0, 1))
    model.save(tmp_path / "saved")
    images = torch.randn(1, 3, 160, 160)
    assert torch.equal(s2wrap.load(tmp_path / "saved")(images).spatial, model(images).spatial)


def test_scales_and_layers_of_a_pyramidal_network_are_a_plain_loop():
    """Each layer is merged and fused on its own, then resampled to the coarsest grid and joined."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", features_only=True).eval()
    images = torch.randn(1, 3, 320, 320)
    model = s2wrap.wrap(network, (1, 2), layers=(2, 4), join_layers=False, whole=True)
    features = model(images)
    small = network(functional.interpolate(images, (160, 160), mode=model.input.interpolation, antialias=True))
    large = network(images)
    for found, layer in zip(features.maps, (2, 4), strict=True):
        pooled = functional.avg_pool2d(large[layer], 2)
        torch.testing.assert_close(found, torch.cat([small[layer], pooled], 1), atol=2e-4, rtol=1e-4)


class Several(nn.Module):
    """Returns maps of two strides, and tokens with a CLS token."""

    def __init__(self):
        super().__init__()
        self.coarse, self.fine = nn.Conv2d(3, 8, 16, 16), nn.Conv2d(3, 6, 8, 8)

    def forward(self, images):
        tokens = self.coarse(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return {"fine": self.fine(images), "number": torch.tensor(3), "tokens": tokens}


def test_the_layers_of_a_model_that_returns_several_maps_count_these():
    torch.manual_seed(0)
    network, images = Several().eval(), torch.randn(2, 3, 64, 64)
    features = s2wrap.wrap(network, (1,), layers=(0, 1), join_layers=False, image_size=64)(images)
    torch.testing.assert_close(features.maps[0], network.fine(images))
    torch.testing.assert_close(features.maps[1], network.coarse(images))
    torch.testing.assert_close(features.prefixes[1], network(images)["tokens"][:, :1])
    with pytest.raises(S2WrapError, match=r"layers=\(2,\), but .* of 2 maps; use 0 to 1"):
        s2wrap.wrap(network, (1,), layers=(2,), image_size=64)
    with pytest.raises(S2WrapError, match="pass output='fine', or another of these, or layers="):
        s2wrap.wrap(network, (1,), image_size=64)
    with pytest.raises(S2WrapError, match="norm_layers=True: nothing is known of the last norm"):
        s2wrap.wrap(network, (1,), layers=(0,), norm_layers=True, image_size=64)


@pytest.mark.parametrize("name", ["maxvit_rmlp_pico_rw_256", "coatnet_rmlp_nano_rw_224"])
def test_a_whole_size_that_windows_do_not_divide_is_refused_when_wrapped(name):
    network = timm.create_model(name, num_classes=0).eval()
    side = network.pretrained_cfg["input_size"][-1]
    with pytest.raises(S2WrapError, match="scale 1.5 cannot run whole") as error:
        s2wrap.wrap(network, (1, 1.5), whole=True)
    if name.startswith("coatnet"):  # its attention looks at the whole image, of one size
        assert f"takes images of {side}×{side} pixels only" in str(error.value)
        return
    assert f"takes whole images in multiples of {side}×{side} pixels only" in str(error.value)
    assert f'use a scale such as "{2 * side}px", or whole=False' in str(error.value)
    with pytest.raises(S2WrapError, match="fit='aspect' makes others; use whole=False"):
        s2wrap.wrap(network, (1, 2), whole=True, fit="aspect")
    images = torch.randn(1, 3, 2 * side, 2 * side)
    found = s2wrap.wrap(network, ("2:whole",))(images).spatial
    torch.testing.assert_close(found, network.forward_features(images))


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224"])
def test_a_refusal_of_other_sizes_names_the_argument_of_timm_that_allows_them(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    images = torch.randn(1, 3, 224, 224)
    before = network.forward_features(images)
    with pytest.raises(S2WrapError, match=r"make it with timm.create_model\(…, dynamic_img_size=True\), or use whole"):
        s2wrap.wrap(network, (1, 1.5), whole=True)
    assert torch.equal(network.forward_features(images), before)
    network = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    side = 352 if name.startswith("swin") else 336  # whole strides
    images = torch.randn(1, 3, side, side)
    found = s2wrap.wrap(network, (f"{side}px:whole",))(images)
    own = network.forward_features(images)
    own = own.flatten(1, 2) if own.ndim == 4 else own[:, 1:]
    torch.testing.assert_close(found.tokens, own)


class Hourglass(nn.Module):
    """Convolutions that meet again on a finer grid: images must be multiples of 32 pixels, tokens are of 8."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 4, 4)

    def forward(self, images):
        fine = self.fine(images)
        return fine + nn.functional.interpolate(self.coarse(fine), scale_factor=4)


@pytest.mark.parametrize("options", [{"scales": (0.6, 1, 1.3)}, {"scales": (1, 2), "fit": "pad"}])
def test_scales_whose_whole_size_a_model_does_not_take_are_tiles_unless_asked_for(options):
    images = torch.randn(1, 3, 100, 150)
    network = Hourglass()
    found = s2wrap.wrap(network, image_size=128, **options)
    assert [scale.whole for scale in found.scales] == [False] * len(options["scales"])
    tiled = s2wrap.wrap(network, image_size=128, whole=False, **options)
    torch.testing.assert_close(found(images).spatial, tiled(images).spatial)
    assert s2wrap.wrap(network, (2,), image_size=128).scales[0].whole
    with pytest.raises(S2WrapError, match="cannot run whole"):
        s2wrap.wrap(network, image_size=128, whole=True, **options)
