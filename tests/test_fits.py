"""Any image: the laws that hold for every fit, overlap, blend, fusion and grid."""

from itertools import product
from typing import get_args

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import s2wrap
from s2wrap import S2WrapError, Scale
from s2wrap.options import Blend
from s2wrap.resample import resize


class Local(nn.Module):
    """The mean colour of every patch, and its square: local, not linear, alike in rows and columns."""

    def forward(self, images):
        return torch.cat([F.avg_pool2d(images, 8), F.avg_pool2d(images, 8) ** 2], dim=1)


class Offset(nn.Module):
    """A local backbone whose every tile carries an offset and a slope of its own, as a tile seen alone does."""

    def forward(self, images):
        local = F.avg_pool2d(images, 8)
        slope = torch.linspace(-1, 1, local.shape[-1])
        return local + 3 * images.mean(dim=(1, 2, 3), keepdim=True) * (1 + slope + slope[:, None])


class Convolution(nn.Module):
    """Convolutional by its looks, and takes any size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 8, stride=8)

    def forward(self, images):
        return self.stem(images)


FITS = [
    {},
    {"fit": "aspect"},
    {"fit": "pad"},
    {"overlap": 3},
    {"overlap": 3, "blend": "gaussian", "fit": "aspect"},
    {"overlap": 7, "blend": "trim", "fit": "pad"},
    {"fit": "pad", "policy": "anyres"},
    {"whole": True},
    {"whole": True, "fit": "aspect"},
    {"whole": True, "fit": "pad"},
    {"phases": 2},
    {"phases": 3, "overlap": 2, "fit": "aspect"},
]
ENDS = [
    {},
    {"fuse": "mean"},
    {"fuse": "detail"},
    {"fuse": "pyramid"},
    {"target_grid": "finest"},
    {"target_grid": (11, 5)},
    {"norm": "std"},
    {"norm": "l2"},
    {"fuse": "detail", "target_grid": (7, 9)},
]


def looking(**options):
    return s2wrap.wrap(Local(), (1, 1.5, 2), image_size=64, **options)


@pytest.mark.parametrize("fit", FITS, ids=str)
@pytest.mark.parametrize("end", ENDS, ids=str)
@pytest.mark.parametrize("image_hw", [(64, 64), (100, 231), (300, 70)])
def test_a_constant_image_gives_a_constant_map(fit, end, image_hw):
    """Also next to padding, which is of another colour."""
    images = torch.tensor([0.3, -1.0, 2.0])[None, :, None, None].expand(2, 3, *image_hw)
    for level in looking(**fit, **end)(images).maps:
        torch.testing.assert_close(level, level[:, :, :1, :1].expand_as(level), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fit", FITS, ids=str)
@pytest.mark.parametrize("end", [end for end in ENDS if "target_grid" not in end], ids=str)
def test_transposing_the_image_transposes_the_result(fit, end):
    images = torch.randn(1, 3, 90, 200)
    model = looking(**fit, **end)
    for upright, lying in zip(model(images).maps, model(images.mT).maps, strict=True):
        torch.testing.assert_close(lying.mT, upright, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("overlap", "blend"), [(0, "smooth"), *product([1, 3, 7], get_args(Blend))])
def test_a_local_backbone_shows_no_tiles_under_any_overlap_and_blend(overlap, blend):
    images = torch.rand(1, 3, 192, 192)
    model = s2wrap.wrap(Local(), (3,), image_size=64, overlap=overlap, blend=blend)
    torch.testing.assert_close(model(images).spatial, Local()(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("image_hw", [(40, 100), (64, 33), (17, 120), (200, 64), (90, 90)])
@pytest.mark.parametrize("options", [{}, {"overlap": 2}, {"whole": True}, {"policy": "anyres"}])
def test_padding_keeps_the_aspect_and_never_leaks(image_hw, options):
    """What a local backbone sees in the resized image alone, its last pixels repeated to full patches."""
    images = torch.rand(1, 3, *image_hw)
    model = s2wrap.wrap(Local(), (1, 2), image_size=64, fit="pad", fuse="pyramid", **options)
    features = model(images)
    for level, scale in zip(features.maps, features.plan.scales, strict=True):
        height, width = scale.image_hw
        assert abs(height / width * image_hw[1] / image_hw[0] - 1) < 1 / min(height, width)
        if scale.block_size == (1, 1) or (height % 8, width % 8) == (0, 0):
            resized = resize(images, scale.image_hw)
            full = F.pad(resized, (0, -width % 8, 0, -height % 8), mode="replicate")
            tokens = Local()(full)
            cells = F.interpolate(
                tokens.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)[:, :, :height, :width],
                size=tuple(level.shape[-2:]),
                mode="area",
            )
            if height % level.shape[-2] == 0 and width % level.shape[-1] == 0:  # else torch's cells overlap
                torch.testing.assert_close(level, cells, atol=1e-5, rtol=0)
        assert level.shape[-2:] == (round(height / 8), round(width / 8))


@pytest.mark.parametrize("image_hw", [(40, 100), (64, 33), (30, 120), (200, 64), (90, 90)])
@pytest.mark.parametrize("options", [{"phases": 2}, {"phases": 4}, {"phases": 2, "whole": True}])
def test_padding_keeps_the_aspect_and_never_leaks_whatever_the_phases(image_hw, options):
    model = s2wrap.wrap(Local(), (1, 2), image_size=64, fit="pad", fuse="pyramid", **options)
    features = model(5 + torch.rand(1, 3, *image_hw))
    phases = options["phases"]
    shift = 8 - 8 // phases
    for level, scale, side in zip(features.maps, features.plan.scales, (64, 128), strict=True):
        height, width = scale.image_hw
        assert max(height, width) == side + shift
        assert abs(height / width * image_hw[1] / image_hw[0] - 1) < 1 / min(height, width)
        assert level.shape[-2:] == tuple(max(1, round((full - shift) / 8)) * phases for full in (height, width))
        assert level.min() > 4.5


@pytest.mark.parametrize("phases", [1, 2, 4])
def test_phases_refuse_no_image_that_padding_leaves_a_patch(phases):
    plan = s2wrap.wrap(Local(), (1,), image_size=64, fit="pad", phases=phases).plan((80, 10))
    assert plan.scales[0].image_hw[0] == 72 - 8 // phases
    assert plan.scales[0].image_hw[1] >= 8


@pytest.mark.parametrize(("patch", "tile_hw"), [(7, (50, 66)), (12, (40, 40)), (30, (240, 240)), (8, (64, 64))])
@pytest.mark.parametrize("fuse", ["pyramid", "detail"])
def test_padding_never_leaks_whatever_the_patch(patch, tile_hw, fuse):
    """The image's own colours come out, not the padding's: all of them lie far from it."""
    images = 5 + torch.rand(1, 3, 200, 330)
    model = s2wrap.wrap(nn.AvgPool2d(patch), (1, 2.6), image_size=tile_hw, fit="pad", fuse=fuse)
    for level in model(images).maps:
        assert level.min() > 4.9


def test_padding_is_weighed_out_of_the_prefix_tokens():
    class Prefix(nn.Module):
        def forward(self, images):
            patches = F.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
            return torch.cat([images.amax(dim=(2, 3))[:, None], patches], dim=1)

    images = torch.ones(1, 3, 40, 160)
    images[..., 128:] = 7.0
    model = s2wrap.wrap(Prefix(), ("160px",), image_size=64, num_prefix_tokens=1, fit="pad")
    # tiles at 0, 64 and 96 answer for 64, 48 (up to 112) and 48 pixels; the third sees the bright ones
    expected = (64 * 1 + 48 * 1 + 48 * 7) / 160
    torch.testing.assert_close(model(images).prefix, torch.full((1, 1, 3), expected), atol=1e-5, rtol=0)


def test_aspect_gives_a_picture_the_tiles_that_suit_it():
    model = s2wrap.wrap(Local(), (1, Scale(2, max_tiles=6)), image_size=64, fit="aspect")
    plan = model.plan((100, 300))
    assert plan.scales[0].image_hw == (64, 64)
    assert plan.scales[1].image_hw == (64, 192)
    assert plan.scales[1].block_size == (1, 3)
    assert model.plan((300, 200)).scales[1].block_size == (3, 2)

    def always(image_hw, tile_hw, min_tiles, max_tiles):
        return 1, max_tiles

    model = s2wrap.wrap(Local(), (2,), image_size=64, fit="aspect", policy=always)
    assert model.plan((100, 300)).scales[0].image_hw == (64, 4 * 64)


def test_whole_keeps_the_aspect_and_the_pixels_of_the_square():
    model = s2wrap.wrap(Local(), (2,), image_size=64, fit="aspect", whole=True)
    (scale,) = model.plan((100, 400)).scales
    assert scale.image_hw == (64, 256)
    assert scale.block_size == (1, 1)


@pytest.mark.parametrize("size", [(8, 8), (24, 12), (5, 9), (16, 16), (7, 30)])
def test_target_grids_are_area_averages_downward_and_linear_upward(size):
    images = torch.rand(2, 3, 128, 128)
    tokens = Local()(images)  # 16 × 16
    found = s2wrap.wrap(Local(), (2,), image_size=64, target_grid=size)(images).spatial
    rows, cols = (matrix_by_formula(16, cells) for cells in size)
    torch.testing.assert_close(found, rows @ tokens @ cols.T, atol=1e-5, rtol=0)


def matrix_by_formula(tokens, cells):
    """Downward the share of each cell that each token has; upward torch's own linear interpolation."""
    if cells > tokens:
        line = torch.eye(tokens)[None]
        return F.interpolate(line, size=cells, mode="linear", align_corners=False)[0].T
    matrix = torch.zeros(cells, tokens)
    for step in range(cells * tokens):  # in parts that lie in one token and one cell
        matrix[step // tokens, step // cells] += 1 / tokens
    return matrix


def test_whole_numbers_of_numpy_are_taken():
    images = torch.rand(1, 3, 64, 64)
    plain = looking(overlap=2, tile_batch=3, target_grid=(4, 6))
    two, three, grid = np.int64(2), np.int32(3), (np.int64(4), np.uint8(6))
    model = looking(overlap=two, tile_batch=three, target_grid=grid)
    torch.testing.assert_close(model(images).spatial, plain(images).spatial, atol=0, rtol=0)
    assert looking(target_grid=two)(images).spatial.shape[-2:] == (16, 16)


def test_a_policy_for_some_scales_is_taken_by_those_alone():
    model = s2wrap.wrap(Local(), (1, Scale(2, "aspect"), "3:whole"), image_size=64, policy="anyres")
    assert model.plan((64, 128)).scales[1].block_size == (1, 2)


def test_grids_by_word_and_by_scale():
    model = {name: s2wrap.wrap(Local(), (2, 1, 3), image_size=64, target_grid=name) for name in ("finest", 0, -1, None)}
    images = torch.rand(1, 3, 64, 64)
    assert {name: m(images).spatial.shape[-1] for name, m in model.items()} == {"finest": 24, 0: 16, -1: 24, None: 8}


def test_scales_below_1_run_whole_where_the_backbone_takes_it_and_padded_where_not(vit):
    images = torch.rand(1, 3, 160, 160)
    model = s2wrap.wrap(timm.create_model("test_vit"), (0.5, 1), fuse="pyramid")
    assert model.plan((160, 160)).scales[0].tile_hw == (80, 80)
    small = timm.create_model("test_vit", img_size=80)
    small.load_state_dict(
        {k: v for k, v in model.backbone.model.state_dict().items() if k != "pos_embed"}, strict=False
    )
    from timm.layers import resample_abs_pos_embed

    small.pos_embed = nn.Parameter(
        resample_abs_pos_embed(model.backbone.model.pos_embed, [5, 5], [10, 10], num_prefix_tokens=1)
    )
    own = small.eval().forward_features(resize(images, (80, 80)))[:, 1:].transpose(1, 2).unflatten(2, (5, 5))
    torch.testing.assert_close(model(images).maps[0], own, atol=5e-5, rtol=0)

    fixed = s2wrap.wrap(timm.create_model("mixer_s32_224"), (0.5, 1), fuse="pyramid")
    (small, _) = fixed.plan((224, 224)).scales
    assert (small.image_hw, small.tile_hw, small.padding_hw) == ((112, 112), (224, 224), (112, 112))
    assert fixed(torch.rand(1, 3, 224, 224)).maps[0].shape[-2:] == (4, 4)


def test_whole_scales_are_the_models_own_pass_at_that_size():
    model = timm.create_model("test_vit", num_classes=0)
    larger = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    larger.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 320, 480)
    wrapped = s2wrap.wrap(model, (Scale(2, fit="aspect"), 1), whole=True, fuse="pyramid")
    height, width = wrapped.plan((320, 480)).scales[0].image_hw
    assert (height, width) == (256, 400)  # as many pixels as 320 × 320, in whole patches
    own = larger.forward_features(resize(images, (height, width)))
    found = wrapped(images)
    torch.testing.assert_close(found.maps[0].flatten(2).mT, own[:, 1:], atol=5e-5, rtol=0)
    torch.testing.assert_close(found.prefixes[0], own[:, :1], atol=5e-5, rtol=0)
    base = larger.forward_features(resize(images, (160, 160)))  # the own size computes what it did
    torch.testing.assert_close(found.maps[1].flatten(2).mT, base[:, 1:], atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "whole"),
    [("test_resnet", True), ("test_efficientnet", True), ("test_vit", False), ("test_convnext", True)],
)
def test_convolutional_networks_see_scales_whole_by_default(name, whole):
    model = s2wrap.wrap(timm.create_model(name, num_classes=0), (1, 2))
    assert model.backbone.convolutional == whole
    side = model.backbone.image_hw[0]
    assert model.plan((side, side)).num_tiles == (2 if whole else 5)
    assert s2wrap.wrap(timm.create_model(name, num_classes=0), (1, 2), whole=not whole).plan(
        (side, side)
    ).num_tiles == (5 if whole else 2)


