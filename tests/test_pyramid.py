import copy
import importlib.util
import math
import pickle
import sys
import types
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

import s2wrap
from s2wrap import PyramidBackbone, S2WrapError
from s2wrap.pyramid import level_matrix

SIZES = [(320, 320), (320, 512), (301, 477)]
WAYS = {
    "two scales": ({"scales": (1, 2), "fuse": "pyramid"}, (4, 8, 16, 32)),
    "three scales": ({"scales": (1, 2, 3), "fuse": "pyramid"}, (4, 8, 16, 32)),
    "more levels than scales": ({"scales": (1, 2), "fuse": "pyramid"}, (4, 8, 16, 32, 64)),
    "one fused map": ({"scales": (1, 2), "target_grid": "finest", "fuse": "mean"}, (4, 8, 16, 32)),
    "padded": ({"scales": (1, 2), "fuse": "pyramid", "fit": "pad"}, (8, 16, 32)),
    "aspect": ({"scales": (1, 2), "fuse": "pyramid", "fit": "aspect"}, (8, 16, 32)),
}
BOX = (100.0, 60.0, 180.0, 140.0)
CENTRE = (140.0, 100.0)


class Pooling(nn.Module):
    """Patches as their average: of an image of coordinates, where each patch lies."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def forward(self, images):
        return F.avg_pool2d(images, self.patch)


def coordinates(height, width):
    """An image (3, height, width) that holds the x and y of its own pixels' centres, and ones."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)])


def pooling_pyramid(patch=16, strides=(4, 8, 16, 32), **options):
    return PyramidBackbone(s2wrap.wrap(Pooling(patch), image_size=10 * patch, **options), strides=strides)


def tiny_vit(**options):
    vit = timm.create_model("test_vit", num_classes=0, depth=1)
    return s2wrap.wrap(vit, **{"scales": (1, 2), "fuse": "pyramid", **options})


def plain_weights(rows, pixels, stride):
    """The weights of each cell of a level by plain loops, in pixels of the image."""
    step = pixels / rows
    reach = max(step, stride)
    result = []
    for cell in range(math.ceil(pixels / stride)):
        centre = min(max((cell + 0.5) * stride, step / 2), pixels - step / 2)
        weights = [max(0.0, 1 - abs((row + 0.5) * step - centre) / reach) for row in range(rows)]
        result.append([weight / sum(weights) for weight in weights])
    return np.array(result)


# positions


@pytest.mark.parametrize("image_hw", SIZES)
@pytest.mark.parametrize("patch", [16, 14])
@pytest.mark.parametrize("way", WAYS)
def test_every_level_reads_the_centre_of_a_box_where_it_is(way, patch, image_hw):
    options, strides = WAYS[way]
    pyramid = pooling_pyramid(patch, strides, **options)
    maps = pyramid(coordinates(*image_hw)[None])
    box = torch.tensor([BOX])
    for name, stride in zip(maps, pyramid.strides, strict=True):
        assert maps[name].shape[-2:] == tuple(math.ceil(side / stride) for side in image_hw)
        aligned = roi_align(maps[name], [box], 7, 1 / stride, 2, aligned=True).mean((0, 2, 3))
        # torchvision's own pooling counts cells by their corners: half a cell further, on the maps of any backbone
        pooled = MultiScaleRoIAlign([name], 7, 2)(maps, [box], [image_hw]).mean((0, 2, 3)) - stride / 2
        for found in (aligned, pooled):
            assert abs(float(found[0]) - CENTRE[0]) < 4, (name, stride, found)
            assert abs(float(found[1]) - CENTRE[1]) < 4, (name, stride, found)


