"""What only a GPU can show. Skipped, with the reason, where there is none."""

import copy

import pytest
import torch

import s2wrap

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("fuse", ["concat", "pyramid", "max"])
def test_the_gpu_gives_the_cpus_features(vit, fuse):
    images = torch.randn(3, 3, 200, 300)
    expected = s2wrap.wrap(copy.deepcopy(vit), (1, 1.5, 2), fuse=fuse)(images)
    model = s2wrap.wrap(copy.deepcopy(vit), (1, 1.5, 2), fuse=fuse).to("cuda")
    found = model(images.cuda())
    for ours, theirs in zip(found.maps, expected.maps, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"fit": "aspect"},
        {"fit": "pad", "overlap": 3},
        {"whole": True, "fit": "aspect"},
        {"fuse": "detail", "overlap": 2},
        {"phases": 2},
        {"norm": "std", "target_grid": "finest"},
        {"layers": (0, 3)},
    ],
    ids=str,
)
def test_every_mode_gives_the_cpus_features_on_the_gpu(vit, options):
    images = torch.randn(3, 3, 200, 300)
    expected = s2wrap.wrap(copy.deepcopy(vit), (1, 2), **options)(images)
    model = s2wrap.wrap(copy.deepcopy(vit), (1, 2), **options).to("cuda")
    found = model(images.cuda())
    torch.testing.assert_close(found.spatial.cpu(), expected.spatial, atol=1e-3, rtol=0)
    (one, *_) = model.encode(list(images))
    torch.testing.assert_close(one.spatial.cpu(), expected.spatial[:1], atol=1e-3, rtol=0)


def test_selecting_tiles_on_the_gpu(vit):
    images = torch.randn(2, 3, 200, 300)
    expected = s2wrap.wrap(copy.deepcopy(vit), (1, 3))(images, select=3, by="detail")
    found = s2wrap.wrap(copy.deepcopy(vit), (1, 3)).to("cuda")(images.cuda(), select=3, by="detail")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.ran, expected.ran, strict=True))
    torch.testing.assert_close(found.spatial.cpu(), expected.spatial, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_merges_in_full_precision(vit, dtype):
    model = s2wrap.wrap(copy.deepcopy(vit), (1, 2, 3)).to("cuda", dtype)
    assert all(buffer.dtype == torch.float32 and buffer.is_cuda for buffer in model.placements.buffers())
    images = torch.randn(2, 3, 480, 480, device="cuda")
    found = model(images).tokens.float()
    expected = s2wrap.wrap(copy.deepcopy(vit), (1, 2, 3)).cuda()(images).tokens
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.99


def test_autocast_on_the_gpu_leaves_resizing_and_merging_exact(vit):
    model = s2wrap.wrap(torch.nn.AvgPool2d(16), (1, 2, 3), image_size=64).cuda()
    images = torch.rand(2, 3, 300, 200, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = model(images).spatial
    torch.testing.assert_close(found, model(images).spatial, atol=1e-5, rtol=0)


def test_compile_on_the_gpu(vit):
    model = s2wrap.wrap(copy.deepcopy(vit), (1, 2)).cuda()
    images = torch.randn(2, 3, 160, 160, device="cuda")
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True)(images).spatial, model(images).spatial, atol=1e-3, rtol=0
        )


def test_memory_does_not_grow_with_the_scales(vit):
    backbone = s2wrap.wrap(copy.deepcopy(vit), (1,)).backbone.cuda()
    peaks = []
    for largest in (2, 8):
        model = s2wrap.MultiScale(backbone, range(1, largest + 1), tile_batch=1).cuda()
        images = torch.rand(1, 3, 160, 160, device="cuda")
        with torch.inference_mode():
            model(images)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            result = model(images)
            resized = 3 * (160 * largest) ** 2 * 4
            peaks.append(torch.cuda.max_memory_allocated() - before - resized - 2 * result.spatial.nbytes)
    assert peaks[1] < 1.2 * peaks[0] + 2**20
