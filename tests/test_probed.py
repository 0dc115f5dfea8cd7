"""Models as people have them: in half precision, on meta, offloaded, sharded, in threads. Each against its own call."""

import copy
import os
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import open_clip
import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import s2wrap
from s2wrap.errors import S2WrapError

WAYS = [{"fit": "pad"}, {"fit": "aspect"}, {"fuse": "detail"}]


def new_vit(**options):
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, **options).eval()


def new_clip(**options):
    torch.manual_seed(0)
    tower = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=48, vision_cfg=tower, text_cfg=text, **options).eval()


def new_resnet():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=0).eval()


def own_tokens(model, images):
    return model.forward_features(images)[:, 1:]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_open_clip_model_of_two_types_gives_its_own_features_and_embeddings(dtype):
    clip = new_clip(cast_dtype=dtype)
    open_clip.model.convert_weights_to_lp(clip, dtype=dtype)
    assert {parameter.dtype for parameter in clip.parameters()} == {dtype, torch.float32}
    model, images = s2wrap.wrap(clip, scales=(1,)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        embeddings = clip.encode_image(images.to(dtype))
        tokens = clip.visual.forward_intermediates(images.to(dtype), normalize_intermediates=True)
    torch.testing.assert_close(model.encode_image(images), embeddings)
    torch.testing.assert_close(model(images).spatial, tokens["image_intermediates"][-1])
    assert model.backbone.dtype == dtype


def test_norms_in_float32_and_integer_weights_do_not_say_what_the_images_are():
    class Int8(nn.Module):
        """As 8-bit layers are: integers and a factor."""

        def __init__(self, linear):
            super().__init__()
            self.factor = nn.Parameter(linear.weight.abs().amax() / 127)
            integers = (linear.weight / self.factor).round().to(torch.int8)
            self.weight, self.bias = nn.Parameter(integers, requires_grad=False), linear.bias

        def forward(self, tokens):
            return functional.linear(tokens, self.weight.to(tokens.dtype) * self.factor, self.bias)

    vit = new_vit().bfloat16()
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv = Int8(block.attn.qkv)
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
    images = torch.randn(2, 3, 160, 160)
    found = s2wrap.wrap(vit, scales=(1,))(images)
    torch.testing.assert_close(found.tokens, own_tokens(vit, images.bfloat16()))


def test_a_norm_before_the_first_convolution_does_not_say_its_type():
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 9, 16, 16).bfloat16())
    model[0].gain = nn.Parameter(torch.ones(1))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(s2wrap.wrap(model, (1,), image_size=64)(images).spatial, model(images.bfloat16()))


def test_a_wrapped_model_can_be_given_another_type():
    model, images = s2wrap.wrap(new_vit(), scales=(1,)).to(torch.bfloat16), torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(model(images).tokens, own_tokens(new_vit().bfloat16(), images.bfloat16()))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("before", [True, False])
def test_models_on_meta_give_shapes(name, before):
    with torch.device("meta" if before else "cpu"):
        backbone = timm.create_model(name, num_classes=0).eval()
    model = s2wrap.wrap(backbone, fit="pad", fuse="detail").to("meta")
    found = model(torch.randn(2, 3, 100, 150, device="meta"))
    real = s2wrap.wrap(timm.create_model(name, num_classes=0), fit="pad", fuse="detail")(torch.randn(2, 3, 100, 150))
    assert found.spatial.is_meta
    assert (found.spatial.shape, found.prefix.shape) == (real.spatial.shape, real.prefix.shape)


def test_a_model_wrapped_on_meta_takes_weights_later():
    with torch.device("meta"):
        model = s2wrap.wrap(timm.create_model("test_vit", num_classes=0), scales=(1,))
    model.to_empty(device="cpu").backbone.model.load_state_dict(new_vit().state_dict())
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(model(images).tokens, own_tokens(new_vit(), images))


def test_what_only_values_tell_is_asked_on_meta():
    square, rest = nn.Conv2d(3, 8, 16, 16, device="meta"), nn.Conv2d(3, 9, 14, 14, device="meta")
    with pytest.raises(S2WrapError, match=r"'bchw' .* or 'bhwc' .*: pass layout=, and num_prefix_tokens= or grid="):
        s2wrap.wrap(square, image_size=128)
    assert s2wrap.wrap(square, image_size=128, layout="bchw").num_features == 16
    with pytest.raises(S2WrapError, match="whether its patches leave a rest unseen: pass patch_size="):
        s2wrap.wrap(rest, image_size=384)
    assert s2wrap.wrap(rest, image_size=384, patch_size=14).backbone.layout.patch_hw == (14, 14)


