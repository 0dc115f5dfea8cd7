import pytest
import timm
import torch
from tiny_graphs import model_graph
from torch import nn

import s2wrap
import s2wrap.export
from s2wrap import S2WrapError
from s2wrap.export.ranges import fit_float16, watch


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
    fit = fit_float16(graph, images)
    assert (fit.largest, fit.kept) == (max(ranges.inside.values()), ())


def test_overflow_that_reaches_everywhere_is_refused_with_the_modules_and_the_cure(graph):
    graph.backbone.model.blocks[2].mlp.fc1.weight.mul_(1e6)
    images = torch.randn(1, 3, 160, 160)
    for given in ((), ("blocks.2.mlp",)):  # what the block hands on is too large as well
        with pytest.raises(S2WrapError, match=r"blocks\.2.*most of it would have to stay float32; use precision bf16"):
            fit_float16(graph, images, given)


def test_the_modules_that_values_pass_through_stay_in_float32(graph):
    mlp = graph.backbone.model.blocks[2].mlp
    mlp.fc1.weight.mul_(1e7)
    mlp.fc2.weight.mul_(1e-7)
    images = torch.randn(1, 3, 160, 160)
    fit = fit_float16(graph, images)
    assert fit.kept == ("blocks.2.mlp",)
    assert fit.largest < 65504
    assert fit_float16(graph, images, ("blocks.2.mlp",)).kept == ()


def test_scores_inside_attention_count(graph):
    attention = graph.backbone.model.blocks[0].attn
    attention.qkv.weight[: 2 * attention.num_heads * attention.head_dim].mul_(1e3)
    assert fit_float16(graph, torch.randn(1, 3, 160, 160)).kept == ("blocks.0.attn",)


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
    assert fit_float16(model_graph(model, (64, 64)), torch.randn(1, 3, 64, 64)).largest < 10
    with torch.no_grad():
        model.backbone.model.scale.fill_(70000.0)
    with pytest.raises(S2WrapError, match=r"the model itself.*use precision bf16$"):
        fit_float16(model_graph(model, (64, 64)), torch.randn(1, 3, 64, 64))


class Norm(nn.Module):
    def forward(self, maps):
        norm = maps.norm(p=2, dim=(2, 3), keepdim=True)
        return maps / (norm + 1)


class Mean(nn.Module):
    def forward(self, maps):
        return maps / (1 + maps.abs().mean((2, 3), keepdim=True))


class OverChannels(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, maps):
        return self.norm(maps.movedim(1, -1)).movedim(-1, 1)


class Net(nn.Module):
    """Values of some hundreds that a reduction makes small again: sums of them do not fit float16."""

    def __init__(self, reduction):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.reduction, self.out = nn.Conv2d(3, 32, 4, 4), reduction, nn.Conv2d(32, 8, 1)

    def forward(self, images):
        return self.out(self.reduction(self.stem(images) * 300))


@pytest.mark.parametrize(
    "reduction",
    [Norm(), Mean(), OverChannels(nn.LayerNorm(32)), nn.GroupNorm(4, 32), nn.InstanceNorm2d(32)],
    ids=["norm", "mean", "layer norm", "group norm", "instance norm"],
)
def test_sums_inside_reductions_are_kept_in_float32_for_any_runtime(tmp_path, reduction):
    """Compared by ONNX's own evaluator: ONNX Runtime on a CPU computes float16 in float32."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = s2wrap.wrap(Net(reduction).eval(), (1,), image_size=128, mean=(0.5,) * 3, std=(0.25,) * 3)
    file = tmp_path / "model.onnx"
    manifest = s2wrap.export.export(model, file, precision="fp16", batch=(1, 1, 2))
    assert [name.partition(".")[0] for name in manifest["fp32_layers"]] == ["reduction"]
    images = torch.randn(1, 3, 128, 128)
    (found, *_) = ReferenceEvaluator(onnx.load(file)).run(None, {"images": images.numpy()})
    expected = model(images).spatial
    assert float((torch.from_numpy(found).float() - expected).norm() / expected.norm()) < 0.01
