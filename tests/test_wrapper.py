import copy

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from memory import peak_mib
from torch import nn

import s2wrap
from s2wrap import Features, S2WrapError
from s2wrap.resample import resize


class Local(nn.Module):
    """A purely local backbone: the mean colour of every patch; the rest of the tile is not looked at."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def forward(self, images):
        return F.avg_pool2d(images, self.patch)


class Recorder(nn.Module):
    """Counts the tiles of every call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, images):
        self.calls.append(tuple(images.shape))
        return F.avg_pool2d(images, 16)


def plain_loop(backbone, images, sizes, grid):
    """S² by hand: no code of s2wrap but the resize, which other tests compare with torch and PIL."""
    tile_h, tile_w = backbone.patch_embed.img_size
    found = []
    for height, width in sizes:
        resized = resize(images, (height, width))
        lines, prefixes = [], []
        for top in range(0, height, tile_h):
            line = []
            for left in range(0, width, tile_w):
                tokens = backbone.forward_features(resized[:, :, top : top + tile_h, left : left + tile_w])
                prefixes.append(tokens[:, :1])
                line.append(tokens[:, 1:].transpose(1, 2).unflatten(2, (10, 10)))
            lines.append(torch.cat(line, dim=3))
        stitched = torch.cat(lines, dim=2)
        found.append((F.interpolate(stitched, size=grid, mode="area"), torch.stack(prefixes).mean(dim=0)))
    return torch.cat([spatial for spatial, _ in found], dim=1), torch.cat([prefix for _, prefix in found], dim=2)


@pytest.mark.parametrize("image_hw", [(160, 160), (480, 480), (100, 231), (517, 90)])
@pytest.mark.parametrize("batch", [1, 3])
def test_features_are_those_of_a_plain_loop_over_tiles(vit, image_hw, batch):
    images = torch.randn(batch, 3, *image_hw)
    model = s2wrap.wrap(vit, scales=(1, 2, 3))
    features = model(images)
    spatial, prefix = plain_loop(vit, images, [(160, 160), (320, 320), (480, 480)], (10, 10))
    torch.testing.assert_close(features.spatial, spatial, atol=5e-5, rtol=0)
    torch.testing.assert_close(features.prefix, prefix, atol=5e-5, rtol=0)
    assert features.spatial.shape == (batch, model.num_features, 10, 10)


def test_the_one_line():
    backbone = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0)
    features = s2wrap.wrap(backbone, scales=(1, 2, 3))(torch.randn(1, 3, 300, 300))
    assert features.spatial.shape == (1, 3 * 384, 16, 16)
    assert features.prefix.shape == (1, 1, 3 * 384)
    assert features.tokens.shape == (1, 256, 3 * 384)
    assert features.pooled.shape == (1, 3 * 384)


def test_scale_1_of_an_image_of_the_own_size_is_the_backbones_own_output(vit):
    images = torch.randn(5, 3, 160, 160)
    features = s2wrap.wrap(vit, scales=(1,), tile_batch=5)(images)
    own = vit.forward_features(images)
    torch.testing.assert_close(features.tokens, own[:, 1:], atol=0, rtol=0)
    torch.testing.assert_close(features.prefix, own[:, :1], atol=0, rtol=0)


def sizes_of(model):
    return [scale.box_hw for scale in model.scales]


@pytest.mark.parametrize("scales", [(1, 2), (1, 2, 3), (2, 3, 5), (1.5, 3)])
def test_a_local_backbone_shows_no_tile_borders(scales):
    """Average of the pixels, exactly: a tile border would leave a trace."""
    images = torch.rand(2, 3, 320, 320)
    model = s2wrap.wrap(Local(16), scales=scales, image_size=64, fuse="pyramid")
    for level, size in zip(model(images).maps, sizes_of(model), strict=True):
        torch.testing.assert_close(level, F.avg_pool2d(resize(images, size), 16), atol=2e-6, rtol=0)
    fused = s2wrap.wrap(Local(16), scales=scales, image_size=64)
    grid = min(fused.grids_hw)
    features = fused(images).spatial.chunk(len(scales), dim=1)
    for spatial, size, own in zip(features, sizes_of(fused), fused.grids_hw, strict=True):
        if own[0] % grid[0] == 0:  # else a cell holds a part of a patch, of which only the mean is known
            mean = F.interpolate(resize(images, size), size=grid, mode="area")
            torch.testing.assert_close(spatial, mean, atol=2e-6, rtol=0)


