import numpy as np
import pytest
from scipy import stats

from s2wrap.compare.score import mean_score, resampled, score


def test_an_interval_is_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).random(60)
    ours = mean_score(values).interval()
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=2).confidence_interval
    assert ours == pytest.approx(theirs, abs=0.01)


def test_a_shared_part_is_not_in_a_difference():
    noise = np.random.default_rng(0).random(50)
    one, two = mean_score(noise), mean_score(noise - 0.1)
    assert one.difference(two) == pytest.approx((0.1, 0.1, 0.1))
    low, high = one.interval()
    assert high - low > 0.1


def test_every_row_draws_as_many_pictures_as_there_are():
    counts = resampled(7)
    assert (counts.sum(axis=1) == 7).all()
    assert np.array_equal(counts, resampled(7))
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.1)


def test_a_ratio_of_totals_is_resampled_as_such():
    parts = np.array([[1.0, 2], [0, 4], [3, 3]])
    found = score(parts, lambda totals: totals[:, 0] / totals[:, 1])
    assert found.value == pytest.approx(4 / 9)
    by_hand = [parts[np.repeat(range(3), draw)].sum(axis=0) for draw in resampled(3)]
    assert found.samples == pytest.approx([right / total for right, total in by_hand])
    assert found.each.tolist() == [0.5, 0, 1]
    assert mean_score([0, 1, 0.5]).each.tolist() == [0, 1, 0.5]


def test_a_wider_level_is_wider():
    found = mean_score(np.random.default_rng(0).random(40))
    assert found.interval(0.99)[0] < found.interval(0.9)[0] < found.interval(0.9)[1] < found.interval(0.99)[1]


def test_a_difference_has_the_two_sided_normal_interval_of_the_paired_samples():
    rng = np.random.default_rng(3)
    one, two = mean_score(rng.random(30)), mean_score(rng.random(30))
    noise = np.std([first - second for first, second in zip(one.samples, two.samples, strict=True)])
    for level in (0.8, 0.95, 0.999):
        ends = stats.norm.interval(level, loc=one.value - two.value, scale=noise)
        assert one.difference(two, level) == pytest.approx((one.value - two.value, *ends))