def test_a_whole_pass_of_a_convolution_is_its_tiles_where_those_do_not_overlap():
    """No padding, stride as wide as the kernel: the tiles of this network are independent."""
    network = Convolution()
    images = torch.randn(1, 3, 150, 220)
    whole = s2wrap.wrap(network, (1, 3), image_size=64)
    tiled = s2wrap.wrap(network, (1, 3), image_size=64, whole=False)
    assert (whole.plan((150, 220)).num_tiles, tiled.plan((150, 220)).num_tiles) == (2, 10)
    torch.testing.assert_close(whole(images).spatial, tiled(images).spatial, atol=1e-5, rtol=0)


def test_a_whole_scale_counts_as_its_tiles_in_a_batch():
    class Recorder(Convolution):
        calls: list = []  # noqa: RUF012

        def forward(self, images):
            self.calls.append(tuple(images.shape))
            return super().forward(images)

    network = Recorder()
    model = s2wrap.wrap(network, (1, 2), image_size=64, tile_batch=8)
    network.calls.clear()
    model(torch.rand(6, 3, 64, 64))
    assert network.calls == [(6, 3, 64, 64), (2, 3, 128, 128), (2, 3, 128, 128), (2, 3, 128, 128)]


def test_a_fixed_backbone_refuses_whole_and_stays_as_it_was():
    mixer = timm.create_model("mixer_s32_224", num_classes=0).eval()
    with pytest.raises(
        S2WrapError, match=r"scale 2 cannot run whole: mixer_s32_224 takes images of 224×224 pixels only"
    ):
        s2wrap.wrap(mixer, (1, 2), whole=True)
    eva = timm.create_model("eva02_tiny_patch14_224", num_classes=0).eval()  # says it can, and cannot
    images = torch.randn(1, 3, 224, 224)
    before = eva.forward_features(images)
    with pytest.raises(S2WrapError, match="use whole=False: tiles"):
        s2wrap.wrap(eva, (1, 2), whole=True)
    torch.testing.assert_close(eva.forward_features(images), before, atol=0, rtol=0)