def test_matrices_made_under_fake_tensors_do_not_spoil_later_calls():
    model, expected = (s2wrap.wrap(new_vit(), fit="pad", fuse="detail") for _ in range(2))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = model(torch.randn(2, 3, 100, 150))
        model.prepare((101, 150))
    assert isinstance(fake.spatial, FakeTensor)
    for height in (100, 101):
        images = torch.randn(2, 3, height, 150)
        torch.testing.assert_close(model(images).spatial, expected(images).spatial)
        assert fake.spatial.shape == model(images).spatial.shape


def test_a_model_made_and_wrapped_under_fake_tensors_gives_shapes():
    with FakeTensorMode():
        found = s2wrap.wrap(timm.create_model("test_resnet", num_classes=0))(torch.randn(2, 3, 100, 150))
    assert found.spatial.shape == s2wrap.wrap(new_resnet())(torch.randn(2, 3, 100, 150)).spatial.shape


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("make", [new_vit, new_resnet, new_clip])
@pytest.mark.parametrize("place", ["memory", "disk", "map"])
def test_offloaded_weights_are_brought_in_for_calls_that_go_past_forward(make, after, place, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = s2wrap.wrap(make()) if after else None
    backbone = model.backbone.model if model else make()
    options = {"preload_module_classes": ["MultiheadAttention"]}  # which reads its parts' weights: accelerate's word
    if place == "memory":
        accelerate.cpu_offload(backbone, torch.device("cpu"), **options)
    elif place == "disk":
        accelerate.disk_offload(backbone, str(tmp_path), torch.device("cpu"), **options)
    else:
        parts = [*dict(backbone.named_children()), *dict(backbone.named_parameters(recurse=False))]
        places = {part: ("disk", "cpu")[number % 2] for number, part in enumerate(parts)}
        options |= {"main_device": "cpu", "offload_dir": str(tmp_path), "force_hooks": True}
        accelerate.dispatch_model(backbone, places, **options)
    model = model or s2wrap.wrap(backbone)
    images = torch.randn(2, 3, 200, 200)
    expected = s2wrap.wrap(make())
    torch.testing.assert_close(model(images).spatial, expected(images).spatial)
    if make is new_clip:
        torch.testing.assert_close(model.encode_image(images), expected.encode_image(images))
    assert model.device.type == "cpu"
    assert any(parameter.is_meta for parameter in backbone.parameters())


def test_where_a_hook_computes_is_the_device_of_the_model():
    class Hook:
        execution_device = "cpu"

    class Several:
        hooks = (object(), Hook())

    model = s2wrap.wrap(nn.Conv2d(3, 9, 16, 16), image_size=64).to("meta")
    assert model.device.type == "meta"
    model.backbone.model._hf_hook = Several()
    assert model.device.type == "cpu"


def _process(rank, world, port):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.set_num_threads(1)
    try:
        _check_sharded()
        _check_parallel(rank)
    finally:
        dist.destroy_process_group()


def _check_sharded():
    for make in (new_vit, new_resnet, lambda: new_clip().visual):
        torch.manual_seed(1)
        images, expected = torch.randn(2, 3, 200, 200), s2wrap.wrap(make())
        for after in (False, True):
            model = s2wrap.wrap(make()) if after else None
            backbone = model.backbone.model if model else make()
            for block in getattr(backbone, "blocks", ()):
                fully_shard(block)
            fully_shard(backbone)
            model = model or s2wrap.wrap(backbone)
            for _ in range(2):
                torch.testing.assert_close(model(images).spatial, expected(images).spatial)
    whole = s2wrap.wrap(new_vit())
    fully_shard(whole)
    torch.testing.assert_close(whole(images).spatial, s2wrap.wrap(new_vit())(images).spatial)


def _check_parallel(rank):
    model = DistributedDataParallel(s2wrap.wrap(new_vit(), fit="pad", frozen=False))
    for height in (100 + 40 * rank, 210 - 60 * rank):
        images = torch.randn(1, 3, height, 170)
        found = model(images).spatial
        torch.testing.assert_close(found, s2wrap.wrap(new_vit(), fit="pad")(images).spatial)
        found.mean().backward()
    with pytest.raises(S2WrapError, match=r"DistributedDataParallel\(wrap\(model.module\)\)"):
        s2wrap.wrap(DistributedDataParallel(new_vit()))


def test_two_processes_share_weights_and_see_images_of_sizes_of_their_own():
    mp.spawn(_process, (2, 29500 + os.getpid() % 400), nprocs=2)


@pytest.mark.parametrize("way", WAYS)
def test_vmap_over_images_is_the_batch(way):
    model, images = s2wrap.wrap(new_vit(), **way), torch.randn(3, 3, 100, 150)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch: attention is slow under vmap
        found = torch.vmap(lambda image: model(image[None]).spatial[0])(images)
    torch.testing.assert_close(found, model(images).spatial, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_was_made_and_ran_in_inference_mode_has_gradients_to_the_image(way):
    vit = new_vit()
    with torch.inference_mode():
        model = s2wrap.wrap(vit, frozen=False, **way)
        model(torch.randn(1, 3, 100, 150))
    images = torch.randn(1, 3, 100, 150, requires_grad=True)
    model(images).spatial.square().mean().backward()
    functional_grad = torch.func.grad(lambda given: model(given).spatial.square().mean())(images.detach())
    torch.testing.assert_close(images.grad, functional_grad)
    assert images.grad.abs().sum() > 0
    assert vit.patch_embed.proj.weight.grad.abs().sum() > 0


def test_autocast_gives_the_features_of_the_own_call_under_autocast():
    vit, images = new_vit(), torch.randn(1, 3, 160, 160)
    model = s2wrap.wrap(vit, scales=(1,))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(model(images).tokens, own_tokens(vit, images))


def test_another_default_device_or_type_changes_nothing():
    vit, images = new_vit(), torch.randn(1, 3, 100, 150)
    expected = s2wrap.wrap(vit, fit="pad", fuse="detail")(images).spatial
    with torch.device("meta"):
        torch.testing.assert_close(s2wrap.wrap(vit, fit="pad", fuse="detail")(images).spatial, expected)
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(s2wrap.wrap(vit, fit="pad", fuse="detail")(images).spatial, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_threads_share_a_model_over_more_sizes_than_are_kept():
    model = s2wrap.wrap(new_vit(), fit="pad")
    sizes = [(100 + number, 90) for number in range(70)]

    def average(image_hw):
        model.prepare(image_hw)
        return model(torch.ones(1, 3, *image_hw)).spatial.mean().item()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(average, sizes))
    assert found == [average(image_hw) for image_hw in sizes]


@pytest.mark.parametrize("way", [*WAYS, {"whole": True}])
@pytest.mark.parametrize("make", [new_vit, new_resnet])
def test_a_call_changes_neither_the_bytes_nor_the_hash_of_a_model(make, way):
    model, images = s2wrap.wrap(make(), **way), torch.randn(1, 3, 100, 150)
    before = joblib.hash(model), pickle.dumps(model)
    found = model(images).spatial
    model.encode(torch.randint(256, (3, 50, 60), dtype=torch.uint8))
    repr(model)
    assert (joblib.hash(model), pickle.dumps(model)) == before
    for same in (copy.deepcopy(model), pickle.loads(before[1])):
        torch.testing.assert_close(same(images).spatial, found)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_models_for_other_channels_take_their_images(channels):
    backbone, images = new_vit(in_chans=channels), torch.randn(1, channels, 160, 160)
    model = s2wrap.wrap(backbone, scales=(1,))
    torch.testing.assert_close(model(images).tokens, own_tokens(backbone, images))
    assert (model.input.channels, model.input.mean) == (channels, None)  # those of timm are for RGB
    first = nn.Conv2d(channels, 9, 16, 16)
    torch.testing.assert_close(s2wrap.wrap(first, (1,), image_size=160)(images).spatial, first(images))
    known = {"image_size": 160, "in_channels": channels, "layout": "bchw"}
    pooled = s2wrap.wrap(lambda tiles: functional.avg_pool2d(tiles, 16), (1,), **known)(images)
    torch.testing.assert_close(pooled.spatial, functional.avg_pool2d(images, 16))
    mean, std = [0.1] * channels, [0.3] * channels
    bytes_ = torch.randint(256, images.shape, dtype=torch.uint8)
    found = s2wrap.wrap(backbone, (1,), mean=mean, std=std)(bytes_)
    torch.testing.assert_close(found.tokens, own_tokens(backbone, (bytes_ / 255 - 0.1) / 0.3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_mean_or_std_of_another_length_is_refused_with_the_number(key):
    with pytest.raises(S2WrapError, match=f"{key}=.* for images of 4 channels; give 4 numbers"):
        s2wrap.wrap(new_vit(in_chans=4), **{key: (0.5, 0.5, 0.5)})


def test_a_first_convolution_behind_rearranged_pixels_does_not_say_the_channels():
    assert s2wrap.wrap(timm.create_model("tresnet_m", num_classes=0)).input.channels == 3
