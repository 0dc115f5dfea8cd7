"""Families: what each adapter finds by itself, and what wrong input gets."""

import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from made_up import TINY_VIT
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import s2wrap
from s2wrap.backbones import registry
from s2wrap.errors import S2WrapError

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    tower = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=48, vision_cfg=tower, text_cfg=text).eval()


def test_one_scale_embeds_as_open_clip_does(clip):
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(s2wrap.wrap(clip, scales=(1,)).encode_image(images), clip.encode_image(images))


@pytest.mark.parametrize("fuse", ["concat", "mean", "weighted", "detail", "pyramid"])
def test_scales_are_fused_by_their_average_in_the_space_of_text(clip, fuse):
    weights = (3.0, 1.0) if fuse == "weighted" else None
    images = torch.randn(2, 3, 64, 64)
    found = s2wrap.wrap(clip, scales=(1, 2), fuse=fuse, weights=weights).encode_image(images, normalize=True)
    small = functional.interpolate(images, (32, 32), mode="bicubic", antialias=True)
    tiles = [images[:, :, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    fine = sum(clip.encode_image(tile) for tile in tiles) / 4
    first, second = weights or (1.0, 1.0)
    expected = first * clip.encode_image(small) + second * fine
    torch.testing.assert_close(found, functional.normalize(expected, dim=-1), atol=1e-5, rtol=1e-4)
    text = clip.encode_text(torch.randint(0, 100, (3, 8)), normalize=True)
    assert (found @ text.T).shape == (2, 3)


def test_pictures_of_any_kind_and_size_are_embedded_each_as_open_clip_does(clip, tmp_path):
    open_clip.set_model_preprocess_cfg(
        clip, {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bicubic"}
    )
    model, random = s2wrap.wrap(clip, scales=(1, 2)), np.random.default_rng(0)
    arrays = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 56), (64, 64), (33, 90))]
    Image.fromarray(arrays[0]).save(tmp_path / "0.png")
    pictures = [tmp_path / "0.png", Image.fromarray(arrays[1]), arrays[2]]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    expected = torch.cat([embed_with_open_clip(clip, tensor) for tensor in tensors])
    for images in (pictures, tensors, iter(pictures)):
        torch.testing.assert_close(model.encode_image(images), expected, atol=1e-5, rtol=1e-4)
    for picture, row in zip(pictures, expected, strict=True):
        torch.testing.assert_close(model.encode_image(picture), row[None], atol=1e-5, rtol=1e-4)
    length_one = functional.normalize(expected, dim=-1)
    torch.testing.assert_close(model.encode_image(pictures, normalize=True), length_one, atol=1e-5, rtol=1e-4)


