import numpy as np
import pytest
from scipy.optimize import curve_fit

from s2wrap.compare.curves import Crossing, Curve, crossing, fit_curve
from s2wrap.compare.score import Score, mean_score
from s2wrap.errors import S2WrapError

COSTS = np.array([4e9, 1e10, 2.5e10, 6e10])


def law(floor, rest, b, cost):
    """An error that is floor + rest at 10 G multiply-adds."""
    return floor + rest * (np.asarray(cost) / 1e10) ** -b


def exact(errors):
    return [Score(float(1 - error), np.full(40, 1 - error), 100) for error in errors]


def noisy(errors, seed, pictures=300):
    """Scores on pictures that are as hard for all models: right where the difficulty is above the error."""
    difficulty = np.random.default_rng(seed).uniform(size=pictures)
    draws = np.random.default_rng(0).integers(pictures, size=(300, pictures))
    rights = [difficulty > error for error in errors]
    return [Score(float(right.mean()), right[draws].mean(axis=1), pictures) for right in rights]


@pytest.mark.parametrize("count", [3, 4])
@pytest.mark.parametrize(("floor", "rest", "b"), [(0.1, 0.2, 0.5), (0.0, 0.3, 0.2), (0.15, 0.05, 1.5)])
def test_a_known_curve_is_recovered_from_exact_points(floor, rest, b, count):
    costs = COSTS[:count]
    curve = fit_curve(costs, exact(law(floor, rest, b, costs)))
    assert (curve.low, curve.high) == (4e9, costs[-1])
    assert curve.floor == pytest.approx(floor, abs=2e-3)
    assert curve.b == pytest.approx(b, rel=1e-2)
    assert curve.a == pytest.approx(rest * 1e10**curve.b, rel=1e-2)
    between = np.geomspace(4e9, costs[-1], 9)
    np.testing.assert_allclose(curve.error(between), law(floor, rest, b, between), atol=1e-4)
    low, high = curve.band(7e9)
    assert low == pytest.approx(high) == pytest.approx(curve.error(7e9))


def test_no_other_curve_lies_closer():
    rng = np.random.default_rng(0)
    series_of_errors = [law(0.1, 0.2, 0.5, COSTS) + 0.01 * rng.normal(size=4) for _ in range(8)]
    series_of_errors += [np.array([0.3, 0.2, 0.1, 0.01]), np.array([0.3, 0.29, 0.2, 0.0])]  # want a floor below 0
    for errors in series_of_errors:
        curve = fit_curve(COSTS, exact(errors))

        def power(cost, floor, rest, b):
            return law(floor, rest, b, cost)

        bounds = ([0, 0, 0.02], [1, 9, 3])
        starts = [(0.05, 0.2, b) for b in (0.1, 0.3, 1.0, 2.0)]
        theirs = [curve_fit(power, COSTS, errors, start, bounds=bounds, maxfev=20_000)[0] for start in starts]
        loss = min(np.square(law(each[0], each[1], each[2], COSTS) - errors).sum() for each in theirs)
        assert np.square(curve.error(COSTS) - errors).sum() <= loss * (1 + 1e-4) + 1e-12
        assert 0 <= curve.floor <= 1
        assert curve.a >= 0
        assert 0.02 <= curve.b <= 3


def test_the_order_of_the_models_does_not_matter():
    errors = law(0.1, 0.2, 0.5, COSTS) + np.array([0.01, -0.01, 0.005, 0])
    turned = fit_curve(COSTS[::-1], exact(errors[::-1]))
    np.testing.assert_allclose(turned.error(COSTS), fit_curve(COSTS, exact(errors)).error(COSTS), atol=1e-6)


def test_a_series_that_gets_worse_is_flat_at_its_average():
    curve = fit_curve(COSTS, exact([0.2, 0.25, 0.3, 0.35]))
    assert curve.a == 0
    np.testing.assert_allclose(curve.error(COSTS), 0.275)
    same = fit_curve(COSTS, exact([0.2] * 4))
    np.testing.assert_allclose(same.error(COSTS), 0.2)
    np.testing.assert_allclose(fit_curve(COSTS, exact([0.0] * 4)).error(COSTS), 0, atol=1e-12)


