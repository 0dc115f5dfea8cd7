import copy

import open_clip
import pytest
import torch
from torch import nn
from torchvision.models import vit_b_16

from s2wrap.export.attention import SelfAttention, open_attention


def opened(model, *inputs):
    layers = copy.deepcopy(model)
    open_attention(layers, lambda: layers(*inputs))
    return layers, [name for name, each in layers.named_modules() if isinstance(each, SelfAttention)]


@pytest.mark.parametrize("make", [lambda: open_clip.create_model("ViT-S-32-alt").visual, vit_b_16])
def test_models_with_torch_attention_answer_as_before(make):
    torch.manual_seed(0)
    model, images = make().eval(), torch.randn(2, 3, 224, 224)
    layers, found = opened(model, images)
    assert len(found) == 12
    with torch.no_grad():
        torch.testing.assert_close(layers(images), model(images), atol=1e-4, rtol=1e-4)


class Net(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention, self.call = nn.MultiheadAttention(16, 4, **options), {"need_weights": False}

    def forward(self, tokens):
        return self.attention(tokens, tokens, tokens, **self.call)[0]


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}])
def test_forms_that_layers_can_take(options):
    torch.manual_seed(0)
    model, tokens = Net(**options).eval(), torch.randn(3, 5, 16)
    layers, found = opened(model, tokens)
    assert found == ["attention"]
    torch.testing.assert_close(layers(tokens), model(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {"need_weights": True}),
        ({}, {"need_weights": False, "attn_mask": torch.eye(3, dtype=torch.bool)}),
        ({}, {"need_weights": False, "key_padding_mask": torch.zeros(5, 3, dtype=torch.bool)}),
        ({"add_bias_kv": True}, {"need_weights": False}),
        ({"add_zero_attn": True}, {"need_weights": False}),
        ({"kdim": 16, "vdim": 16}, {"need_weights": False}),
        ({"kdim": 8, "vdim": 8}, None),
    ],
)
def test_other_calls_keep_the_module(options, call):
    model = Net(**options).eval()
    if call is None:
        model.forward = lambda tokens: model.attention(tokens, tokens[..., :8], tokens[..., :8])[0]
    else:
        model.call = call
    layers, found = opened(model, torch.randn(3, 5, 16)) if call else (model, [])
    if call is None:
        open_attention(model, lambda: model(torch.randn(3, 5, 16)))
    elif "kdim" in options:  # kdim of the model's own width makes one matrix, as without it
        assert found == ["attention"]
        return
    assert found == []
    assert isinstance(layers.attention, nn.MultiheadAttention)


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_encoder_of_torch_keeps_the_attention_that_it_reads(batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
    model, tokens = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 16)
    layers, found = opened(model, tokens)
    assert found == []
    with torch.no_grad():
        torch.testing.assert_close(layers(tokens), model(tokens))


class Positional(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.attention, self.mask = nn.MultiheadAttention(16, 4, batch_first=True), mask

    def forward(self, tokens):
        return self.attention(tokens, tokens, tokens, self.mask, False)[0]


@pytest.mark.parametrize(("mask", "count"), [(None, 1), (torch.zeros(3, 5, dtype=torch.bool), 0)])
def test_options_by_position_are_options(mask, count):
    torch.manual_seed(0)
    model, tokens = Positional(mask).eval(), torch.randn(3, 5, 16)
    layers, found = opened(model, tokens)
    assert len(found) == count
    torch.testing.assert_close(layers(tokens), model(tokens), atol=1e-5, rtol=1e-5)
