"""Values of the wrong type: one clear error. Other tests run with checks of types, which are faster to complain."""

import numpy as np
import pytest
import torch

import s2wrap
from s2wrap import S2WrapError, inside, merge_blocks, pixel_unshuffle, similar_to, split_blocks

MAP = torch.zeros(1, 2, 4, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: inside(5), "inside() takes a list of boxes (left, top, right, bottom) in pixels, not 5"),
        (lambda: inside((0, 0, 10, 10)), "box 0 is none; use (left, top, right, bottom) in pixels"),
        (lambda: inside([("a", "b", "c", "d")]), "box ('a', 'b', 'c', 'd') is none"),
        (lambda: inside([(0, 0, 10)]), "box (0, 0, 10) is none"),
        (lambda: inside([None]), "box None is none"),
        (lambda: similar_to("cat"), "similar_to() takes a tensor of vectors (c,) or (n, c), not a str"),
        (lambda: similar_to(np.ones(64)), "not a ndarray"),
        (lambda: similar_to(torch.ones(1, 2, 64)), "not (1, 2, 64)"),
        (lambda: similar_to(torch.ones(0, 64)), "not (0, 64)"),
        (lambda: split_blocks("map", (2, 2)), "takes a map (b, c, height, width), not a str"),
        (lambda: split_blocks(MAP[0], (2, 2)), "takes a map (b, c, height, width), not (2, 4, 4)"),
        (lambda: split_blocks(MAP, 2), "block_size=2 is none; use (rows, columns)"),
        (lambda: split_blocks(MAP, (2.0, 2)), "block_size=(2.0, 2) is none"),
        (lambda: split_blocks(MAP, (2, 2, 2)), "block_size=(2, 2, 2) is none"),
        (lambda: merge_blocks(None, (2, 2)), "merge_blocks() takes blocks (n, c, h, w), not a NoneType"),
        (lambda: merge_blocks(MAP, None), "block_size=None is none"),
        (lambda: pixel_unshuffle([1], 2), "takes a map (b, c, height, width), not a list"),
        (lambda: pixel_unshuffle(MAP, 1.5), "factor=1.5 is no number of neighbours"),
    ],
)
def test_functions_say_what_they_take(call, words):
    with pytest.raises(S2WrapError) as error:
        call()
    assert words in str(error.value)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("image_hw", [5, "480x640", (480,), (480, "640"), (480.5, 640), (True, 640), None])
def test_sizes_of_images_that_are_none_are_refused(vit, fit, image_hw):
    model = s2wrap.wrap(vit, (1, 2), fit=fit)
    for call in (model.plan, model.prepare, model.grids):
        with pytest.raises(S2WrapError) as error:
            call(image_hw)
        assert f"image_hw={image_hw!r} is no image size; use (height, width) in whole pixels" in str(error.value)


def test_sizes_of_images_may_be_numpys(vit):
    model = s2wrap.wrap(vit, (1, 2), fit="pad").prepare(tuple(np.array([100, 200])))
    assert model.plan((np.int64(100), 200)) == model.plan((100, 200))


@pytest.mark.parametrize("name", ["join_layers", "frozen"])
def test_what_is_neither_true_nor_false_is_refused(vit, name):
    with pytest.raises(S2WrapError, match=f"{name}='no' is unknown; use one of True, False"):
        s2wrap.wrap(vit, **{name: "no"})


@pytest.mark.parametrize("select", [1.5, np.True_, "2"])
def test_a_number_of_tiles_that_is_none_is_refused(vit, select):
    with pytest.raises(S2WrapError, match="use 0 to 13"):
        s2wrap.wrap(vit, (1, 2, 3))(torch.zeros(1, 3, 160, 160), select=select)