def embed_with_open_clip(clip, pixels):
    """The average over scales 1 and 2 of what open_clip gives for the whole picture and for its four tiles."""
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7)))
    small, large = (
        (functional.interpolate(pixels[None].float(), side, mode="bicubic", antialias=True) / 255 - mean) / std
        for side in ((32, 32), (64, 64))
    )
    tiles = [large[:, :, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    return (clip.encode_image(small) + sum(clip.encode_image(tile) for tile in tiles) / 4) / 2


def test_no_images_and_images_that_are_none_cannot_be_embedded(clip):
    model = s2wrap.wrap(clip, scales=(1,))
    with pytest.raises(S2WrapError, match="was given no images; give at least one"):
        model.encode_image([])
    with pytest.raises(S2WrapError, match="image 1: .* is no image"):
        model.encode_image([torch.zeros(3, 32, 32), torch.zeros(3)])


def test_models_without_text_have_no_joint_space():
    with pytest.raises(S2WrapError, match="no embeddings that text is compared with; wrap a model of open_clip"):
        s2wrap.load("timm:test_vit", pretrained=False).encode_image(torch.zeros(1, 3, 160, 160))


def test_the_mean_and_std_of_an_open_clip_model_are_its_own(clip):
    open_clip.set_model_preprocess_cfg(
        clip, {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear"}
    )
    known = s2wrap.wrap(clip).input
    assert (known.mean, known.std) == ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    assert (known.interpolation, known.image_hw) == ("bilinear", (32, 32))


def test_open_clip_layers_are_its_intermediates(clip):
    images = torch.randn(1, 3, 32, 32)
    features = s2wrap.wrap(clip, scales=(1,), layers=(0, 2), join_layers=False)(images)
    answer = clip.visual.forward_intermediates(images, normalize_intermediates=True)["image_intermediates"]
    for found, expected in zip(features.maps, (answer[0], answer[2]), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.fixture(scope="module")
def clip_vision():
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    return transformers.CLIPVisionModel(config).eval()


def test_transformers_layers_are_its_hidden_states(clip_vision):
    images = torch.randn(1, 3, 32, 32)
    features = s2wrap.wrap(clip_vision, scales=(1,), layers=(-2,))(images)
    expected = clip_vision(images, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(features.prefix, expected[:, :1])
    torch.testing.assert_close(features.tokens, expected[:, 1:])


def test_whole_scales_interpolate_the_positions_of_transformers(clip_vision):
    images = torch.randn(1, 3, 64, 64)
    features = s2wrap.wrap(clip_vision, scales=("64px",), whole=True)(images)
    expected = clip_vision(images, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(features.tokens, expected[:, 1:])


def test_images_are_normalised_as_the_processor_of_the_kind_does(clip_vision):
    known = s2wrap.wrap(clip_vision, scales=(1,)).input
    processor = transformers.CLIPImageProcessor()
    assert known.mean == pytest.approx(processor.image_mean)
    assert known.std == pytest.approx(processor.image_std)


def test_a_model_with_a_head_is_wrapped_without_it():
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    model = transformers.ViTForImageClassification(config).eval()
    images = torch.randn(1, 3, 32, 32)
    tokens = model.vit(images).last_hidden_state
    torch.testing.assert_close(s2wrap.wrap(model, scales=(1,))(images).tokens, tokens[:, 1:])


STAGES = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "image_size": 64}
WIDTHS = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
BACKBONES = [
    ("Beit", TINY_VIT),
    ("Beit", TINY_VIT | {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "add_fpn": True}),
    ("ConvNext", WIDTHS),
    ("DINOv3ConvNext", WIDTHS),
    ("DINOv3ViT", TINY_VIT),
    ("Dinov2", TINY_VIT),
    ("Dinov2", TINY_VIT | {"reshape_hidden_states": False}),
    ("Dinov2WithRegisters", TINY_VIT | {"out_indices": [1, 3]}),
    ("MaskFormerSwin", STAGES),
    ("Pixio", TINY_VIT),
    ("PvtV2", {"image_size": 64}),
    ("ResNet", WIDTHS | {"embedding_size": 16, "out_features": ["stage1", "stage2"]}),
    ("Swin", STAGES | {"window_size": 2, "out_features": ["stage2"]}),
    ("Swinv2", STAGES | {"window_size": 2}),
    ("VitDet", TINY_VIT | {"window_block_indices": []}),
]


@pytest.mark.parametrize(("kind", "options"), BACKBONES)
def test_backbones_of_transformers_give_their_last_feature_map(kind, options):
    torch.manual_seed(0)
    backbone = getattr(transformers, f"{kind}Backbone")(getattr(transformers, f"{kind}Config")(**options)).eval()
    model = s2wrap.wrap(backbone, scales=(1,))
    images = torch.randn(2, 3, *model.input.image_hw)
    expected = backbone(images).feature_maps[-1]
    if expected.ndim == 3:
        expected = expected[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(model(images).spatial, expected)


def test_auto_backbones_give_their_last_feature_map():
    backbone = transformers.AutoBackbone.from_config(transformers.ResNetConfig(embedding_size=16, **WIDTHS)).eval()
    images = torch.randn(1, 3, 224, 224)
    found = s2wrap.wrap(backbone, scales=(1,), image_size=224)(images).spatial
    torch.testing.assert_close(found, backbone(images).feature_maps[-1])


@pytest.mark.parametrize("kind", ["TimmWrapperModel", "TimmWrapperForImageClassification"])
@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet"])
def test_wrappers_of_timm_give_the_features_of_timm_without_the_head(kind, architecture):
    torch.manual_seed(0)
    wrapper = getattr(transformers, kind)(transformers.TimmWrapperConfig(architecture=architecture)).eval()
    model, images = s2wrap.wrap(wrapper, scales=(1,)), torch.randn(2, 3, 160, 160)
    features, own = model(images), wrapper.timm_model.forward_features(images)
    if own.ndim == 4:
        torch.testing.assert_close(features.spatial, own)
    else:
        torch.testing.assert_close(features.tokens, own[:, 1:])
    assert (model.input.image_hw, model.input.mean) == ((160, 160), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Beit", "DeiT", "DINOv3ViT", "CLIPVision"])
def test_every_layer_is_the_hidden_state_after_its_block(kind):
    torch.manual_seed(0)
    backbone = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**TINY_VIT)).eval()
    images = torch.randn(1, 3, 32, 32)
    states = backbone(images, output_hidden_states=True).hidden_states
    model = s2wrap.wrap(backbone, scales=(1,), layers=(0, 1, 2), join_layers=False)
    for found, state in zip(model(images).maps, states[1:], strict=True):
        torch.testing.assert_close(found, state[:, -16:].transpose(1, 2).unflatten(2, (4, 4)))


@pytest.mark.parametrize("channels", [1, 4])
def test_models_of_transformers_for_other_channels_take_their_images(channels):
    backbone = transformers.ViTModel(transformers.ViTConfig(**TINY_VIT, num_channels=channels)).eval()
    model, images = s2wrap.wrap(backbone, scales=(1,)), torch.randn(1, channels, 32, 32)
    torch.testing.assert_close(model(images).tokens, backbone(images).last_hidden_state[:, 1:])
    assert (model.input.channels, model.input.mean) == (channels, None)


def test_bands_of_a_kind_that_takes_blue_first_keep_their_order():
    backbone = transformers.MobileViTModel(transformers.MobileViTConfig(num_channels=4)).eval()
    images = torch.randn(1, 4, 256, 256)
    torch.testing.assert_close(s2wrap.wrap(backbone, (1,))(images).spatial, backbone(images).last_hidden_state)


def test_the_processor_of_a_folder_or_one_that_is_given_says_mean_and_std(tmp_path):
    backbone = transformers.ViTModel(transformers.ViTConfig(**TINY_VIT))
    processor = transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    backbone.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for model in (
        s2wrap.wrap(transformers.ViTModel.from_pretrained(tmp_path)),
        s2wrap.wrap(backbone, processor=processor),
    ):
        assert (model.input.mean, model.input.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert model.input.origins["mean"] == "processor"


def test_the_default_of_a_class_is_called_one_and_warned_of_once():
    model = s2wrap.wrap(transformers.ViTModel(transformers.ViTConfig(**TINY_VIT)))
    assert model.input.origins["mean"] == "class default"
    images = torch.randint(256, (1, 3, 40, 40), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="are the default of a class, not known of these weights; give processor="):
        model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images)


def test_kinds_that_take_blue_first_get_it():
    model = transformers.MobileViTModel(transformers.MobileViTConfig()).eval()
    images = torch.randint(256, (1, 3, 256, 256), dtype=torch.uint8)
    processor = transformers.MobileViTImageProcessor(do_resize=False, do_center_crop=False)
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, images.flip(1) / 255)
    expected = model(pixels).last_hidden_state
    torch.testing.assert_close(s2wrap.wrap(model, scales=(1,))(images).spatial, expected)


def test_radio_of_transformers_has_its_registers_first_and_normalises_for_itself():
    config = transformers.RadioConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64)
    model = transformers.RadioModel(config).eval()
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)
    features = s2wrap.wrap(model, scales=(1,))(images)
    expected = model(images / 255)
    torch.testing.assert_close(features.tokens, expected.features)
    assert features.prefix.shape == (1, 10, 32)


def test_pixtral_keeps_the_images_of_a_batch_apart():
    """The library joins them to one sequence."""
    config = transformers.PixtralVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=16
    )
    tower, images = transformers.PixtralVisionModel(config).eval(), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        alone = [tower(image, output_hidden_states=True) for image in images.split(1)]
    found = s2wrap.wrap(tower, (1,))(images)
    torch.testing.assert_close(found.tokens, torch.cat([answer.last_hidden_state for answer in alone]))
    layered = s2wrap.wrap(tower, (1,), layers=(1,))(images)
    torch.testing.assert_close(layered.tokens, torch.cat([answer.hidden_states[2] for answer in alone]))


def test_all_cls_tokens_are_prefix_tokens():
    config = transformers.PixioConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64)
    features = s2wrap.wrap(transformers.PixioModel(config).eval(), scales=(1,))(torch.randn(1, 3, 64, 64))
    assert (features.prefix.shape, features.spatial.shape) == ((1, 8, 32), (1, 32, 4, 4))