def test_the_maps_of_the_scales_themselves_read_another_place():
    model = s2wrap.wrap(Pooling(16), image_size=160, scales=(1, 2, 3), fuse="pyramid")
    image = coordinates(320, 320)[None]
    raw = {"0": model(image).maps[2]}
    read = MultiScaleRoIAlign(["0"], 7, 2)(raw, [torch.tensor([BOX])], [(320, 320)]).mean((0, 2, 3))
    assert abs(float(read[0]) - 192) < 1
    maps = PyramidBackbone(model)(image)
    read = MultiScaleRoIAlign(["0"], 7, 2)(maps, [torch.tensor([BOX])], [(320, 320)]).mean((0, 2, 3))
    assert abs(float(read[0]) - 140) <= 2.1  # 2 of which are torchvision's half cell


@pytest.mark.parametrize("image_hw", SIZES)
@pytest.mark.parametrize("patch", [16, 14])
def test_cells_hold_the_coordinates_of_their_centres(patch, image_hw):
    """In the image's middle, away from where the filter ends at the border; a filter of few rows is off by little."""
    pyramid = pooling_pyramid(patch, (4, 8, 16, 32), scales=(1, 2), fuse="pyramid")
    for stride, level in zip(pyramid.strides, pyramid(coordinates(*image_hw)[None]).values(), strict=True):
        torch.testing.assert_close(level[0, 2], torch.ones_like(level[0, 2]), atol=1e-4, rtol=0)
        for channel, side in ((0, image_hw[1]), (1, image_hw[0])):
            line = level[0, channel].mean(channel).double().numpy()
            exact = (np.arange(len(line)) + 0.5) * stride
            inner = (exact > 96) & (exact < side - 96)
            assert inner.any()
            np.testing.assert_allclose(line[inner], exact[inner], atol=0.02 if image_hw != (301, 477) else 1)
            np.testing.assert_allclose(line, exact.clip(0, side), atol=24)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32, 64, 128, 1024])
