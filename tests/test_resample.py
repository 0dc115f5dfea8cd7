import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from s2wrap.options import Blend
from s2wrap.plan import Axis, tile_axis
from s2wrap.resample import adaptive_matrix, merge_matrix, resize, resize_matrix

SIDES = st.integers(2, 60)


def apply(rows, image, cols):
    return torch.from_numpy(rows) @ image @ torch.from_numpy(cols).T


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["bicubic", "bilinear"]), st.booleans())
def test_matrices_resize_as_torch_does(height, width, new_h, new_w, interpolation, antialias):
    image = torch.randn(1, 3, height, width, dtype=torch.float64)
    rows = resize_matrix(height, new_h, interpolation=interpolation, antialias=antialias)
    cols = resize_matrix(width, new_w, interpolation=interpolation, antialias=antialias)
    theirs = F.interpolate(image, size=(new_h, new_w), mode=interpolation, antialias=antialias, align_corners=False)
    torch.testing.assert_close(apply(rows, image, cols), theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("old", "new"), [((90, 70), (30, 41)), ((40, 50), (97, 64))])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_is_that_of_pil(old, new, interpolation):
    image = np.random.default_rng(0).random(old, dtype=np.float32)
    theirs = Image.fromarray(image).resize(new[::-1], getattr(Image.Resampling, interpolation.upper()))
    ours = resize(torch.from_numpy(image)[None, None], new, interpolation=interpolation)[0, 0]
    np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), atol=5e-6)


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from(["bicubic", "bilinear"]), st.booleans())
def test_a_constant_image_stays_constant(old, new, interpolation, antialias):
    matrix = resize_matrix(old, new, interpolation=interpolation, antialias=antialias)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)


def test_shrinking_removes_what_the_new_size_cannot_hold():
    grating = torch.cos(torch.arange(1008) * torch.pi * 0.9).expand(1, 1, 1008, 1008)
    plain = resize(grating, (336, 336), antialias=False)
    assert resize(grating, (336, 336)).std() < 0.05 * plain.std()


def test_half_precision_is_widened_and_double_kept():
    image = torch.rand(1, 3, 20, 20)
    assert resize(image.half(), (10, 10)).dtype == torch.float32
    assert resize(image.double(), (10, 10)).dtype == torch.float64
    torch.testing.assert_close(resize(image, (20, 20)), image, atol=0, rtol=0)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 40))
def test_adaptive_matrix_is_torchs_area_interpolation(tiles, tokens, cells):
    line = torch.randn(tiles * tokens, dtype=torch.float64)
    matrix = adaptive_matrix(tiles, tokens, cells)  # (tiles, cells, tokens)
    ours = np.einsum("kct,kt->c", matrix, line.numpy().reshape(tiles, tokens))
    theirs = F.interpolate(line[None, None], size=cells, mode="area")[0, 0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4))
def test_merge_matrix_is_plain_pooling_where_everything_divides(tiles, tokens, patch, ratio):
    axis = tile_axis(tiles * tokens * patch, tokens * patch)
    cells = tiles * tokens
    for cells in (tiles * tokens, tiles * tokens * ratio):
        expected = adaptive_matrix(tiles, tokens, cells)
        np.testing.assert_allclose(merge_matrix(axis, tokens=tokens, patch=patch, cells=cells), expected, atol=1e-12)


def window(blend, tokens, before, after):
    """The weight of each token of a tile that shares so many tokens with its neighbours, restated."""
    if blend == "triangular":
        return [min(i + 0.5, tokens - i - 0.5) for i in range(tokens)]
    if blend == "gaussian":
        return [math.exp(-((i + 0.5 - tokens / 2) ** 2) / (2 * (tokens / 8) ** 2)) for i in range(tokens)]
    if blend == "smooth":

        def step(x):
            return 3 * x**2 - 2 * x**3 if x < 1 else 1.0

        rise = [step((i + 0.5) / before) if before else 1.0 for i in range(tokens)]
        fall = [step((tokens - i - 0.5) / after) if after else 1.0 for i in range(tokens)]
        return [r * f for r, f in zip(rise, fall, strict=True)]
    return [1.0] * tokens


def pixel_loop(axis: Axis, tokens: int, patch: int, cells: int, blend: str) -> np.ndarray:
    """Walk over the pixels of every cell, in 1/cells steps, and let the tokens that saw each share it."""
    matrix = np.zeros((len(axis.starts), cells, tokens))
    overlaps = [axis.starts[i] + axis.tile - axis.starts[i + 1] for i in range(len(axis.starts) - 1)]
    windows = [
        window(blend, tokens, before / patch, after / patch)
        for before, after in zip([0, *overlaps], [*overlaps, 0], strict=True)
    ]
    for step in range(axis.content * cells):  # each pixel in `cells` equal parts: every part lies in one cell
        cell, pixel = step // axis.content, step // cells
        shares = {}
        for k, (start, (low, high)) in enumerate(zip(axis.starts, axis.owned, strict=True)):
            token = (pixel - start) // patch
            if pixel >= start and token < tokens and (blend != "trim" or low <= pixel < high):
                shares[k, token] = windows[k][token]
        for (k, token), share in shares.items():
            matrix[k, cell, token] += share / sum(shares.values())
    return matrix / matrix.sum(axis=(0, 2))[:, None]


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(get_args(Blend)),
    st.integers(2, 5),
    st.integers(2, 6),
    st.integers(0, 4),
    st.integers(-10, 40),
    st.integers(0, 3),
    st.data(),
)
def test_merge_matrix_averages_the_pixels_that_tokens_saw(blend, tokens, patch, rest, more, overlap, data):
    """With overlap, padding (`more` below 0), and patches that do not divide the tile."""
    rest = min(rest, patch - 1)  # a patch that does not divide the tile leaves a rest unseen
    tile = tokens * patch + rest
    axis = tile_axis(max(patch, tile + more), tile, min(overlap, tokens - 1) * patch, patch)
    cells = data.draw(st.integers(1, max(1, axis.content // patch - 1)))
    expected = pixel_loop(axis, tokens, patch, cells, blend)
    found = merge_matrix(axis, tokens=tokens, patch=patch, cells=cells, blend=blend)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_cell_of_unseen_pixels_takes_the_token_beside_it():
    axis = Axis(
        size=10, tile=5, starts=(0, 5), content=10
    )  # one token of 3 pixels a tile: pixels 3, 4, 8 and 9 are unseen
    matrix = merge_matrix(axis, tokens=1, patch=3, cells=10)
    assert matrix[:, :, 0].T.tolist() == [[1, 0]] * 5 + [[0, 1]] * 5
