import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scaling_attacks import (  # pyright: ignore[reportMissingImports] (pytest finds benchmarks/, pyright does not)
    HELD_OUT,
    changed,
    craft,
    photograph,
    shrink,
    shrink_badly,
    text_page,
)

import s2wrap
from s2wrap import S2WrapError
from s2wrap.resample import resize
from s2wrap.scaling_attacks import PEAKS, SIDES, find_scaling_attack

RATIOS = (4, 4.57, 5.3, 6)


def clip(image, side=512):
    """At most `side` pixels from the middle: the picture's own pixels, fewer of them."""
    top, left = (max(length - side, 0) // 2 for length in image.shape[-2:])
    return image[:, top : top + side, left : left + side]


def distance(first, second):
    return float((first.float() - second.float()).abs().mean())


def resize_by_hand(image, image_hw, kernel):
    """OpenCV's documented INTER_NEAREST, INTER_LINEAR and INTER_CUBIC (Keys' cubic with a = -0.75), one axis a time."""
    return resize_rows(resize_rows(image.swapaxes(1, 2), image_hw[1], kernel).swapaxes(1, 2), image_hw[0], kernel)


def resize_rows(image, new, kernel):
    old, places = image.shape[1], np.arange(new)
    if kernel == "nearest":
        return image[:, np.floor(places * old / new).astype(int)]
    centers = (places + 0.5) * old / new - 0.5
    reach = {"bilinear": 1, "bicubic": 2}[kernel]
    taps = [np.floor(centers).astype(int) + offset for offset in range(1 - reach, 1 + reach)]
    weights = [keys_weights(np.abs(tap - centers)) if reach == 2 else 1 - np.abs(tap - centers) for tap in taps]
    read = np.stack([image[:, tap.clip(0, old - 1)] for tap in taps])
    return (read * np.stack(weights)[:, None, :, None]).sum(axis=0)


def keys_weights(x):
    return np.where(x <= 1, 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4))


@pytest.fixture(scope="module")
def attacked():
    """Ten photographs, each attacked for three kernels, the ratios and the targets in turn."""
    photos = {name: clip(photograph(name)) for name in HELD_OUT}
    found = []
    for number, name in enumerate(HELD_OUT):
        for turn, kernel in enumerate(("nearest", "bilinear", "bicubic")):
            image, ratio = photos[name], RATIOS[(number + turn) % len(RATIOS)]
            image_hw = (int(image.shape[1] / ratio), int(image.shape[2] / ratio))
            target = shrink(photos[HELD_OUT[(number + turn + 1) % len(HELD_OUT)]], image_hw)
            found.append((kernel, image, target, craft(image, target, kernel, steps=25)))
    return found


def test_attacks_work_on_resizers_without_antialiasing_and_fail_on_s2wraps(attacked):
    for kernel, image, target, picture in attacked:
        image_hw = tuple(target.shape[-2:])
        seen = resize_by_hand(picture.numpy().astype(float), image_hw, kernel)
        assert distance(torch.from_numpy(seen), target) < 4
        assert distance(shrink(image, image_hw), target) > 15
        for interpolation in ("bicubic", "bilinear"):
            ours, source = (resize(x[None].float(), image_hw, interpolation=interpolation)[0] for x in (picture, image))
            assert distance(ours, source) < distance(ours, target) / 3


def test_a_backbone_behind_s2wrap_sees_the_source_and_not_the_target(attacked):
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", num_classes=0).eval()
    image = clip(photograph("retina"), 960)
    target = shrink(photograph("china"), (160, 160))
    picture = craft(image, target, "bilinear")
    model = s2wrap.wrap(backbone, scales=(1,))
    with torch.inference_mode():
        ours, source = (model(x[None]).spatial for x in (picture, image))
        fooled, wanted = (
            model(x.round().clamp(0, 255).to(torch.uint8)[None]).spatial
            for x in (shrink_badly(picture, (160, 160), "bilinear"), target)
        )
    apart = (source - wanted).norm()
    assert (ours - source).norm() < apart / 3
    assert (fooled - wanted).norm() < apart / 3


def test_attacks_on_ten_unseen_photographs_are_found(attacked):
    found = [find_scaling_attack(picture, image_hw=tuple(target.shape[-2:])) for _, _, target, picture in attacked]
    assert np.mean([scores.is_attack for scores in found]) >= 0.95
    assert np.mean([scores.peaks >= PEAKS for scores in found]) >= 0.6
    assert np.median([scores.minimum_filter for scores in found]) > 2


def test_clean_photographs_are_let_pass_at_most_5_in_100():
    pictures = [image for name in HELD_OUT[:5] for _, image in changed(clip(photograph(name), 384))]
    pictures += [text_page(seed) for seed in range(5)] + [clip(photograph(name)) for name in HELD_OUT]
    found = [
        find_scaling_attack(image, image_hw=(int(image.shape[1] / ratio), int(image.shape[2] / ratio)))
        for image in pictures
        for ratio in (2.5, 4.57)
    ]
    assert np.mean([scores.is_attack for scores in found]) <= 0.05
    assert np.mean([scores.votes >= 2 for scores in found]) <= 0.05


