import math

import numpy as np
import pytest
import torch
from einops import rearrange
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from s2wrap.compare.folds import Fold, deal
from s2wrap.compare.ridge import PENALTIES
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


def one(target, source, folds=PAIR, contents=NAMES, **options):
    return reconstruct(target, {"source": source}, folds, contents, **options)["source"]


def test_an_exact_linear_map_is_recovered_and_has_a_lot_of_information():
    source = maps(6, 0)
    found = one(mapped(source, 4), source)
    assert found.loss_test < 1e-9 * found.constant_test
    assert found.information.value > 20
    assert found.information_train > 20


def test_an_independent_source_recovers_nothing_of_pictures_held_out():
    found = one(maps(4, 1), maps(6, 0))
    assert abs(found.information.value) < 0.02
    assert found.information_train >= 0
    assert found.regularisation[0] >= 0.1


def test_what_is_lost_is_the_noise_and_information_is_its_share():
    source = maps(6, 0, grid=(12, 12))
    target = mapped(source, 4, NOISE)
    found = one(target, source)
    clean = tokens(mapped(source, 4), range(20))
    total = np.square(clean - clean.mean(axis=0)).mean() + NOISE**2
    assert found.loss_train == pytest.approx(NOISE**2, rel=0.03)
    assert found.loss_test == pytest.approx(NOISE**2, rel=0.06)
    assert found.information_train == pytest.approx(-math.log(NOISE**2 / total), abs=0.03)
    assert found.information.value == pytest.approx(-math.log(NOISE**2 / total), abs=0.08)
    assert found.information.value == pytest.approx(-math.log(found.loss_test / found.constant_test))
    low, high = found.information.interval()
    assert low < found.information.value < high


def test_every_loss_is_that_of_scikit_learns_ridge_at_the_penalty_that_scikit_learn_finds_best():
    train, test = np.arange(10, 30), np.arange(10)
    for seed in (0, 1, 2):
        source = [torch.cat([each, 2 * each[:2] + 0.1 * torch.randn_like(each[:2])]) for each in maps(12, seed)]
        target = mapped(source, 5, 40.0, seed=seed)
        found = one(target, source, [Fold(train, test)])
        (penalty,), (count,) = found.regularisation, found.tokens
        assert count == 20 * math.prod(GRID)

        def fitted(some, penalty, source=source, target=target):
            scaler = StandardScaler().fit(tokens(source, some))
            ridge = Ridge(alpha=penalty * len(some) * math.prod(GRID))
            ridge.fit(scaler.transform(tokens(source, some)), tokens(target, some))
            return lambda new: np.square(ridge.predict(scaler.transform(tokens(source, new))) - tokens(target, new))

        loss = fitted(train, penalty)
        assert found.loss_train == pytest.approx(loss(train).mean(), rel=1e-9)
        assert found.loss_test == pytest.approx(loss(test).mean(), rel=1e-9)
        constant = tokens(target, train).mean(axis=0)
        assert found.constant_train == pytest.approx(np.square(tokens(target, train) - constant).mean(), rel=1e-9)
        assert found.constant_test == pytest.approx(np.square(tokens(target, test) - constant).mean(), rel=1e-9)

        inner = deal(None, NAMES[10:], 3)
        errors = [sum(fitted(train[part.train], each)(train[part.test]).sum() for part in inner) for each in PENALTIES]
        assert penalty == PENALTIES[np.argmin(errors)]


def test_the_ratio_of_the_reference_with_itself_is_1_and_of_others_that_of_their_information():
    small, large = maps(3, 0), maps(6, 0)
    target = mapped(large, 4, 0.1)
    found = reconstruct(target, {"small": small, "large": large}, PAIR, NAMES, reference="large")
    assert found["large"].ratio_train == found["large"].ratio_test == 1
    share = found["small"].information.value / found["large"].information.value
    assert found["small"].ratio_test == pytest.approx(share)
    assert found["small"].ratio_train == pytest.approx(
        found["small"].information_train / found["large"].information_train
    )
    assert one(target, small).ratio_test is None


def test_there_is_no_ratio_to_a_reference_that_recovers_nothing():
    target = maps(4, 1)
    useless = {f"noise {seed}": maps(6, seed) for seed in range(2, 8)}
    values = {name: one(target, source).information.value for name, source in useless.items()}
    reference = min(values, key=lambda name: values[name])
    assert values[reference] < 0
    found = reconstruct(target, useless, PAIR, NAMES, reference=reference)
    assert all(each.ratio_test is None for each in found.values())


