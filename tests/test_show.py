from functools import partial

import commands
import numpy as np
import pytest
import torch
from PIL import Image

import s2wrap
from s2wrap.errors import S2WrapError
from s2wrap.look import FONT, GAP, RAMP, SIDE, every_scale, panels

run = partial(commands.run, "show")

TINY = ["--model", "timm:test_vit@1,2", "--random-weights"]
TOP = GAP + 2 * round(1.3 * FONT)
"""Where the panels of the first row begin, in pictures without a head."""


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)


def test_a_photograph_has_a_panel_for_every_scale_and_one_for_the_result(photo, tmp_path, capsys):
    output = tmp_path / "show.png"
    assert run(photo, *TINY, "--output", output) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"wrote {output}\n", "")  # and no bar, where nobody watches
    with Image.open(output) as picture:
        assert picture.format == "PNG"
        assert picture.width == 4 * SIDE + 5 * GAP


def test_photographs_are_rows_and_another_model_stands_beside_the_first(photo, tmp_path):
    Image.new("RGB", (40, 80), "red").save(tmp_path / "tall.png")
    sizes = []
    for number, more in enumerate(([], [tmp_path / "tall.png"], ["--with", "timm:test_vit2@1"])):
        output = tmp_path / f"{number}.png"
        assert run(photo, *TINY, *more, "--output", output) == 0
        sizes.append(Image.open(output).size)
    assert sizes[1][1] >= sizes[0][1] + SIDE
    assert sizes[2][0] == sizes[0][0] + SIDE + GAP
    head = np.asarray(Image.open(output).convert("L"))[GAP : GAP + round(1.3 * FONT)] < 128
    begins = [GAP + number * (SIDE + GAP) for number in range(5)]  # the photograph, three maps, and one of the other
    written = [bool(head[:, left : left + SIDE].any()) for left in begins]
    assert written == [False, True, False, False, True]


def test_every_pixel_of_a_panel_has_the_colour_of_the_cell_that_lies_there(model, images):
    for fit in ("stretch", "pad"):
        wrapped = s2wrap.wrap(model.backbone, (1, 2), fit=fit)
        features = wrapped(images)
        picture = np.asarray(features[0].show())
        ((panel,),) = panels([[features[0]]])
        height = round(SIDE * 60 / 90)
        for y, x in [(0, 0), (3, 200), (height // 3, SIDE // 3), (height - 1, SIDE - 1)]:
            row, column = features.geometry[0].cell_at(((y + 0.5) * 60 / height, (x + 0.5) * 90 / SIDE))
            np.testing.assert_array_equal(picture[TOP + y, GAP + x], panel.cells[int(row), int(column)])


def test_the_cell_at_the_point_is_the_brightest_and_others_are_as_bright_as_they_are_alike(model, images):
    features = s2wrap.wrap(model.backbone, (1, 2), fuse="pyramid")(images)
    shown = panels([[each] for each in features], (70 / 90, 20 / 60))
    for k, spatial in enumerate(features.maps):
        row, column = (int(cell) for cell in features.geometry[k].cell_at((20, 70)))
        np.testing.assert_array_equal(shown[0][k].cells[row, column], np.round(RAMP[-1]))
        cosines = torch.cosine_similarity(spatial, spatial[:1, :, row, column, None, None]).flatten()
        light = np.concatenate([of_photo[k].cells.sum(axis=-1).ravel() for of_photo in shown])
        assert (np.diff(light[cosines.argsort()].astype(int)) >= -2).all()  # rounded colours


def test_equal_photographs_have_equal_colours_and_so_have_their_equal_parts(model, images):
    one, other = every_scale(model)
    twice = [[one(images[:1]), other(images[:1])]] * 2
    for first, second in zip(*panels(twice), strict=True):
        np.testing.assert_array_equal(first.cells, second.cells)
    first, second = panels([[one(each[None])] for each in images])
    assert not np.array_equal(first[0].cells, second[0].cells)


def test_features_are_shown_beside_any_kind_of_photograph(model, images, photo):
    features = model(images)
    assert features.show().width < features.show(images).width
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    assert np.array_equal(features.show(images, (5, 6)), features.show(pictures, (5, 6)))
    assert features[0].show(photo).height < features.show(images).height
    layers = s2wrap.wrap(model.backbone.model, (1, 2), layers=(0, 1), join_layers=False, fuse="pyramid")
    assert layers(images).show().width == 4 * SIDE + 5 * GAP


def test_a_single_scale_is_shown_once(model):
    assert len(every_scale(s2wrap.wrap(model.backbone, (1,)))) == 1
    assert len(every_scale(s2wrap.wrap(model.backbone, (1, 2), fuse="pyramid"))) == 1
    both = every_scale(s2wrap.wrap(model.backbone, (1, 2), fuse="weighted", weights=(1, 2), target_grid=(3, 3)))
    assert [each.options.fuse for each in both] == ["pyramid", "weighted"]


def test_photographs_that_cannot_be_shown_are_refused(model, images):
    features = model(images)
    for image, words in ((images[0], "1 photographs for the features of 2"), (images / 255, "float32")):
        with pytest.raises(S2WrapError, match=words):
            features.show(image)
    for point in ((91, 5), (5, -1), (float("nan"), 5)):
        with pytest.raises(S2WrapError, match=r"outside the photograph of 60×90 pixels"):
            features.show(point=point)


def test_calls_that_cannot_work_are_one_sentence_and_exit_code_2_and_write_nothing(photo, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "there.png").write_text("kept")
    new = tmp_path / "new.png"
    wrong = {
        "there is no such file": [tmp_path / "missing.png", "--output", new],
        "is a folder; name its photographs": [tmp_path, "--output", new],
        "not a picture": [tmp_path / "text.png", "--output", new],
        "outside the photograph of 60×90 pixels": [photo, "--point", "91,10", "--output", new],
        "is no point": [photo, "--point", "here", "--output", new],
        "exists already; add --overwrite": [photo, "--output", tmp_path / "there.png"],
        "is no .png": [photo, "--output", tmp_path / "new.jpg"],
        "unknown": [photo, "--model", "nobody:knows@1", "--output", new],
        "cannot write": [photo, *TINY, "--output", tmp_path / "nowhere" / "new.png"],
    }
    for words, arguments in wrong.items():
        assert run(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert not new.exists()
    assert (tmp_path / "there.png").read_text() == "kept"
    assert run(photo, *TINY, "--output", tmp_path / "there.png", "--overwrite") == 0
    assert Image.open(tmp_path / "there.png").format == "PNG"
