import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import s2wrap
from s2wrap import Features, S2WrapError, inside, similar_to


class Counting(nn.Module):
    """The mean colour of every patch, and how many tiles it saw."""

    def __init__(self):
        super().__init__()
        self.tiles = 0

    def forward(self, images):
        self.tiles += images.shape[0]
        return F.avg_pool2d(images, 16)


@pytest.fixture
def counting():
    return Counting()


def test_only_the_selected_tiles_run_and_the_mask_says_which(counting):
    model = s2wrap.wrap(counting, (1, 3), image_size=64)
    images = torch.zeros(2, 3, 192, 192)
    images[0, :, 140:180, 10:50] = 5  # in the tile at the lower left
    images[1, :, 70:120, 70:120] = 5  # in the middle
    counting.tiles = 0
    features = model(images, select=1, by="saliency")
    assert counting.tiles == 2 * (1 + 1)
    assert features.ran[0].all()
    assert features.ran[1].nonzero().tolist() == [[0, 2, 0], [1, 1, 1]]
    assert features.saved == pytest.approx(1 - 2 / 10)


@pytest.mark.parametrize("by", ["saliency", "detail", inside([(0, 0, 50, 50)]), similar_to(torch.ones(64))])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fuse": "detail"},
        {"fuse": "pyramid"},
        {"target_grid": "finest"},
        {"target_grid": (5, 7)},
        {"target_grid": (5, 7), "fuse": "detail"},
    ],
    ids=str,
)
def test_selecting_all_tiles_is_the_plain_pass(vit, options, by):
    images = torch.randn(3, 3, 200, 300)
    model = s2wrap.wrap(vit, (1, 2, 3), overlap=2, **options)
    plain = model(images)
    chosen = model(images, select=model.plan((200, 300)).num_tiles - 1, by=by)
    for ours, theirs in zip((*chosen.maps, *chosen.prefixes), (*plain.maps, *plain.prefixes), strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
    assert chosen.saved == 0


@pytest.mark.parametrize("scales", [(1, 2, 3), (1.5, 3)])
@pytest.mark.parametrize("by", ["saliency", "detail"])
def test_the_grid_and_fusion_of_the_result_do_not_change_which_tiles_run(vit, scales, by):
    images = torch.randn(4, 3, 200, 300)
    expected = s2wrap.wrap(vit, scales, target_grid="coarsest")(images, select=3, by=by)
    for options in (
        {"target_grid": "finest"},
        {"target_grid": (5, 7)},
        {"target_grid": -1, "fuse": "mean"},
        {"fuse": "pyramid"},
        {"fuse": "detail"},
    ):
        found = s2wrap.wrap(vit, scales, **options)(images, select=3, by=by)
        for ours, theirs in zip(found.ran, expected.ran, strict=True):
            assert torch.equal(ours, theirs), options


def test_a_grid_of_one_cell_is_the_average_of_tiles_filled_from_the_smallest_scales_own_grid(vit):
    images = torch.randn(2, 3, 160, 160)
    found = s2wrap.wrap(vit, (1, 3), target_grid=(1, 1))(images, select=2, by=inside([(0, 0, 100, 50)]))
    pyramid = s2wrap.wrap(vit, (1, 3), fuse="pyramid")(images, select=2, by=inside([(0, 0, 100, 50)]))
    averages = torch.cat([level.mean(dim=(2, 3), keepdim=True) for level in pyramid.maps], dim=1)
    torch.testing.assert_close(found.spatial, averages, atol=5e-5, rtol=0)


def test_selecting_none_is_the_smallest_scale_enlarged(vit):
    images = torch.randn(2, 3, 160, 160)
    features = s2wrap.wrap(vit, (1, 2), target_grid="finest", prefix="area")(images, select=0)
    own = vit.forward_features(images)
    coarse = own[:, 1:].transpose(1, 2).unflatten(2, (10, 10))
    smooth = F.interpolate(coarse, size=(20, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(features.spatial[:, :64], smooth, atol=5e-5, rtol=0)
    torch.testing.assert_close(features.spatial[:, 64:], smooth, atol=5e-5, rtol=0)
    torch.testing.assert_close(features.prefix, own[:, :1].repeat(1, 1, 2), atol=5e-5, rtol=0)
    assert features.saved == pytest.approx(4 / 5)


def test_detail_fusion_takes_what_was_left_out_from_the_smallest_scale(vit):
    """Also where none of the middle scale's tiles runs, which the finest is corrected by."""
    images = torch.randn(1, 3, 160, 160)
    model = s2wrap.wrap(vit, (1, 2, 3), fuse="detail")
    coarse = model(images, select=0)

    def finest_corner(images, features):
        heat = torch.zeros(1, 30, 30)
        heat[:, :5, :5] = 1
        return heat

    found = model(images, select=1, by=finest_corner)
    assert [mask.sum().item() for mask in found.ran] == [1, 0, 1]
    moved = (found.spatial - coarse.spatial)[:, :, 10:, 10:]  # by the average of all only, alike everywhere
    torch.testing.assert_close(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-4, rtol=0)
    assert (found.spatial - coarse.spatial)[:, :, :10, :10].std(dim=(2, 3)).mean() > 0.01

    def middle_scale(images, features):  # the upper left quarter: no tile of the finest scale lies in it so well
        heat = torch.zeros(1, 12, 12)
        heat[:, :6, :6] = torch.tensor([0.0, 0, 0, 0, 1, 1])
        heat[:, 4:6, :6] = 1
        return heat

    found = model(images, select=1, by=middle_scale)
    assert [mask.sum().item() for mask in found.ran] == [1, 1, 0]
    moved = found.spatial - coarse.spatial
    torch.testing.assert_close(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-4, rtol=0)


def test_the_selected_part_is_that_of_the_plain_pass_and_the_rest_comes_from_the_smallest_scale(vit):
    images = torch.randn(1, 3, 160, 160)
    model = s2wrap.wrap(vit, (1, 2), fuse="pyramid")
    plain, coarse = model(images), model(images, select=0)
    found = model(images, select=1, by=inside([(90, 5, 150, 70)]))  # the upper right
    assert found.ran[1].tolist() == [[[False, True], [False, False]]]
    torch.testing.assert_close(found.maps[1][:, :, :10, 10:], plain.maps[1][:, :, :10, 10:], atol=5e-5, rtol=0)
    torch.testing.assert_close(found.maps[1][:, :, 10:], coarse.maps[1][:, :, 10:], atol=5e-5, rtol=0)


def test_detail_finds_the_fine_texture_that_the_small_scale_cannot_see(counting):
    images = torch.zeros(1, 3, 192, 192)
    images[:, :, 130:190, 70:120] = (torch.arange(50) % 2).float() * 2 - 1  # stripes of one pixel, mean 0
    images[:, :, 10:50, 10:50] = 0.2  # a flat patch, which stands out for the saliency
    model = s2wrap.wrap(counting, (1, 3), image_size=64)
    assert model(images, select=1, by="detail").ran[1].nonzero().tolist() == [[0, 2, 1]]
    assert model(images, select=1, by="saliency").ran[1].nonzero().tolist() == [[0, 0, 0]]


def test_likeness_to_a_vector_and_a_function_of_ones_own(counting):
    images = torch.zeros(1, 3, 192, 192)
    images[:, 0, :60, :60] = 1
    images[:, 1, 130:, 130:] = 1
    model = s2wrap.wrap(counting, (1, 3), image_size=64)
    green = model(images, select=1, by=similar_to(torch.tensor([0.0, 1.0, 0.0])))
    assert green.ran[1].nonzero().tolist() == [[0, 2, 2]]

    def upper_middle(images, features):
        heat = torch.zeros(len(images), 6, 6)
        heat[:, 0, 2:4] = 1
        return heat

    assert model(images, select=1, by=upper_middle).ran[1].nonzero().tolist() == [[0, 0, 1]]


def test_images_of_other_shapes_select_their_own_tiles(vit):
    model = s2wrap.wrap(vit, (1, 3), fit="aspect", tile_batch=3)
    images = [torch.randn(3, 200, 300), torch.randn(3, 300, 120)]
    for image, features in zip(images, model.encode(images, select=2, by="detail"), strict=True):
        assert features.ran[1].sum() == 2
        alone = model(image[None], select=2, by="detail")
        torch.testing.assert_close(features.spatial, alone.spatial, atol=5e-5, rtol=0)


def test_whole_numbers_of_numpy_are_taken(vit):
    images = torch.randn(1, 3, 160, 160)
    model = s2wrap.wrap(vit, (1, 2))
    assert model(images, select=np.int64(2)).ran[1].sum() == 2


def failing(images, features):
    raise KeyError("no heat today")


def test_one_scale_has_nothing_to_select(vit):
    images = torch.randn(2, 3, 160, 160)
    model = s2wrap.wrap(vit, (2,))
    torch.testing.assert_close(model(images, select=0).spatial, model(images).spatial, atol=5e-5, rtol=0)
    with pytest.raises(S2WrapError, match="has 0 tiles beyond the smallest scale"):
        model(images, select=1)


def test_half_precision_stays(vit):
    import copy

    model = s2wrap.wrap(copy.deepcopy(vit), (1, 2)).to(torch.bfloat16)
    assert model(torch.randn(1, 3, 160, 160), select=0).spatial.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("select", "by", "words"),
    [
        (14, "saliency", "has 13 tiles beyond the smallest scale; use 0 to 13"),
        (-1, "saliency", "use 0 to 13"),
        (True, "saliency", "use 0 to 13"),
        (2, failing, "by='failing' failed on 1 images: KeyError: 'no heat today'"),
        (2, "interest", "by='interest' is unknown; use 'detail', 'saliency', s2wrap.similar_to(vectors)"),
        (2, lambda images, features: torch.zeros(3), "must give finite heat (b, h, w)"),
        (2, lambda images, features: torch.full((1, 2, 2), float("nan")), "must give finite heat (b, h, w)"),
        (2, similar_to(torch.ones(5)), "vectors of 5 channels; tokens have 64"),
    ],
)
def test_wrong_selections_say_what_would_work(vit, select, by, words):
    model = s2wrap.wrap(vit, (1, 2, 3))
    with pytest.raises(S2WrapError) as error:
        model(torch.zeros(1, 3, 160, 160), select=select, by=by)
    assert words in str(error.value)


def test_boxes_that_are_none_are_refused():
    with pytest.raises(S2WrapError, match="left < right"):
        inside([(10, 10, 5, 20)])


@pytest.mark.parametrize(
    ("box", "seen"),
    [
        ((-50, 4, -10, 20), (0, 0, 0, 0)),  # left of the picture
        ((2, -50, 9, -10), (0, 0, 0, 0)),  # above it
        ((-5, -5, 4, 6), (0, 0, 4, 6)),
        ((25, 15, 99, 99), (25, 15, 30, 20)),
        ((40, 2, 60, 9), (0, 0, 0, 0)),  # right of it
    ],
)
def test_a_box_that_reaches_out_of_the_picture_counts_where_it_is_inside(box, seen):
    heat = inside([box])(torch.zeros(2, 3, 20, 30), Features((), ()))
    rows, cols = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    left, top, right, bottom = seen
    expected = (rows >= top) & (rows < bottom) & (cols >= left) & (cols < right)
    assert torch.equal(heat, expected.float().expand(2, -1, -1))


def test_what_is_saved_is_weighed_by_pixels(vit):
    """A whole scale is one tile of four times the pixels of the others."""
    model = s2wrap.wrap(vit, (1, 2, "2:whole"))
    images, areas = torch.randn(1, 3, 320, 320), (160 * 160, 160 * 160, 320 * 320)
    for select in range(6):
        features = model(images, select=select)
        ran = sum(area * int(tiles.sum()) for area, tiles in zip(areas, features.ran, strict=True))
        assert sum(int(tiles.sum()) for tiles in features.ran) == 1 + select
        assert features.saved == pytest.approx(1 - ran / (areas[0] + 4 * areas[1] + areas[2]))