def test_patches_that_do_not_divide_the_tile_average_what_they_saw():
    """Tiles of 40 pixels with patches of 12: four pixels of each tile are not seen, and do not count."""
    images = torch.rand(1, 3, 80, 80)
    model = s2wrap.wrap(Local(12), scales=(2,), image_size=40)
    assert model.backbone.layout.patch_hw == (12, 12)
    (level,) = model(images).maps
    assert level.shape[-2:] == (6, 6)
    seen, values = torch.zeros(80), torch.zeros(3, 80)  # along a row: which pixels a token saw, and its value there
    flat = images[:, :, :1].expand(-1, -1, 80, -1)  # constant downward, so that a row says it all
    for start in (0, 12, 24, 40, 52, 64):
        seen[start : start + 12] = 1
        values[:, start : start + 12] = flat[0, :, 0, start : start + 12].mean(dim=1, keepdim=True)
    third = torch.repeat_interleave(torch.stack([*(values * seen), seen]), 3, dim=1)  # a cell is 40 thirds of a pixel
    *sums, weight = third.unflatten(1, (6, 40)).sum(dim=2)
    torch.testing.assert_close(model(flat).spatial[0, :, 2], torch.stack(sums) / weight, atol=1e-6, rtol=0)


def test_a_scale_that_is_no_whole_number_shifts_the_last_tile(vit):
    images = torch.randn(1, 3, 240, 240)  # scale 1.5 of 160: tiles at 0 and 80, each answers for 120 pixels
    model = s2wrap.wrap(vit, scales=("240px",), fuse="pyramid", blend="trim")
    (level,) = model(images).maps
    corners = [
        vit.forward_features(images[:, :, top : top + 160, left : left + 160])[:, 1:]
        .transpose(1, 2)
        .unflatten(2, (10, 10))
        for top in (0, 80)
        for left in (0, 80)
    ]
    assert level.shape[-2:] == (15, 15)
    # 120 pixels are seven and a half tokens: cell 7 is half of each tile
    torch.testing.assert_close(level[:, :, :7, :7], corners[0][:, :, :7, :7], atol=5e-5, rtol=0)
    torch.testing.assert_close(level[:, :, 8:, 8:], corners[3][:, :, 3:, 3:], atol=5e-5, rtol=0)
    middle = (corners[0][:, :, :7, 7] + corners[1][:, :, :7, 2]) / 2
    torch.testing.assert_close(level[:, :, :7, 7], middle, atol=5e-5, rtol=0)


