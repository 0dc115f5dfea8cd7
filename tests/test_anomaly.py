import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from scipy.ndimage import label
from sklearn.metrics import precision_recall_curve, roc_auc_score

from s2wrap import S2WrapError
from s2wrap.compare.tasks import anomaly as module
from s2wrap.compare.tasks.anomaly import AnomalyMap, image_auroc, make_bank, pixel_scores

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


def some_maps(count=4):
    return [torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def test_a_token_is_as_far_as_the_nearest_of_the_bank():
    maps = some_maps()
    nearest, spatial = AnomalyMap(make_bank(maps[:3])), maps[3]
    found = nearest(torch.stack(maps))[3, 0]
    for row in range(5):
        for column in range(6):
            cosines = [
                F.cosine_similarity(spatial[:, row, column], each[:, i, j], dim=0)
                for each in maps[:3]
                for i in range(5)
                for j in range(6)
            ]
            assert float(found[row, column]) == pytest.approx(1 - float(max(cosines)), abs=1e-5)
    assert nearest(maps[0][None]).abs().max() < 1e-5


def test_a_bank_of_more_than_one_part_is_searched_in_full():
    bank, spatial = torch.randn(2500, 8), torch.randn(1, 8, 5, 6)
    cosines = F.cosine_similarity(spatial[:, None], bank[None, :, :, None, None], dim=2)
    torch.testing.assert_close(AnomalyMap(bank)(spatial)[:, 0], 1 - cosines.amax(dim=1), atol=1e-5, rtol=0)


def test_the_bank_is_bounded_and_the_same_each_time(monkeypatch):
    maps = some_maps()
    assert make_bank(maps).shape == (4 * 30, 8)
    assert torch.equal(make_bank(maps), make_bank(maps))
    assert make_bank(maps, 33).shape == (33, 8)
    monkeypatch.setattr(module, "DRAWN", 20)
    assert make_bank(maps).shape == (20, 8)
    monkeypatch.setattr(module, "DRAWN", 3)
    assert make_bank(maps).shape == (2, 8)  # of every second picture


def test_the_bank_covers_what_is_rare():
    """One token of a kind among hundreds of another is left out by most random draws, and never by a coreset."""
    common = F.normalize(torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]) + 0.01 * torch.randn(300, 8), dim=1)
    common[::100] = F.normalize(torch.eye(8)[5:8] + 0.01 * torch.randn(3, 8), dim=1)
    bank = make_bank([common.T.reshape(8, 15, 20)], 4)
    assert sorted(bank.argmax(dim=1).tolist()) == [0, 5, 6, 7]


@pytest.mark.parametrize(
    ("maps", "size", "words"),
    [
        ([], 10, r"maps of shapes \[\] make no bank"),
        ([torch.ones(1, 8, 3, 3)], 10, r"\[\(1, 8, 3, 3\)\] make no bank; give maps \(c, h, w\)"),
        ([torch.ones(8, 3, 3), torch.ones(9, 3, 3)], 10, "all of c channels"),
        ([torch.ones(8, 3, 3)], 0, "size=0 is no number of tokens"),
    ],
)
def test_what_makes_no_bank_is_told(maps, size, words):
    with pytest.raises(S2WrapError, match=words):
        make_bank(maps, size)


def test_a_map_has_a_bank_with_tokens_and_without_their_gradients():
    with pytest.raises(S2WrapError, match=r"a bank of torch.float32 \(0, 8\) holds no tokens"):
        AnomalyMap(torch.ones(0, 8))
    assert not AnomalyMap(torch.ones(3, 8, requires_grad=True)).bank.requires_grad
