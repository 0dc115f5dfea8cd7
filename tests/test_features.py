import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, default_collate

import s2wrap
from s2wrap import Features, S2WrapError
from s2wrap.features import join


@pytest.fixture(scope="module")
def pool():
    return s2wrap.wrap(nn.AvgPool2d(16), (1, 2), image_size=64, fuse="pyramid")


@pytest.fixture
def features(pool):
    """Three images at two scales, with half of the finer tiles run."""
    return pool(torch.rand(3, 3, 100, 150), select=2)


def tensors(features):
    return [*features.maps, *features.prefixes, *features.boxes, *features.ran]


def assert_same(ours, theirs):
    for one, other in zip(tensors(ours), tensors(theirs), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    assert (ours.plan, ours.geometry) == (theirs.plan, theirs.geometry)


def test_tokens_are_the_map_row_by_row_and_pooled_is_its_mean():
    spatial = torch.arange(24.0).reshape(1, 2, 3, 4)
    features = Features((spatial,), (torch.zeros(1, 0, 2),))
    assert features.tokens.shape == (1, 12, 2)
    assert features.tokens[0, 5].tolist() == spatial[0, :, 1, 1].tolist()
    assert features.pooled.tolist() == [[5.5, 17.5]]
    assert features.prefix.shape == (1, 0, 2)


def test_the_only_map_is_no_map_of_several(features):
    with pytest.raises(S2WrapError, match=r"hold 2 maps, one a scale or layer; use features.maps\[k\]"):
        _ = features.spatial


def test_iteration_undoes_join(features):
    parts = list(features)
    assert [len(part) for part in parts] == [1, 1, 1]
    assert_same(join(parts), features)


@pytest.mark.parametrize(
    ("index", "images"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (torch.tensor(1), [1]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (slice(2, 2), []),
        ([2, 0, -2], [2, 0, 1]),
        ([], []),
        ([True, False, True], [0, 2]),
        (torch.tensor([1]), [1]),
        (torch.tensor([False, False, True]), [2]),
        (np.array([2, 1]), [2, 1]),
        (torch.tensor([1, 0, 1], dtype=torch.uint8), [1, 0, 1]),
    ],
)
def test_an_index_chooses_images(features, index, images):
    chosen = features[index]
    assert len(chosen) == len(images)
    for kind in ("maps", "prefixes", "ran"):
        for ours, whole in zip(getattr(chosen, kind), getattr(features, kind), strict=True):
            assert ours.tolist() == [whole.tolist()[image] for image in images]
    assert chosen.boxes is features.boxes
    assert chosen.geometry == features.geometry


def test_a_mask_of_one_image_is_a_mask(features):
    assert len(features[0][torch.tensor([True])]) == 1
    assert len(features[0][torch.tensor([False])]) == 0


def test_one_image_and_a_slice_are_views_of_the_same_memory(features):
    assert features[1].maps[0].data_ptr() == features.maps[0][1].data_ptr()
    assert features[1:].maps[1].data_ptr() == features.maps[1][1].data_ptr()


@pytest.mark.parametrize("index", [3, -4, [0, 3], torch.tensor([-4])])
def test_an_image_that_is_not_there_is_an_index_error(features, index):
    with pytest.raises(IndexError):
        features[index]


@pytest.mark.parametrize("index", [[True, False], torch.tensor([0.5]), torch.tensor([[0]]), True, torch.tensor(True)])
def test_what_chooses_no_images_is_refused(features, index):
    with pytest.raises(S2WrapError, match="a batch of 3 images has no images"):
        features[index]


def test_facts_of_the_view_are_missing_without_one_and_the_error_says_why(features):
    bare = Features(features.maps, features.prefixes)
    for name in ("plan", "geometry", "boxes", "ran"):
        assert getattr(features, name) is getattr(features.view, name)
        with pytest.raises(S2WrapError, match=f"these features have no {name}: a traced model notes none"):
            getattr(bare, name)
    for name in ("block_size", "saved"):
        with pytest.raises(S2WrapError, match="a traced model notes none"):
            getattr(bare, name)
    assert len(bare[1:]) == 2


def test_saved_counts_tiles_by_their_pixels(features):
    assert features.block_size == (2, 2)
    assert features.saved == 1 - (1 + 2) / (1 + 4)


def test_a_dtype_moves_values_alone_and_a_device_moves_everything(features):
    for half in (features.to(torch.float16), features.to(dtype=torch.float16), features.to("cpu", torch.float16)):
        assert {tensor.dtype for tensor in (*half.maps, *half.prefixes)} == {torch.float16}
        assert {tensor.dtype for tensor in half.boxes} == {torch.float32}
        assert {tensor.dtype for tensor in half.ran} == {torch.bool}
        assert {tensor.dtype for tensor in half.float().maps} == {torch.float32}
    like = features.to(torch.zeros(1, device="meta", dtype=torch.float64))
    assert like.maps[0].dtype == torch.float64
    for moved in (features.to("meta"), features.to(torch.device("meta"), non_blocking=True), like):
        assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    assert features.cpu().maps[0] is features.maps[0]
    copied = features.to("cpu", copy=True)
    assert all(
        a.data_ptr() != b.data_ptr() for a, b in zip(tensors(copied), tensors(features), strict=True) if a.numel()
    )
    with pytest.raises(S2WrapError, match=r"dtype=torch.uint8 holds no features; use a floating type"):
        features.to(torch.uint8)


def test_numpy_gives_arrays_by_the_names_of_files(features):
    arrays = features.numpy()
    assert list(arrays) == ["spatial_0", "spatial_1", "prefix_0", "prefix_1"]
    assert (arrays["spatial_1"] == features.maps[1].numpy()).all()
    values = torch.randn(1, 2, 3, 3).bfloat16().requires_grad_()
    arrays = Features((values,), (torch.zeros(1, 1, 2).half(),)).numpy()
    assert arrays["spatial"].dtype == np.float32
    assert (arrays["spatial"] == values.detach().float().numpy()).all()
    assert arrays["prefix"].dtype == np.float16


def test_detach_cuts_the_graph(features):
    values = torch.randn(1, 2, 3, 3, requires_grad=True)
    detached = Features((values * 2,), (torch.zeros(1, 0, 2),), features[0].view).detach()
    assert not detached.spatial.requires_grad
    assert detached.plan == features.plan


def test_features_are_equal_to_themselves_alone(features):
    same = features[:]
    assert features == features
    assert features != same
    assert len({features, features, same}) == 2


def test_a_loader_makes_a_batch_of_features(features):
    assert_same(default_collate(list(features)), features)
    batch = default_collate([{"features": image, "label": number} for number, image in enumerate(features)])
    assert_same(batch["features"], features)
    (batch,) = DataLoader(list(features), batch_size=3, num_workers=1)
    assert_same(batch, features)


def test_images_that_were_looked_at_otherwise_are_joined_without_a_view(pool):
    parts = [pool(torch.rand(1, 3, *image_hw)) for image_hw in ((100, 150), (80, 90))]
    joined = default_collate(parts)
    assert [spatial.shape[0] for spatial in joined.maps] == [2, 2]
    assert joined.view is None
    assert join([*parts[:1], Features(parts[0].maps, parts[0].prefixes)]).view is None


def test_maps_of_other_shapes_make_no_batch():
    model = s2wrap.wrap(nn.AvgPool2d(16), (2,), image_size=64, fit="aspect")
    parts = [model(torch.rand(1, 3, *image_hw)) for image_hw in ((100, 100), (100, 300))]
    with pytest.raises(S2WrapError, match=r"make no batch; keep a list, or use fit='stretch' or target_grid"):
        default_collate(parts)


def test_copies_and_files_hold_the_same(features):
    assert_same(copy.deepcopy(features), features)
    assert_same(pickle.loads(pickle.dumps(features)), features)
    file = io.BytesIO()
    torch.save(features, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), features)


def test_another_process_loads_what_was_saved(features, tmp_path):
    path = tmp_path / "features.pt"
    torch.save({"features": features}, path)
    code = f"import torch; from s2wrap import Features; print(torch.load({str(path)!r})['features'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == repr(features)


def test_tree_functions_of_torch_reach_every_tensor(features):
    moved = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), features)
    assert {tensor.device.type for tensor in tensors(moved)} == {"meta"}
    assert (moved.plan, moved.geometry) == (features.plan, features.geometry)


