import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from s2wrap.compare.folds import Fold
from s2wrap.compare.tasks import neighbours as module
from s2wrap.compare.tasks.masks import band, draw_cells, iou_score, predict
from s2wrap.compare.tasks.neighbours import Neighbours, vote

FOLD = Fold(np.arange(3), np.arange(3, 5))


def predict_by_neighbours(maps, masks, classes):
    cells = draw_cells(maps, masks, [FOLD], classes, Neighbours.most)
    return predict(maps, masks, [FOLD], lambda fold: Neighbours.fit(cells, fold, "abcde"))


def test_a_vote_is_that_of_a_plain_loop(monkeypatch):
    monkeypatch.setattr(module, "NEIGHBOURS", 4)
    rng = np.random.default_rng(0)
    tokens, bank = (rng.normal(size=(count, 6)) for count in (7, 20))
    tokens, bank = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (tokens, bank))
    shares = rng.dirichlet([1, 1, 1], 20)
    found = vote(*(torch.from_numpy(each) for each in (tokens, bank, shares)))
    for token, row in zip(tokens, found.numpy(), strict=True):
        nearest = sorted(range(20), key=lambda i: -float(token @ bank[i]))[:4]
        weights = np.array([np.exp(float(token @ bank[i]) / 0.02) for i in nearest])
        expected = sum(w * shares[i] for w, i in zip(weights / weights.sum(), nearest, strict=True))
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_tokens_that_say_their_class_segment_without_an_error_and_noise_does_not():
    rng = np.random.default_rng(0)
    masks = [np.repeat(np.repeat(rng.integers(0, 3, (6, 6)), 4, 0), 4, 1).astype(np.uint8) for _ in range(5)]
    directions = torch.eye(3)
    maps = [directions[torch.from_numpy(mask[::4, ::4].astype(int))].permute(2, 0, 1) for mask in masks]
    found = predict_by_neighbours(maps, masks, 3)
    assert sorted(found) == [3, 4]
    agree = np.mean([(found[index] == masks[index]).mean() for index in found])
    assert agree > 0.8  # but for what lies between two cells
    for index in found:  # the middle of each cell
        assert np.array_equal(found[index][2::4, 2::4], masks[index][2::4, 2::4])
    noise = predict_by_neighbours([torch.randn(3, 6, 6) for _ in maps], masks, 3)
    assert iou_score(noise, masks, 3).value < 0.4


def test_the_band_holds_the_pixels_near_a_border_and_the_score_those_alone():
    mask = np.zeros((100, 120), dtype=np.uint8)
    mask[:, 60:] = 1
    mask[:10] = mask[-10:] = 255
    near = band(mask)
    assert set(np.flatnonzero(near.any(axis=0))) == {58, 59, 60, 61}  # 2 % of 100 pixels, to both sides
    assert not near[:10].any()
    assert not near[-10:].any()
    assert near[10:-10, 58:62].all()
    predicted = {0: np.roll(mask, 1, axis=1)}
    found = iou_score(predicted, [mask], 2, [near])
    expected = jaccard_score(mask[near], predicted[0][near], average="macro")
    assert found.value == pytest.approx(expected)
    assert found.value < iou_score(predicted, [mask], 2).value
    assert not band(np.ones((9, 9), dtype=np.uint8)).any()
