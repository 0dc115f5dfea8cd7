from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from scipy.ndimage import label
from sklearn.metrics import precision_recall_curve, roc_auc_score

from s2wrap.compare.tasks import anomaly as module
from s2wrap.compare.tasks.anomaly import distances, image_auroc, make_bank, pixel_scores

HW = (40, 60)


@pytest.fixture(scope="module")
def scored():
    """Scores of cells and masks of twelve pictures, half of them defective, one with two regions."""
    rng = np.random.default_rng(0)
    masks = [np.zeros(HW, dtype=bool) for _ in range(12)]
    for number in range(6):
        top, left = rng.integers(0, 30, 2)
        masks[number][top : top + 8, left : left + 12] = True
    masks[0][36:, 50:] = True
    cells = []
    for mask in masks:
        share = mask.reshape(10, 4, 15, 4).mean(axis=(1, 3))
        cells.append(torch.from_numpy(rng.normal(0, 0.6, (10, 15)) + share).float())
    return cells, masks


def pixels(cells):
    return [F.interpolate(each[None, None], HW, mode="bilinear", align_corners=False)[0, 0].numpy() for each in cells]


def test_pixel_figures_are_those_of_scikit_learn(scored):
    cells, masks = scored
    found = pixel_scores(cells, iter(masks))
    truth, values = np.concatenate([each.ravel() for each in masks]), np.concatenate([x.ravel() for x in pixels(cells)])
    assert found["pixel AUROC"].value == pytest.approx(roc_auc_score(truth, values), abs=1e-3)
    precision, recall, _ = precision_recall_curve(truth, values)
    best = np.max(2 * precision * recall / np.clip(precision + recall, 1e-9, None))
    assert found["best F1"].value == pytest.approx(best, abs=3e-3)
    assert all(score.pictures == 12 for score in found.values())


def test_the_overlap_of_regions_is_that_of_a_loop_over_thresholds(scored):
    cells, masks = scored
    shown = pixels(cells)
    flawless = np.concatenate([each[~mask] for each, mask in zip(shown, masks, strict=True)])
    regions = []
    for each, mask in zip(shown, masks, strict=True):
        numbers, count = label(mask, structure=np.ones((3, 3)))
        regions += [each[numbers == number] for number in range(1, count + 1)]
    assert len(regions) == 7
    thresholds = np.sort(np.unique(np.concatenate([flawless, *regions])))[::-1][::3]
    rates = np.array([0, *((flawless >= limit).mean() for limit in thresholds)])
    overlaps = np.array([0, *(np.mean([(region >= limit).mean() for region in regions]) for limit in thresholds)])
    fine = np.linspace(0, 0.3, 20_001)
    area = np.trapezoid(np.interp(fine, rates, overlaps), fine) / 0.3
    assert pixel_scores(cells, iter(masks))["AU-PRO"].value == pytest.approx(area, abs=2e-3)


def test_two_regions_count_alike_whatever_their_size():
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10, :10] = mask[18:, 18:] = True
    seen = np.zeros((20, 20))
    seen[:10, :10] = 1  # the large one is found, the small one looks like the rest
    found = pixel_scores([torch.from_numpy(seen).float()], iter([mask]))
    rates = np.array([0, 0, 1.0])  # above the large region everything else is alike
    overlaps = np.array([0, 0.5, 1.0])
    fine = np.linspace(1e-9, 0.3, 1001)
    expected = np.trapezoid(np.interp(fine, rates[1:], overlaps[1:]), fine) / 0.3
    assert found["AU-PRO"].value == pytest.approx(expected, abs=1e-3)


def test_pictures_are_ranked_by_their_largest_scores(scored):
    cells, masks = scored
    defective = np.array([mask.any() for mask in masks])
    values = [np.sort(each.numpy().ravel())[-2:].mean() for each in cells]  # 1 % of 150 cells
    found = image_auroc(cells, defective)
    assert found.value == pytest.approx(roc_auc_score(defective, values))
    assert found.interval()[0] < found.value < found.interval()[1] <= 1


def test_a_token_is_as_far_as_the_nearest_of_the_bank_and_the_bank_is_bounded(monkeypatch):
    maps = [torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    bank = make_bank(maps[:3])
    assert bank.shape == (90, 8)
    spatial = maps[3]
    for row in range(5):
        for column in range(6):
            cosines = [
                F.cosine_similarity(spatial[:, row, column], each[:, i, j], dim=0)
                for each in maps[:3]
                for i in range(5)
                for j in range(6)
            ]
            assert float(distances(spatial, bank)[row, column]) == pytest.approx(1 - float(max(cosines)), abs=1e-5)
    assert distances(maps[0], bank).abs().max() < 1e-5
    monkeypatch.setattr(module, "BANK", 33)
    assert make_bank(maps[:3]).shape == (33, 8)
    assert torch.equal(make_bank(maps[:3]), make_bank(maps[:3]))
    assert prod(make_bank(maps).shape) == 4 * 8 * 8
