import copy

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from PIL.ExifTags import Base
from torch.nn import functional
from torch.utils.data import DataLoader

import s2wrap
from s2wrap import S2WrapError


def picture(mode="RGB", size=(130, 90)):
    channels = {"RGB": 3, "RGBA": 4}.get(mode, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0]).convert(mode)


def turned():
    image = picture()
    image.getexif()[Base.Orientation] = 6
    return image


PICTURES = {mode: picture(mode) for mode in ("RGB", "RGBA", "L", "P", "CMYK", "I;16")} | {
    "turned": turned(),
    "array": np.asarray(picture()),
    "grey array": np.asarray(picture("L")),
    "uint8 tensor": torch.from_numpy(np.array(picture())).permute(2, 0, 1),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_transformed_picture_gives_what_encode_gives(model, kind):
    image = PICTURES[kind]
    features = model(model.transform()(image)[None])
    expected = model.encode([image])[0]
    torch.testing.assert_close(features.spatial, expected.spatial)
    torch.testing.assert_close(features.prefix, expected.prefix)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pictures_are_resized_once_normalised_with_the_models_interpolation(vit, interpolation):
    model = s2wrap.wrap(vit, interpolation=interpolation)
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 255
    expected = functional.interpolate((pixels - 0.5) / 0.5, size=(64, 48), mode=interpolation, antialias=True)
    torch.testing.assert_close(model.transform((64, 48))(picture())[None], expected, rtol=0, atol=1e-5)


def test_labels_keep_their_places_beside_pictures_of_any_kind(model):
    transform = model.transform((32, 40))
    image, label = transform((picture(), torch.tensor(7)))
    assert image.shape == (3, 32, 40)
    assert label == 7
    sample = transform({"label": torch.zeros(3, 5, 5), "image": picture("L"), "name": "x"})
    assert sample["image"].shape == (3, 32, 40)
    assert sample["label"].shape == (3, 5, 5)
    assert sample["name"] == "x"


def test_a_sample_without_a_picture_is_refused(model):
    with pytest.raises(S2WrapError, match="no picture among str"):
        model.transform()("picture.png")


class Pictures(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 3

    def __getitem__(self, number):
        return self.transform(picture(size=(100 + 10 * number, 90))), number


def test_spawned_workers_make_batches_that_the_model_takes(model):
    transform = model.transform(image_hw=(160, 160))
    loader = DataLoader(Pictures(transform), batch_size=3, num_workers=1, multiprocessing_context="spawn")
    ((images, numbers),) = loader
    assert type(images) is torch.Tensor
    assert numbers.tolist() == [0, 1, 2]
    assert torch.equal(images[1], transform(picture(size=(110, 90))))
    assert model(images).spatial.shape[0] == 3


def test_it_prints_its_values_and_can_be_copied(model):
    transform = model.transform((64, 48))
    text = repr(transform)
    assert "mean=(0.5, 0.5, 0.5)" in text
    assert "[64, 48]" in text
    assert "BICUBIC" in text
    assert torch.equal(copy.deepcopy(transform)(picture()), transform(picture()))


def test_unknown_mean_and_std_and_impossible_sizes_are_refused(vit):
    model = s2wrap.wrap(torch.nn.Conv2d(3, 4, 8, 8), image_size=32)
    with pytest.raises(S2WrapError, match=r"mean and std .* unknown"):
        model.transform()
    with pytest.raises(S2WrapError, match="1×30 pixels"):
        s2wrap.wrap(vit).transform((1, 30))


def test_a_grey_model_takes_grey_pictures_and_refuses_colour():
    model = s2wrap.wrap(timm.create_model("test_vit", in_chans=1), mean=(0.4,), std=(0.2,))
    assert model.transform()(picture("L")).shape == (1, 90, 130)
    with pytest.raises(S2WrapError, match="takes grey"):
        model.transform()(picture())
