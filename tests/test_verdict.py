import numpy as np
import pytest

from s2wrap.compare.comparison import Row
from s2wrap.compare.score import mean_score
from s2wrap.compare.verdict import judge, more_pictures, pareto_front, recommend, scaled_pairs
from s2wrap.cost import Cost

SMALL, S2, WHOLE, LARGE = (
    "sample:efficientnet_lite0@1",
    "sample:efficientnet_lite0@1,2",
    "sample:efficientnet_lite0@2:whole",
    "sample:efficientnet_lite2@1",
)

SOON = "about 500 more pictures would decide, if the difference stays so"


def row(spec, right, multiply_adds, parameters=4_000_000, median=None):
    """A model that is right on the first `right` of 200 pictures."""
    cost = Cost(
        parameters=parameters,
        tiles=1,
        tokens=49,
        peak_tokens=49,
        multiply_adds=int(multiply_adds * 1e9),
        attention=0,
        activations=1,
    )
    timings = {} if median is None else {"eager": {"median_ms": median}}
    return Row(spec, cost, scores={"accuracy": mean_score(np.arange(200) < right)}, timings=timings)


def large(right, multiply_adds, **options):
    return row(LARGE, right, multiply_adds, parameters=6_000_000, **options)


def said(*rows):
    verdict, pairs = judge(rows, "accuracy", "200 pictures")
    return verdict + pairs


def test_several_scales_are_put_beside_the_ways_to_spend_the_same():
    rows = [row(SMALL, 1, 1), row(S2, 1, 5), row(WHOLE, 1, 4), large(1, 2)]
    assert [(one.spec, other.spec, what) for one, other, what in scaled_pairs(rows)] == [
        (S2, SMALL, "one scale"),
        (S2, WHOLE, "a larger input"),
        (S2, LARGE, "the larger model"),
    ]


def test_what_is_called_larger_but_costs_less_is_no_rival():
    smaller = row("sample:efficientnet_lite0:size=96@1", 1, 0.2)
    assert [what for *_, what in scaled_pairs([row(SMALL, 1, 1), row(S2, 1, 5), smaller])] == ["one scale"]


def test_a_smaller_model_is_no_rival():
    rows = [row(SMALL, 1, 1), row("sample:efficientnet_lite2@1,2", 1, 5, parameters=6_000_000)]
    assert scaled_pairs(rows) == []


@pytest.mark.parametrize(
    ("scales", "scales_cost", "larger", "larger_cost", "words"),
    [
        (190, 1, 100, 2, "Several scales are better, and cheaper."),
        (190, 4, 100, 2, "Several scales are better, and cost more."),
        (190, 2, 100, 2, "Several scales are better."),
        (100, 4, 190, 2, "The larger model is better, and simply wins: it costs less."),
        (100, 2, 190, 2, "The larger model is better, at the same cost."),
        (100, 1, 190, 2, "The larger model is better, and costs more."),
        (100, 1, 101, 2, f"Undecided, several scales cost less; {SOON}."),
        (101, 4, 100, 2, f"Undecided, the larger model costs less; {SOON}."),
        (101, 2, 100, 2, f"Undecided, at the same cost; {SOON}."),
    ],
)
def test_it_says_who_wins_and_admits_it_when_scales_lose(scales, scales_cost, larger, larger_cost, words):
    sentences = said(row(S2, scales, scales_cost), large(larger, larger_cost))
    (sentence,) = [each for each in sentences if each.startswith("efficientnet_lite0@1,2 against")]
    assert sentence.endswith(words)
    assert f"{(scales - larger) / 2:+.1f} points".replace("-", "−") in sentence
    assert f"at {scales_cost / larger_cost:g} times the multiply-adds" in sentence
    result = "better" if "scales are better" in words else "worse" if "model is better" in words else "undecided"
    counts = {each: int(each == result) for each in ("better", "worse", "undecided")}
    summary = ", ".join(f"{each} in {count}" for each, count in counts.items())
    assert f"Several scales, accuracy beyond the noise: against the larger model {summary}." in sentences


def test_the_best_is_named_with_the_cheapest_that_cannot_be_told_from_it():
    first = said(row(S2, 190, 5), row(SMALL, 188, 1), large(100, 2))[0]
    assert first.startswith("Best accuracy: efficientnet_lite0@1,2, 95.0 % at 5 G multiply-adds.")
    assert "Undecided against efficientnet_lite0@1." in first
    cheapest = "The cheapest of these is efficientnet_lite0@1: 94.0 % at 1 G, 0.2 times the multiply-adds of the best."
    assert cheapest in first
    assert "Its lead over every other is larger than the noise." in said(row(S2, 190, 5), large(100, 2))[0]


