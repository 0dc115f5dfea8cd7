import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from s2wrap import Features, S2WrapError
from s2wrap.geometry import Geometry
from s2wrap.plan import Axis, Plan, ScalePlan
from s2wrap.upsample import upsample, upsample_strips
from s2wrap.view import View


def features_of(*maps, image_hw=(45, 67)):
    """Features of an image of that size, looked at in one tile."""
    axis = Axis(size=64, tile=64, starts=(0,), content=64)
    geometry = tuple(Geometry(tuple(spatial.shape[2:]), image_hw) for spatial in maps)
    ran = (torch.ones(len(maps[0]), 1, 1, dtype=torch.bool),)
    view = View(Plan(image_hw, (ScalePlan(axis, axis),)), geometry, (), ran)
    return Features(maps, tuple(torch.zeros(len(spatial), 0, 1) for spatial in maps), view)


@pytest.mark.parametrize("size", [(45, 67), (4, 6), (3, 100), (1, 1), (16, 5)])
def test_maps_become_what_torch_interpolates(size):
    spatial = torch.randn(2, 3, 4, 6)
    expected = F.interpolate(spatial, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(spatial, size), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("height", [1, 7, 45, 100, None])
def test_strips_follow_each_other_and_make_the_whole(height):
    features = features_of(torch.randn(2, 3, 4, 6))
    parts = list(features.upsample_strips(height=height))
    tops = [top for top, _ in parts]
    assert tops == list(range(0, 45, height or 45))
    torch.testing.assert_close(torch.cat([strip for _, strip in parts], dim=2), features.upsample(), atol=1e-6, rtol=0)


def test_the_image_s_own_size_is_the_default_and_any_other_may_be_asked_for():
    features = features_of(torch.randn(2, 3, 4, 6))
    assert features.upsample().shape == (2, 3, 45, 67)
    assert features.upsample((10, 9)).shape == (2, 3, 10, 9)
    assert [strip.shape[2:] for _, strip in features.upsample_strips((10, 9), height=6)] == [(6, 9), (4, 9)]


def test_a_linear_ramp_stays_one_between_the_outermost_centres():
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    row = upsample(ramp, (6, 40))[0, 0, 0]
    expected = ((torch.arange(40) + 0.5) / 10 - 0.5).clamp(0, 3)
    torch.testing.assert_close(row, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_rounded_once_and_types_are_kept(dtype):
    spatial = torch.randn(1, 2, 4, 6).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = F.interpolate(spatial.to(wide), size=(20, 30), mode="bilinear", align_corners=False).to(dtype)
    torch.testing.assert_close(upsample(spatial, (20, 30)), expected)


def test_autocast_does_not_blur_the_weights():
    spatial = torch.randn(1, 2, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found = upsample(spatial, (20, 30))
    torch.testing.assert_close(found, upsample(spatial, (20, 30)), atol=0, rtol=0)


def test_gradients_flow_as_through_torch():
    ours, theirs = (torch.arange(24.0).reshape(1, 1, 4, 6).requires_grad_() for _ in range(2))
    weights = torch.randn(1, 1, 9, 11)
    (upsample(ours, (9, 11)) * weights).sum().backward()
    (F.interpolate(theirs, size=(9, 11), mode="bilinear", align_corners=False) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=0)


def test_a_large_result_is_made_only_where_its_size_is_given():
    features = features_of(torch.zeros(1, 2560, 2, 2), image_hw=(400, 600))
    message = r"1×2560 channels at 400×600 pixels take 2.29 GiB, more than the 512 MiB .*upsample_strips.*\(400, 600\)"
    with pytest.raises(S2WrapError, match=message):
        features.upsample()
    assert features.upsample((40, 60)).shape == (1, 2560, 40, 60)
    top, strip = next(features.upsample_strips())
    assert (top, strip.shape) == (0, (1, 2560, 5, 600))
    assert strip.nbytes <= 32 << 20


def test_a_map_is_chosen_where_there_are_several():
    coarse, fine = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 4, 4)
    features = features_of(coarse, fine)
    assert torch.equal(features.upsample(index=1), upsample(fine, (45, 67)))
    assert torch.equal(next(features.upsample_strips(index=0))[1], upsample(coarse, (45, 67)))
    with pytest.raises(S2WrapError, match="hold 2 maps"):
        features.upsample()


def test_without_a_view_the_size_must_be_given():
    features = Features((torch.randn(1, 3, 2, 2),), (torch.zeros(1, 0, 3),))
    assert features.upsample((8, 8)).shape == (1, 3, 8, 8)
    for call in (features.upsample, features.upsample_strips):
        with pytest.raises(S2WrapError, match=r"no image size \(give size=\)"):
            call()


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (True, 5)])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(S2WrapError, match="is no size of a result"):
        upsample(torch.zeros(1, 1, 2, 2), size)


@pytest.mark.parametrize("height", [0, -1, True])
def test_an_impossible_height_is_refused_before_the_first_strip(height):
    with pytest.raises(S2WrapError, match="is no height of a strip"):
        upsample_strips(torch.zeros(1, 1, 2, 2), (5, 5), height)
