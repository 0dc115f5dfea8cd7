import base64
import io
import json

import numpy as np
import pytest
from made_up import comparison
from PIL import Image

from s2wrap import S2WrapError
from s2wrap.compare import compare, disagreements, to_html, to_json
from s2wrap.compare.disagree import thumbnail, two_best
from s2wrap.compare.score import mean_score


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A comparison on pictures of two classes, in which classes are told by noise alone."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(24):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (200, 400, 3), dtype=np.uint8)).save(path)
    specs = ["timm:test_vit@1", "timm:test_vit@1,2", "timm:test_vit2@1"]
    return compare(specs, data=folder, tasks=["retrieval"], backends=(), cache=False, pretrained=False)


def test_the_pictures_are_those_of_a_plain_sort_of_the_differences(found):
    values = {row.spec: row.scores["mAP"] for row in found.rows}
    one, other = sorted(values, key=lambda spec: values[spec].value)[:0:-1]
    assert two_best(found, "mAP") == (one, other)
    gaps = [abs(a - b) for a, b in zip(values[one].each, values[other].each, strict=True)]
    order = sorted(range(24), key=lambda index: gaps[index])[:-5:-1]
    told = disagreements(found, "mAP")
    assert [each.picture for each in told] == [found.pictures[index] for index in order]
    assert [each.one for each in told] == [values[one].each[index] for index in order]
    assert [each.other for each in told] == [values[other].each[index] for index in order]
    (entry,) = json.loads(to_json(found))["disagreements"]
    assert (entry["measure"], entry["one"], entry["other"]) == ("mAP", one, other)
    assert [each["picture"] for each in entry["pictures"]] == [each.picture for each in told]


def test_any_two_models_may_be_named_and_others_are_refused(found):
    first, second, third = (row.spec for row in found.rows)
    one, other = disagreements(found, "mAP", (first, third), 1), disagreements(found, "mAP", (third, first), 1)
    assert (one[0].picture, one[0].one, one[0].other) == (other[0].picture, other[0].other, other[0].one)
    assert disagreements(found, "mAP", (second, second)) == []
    with pytest.raises(S2WrapError, match=f"'timm:x@1' has no score in 'mAP'; models that have are {first}"):
        disagreements(found, "mAP", (first, "timm:x@1"))


def test_where_some_pictures_were_tested_those_are_named():
    made_up = comparison(2, tested=["7.jpg", "9.jpg"])
    for row, each in zip(made_up.rows, ([0, 1], [0, 0.5]), strict=True):
        row.scores["accuracy"] = mean_score(each)
    assert [(each.picture, each.one, each.other) for each in disagreements(made_up, "accuracy")] == [("9.jpg", 1, 0.5)]
    assert disagreements(comparison(1), "accuracy") == []


def test_the_page_shows_them_small_with_both_figures(found):
    page = to_html(found)
    for each in disagreements(found, "mAP"):
        uri = thumbnail(each.picture)
        assert len(uri) <= 20_000
        assert f'src="{uri}"' in page
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert (image.format, image.size) == ("JPEG", (160, 80))
        assert f"<b>{100 * each.one:.1f} %</b>" in page
        assert f"<b>{100 * each.other:.1f} %</b>" in page


def test_a_picture_of_16_bits_is_drawn_and_a_lost_one_is_not(tmp_path):
    path = tmp_path / "grey.png"
    values = np.linspace(0, 60_000, 64 * 64).reshape(64, 64)
    Image.fromarray(values.astype(np.uint16)).save(path)
    image = Image.open(io.BytesIO(base64.b64decode(thumbnail(str(path)).partition(",")[2])))
    np.testing.assert_allclose(np.asarray(image.convert("L")), values / 65_535 * 255, atol=6)
    assert thumbnail(str(tmp_path / "none.png")) == ""
