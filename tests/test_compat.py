import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from restated import original_forward

from s2wrap import S2WrapError
from s2wrap.compat import forward


def tokens(images):
    """A model of any size: patches of 4 (the rest of a tile is dropped), two leading tokens that see the tile."""
    patches = F.avg_pool2d(images, 4).flatten(2).transpose(1, 2)
    leading = torch.stack([images.mean(dim=(2, 3)), images.amax(dim=(2, 3))], dim=1)
    return torch.cat([leading, patches], dim=1).sin()


def chart(images):
    return F.avg_pool2d(images, 4).cos()


@settings(deadline=None, max_examples=150)
@given(
    side=st.integers(8, 40),
    batch=st.integers(1, 3),
    sizes=st.lists(st.integers(8, 70), min_size=1, max_size=4),
    scales=st.lists(st.sampled_from([0.5, 0.75, 1, 1.3, 1.5, 2, 2.5, 3]), min_size=1, max_size=3),
    by_size=st.booleans(),
    split=st.one_of(st.none(), st.integers(4, 40)),
    split_forward=st.booleans(),
    shape=st.sampled_from(["bnc", "bchw"]),
    data=st.data(),
)
def test_every_call_that_the_original_accepts(side, batch, sizes, scales, by_size, split, split_forward, shape, data):
    options = {"img_sizes": sizes} if by_size else {"scales": scales}
    count = len(sizes if by_size else scales)
    options["resize_output_to_idx"] = data.draw(st.integers(-count, count - 1))
    options |= {"max_split_size": split, "split_forward": split_forward, "output_shape": shape}
    options["num_prefix_token"] = 2 if shape == "bnc" else 0
    pixels = sizes if by_size else [int(side * scale) for scale in scales]
    tiles = [-(-size // (split or side)) for size in pixels]
    images = torch.randn(batch, 3, side, side)
    model = tokens if shape == "bnc" else chart
    if any(size % n or size // n < 4 for size, n in zip(pixels, tiles, strict=True)):
        if any(size % n for size, n in zip(pixels, tiles, strict=True)):
            with pytest.raises(S2WrapError, match="which do not divide it; use a size of") as error:
                forward(model, images, **options)
            assert str(max(pixels)) in str(error.value) or any(str(size) in str(error.value) for size in pixels)
        return
    ours, theirs = forward(model, images, **options), original_forward(model, images, **options)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_real_model_gives_the_originals_features(vit):
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        for options in (
            {"scales": [1, 2]},
            {"scales": [1, 2, 3], "resize_output_to_idx": -1},
            {"img_sizes": [160, 480]},
        ):
            ours = forward(vit.forward_features, images, num_prefix_token=1, **options)
            theirs = original_forward(vit.forward_features, images, num_prefix_token=1, **options)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_half_precision_stays_half():
    images = torch.rand(1, 3, 16, 16).bfloat16()
    ours = forward(chart, images, scales=[1, 2], output_shape="bchw")
    assert ours.dtype == torch.bfloat16
    theirs = original_forward(chart, images, scales=[1, 2], output_shape="bchw")
    torch.testing.assert_close(ours.float(), theirs.float(), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((1, 3, 16, 20), {"scales": [1]}, "(1, 3, 16, 20); the original takes square images"),
        ((3, 16, 16), {"scales": [1]}, "(3, 16, 16)"),
        ((1, 3, 16, 16), {}, "neither scales nor img_sizes"),
        ((1, 3, 16, 16), {"scales": [1], "output_shape": "bhwc"}, "use 'bnc' or 'bchw'"),
        ((1, 3, 16, 16), {"scales": [1], "output_shape": "bchw", "num_prefix_token": 1}, "a map has none; use 0"),
        ((1, 3, 16, 16), {"img_sizes": [16, 35]}, "use a size of 33 or 36"),
        ((1, 3, 16, 16), {"scales": [1], "resize_output_to_idx": 1}, "names none of 1 scales"),
        ((1, 3, 16, 16), {"scales": [1], "num_prefix_token": 1}, "they are 17, which is no square grid"),
        ((1, 3, 16, 16), {"scales": [1], "output_shape": "bchw"}, "which is not output_shape='bchw'"),
        ((1, 3, 16, 16), {"scales": [0.01]}, "each needs at least 1"),
        ((1, 3, 16, 16), {"scales": [1, float("nan")]}, "each needs at least 1"),
        ((1, 3, 16, 16), {"scales": [1e9]}, "at most 32768"),
        ((1, 3, 16, 16), {"scales": [1], "max_split_size": -32}, "max_split_size=-32"),
    ],
)
def test_where_the_original_asserts_there_is_a_clear_error(shape, options, words):
    with pytest.raises(S2WrapError) as error:
        forward(tokens, torch.rand(*shape), **options)
    assert words in str(error.value)


def test_integer_images_are_refused():
    with pytest.raises(S2WrapError, match="give normalised floating images"):
        forward(chart, torch.zeros(1, 3, 16, 16, dtype=torch.uint8), scales=[1])
