import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

import s2wrap
from s2wrap import S2WrapError, dynamic_s2, merge_blocks, pixel_unshuffle, split_blocks


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_merging_undoes_splitting(batch, rows, cols, side):
    spatial = torch.randn(batch, 2, rows * side, cols * side)
    blocks = split_blocks(spatial, (rows, cols))
    assert blocks.shape == (batch * rows * cols, 2, side, side)
    torch.testing.assert_close(blocks[cols - 1], spatial[0, :, :side, -side:], atol=0, rtol=0)  # end of the first row
    torch.testing.assert_close(merge_blocks(blocks, (rows, cols)), spatial, atol=0, rtol=0)


def test_pixel_unshuffle_is_a_plain_loop_with_zeros_where_nothing_is():
    for factor, side in ((2, 4), (2, 5), (3, 32), (1, 3)):
        spatial = torch.randn(2, 3, side, side + 1)
        found = pixel_unshuffle(spatial, factor)
        height, width = -(-side // factor), -(-(side + 1) // factor)
        assert found.shape == (2, factor**2 * 3, height, width)
        for row in range(height):
            for col in range(width):
                cell = []
                for y in range(row * factor, (row + 1) * factor):
                    for x in range(col * factor, (col + 1) * factor):
                        inside = y < side and x < side + 1
                        cell.append(spatial[:, :, y, x] if inside else torch.zeros(2, 3))
                torch.testing.assert_close(found[:, :, row, col], torch.cat(cell, dim=1), atol=0, rtol=0)


def test_32_tokens_a_side_become_16_and_11():
    assert pixel_unshuffle(torch.zeros(1, 8, 32, 32), 2).shape == (1, 32, 16, 16)
    assert pixel_unshuffle(torch.zeros(1, 8, 32, 32), 3).shape == (1, 72, 11, 11)


def test_dynamic_s2_from_pictures_to_a_projectors_tokens(vit):
    """Different shapes in one list; what every image's own pass gives, and blocks as square as a tile's map."""
    options = dynamic_s2((160, 320, 480))
    model = s2wrap.wrap(vit, **options)
    images = [torch.randn(3, 270, 480), torch.randn(3, 480, 270), torch.randn(3, 100, 100)]
    answers = model.encode(images)
    assert [features.block_size for features in answers] == [(3, 4), (5, 2), (3, 3)]
    assert [features.plan.num_tiles for features in answers] == [1 + 4 + 12, 1 + 4 + 10, 1 + 4 + 9]
    for image, features in zip(images, answers, strict=True):
        rows, cols = features.block_size
        assert features.spatial.shape == (1, 3 * 64, rows * 10, cols * 10)
        torch.testing.assert_close(features.spatial, model(image[None]).spatial, atol=5e-5, rtol=0)
        blocks = split_blocks(features.spatial, features.block_size)
        assert blocks.shape == (rows * cols, 192, 10, 10)
        tokens = pixel_unshuffle(blocks, 2)
        assert merge_blocks(tokens, features.block_size).shape == (1, 4 * 192, rows * 5, cols * 5)


def test_dynamic_s2s_channels_are_those_of_a_plain_loop(vit):
    """The last scale is the stitched map of its tiles, the first the smooth enlargement of one."""
    import torch.nn.functional as F  # noqa: N812

    from s2wrap.resample import resize

    image = torch.randn(1, 3, 200, 400)
    features = s2wrap.wrap(vit, **dynamic_s2((160, 320, 480)))(image)
    rows, cols = features.block_size
    assert (rows, cols) == (2, 5)

    def tokens(tile):
        return vit.forward_features(tile)[:, 1:].transpose(1, 2).unflatten(2, (10, 10))

    resized = resize(image, (rows * 160, cols * 160))
    lines = [
        torch.cat([tokens(resized[:, :, y : y + 160, x : x + 160]) for x in range(0, cols * 160, 160)], dim=3)
        for y in range(0, rows * 160, 160)
    ]
    torch.testing.assert_close(features.spatial[:, 128:], torch.cat(lines, dim=2), atol=5e-5, rtol=0)
    small = F.interpolate(tokens(resize(image, (160, 160))), size=(20, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features.spatial[:, :64], small, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dynamic_s2(448), "sizes=448 are no sides in pixels"),
        (lambda: dynamic_s2((0, 448)), "are no sides in pixels"),
        (lambda: dynamic_s2((448, 900)), "increasing multiples of the first"),
        (lambda: dynamic_s2((448, 896, 1792), max_tiles=12), "1792 pixels make 16 tiles of 448; use 16 or more"),
        (lambda: split_blocks(torch.zeros(1, 2, 5, 4), (2, 2)), "a 5×4 map cannot be cut into 2×2 equal blocks"),
        (lambda: merge_blocks(torch.zeros(5, 2, 4, 4), (2, 2)), "5 blocks are no 2×2"),
        (lambda: pixel_unshuffle(torch.zeros(1, 2, 4, 4), 0), "use 1 or more"),
        (
            lambda: s2wrap.wrap(timm.create_model("test_vit"), **dynamic_s2()),
            "a backbone built at 448 pixels (image_size=448",
        ),
        (lambda: dynamic_s2(max_tiles=True), "max_tiles=True, but 1344 pixels make 9 tiles of 448; use 9 or more"),
        (lambda: split_blocks(torch.zeros(1, 2, 4, 4), (2, 0)), "block_size=(2, 0) is none; use (rows, columns)"),
    ],
)
def test_wrong_input_gets_a_clear_error(call, words):
    with pytest.raises(S2WrapError) as error:
        call()
    assert words in str(error.value)