def test_boxes_are_the_pixels_that_move_a_cell():
    """Change the image outside a cell's box: nothing happens; inside: something does."""
    images = torch.rand(1, 3, 96, 160)
    for options in ({}, {"fit": "aspect"}, {"overlap": 2}, {"fit": "pad"}, {"target_grid": "finest"}):
        model = s2wrap.wrap(Local(), (1, 2), image_size=64, **options)
        features = model(images)
        for k, boxes in enumerate(features.boxes):
            assert boxes.shape == (*features.spatial.shape[-2:], 4)
            row, col = boxes.shape[0] // 2, boxes.shape[1] // 3
            left, top, right, bottom = boxes[row, col].tolist()
            assert 0 <= left < right <= 160
            assert 0 <= top < bottom <= 96
            reach_h, reach_w = (2.5 * 96 / s for s in features.plan.scales[k].image_hw), 12  # cubic resizing reaches on
            reach = max(*reach_h, reach_w)
            outside = torch.rand_like(images)
            rows = slice(max(0, int(top - reach)), int(bottom + reach) + 1)
            cols = slice(max(0, int(left - reach)), int(right + reach) + 1)
            outside[:, :, rows, cols] = images[:, :, rows, cols]
            channels = np.s_[0, 6 * k : 6 * k + 6, row, col]
            torch.testing.assert_close(model(outside).spatial[channels], features.spatial[channels], atol=1e-5, rtol=0)
            inside = images.clone()
            inside[:, :, round(top) : round(bottom), round(left) : round(right)] += 1
            assert (model(inside).spatial[channels] - features.spatial[channels]).abs().max() > 0.05


