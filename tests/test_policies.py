import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2wrap import S2WrapError
from s2wrap.policies import POLICIES, anyres, choose_grid, closest, internvl, nvila

SIDES = st.integers(2, 3000)


@given(SIDES, SIDES, st.integers(1, 30))
def test_closest_is_symmetric_and_has_the_least_log_aspect_error(height, width, budget):
    rows, cols = closest((height, width), (448, 448), 1, budget)
    assert rows * cols <= budget
    assert closest((width, height), (448, 448), 1, budget) == (cols, rows)
    errors = [
        abs(math.log(width / height) - math.log(c / r)) for r in range(1, budget + 1) for c in range(1, budget // r + 1)
    ]
    assert abs(math.log(width / height) - math.log(cols / rows)) <= min(errors) + 1e-9


def test_closest_takes_the_most_tiles_among_equals():
    assert closest((500, 500), (448, 448), 1, 12) == (3, 3)
    assert closest((500, 1000), (448, 448), 1, 8) == (2, 4)
    assert closest((300, 600), (100, 200), 1, 9) == (3, 3)  # tiles of the image's own shape


def test_nvila_is_that_of_the_published_code_with_its_asymmetry():
    assert nvila((1080, 1920), (448, 448), 9, 12) == (3, 4)
    assert nvila((1920, 1080), (448, 448), 9, 12) == (5, 2)
    assert nvila((100, 100), (448, 448), 9, 12) == (3, 3)  # small images are blown up
    assert nvila((448, 1344 * 3), (448, 448), 9, 12) == (1, 9)


def test_nvila_prefers_the_larger_of_exact_equals_for_large_images_only():
    assert internvl((448, 448), (448, 448), 1, 4) == (1, 1)
    assert internvl((1000, 1000), (448, 448), 1, 4) == (2, 2)  # a million pixels are more than half of 2 × 2 tiles


def test_a_policy_that_finds_no_grid_says_so():
    with pytest.raises(S2WrapError, match="no grid has 16 to 12 tiles; give a max_tiles of at least 16"):
        nvila((1000, 1000), (448, 448), 16, 12)


@given(SIDES, SIDES, st.integers(1, 9))
def test_anyres_keeps_the_most_pixels_with_the_least_waste(height, width, budget):
    rows, cols = anyres((height, width), (336, 336), 1, budget)

    def pixels(r, c):
        ratio = min(r * 336 / height, c * 336 / width)
        return min(int(height * ratio + 1e-9) * int(width * ratio + 1e-9), height * width)

    every = [(r, c) for r in range(1, budget + 1) for c in range(1, budget // r + 1)]
    most = max(pixels(r, c) for r, c in every)
    assert pixels(rows, cols) == most
    assert rows * cols == min(r * c for r, c in every if pixels(r, c) == most)


@pytest.mark.parametrize("answer", [(0, 3), (5, 5), "grid", None, (2,), (2, 2, 2)])
def test_what_a_function_answers_is_checked(answer):
    def policy(image_hw, tile_hw, min_tiles, max_tiles):
        return answer

    with pytest.raises(S2WrapError, match="policy 'policy' answered .* of 1 to 9 tiles"):
        choose_grid(policy, (100, 100), (448, 448), 9, 9)


def test_a_function_that_fails_is_named_with_the_cause():
    def mine(image_hw, tile_hw, min_tiles, max_tiles):
        return image_hw[0] // 0

    with pytest.raises(S2WrapError) as error:
        choose_grid(mine, (100, 200), (448, 448), 9, 9)
    assert "policy 'mine' failed on an image of 100×200 pixels, 9 to 9 tiles: ZeroDivisionError: " in str(error.value)
    assert isinstance(error.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("name", POLICIES)
def test_every_named_policy_answers_within_its_budget(name):
    for image_hw in ((10, 4000), (4000, 10), (300, 500), (2000, 2000)):
        rows, cols = choose_grid(POLICIES[name], image_hw, (224, 224), 4, 6)
        assert 1 <= rows * cols <= 6
