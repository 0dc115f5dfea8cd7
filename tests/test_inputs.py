"""A model knows what it takes: channels, values, mean and std, and where each is known from."""

import io
import warnings

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

import s2wrap
from s2wrap import S2WrapError


def vit_of(channels):
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, in_chans=channels).eval()


def warnings_of(call):
    """The texts of the warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


# --- values


def test_floats_in_0_to_1_are_told_once_and_the_cure_gives_what_pixels_give(vit):
    pixels = torch.randint(0, 256, (2, 3, 200, 200), dtype=torch.uint8)
    model = s2wrap.wrap(vit, (1, 2))
    (text,) = warnings_of(lambda: model(pixels / 255))
    assert "say value_range=(0, 1) to wrap()" in text
    assert warnings_of(lambda: model(pixels / 255)) == []
    cured = s2wrap.wrap(vit, (1, 2), value_range=(0, 1))
    assert warnings_of(lambda: cured(pixels / 255)) == []
    torch.testing.assert_close(cured(pixels / 255).spatial, model(pixels).spatial, atol=1e-4, rtol=0)


def test_normalised_images_and_constant_ones_are_taken_without_a_word(vit):
    model = s2wrap.wrap(vit, (1, 2))
    for images in (torch.randn(1, 3, 64, 64), torch.zeros(1, 3, 64, 64), torch.rand(1, 3, 64, 64) * 2 - 1):
        assert warnings_of(lambda images=images: model(images)) == []


@pytest.mark.parametrize("largest", [255, 100, 4095])
def test_floats_that_no_normalising_gives_are_refused(vit, largest):
    with pytest.raises(
        S2WrapError, match=r"images have values from .* normalised ones of test_vit lie in -1…1; give uint8"
    ):
        s2wrap.wrap(vit, (1, 2))(torch.rand(1, 3, 64, 64) * largest)


def test_values_far_outside_the_range_that_was_given_are_refused(vit):
    with pytest.raises(S2WrapError, match=r"from .* to .*, but value_range=\(0.0, 1.0\)"):
        s2wrap.wrap(vit, (1, 2), value_range=(0, 1))(torch.rand(1, 3, 64, 64) * 255)


def test_a_model_of_values_in_0_to_1_takes_them_without_a_word():
    model = s2wrap.wrap(nn.AvgPool2d(16), image_size=64, mean=(0, 0, 0), std=(1, 1, 1))
    assert warnings_of(lambda: model(torch.rand(1, 3, 64, 64))) == []


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_integers_of_every_width_are_the_same_picture(vit, dtype, largest):
    array = (np.linspace(0, 1, 50 * 40 * 3).reshape(50, 40, 3) * largest).round().astype(dtype)
    mean, std = (torch.tensor(vit.pretrained_cfg[key], dtype=torch.float64)[:, None, None] for key in ("mean", "std"))
    normalised = (torch.from_numpy(array.astype(np.float64) / largest).permute(2, 0, 1) - mean) / std
    model = s2wrap.wrap(vit, (1, 2))
    torch.testing.assert_close(model(array).spatial, model(normalised[None].float()).spatial, atol=2e-5, rtol=0)


def test_uint16_may_have_a_range_of_its_own():
    array = np.arange(2000, dtype=np.uint16).reshape(20, 50, 2)
    model = s2wrap.wrap(
        nn.AvgPool2d(2), (1,), image_size=20, in_channels=2, mean=(0.1, 0.2), std=(0.5, 0.25), value_range=(0, 10000)
    )
    expected = (torch.from_numpy(array / 10000).permute(2, 0, 1) - torch.tensor([0.1, 0.2])[:, None, None]) / (
        torch.tensor([0.5, 0.25])[:, None, None]
    )
    plain = s2wrap.wrap(nn.AvgPool2d(2), (1,), image_size=20, in_channels=2)(expected[None].float())
    torch.testing.assert_close(model(array).spatial, plain.spatial, atol=1e-5, rtol=0)


def test_pixels_with_the_overshoot_of_a_cubic_resize_are_seen_through(vit):
    pixels = torch.zeros(1, 3, 100, 100)
    pixels[..., 30:60] = 255
    resized = nn.functional.interpolate(pixels, size=(150, 150), mode="bicubic", antialias=True)
    assert resized.min() < 0 < 255 < resized.max()
    with pytest.raises(S2WrapError, match="give uint8, or say value_range"):
        s2wrap.wrap(vit, (1, 2))(resized)
    (text,) = warnings_of(lambda: s2wrap.wrap(vit, (1, 2))(resized / 255))
    assert "say value_range=(0, 1)" in text


def test_uint16_beyond_the_range_that_was_given_is_refused(vit):
    images = torch.randint(0, 60000, (1, 3, 64, 64), dtype=torch.int32).to(torch.uint16)
    with pytest.raises(S2WrapError, match=r"images have values from .*, but value_range=\(0.0, 1.0\)"):
        s2wrap.wrap(vit, (1, 2), value_range=(0, 1))(images)


def test_images_that_hardly_leave_the_lower_end_of_their_range_are_told(vit):
    (text,) = warnings_of(lambda: s2wrap.wrap(vit, (1, 2), value_range=(0, 255))(torch.rand(1, 3, 64, 64)))
    assert "hardly above black in value_range=(0.0, 255.0)" in text


def test_images_of_torchvision_are_looked_at_too(vit):
    images = tv_tensors.Image(torch.rand(1, 3, 64, 64) * 255)
    with pytest.raises(S2WrapError, match="give uint8"):
        s2wrap.wrap(vit, (1, 2))(images)


def test_a_range_or_half_a_normalisation_without_effect_is_refused():
    for options in ({"value_range": (0, 1)}, {"mean": (0.5,)}, {"std": (0.5,)}):
        with pytest.raises(S2WrapError, match="no effect"):
            s2wrap.wrap(nn.AvgPool2d(16), (1,), image_size=64, **options)


# --- channels


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_a_backbone_may_take_any_number_of_channels(channels):
    """Scale 1 of an image of the own size is the backbone's own output; uint8 is normalised channel by channel."""
    network = vit_of(channels)
    values = {"mean": np.linspace(0.2, 0.6, channels), "std": np.linspace(0.1, 0.3, channels)}
    model = s2wrap.wrap(network, (1, 2), **values)
    images = torch.randn(2, channels, 160, 160)
    own = network.forward_features(images)[:, 1:]
    torch.testing.assert_close(s2wrap.wrap(network, (1,))(images).tokens, own, atol=1e-5, rtol=0)
    assert model.input.channels == channels
    pixels = torch.randint(0, 256, (1, channels, 200, 200), dtype=torch.uint8)
    mean, std = (torch.tensor(value)[:, None, None] for value in values.values())
    floats = ((pixels / 255 - mean) / std).float()
    torch.testing.assert_close(model(pixels).spatial, model(floats).spatial, atol=1e-4, rtol=0)
    (picture,) = model.encode(pixels[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(picture.spatial, model(pixels).spatial, atol=1e-4, rtol=0)


def test_other_channels_than_the_models_are_refused(vit):
    with pytest.raises(S2WrapError, match=r"give \(batch, 4, height, width\)"):
        s2wrap.wrap(vit_of(4), (1,))(torch.randn(1, 3, 64, 64))
    with pytest.raises(S2WrapError, match=r"has 3 channels, and the model takes 4; give an array"):
        s2wrap.wrap(vit_of(4), (1,))(Image.new("RGB", (50, 40)))
    grey = s2wrap.wrap(vit_of(1), (1,), mean=(0.5,), std=(0.5,))
    with pytest.raises(S2WrapError, match=r"has colours, and the model takes grey; give image.convert\('L'\)"):
        grey(Image.new("RGB", (50, 40), "red"))
    assert grey(Image.new("L", (50, 40), 99)).plan.image_hw == (40, 50)


def test_mean_and_std_of_three_channels_are_not_those_of_four():
    model = s2wrap.wrap(vit_of(4), (1,))
    assert (model.input.mean, model.input.origins["mean"]) == (None, "unknown")
    with pytest.raises(S2WrapError, match="the mean and std of test_vit are unknown"):
        model(torch.zeros(1, 4, 64, 64, dtype=torch.uint8))


# --- where facts are known from


def test_a_model_says_where_each_fact_is_known_from(vit):
    origins = s2wrap.wrap(vit, (1,)).input.origins
    assert {origins[name] for name in ("channels", "image_hw", "mean", "std", "interpolation")} == {"model"}
    given = s2wrap.wrap(vit, (1,), mean=(0.1, 0.2, 0.3), value_range=(0, 1)).input
    assert (given.origins["mean"], given.origins["value_range"], given.origins["std"]) == ("caller", "caller", "model")
    function = s2wrap.wrap(lambda images: nn.functional.avg_pool2d(images, 16), (1,), image_size=64).input
    assert (function.origins["mean"], function.origins["channels"]) == ("unknown", "class default")


def dinov2():
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=224, patch_size=14
    )
    return transformers.Dinov2Model(config).eval()


def test_a_mean_that_is_a_guess_is_told_once_and_a_processor_settles_it():
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    guess = s2wrap.wrap(dinov2(), (1,))
    assert guess.input.origins["mean"] == "class default"
    (text,) = warnings_of(lambda: guess(pixels))
    assert "are the default of a class, not known of these weights; give processor=" in text
    assert warnings_of(lambda: guess(pixels)) == []
    processor = transformers.BitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    known = s2wrap.wrap(dinov2(), (1,), processor=processor)
    assert known.input.mean == pytest.approx((0.1, 0.2, 0.3))
    assert known.input.origins["mean"] == "processor"
    assert warnings_of(lambda: known(pixels)) == []


def test_a_guess_is_told_on_every_path():
    guess = s2wrap.wrap(dinov2(), (1,), value_range=(0, 1))
    assert len(warnings_of(lambda: guess(torch.rand(1, 3, 224, 224)))) == 1
    half = s2wrap.wrap(dinov2(), (1,), mean=(0.5, 0.5, 0.5))
    assert len(warnings_of(lambda: half(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)))) == 1
    assert len(warnings_of(lambda: s2wrap.wrap(dinov2(), (1,)).transform())) == 1


