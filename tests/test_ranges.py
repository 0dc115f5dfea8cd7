import pytest
import timm
import torch
from tiny_graphs import model_graph

import s2wrap
from s2wrap import S2WrapError
from s2wrap.export.ranges import check_float16, watch


@pytest.fixture
def graph():
    return model_graph(s2wrap.wrap(timm.create_model("test_vit", num_classes=0), (1, 2)), (160, 160))


def test_the_largest_values_are_those_that_hooks_see(graph):
    """Hooks on the modules' outputs see a part of what the operators return."""
    seen = {}
    for name, module in graph.backbone.model.named_modules():

        def keep(_module, _inputs, answer, name=name):
            seen[name] = max(seen.get(name, 0.0), float(answer.abs().max()))

        module.register_forward_hook(keep)
    images = torch.randn(1, 3, 160, 160)
    ranges = watch(graph, images)
    assert set(seen) <= set(ranges.answers)
    assert all(ranges.answers[name] == pytest.approx(value) for name, value in seen.items())
    leaves = [name for name, module in graph.backbone.model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert leaves
    assert all(ranges.inside[name] >= seen[name] * 0.999 for name in leaves)
    assert check_float16(graph, images) == max(ranges.inside.values())


def test_overflow_names_the_modules_and_the_cure(graph):
    graph.backbone.model.blocks[2].mlp.fc1.weight.mul_(1e6)
    images = torch.randn(1, 3, 160, 160)
    with pytest.raises(S2WrapError, match=r"blocks\.2\.mlp\.fc1 \(.*use precision bf16.*--fp32-layers"):
        check_float16(graph, images)
    with pytest.raises(S2WrapError, match=r"blocks\.2 \("):  # what it hands on is too large as well
        check_float16(graph, images, ("blocks.2.mlp",))


def test_a_module_in_float32_need_hold_only_what_it_hands_on(graph):
    mlp = graph.backbone.model.blocks[2].mlp
    mlp.fc1.weight.mul_(1e7)
    mlp.fc2.weight.mul_(1e-7)
    images = torch.randn(1, 3, 160, 160)
    with pytest.raises(S2WrapError, match=r"blocks\.2\.mlp\.fc1"):
        check_float16(graph, images)
    assert check_float16(graph, images, ("blocks.2.mlp",)) < 65504


def test_scores_inside_attention_count(graph):
    attention = graph.backbone.model.blocks[0].attn
    attention.qkv.weight[: 2 * attention.num_heads * attention.head_dim].mul_(1e3)
    with pytest.raises(S2WrapError, match=r"blocks\.0\.attn \("):
        check_float16(graph, torch.randn(1, 3, 160, 160))


def test_weights_count_and_masks_do_not():
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, images):
            scores = torch.nn.functional.avg_pool2d(images, 16)
            scores = torch.cat([scores, torch.full_like(scores, torch.finfo(torch.float32).min)], dim=1)
            return scores.softmax(dim=1) * self.scale

    model = s2wrap.wrap(Masked(), (1,), image_size=64, layout="bchw")
    assert check_float16(model_graph(model, (64, 64)), torch.randn(1, 3, 64, 64)) < 10
    with torch.no_grad():
        model.backbone.model.scale.fill_(70000.0)
    with pytest.raises(S2WrapError, match=r"the model itself.*use precision bf16$"):
        check_float16(model_graph(model, (64, 64)), torch.randn(1, 3, 64, 64))
