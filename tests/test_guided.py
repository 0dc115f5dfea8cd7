import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from test_upsample import features_of

from s2wrap import Features, S2WrapError
from s2wrap.compare.memory import peak_bytes
from s2wrap.guided import guided_strips, guided_upsample
from s2wrap.upsample import upsample

CPU = torch.device("cpu")


def plain_loop(image, spatial, size, distance=0.7, colour=0.5):
    """What the docstring says, pixel by pixel, for one image (k, height, width) of that size."""
    image, spatial = image.double().numpy(), spatial.double().numpy()
    (rows, columns), (height, width) = spatial.shape[1:], size
    deviations = image - image.mean((1, 2), keepdims=True)
    spread = np.sqrt((deviations**2).mean()) + 1e-4 * abs(image.mean((1, 2))).max()
    colours, variances = np.zeros((len(image), rows, columns)), np.zeros((rows, columns))
    for i, j in product(range(rows), range(columns)):
        down = slice(math.floor(i * height / rows), math.ceil((i + 1) * height / rows))
        across = slice(math.floor(j * width / columns), math.ceil((j + 1) * width / columns))
        colours[:, i, j] = image[:, down, across].mean((1, 2))
        variances[i, j] = image[:, down, across].var((1, 2)).mean() / (colour * spread) ** 2
    result = np.zeros((len(spatial), height, width))
    for y, x in product(range(height), range(width)):
        v, u = (y + 0.5) * rows / height, (x + 0.5) * columns / width
        total = 0
        for i, j in product(range(rows), range(columns)):
            if abs(i - math.floor(v)) <= 2 and abs(j - math.floor(u)) <= 2:
                apart = ((i + 0.5 - v) ** 2 + (j + 0.5 - u) ** 2) / distance**2
                unlike = (((image[:, y, x] - colours[:, i, j]) / spread / colour) ** 2).sum() / (1 + variances[i, j])
                weight = math.exp(-(apart + unlike) / 2) / (1 + variances[i, j]) ** (len(image) / 2)
                result[:, y, x] += weight * spatial[:, i, j]
                total += weight
        result[:, y, x] /= total
    return torch.from_numpy(result)


