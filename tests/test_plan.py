import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import s2wrap
from s2wrap import S2WrapError, scales
from s2wrap.plan import plan_image, tile_axis
from s2wrap.scales import ResolvedScale, Scale, parse_scale, whole_number


def plan_for(image_hw, *sizes, tile_hw=(224, 224), patch_hw=(14, 14), **options):
    scales = [ResolvedScale(Scale(size), Scale(size).box_hw(tile_hw), "stretch", False, None) for size in sizes]
    return plan_image(image_hw, scales, tile_hw=tile_hw, patch_hw=patch_hw, **options)


@given(st.integers(1, 400), st.integers(0, 4000))
def test_tiles_are_full_cover_every_pixel_and_are_as_few_as_can_be(tile, more):
    axis = tile_axis(tile + more, tile)
    covered = set()
    for start in axis.starts:
        assert 0 <= start <= axis.size - tile
        covered |= set(range(start, start + tile))
    assert covered == set(range(axis.size))
    assert len(axis.starts) == math.ceil(axis.size / tile)


@given(st.integers(1, 400), st.integers(0, 4000))
def test_owned_stretches_lie_in_their_tiles_and_meet_without_gap(tile, more):
    axis = tile_axis(tile + more, tile)
    end = 0
    for start, (low, high) in zip(axis.starts, axis.owned, strict=True):
        assert low == end
        assert start <= low < high <= start + tile
        end = high
    assert end == axis.size


def test_only_the_last_tile_is_shifted():
    assert tile_axis(336, 224).starts == (0, 112)
    assert tile_axis(600, 224).starts == (0, 224, 376)
    assert tile_axis(672, 224).starts == (0, 224, 448)


def test_shares_of_a_scale_sum_to_one():
    plan = plan_for((100, 80), 1, 1.6, tile_hw=(20, 30), patch_hw=(5, 5))
    for scale in plan.scales:
        assert sum(scale.shares) == pytest.approx(1)
        assert len(scale.shares) == len(scale.origins)
    assert plan.num_tiles == 1 + 4


@pytest.mark.parametrize(
    ("scale", "size"),
    [(1, (224, 320)), (2, (448, 640)), (1.5, (336, 480)), ("2", (448, 640)), (32, (7168, 10240)), ("1.25", (280, 400))],
)
def test_multiples_keep_the_aspect_of_the_tile(scale, size):
    assert Scale(scale).box_hw((224, 320)) == size


def test_sides_in_pixels_are_taken_as_they_are():
    assert Scale("500px").box_hw((224, 224)) == (500, 500)
    assert Scale(" 224px ").box_hw((224, 224)) == (224, 224)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (0, "leaves no pixel of the image; use a scale above 0"),
        (-1, "above 0"),
        (1000, "the largest scale is 32; for a side of 1000 pixels write '1000px'"),
        ("99999999999px", "the largest scale is 32"),
        (1e30, "the largest scale is 32"),
        (10**400, "no scale"),
        (float("nan"), "no scale"),
        (float("inf"), "no scale"),
        (True, "no scale"),
        ("big", "use a multiple of the backbone's own size such as 2, or a side in pixels such as '448px'"),
    ],
)
def test_impossible_scales_say_what_would_work(scale, words):
    with pytest.raises(S2WrapError) as error:
        Scale(scale).box_hw((224, 224))
    assert words in str(error.value)


def test_a_side_in_pixels_needs_a_square_tile():
    with pytest.raises(S2WrapError, match="use a multiple such as 2"):
        Scale("448px").box_hw((224, 320))


@pytest.mark.parametrize("image_hw", [(0, 0), (1, 500), (500, 1), (0, 10)])
def test_images_too_small_to_resize_are_refused(image_hw):
    with pytest.raises(S2WrapError, match=f"{image_hw[0]}×{image_hw[1]} pixels"):
        plan_for(image_hw, 1)


@pytest.mark.parametrize("number", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_any_library_are_ints(number):
    assert whole_number(number) == 3
    assert type(whole_number(number)) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, "3", None, (3,)])
def test_what_is_no_whole_number_is_none(value):
    assert whole_number(value) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3:whole:tiled", "scale '3:whole:tiled' says whole and tiled; use one of them"),
        ("3:pad:aspect", "scale '3:pad:aspect' says pad and aspect; use one of them"),
        ("3:aspect:whole:stretch", "says aspect and stretch"),
    ],
)
def test_words_of_a_scale_that_contradict_each_other_are_refused(text, words):
    with pytest.raises(S2WrapError) as error:
        parse_scale(text)
    assert words in str(error.value)


def test_a_scale_is_parsed_once(monkeypatch):
    """Of a model's three scales each is made, and its size read, one time: by the spec."""
    read, original = [], scales._read_size
    monkeypatch.setattr(scales, "_read_size", lambda size: read.append(size) or original(size))
    model = s2wrap.load("timm:test_vit@1,2,3", pretrained=False)
    model(torch.zeros(1, 3, 64, 64))
    assert read == ["1", "2", "3"]
