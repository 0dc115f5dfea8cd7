import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from s2wrap import Features, S2WrapError
from s2wrap.fusion import fuse_scales, merge_matrices, merge_tiles
from s2wrap.options import Options
from s2wrap.plan import ScalePlan, tile_axis
from s2wrap.resample import merge_matrix


def merge_for(rows, cols, tokens, grid_hw):
    scale = ScalePlan(tile_axis(rows * tokens, tokens), tile_axis(cols * tokens, tokens))
    return merge_matrices(
        merge_matrix(scale.rows, tokens=tokens, patch=1, cells=grid_hw[0]),
        merge_matrix(scale.cols, tokens=tokens, patch=1, cells=grid_hw[1]),
        scale.shares,
    )


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.data())
def test_streamed_merge_is_stitch_and_pool(rows, cols, tokens, batch, data):
    """The stitched map is built by a loop, and pooled by torch."""
    spatial = torch.randn(rows * cols * batch, 5, tokens, tokens)
    prefix = torch.randn(rows * cols * batch, 2, 5)
    stitched = torch.zeros(batch, 5, rows * tokens, cols * tokens)
    for index, tile in enumerate(spatial.split(batch)):
        top, left = index // cols * tokens, index % cols * tokens
        stitched[:, :, top : top + tokens, left : left + tokens] = tile
    matrices = merge_for(rows, cols, tokens, (tokens, tokens))
    total, prefix_total, first = 0, 0, 0
    while first < rows * cols:  # in parts of any size
        count = data.draw(st.integers(1, rows * cols - first))
        now = slice(first * batch, (first + count) * batch)
        part = merge_tiles(matrices, spatial[now], prefix[now], first=first, tiles=count)
        total, prefix_total, first = total + part.spatial, prefix_total + part.prefix, first + count
    torch.testing.assert_close(total, F.interpolate(stitched, size=(tokens, tokens), mode="area"), atol=1e-6, rtol=0)
    mean = rearrange(prefix, "(n b) p c -> n b p c", b=batch).mean(dim=0)
    torch.testing.assert_close(prefix_total, mean, atol=1e-6, rtol=0)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_merge_to_the_own_grid_undoes_split(rows, cols, tokens, batch):
    """The laws of a pair: cutting a map into tiles and merging them gives the map, exactly."""
    image = torch.randn(batch, 3, rows * tokens, cols * tokens)
    tiles = rearrange(image, "b c (r h) (q w) -> (r q b) c h w", r=rows, q=cols)
    matrices = merge_for(rows, cols, tokens, (rows * tokens, cols * tokens))
    merged = merge_tiles(matrices, tiles, tiles.new_zeros(len(tiles), 0, 3), first=0, tiles=rows * cols).spatial
    torch.testing.assert_close(merged, image, atol=0, rtol=0)


def levels(*numbers):
    return [Features((torch.full((1, 2, 1, 1), n),), (torch.full((1, 1, 2), n),)) for n in numbers]


@pytest.mark.parametrize(
    ("fuse", "weights", "expected"),
    [
        ("concat", None, [1.0, 1.0, 5.0, 5.0]),
        ("mean", None, [3.0, 3.0]),
        ("sum", None, [6.0, 6.0]),
        ("max", None, [5.0, 5.0]),
        ("weighted", (0.5, -2.0), [-9.5, -9.5]),
    ],
)
def test_fusions_do_what_they_say(fuse, weights, expected):
    fused = fuse_scales(levels(1.0, 5.0), fuse, weights)
    assert fused.spatial.flatten().tolist() == expected
    assert fused.prefix.flatten().tolist() == expected


def test_a_pyramid_keeps_every_scale_and_asks_which():
    fused = fuse_scales(levels(1.0, 5.0), "pyramid")
    assert [level.mean().item() for level in fused.maps] == [1, 5]
    assert [level.mean().item() for level in fused.prefixes] == [1, 5]
    with pytest.raises(S2WrapError, match=r"2 maps, one a scale or layer; use features.maps\[k\]"):
        _ = fused.spatial
    with pytest.raises(S2WrapError, match=r"use features.prefixes\[k\]"):
        _ = fused.prefix


@pytest.mark.parametrize(
    ("fuse", "weights", "words"),
    [
        ("average", None, "use one of concat, mean, sum, max, weighted, detail, pyramid"),
        ("weighted", None, "give 2 numbers"),
        ("mean", (1.0, 2.0), "weights belong to fuse='weighted'"),
        ("weighted", (1.0,), "for 2 scales"),
        ("weighted", (1.0, float("nan")), "finite"),
    ],
)
def test_impossible_fusions_say_what_would_work(fuse, weights, words):
    with pytest.raises(S2WrapError) as error:
        Options((1, 2), fuse=fuse, weights=weights)
    assert words in str(error.value)
