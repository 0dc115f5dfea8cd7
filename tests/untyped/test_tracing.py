"""torch.compile and torch.export: one graph, the same numbers (1e-4 in float32, on features of size about 1)."""

import pytest
import timm
import torch
import torch._dynamo

import s2wrap
from s2wrap.resample import resize

CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(autouse=True)
def _reset_dynamo():
    """Graphs are counted by function, whatever model they belong to."""
    torch._dynamo.reset()


def small_vit(**options):
    """Two blocks: what tracing takes grows with the blocks."""
    return timm.create_model("test_vit", num_classes=0, depth=2, **options).eval()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return small_vit()


@pytest.fixture
def few_graphs():
    """Three graphs of a function instead of PyTorch's eight: each takes seconds to make."""
    with torch._dynamo.config.patch(recompile_limit=3):
        yield


def assert_same(ours, theirs):
    for found, expected in zip((*ours.maps, *ours.prefixes), (*theirs.maps, *theirs.prefixes), strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("scales", "fuse"), [((1, 2, 3), "concat"), ((1, 1.5), "pyramid")])
def test_export_with_any_batch(vit, strict, scales, fuse):
    model = s2wrap.wrap(vit, scales, fuse=fuse)
    images = torch.randn(2, 3, 200, 300)
    dynamic = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(model, (images,), dynamic_shapes=dynamic, strict=strict)
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 200, 300)
        assert_same(program.module()(images), model(images))


@pytest.mark.parametrize(
    "options", [{"fit": "pad", "overlap": 2}, {"fuse": "detail"}, {"whole": True, "fit": "aspect"}]
)
def test_compile_takes_every_fit(options):
    model = s2wrap.wrap(small_vit(), (1, 2), **options)
    images = torch.randn(2, 3, 100, 180)
    with torch.inference_mode():
        assert_same(torch.compile(model, fullgraph=True, backend="eager")(images), model(images))


@pytest.mark.parametrize("strict", [False, True])
def test_export_makes_the_matrices_of_a_size_that_was_never_seen_and_keeps_real_ones(vit, strict):
    model = s2wrap.wrap(vit, (1, 2), fit="pad", fuse="detail")
    images = torch.randn(2, 3, 100, 180)
    program = torch.export.export(model, (images,), strict=strict)
    assert_same(program.module()(images), s2wrap.wrap(vit, (1, 2), fit="pad", fuse="detail")(images))
    assert_same(program.module()(images), model(images))


@pytest.mark.usefixtures("few_graphs")
@pytest.mark.parametrize("fullgraph", [False, True])
def test_compile_takes_any_number_of_sizes_of_stretched_images(fullgraph):
    model = s2wrap.wrap(small_vit(), (1, 2))
    compiled = torch.compile(model, fullgraph=fullgraph, backend="eager")
    for number in range(5):
        images = torch.randn(1, 3, 100 + 8 * number, 150 + 4 * number)
        with torch.inference_mode():
            assert_same(compiled(images), model(images))


@pytest.mark.usefixtures("few_graphs")
def test_compile_takes_more_sizes_of_padded_images_than_graphs_and_runs_the_last_ones_eagerly():
    model = s2wrap.wrap(small_vit(), (1, 2), fit="pad")
    compiled = torch.compile(model, backend="eager")
    for number in range(5):
        images = torch.randn(1, 3, 100 + 8 * number, 150 + 4 * number)
        with torch.inference_mode():
            assert_same(compiled(images), model(images))


@pytest.mark.usefixtures("few_graphs")
def test_a_graph_for_each_padded_size_is_too_much_and_pytorch_says_what_to_raise():
    model = s2wrap.wrap(small_vit(), (1, 2), fit="pad")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception) as error:  # noqa: PT011 (which class is PyTorch's own affair)
        for number in range(5):
            compiled(torch.randn(1, 3, 100 + 8 * number, 150))
    assert "consider increasing torch._dynamo.config.recompile_limit" in str(error.value.__cause__)


def test_a_selection_is_refused_not_ignored(vit):
    model = s2wrap.wrap(vit, (1, 2))
    with pytest.raises(Exception, match="cannot be traced; use select=None"):
        torch.export.export(model, (torch.randn(2, 3, 160, 160),), kwargs={"select": 2})


def test_an_exported_program_survives_being_saved(vit, tmp_path):
    model = s2wrap.wrap(vit, (1, 2))
    images = torch.randn(1, 3, 160, 160)
    torch.export.save(torch.export.export(model, (images,)), tmp_path / "model.pt2")
    assert_same(torch.export.load(tmp_path / "model.pt2").module()(images), model(images))


def test_an_exported_graph_calls_the_backbone_once():
    vit = small_vit(dynamic_img_size=False)
    model = s2wrap.wrap(vit, (1, 2, 3), tile_batch=1)
    graph = torch.export.export(model, (torch.randn(1, 3, 160, 160),)).graph
    names = [str(node.target) for node in graph.nodes]
    assert sum("scaled_dot_product_attention" in name for name in names) == len(vit.blocks)
    assert not any("upsample" in name or "adaptive" in name for name in names)


def compiled_for(network, backend, shapes):
    """A model and the same one compiled, after it was compared on images of these shapes."""
    model = s2wrap.wrap(network, (1, 2))
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for shape in shapes:
        images = torch.randn(*shape)
        with torch.inference_mode():
            assert_same(compiled(images), model(images))
    return model, compiled


def test_compile_takes_other_batches_and_sizes(vit):
    model, compiled = compiled_for(vit, "aot_eager", [(2, 3, 160, 160), (3, 3, 160, 160), (1, 3, 200, 300)])
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        images = torch.randn(2, 3, 160, 160)
        torch.testing.assert_close(compiled(images).spatial, model(images).spatial, atol=0.1, rtol=0)


def test_generated_code_takes_other_batches_and_sizes():
    """Two graphs: one of the first shape, one of any. Each takes seconds to make."""
    compiled_for(small_vit(), "inductor", [(2, 3, 160, 160), (3, 3, 200, 300), (5, 3, 160, 200)])


def test_a_compiled_backbone_can_be_wrapped(vit):
    compiled = torch.compile(vit.forward_features, backend="eager")
    model = s2wrap.wrap(compiled, (1, 2), image_size=160, num_prefix_tokens=1)
    images = torch.randn(1, 3, 160, 160)
    assert_same(model(images), s2wrap.wrap(vit, (1, 2))(images))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_resize_is_two_matrix_products(strict):
    class Resize(torch.nn.Module):
        def forward(self, images):
            return resize(images, (31, 17))

    image = torch.rand(2, 3, 40, 50)
    program = torch.export.export(Resize(), (image,), strict=strict)
    names = [str(node.target) for node in program.graph.nodes]
    assert not any("upsample" in name or "interpolate" in name for name in names)
    assert sum("matmul" in name for name in names) == 2
    torch.testing.assert_close(program.module()(image), resize(image, (31, 17)), atol=2e-6, rtol=0)
