"""Where cells lie on the original image: pure laws, and an image whose pixels hold their own coordinates."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import s2wrap
from s2wrap import S2WrapError
from s2wrap.geometry import Geometry

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))
IMAGES = st.tuples(st.integers(2, 3000), st.integers(2, 3000))
SHARES = st.tuples(st.floats(0, 1), st.floats(0, 1))


class Means(nn.Module):
    """The mean of every patch of 8 pixels, for images of any size: a cell's value is the centre of what it saw."""

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 8)


def coordinates(height, width):
    """An image (1, 3, height, width) of which every pixel holds its own centre, down and across."""
    down, across = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([down, across, torch.zeros_like(down)])[None]


def errors(features, number=0):
    """How far the coordinates in each cell of a map are from where its geometry says, in cells: (looks, 2, h, w)."""
    geometry, spatial = features.geometry[number], features.maps[number]
    rows, columns = geometry.grid
    cells = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1)
    expected = geometry.to_pixels(cells).permute(2, 0, 1)
    values = spatial[0].double().unflatten(0, (-1, 3))[:, :2]
    return (values - expected).abs() / torch.tensor(geometry.stride)[:, None, None]


@pytest.mark.parametrize("image_hw", [(128, 128), (101, 157), (333, 90), (64, 200)])
@pytest.mark.parametrize(
    ("scales", "options"),
    [
        ((2,), {}),
        ((1, 2), {}),
        ((1, 2), {"fuse": "pyramid"}),
        ((2,), {"fit": "aspect"}),
        ((3,), {"overlap": 3}),
        ((2,), {"whole": True}),
        ((2,), {"whole": True, "fit": "aspect"}),
    ],
)
def test_a_cell_holds_the_coordinates_that_its_geometry_says(scales, options, image_hw):
    """Antialiased resizing keeps a ramp but for a trace; at the border, where its kernel is cut off, a little less."""
    features = s2wrap.wrap(Means(), scales, image_size=64, **options)(coordinates(*image_hw))
    for number in range(len(features.maps)):
        found = errors(features, number)
        assert found[:, :, 1:-1, 1:-1].max() < 0.001
        assert found.max() < 0.005


@pytest.mark.parametrize("image_hw", [(128, 128), (101, 157), (64, 200)])
@pytest.mark.parametrize("options", [{}, {"fuse": "pyramid"}, {"fit": "aspect"}, {"overlap": 3}])
def test_cells_of_phases_lie_where_their_geometry_says(options, image_hw):
    """Their grid divides a resized image that is half a patch larger: cells cut tokens a little."""
    features = s2wrap.wrap(Means(), (2,), image_size=64, phases=2, **options)(coordinates(*image_hw))
    found = errors(features)
    assert found[:, :, 2:-2, 2:-2].max() < 0.03
    assert found.max() < 1 / 2  # a cell at an edge was seen by one of two coverings


@pytest.mark.parametrize("image_hw", [(101, 157), (333, 90), (64, 200)])
@pytest.mark.parametrize("options", [{}, {"whole": True}, {"overlap": 3}])
def test_padding_moves_no_cell(options, image_hw):
    """Cells divide the image and not the padding, so they cut tokens.

    A token that is cut at a share t counts as its centre, which is (1 - t) / 2 from the centre of that part: a cell
    of about a token is off by t · (1 - t) / 2, at most an eighth.
    """
    features = s2wrap.wrap(Means(), (2,), image_size=64, fit="pad", **options)(coordinates(*image_hw))
    assert errors(features).max() < 1 / 8


def test_padding_of_whole_patches_moves_nothing_at_all():
    features = s2wrap.wrap(Means(), (1,), image_size=64, fit="pad")(coordinates(160, 320))
    assert features.plan.scales[0].padding_hw == (32, 0)
    assert features.geometry[0].grid == (4, 8)
    assert errors(features).max() < 0.005


def test_every_map_names_its_scale_or_layer():
    images = torch.rand(1, 3, 100, 150)
    (fused,) = s2wrap.wrap(Means(), (1, 2), image_size=64)(images).geometry
    assert fused == Geometry((8, 8), (100, 150))
    pyramid = s2wrap.wrap(Means(), (2, 1), image_size=64, fuse="pyramid")(images).geometry
    assert pyramid == (Geometry((16, 16), (100, 150), scale=0), Geometry((8, 8), (100, 150), scale=1))


