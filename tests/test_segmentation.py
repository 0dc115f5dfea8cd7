import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from s2wrap import S2WrapError
from s2wrap.compare.folds import deal
from s2wrap.compare.score import Score
from s2wrap.compare.tasks import masks as masks_module
from s2wrap.compare.tasks import segmentation as module
from s2wrap.compare.tasks.masks import cell_shares, draw_cells, iou_score, predict
from s2wrap.compare.tasks.segmentation import Segmentation, fit_softmax
from s2wrap.resample import resize_matrix

CONTENTS = list("abcdefghijkl")
FOLDS = deal(None, CONTENTS, 3)


def pictures(classes=3, channels=6, noise=1.0, block=4, grid_hw=(5, 6), seed=0):
    """Twelve maps of noise around a mean of the class of each cell, and masks of cells of one class."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(classes, channels))
    grids = rng.integers(0, classes, size=(12, *grid_hw))
    spatials = means[grids] + noise * rng.normal(size=(12, *grid_hw, channels))
    masks = grids.repeat(block, axis=1).repeat(block, axis=2).astype(np.uint8)
    return list(torch.from_numpy(spatials).permute(0, 3, 1, 2).float()), list(masks)


def segment(maps, masks, folds, contents, *, classes):
    """As `Segmentation.score` does it."""
    cells = draw_cells(maps, masks, folds, classes, Segmentation.most)
    return iou_score(predict(maps, masks, folds, lambda fold: Segmentation.fit(cells, fold, contents)), masks, classes)


def ignore(masks, share=0.3):
    """The masks, with some pixels that do not count."""
    rng = np.random.default_rng(1)
    return [np.where(rng.random(mask.shape) < share, 255, mask).astype(np.uint8) for mask in masks]


@pytest.fixture
def counts_of(monkeypatch):
    """`segment`, but what is counted of each tested picture (n, 3, classes) in place of a score."""
    monkeypatch.setattr(masks_module, "score", lambda parts, _: Score(0.0, parts, parts))
    return lambda *args, **options: segment(*args, **options).samples


@pytest.mark.parametrize("classes", [2, 5])
def test_classes_that_a_plane_tells_apart_are_segmented_without_fault(classes):
    """As many pixels as cells: nothing is interpolated."""
    maps, masks = pictures(classes=classes, channels=20, noise=0.01, block=1)
    assert segment(maps, masks, FOLDS, CONTENTS, classes=classes).value == 1


def test_random_features_are_no_better_than_the_most_frequent_class():
    rng = np.random.default_rng(0)
    masks = [rng.choice(3, p=(0.8, 0.1, 0.1), size=(12, 12)).astype(np.uint8) for _ in CONTENTS]
    maps = [torch.from_numpy(rng.normal(size=(8, 12, 12))).float() for _ in CONTENTS]
    frequent = np.mean([mask == 0 for mask in masks]) / 3
    assert abs(segment(maps, masks, FOLDS, CONTENTS, classes=3).value - frequent) < 0.02


def test_the_score_is_that_of_scikit_learn_on_pixels_one_by_one(monkeypatch):
    """A row a pixel in place of weights, own interpolation, `jaccard_score` on the pooled pixels."""
    monkeypatch.setattr(module, "STRENGTHS", (2.0,))
    maps, masks = pictures(noise=1.5)
    masks = ignore(masks)
    truth, told = [], []
    for fold in FOLDS:
        tokens = np.concatenate([maps[index].flatten(1).T.numpy() for index in fold.train])
        scaler = StandardScaler().fit(tokens)
        pixels = np.concatenate([scaler.transform(enlarged(maps[index], nearest=True)) for index in fold.train])
        answers = np.concatenate([masks[index].ravel() for index in fold.train])
        strength = 2.0 / maps[0].shape[0] / 16  # of a pixel, a sixteenth of a cell
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(
            pixels[answers < 255], answers[answers < 255]
        )
        for index in fold.test:
            logits = model.decision_function(scaler.transform(maps[index].flatten(1).T.numpy())).T
            fine = enlarged(torch.from_numpy(logits.reshape(-1, 5, 6)), nearest=False)
            counts = masks[index].ravel() < 255
            truth.append(masks[index].ravel()[counts])
            told.append(fine.argmax(axis=1)[counts])
    expected = jaccard_score(np.concatenate(truth), np.concatenate(told), average="macro")
    found = segment(maps, masks, FOLDS, CONTENTS, classes=3)
    assert 0.3 < expected < 0.9
    assert found.value == pytest.approx(expected, abs=1e-3)
    assert found.pictures == 12


def enlarged(spatial, nearest):
    """A map (c, 5, 6) at each pixel of a mask of 20 × 24: (pixels, c)."""
    if nearest:
        fine = spatial.repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()
    else:
        rows, cols = (resize_matrix(n, 4 * n, interpolation="bilinear", antialias=False) for n in (5, 6))
        fine = rows @ spatial.numpy() @ cols.T
    return fine.reshape(len(fine), -1).T


def test_weighing_by_shares_is_repeating_pixels():
    """Against scikit-learn, with each pixel of a cell a row of its own."""
    rng = np.random.default_rng(0)
    tokens = StandardScaler().fit_transform(rng.normal(size=(40, 5)))
    pixels = rng.integers(0, 4, size=(40, 10))
    answers = (pixels + (tokens[:, :1] > 0)) % 4
    shares = np.stack([(answers == label).mean(axis=1) for label in range(4)], axis=1)
    found = fit_softmax(tokens, shares, 3.0, start=np.zeros((6, 4)))
    model = LogisticRegression(C=3.0 / 5 / 10, tol=1e-8, max_iter=1000).fit(tokens.repeat(10, 0), answers.ravel())
    np.testing.assert_allclose(found[:-1].T, model.coef_, atol=2e-3)
    np.testing.assert_allclose(found[-1] - found[-1].mean(), model.intercept_ - model.intercept_.mean(), atol=2e-3)


@pytest.mark.parametrize("grid_hw", [(1, 1), (2, 3), (5, 7), (3, 10), (8, 4)])
def test_shares_are_those_of_a_mask_enlarged_until_cells_are_whole_pixels(grid_hw):
    (mask,) = ignore([np.random.default_rng(0).integers(0, 3, size=(5, 7)).astype(np.uint8)])
    height, width = grid_hw
    fine = mask.repeat(height, axis=0).repeat(width, axis=1).reshape(height, 5, width, 7)
    expected = [(fine == label).mean(axis=(1, 3)).ravel() for label in range(3)]
    np.testing.assert_allclose(cell_shares(mask, grid_hw, 3), np.stack(expected, axis=1), atol=1e-12)


def test_what_is_under_ignored_pixels_does_not_matter(counts_of):
    """A column of cells that does not count, whatever its features, which no drawn token shows either."""
    maps, masks = pictures()
    masks = [np.where(np.arange(24) < 4, 255, mask).astype(np.uint8) for mask in masks]
    before = counts_of(maps, masks, FOLDS, CONTENTS, classes=3)
    assert before[:, 1].sum() == 12 * 20 * 20
    for fold in FOLDS[:1]:
        changed = [spatial.clone() for spatial in maps]
        for index in fold.train:
            changed[index][:, :, 0] = 1e4
        one, other = (counts_of(spatials, masks, [fold], CONTENTS, classes=3) for spatials in (maps, changed))
        np.testing.assert_array_equal(one, other)


def test_a_picture_without_a_pixel_that_counts_is_no_error():
    maps, masks = pictures()
    masks[3] = np.full_like(masks[3], 255)
    assert segment(maps, masks, FOLDS, CONTENTS, classes=3).pictures == 12


def fitted(monkeypatch, fold):
    """Numbers of the pictures whose tokens anything was fitted to: each has them in its first channel."""
    maps, masks = pictures()
    for index, spatial in enumerate(maps):
        spatial[0] = index
    seen = set()
    fit, softmax = StandardScaler.fit, module.fit_softmax
    scaled = {}

    def spied_fit(self, rows, *args, **options):
        seen.update(rows[:, 0].astype(int).tolist())
        scaled["last"] = fit(self, rows, *args, **options)
        return self

    def spied_softmax(tokens, shares, strength, start):
        seen.update(scaled["last"].inverse_transform(tokens)[:, 0].round().astype(int).tolist())
        return softmax(tokens, shares, strength, start=start)

    monkeypatch.setattr(StandardScaler, "fit", spied_fit)
    monkeypatch.setattr(module, "fit_softmax", spied_softmax)
    segment(maps, masks, [fold], CONTENTS, classes=3)
    return seen


@pytest.mark.parametrize("number", range(3))
def test_no_tested_picture_reaches_a_fit(monkeypatch, number):
    assert fitted(monkeypatch, FOLDS[number]) == set(FOLDS[number].train)


def test_the_spy_would_see_a_tested_picture(monkeypatch):
    join = module.join_cells
    monkeypatch.setattr(module, "join_cells", lambda cells, _: join(cells, np.arange(12)))
    assert fitted(monkeypatch, FOLDS[0]) == set(range(12))


def test_what_is_said_of_a_picture_does_not_depend_on_the_others_that_are_tested(counts_of):
    maps, masks = pictures()
    (fold, *_) = FOLDS
    before = counts_of(maps, masks, [fold], CONTENTS, classes=3)
    for index in fold.test[2:]:
        maps[index], masks[index] = 1e6 * maps[index], masks[index][::-1]
    np.testing.assert_array_equal(counts_of(maps, masks, [fold], CONTENTS, classes=3)[:2], before[:2])


def test_no_more_tokens_train_than_are_told_as_many_of_each_picture(monkeypatch):
    monkeypatch.setattr(Segmentation, "most", 80)
    sizes, fits = [], module._fit_all

    def spied(cells, strengths):
        sizes.append(len(cells.tokens))
        return fits(cells, strengths)

    monkeypatch.setattr(module, "_fit_all", spied)
    maps, masks = pictures()
    one = segment(maps, masks, FOLDS, CONTENTS, classes=3)
    assert max(sizes) == 80
    assert one.value == segment(maps, masks, FOLDS, CONTENTS, classes=3).value


def test_two_runs_are_equal_and_grids_may_differ():
    maps, masks = pictures(noise=0.3)
    maps[0], maps[5] = maps[0].repeat_interleave(2, 1), maps[5].repeat_interleave(3, 2)
    one, other = (segment(maps, masks, FOLDS, CONTENTS, classes=3) for _ in range(2))
    assert 0.5 < one.value < 1
    assert one.value == other.value
    np.testing.assert_array_equal(one.samples, other.samples)


def test_classes_that_are_not_in_the_tested_masks_count_for_nothing():
    maps, masks = pictures(channels=20, noise=0.01, block=1)
    assert segment(maps, masks, FOLDS, CONTENTS, classes=7).value == 1


def test_masks_of_one_class_cannot_be_learnt_from():
    maps, masks = pictures()
    with pytest.raises(S2WrapError, match=r"train in a fold hold class \[1\] only"):
        segment(maps, [np.ones_like(mask) for mask in masks], FOLDS, CONTENTS, classes=3)
