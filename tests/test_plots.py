import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from made_up import comparison

from s2wrap import S2WrapError
from s2wrap.compare.plots import plot
from s2wrap.compare.ways import short_names


@pytest.mark.parametrize(
    ("count", "measures", "timed"),
    [
        (0, ("accuracy",), True),
        (1, ("accuracy",), True),
        (3, ("accuracy", "information"), False),
        (15, ("accuracy",), True),
    ],
)
def test_plots_draw_without_warnings_and_change_nothing_global(count, measures, timed):
    before = dict(matplotlib.rcParams)
    found = comparison(count, measures=measures, timed=timed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for measure in measures:
            figure = plot(found, measure)
            figure.canvas.draw()
            assert len(figure.axes) == (2 if timed and count else 1)
    assert dict(matplotlib.rcParams) == before


def test_points_stand_where_the_figures_say_and_the_front_of_each_panel_is_ringed():
    found = comparison(5)
    for one in found.rows:
        one.timings["eager"]["median_ms"] = 100 - one.timings["eager"]["median_ms"] / 3  # the dearest is the fastest
    cost, time = plot(found).axes
    for axes, costs in (
        (cost, [one.cost.multiply_adds / 1e9 for one in found.rows]),
        (time, [one.timings["eager"]["median_ms"] for one in found.rows]),
    ):
        expected = {(x, round(100 * one.scores["accuracy"].value, 6)) for x, one in zip(costs, found.rows, strict=True)}
        drawn = {(x, round(y, 6)) for points in axes.collections for x, y in np.asarray(points.get_offsets()) if x > 0}
        assert drawn == expected
        rings = next(line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata()))
        best = {(x, y) for x, y in expected if not any((a <= x and b >= y and (a, b) != (x, y)) for a, b in expected)}
        assert {(x, round(y, 6)) for x, y in zip(*rings.get_data(), strict=True)} == best


def test_a_model_without_a_time_or_a_score_is_left_out_of_its_panel():
    found = comparison(3)
    found.rows[0].timings = {"eager": {"reason": "no compiler"}}
    found.rows[1].scores = {}
    cost, time = plot(found).axes
    drawn = [[text.get_text() for text in axes.texts] for axes in (cost, time)]
    assert drawn == [["1", "3"], ["3"]]


@pytest.mark.parametrize(("count", "panels"), [(1, ("cost", "time")), (3, ("cost",)), (15, ("cost", "time"))])
def test_numbers_cover_no_other_number_and_each_stands_in_the_key(count, panels):
    found = comparison(count)
    figure = plot(found, panels=panels)
    figure.canvas.draw()
    key = figure.legends[0].get_texts()
    names = short_names([one.spec for one in found.rows])
    numbered = [f"{number}  {name}" for number, name in enumerate(names, start=1)]
    assert [text.get_text() for text in key] == [*numbered, "Pareto front"]
    for axes in figure.axes:
        assert [text.get_text() for text in axes.texts] == [str(number) for number in range(1, count + 1)]
    texts = [text for axes in figure.axes for text in axes.texts] + key
    boxes = [text.get_window_extent() for text in texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= drawn.x0 < drawn.x1 <= width
    assert 0 <= drawn.y0 < drawn.y1 <= height


def test_a_measure_that_was_not_taken_is_named_with_those_that_were():
    with pytest.raises(S2WrapError, match="'mIoU' is not in this comparison; it has accuracy, k-NN"):
        plot(comparison(measures=("accuracy", "k-NN")), "mIoU")
    with pytest.raises(S2WrapError, match="costs only"):
        plot(comparison(measures=()))