def test_a_model_out_of_line_bends_the_curve_but_does_not_break_it():
    errors = [0.3, 0.2, 0.24, 0.15]
    curve = fit_curve(COSTS, exact(errors))
    assert np.all(np.diff(curve.error(np.geomspace(4e9, 6e10, 50))) <= 0)
    assert np.abs(curve.error(COSTS) - errors).max() < 0.05


def test_refits_are_of_the_first_resamples_in_their_order():
    scores = [mean_score(np.arange(50) > 50 * error) for error in (0.3, 0.2, 0.16)]
    curve = fit_curve(COSTS[:3], scores)
    assert curve.samples.shape == (300, 3)
    for index in range(5):
        alone = fit_curve(COSTS[:3], exact([1 - each.samples[index] for each in scores]))
        np.testing.assert_allclose(curve.errors(COSTS)[index], alone.error(COSTS), atol=1e-6)


def test_bands_hold_the_truth_about_as_often_as_they_say():
    truth = law(0.1, 0.2, 0.5, COSTS)
    at = np.array([6e9, 4e10])
    trials = 24
    inside = np.zeros(2)
    for seed in range(trials):
        curve = fit_curve(COSTS, noisy(truth, seed))
        for number, level in enumerate((0.95, 0.5)):
            low, high = curve.band(at, level)
            inside[number] += np.mean((low <= law(0.1, 0.2, 0.5, at)) & (law(0.1, 0.2, 0.5, at) <= high))
    wide, narrow = inside / trials
    assert wide >= 0.8
    assert 0.2 <= narrow <= 0.8


def test_a_band_is_the_middle_of_the_refits():
    found = curve(0.5, 0, 1, samples=[(number / 100, 0, 1) for number in range(101)])
    assert found.band(2e9, 0.9) == pytest.approx((0.05, 0.95))
    low, high = found.band([[1e9, 2e9]])
    np.testing.assert_allclose((low, high), [[[0.025] * 2], [[0.975] * 2]])


def test_bands_get_narrower_with_more_pictures():
    truth = law(0.1, 0.2, 0.5, COSTS)
    few, many = (np.ptp(fit_curve(COSTS, noisy(truth, 0, pictures)).band(1e10)) for pictures in (100, 900))
    assert many == pytest.approx(few / 3, rel=0.5)


def test_the_crossing_of_two_known_curves_is_found():
    def difference(cost):
        return law(0.1, 0.1, 1.0, cost) - law(0.15, 0.04, 0.2, cost)

    low, high = 4e9, 6e10
    for _ in range(60):  # bisection
        middle = (low + high) / 2
        low, high = (middle, high) if difference(middle) > 0 else (low, middle)
    one = fit_curve(COSTS, exact(law(0.1, 0.1, 1.0, COSTS)))
    other = fit_curve(COSTS * 1.1, exact(law(0.15, 0.04, 0.2, COSTS * 1.1)))
    found = crossing(one, other)
    assert found.shared == (4.4e9, 6e10)
    assert found.lower == (1, 0)
    assert found.costs == pytest.approx((low,), rel=1e-3)
    assert found.share == 1
    assert found.intervals[0] == pytest.approx((low, low), rel=1e-3)
    back = crossing(other, one)
    assert (back.lower, back.costs) == ((0, 1), found.costs)


def test_a_crossing_is_as_uncertain_as_the_pictures_make_it_and_shared_noise_does_not_count():
    steep, shallow = law(0.1, 0.1, 1.0, COSTS), law(0.15, 0.04, 0.2, COSTS)
    found = crossing(fit_curve(COSTS, noisy(steep, 0, 2000)), fit_curve(COSTS, noisy(shallow, 0, 2000)))
    assert found.lower == (1, 0)
    assert 0.8 < found.share <= 1
    low, high = found.intervals[0]
    assert low < found.costs[0] < high
    other = crossing(fit_curve(COSTS, noisy(steep, 1, 2000)), fit_curve(COSTS, noisy(shallow, 2, 2000)))
    assert np.ptp(np.log(other.intervals[0])) > np.ptp(np.log(found.intervals[0]))