@pytest.mark.parametrize("processor", ["openai/clip", v2.Identity()])
def test_what_is_no_processor_is_refused(processor):
    with pytest.raises(S2WrapError, match="says no mean and std; give an image processor of transformers"):
        s2wrap.wrap(dinov2(), (1,), processor=processor)


def test_the_processor_in_a_checkpoints_folder_is_taken(tmp_path):
    dinov2().save_pretrained(tmp_path)
    transformers.BitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    model = s2wrap.wrap(transformers.AutoModel.from_pretrained(tmp_path), (1,))
    assert model.input.mean == pytest.approx((0.1, 0.2, 0.3))
    assert model.input.origins["std"] == "processor"


def test_a_processor_that_does_not_rescale_has_its_mean_in_pixels():
    processor = transformers.BitImageProcessor(do_rescale=False, image_mean=[127.5] * 3, image_std=[51.0] * 3)
    model = s2wrap.wrap(dinov2(), (1,), processor=processor)
    assert (model.input.mean, model.input.std) == (pytest.approx((0.5,) * 3), pytest.approx((0.2,) * 3))


# --- one front door


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def test_a_picture_of_any_kind_is_one_picture(vit, picture, tmp_path):
    model = s2wrap.wrap(vit, (1, 2))
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    expected = model(torch.from_numpy(picture).permute(2, 0, 1)[None])
    for image in (path, str(path), Image.fromarray(picture), picture):
        features = model(image)
        torch.testing.assert_close(features.spatial, expected.spatial, atol=1e-5, rtol=0)
        (alone,) = model.encode(image)
        torch.testing.assert_close(alone.spatial, expected.spatial, atol=5e-5, rtol=0)


