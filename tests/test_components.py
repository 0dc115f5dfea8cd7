import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from s2wrap.components import likeness, principal_components
from s2wrap.errors import S2WrapError


def cells_of(spatial):
    """The cells of a map (b, c, h, w), row by row, as loops collect them."""
    b, _, h, w = spatial.shape
    return np.array([spatial[n, :, i, j].numpy() for n in range(b) for i in range(h) for j in range(w)], np.float64)


def test_colours_are_the_components_that_sklearn_has_of_maps_with_equal_weight():
    maps = [torch.randn(2, 6, 3, 4) * torch.arange(1, 7)[:, None, None], torch.randn(1, 6, 4, 12) + 1]
    coarse, fine = map(cells_of, maps)
    pca = PCA(3, svd_solver="full").fit(np.concatenate([np.repeat(coarse, len(fine) // len(coarse), axis=0), fine]))
    signs = np.sign(pca.components_[range(3), np.abs(pca.components_).argmax(axis=1)])
    expected = [pca.transform(cells) * signs for cells in (coarse, fine)]
    low, high = np.percentile(np.concatenate(expected), (2, 98), axis=0)
    for colours, values, spatial in zip(principal_components(maps), expected, maps, strict=True):
        assert colours.shape == (spatial.shape[0], *spatial.shape[2:], 3)
        np.testing.assert_allclose(colours.reshape(-1, 3), np.clip((values - low) / (high - low), 0, 1), atol=1e-5)


def test_equal_features_have_equal_colours_in_every_map():
    spatial = torch.randn(1, 16, 6, 6)
    whole, part = principal_components([spatial, spatial[:, :, 1:4, 2:]])
    np.testing.assert_allclose(whole[:, 1:4, 2:], part, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (1, 2, 3, 3), (1, 8, 1, 1), (1, 8, 1, 2)])
def test_few_channels_or_cells_have_colours_too(shape):
    for spatial in (torch.randn(shape), torch.ones(shape)):
        (colours,) = principal_components([spatial])
        assert colours.shape == (1, *shape[2:], 3)
        assert (colours >= 0).all()
        assert (colours <= 1).all()


def test_half_precision_is_computed_in_full():
    spatial = torch.randn(1, 32, 5, 5).half()
    for one, other in zip(principal_components([spatial]), principal_components([spatial.double()]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(S2WrapError, match="not finite"):
        principal_components([torch.full((1, 4, 2, 2), torch.nan)])


def test_likeness_is_the_cosine_that_a_loop_computes():
    spatial, vectors = torch.randn(2, 5, 3, 4), torch.randn(3, 5)
    expected = np.zeros((2, 3, 4))
    for n, i, j in np.ndindex(2, 3, 4):
        cell = spatial[n, :, i, j].numpy()
        cosines = [cell @ v / np.linalg.norm(cell) / np.linalg.norm(v) for v in vectors.numpy()]
        expected[n, i, j] = max(cosines)
    np.testing.assert_allclose(likeness(spatial, vectors), expected, atol=1e-6)
    assert likeness(spatial, spatial[1, :, 2, 3])[1, 2, 3] == pytest.approx(1)
