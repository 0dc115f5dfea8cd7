import io
import math
import sys

import numpy as np
import pytest
import timm
import torch
from rich.console import Console
from tiny_graphs import model_graph

import s2wrap
from s2wrap import S2WrapError
from s2wrap.export.options import parse_gate
from s2wrap.export.parity import GATES, batch_sizes, compare, sample_images, verify_run


def quiet():
    return Console(file=io.StringIO(), width=160)


def test_the_figures_are_those_of_a_plain_loop():
    expected, found = torch.randn(2, 8, 3, 5), torch.randn(2, 8, 3, 5)
    parity = compare("spatial", found, expected)
    ours, theirs = found.double().numpy(), expected.double().numpy()
    cosines = []
    for b in range(2):
        for y in range(3):
            for x in range(5):
                one, other = ours[b, :, y, x], theirs[b, :, y, x]
                cosines.append(one @ other / math.sqrt((one @ one) * (other @ other)))
    assert parity.cosine_mean == pytest.approx(np.mean(cosines))
    assert parity.cosine_p1 == pytest.approx(np.quantile(cosines, 0.01))
    assert parity.cosine_min == pytest.approx(min(cosines))
    assert parity.relative_error == pytest.approx(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    assert parity.largest_error == pytest.approx(np.abs(ours - theirs).max())
    assert not parity.passes(GATES["fp16"])


@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (2, 15, 8), (2, 8)])
def test_equal_is_equal_in_every_shape(shape):
    values = torch.randn(shape)
    parity = compare("output", values.clone(), values)
    assert parity.cosine_min == pytest.approx(1)
    assert parity.relative_error == 0
    assert parity.passes(GATES["fp32"])


def test_one_bad_token_fails_one_in_a_thousand_does_not_hide():
    expected = torch.randn(1, 1000, 16)
    found = expected.clone()
    found[0, :30] *= -1
    assert not compare("tokens", found, expected).passes(GATES["fp16"])
    found = expected.clone()
    found[0, 0, 0] = math.inf
    parity = compare("tokens", found, expected)
    assert not parity.finite
    assert not parity.passes(GATES["bf16"])


def test_tokens_of_nothing_are_equal():
    nothing = torch.zeros(1, 4, 2, 2)
    assert compare("spatial", nothing, nothing).passes(GATES["fp32"])
    assert not compare("spatial", nothing + 1, nothing).passes(GATES["fp16"])


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(S2WrapError, match=r"spatial has shape \(1, 4, 2, 3\); PyTorch gives \(1, 4, 2, 2\)"):
        compare("spatial", torch.zeros(1, 4, 2, 3), torch.zeros(1, 4, 2, 2))
    with pytest.raises(S2WrapError, match="not finite in PyTorch itself"):
        compare("spatial", torch.zeros(1, 1), torch.full((1, 1), math.nan))


@pytest.mark.parametrize(
    ("batch", "sizes"), [((1, 8, 32), [1, 2, 3]), ((1, 1, 1), [1]), ((4, 4, 5), [4, 5]), ((2, 2, 2), [2])]
)
def test_batches_are_those_of_the_profile(batch, sizes):
    assert batch_sizes(batch, torch.device("cpu")) == sizes
    assert batch_sizes(batch, torch.device("cuda")) == sorted({*sizes, batch[1]})


@pytest.mark.parametrize("sizes", [(1, 2, 3), (4, 5), (1,)])
def test_photographs_and_noise_run_in_batches(sizes):
    samples = [torch.randn(3, 8, 8) for _ in range(6)]
    seen = []

    def run(images):
        seen.append(tuple(images.shape))
        return {"spatial": images}

    report = verify_run(
        run, lambda images: {"spatial": images}, samples, sizes=sizes, gate=GATES["fp32"], ran="a test", console=quiet()
    )
    assert report.batches == sizes
    assert [shape[0] for shape in seen] == list(sizes)
    assert sum(report.images) == sum(sizes)
    assert report.passed
    assert report.facts()["outputs"][0]["output"] == "spatial"


@pytest.mark.parametrize("gate", ["strict", (0.9, 0.9), (0.9, 0.9, 2), 0.9])
def test_a_gate_is_three_numbers(gate):
    with pytest.raises(S2WrapError, match="is no gate; give the least mean cosine"):
        parse_gate(gate)


def test_the_table_says_what_fails():
    samples = [torch.randn(3, 8, 8)]
    report = verify_run(
        lambda images: {"spatial": images + 1},
        lambda images: {"spatial": images},
        samples,
        sizes=[1],
        gate=GATES["fp16"],
        ran="ONNX Runtime",
        console=quiet(),
    )
    console = quiet()
    console.print(report.table())
    assert "fails" in console.file.getvalue()
    assert not report.passed


@pytest.mark.parametrize("pixels", ["float32", "uint8"])
def test_samples_are_photographs_and_noise_in_turn(pixels):
    pytest.importorskip("skimage")
    model = s2wrap.wrap(timm.create_model("test_vit", num_classes=0), (1, 2))
    graph = model_graph(model, (120, 170), pixels=pixels)
    samples = sample_images(graph, None)
    assert len(samples) == 6
    assert torch.stack(samples).shape[1:] == graph.example(1).shape[1:]
    assert {sample.dtype for sample in samples} == {graph.example(1).dtype}
    again = sample_images(graph, None)
    assert all(torch.equal(one, other) for one, other in zip(samples, again, strict=True))

    def roughness(sample):
        values = sample.float().movedim(-1, 0) if pixels == "uint8" else sample
        return (values[:, 1:] - values[:, :-1]).abs().mean() / values.std()

    pairs = zip(samples[::2], samples[1::2], strict=True)
    assert all(roughness(photograph) < 0.5 < roughness(noise) for photograph, noise in pairs)


def test_pictures_of_ones_own(tmp_path, monkeypatch):
    from PIL import Image

    graph = model_graph(s2wrap.wrap(timm.create_model("test_vit", num_classes=0), (1,)), (160, 160), pixels="uint8")
    Image.new("RGB", (50, 40), (10, 200, 30)).save(tmp_path / "green.png")
    samples = sample_images(graph, [tmp_path])
    assert samples[0][80, 80].tolist() == [10, 200, 30]
    assert torch.equal(samples[0], samples[2])
    with pytest.raises(S2WrapError, match="no such file"):
        sample_images(graph, [tmp_path / "none"])
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(S2WrapError, match="give some with --pictures DIR"):
        sample_images(graph, None)