def test_a_configuration_that_makes_no_model_says_why():
    with pytest.raises(S2WrapError, match="cannot make siglip_vision_model .*1152 and `num_heads`: 14"):
        s2wrap.load("transformers:aya_vision", pretrained=False)


class HubDino(nn.Module):
    """The face of the DINO models of torch.hub, on timm's DINOv2."""

    def __init__(self, registers_key):
        super().__init__()
        import timm

        torch.manual_seed(0)
        self.inner = timm.create_model("test_vit4", num_classes=0, img_size=64).eval()
        self.registers_key = registers_key
        self.blocks = self.inner.blocks
        self.patch_embed = SimpleNamespace(img_size=(64, 64))

    def forward_features(self, images):
        tokens = self.inner.forward_features(images)
        prefix = self.inner.num_prefix_tokens
        parts = {"x_norm_clstoken": tokens[:, 0], "x_norm_patchtokens": tokens[:, prefix:], "masks": None}
        return parts | {self.registers_key: tokens[:, 1:prefix]}

    def get_intermediate_layers(self, images, n, reshape, return_class_token, norm):
        maps = self.inner.forward_intermediates(
            images, indices=list(n), norm=norm, return_prefix_tokens=True, intermediates_only=True
        )
        return tuple((spatial, prefix[:, 0]) for spatial, prefix in maps)