def test_pictures_that_are_tested_change_nothing_of_training():
    source = maps(12, 0)
    target = mapped(source, 4, 20.0)
    before = one(target, source)
    other = [each if i < 20 else each.flip(0) * 7 for i, each in enumerate(source)]
    after = one([each if i < 20 else each - 9 for i, each in enumerate(target)], other)
    assert after.regularisation == before.regularisation
    assert (after.loss_train, after.constant_train) == (before.loss_train, before.constant_train)
    assert after.information_train == before.information_train
    assert after.loss_test > before.loss_test


def test_penalties_are_chosen_on_whole_pictures_that_were_left_out():
    """Tokens of a picture are alike here: left out one by one, memory would look like skill."""
    rng = np.random.default_rng(0)
    source = [torch.tensor(rng.normal(size=(25, 1, 1)) + 0.01 * rng.normal(size=(25, *GRID))).float() for _ in NAMES]
    target = [torch.tensor(rng.normal(size=(4, 1, 1)) + 0.01 * rng.normal(size=(4, *GRID))).float() for _ in NAMES]
    found = one(target, source)
    assert found.regularisation[0] >= 1
    assert found.information.value > -0.2


def test_every_picture_counts_once_over_folds_and_draws_do_not_depend_on_their_order():
    source = maps(6, 0)
    target = mapped(source, 4, 1.0)
    folds = deal(None, NAMES)
    found, turned = one(target, source, folds), one(target, source, folds[::-1])
    assert found.information.pictures == PICTURES
    assert len(found.regularisation) == len(found.tokens) == len(folds)
    assert found.tokens[0] == len(folds[0].train) * math.prod(GRID)
    np.testing.assert_allclose(found.information.samples, turned.information.samples, rtol=1e-12)
    each = [one(target, source, [fold]) for fold in folds]
    assert found.loss_test == pytest.approx(np.mean([part.loss_test for part in each]))  # folds of equal size


def test_training_takes_as_many_tokens_of_each_picture_and_the_same_of_all_sources(monkeypatch):
    source = maps(6, 0)
    target = mapped(source, 4, 1.0)
    monkeypatch.setattr(module, "TOKENS", 20 * 7 + 5)
    found = reconstruct(target, {"a": source, "b": [2 * each for each in source]}, PAIR, NAMES)
    assert found["a"].tokens == (20 * 7,)
    assert found["a"].constant_train == found["b"].constant_train
    assert found["a"].loss_test == pytest.approx(found["b"].loss_test)  # standardised: a factor does not matter
    assert found["a"].loss_train != pytest.approx(one(target, source[::-1]).loss_train)
    monkeypatch.setattr(module, "TOKENS", 3)
    assert one(target, source).tokens == (20,)


def test_channels_that_never_change_do_not_matter():
    source = maps(6, 0)
    target = mapped(source, 4, 1.0)
    padded = [torch.cat([each, torch.full((2, *GRID), 1234.567)]) for each in source]
    assert one(target, padded).loss_test == pytest.approx(one(target, source).loss_test, rel=1e-6)


def test_the_same_call_gives_the_same_figures():
    source = maps(6, 0)
    target = mapped(source, 4, 1.0)
    first, second = one(target, source), one(target, source)
    assert first.loss_test == second.loss_test
    assert np.array_equal(first.information.samples, second.information.samples)


def test_progress_sees_each_fit():
    seen = []
    reconstruct(
        maps(2, 0), {"a": maps(2, 1)}, deal(None, NAMES), NAMES, progress=lambda fits: seen.extend(fits) or fits
    )
    assert seen == [("a", number) for number in range(5)]


def test_copies_in_training_and_test_are_refused():
    with pytest.raises(S2WrapError, match="memory, not a skill"):
        one(maps(2, 0), maps(2, 1), contents=[*NAMES[:29], NAMES[0]])


def test_grids_that_differ_are_refused_with_both():
    with pytest.raises(S2WrapError, match=r"source has a grid of 2×3 tokens for picture 0, the target one of 4×5"):
        one(maps(2, 0), maps(2, 1, grid=(2, 3)))


@pytest.mark.parametrize(
    ("target", "source", "options", "message"),
    [
        (maps(2, 0), maps(2, 1)[1:], {}, "source has features of 29 pictures, but there are 30"),
        (maps(2, 0)[1:], maps(2, 1), {}, "the target has features of 29 pictures"),
        (maps(2, 0), [each / 0 for each in maps(2, 1)], {}, "picture 0 that are infinite or no numbers"),
        ([torch.ones(2, *GRID)] * PICTURES, maps(2, 1), {}, "nothing to recover"),
        (maps(2, 0), maps(2, 1), {"reference": "giant"}, "'giant' is no source; use one of source"),
    ],
)
def test_calls_that_cannot_work_say_why(target, source, options, message):
    with pytest.raises(S2WrapError, match=message):
        one(target, source, **options)