def test_boxes_of_the_own_grid_tile_the_image():
    features = s2wrap.wrap(Local(), (2,), image_size=64)(torch.rand(1, 3, 100, 50))
    (boxes,) = features.boxes
    expected = torch.tensor([3 * 50 / 16, 5 * 100 / 16, 4 * 50 / 16, 6 * 100 / 16])
    torch.testing.assert_close(boxes[5, 3], expected)


def test_detail_takes_tile_offsets_away_and_keeps_the_detail():
    """Every tile adds an offset and a slope of its own; what is left is close to the local features alone."""
    smooth = F.interpolate(torch.randn(1, 3, 3, 3), size=(192, 192), mode="bicubic")
    images = smooth + 0.3 * torch.randn(1, 3, 192, 192)
    truth = F.avg_pool2d(images, 8)
    tiled = s2wrap.wrap(Offset(), (3,), image_size=64)(images).spatial
    detail = s2wrap.wrap(Offset(), (1, 3), image_size=64, fuse="detail")(images).spatial

    def seam(spatial):
        steps = (spatial - truth).diff(dim=3).abs().mean(dim=(0, 1, 2))
        return steps[[7, 15]].mean()

    def without_global(spatial):
        """Scale 1 has an offset and slope itself, over the whole image: take a plane away."""
        line = torch.linspace(-1, 1, 24)
        basis = torch.stack([torch.ones(24, 24), line.expand(24, 24), line[:, None].expand(24, 24)]).flatten(1).T
        error = (spatial - truth).flatten(2)[0].T
        return error - basis @ torch.linalg.lstsq(basis, error).solution

    assert detail.shape == tiled.shape == truth.shape
    assert seam(detail) < 0.2 * seam(tiled)
    assert without_global(detail).norm() < 0.3 * without_global(tiled).norm()
    high = (truth - F.avg_pool2d(truth, 3, 1, 1, count_include_pad=False))[:, :, 2:-2, 2:-2]
    kept = (detail - F.avg_pool2d(detail, 3, 1, 1, count_include_pad=False))[:, :, 2:-2, 2:-2]
    assert (high * kept).sum() / (high.norm() * kept.norm()) > 0.9