def test_repr_tells_shapes_types_and_sizes_and_is_short(features):
    assert repr(features) == (
        "Features(maps: (3, 3, 4, 4), (3, 3, 8, 8), prefixes: (3, 0, 3), (3, 0, 3), values: float32 on cpu, "
        "images: 100×150 pixels in 5 tiles, cells: 25×37.5 pixels each, 12.5×18.75 pixels each)"
    )
    many = Features(features.maps * 20, features.prefixes * 20)
    assert "and 37 more" in repr(many)
    assert len(repr(many)) < 500
    assert repr(Features((), ())) == "Features(maps: , prefixes: )"


def test_notebooks_show_small_tables(features):
    for shown in (features._repr_html_(), features.plan._repr_html_()):
        assert shown.startswith("<table>")
        assert "100×150 pixels" in shown
        assert len(shown) < 1000


def test_a_plan_is_printed_scale_by_scale():
    plan = s2wrap.wrap(nn.AvgPool2d(16), (1, 2), image_size=64, fit="pad").plan((100, 150))
    assert str(plan).splitlines() == [
        "100×150 pixels (height × width), 5 tiles",
        "  scale 0: 43×64 in 1×1 of 64×64, padding 21×0",
        "  scale 1: 85×128 in 2×2 of 64×64",
    ]
    assert repr(plan).startswith("Plan(image_hw=(100, 150), scales=(ScalePlan(rows=Axis(")


def test_importing_s2wrap_leaves_the_compiler_alone():
    code = "import sys, s2wrap; print('torch._dynamo' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda features: features.to("float16"), "'float16' is no device; use one such as 'cuda:0', or a dtype"),
        (lambda features: features.upsample((8, 8), index=2), "index=2, but these features hold 2 maps; use 0 to 1"),
        (lambda features: features.upsample_strips((8, 8), index=-3), "index=-3, but these features hold 2 maps"),
    ],
)
def test_a_device_or_a_map_that_is_not_there_is_refused(call, words):
    features = Features((torch.rand(1, 4, 4, 4), torch.rand(1, 4, 8, 8)), (torch.rand(1, 1, 4),) * 2)
    with pytest.raises(S2WrapError) as error:
        call(features)
    assert words in str(error.value)
