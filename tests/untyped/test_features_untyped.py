"""What the checks of types in other tests would get in the way of: tracers, and values of the wrong type."""

import pytest
import torch
from torch import nn

import s2wrap
from s2wrap import Features, S2WrapError
from s2wrap.geometry import Geometry
from s2wrap.guided import guided_upsample
from s2wrap.upsample import upsample, upsample_strips

MAP = torch.zeros(1, 1, 2, 2)


def traced(model, images, how):
    if how == "compile":
        return torch.compile(model, backend="eager", fullgraph=True)
    return torch.export.export(model, (images,), strict=how == "strict export").module()


@pytest.mark.parametrize("how", ["compile", "export", "strict export"])
def test_traced_models_return_features_without_a_view(how):
    model = s2wrap.wrap(nn.AvgPool2d(16), (1, 2), image_size=64, fuse="pyramid")
    images = torch.rand(2, 3, 100, 80)
    expected, found = model(images), traced(model, images, how)(images)
    assert isinstance(found, Features)
    assert found.view is None
    for ours, theirs in zip(found.maps, expected.maps, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(5,), 5, (5.5, 5), "5x5", None])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(S2WrapError, match="is no size of a result"):
        upsample(MAP, size)


@pytest.mark.parametrize("height", [1.5, "3"])
def test_a_height_that_is_none_is_refused(height):
    with pytest.raises(S2WrapError, match="is no height of a strip"):
        upsample_strips(MAP, (5, 5), height)


@pytest.mark.parametrize("point", [5, (1, 2, 3), "ab", None])
def test_a_point_that_is_none_is_refused(point):
    with pytest.raises(S2WrapError, match="no shape of points|are no points"):
        Geometry((4, 8), (100, 400)).to_cells(point)


@pytest.mark.parametrize("index", ["first", None, 1.5, ["a"], (0, slice(None))])
def test_an_index_that_is_none_is_refused(index):
    with pytest.raises(S2WrapError, match="a batch of 1 images has no images"):
        Features((MAP,), (MAP[0],))[index]


@pytest.mark.parametrize("width", ["wide", None, torch.zeros(2)])
def test_a_width_of_a_gaussian_that_is_no_number_is_refused(width):
    with pytest.raises(S2WrapError, match="is no width of a Gaussian"):
        guided_upsample(torch.zeros(1, 3, 4, 4), MAP, (4, 4), colour=width)