def test_the_attacked_size_is_found_by_trying_the_common_ones():
    image = clip(photograph("retina"), 1000)[:, :900]
    assert not find_scaling_attack(image).is_attack
    for image_hw in ((224, 224), (256, 284)):  # both sides, and the shorter side of a picture that keeps its shape
        picture = craft(image, shrink(photograph("flower"), image_hw), "nearest", steps=5)
        scores = find_scaling_attack(picture)
        assert (scores.image_hw, scores.kernel, scores.is_attack) == (image_hw, "nearest", True)
        assert scores.peaks == 4
        assert not find_scaling_attack(picture, image_hw=(200, 200)).is_attack


def test_pils_nearest_is_fooled_and_found_too():
    image, image_hw = clip(photograph("camera")), (128, 128)
    target = shrink(photograph("flower"), image_hw)
    picture = craft(image, target, "nearest-exact", steps=5)
    seen = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((128, 128), Image.Resampling.NEAREST)
    assert distance(torch.from_numpy(np.array(seen)).permute(2, 0, 1), target) < 4
    assert find_scaling_attack(picture, image_hw=image_hw).kernel == "nearest-exact"


def test_the_scores_do_not_depend_on_contrast_brightness_or_mirroring():
    image, image_hw = clip(photograph("china"), 400), (100, 100)
    picture = craft(image, shrink(photograph("hopper"), image_hw), "bilinear")
    whole = find_scaling_attack(picture, image_hw=image_hw)
    paler = find_scaling_attack((picture.float() * 0.5 + 60).round().to(torch.uint8), image_hw=image_hw)
    mirrored = find_scaling_attack(picture.flip(-1), image_hw=image_hw)
    assert paler.round_trip == pytest.approx(whole.round_trip, rel=0.02)
    assert mirrored.round_trip == pytest.approx(whole.round_trip, rel=0.05)
    assert paler.minimum_filter == pytest.approx(whole.minimum_filter, rel=0.02)
    assert paler.peaks == whole.peaks


def test_an_attack_shifted_off_the_grid_is_none():
    """Shifted by half a cell, the hidden pixels are where nothing reads them."""
    image, image_hw = clip(photograph("china"), 400), (100, 100)
    picture = craft(image, shrink(photograph("hopper"), image_hw), "nearest", steps=5)
    assert find_scaling_attack(picture, image_hw=image_hw).kernel == "nearest"
    shifted = find_scaling_attack(picture.roll((1, 1), (1, 2)), image_hw=image_hw)
    assert shifted.round_trip < find_scaling_attack(picture, image_hw=image_hw).round_trip / 2


def test_one_bright_pixel_in_each_cell_gives_the_scores_that_can_be_worked_out():
    """Nearest sees white alone, and 19 of 20 pixels are wrong; beside the dots, the one white pixel in 20 is."""
    image = torch.zeros(3, 400, 600, dtype=torch.uint8)
    image[:, ::4, ::5] = 255
    scores = find_scaling_attack(image, image_hw=(100, 120))
    assert (scores.kernel, scores.peaks, scores.votes) == ("nearest", 4, 3)
    assert scores.round_trip == pytest.approx(19, rel=0.01)
    assert scores.minimum_filter == pytest.approx(20, rel=0.02)  # all errors in one part, which holds one pixel in 20


def test_graph_paper_is_reported_only_where_its_period_is_a_cell():
    """There it does become another picture: nearest sees its lines alone, all black."""
    paper = torch.full((3, 500, 500), 255, dtype=torch.uint8)
    paper[:, ::5], paper[:, :, ::5] = 0, 0
    assert find_scaling_attack(paper, image_hw=(100, 100)).is_attack
    assert not shrink_badly(paper, (100, 100), "nearest").any()
    for side in (90, 111, 125):
        assert not find_scaling_attack(paper, image_hw=(side, side)).is_attack


def test_flat_small_and_slightly_reduced_pictures_hide_nothing():
    flat = find_scaling_attack(torch.full((3, 300, 400), 9, dtype=torch.uint8), image_hw=(60, 80))
    assert (flat.round_trip, flat.peaks, flat.is_attack) == (1, 0, False)
    assert flat.minimum_filter == pytest.approx(1, abs=1e-4)
    image = clip(photograph("china"), min(SIDES))
    assert find_scaling_attack(image).image_hw == (224, 224)
    small = find_scaling_attack(image, image_hw=(200, 100))
    assert (small.image_hw, small.round_trip, small.peaks, small.is_attack) == ((200, 100), 1, 0, False)


def test_wrong_images_and_sizes_say_so():
    with pytest.raises(S2WrapError, match=r"\(3, 9, 9\) of torch.float32; give the file's pixels, uint8"):
        find_scaling_attack(torch.zeros(3, 9, 9))
    with pytest.raises(S2WrapError, match=r"\(9, 9\) of torch.uint8; give .* \(3, height, width\)"):
        find_scaling_attack(torch.zeros(9, 9, dtype=torch.uint8))
    with pytest.raises(S2WrapError, match=r"image_hw=\(0, 5\) is no size; give .* such as \(224, 224\)"):
        find_scaling_attack(torch.zeros(3, 9, 9, dtype=torch.uint8), image_hw=(0, 5))
