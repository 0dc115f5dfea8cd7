import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from skimage import data
from torch import nn

import s2wrap
from s2wrap import S2WrapError

PHOTO = data.chelsea()


@pytest.fixture
def path(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def test_paths_pil_images_arrays_and_tensors_are_the_same_picture(vit, path):
    model = s2wrap.wrap(vit, (1, 2))
    tensor = torch.from_numpy(PHOTO).permute(2, 0, 1)
    answers = model.encode([path, str(path), Image.fromarray(PHOTO), PHOTO, tensor])
    expected = model(tensor[None])
    for features in answers:
        torch.testing.assert_close(features.spatial, expected.spatial, atol=5e-5, rtol=0)
        torch.testing.assert_close(features.prefix, expected.prefix, atol=5e-5, rtol=0)


def test_grey_pictures_and_exif_are_understood(vit, tmp_path):
    model = s2wrap.wrap(vit, (1,))
    grey = np.asarray(Image.fromarray(PHOTO).convert("L"))
    first, second = model.encode([grey, Image.fromarray(grey)])
    torch.testing.assert_close(first.spatial, second.spatial, atol=1e-5, rtol=0)
    turned = Image.fromarray(PHOTO)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (features,) = model.encode([Image.open(tmp_path / "turned.jpg")])
    assert features.plan.image_hw == (PHOTO.shape[1], PHOTO.shape[0])


@pytest.mark.parametrize("fit", ["stretch", "aspect", "pad"])
def test_images_of_any_sizes_give_what_each_gives_alone(vit, fit):
    model = s2wrap.wrap(vit, (1, 2), fit=fit, tile_batch=3)
    images = [torch.randn(3, *hw) for hw in ((100, 200), (300, 90), (160, 160), (100, 200))]
    for image, features in zip(images, model.encode(images), strict=True):
        alone = model(image[None])
        torch.testing.assert_close(features.spatial, alone.spatial, atol=5e-5, rtol=0)
        assert features.plan == alone.plan


def test_tiles_of_all_images_share_full_batches():
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = []

        def forward(self, images):
            self.calls.append(images.shape[0])
            return F.avg_pool2d(images, 16)

    recorder = Recorder()
    model = s2wrap.wrap(recorder, (1, 2), image_size=64, tile_batch=4, fit="aspect")
    recorder.calls.clear()
    model.encode(torch.rand(3, 60, 60) if k % 2 else torch.rand(3, 50, 100) for k in range(4))
    assert sum(recorder.calls) == 2 * (1 + 4) + 2 * (1 + 2)
    assert recorder.calls == [4, 4, 4, 4]


def test_images_are_read_one_after_the_other(vit):
    read = []

    def images():
        for number in range(6):
            read.append(number)
            yield torch.zeros(3, 160, 160)

    model = s2wrap.wrap(vit, (1,), tile_batch=2)
    seen = []
    model.backbone.register_forward_hook(lambda *_: seen.append(len(read)))
    assert len(model.encode(images())) == 6
    assert seen == [2, 4, 6]


def test_an_empty_list_gives_an_empty_list(vit):
    assert s2wrap.wrap(vit, (1,)).encode([]) == []


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("photo.jpg", "image 0: photo.jpg: there is no such file"),
        (5, "takes images or one image, not 5"),
        ([torch.zeros(3, 20, 20), "missing.jpg"], "image 1: missing.jpg: there is no such file"),
        ([torch.zeros(3, 20)], "image 0: (3, 20) is no image"),
        ([torch.zeros(1, 20, 20)], "image 0: images have shape (1, 20, 20); give (3, height, width)"),
        ([None], "image 0: a NoneType is no image"),
        ([np.zeros((20, 20, 3))], "image 0: an array (20, 20, 3) of float64; give uint8"),
        ([np.zeros((20, 20, 4), np.uint8)], "image 0: an array (20, 20, 4) of uint8"),
        ([torch.full((3, 20, 20), float("nan"))], "image 0: images hold 1200 values that are NaN or infinite"),
        ([torch.zeros(3, 1, 20)], "image 0: an image of 1×20 pixels"),
    ],
)
def test_wrong_images_are_named_by_number(vit, images, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.wrap(vit, (1,)).encode(images)
    assert words in str(error.value)


def test_a_large_picture_is_never_held_as_floats(vit):
    """Counted by what PyTorch allocates: at most 9 bytes a pixel beyond the picture, and a copy of it."""
    from memory import peak_mib

    side = 3000
    picture = np.broadcast_to(np.arange(side, dtype=np.uint8)[:, None, None], (side, side, 3)).copy()
    model = s2wrap.wrap(vit, (1, 2))
    small = s2wrap.wrap(vit, (1, 2)).encode([picture[:160, :160]])
    assert small[0].plan.num_tiles == 5
    assert peak_mib(lambda: model.encode([picture])) * 2**20 / side**2 < 9
    resized = torch.nn.functional.interpolate(
        (torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 255 - 0.5) / 0.5,
        size=(320, 320),
        mode="bicubic",
        antialias=True,
    )
    expected = model(resized.float()).spatial[:, 64:]
    torch.testing.assert_close(model(picture).spatial[:, 64:], expected, atol=1e-4, rtol=0)