def test_time_is_told_where_both_were_timed():
    timed = said(row(S2, 190, 5, median=40), large(100, 2, median=10))
    assert any("at 2.5 times the multiply-adds and 4 times the time (eager)." in each for each in timed)
    assert not any("the time" in each for each in said(row(S2, 190, 5, median=40), large(100, 2)))


def test_more_comparisons_need_a_larger_difference():
    """A lead of 4 of 200 pictures, one against two: 95 % alone, not among twenty models."""
    one, other = row(S2, 100, 5), large(95, 2)
    assert "Several scales are better" in " ".join(said(one, other))
    many = [row(f"timm:resnet{i}@1", 10, 3, parameters=9_000_000) for i in range(60)]
    start = f"{S2} against the larger model, {LARGE}".replace("sample:", "")
    sentences = [each.replace("sample:", "") for each in said(one, other, *many)]
    (sentence,) = [each for each in sentences if each.startswith(start)]
    assert "Undecided" in sentence


def test_one_model_alone_is_not_judged():
    assert said(row(S2, 100, 5)) == [f"Only {S2} has such a score: there is nothing to judge it by."]


def test_few_pictures_give_no_verdict():
    """Resamples of one picture are all alike: they would call any difference certain."""
    rows = [row(S2, 100, 5), large(95, 2)]
    for each, right in zip(rows, (1, 0), strict=True):
        each.scores["accuracy"] = mean_score([right] * 3)
    assert said(*rows) == ["Undecided, accuracy: 3 pictures were tested, too few to tell noise; add 17 more pictures."]
    assert recommend(rows, ["accuracy"], {}) == ["Next: the same comparison with at least 20 pictures that are tested."]


def test_as_many_more_pictures_as_are_said_decide_the_same_difference():
    """The same share of right pictures among so many more: the interval leaves zero."""
    one, other = (mean_score(np.arange(200) % 20 < right) for right in (11, 10))
    shuffled = np.random.default_rng(0).permutation(200)
    other = mean_score((np.arange(200) % 20 < 10)[shuffled])
    difference = one.difference(other)
    assert difference[1] < 0 < difference[0]
    more = int(more_pictures(difference, 200).split()[1].replace(",", ""))
    times = 1 + more / 200
    longer = round(times * 200)
    first = np.resize(np.arange(200) % 20 < 11, longer)
    second = np.resize((np.arange(200) % 20 < 10)[shuffled], longer)
    value, low, _ = mean_score(first).difference(mean_score(second))
    assert low == pytest.approx(0, abs=0.35 * value)
    assert more_pictures((0.0, -0.1, 0.1), 50) == "not even 100 times as many pictures would decide"


def test_one_command_is_recommended_for_the_cheapest_that_nothing_is_shown_to_beat():
    rows = [row(SMALL, 100, 1), row(f"{S2} fuse=mean overlap=2", 188, 5), row(WHOLE, 190, 8)]
    (sentence,) = recommend(rows, ["accuracy"], {"norm": "l2", "whole": False, "output": "image_features"})
    flags = "--norm l2 --tiled --output-part image_features --fuse mean --overlap 2"
    command = f"s2wrap features PICTURES --model {S2} {flags} --output features.parquet"
    assert sentence.startswith(f"Next: {command}: the cheapest")
    for one, right in zip(rows, (190, 100, 100), strict=True):
        one.scores["mIoU"] = mean_score(np.arange(200) < right)
    (sentence,) = recommend(rows, ["accuracy", "mIoU"], {})  # no model is unbeaten in both
    assert sentence.endswith("beat in accuracy.")
    assert f"--model {S2} " in sentence
    assert recommend(rows, [], {}) == recommend(rows[:1], ["accuracy"], {}) == []


def test_the_front_holds_what_nothing_cheaper_reaches():
    rows = [row("a:a", 100, 3), row("a:b", 90, 1), row("a:c", 90, 2), row("a:d", 120, 4), row("a:e", 110, 5)]
    front = pareto_front(rows, "accuracy", lambda each: each.cost.multiply_adds)
    assert [each.spec for each in front] == ["a:b", "a:a", "a:d"]