def test_detail_is_the_formula(vit):
    """Two scales, by hand: in every tile the best polynomial of degree 10/4 → 3 (half up) comes from the coarse map."""
    images = torch.randn(1, 3, 320, 320, dtype=torch.float64)
    vit = vit.double()
    coarse, fine = s2wrap.wrap(vit, (1, 2), fuse="pyramid")(images).maps
    up = F.interpolate(coarse, size=(20, 20), mode="bilinear", align_corners=False)
    place = torch.linspace(-0.9, 0.9, 10, dtype=torch.float64)
    basis = torch.stack([place**n for n in range(4)], dim=1)
    onto = basis @ torch.linalg.inv(basis.T @ basis) @ basis.T
    expected = fine.clone()
    for top in (0, 10):
        for left in (0, 10):
            tile = np.s_[:, :, top : top + 10, left : left + 10]
            expected[tile] += onto @ (up - fine)[tile] @ onto.T
    average = (coarse.mean(dim=(2, 3), keepdim=True) + fine.mean(dim=(2, 3), keepdim=True)) / 2
    expected += average - expected.mean(dim=(2, 3), keepdim=True)
    found = s2wrap.wrap(vit, (1, 2), fuse="detail")(images)
    torch.testing.assert_close(found.spatial, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.prefix, vit.forward_features(resize(images, (160, 160)))[:, :1], atol=1e-5, rtol=0)
    vit.float()