def halves(height=40, width=60):
    """A picture, dark on the left and light on the right, and its map, 0 and 1, with a column of cells in between."""
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    image[..., width // 2 :] = 200
    return image, torch.tensor([0.0, 0, 0.5, 1, 1]).expand(1, 1, 4, 5)


@pytest.mark.parametrize("size", [(12, 20), (13, 7), (4, 6), (3, 5)])
@pytest.mark.parametrize("widths", [{}, {"distance": 1.1, "colour": 0.2}])
def test_each_pixel_is_the_weighted_mean_of_the_cells_around(size, widths):
    torch.manual_seed(0)
    image, spatial = torch.rand(2, 3, *size), torch.randn(2, 5, 4, 6)
    found = guided_upsample(image, spatial, size, **widths)
    for number in range(2):
        expected = plain_loop(image[number], spatial[number], size, **widths).float()
        torch.testing.assert_close(found[number], expected, atol=1e-4, rtol=1e-4)


def test_without_colour_only_distance_counts():
    spatial, size = torch.randn(1, 2, 7, 8), (15, 20)
    found = guided_upsample(torch.rand(1, 3, *size), spatial, size, colour=math.inf)
    expected = plain_loop(torch.zeros(3, *size) + 1, spatial[0], size)
    torch.testing.assert_close(found[0], expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_an_image_of_one_colour_guides_nowhere(value):
    image, spatial = torch.full((1, 3, 30, 30), value, dtype=torch.uint8), torch.randn(1, 2, 5, 5)
    expected = guided_upsample(image, spatial, (30, 30), colour=math.inf)
    for same in (image, image / 255, image.double() - 1000):
        torch.testing.assert_close(guided_upsample(same, spatial, (30, 30)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(33, 50), (9, 4), (1, 1)])
def test_a_constant_map_stays_constant_and_no_value_leaves_the_range_of_the_cells_around(size):
    image = torch.randint(0, 256, (2, 3, 33, 50), dtype=torch.uint8)
    constant = guided_upsample(image, torch.full((2, 3, 4, 6), 1.5), size)
    torch.testing.assert_close(constant, torch.full((2, 3, *size), 1.5))
    spatial = torch.randn(2, 3, 4, 6)
    found = guided_upsample(image, spatial, size, colour=0.01)
    most = F.max_pool2d(spatial, 5, stride=1, padding=2)
    least = -F.max_pool2d(-spatial, 5, stride=1, padding=2)
    rows = ((torch.arange(size[0]) + 0.5) * 4 / size[0]).floor().long()
    columns = ((torch.arange(size[1]) + 0.5) * 6 / size[1]).floor().long()
    assert bool((found <= most[:, :, rows][..., columns] + 1e-5).all())
    assert bool((found >= least[:, :, rows][..., columns] - 1e-5).all())


def test_a_map_follows_an_edge_that_its_cells_straddle():
    image, spatial = halves()
    found, linear = guided_upsample(image, spatial, (40, 60)), upsample(spatial, (40, 60))
    truth = (image[:, :1] > 100).float()
    assert (found - truth).abs().max() < 0.2
    assert (linear - truth).abs().max() > 0.4


@pytest.mark.parametrize("height", [1, 7, 45, 100, None])
def test_strips_follow_each_other_and_make_the_whole(height):
    image, features = torch.randint(0, 256, (2, 3, 45, 67), dtype=torch.uint8), features_of(torch.randn(2, 3, 4, 6))
    parts = list(features.upsample_strips(height=height, image=image))
    assert [top for top, _ in parts] == list(range(0, 45, height or 45))
    whole = features.upsample(image=image)
    assert whole.shape == (2, 3, 45, 67)
    torch.testing.assert_close(torch.cat([strip for _, strip in parts], dim=2), whole, atol=1e-5, rtol=0)


def test_memory_is_that_of_strips_and_not_of_the_result():
    image, spatial = torch.randint(0, 256, (1, 3, 512, 384), dtype=torch.uint8), torch.randn(1, 256, 16, 12)
    strip, whole = 256 * 16 * 384 * 4, 256 * 512 * 384 * 4

    def run():
        for _ in guided_strips(image, spatial, (512, 384), height=16):
            pass

    peak = peak_bytes(run, CPU)
    assert strip < peak < 4 * strip < whole / 4
    default = peak_bytes(lambda: [None for _ in guided_strips(image, spatial, (512, 384))], CPU)
    assert default < 4 * (32 << 20)


def test_the_range_of_an_image_does_not_matter():
    image, spatial = torch.randint(0, 256, (1, 3, 30, 40), dtype=torch.uint8), torch.randn(1, 2, 4, 5)
    expected = guided_upsample(image, spatial, (30, 40))
    for same in (image / 255, image.to(torch.uint16), image.double() / 50 - 2):
        torch.testing.assert_close(guided_upsample(same, spatial, (30, 40)), expected, atol=2e-3, rtol=0)


def test_each_image_of_a_batch_is_guided_alone():
    images, spatial = (
        torch.rand(3, 3, 20, 30) * torch.tensor([1.0, 5.0, 0.1])[:, None, None, None],
        torch.randn(3, 2, 4, 5),
    )
    together = guided_upsample(images, spatial, (20, 30))
    alone = [guided_upsample(image, each[None], (20, 30)) for image, each in zip(images, spatial, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_pictures_guide_as_their_tensors_do(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (45, 67, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    features, tensor = features_of(torch.randn(1, 3, 4, 6)), torch.from_numpy(pixels).permute(2, 0, 1)
    expected = features.upsample(image=tensor[None])
    for same in (pixels, tensor, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png"), [pixels]):
        assert torch.equal(features.upsample(image=same), expected)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_any_channels_and_of_another_size_guide_too(channels):
    image, spatial = halves(80, 120)
    found = guided_upsample(image[:, :1].expand(-1, channels, -1, -1), spatial, (40, 60))
    truth = (halves()[0][:, :1] > 100).float()
    assert (found - truth)[..., [*range(28), *range(32, 60)]].abs().max() < 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_rounded_once_and_types_are_kept(dtype):
    image, spatial = torch.rand(1, 3, 20, 30), torch.randn(1, 2, 4, 6).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = guided_upsample(image, spatial.to(wide), (20, 30)).to(dtype)
    found = guided_upsample(image, spatial, (20, 30))
    torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(guided_upsample(image, spatial, (20, 30)), found, atol=0, rtol=0)


def test_gradients_reach_the_map():
    image, spatial = torch.rand(1, 3, 9, 11), torch.randn(1, 2, 3, 4, requires_grad=True)
    guided_upsample(image, spatial, (9, 11)).sum().backward()
    moved = torch.zeros(1, 2, 3, 4)
    for i, j in product(range(3), range(4)):
        unit = torch.zeros(1, 2, 3, 4)
        unit[..., i, j] = 1
        moved[..., i, j] = guided_upsample(image, unit, (9, 11)).sum((2, 3))
    torch.testing.assert_close(spatial.grad, moved, atol=1e-5, rtol=0)


def test_a_large_result_is_made_only_where_its_size_is_given():
    features = features_of(torch.zeros(1, 2560, 2, 2), image_hw=(400, 600))
    image = torch.zeros(1, 3, 400, 600)
    with pytest.raises(S2WrapError, match="more than the 512 MiB"):
        features.upsample(image=image)
    top, strip = next(features.upsample_strips(image=image))
    assert (top, strip.shape) == (0, (1, 2560, 5, 600))


class Nearest(torch.nn.Module):
    """An up-sampler as the field has them."""

    def forward(self, image, features, output_size):
        self.seen = (tuple(image.shape), tuple(features.shape), output_size)
        return F.interpolate(features, size=output_size, mode="nearest-exact")


def test_a_learned_upsampler_is_called_with_image_map_and_size():
    coarse, fine, up = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 4, 6), Nearest()
    features, images = features_of(coarse, fine), torch.randn(2, 3, 90, 80)
    found = features.upsample(index=1, image=images, by=up)
    assert up.seen == ((2, 3, 90, 80), (2, 3, 4, 6), (45, 67))
    torch.testing.assert_close(found, F.interpolate(fine, size=(45, 67), mode="nearest-exact"), atol=0, rtol=0)
    assert features.upsample((8, 9), index=0, image=images, by=up).shape == (2, 3, 8, 9)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.zeros(1, 3, 44, 67), r"answered with \(1, 3, 44, 67\) where a tensor \(1, 3, 45, 67\) was asked for"),
        ([torch.zeros(1, 3, 45, 67)], "answered with a list"),
        (torch.full((1, 3, 45, 67), torch.nan), "not finite, for features in torch.float32"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(answer, words):
    features = features_of(torch.randn(1, 3, 4, 6))
    with pytest.raises(S2WrapError, match=words):
        features.upsample(image=torch.zeros(1, 3, 45, 67), by=lambda image, features, output_size: answer)


def test_a_learned_upsampler_needs_an_image_of_floats():
    features = features_of(torch.randn(1, 3, 4, 6))
    with pytest.raises(S2WrapError, match="by= takes an image"):
        features.upsample(by=Nearest())
    with pytest.raises(S2WrapError, match=r"torch.uint8 values, and by= takes floats.*model.transform"):
        features.upsample(image=np.zeros((45, 67, 3), np.uint8), by=Nearest())


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(2, 3, 45, 67), r"image has shape \(2, 3, 45, 67\) beside the features of 1"),
        (torch.zeros(45, 67), r"image has shape \(45, 67\)"),
        (torch.zeros(1, 3, 0, 67), "an image for each"),
        ([], "beside the features of 1"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "pictures of several shapes"),
        (np.zeros((45, 67, 7), np.uint8), "45, 67, 7"),
        (torch.full((1, 3, 45, 67), torch.inf), "not finite"),
        (5, "not 5"),
    ],
)
def test_an_image_that_does_not_fit_is_refused(image, words):
    features = features_of(torch.randn(1, 3, 4, 6))
    with pytest.raises(S2WrapError, match=words):
        features.upsample(image=image)


@pytest.mark.parametrize("widths", [{"colour": 0}, {"distance": -1.0}, {"colour": math.nan}])
def test_a_width_that_cannot_be_is_refused_before_the_first_strip(widths):
    with pytest.raises(S2WrapError, match="is no width of a Gaussian"):
        guided_strips(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 2, 2), (4, 4), **widths)


def test_an_impossible_size_or_height_is_refused_before_the_first_strip():
    for size, height in (((0, 5), None), ((5, 5), 0)):
        with pytest.raises(S2WrapError, match=r"is no (size of a result|height of a strip)"):
            guided_strips(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 2, 2), size, height)
    features = Features((torch.randn(1, 3, 2, 2),), (torch.zeros(1, 0, 3),))
    with pytest.raises(S2WrapError, match=r"no image size \(give size=\)"):
        features.upsample(image=torch.zeros(1, 3, 4, 4))