@settings(deadline=None)
@given(SIZES, IMAGES, SHARES)
def test_pixels_and_cells_are_inverses(grid, image_hw, shares):
    geometry = Geometry(grid, image_hw)
    pixel = (shares[0] * image_hw[0], shares[1] * image_hw[1])
    assert geometry.to_pixels(geometry.to_cells(pixel)) == pytest.approx(pixel, abs=1e-9, rel=1e-12)
    cell = (shares[0] * grid[0] - 0.5, shares[1] * grid[1] - 0.5)
    assert geometry.to_cells(geometry.to_pixels(cell)) == pytest.approx(cell, abs=1e-9, rel=1e-12)


@settings(deadline=None)
@given(SIZES, IMAGES)
def test_the_cell_of_a_cells_centre_is_itself_and_strides_lead_to_it(grid, image_hw):
    geometry = Geometry(grid, image_hw)
    corner = (grid[0] - 1, grid[1] - 1)
    for cell in ((0, 0), corner):
        assert geometry.cell_at(geometry.to_pixels(cell)) == cell
    stepped = tuple(o + s * n for o, s, n in zip(geometry.offset, geometry.stride, corner, strict=True))
    assert geometry.to_pixels(corner) == pytest.approx(stepped)
    assert geometry.cell_at((0, 0)) == (0, 0)
    assert geometry.cell_at(image_hw) == corner


@pytest.mark.parametrize(("grid", "image_hw"), [((5, 7), (100, 157)), ((16, 16), (333, 90)), ((9, 4), (5, 3))])
def test_every_pixel_lies_in_the_cell_that_spans_it(grid, image_hw):
    geometry = Geometry(grid, image_hw)
    down, across = np.arange(image_hw[0]) + 0.5, np.arange(image_hw[1]) + 0.5
    pixels = np.stack(np.meshgrid(down, across, indexing="ij"), axis=-1)
    found = geometry.cell_at(pixels)
    edges = [np.linspace(0, pixels_, cells + 1) for pixels_, cells in zip(image_hw, grid, strict=True)]
    assert (found[:, 0, 0] == np.searchsorted(edges[0], down, side="right") - 1).all()
    assert (found[0, :, 1] == np.searchsorted(edges[1], across, side="right") - 1).all()


def test_points_come_back_as_the_kind_they_were():
    geometry = Geometry((4, 8), (100, 400))
    assert geometry.to_pixels((1, 2)) == (37.5, 125.0)
    assert all(type(value) is float for value in geometry.to_pixels((1, 2)))
    assert all(type(value) is int for value in geometry.cell_at((37.5, 125)))
    array = geometry.to_pixels(np.array([[1, 2], [0, 0]]))
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [[37.5, 125], [12.5, 25]]
    tensor = torch.tensor([[1, 2], [0, 0]])
    assert geometry.to_pixels(tensor).tolist() == array.tolist()
    assert geometry.to_pixels(tensor.half()).dtype == torch.float32
    assert geometry.cell_at(torch.tensor(array)).tolist() == tensor.tolist()
    assert geometry.to_cells(array[::-1]).tolist() == [[0, 0], [1, 2]]


@pytest.mark.parametrize("method", ["to_cells", "cell_at"])
@pytest.mark.parametrize("point", [(100.5, 3), (-0.1, 3), (3, 401), (float("nan"), 3)])
def test_a_pixel_outside_the_image_is_refused_with_its_values(method, point):
    message = (
        rf"pixels of a 4×8 map of 100×400 pixels: \({point[0]:g}, {point[1]:g}\) outside; use 0…100 down and 0…400"
    )
    for points in (point, np.array([[1, 1], point]), torch.tensor([[1, 1], point], dtype=torch.float64)):
        with pytest.raises(S2WrapError, match=message):
            getattr(Geometry((4, 8), (100, 400)), method)(points)


def test_a_cell_outside_the_map_is_refused_with_its_values():
    geometry = Geometry((4, 8), (100, 400), scale=1)
    with pytest.raises(S2WrapError, match=r"scale 1: \(4, 0\) outside; use -0.5…3.5 down and -0.5…7.5 across"):
        geometry.to_pixels((4, 0))
    with pytest.raises(S2WrapError, match=r"\(9, 9\), \(9, 9\), \(9, 9\) and 2 more outside"):
        geometry.to_pixels(np.full((5, 2), 9))
    with pytest.raises(S2WrapError, match=r"\(3,\) is no shape of points"):
        geometry.to_pixels(np.zeros(3))


def test_geometries_are_values():
    assert len({Geometry((4, 8), (100, 400)), Geometry((4, 8), (100, 400)), Geometry((4, 8), (100, 400), layer=0)}) == 2