@pytest.mark.parametrize("norm", ["l2", "layer", "std"])
def test_norms_put_scales_on_one_footing(norm):
    images = torch.randn(3, 3, 192, 192)  # white noise: the mean of nine patches has a third of the deviation
    plain = s2wrap.wrap(Local(), (1, 3), image_size=64)(images).spatial.chunk(2, dim=1)
    found = s2wrap.wrap(Local(), (1, 3), image_size=64, norm=norm)(images).spatial.chunk(2, dim=1)
    for ours, theirs, first in zip(found, plain, (plain[0],) * 2, strict=True):
        if norm == "l2":
            expected = theirs / theirs.norm(dim=1, keepdim=True)
        elif norm == "layer":
            expected = F.layer_norm(theirs.movedim(1, -1), (6,), eps=1e-6).movedim(-1, 1)
        else:
            spread = [
                (x - x.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
                for x in (theirs, first)
            ]
            expected = theirs * spread[1] / spread[0]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("layers", [(0, 2), (-1,), (-3, -1)])
def test_layers_are_the_blocks_of_timm(vit, layers):
    images = torch.randn(2, 3, 160, 160)
    joined = s2wrap.wrap(vit, (1,), layers=layers)(images)
    listed = s2wrap.wrap(vit, (1,), layers=layers, join_layers=False)(images)
    outputs, blocks = [], list(vit.blocks)
    hooks = [block.register_forward_hook(lambda *a: outputs.append(vit.norm(a[-1]))) for block in blocks]
    vit.forward_features(images)
    for hook in hooks:
        hook.remove()
    expected = [outputs[layer] for layer in layers]
    torch.testing.assert_close(
        joined.tokens, torch.cat([tokens[:, 1:] for tokens in expected], dim=2), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        joined.prefix, torch.cat([tokens[:, :1] for tokens in expected], dim=2), atol=1e-5, rtol=0
    )
    for level, tokens in zip(listed.maps, expected, strict=True):
        torch.testing.assert_close(level.flatten(2).mT, tokens[:, 1:], atol=1e-5, rtol=0)


def test_layers_of_a_pyramid_network_keep_their_own_grids():
    network = timm.create_model("test_resnet", num_classes=0)
    model = s2wrap.wrap(network, (1, 2), layers=(1, 2, 3), join_layers=False, whole=False)
    grids = [level.shape[-1] for level in model(torch.rand(1, 3, 160, 160)).maps]
    assert grids == [layout.grid_hw[1] for layout in model.backbone.layouts]
    assert len(set(grids)) > 1
    joined = s2wrap.wrap(network, (1, 2), layers=(1, 2, 3), whole=False)
    assert joined(torch.rand(1, 3, 160, 160)).spatial.shape == (1, joined.num_features, grids[-1], grids[-1])


def test_scales_as_text_carry_their_options(vit):
    model = s2wrap.wrap(vit, ("1", "2:whole:aspect", "320px:pad"))
    assert [scale.whole for scale in model.scales] == [False, True, False]
    assert [scale.fit for scale in model.scales] == ["stretch", "aspect", "pad"]
    assert [str(scale.scale) for scale in model.scales] == ["1", "2:aspect:whole", "320px:pad"]
    loaded = s2wrap.load("timm:test_vit@1,2:whole", pretrained=False)
    assert [scale.whole for scale in loaded.scales] == [False, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fit": "crop"}, "fit='crop' is unknown; use one of stretch, aspect, pad"),
        ({"fit": None}, "fit=None is unknown; use one of stretch, aspect, pad"),
        (
            {"policy": "nvila"},
            "policy='nvila' has no effect on scale 1:stretch:tiled, 2:stretch:tiled; use fit=",
        ),
        (
            {"fit": "aspect", "whole": True, "policy": "closest"},
            "no effect on scale 1:aspect:whole, 2:aspect:whole",
        ),
        ({"scales": (1, Scale(2, policy="nvila"))}, "policy='nvila' has no effect on scale 2:stretch:tiled"),
        ({"scales": (1, Scale(3, max_tiles=4))}, "max_tiles=4 has no effect on scale 3:stretch:tiled"),
        (
            {"scales": (1, Scale(3, "pad", max_tiles=4))},
            "max_tiles=4 has no effect on scale 3:pad:tiled; use fit=",
        ),
        ({"scales": (1, Scale(3, "aspect", True, max_tiles=4))}, "has no effect on scale 3:aspect:whole"),
        ({"fuse": "pyramid", "target_grid": "finest"}, "target_grid='finest' with fuse='pyramid'"),
        ({"whole": "yes"}, "whole='yes' is unknown; use one of True, False"),
        ({"fit": "aspect", "policy": ["closest"]}, "use a function or one of closest"),
        ({"fit": "aspect", "policy": "best"}, "use a function or one of closest, nvila, anyres, internvl"),
        ({"overlap": 8}, "overlap=8 tokens, but a tile of Local has 8; use 0 to 7"),
        ({"overlap": -1}, "is no number of tokens; use 0 or more"),
        ({"overlap": 1.5}, "is no number of tokens; use 0 or more"),
        ({"overlap": True}, "is no number of tokens; use 0 or more"),
        ({"tile_batch": True}, "use 1 or more"),
        ({"tile_batch": 1.5}, "use 1 or more"),
        ({"target_grid": True}, "target_grid=True is no grid"),
        ({"target_grid": (True, 4)}, "target_grid=(True, 4) is no grid"),
        ({"blend": "mean"}, "use one of smooth, trim, constant, triangular, gaussian"),
        ({"norm": "batch"}, "use one of none, l2, layer, std"),
        ({"norm": "l2", "fuse": "detail"}, "use norm='none'"),
        ({"target_grid": (0, 4)}, "(rows, columns) of 1 to 4096 cells"),
        ({"target_grid": "largest"}, "use 'coarsest', 'finest', the index of one of 2 scales"),
        ({"target_grid": 2}, "the index of one of 2 scales"),
        ({"scales": (1, Scale(2, "aspect", policy="nvila", max_tiles=3))}, "no grid has 4 to 3 tiles"),
        ({"scales": ("2:half",)}, "'half' is unknown; after the size write whole, tiled, stretch, aspect, pad"),
        ({"layers": (1, 2)}, "nothing is known of the blocks of Local"),
        ({"scales": (0.05,), "whole": False}, "less than one patch of 8"),
        ({"fuse": "pyramid", "join_layers": False}, "join_layers=False has no effect without layers"),
    ],
)
def test_impossible_options_say_what_would_work(options, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.wrap(Local(), image_size=64, **options)
    assert words in str(error.value)


@pytest.mark.parametrize("tiles", [True, 0, 1.5])
def test_a_scale_refuses_a_budget_that_is_no_number_of_tiles(tiles):
    with pytest.raises(S2WrapError, match=f"max_tiles={tiles} is no number of tiles"):
        Scale(2, max_tiles=tiles)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((5, 2), "increasing"),
        ((-1, 2), "increasing"),
        ((), "increasing"),
        (3, "increasing"),
        ((0, 99), "not all blocks"),
    ],
)
def test_impossible_layers_say_what_would_work(vit, layers, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.wrap(vit, layers=layers)
    assert words in str(error.value)


@pytest.mark.parametrize("image_hw", [(1, 4000), (4000, 1)])
def test_a_line_is_refused_under_every_fit(image_hw):
    for fit in ("stretch", "aspect", "pad"):
        with pytest.raises(S2WrapError, match="each side needs at least 2 pixels"):
            looking(fit=fit)(torch.zeros(1, 3, *image_hw))


def test_an_image_too_long_to_look_at_whole_says_what_would_work():
    with pytest.raises(S2WrapError, match="less than one patch of 8; use fit='stretch'"):
        looking(fit="aspect", whole=True)(torch.zeros(1, 3, 2, 4000))


def test_an_image_too_long_to_pad_says_what_would_work():
    with pytest.raises(S2WrapError) as error:
        looking(fit="pad")(torch.zeros(1, 3, 6, 400))
    assert "at scale 1:pad:tiled an image of 6×400 pixels (height × width) has a height of 1 pixels" in str(error.value)
    assert "use fit='stretch'" in str(error.value)