@pytest.mark.parametrize("fuse", ["concat", "mean", "sum", "max", "weighted", "pyramid"])
@pytest.mark.parametrize("prefix", ["area", "base", "drop"])
def test_the_tile_batch_does_not_change_the_result(vit, fuse, prefix):
    images = torch.randn(3, 3, 200, 260)
    options = {"fuse": fuse, "prefix": prefix, "weights": (1, -0.5) if fuse == "weighted" else None}
    results = [s2wrap.wrap(vit, (1.25, 2), tile_batch=n, **options)(images) for n in (None, 1, 2, 3, 4, 7, 100)]
    for other in results[1:]:
        for ours, theirs in zip((*results[0].maps, *results[0].prefixes), (*other.maps, *other.prefixes), strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


def test_no_call_is_larger_than_the_tile_batch_and_every_tile_has_the_own_size():
    for batch in (1, 2, 5):
        for tile_batch in (1, 3, 4, 8):
            recorder = Recorder()
            model = s2wrap.wrap(recorder, (1, 1.3, 2), image_size=64, tile_batch=tile_batch)
            recorder.calls.clear()
            model(torch.rand(batch, 3, 90, 120))
            assert {call[1:] for call in recorder.calls} == {(3, 64, 64)}
            assert max(call[0] for call in recorder.calls) <= tile_batch
            assert sum(call[0] for call in recorder.calls) == batch * 9


def test_a_call_is_one_call_to_hooks():
    model, seen = s2wrap.wrap(Local(16), (1, 2), image_size=64, tile_batch=2), []
    model.register_forward_hook(lambda *arguments: seen.append(arguments))
    assert model(torch.rand(5, 3, 64, 64)).spatial.shape[0] == 5
    assert len(seen) == 1


def test_tiles_of_all_scales_share_full_batches():
    recorder = Recorder()
    model = s2wrap.wrap(recorder, (1, 2, 3), image_size=64, tile_batch=5)
    recorder.calls.clear()
    model(torch.rand(1, 3, 64, 64))
    assert [call[0] for call in recorder.calls] == [5, 5, 4]


def test_memory_beyond_result_and_resized_image_does_not_grow_with_the_scales(vit):
    """Counted, not timed: what PyTorch allocates."""
    images = torch.rand(1, 3, 160, 160)
    rest = []
    for largest in (2, 6):
        model = s2wrap.wrap(vit, range(1, largest + 1), tile_batch=1)
        result = model(images).spatial.nbytes  # held twice while the scales are joined
        side = 160 * largest
        resized = 3 * side * side * 4 + 3 * 160 * side * 4  # with the scratch of torch's separable resize
        rest.append(peak_mib(lambda model=model: model(images)) * 2**20 - 2 * result - resized)
    assert rest[1] < 1.1 * max(rest[0], 500_000)


def test_prefix_tokens_are_weighed_by_the_area_each_tile_answers_for():
    class Prefix(nn.Module):
        def forward(self, images):
            patches = F.avg_pool2d(images, 16).flatten(2).transpose(1, 2)
            return torch.cat([images.mean(dim=(2, 3))[:, None], patches], dim=1)

    images = torch.zeros(1, 3, 150, 150)
    images[..., 100:] = 1.0
    model = s2wrap.wrap(Prefix(), ("150px",), image_size=64, num_prefix_tokens=1)
    # tiles at 0, 64 and 86 own 64, 43 (to 107) and 43 pixels of the line, and see 0, 28 and 50 of 64 bright pixels
    expected = (64 * 0 + 43 * 28 / 64 + 43 * 50 / 64) / 150
    torch.testing.assert_close(model(images).prefix, torch.full((1, 1, 3), expected), atol=1e-5, rtol=0)


def test_prefix_policies(vit):
    images = torch.randn(1, 3, 320, 320)
    area = s2wrap.wrap(vit, (2, 1))(images)
    base = s2wrap.wrap(vit, (2, 1), prefix="base")(images)
    assert s2wrap.wrap(vit, (2, 1), prefix="drop")(images).prefix.shape == (1, 0, 64)
    assert base.prefix.shape == (1, 1, 64)
    torch.testing.assert_close(base.prefix, area.prefix[:, :, 64:], atol=1e-6, rtol=0)
    torch.testing.assert_close(base.spatial, area.spatial, atol=1e-6, rtol=0)


def test_uint8_images_are_normalised_not_wrapped(vit):
    images = torch.zeros(1, 3, 200, 200, dtype=torch.uint8)
    images[..., 100:] = 255  # a hard edge: the cubic overshoots 0 and 255
    mean, std = torch.tensor(vit.pretrained_cfg["mean"]), torch.tensor(vit.pretrained_cfg["std"])
    floats = (images.double() / 255 - mean[:, None, None]) / std[:, None, None]
    model = s2wrap.wrap(vit, (1, 2))
    torch.testing.assert_close(model(images).spatial, model(floats.float()).spatial, atol=1e-4, rtol=0)


def test_bilinear_backbones_get_bilinear_images():
    images = torch.rand(1, 3, 100, 100)
    model = s2wrap.wrap(Local(16), (1,), image_size=64, interpolation="bilinear")
    expected = F.avg_pool2d(F.interpolate(images, size=64, mode="bilinear", antialias=True), 16)
    torch.testing.assert_close(model(images).spatial, expected)


def test_frozen_is_frozen_and_stays_in_evaluation_mode():
    backbone = timm.create_model("test_resnet", num_classes=0).train()
    model = s2wrap.wrap(backbone, (1, 2)).train()
    assert model.training
    assert not backbone.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_unfrozen_backbone_learns_and_its_statistics_survive_the_probe():
    backbone = timm.create_model("test_resnet", num_classes=0).train()
    before = copy.deepcopy(backbone.state_dict())
    model = s2wrap.wrap(backbone, (1, 2), frozen=False, tile_batch=2)
    assert backbone.training
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name])
    model.eval()(torch.rand(2, 3, 200, 200)).spatial.square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.conv1.parameters())


