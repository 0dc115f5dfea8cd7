"""`phases`: an image looked at several times, each time a part of a patch further on."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

import s2wrap
from s2wrap import S2WrapError


def resized(images, side):
    return functional.interpolate(images, (side, side), mode="bicubic", antialias=True)


def cell_averages(pixels, cells):
    """The averages of a line of pixels, the last axis, over an even grid of cells."""
    total = np.concatenate([np.zeros((*pixels.shape[:-1], 1)), pixels.cumsum(-1)], -1)
    edges = np.linspace(0, pixels.shape[-1], cells + 1)
    low = np.floor(edges).astype(int).clip(max=pixels.shape[-1] - 1)
    at = total[..., low] + (edges - low) * pixels[..., low]
    return np.diff(at) * cells / pixels.shape[-1]


def plain_loop(network, canvas, tile, starts, patch, cells):
    """Every pixel holds the average of the tokens that saw it; every cell that of its pixels."""
    side = canvas.shape[-1]
    total, count = np.zeros((network.num_features, side, side)), np.zeros((side, side))
    for top in starts:
        for left in starts:
            with torch.no_grad():
                answer = network.forward_features(canvas[..., top : top + tile, left : left + tile])[0]
            tokens = answer if answer.ndim == 3 else answer[1:].T
            spatial = tokens.reshape(-1, tile // patch, tile // patch).numpy()
            total[:, top : top + tile, left : left + tile] += spatial.repeat(patch, 1).repeat(patch, 2)
            count[top : top + tile, left : left + tile] += 1
    rows = cell_averages(total / count, cells)
    return cell_averages(rows.swapaxes(-1, -2), cells).swapaxes(-1, -2)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0).eval()


@pytest.mark.parametrize(("phases", "starts"), [(2, (0, 8)), (3, (0, 5, 11)), (4, (0, 4, 8, 12))])
def test_phases_are_a_plain_loop_over_crops_a_part_of_a_patch_apart(network, phases, starts):
    images = torch.randn(1, 3, 200, 200)
    found = s2wrap.wrap(network, (1,), phases=phases)(images).spatial
    canvas = resized(images, 160 + starts[-1])
    expected = plain_loop(network, canvas, 160, starts, 16, 10 * phases)
    torch.testing.assert_close(found[0].double(), torch.from_numpy(expected), atol=2e-5, rtol=1e-4)


def test_phases_of_tiles_side_by_side_are_a_plain_loop(network):
    images = torch.randn(1, 3, 328, 328)
    model = s2wrap.wrap(network, ("2:phases=2",))
    found = model(images).spatial
    expected = plain_loop(network, images, 160, (0, 8, 160, 168), 16, 40)
    torch.testing.assert_close(found[0].double(), torch.from_numpy(expected), atol=2e-5, rtol=1e-4)
    assert model.plan((328, 328)).num_tiles == 16


def test_phases_of_a_whole_scale_are_a_plain_loop_over_whole_passes():
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0).eval()
    images = torch.randn(1, 3, 328, 328)
    found = s2wrap.wrap(network, ("2:whole:phases=2",))(images).spatial  # the network takes any size from here on
    expected = plain_loop(network, images, 320, (0, 8), 16, 40)
    torch.testing.assert_close(found[0].double(), torch.from_numpy(expected), atol=2e-5, rtol=1e-4)


def test_a_convolutional_network_has_phases_too():
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0).eval()
    canvas = torch.randn(1, 3, 176, 176)
    found = s2wrap.wrap(network, (1,), phases=2)(canvas).spatial
    expected = plain_loop(network, canvas, 160, (0, 16), 32, 10)
    torch.testing.assert_close(found[0].double(), torch.from_numpy(expected), atol=2e-5, rtol=1e-4)


class Coordinates(nn.Module):
    """Answers with the average position of the pixels of every patch, if the image holds their positions."""

    def forward(self, images):
        return functional.avg_pool2d(images, 16)


@pytest.mark.parametrize(
    "options", [{"phases": 2}, {"phases": 4}, {"phases": 2, "overlap": 3}, {"phases": 2, "fit": "pad"}]
)
def test_cells_of_phases_lie_where_the_geometry_says(options):
    side = 480
    line = (torch.arange(side) + 0.5) / side
    images = torch.stack([line.expand(side, side), line[:, None].expand(side, side), torch.zeros(side, side)])[None]
    model = s2wrap.wrap(Coordinates(), (3,), image_size=160, **options)
    features = model(images)
    rows, cols = features.spatial.shape[-2:]
    inner = slice(options["phases"], -options["phases"])
    across = ((torch.arange(cols) + 0.5) / cols).expand(rows, cols)
    torch.testing.assert_close(features.spatial[0, 0, inner, inner], across[inner, inner], atol=0.15 / 480, rtol=0)
    torch.testing.assert_close(features.spatial[0, 1, inner, inner], across.T[inner, inner], atol=0.15 / 480, rtol=0)


@pytest.mark.parametrize("fuse", ["concat", "mean", "detail", "pyramid"])
def test_one_scale_alone_has_phases(network, fuse):
    images = torch.randn(2, 3, 320, 320)
    model = s2wrap.wrap(network, ("1:phases=2", 2), fuse=fuse)
    assert model.plan((320, 320)).num_tiles == 4 + 4
    assert [scale.own_hw for scale in model.placement((320, 320)).scales] == [((20, 20),), ((20, 20),)]
    alone = s2wrap.wrap(network, (1,), phases=2)(images)
    if fuse == "pyramid":
        torch.testing.assert_close(model(images).maps[0], alone.spatial)
    features = model(images, select=2)
    assert sum(int(ran.sum()) for ran in features.ran) == 2 * (4 + 2)


def test_prefix_tokens_of_phases_are_their_average(network):
    images = torch.randn(1, 3, 168, 168)
    prefix = s2wrap.wrap(network, (1,), phases=2)(images).prefix
    crops = [images[..., top : top + 160, left : left + 160] for top in (0, 8) for left in (0, 8)]
    with torch.no_grad():
        own = torch.stack([network.forward_features(crop)[:, :1] for crop in crops]).mean(0)
    torch.testing.assert_close(prefix, own, atol=5e-5, rtol=1e-4)


def test_a_scale_s_own_phases_go_before_the_model_s(network):
    model = s2wrap.wrap(network, ("1:phases=1", 2), phases=2)
    assert [scale.phases for scale in model.scales] == [1, 2]
    assert str(model.options.scales[0]) == "1:phases=1"


@pytest.mark.parametrize(("scale", "starts"), [(1, (0, 8)), (2, (0, 8, 160, 168))])
def test_blend_says_how_the_looks_share_a_pixel(scale, starts):
    side = 160 * scale + 8
    line = torch.randn(side)
    model = s2wrap.wrap(Coordinates(), (scale,), image_size=160, phases=2, blend="triangular")
    found = model(line.expand(1, 3, side, side)).spatial[0, 0, 5].double().numpy()
    total, count = np.zeros(side), np.zeros(side)
    window = 5 - np.abs(np.arange(10) - 4.5)
    for start in starts:
        tokens = line[start : start + 160].unflatten(0, (10, 16)).mean(1).numpy()
        total[start : start + 160] += (tokens * window).repeat(16)
        count[start : start + 160] += window.repeat(16)
    np.testing.assert_allclose(found, cell_averages(total / count, 20 * scale), atol=1e-5)


def test_overlap_of_looks_without_tiles_is_refused_without_talk_of_one_pass(network):
    with pytest.raises(S2WrapError, match=r"overlap=2 has no effect: test_vit sees .* at scale 1 without tiles; leave"):
        s2wrap.wrap(network, (1,), phases=2, overlap=2)


@pytest.mark.parametrize(
    ("scales", "options", "words"),
    [
        ((1,), {"phases": 0}, "phases=0 is no number of looks; use 1, or 2"),
        ((1,), {"phases": 1.5}, "phases=1.5 is no number of looks"),
        (("1:phases=half",), {}, "phases='half' is no number of looks"),
        (
            (1,),
            {"phases": 17},
            "phases=17 at scale 1, but test_vit has 16 pixels from one token to the next; use 1 to 16",
        ),
        (("1:phases=2:phases=3",), {}, "says phases=2 and phases=3; use one of them"),
        (("1:phases=2",), {"phases": 2}, "phases=2 has no effect: every scale has a phases of its own"),
    ],
)
def test_phases_that_cannot_be_are_refused(network, scales, options, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.wrap(network, scales, **options)
    assert words in str(error.value)


def test_a_model_with_phases_is_named_saved_and_traced(network, tmp_path):
    model = s2wrap.load("timm:test_vit@1:phases=2,2", pretrained=False)
    images = torch.randn(1, 3, 320, 320)
    model.save(tmp_path / "saved")
    assert torch.equal(s2wrap.load(tmp_path / "saved")(images).spatial, model(images).spatial)
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images).spatial, model(images).spatial, atol=5e-5, rtol=1e-4)