def test_what_a_processor_returns_is_taken(vit):
    images = torch.randn(2, 3, 160, 160)
    model = s2wrap.wrap(vit, (1, 2))
    inputs = transformers.BatchFeature({"pixel_values": images})
    for features in (model(**inputs), model(inputs), model(pixel_values=images)):
        torch.testing.assert_close(features.spatial, model(images).spatial, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model(), "give images or pixel_values: one of them"),
        (lambda model: model(torch.zeros(1, 3, 9, 9), pixel_values=torch.zeros(1, 3, 9, 9)), "one of them"),
        (lambda model: model([torch.zeros(3, 9, 9)]), "for images of any sizes use model.encode(images)"),
        (lambda model: model(np.zeros((2, 9, 9, 3), np.uint8)), "torch.from_numpy(array).permute(0, 3, 1, 2)"),
        (lambda model: model({"pixel_values": torch.zeros(1, 3, 9, 9), "pixel_mask": 0}), "pixel_values, pixel_mask"),
        (lambda model: model.encode("."), "is a folder; give its pictures: model.encode(s2wrap.images.find_images"),
        (lambda model: model(np.zeros((9, 9, 3))), "float64; give uint8 or uint16 (height, width, 3)"),
        (lambda model: model(np.zeros((3, 9, 9), np.uint8)), "give uint8 or uint16 (height, width, 3)"),
    ],
)
def test_what_is_not_taken_names_the_call_that_works(vit, call, words):
    with pytest.raises(S2WrapError) as error:
        call(s2wrap.wrap(vit, (1,)))
    assert words in str(error.value)


