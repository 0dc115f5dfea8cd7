from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import s2wrap
from s2wrap import S2WrapError
from s2wrap.compare.extract import UnableError
from s2wrap.compare.warps import STRENGTHS, Warp, centres, draw_warps, load_square, maps_of_values, move


def ramps(side=64):
    """An image whose first two channels say where a pixel lies: down and across, in 0…1."""
    return centres((side, side)).T.reshape(1, 2, side, side).float()


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_warped_picture_shows_each_place_where_the_homography_puts_it(strength):
    checked = 0
    for warp in draw_warps(strength, 3, "abc"):
        warped = Warp(warp.homography)(ramps())[0]
        for down, across in product(range(4, 64, 7), repeat=2):
            pixel = np.array([(down + 0.5) / 64, (across + 0.5) / 64])
            source = np.linalg.inv(warp.homography.numpy()) @ [*pixel, 1]
            if not all(0.05 < each / source[2] < 0.95 for each in source[:2]):
                continue  # it shows what lies outside of the picture
            shown = warped[:, down, across].double()  # the place of the picture that this pixel shows
            np.testing.assert_allclose(move(warp.homography, shown[None])[0], pixel, atol=1e-3)
            checked += 1
    assert checked > 100


def test_the_identity_changes_nothing_and_a_turn_is_numpys():
    image = torch.rand(1, 3, 32, 32)
    assert torch.allclose(Warp(torch.eye(3, dtype=torch.float64))(image), image, atol=1e-5)
    turn = torch.tensor([[0.0, -1, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)  # (d, a) to (1 - a, d)
    assert torch.allclose(Warp(turn)(image)[0], torch.from_numpy(np.rot90(image[0], 1, (1, 2)).copy()), atol=1e-4)


def test_light_changes_contrast_around_the_middle_and_brightness():
    image = torch.tensor([0.25, 0.5, 0.9]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    lit = Warp(torch.eye(3, dtype=torch.float64), contrast=1.2, brightness=0.1)(image)
    assert lit[0, :, 2, 2].tolist() == pytest.approx([0.3, 0.6, 1.0])  # the last is cut at white


def test_draws_lie_within_their_strength_are_the_same_again_and_differ_by_picture():
    for strength, limits in STRENGTHS.items():
        warps = draw_warps(strength, 200, "12ab")
        assert torch.equal(warps[7].homography, draw_warps(strength, 200, "12ab")[7].homography)
        assert not torch.equal(warps[0].homography, draw_warps(strength, 1, "12ac")[0].homography)
        middle = torch.tensor([[0.5, 0.5], [0.5001, 0.5]], dtype=torch.float64)
        angles, scales, lights = [], [], []
        for warp in warps:
            start, end = move(warp.homography, middle)
            assert (start - 0.5).abs().max() <= limits.shift
            down, across = ((end - start) / 1e-4).tolist()
            angles.append(np.degrees(np.arctan2(across, down)))
            scales.append(np.hypot(down, across))
            lights += [warp.contrast - 1, warp.brightness]
        slack = 1 + 2 * limits.perspective * limits.shift + limits.perspective * limits.shift * 2
        assert max(np.abs(angles)) <= limits.rotation + 3
        assert limits.scale[0] / slack - 0.02 <= min(scales) < 1 < max(scales) <= limits.scale[1] * slack + 0.02
        assert 0.9 * limits.light < max(np.abs(lights)) <= limits.light


def test_squares_hold_what_the_model_reads_and_go_to_it_as_eight_bits(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = s2wrap.load("timm:test_vit@1", pretrained=False)
    square = load_square(tmp_path / "a.png", model, 160)
    assert torch.equal((255 * square[0]).round(), torch.from_numpy(pixels).permute(2, 0, 1).float())
    assert load_square(tmp_path / "a.png", model, 64).shape == (1, 3, 64, 64)
    maps = maps_of_values(model, square, tmp_path / "a.png")
    assert torch.allclose(maps, model.encode([tmp_path / "a.png"])[0].spatial, atol=1e-5)


def test_a_model_with_several_maps_is_unable_and_features_that_are_not_finite_are_told(tmp_path):
    model = s2wrap.load("timm:test_vit@1,2", pretrained=False, fuse="pyramid")
    with pytest.raises(UnableError, match="2 maps a picture"):
        maps_of_values(model, torch.rand(1, 3, 64, 64), tmp_path / "a.png")
    model: Any = s2wrap.load("timm:test_vit@1", pretrained=False)
    with torch.no_grad():
        model.backbone.model.norm.bias[0] = torch.nan
    with pytest.raises(S2WrapError, match=r"a\.png by test_vit hold NaN"):
        maps_of_values(model, torch.rand(1, 3, 64, 64), tmp_path / "a.png")