def test_gradients_are_those_of_a_plain_loop(vit):
    images = torch.randn(1, 3, 200, 200)
    backbone = copy.deepcopy(vit).requires_grad_()
    model = s2wrap.wrap(backbone, (1, 2), frozen=False, tile_batch=2)
    model(images).spatial.pow(2).sum().backward()
    other = copy.deepcopy(vit).requires_grad_()
    plain_loop(other, images, [(160, 160), (320, 320)], (10, 10))[0].pow(2).sum().backward()
    ours, theirs = backbone.patch_embed.proj.weight.grad, other.patch_embed.proj.weight.grad
    torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=1e-3)


def test_gradients_reach_the_image_of_a_frozen_model(vit):
    images = torch.randn(1, 3, 200, 200, requires_grad=True)
    s2wrap.wrap(vit, (1, 2))(images).pooled.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_half_and_double_backbones_give_their_own_precision(vit):
    images = torch.randn(1, 3, 320, 320)
    reference = s2wrap.wrap(vit, (1, 2))(images).spatial
    for dtype, tolerance in ((torch.bfloat16, 0.15), (torch.float16, 0.03), (torch.float64, 1e-4)):
        model = s2wrap.wrap(copy.deepcopy(vit), (1, 2)).to(dtype)
        matrices = model.placement((160, 160)).scales[0].layers[0].merge
        assert {matrix.dtype for matrix in matrices} == {torch.float32}
        result = model(images).spatial
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), reference, atol=tolerance, rtol=0.02)


def test_autocast_changes_the_backbone_only(model):
    images = torch.randn(2, 3, 320, 320)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(images)
    torch.testing.assert_close(result.spatial.float(), model(images).spatial, atol=0.1, rtol=0)
    local = s2wrap.wrap(Local(16), (1, 2, 3), image_size=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(local(images).spatial, local(images).spatial, atol=0, rtol=0)
        exact = local(images).spatial
    torch.testing.assert_close(exact, local(images).spatial, atol=1e-6, rtol=0)


def test_a_first_call_in_inference_mode_does_not_spoil_gradients(vit):
    model = s2wrap.wrap(copy.deepcopy(vit).requires_grad_(), (1, 2), frozen=False)
    images = torch.randn(1, 3, 170, 170)
    with torch.inference_mode():
        expected = model(images).spatial.clone()
    result = model(images).spatial
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    result.sum().backward()


def test_the_wrapper_can_be_copied_and_saves_only_the_backbone(model):
    images = torch.randn(1, 3, 160, 160)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(images).spatial, model(images).spatial)
    assert all(key.startswith("backbone.model.") for key in model.state_dict())


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([1, 2], "images are a list; for images of any sizes use model.encode(images)"),
        (torch.rand(1, 5, 64, 64), "shape (1, 5, 64, 64); give (batch, 3, height, width)"),
        (torch.rand(3, 64, 64), "for one image give images[None], (batch, 3, height, width)"),
        (torch.rand(0, 3, 64, 64), "an empty batch"),
        (torch.rand(1, 3, 0, 0), "0×0 pixels"),
        (torch.rand(1, 3, 1, 640), "1×640 pixels"),
        (torch.full((1, 3, 64, 64), torch.nan), "12288 values that are NaN or infinite"),
        (torch.full((1, 3, 64, 64), torch.inf), "NaN or infinite"),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.int64),
            "torch.int64; give one of uint8, uint16, float16, bfloat16, float32, float64",
        ),
        (torch.zeros(1, 3, 64, 64, dtype=torch.bool), "torch.bool"),
    ],
)
def test_wrong_images_get_one_clear_error(model, images, words):
    with pytest.raises(S2WrapError) as error:
        model(images)
    assert words in str(error.value)


def test_the_matrices_of_the_size_that_was_longest_unused_are_dropped(vit, monkeypatch):
    monkeypatch.setattr("s2wrap.placement.KEPT_SIZES", 3)
    model = s2wrap.wrap(vit, (1, 2), fit="pad").prepare((40, 80)).prepare((50, 80))
    model(torch.zeros(1, 3, 40, 80))
    model.prepare((160, 160)).prepare((60, 80))
    assert sorted(model._placements.kept) == ["160x160", "40x80", "60x80"]
    model.grids((160, 160))
    model(torch.zeros(1, 3, 70, 80))
    assert sorted(model._placements.kept) == ["160x160", "60x80", "70x80"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fusion": "mean"}, "has no option 'fusion'; did you mean fuse"),
        ({"tile_bach": 3}, "has no option 'tile_bach'; did you mean tile_batch"),
        ({"imagesize": 224}, "has no option 'imagesize'; did you mean image_size"),
        ({"zzz": 1}, "has no option 'zzz'; it takes "),
    ],
)
def test_options_that_do_not_exist_are_named_with_the_nearest(vit, options, words):
    for call, name in ((lambda: s2wrap.wrap(vit, **options), "wrap()"), (lambda: load(**options), "load()")):
        with pytest.raises(S2WrapError) as error:
            call()
        assert f"{name} {words}" in str(error.value)