@pytest.mark.parametrize("registers_key", ["x_norm_regtokens", "x_storage_tokens"])
def test_dino_modules_of_torch_hub_are_read_by_their_keys(registers_key):
    model = HubDino(registers_key)
    images = torch.randn(1, 3, 64, 64)
    features = s2wrap.wrap(model, scales=(1,))(images)
    tokens = model.inner.forward_features(images)
    prefix = model.inner.num_prefix_tokens
    torch.testing.assert_close(features.prefix, tokens[:, :prefix])
    torch.testing.assert_close(features.tokens, tokens[:, prefix:])
    layer = s2wrap.wrap(model, scales=(1,), layers=(0,))(images)
    torch.testing.assert_close(layer.spatial, model.inner.forward_intermediates(images, norm=True)[1][0])


class Radio(nn.Module):
    """The face of C-RADIO: a summary and spatial tokens, for values in 0…1."""

    preferred_resolution = (64, 64)
    summary_idxs = (0,)

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return tokens.mean(dim=1).repeat(1, 3), tokens


def test_radio_modules_give_their_spatial_part():
    model = Radio()
    images = torch.rand(1, 3, 64, 64)
    wrapped = s2wrap.wrap(model, scales=(1,))
    torch.testing.assert_close(wrapped(images).spatial, model.patches(images))
    torch.testing.assert_close(wrapped((images * 255).byte()).spatial, model.patches((images * 255).byte() / 255))


def two_maps(images: Tensor) -> dict[str, Tensor]:
    return {"fine": functional.avg_pool2d(images, 8), "coarse": functional.avg_pool2d(images, 16)}


def test_answers_of_several_parts_are_settled_by_output():
    with pytest.raises(S2WrapError, match=r"'fine': \(1, 3, 8, 8\).*'coarse': \(1, 3, 4, 4\).*pass output='fine'"):
        s2wrap.wrap(two_maps, image_size=64)
    assert s2wrap.wrap(two_maps, image_size=64, output="coarse")(torch.rand(1, 3, 64, 64)).spatial.shape[-1] == 4
    with pytest.raises(S2WrapError, match="output='coarser' is no part .*'fine', 'coarse'"):
        s2wrap.wrap(two_maps, image_size=64, output="coarser")


def test_the_only_features_of_an_answer_are_found():
    def summary_and_map(images: Tensor) -> tuple[Tensor, Tensor]:
        return images.mean(dim=(2, 3)), functional.avg_pool2d(images, 16)

    assert s2wrap.wrap(summary_and_map, image_size=64)(torch.rand(1, 3, 64, 64)).spatial.shape == (1, 6, 4, 4)


def test_object_queries_are_no_tokens_of_the_image():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(100, 3 * 8 * 8, generator=generator)

    def decoder(images: Tensor) -> Tensor:
        return (queries @ functional.avg_pool2d(images, 8).flatten(1).T).T[:, :, None] * torch.ones(2)

    with pytest.raises(S2WrapError, match="do not answer where the image changes"):
        s2wrap.wrap(decoder, image_size=64)


def test_compiled_modules_are_refused():
    import timm

    with pytest.raises(S2WrapError, match=r"compile the result: torch.compile\(wrap\(model\)\)"):
        s2wrap.wrap(torch.compile(timm.create_model("test_vit")))


@pytest.fixture
def acme():
    class Acme(s2wrap.ProbedBackbone):
        def call(self, tiles: Tensor) -> Any:
            return self.model(tiles / 2)

    def load(name: str, options: s2wrap.BackboneOptions, *, pretrained: bool, checkpoint: Any) -> s2wrap.Backbone:
        return Acme(nn.AvgPool2d(16), replace(options, image_size=options.image_size or 64, name=name))

    s2wrap.register_backbone(
        "acme", Acme, matches=lambda model: isinstance(model, nn.AvgPool2d), names=("pool",), load=load
    )
    yield
    registry.unregister_backbone("acme")