def test_odd_arrays_are_taken_and_left_alone(vit, picture):
    model = s2wrap.wrap(vit, (1,))
    expected = model(picture).spatial
    frozen = picture.copy()
    frozen.setflags(write=False)
    for array in (frozen, picture[:, ::-1][:, ::-1], np.asfortranarray(picture)):
        torch.testing.assert_close(model(array).spatial, expected, atol=0, rtol=0)
    grey = picture[:, :, :1]
    torch.testing.assert_close(model(grey).spatial, model(grey[:, :, 0]).spatial, atol=0, rtol=0)


def test_a_damaged_or_closed_pil_image_is_one_error_with_its_number(vit, picture):
    file = io.BytesIO()
    Image.fromarray(np.tile(picture, (8, 8, 1))).save(file, "JPEG")
    cut = Image.open(io.BytesIO(file.getvalue()[:20000]))
    closed = Image.open(io.BytesIO(file.getvalue()))
    closed.close()
    for image in (cut, closed):
        with pytest.raises(S2WrapError, match="image 1: the PIL image"):
            s2wrap.wrap(vit, (1,)).encode([Image.new("RGB", (40, 40)), image])


# --- what is refused, and where warnings point


def test_a_warning_points_at_the_line_of_the_caller(vit):
    model = s2wrap.wrap(vit, (1, 2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model(torch.rand(1, 3, 160, 160))
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 3, 160, 160).to(torch.float8_e4m3fn), "float8_e4m3fn; give one of uint8, uint16, float16"),
        (
            torch.empty(1, 3, 160, 160, device="meta"),
            "images are on meta, and test_vit computes on cpu; give images.to",
        ),
        (".", "is a folder; s2wrap.images.find_images"),
    ],
)
def test_what_cannot_be_looked_at_is_refused_in_a_sentence(vit, images, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.wrap(vit, (1, 2), name="test_vit")(images)
    assert words in str(error.value)


def test_an_image_of_other_channels_is_refused_as_one_image(vit):
    with pytest.raises(S2WrapError, match=r"image 0: images have shape \(4, 20, 20\); give \(3, height, width\)"):
        s2wrap.wrap(vit, (1, 2)).encode(torch.randn(4, 20, 20))
