import pytest
import timm
import torch
from tiny_graphs import model_graph, tiles_graph
from torch import nn

import s2wrap
from s2wrap import S2WrapError
from s2wrap.export.graph import make_graph
from s2wrap.export.options import GraphOptions


def wrapped(name="test_vit", scales=(1, 2), **options):
    return s2wrap.wrap(timm.create_model(name, num_classes=0), scales, **options)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=3e-4, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scales": (1, 2, 3)},
        {"scales": (1, 1.5)},
        {"scales": (0.5, 1)},
        {"scales": (0.5, 1), "whole": False},
        {"scales": (2, 1)},
        {"fit": "aspect"},
        {"fit": "pad", "overlap": 3},
        {"whole": True, "fit": "aspect"},
        {"whole": True, "fit": "pad", "target_grid": "finest"},
        {"overlap": 3, "blend": "gaussian", "target_grid": (13, 7)},
        {"fuse": "detail"},
        {"phases": 2},
        {"fuse": "detail", "scales": ("1:phases=2", 2)},
        {"fuse": "detail", "overlap": 2, "fit": "pad", "scales": (1, 2, 3)},
        {"fuse": "detail", "scales": (3, 1)},
        {"fuse": "detail", "layers": (0, 3)},
        {"fuse": "pyramid", "scales": (1, 1.5, 3)},
        {"fuse": "mean"},
        {"fuse": "max"},
        {"fuse": "weighted", "weights": (0.3, 0.7)},
        {"norm": "l2"},
        {"norm": "layer"},
        {"norm": "std"},
        {"prefix": "base"},
        {"prefix": "drop"},
        {"layers": (0, 3)},
        {"layers": (0, 3), "join_layers": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("image_hw", [(120, 190), (320, 320)])
def test_the_products_compute_what_the_stream_computes(options, image_hw):
    """The stream resizes by PyTorch's own call and merges scale after scale."""
    model = wrapped(**options)
    graph = model_graph(model, image_hw)
    images = torch.randn(3, 3, *image_hw)
    features = model(images)
    found = dict(zip(graph.names, graph(images), strict=True))
    numbers = [f"_{k}" for k in range(len(features.maps))] if len(features.maps) > 1 else [""]
    for number, spatial, prefix in zip(numbers, features.maps, features.prefixes, strict=True):
        close(found["spatial" + number], spatial)
        if prefix.shape[1]:
            close(found["prefix" + number], prefix)
        else:
            assert "prefix" + number not in found


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224", "test_efficientnet"])
def test_maps_in_any_layout(name):
    model = wrapped(name, whole=False)
    images = torch.randn(2, 3, 300, 200)
    close(model_graph(model, (300, 200))(images)[0], model(images).spatial)


def test_pixels_are_normalised_inside():
    model = wrapped()
    pixels = torch.randint(0, 256, (2, 200, 300, 3), dtype=torch.uint8)
    graph = model_graph(model, (200, 300), pixels="uint8")
    close(graph(pixels)[0], model(pixels.permute(0, 3, 1, 2)).spatial)


def test_outputs_are_those_asked_for():
    model = wrapped()
    images = torch.randn(2, 3, 160, 160)
    features = model(images)
    graph = model_graph(model, (160, 160), outputs=("pooled", "prefix", "tokens"))
    assert graph.names == ("pooled", "prefix", "tokens")
    for found, expected in zip(graph(images), (features.pooled, features.prefix, features.tokens), strict=True):
        close(found, expected)


def test_half_precision_is_the_backbones_alone():
    model = wrapped(scales=(1, 2, 3))
    images = torch.randn(2, 3, 160, 160)
    expected = model(images).spatial
    graph = model_graph(model, (160, 160), precision="bf16", fp32_layers=("blocks.0", "norm"))
    assert next(graph.backbone.model.blocks[0].parameters()).dtype == torch.float32
    assert next(graph.backbone.model.blocks[1].parameters()).dtype == torch.bfloat16
    assert {buffer.dtype for buffer in graph.cuts.buffers()} == {torch.float32}
    found = graph(images)[0]
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert next(model.backbone.parameters()).dtype == torch.float32  # it is a copy


@pytest.mark.parametrize("pattern", ["blocks.0", "blocks.0.attn", "blocks.0.*", "blocks.0*"])
def test_what_stays_float32_is_float32_inside(monkeypatch, pattern):
    """A pattern may name a module and its parts: what passes between them must not be rounded."""
    graph = model_graph(wrapped(), (160, 160), precision="bf16", fp32_layers=(pattern,))
    seen, attention = [], torch.nn.functional.scaled_dot_product_attention

    def spy(query, *arguments, **options):
        seen.append(query.dtype)
        return attention(query, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    graph(torch.randn(1, 3, 160, 160))
    assert seen == [torch.float32] + [torch.bfloat16] * 5


def test_float32_modules_take_what_is_given_by_name():
    class Named(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.inner = torch.nn.Conv2d(3, 8, 16, 16), torch.nn.Conv2d(8, 8, 1)

        def forward(self, images):
            return self.inner(input=self.patches(images))

    model = s2wrap.wrap(Named(), (1,), image_size=64, layout="bchw")
    found = model_graph(model, (64, 64), precision="bf16", fp32_layers=("inner",))(torch.randn(1, 3, 64, 64))
    assert found[0].dtype == torch.bfloat16


def test_the_backbone_alone_sees_tiles():
    model = wrapped(layers=(0, 3))
    graph = tiles_graph(model)
    tiles = torch.randn(4, 3, 160, 160)
    seen = model.backbone(tiles)
    assert graph.names == ("spatial_0", "spatial_1", "prefix_0", "prefix_1")
    for found, expected in zip(graph(tiles), (*seen.maps, *seen.prefixes), strict=True):
        close(found, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision='int4' is unknown; use one of fp32, fp16, bf16, int8, fp8"),
        ({"pixels": "int16"}, "pixels='int16' is unknown; use one of float32, uint8, uint16"),
        ({"outputs": ("spatial", "masks")}, "use some of spatial, tokens, prefix, pooled"),
        ({"outputs": ()}, "use some of"),
        ({"image_hw": (5000, 100)}, "5000×100 pixels are too large for one graph; use at most 4096 a side"),
        ({"image_hw": (1, 1)}, "1×1 pixels"),
        ({"precision": "fp16", "fp32_layers": ("heads.*",)}, "has no such module; it has patch_embed"),
        ({"fp32_layers": ("norm",)}, "where all layers are float32 already"),
    ],
)
def test_what_cannot_be_is_one_clear_error(options, message):
    with pytest.raises(S2WrapError, match=message.replace("(", r"\(")):
        model_graph(wrapped(), **({"image_hw": (160, 160)} | options))


def test_what_a_model_does_not_have_cannot_be_asked_for():
    pool = s2wrap.wrap(torch.nn.AvgPool2d(16), (1, 2), image_size=64, whole=False)
    with pytest.raises(S2WrapError, match="AvgPool2d gives no prefix tokens here"):
        model_graph(pool, (64, 64), outputs=("prefix",))
    with pytest.raises(S2WrapError, match="needs the mean and std of AvgPool2d"):
        model_graph(pool, (64, 64), pixels="uint8")
    with pytest.raises(S2WrapError, match="scale 2 runs whole"):
        tiles_graph(wrapped("test_resnet"))


def test_the_work_around_the_backbone_is_counted():
    graph = model_graph(wrapped(scales=(1, 2, 3)), (480, 480))
    by_hand = 3 * (160 + 320) * 480 * 480 + 3 * 480 * (160 * 160 + 320 * 320)  # scale 3 is only cut
    merging = 64 * 10 * 140 * (10 + 30)  # 14 tiles of 10 rows and 10 columns to 3 grids of 10×10
    assert graph.multiply_adds == by_hand + merging


class Table(nn.Module):
    """A module with a table that is no part of its state_dict, and one that training would change."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 16, 16), nn.BatchNorm2d(8)
        self.register_buffer("table", torch.linspace(0, 1, 8)[:, None, None] / 3, persistent=False)

    def forward(self, images):
        return self.norm(self.stem(images)) + self.table


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("tiles", [False, True])
def test_the_model_of_the_caller_stays_as_it_is(precision, tiles):
    """Also one that somebody set to train, whose statistics a call would change."""
    net = Table()
    model = s2wrap.wrap(net, (1, 2), image_size=64, whole=False)
    net.train()
    tensors = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    before = {key: (tensor.clone(), tensor.dtype, tensor.requires_grad) for key, tensor in tensors.items()}
    state = torch.get_rng_state()
    layers = () if precision == "fp32" else ("norm",)
    graph = make_graph(model, GraphOptions(precision=precision, tiles=tiles, fp32_layers=layers))
    graph(graph.example(1))
    assert torch.equal(torch.get_rng_state(), state)
    for key, tensor in ((id(tensor), tensor) for tensor in (*net.parameters(), *net.buffers())):
        assert torch.equal(tensor, before[key][0])
        assert (tensor.dtype, tensor.requires_grad) == before[key][1:]
    assert net.training
    assert net.norm.training


def test_float32_modules_keep_tables_that_no_state_dict_holds():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Table()

        def forward(self, images):
            return self.inner(images)

    model = s2wrap.wrap(Around(), (1,), image_size=64)
    graph = make_graph(model, GraphOptions(precision="fp16", fp32_layers=("inner",)))
    assert torch.equal(graph.backbone.model.inner.table, model.backbone.model.inner.table)