def test_users_add_families_of_their_own(acme):
    images = torch.rand(1, 3, 128, 128)
    expected = torch.nn.functional.avg_pool2d(images, 16) / 2
    found = s2wrap.load("acme:pool@2", pretrained=False)(images).spatial
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(s2wrap.wrap(nn.AvgPool2d(16), scales=(2,), image_size=64)(images).spatial, expected)
    with pytest.raises(S2WrapError, match="acme knows no model 'poll'; did you mean acme:pool"):
        s2wrap.load("acme:poll")
    with pytest.raises(S2WrapError, match="'acme' cannot name a family"):
        s2wrap.register_backbone("acme", nn.Identity)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("torchvision:resnet51", "did you mean torchvision:resnet50"),
        ("open_clip:ViT-B-17", "did you mean open_clip:ViT-B-16"),
        ("transformers:dinov4", "did you mean transformers:dinov2"),
        ("open_clip:ViT-B-16", "write open_clip:ViT-B-16/TAG with a tag of openai"),
        ("transformers:dinov2", "is a kind of model and has no weights; name a repository of the hub"),
    ],
)
def test_names_that_cannot_be_loaded_say_what_can(spec, words):
    with pytest.raises(S2WrapError, match=words):
        s2wrap.load(spec)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_checkpoints_fit_exactly_or_say_what_does_not(tmp_path, ending):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    weights = resnet18().state_dict()

    def save(tensors: Any) -> str:
        path = str(tmp_path / f"weights.{ending}")
        save_file(tensors, path) if ending == "safetensors" else torch.save(tensors, path)
        return path

    backbone = s2wrap.load("torchvision:resnet18", checkpoint=save(weights)).backbone
    torch.testing.assert_close(backbone.model.conv1.weight, weights["conv1.weight"])
    wrong = {key: part for key, part in weights.items() if key != "bn1.bias"}
    wrong |= {"conv1.weight": torch.zeros(64, 3, 5, 5), "extra": torch.zeros(1)}
    words = r"1 missing: bn1.bias; 1 left over: extra; 1 of another shape: conv1.weight \(64, 3, 5, 5\) instead of"
    with pytest.raises(S2WrapError, match=words):
        s2wrap.load("torchvision:resnet18", checkpoint=save(wrong))


def test_files_that_would_run_code_are_refused_with_the_alternative(tmp_path):
    path = tmp_path / "whole_model.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(S2WrapError, match=r"holds more than tensors .*nothing is unpickled here; save model.state"):
        s2wrap.load("torchvision:resnet18", checkpoint=path)


def test_a_missing_library_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(s2wrap.MissingExtraError, match=r'pip install "s2wrap\[transformers\]"'):
        s2wrap.load("transformers:dinov2", pretrained=False)


@pytest.mark.parametrize("spec", ["open_clip:ViT-B-32/openai", "torchvision:resnet18", "transformers:a/b"])
def test_hubs_that_give_nothing_are_told_of(spec, monkeypatch):
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", refuse)
    monkeypatch.setattr("open_clip.create_model", refuse)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    with pytest.raises(S2WrapError, match=r"could not be had \(OSError: no route to host\)"):
        s2wrap.load(spec)


def test_a_text_tower_that_needs_a_hub_is_told_of(monkeypatch):
    def offline(*args, **options):
        raise OSError("We couldn't connect")

    monkeypatch.setattr("open_clip.create_model", offline)
    with pytest.raises(S2WrapError, match="roberta-ViT-B-32 has a text tower .* on the Hugging Face hub"):
        s2wrap.load("open_clip:roberta-ViT-B-32", pretrained=False)


def test_the_feature_pipeline_of_transformers_takes_a_tower():
    torch.manual_seed(0)
    backbone = transformers.Dinov2Model(transformers.Dinov2Config(**TINY_VIT)).eval()
    processor = transformers.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    model = s2wrap.wrap(backbone, scales=(1, 2), fuse="mean", processor=processor)
    pipe = transformers.pipeline(
        "image-feature-extraction", model=s2wrap.VisionTower(model), image_processor=processor, device="cpu"
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8))
    found = pipe(picture, return_tensors=True)
    features = model(**processor(picture, return_tensors="pt"))
    torch.testing.assert_close(found[:, 1:], features.tokens)
