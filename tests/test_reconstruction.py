import math

import numpy as np
import pytest
import torch
from einops import rearrange
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from s2wrap.compare.folds import Fold, deal
from s2wrap.compare.ridge import PENALTIES, fit
from s2wrap.compare.tasks import reconstruction as module
from s2wrap.compare.tasks.reconstruction import reconstruct
from s2wrap.errors import S2WrapError

PICTURES, GRID = 30, (4, 5)
NAMES = [f"picture {number}" for number in range(PICTURES)]
PAIR = [Fold(np.arange(20), np.arange(20, 30))]
NOISE = 0.5


def maps(channels, seed, grid=GRID):
    """Features whose channels differ in size and are off zero."""
    rng = np.random.default_rng(seed)
    scale, offset = rng.uniform(0.2, 5, (2, channels, 1, 1))
    return [torch.tensor(scale * rng.normal(size=(channels, *grid)) + offset).float() for _ in range(PICTURES)]


def mapped(source, channels, noise=0.0, seed=9):
    """A linear map of the source, with noise of this deviation."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(channels, source[0].shape[0]))
    return [
        torch.tensor(np.einsum("dc,chw->dhw", weight, each) + 3 + noise * rng.normal(size=(channels, *each.shape[1:])))
        .float()
        .contiguous()
        for each in source
    ]


def tokens(features, pictures):
    return np.concatenate([rearrange(features[i].double().numpy(), "c h w -> (h w) c") for i in pictures])


def one(target, source, folds=PAIR, contents=NAMES):
    """The scores, and what `fit` returned for each fold."""
    with pytest.MonkeyPatch.context() as patch:
        fits = []
        patch.setattr(module, "fit", lambda *args: fits.append(fit(*args)) or fits[-1])
        found = reconstruct(target, source, folds, contents)
    return found["information"], found["training information"], fits


def test_an_exact_linear_map_is_recovered_and_has_a_lot_of_information():
    source = maps(6, 0)
    test, train, _ = one(mapped(source, 4), source)
    assert test.value > 20
    assert train.value > 20


def test_an_independent_source_recovers_nothing_of_pictures_held_out():
    test, train, (fitted,) = one(maps(4, 1), maps(6, 0))
    assert abs(test.value) < 0.02
    assert train.value >= 0
    assert fitted.penalty >= 0.1


def test_what_is_lost_is_the_noise_and_information_is_its_share():
    source = maps(6, 0, grid=(12, 12))
    target = mapped(source, 4, NOISE)
    test, train, _ = one(target, source)
    clean = tokens(mapped(source, 4), range(20))
    total = np.square(clean - clean.mean(axis=0)).mean() + NOISE**2
    assert train.value == pytest.approx(-math.log(NOISE**2 / total), abs=0.03)
    assert test.value == pytest.approx(-math.log(NOISE**2 / total), abs=0.08)
    low, high = test.interval()
    assert low < test.value < high


def test_every_loss_is_that_of_scikit_learns_ridge_at_the_penalty_that_scikit_learn_finds_best():
    train, test = np.arange(10, 30), np.arange(10)
    for seed in (0, 1, 2):
        source = [torch.cat([each, 2 * each[:2] + 0.1 * torch.randn_like(each[:2])]) for each in maps(12, seed)]
        target = mapped(source, 5, 40.0, seed=seed)
        of_test, of_train, (ours,) = one(target, source, [Fold(train, test)])
        assert ours.tokens == 20 * math.prod(GRID)

        def fitted(some, penalty, source=source, target=target):
            scaler = StandardScaler().fit(tokens(source, some))
            ridge = Ridge(alpha=penalty * len(some) * math.prod(GRID))
            ridge.fit(scaler.transform(tokens(source, some)), tokens(target, some))
            return lambda new: np.square(ridge.predict(scaler.transform(tokens(source, new))) - tokens(target, new))

        loss = fitted(train, ours.penalty)
        constant = tokens(target, train).mean(axis=0)
        for found, pictures in ((of_test, test), (of_train, train)):
            guessed = np.square(tokens(target, pictures) - constant).sum()
            assert found.value == pytest.approx(-math.log(loss(pictures).sum() / guessed), rel=1e-9)

        inner = deal(None, NAMES[10:], 3)
        errors = [sum(fitted(train[part.train], each)(train[part.test]).sum() for part in inner) for each in PENALTIES]
        assert ours.penalty == PENALTIES[np.argmin(errors)]


def test_pictures_that_are_tested_change_nothing_of_training():
    source = maps(12, 0)
    target = mapped(source, 4, 20.0)
    test, train, (fitted,) = one(target, source)
    other = [each if i < 20 else each.flip(0) * 7 for i, each in enumerate(source)]
    after = one([each if i < 20 else each - 9 for i, each in enumerate(target)], other)
    assert after[2][0].penalty == fitted.penalty
    assert after[1].value == train.value
    assert after[0].value != test.value


def test_penalties_are_chosen_on_whole_pictures_that_were_left_out():
    """Tokens of a picture are alike here: left out one by one, memory would look like skill."""
    rng = np.random.default_rng(0)
    source = [torch.tensor(rng.normal(size=(25, 1, 1)) + 0.01 * rng.normal(size=(25, *GRID))).float() for _ in NAMES]
    target = [torch.tensor(rng.normal(size=(4, 1, 1)) + 0.01 * rng.normal(size=(4, *GRID))).float() for _ in NAMES]
    test, _, (fitted,) = one(target, source)
    assert fitted.penalty >= 1
    assert test.value > -0.2


def test_every_picture_counts_once_over_folds_and_draws_do_not_depend_on_their_order():
    source = maps(6, 0)
    target = mapped(source, 4, 1.0)
    folds = deal(None, NAMES)
    test, _, fits = one(target, source, folds)
    turned, *_ = one(target, source, folds[::-1])
    assert len(test.each) == PICTURES
    assert [fitted.tokens for fitted in fits] == [len(fold.train) * math.prod(GRID) for fold in folds]
    np.testing.assert_allclose(test.samples, turned.samples, rtol=1e-12)
    for fold in folds:
        np.testing.assert_allclose(one(target, source, [fold])[0].each, test.each[fold.test])


def test_training_takes_as_many_tokens_of_each_picture_and_the_same_of_all_sources(monkeypatch):
    source = maps(6, 0)
    target = mapped(source, 4, 1.0)
    monkeypatch.setattr(module, "TOKENS", 20 * 7 + 5)
    test, train, (fitted,) = one(target, source)
    doubled = one(target, [2 * each for each in source])
    assert fitted.tokens == 20 * 7
    assert np.array_equal(fitted.constant, doubled[2][0].constant)
    assert test.value == pytest.approx(doubled[0].value)  # standardised: a factor does not matter
    assert train.value != pytest.approx(one(target, source[::-1])[1].value)
    monkeypatch.setattr(module, "TOKENS", 3)
    assert one(target, source)[2][0].tokens == 20


def test_channels_that_never_change_do_not_matter():
    source = maps(6, 0)
    target = mapped(source, 4, 1.0)
    padded = [torch.cat([each, torch.full((2, *GRID), 1234.567)]) for each in source]
    assert one(target, padded)[0].value == pytest.approx(one(target, source)[0].value, rel=1e-6)


def test_a_target_that_never_changes_is_refused():
    with pytest.raises(S2WrapError, match="nothing to recover"):
        one([torch.ones(2, *GRID)] * PICTURES, maps(2, 1))