def load(spec="timm:test_vit", **options):
    return s2wrap.load(spec, pretrained=False, **options)


def test_load_takes_what_is_known_of_the_backbone_and_scales_once():
    model = load(scales=(1, 2), mean=(0.1, 0.2, 0.3), layers=(1, 2), prefix="drop")
    assert (model.input.mean, len(model.backbone.layouts), len(model.scales)) == ((0.1, 0.2, 0.3), 2, 2)
    with pytest.raises(S2WrapError, match=r"'timm:test_vit@1,2' names scales, and scales=\(1, 3\) too; use one"):
        load("timm:test_vit@1,2", scales=(1, 3))
    with pytest.raises(S2WrapError, match=r"did you mean pretrained"):
        load(pretraned=True)


def test_large_finite_values_are_not_taken_for_infinite():
    model = s2wrap.wrap(Local(16), (1,), image_size=64)
    assert model(torch.full((1, 3, 64, 64), 3e38)).spatial.shape == (1, 3, 4, 4)


def test_uint8_without_mean_and_std_is_refused():
    with pytest.raises(S2WrapError, match=r"give mean= and std= to wrap\(\)"):
        s2wrap.wrap(Local(16), (1,), image_size=64)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scales": ()}, "names no scales"),
        ({"scales": "1,2"}, "names no scales"),
        ({"scales": (1, 0)}, "above 0"),
        ({"scales": (1, -2)}, "above 0"),
        ({"scales": (1, 1000)}, "the largest scale is 32"),
        ({"prefix": "mean"}, "use one of area, base, drop"),
        ({"tile_batch": 0}, "use 1 or more"),
        ({"fuse": "join"}, "use one of concat"),
        ({"interpolation": "nearest"}, "use one of bicubic, bilinear"),
        ({"scales": None}, "names no scales"),
        ({"scales": {1, 2}}, "names no scales"),
        ({"fuse": "weighted", "weights": ("a", "b")}, "one finite number a scale"),
        ({"fuse": "weighted", "weights": 0.5}, "one finite number a scale"),
        ({"image_size": 64.5}, "a whole number from 2 to 32768"),
        ({"mean": 0.5}, "use one number a channel"),
        ({"mean": (0.5, float("nan"), 0.5)}, "use one number a channel"),
        ({"image_size": 1}, "from 2 to 32768"),
        ({"image_size": 10**12}, "from 2 to 32768"),
        ({"std": (0.5, 0.5, 0.0)}, "one number a channel above 0"),
        ({"mean": (0.5, 0.5)}, "for images of 3 channels; give 3 numbers, one a channel"),
    ],
)
def test_impossible_options_say_what_would_work(vit, options, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.wrap(vit, **options)
    assert words in str(error.value)


def test_a_pyramid_has_a_level_a_scale(vit):
    features = s2wrap.wrap(vit, (1, 2, 3), fuse="pyramid")(torch.randn(1, 3, 160, 160))
    assert isinstance(features, Features)
    assert [tuple(level.shape) for level in features.maps] == [(1, 64, 10, 10), (1, 64, 20, 20), (1, 64, 30, 30)]
    assert [tuple(level.shape) for level in features.prefixes] == [(1, 1, 64)] * 3


def test_dataparallel_gathers_features(vit, monkeypatch):
    """Its replicas and its gathering, on the CPU: only the copy between GPUs is replaced."""
    from torch.nn.parallel import scatter_gather

    monkeypatch.setattr(scatter_gather.Gather, "apply", lambda device, dim, *tensors: torch.cat(tensors, dim))
    model, images = s2wrap.wrap(vit, (1, 2), fuse="pyramid"), torch.randn(3, 3, 160, 160)
    replica = model._replicate_for_data_parallel()
    gathered = scatter_gather.gather([replica(images[:2]), replica(images[2:])], "cpu")
    assert isinstance(gathered, Features)
    expected = model(images)
    pairs = zip((*gathered.maps, *gathered.prefixes), (*expected.maps, *expected.prefixes), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