@pytest.mark.parametrize(("rows", "pixels"), [(10, 160), (20, 320), (10, 301), (23, 477), (30, 320), (1, 50), (77, 80)])
def test_weights_are_those_of_plain_loops(rows, pixels, stride):
    matrix = level_matrix(rows, pixels, stride)
    np.testing.assert_allclose(matrix, plain_weights(rows, pixels, stride), atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    assert (matrix >= 0).all()


@pytest.mark.parametrize("stride", [4, 8, 32, 64])
def test_whole_cells_are_what_pytorch_interpolates(stride):
    model = tiny_vit(scales=(2,))
    images = torch.randn(2, 3, 320, 384)
    (level,) = PyramidBackbone(model, strides=(stride,))(images).values()
    whole = (320 // stride, 384 // stride)
    wanted = F.interpolate(model(images).maps[0], whole, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(level, wanted, atol=1e-5, rtol=0)


def test_levels_are_the_products_of_plain_weights_with_their_maps():
    model = tiny_vit()
    pyramid = PyramidBackbone(model, strides=(8, 16, 32))
    images = torch.randn(2, 3, 301, 477)
    maps = model(images).maps
    for stride, source, level in zip(pyramid.strides, (1, 1, 0), pyramid(images).values(), strict=True):
        height, width = maps[source].shape[-2:]
        rows, cols = plain_weights(height, 301, stride), plain_weights(width, 477, stride)
        wanted = np.einsum("ih,bchw,jw->bcij", rows, maps[source].double().numpy(), cols)
        np.testing.assert_allclose(level.numpy(), wanted, atol=1e-5)


def test_a_map_whose_cells_are_the_levels_is_passed_on_unchanged():
    model = tiny_vit()
    images = torch.randn(1, 3, 320, 320)
    coarse, fine = model(images).maps
    maps = PyramidBackbone(model, strides=(16, 32))(images)
    assert torch.equal(maps["0"], fine)
    assert torch.equal(maps["1"], coarse)


def test_where_the_1x1_convolution_runs_changes_nothing():
    pyramid = PyramidBackbone(tiny_vit(), 32, strides=(8, 16, 32))
    images = torch.randn(2, 3, 200, 333)
    levels = PyramidBackbone(pyramid.model, strides=(8, 16, 32))(images)
    for level, reduce, refine, found in zip(
        levels.values(), pyramid.reduce, pyramid.refine, pyramid(images).values(), strict=True
    ):
        torch.testing.assert_close(found, refine(reduce(level)), atol=1e-4, rtol=0)


# levels


@pytest.mark.parametrize(
    ("patch", "scales", "strides", "sources"),
    [
        (16, (1, 2), (16, 32), (1, 0)),
        (16, (2, 1), (16, 32), (0, 1)),
        (16, (1, 2, 3), (16, 32, 64), (2, 1, 0)),
        (14, (1, 2, 3), (16, 32), (2, 1)),  # strides 14, 21 and 42: that of 42 is coarser than both levels
        (16, (1, 2), (4, 8, 16, 32), (1, 1, 1, 0)),
        (16, (1,), (16,), (0,)),
    ],
)
def test_a_level_takes_the_coarsest_scale_that_is_fine_enough(patch, scales, strides, sources):
    assert pooling_pyramid(patch, strides=strides, scales=scales, fuse="pyramid").sources == sources
    assert PyramidBackbone(tiny_vit()).strides == (4, 8, 16, 32)


def test_levels_between_and_beyond_the_scales_take_the_coarsest_that_is_fine_enough():
    pyramid = pooling_pyramid(strides=(4, 8, 16, 32, 64, 128), scales=(1, 2), fuse="pyramid")
    assert pyramid.sources == (1, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("fuse", ["concat", "mean", "detail"])
def test_all_levels_of_a_fused_model_take_its_one_map(fuse):
    model = tiny_vit(fuse=fuse)
    pyramid = PyramidBackbone(model, strides=(4, 8, 16, 32))
    assert pyramid.sources == (0, 0, 0, 0)
    assert pyramid.out_channels == model.num_features
    maps = pyramid(torch.randn(1, 3, 320, 320))
    assert [tuple(level.shape[1:]) for level in maps.values()] == [(model.num_features, n, n) for n in (80, 40, 20, 10)]


def test_several_layers_are_joined_on_channels():
    vit = timm.create_model("test_vit", num_classes=0)
    model = s2wrap.wrap(vit, scales=(1, 2), fuse="pyramid", layers=(-2, -1))
    pyramid = PyramidBackbone(model)
    assert pyramid.out_channels == 128
    assert pyramid(torch.randn(1, 3, 96, 96))["2"].shape == (1, 128, 6, 6)


def test_a_convolutional_network_is_a_backbone_too():
    model = s2wrap.wrap(timm.create_model("test_convnext", num_classes=0), scales=(1, 2), fuse="pyramid")
    pyramid = PyramidBackbone(model, 16)
    maps = pyramid(torch.randn(1, 3, 250, 330))
    for stride, level in zip(pyramid.strides, maps.values(), strict=True):
        assert level.shape == (1, 16, math.ceil(250 / stride), math.ceil(330 / stride))


# heads


HEADS: dict[str, Any] = {
    "FasterRCNN": detection.FasterRCNN,
    "MaskRCNN": detection.MaskRCNN,
    "RetinaNet": detection.RetinaNet,
    "FCOS": detection.FCOS,
}


def detector(name, pyramid, **options):
    sizes = tuple((stride * 4,) for stride in pyramid.strides)
    if name == "FCOS":
        anchors = {"anchor_generator": AnchorGenerator(sizes, ((1.0,),) * len(sizes))}
    else:
        generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        anchors = {"anchor_generator" if name == "RetinaNet" else "rpn_anchor_generator": generator}
    given = {"image_mean": pyramid.model.input.mean, "image_std": pyramid.model.input.std, **options}
    return HEADS[name](pyramid, num_classes=3, min_size=160, max_size=240, **anchors, **given)


def labelled(*sizes):
    images = [torch.rand(3, *size) for size in sizes]
    targets = []
    for height, width in sizes:
        masks = torch.zeros(1, height, width, dtype=torch.uint8)
        masks[:, 20:100, 30:90] = 1
        targets.append({"boxes": torch.tensor([[30.0, 20, 90, 100]]), "labels": torch.tensor([1]), "masks": masks})
    return images, targets


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", HEADS)
def test_detectors_of_torchvision_train_on_images_of_two_sizes(name, frozen):
    pyramid = PyramidBackbone(tiny_vit(frozen=frozen), 32, strides=(8, 16, 32))
    model = detector(name, pyramid).train()
    images, targets = labelled((160, 200), (190, 150))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4)
    before = copy.deepcopy(pyramid.state_dict())
    for _ in range(3):
        loss = sum(model(images, targets).values())
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with_gradients = {key for key, parameter in pyramid.named_parameters() if parameter.grad is not None}
    own = {key for key, _ in pyramid.named_parameters() if not key.startswith("model.")}
    assert own <= with_gradients
    assert any(key.startswith("model.") for key in with_gradients) is not frozen
    heads = [parameter for key, parameter in model.named_parameters() if not key.startswith("backbone.")]
    assert all(parameter.grad is not None for parameter in heads)
    changed = {key for key, values in pyramid.state_dict().items() if not torch.equal(values, before[key])}
    assert "reduce.0.weight" in changed
    assert any(key.startswith("model.") for key in changed) is not frozen
    found = model.eval()(images)
    assert [set(each) >= {"boxes", "scores", "labels"} for each in found] == [True, True]


def test_a_detector_reads_its_boxes_where_they_are_on_each_image_of_a_batch():
    pyramid = pooling_pyramid(strides=(8, 16, 32), scales=(1, 2, 3), fuse="pyramid")
    model = detector("FasterRCNN", pyramid, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    sizes = [(160, 240), (240, 160)]
    padded, _ = model.transform([coordinates(*size) for size in sizes])
    assert padded.tensors.shape[-2:] == (256, 256)
    box = torch.tensor([[40.0, 30.0, 120.0, 110.0]])
    pool = model.roi_heads.box_roi_pool
    pooled = pool(pyramid(padded.tensors), [box, box], padded.image_sizes)
    level = pyramid.strides[int(pool.map_levels([box])[0])]
    read = pooled.mean((2, 3)) - level / 2  # torchvision's half cell
    torch.testing.assert_close(read[:, :2], torch.tensor([[80.0, 70.0]] * 2), atol=4, rtol=0)


def test_anchors_have_the_strides_that_are_said():
    pyramid = pooling_pyramid(strides=(4, 8, 16, 32), scales=(1, 2), fuse="pyramid")
    images = torch.zeros(1, 3, 320, 512)
    maps = list(pyramid(images).values())
    generator = AnchorGenerator(((32,),) * 4, ((1.0,),) * 4)
    (anchors,) = generator(ImageList(images, [(320, 512)]), maps)
    for stride, level in zip(pyramid.strides, anchors.split([m.shape[2] * m.shape[3] for m in maps]), strict=True):
        centres = (level[:, :2] + level[:, 2:]) / 2
        columns = 512 // stride
        assert centres[1, 0] - centres[0, 0] == stride
        assert centres[columns, 1] - centres[0, 1] == stride


def test_a_decoder_of_segmentation_models_takes_the_maps():
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        pytest.skip("needs segmentation-models-pytorch")
    from segmentation_models_pytorch.base import SegmentationHead
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

    pyramid = PyramidBackbone(tiny_vit(), 16, strides=(4, 8, 16, 32), as_tuple=True)
    channels = [level["num_chs"] for level in pyramid.feature_info]
    decoder, head = FPNDecoder(channels, encoder_depth=4), SegmentationHead(128, 5, upsampling=4)
    logits = head(decoder(pyramid(torch.randn(2, 3, 224, 288))))
    logits.sum().backward()
    assert logits.shape == (2, 5, 224, 288)
    assert all(layer.weight.grad is not None for layer in pyramid.reduce)


def test_it_says_what_heads_ask():
    pyramid = PyramidBackbone(tiny_vit(), 24, strides=(4, 16))
    assert pyramid.feature_info == [
        {"num_chs": 24, "reduction": 4, "module": "0"},
        {"num_chs": 24, "reduction": 16, "module": "1"},
    ]
    shapes = pyramid.output_shape()
    assert [(name, each.channels, each.stride) for name, each in shapes.items()] == [("0", 24, 4), ("1", 24, 16)]
    assert shapes["0"].height is None
    assert (pyramid.size_divisibility, pyramid.padding_constraints) == (16, {})
    assert "strides=(4, 16)" in repr(pyramid)


def test_shapes_are_detectron2s_own_where_it_is_installed(monkeypatch):
    class ShapeSpec(types.SimpleNamespace):
        pass

    layers = types.ModuleType("detectron2.layers")
    vars(layers)["ShapeSpec"] = ShapeSpec
    monkeypatch.setitem(sys.modules, "detectron2", types.ModuleType("detectron2"))
    monkeypatch.setitem(sys.modules, "detectron2.layers", layers)
    assert PyramidBackbone(tiny_vit()).output_shape()["3"] == ShapeSpec(channels=64, stride=32)


def test_maps_come_as_a_dict_or_as_a_tuple():
    model, images = tiny_vit(), torch.randn(1, 3, 100, 90)
    as_dict = PyramidBackbone(model)(images)
    assert isinstance(as_dict, OrderedDict)
    assert list(as_dict) == ["0", "1", "2", "3"]
    as_tuple = PyramidBackbone(model, as_tuple=True)(images)
    assert isinstance(as_tuple, tuple)
    assert all(map(torch.equal, as_dict.values(), as_tuple))


# a module as others


def test_a_frozen_model_stays_in_evaluation_mode_and_the_convolutions_train():
    pyramid = PyramidBackbone(tiny_vit(), 16).train()
    assert pyramid.training
    assert pyramid.refine[0].training
    assert not pyramid.model.backbone.training
    assert not any(parameter.requires_grad for parameter in pyramid.model.parameters())
    assert PyramidBackbone(tiny_vit(frozen=False)).train().model.backbone.training


def test_gradients_reach_images_and_an_unfrozen_backbone():
    images = torch.randn(1, 3, 100, 90, requires_grad=True)
    pyramid = PyramidBackbone(tiny_vit(frozen=False))
    sum(level.square().sum() for level in pyramid(images).values()).backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is not None for name, p in pyramid.named_parameters() if "patch_embed" in name)


def test_copies_pickles_and_state_dicts_give_the_same_maps(tmp_path):
    images = torch.randn(1, 3, 100, 90)
    pyramid = PyramidBackbone(tiny_vit(), 16)
    wanted = pyramid(images)
    other = PyramidBackbone(tiny_vit(), 16)
    other.load_state_dict(pyramid.state_dict())
    for same in (copy.deepcopy(pyramid), pickle.loads(pickle.dumps(pyramid)), other):
        found = same(images)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not [key for key in pyramid.state_dict() if "placement" in key or "matri" in key]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("out_channels", [None, 16])
def test_other_precisions_work(dtype, out_channels):
    pyramid = PyramidBackbone(tiny_vit(), out_channels, strides=(8, 16, 32))
    images = torch.randn(1, 3, 200, 120)
    wanted = pyramid(images)
    for given in (images, images.to(dtype)):
        found = pyramid.to(dtype)(given)
        for name, level in found.items():
            assert level.dtype == dtype
            torch.testing.assert_close(level.float(), wanted[name], atol=0.15, rtol=0.05)


def test_autocast_resamples_in_full_precision():
    pyramid = pooling_pyramid(strides=(8, 32), scales=(1, 2), fuse="pyramid")
    images = coordinates(300, 300)[None]
    with torch.autocast("cpu", torch.bfloat16):
        found = pyramid(images)
    for name, level in pyramid(images).items():
        torch.testing.assert_close(found[name], level)


def test_a_replica_of_data_parallel_gives_the_same_maps():
    pyramid = PyramidBackbone(tiny_vit(), 16)
    images = torch.randn(1, 3, 100, 90)
    replica = pyramid._replicate_for_data_parallel()
    replica.model = pyramid.model._replicate_for_data_parallel()
    assert all(map(torch.equal, replica(images).values(), pyramid(images).values()))


def test_a_model_that_has_validated_can_train():
    pyramid = PyramidBackbone(tiny_vit(frozen=False), 16)
    images = torch.randn(1, 3, 110, 90)
    with torch.inference_mode():
        pyramid(images)
    sum(level.sum() for level in pyramid(images).values()).backward()
    assert pyramid.reduce[0].weight.grad is not None


def test_matrices_are_made_once_for_each_of_the_last_image_sizes():
    pyramid = PyramidBackbone(tiny_vit())
    for height in (*range(40, 110), 109):
        pyramid(torch.zeros(1, 3, height, 64))
    assert len(pyramid._placements.kept) == 64
    assert "109x64" in pyramid._placements
    assert "40x64" not in pyramid._placements


def test_images_without_values_have_maps_of_the_same_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    pyramid = PyramidBackbone(tiny_vit(), strides=(8, 32))
    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = [level.shape for level in pyramid(torch.zeros(1, 3, 100, 90)).values()]
    assert shapes == [level.shape for level in pyramid(torch.zeros(1, 3, 100, 90)).values()]


def test_an_exported_program_gives_the_same_maps():
    pyramid = PyramidBackbone(tiny_vit(), 16, strides=(8, 16)).eval()
    images = torch.randn(1, 3, 100, 90)
    program = torch.export.export(pyramid, (images,)).module()
    for name, level in program(images).items():
        torch.testing.assert_close(level, pyramid(images)[name], atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives():
    pyramid = PyramidBackbone(tiny_vit(), 16, strides=(8, 16, 32))
    images = torch.randn(2, 3, 301, 477)
    wanted = pyramid(images)
    found = pyramid.cuda()(images.cuda())
    for name, level in found.items():
        assert level.is_cuda
        torch.testing.assert_close(level.cpu(), wanted[name], atol=2e-2, rtol=0)


# wrong calls


@pytest.mark.parametrize(
    "strides", [(), (8, 4), (8, 8), (4, 12), (0, 4), (-4,), (4.0, 8.0), (True, 2), 16, "8", (None,)]
)
def test_strides_that_cannot_be_say_which_can(strides):
    with pytest.raises(S2WrapError, match=r"strides=.*powers of two, ascending, each once, such as \(\d") as error:
        PyramidBackbone(tiny_vit(), strides=strides)
    assert repr(strides) in str(error.value)


def test_the_nearest_strides_are_named():
    with pytest.raises(S2WrapError, match=r"such as \(4, 8, 16\)"):
        PyramidBackbone(tiny_vit(), strides=(14, 7, 4))


@pytest.mark.parametrize("out_channels", [0, -3, True])
def test_numbers_of_channels_that_cannot_be_are_refused(out_channels):
    with pytest.raises(S2WrapError, match=f"out_channels={out_channels} is no number of channels; use 1 or more"):
        PyramidBackbone(tiny_vit(), out_channels)


def test_only_wrapped_models_with_one_map_for_each_scale_are_taken(vit):
    with pytest.raises(S2WrapError, match=r"given a VisionTransformer; give a wrapped model: s2wrap\.wrap"):
        PyramidBackbone(vit)
    model = s2wrap.wrap(copy.deepcopy(vit), layers=(-2, -1), join_layers=False)
    with pytest.raises(S2WrapError, match=r"join_layers=False.*layers=\(.*wrap with join_layers=True"):
        PyramidBackbone(model)


def test_images_that_are_no_batch_are_refused():
    pyramid = PyramidBackbone(tiny_vit())
    for images, words in (("photo.jpg", "images are a str"), (torch.zeros(3, 64, 64), r"give images\[None\]")):
        with pytest.raises(S2WrapError, match=words):
            pyramid(images)