def curve(floor, a, b, low=1e9, high=1e10, samples=None):
    return Curve(low, high, floor, a, b, np.array(samples or [(floor, a, b)] * 4))


def test_a_curve_that_is_lower_all_along_is_so_in_its_share_of_refits():
    one = curve(0.1, 0, 1, samples=[(0.1, 0, 1)] * 3 + [(0.3, 0, 1)])
    found = crossing(one, curve(0.2, 0, 1))
    assert (found.lower, found.costs, found.share) == ((0,), (), 0.75)
    assert found.sentence("a", "b") == "`a` is better from 1 to 10 G multiply-adds in 75 % of resamples"
    nearly = Crossing((1e9, 1e10), (1e9, 1e10), (0,), share=299 / 300)
    assert nearly.sentence("a", "b").endswith("in 99 % of resamples")
    assert crossing(curve(0.2, 0, 1), one).sentence("b", "a") == found.sentence("a", "b")


def test_curves_that_cross_twice_are_told_in_order():
    one, other = curve(0.1, 1e9 / 5, 1.0, high=1e12), curve(0.0, 0.22 * 1e9**0.2, 0.2, high=1e12)
    found = crossing(one, other)
    assert found.lower == (1, 0, 1)
    for cost in found.costs:
        assert one.error(cost) == pytest.approx(other.error(cost), rel=1e-3)
    assert "`b` is better below" in found.sentence("a", "b")
    assert ", `a` from there to " in found.sentence("a", "b")
    assert found.sentence("a", "b").endswith(", `b` above, in 100 % of resamples")


def test_curves_without_common_costs_or_without_a_difference_say_so():
    apart = crossing(curve(0.1, 0, 1), curve(0.2, 0, 1, low=2e10, high=1.234e11))
    assert apart.shared is None
    assert apart.sentence("a", "b") == (
        "the curves share no range of compute: `a` covers 1 to 10 G multiply-adds, `b` 20 to 123"
    )
    same = crossing(curve(0.1, 0, 1), curve(0.1, 0, 1))
    assert same.sentence("a", "b") == "`a` and `b` are the same from 1 to 10 G multiply-adds"


def test_a_crossing_reads_in_giga_multiply_adds():
    found = Crossing((3e9, 5e10), (1e9, 6e10), (0, 1), (1.23456e10,), ((9.1e9, 2.04e10),), 0.97)
    assert found.sentence("a", "b") == (
        "`a` is better below 12.3 G multiply-adds (9.1 to 20.4), `b` above, in 97 % of resamples"
    )


@pytest.mark.parametrize(
    ("costs", "errors", "message"),
    [
        ([1e9, 2e9], [0.2, 0.1], "2 costs and 2 scores make no curve; give three models or more"),
        ([1e9, 2e9, 2e9], [0.3, 0.2, 0.1], "are 2 different ones; a curve needs three"),
        ([0, 1e9, 2e9], [0.3, 0.2, 0.1], "not all positive"),
        ([1e9, 2e9, 3e9], [0.3, 0.2, -0.1], "a score of 1.1 is no share"),
    ],
)
def test_points_that_make_no_curve_say_why(costs, errors, message):
    with pytest.raises(S2WrapError, match=message):
        fit_curve(costs, exact(errors))


def test_scores_and_curves_of_different_pictures_are_refused():
    with pytest.raises(S2WrapError, match=r"scores are of \[300, 300, 200\] pictures"):
        fit_curve(COSTS[:3], [*noisy([0.3, 0.2], 0), *noisy([0.1], 0, pictures=200)])
    with pytest.raises(S2WrapError, match="curves of 4 and 2 refits"):
        crossing(curve(0.1, 0, 1), curve(0.1, 0, 1, samples=[(0.1, 0, 1)] * 2))
