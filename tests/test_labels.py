import itertools

import matplotlib
import numpy as np
import pytest
from made_up import comparison

from s2wrap.compare.labels import place_labels
from s2wrap.compare.plots import plot
from s2wrap.compare.ways import short_names

BOTH, ONE = ("cost", "time"), ("cost",)


@pytest.mark.parametrize(("count", "panels"), [(1, BOTH), (3, ONE), (8, BOTH), (15, BOTH), (15, ONE)])
def test_labels_cover_no_other_label_and_none_is_cut_off(count, panels):
    found = comparison(count)
    figure = plot(found, panels=panels)
    figure.canvas.draw()
    texts = [text for axes in figure.axes for text in axes.texts] + figure.texts
    names = short_names([one.spec for one in found.rows])
    told = [text.get_text() for text in texts]
    for number, name in enumerate(names, start=1):
        assert told.count(name) == len(panels) or (
            told.count(str(number)) == len(panels) and told.count(f"{number}  {name}") == 1
        )
    # a text's own box: that of an annotation also holds its arrow
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in (*texts, *figure.legends[0].get_texts())]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= drawn.x0 < drawn.x1 <= width
    assert 0 <= drawn.y0 < drawn.y1 <= height


def test_labels_are_placed_within_bounds_apart_from_each_other_and_from_all_points():
    rng = np.random.default_rng(0)
    for count in (1, 5, 20):
        points, sizes = rng.uniform(40, 260, (count, 2)), rng.uniform(5, 30, (count, 2))
        found = place_labels(points, sizes, bounds=(0, 0, 300, 300), lines=[], distances=(2, 10, 30, 60))
        boxes = [
            (*(point + spot[0] - size / 2), *(point + spot[0] + size / 2))
            for point, size, spot in zip(points, sizes, found, strict=True)
            if spot is not None
        ]
        assert len(boxes) >= count - 1
        for number, box in enumerate(boxes):
            assert min(box) >= 0
            assert max(box) <= 300
            for other in boxes[:number]:
                assert max(box[0], other[0]) >= min(box[2], other[2]) or max(box[1], other[1]) >= min(box[3], other[3])
            for x, y in points:
                assert not (box[0] < x < box[2] and box[1] < y < box[3])
