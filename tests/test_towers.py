import pytest
import timm
import torch
import transformers
from torch import nn
from torch.nn import functional
from tower_families import CLASSES, CLIP, FAMILIES, SIDE, Family, random_pixels, text, vision

import s2wrap
from s2wrap import S2WrapError

LLAVA = Family("llava", 16, CLIP)
FIVE = {"max_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.kind)
@torch.no_grad()
def test_a_tower_of_one_scale_leaves_a_model_and_what_it_says_as_they_were(family):
    model, asked = family.model(), family.ask(family.side)
    logits, said = model(**asked).logits, model.generate(**asked, **FIVE)
    other = model(**family.ask(family.side, seed=1)).logits
    assert (other - logits).abs().max() > 0.05, "the image does not matter"
    keys = list(model.state_dict())
    assert s2wrap.wrap_tower(model, scales=(1,), image_size=family.image_size) is model
    torch.testing.assert_close(model(**asked).logits, logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.generate(**asked, **FIVE), said)
    assert sorted(model.state_dict()) == sorted(keys)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.kind)
@torch.no_grad()
def test_a_tower_of_two_scales_is_loaded_again_from_a_checkpoint_with_the_keys_of_the_model(family, tmp_path):
    model, asked = family.model(), family.ask(2 * family.side)
    small = family.model()(**family.ask(family.side)).logits
    s2wrap.wrap_tower(model, scales=(1, 2), fuse="detail", image_size=family.image_size)
    logits, said = model(**asked).logits, model.generate(**asked, **FIVE)
    assert logits.shape == small.shape, "another number of image tokens"
    assert (logits - small).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    s2wrap.wrap_tower(again.eval())
    torch.testing.assert_close(again(**asked).logits, logits, atol=0, rtol=0)
    assert torch.equal(again.generate(**asked, **FIVE), said)
