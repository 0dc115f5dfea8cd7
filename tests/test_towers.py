from copy import deepcopy

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


def plain_states(tower, images, place):
    """A hidden state at 1× and 2×, averaged, by hand: CLS and then the tokens."""
    small = functional.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True)
    tiles = [images[..., top : top + SIDE, left : left + SIDE] for top in (0, SIDE) for left in (0, SIDE)]
    first, *others = (tower(tile, output_hidden_states=True).hidden_states[place] for tile in (small, *tiles))
    maps = [state[:, 1:].mT.unflatten(2, (4, 4)) for state in others]
    fine = torch.cat([torch.cat(maps[:2], dim=3), torch.cat(maps[2:], dim=3)], dim=2)
    tokens = functional.avg_pool2d(fine, 2).flatten(2).mT
    cls = torch.stack([state[:, :1] for state in others]).mean(0)
    return (first + torch.cat([cls, tokens], dim=1)) / 2


@torch.no_grad()
@pytest.mark.parametrize("layers", [-2, [-3, -2], [1, -1], 0])
def test_every_hidden_state_that_the_model_reads_is_the_one_asked_for(layers):
    family = Family("llava", 16, vision("clip_vision_model", num_hidden_layers=3))
    family.config = {"vision_feature_layer": layers}
    model, images = family.model(), random_pixels(2 * SIDE)
    places = [layers] if isinstance(layers, int) else layers
    wanted = [plain_states(model.model.vision_tower, images, place) for place in places]
    features = model.model.multi_modal_projector(torch.cat([state[:, 1:] for state in wanted], dim=-1))
    s2wrap.wrap_tower(model, scales=(1, 2))
    torch.testing.assert_close(model.get_image_features(images).pooler_output[0], features[0], atol=1e-5, rtol=1e-4)
    for place, state in zip(places, wanted, strict=True):
        found = model.model.vision_tower(images).hidden_states
        torch.testing.assert_close(found[place], state, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[place % 4], state, atol=1e-5, rtol=1e-4)


def test_a_hidden_state_that_the_tower_was_not_wrapped_for_is_refused():
    model = s2wrap.wrap_tower(LLAVA.model(), scales=(1, 2))
    with pytest.raises(S2WrapError, match=r"hidden_states\[-1\] is asked .* wrapped for \[1\]"):
        model.get_image_features(random_pixels(SIDE), vision_feature_layer=-1)
    with pytest.raises(S2WrapError, match=r"hidden_states\[0\]"):
        list(model.model.vision_tower(random_pixels(SIDE)).hidden_states)
    family = Family("llava", 16, CLIP, config={"vision_feature_layer": -9})
    with pytest.raises(S2WrapError, match=r"reads hidden_states\[-9\] of .*, which has 3"):
        s2wrap.wrap_tower(family.model(), scales=(1,))


REFUSED = [
    "cosmos3_edge",
    "cosmos3_omni",
    "dots3_note",
    "ernie4_5_vl_moe",
    "exaone4_5",
    "evolla",
    "fuyu",
    "gemma4_unified",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "glm5_next",
    "glm_ocr",
    "granite_docling",
    "hyperclovax_vision_v2",
    "inkling2",
    "inkling_mm_model",
    "kimi_k25",
    "kosmos-2.5",
    "lfm2_vl",
    "lfm3_vl",
    "minicpm_ocr",
    "minicpmv4_6",
    "minicpmv4_7",
    "minimax_m3_vl",
    "mllama",
    "molmo2",
    "muse_glimmer",
    "muse_spark",
    "nemotron_h_omni",
    "paddleocr_vl",
    "pix2struct",
    "pp_formulanet",
    "qwen2_5_omni_thinker",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_omni_moe_thinker",
    "qwen3_vl",
    "qwen3_vl_moe",
    "udop",
    "video_llama_3",
]
REASONS = "takes no images alone|has no vision tower|does not answer an image|reads .* no hidden states|no image size"


@pytest.mark.parametrize("kind", REFUSED)
def test_a_family_whose_tower_cannot_be_wrapped_is_refused_and_stays_as_it_is(kind):
    model = small_on_meta(kind)
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(S2WrapError, match=REASONS):
        s2wrap.wrap_tower(model, scales=(1, 2))
    assert [name for name, _ in model.named_modules()] == before
    assert not hasattr(model.config, "s2wrap")


def small_on_meta(kind):
    """A model in its default configuration, of few layers, without values."""
    made = getattr(transformers, CLASSES[kind])
    config = made.config_class()
    for part in (getattr(config, name, None) for name in ("vision_config", "text_config")):
        for name in ("num_hidden_layers", "num_layers", "depth"):
            if isinstance(getattr(part, name, None), int) and not hasattr(part, "layer_types"):
                setattr(part, name, 2)
    with torch.device("meta"):
        return made(config)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llava", "ovis2"])
def test_the_model_inside_can_be_wrapped_too(kind):
    family = next(family for family in FAMILIES if family.kind == kind)
    model, asked = family.model(), family.ask(2 * SIDE)
    wanted = s2wrap.wrap_tower(family.model(), scales=(1, 2))(**asked).logits
    s2wrap.wrap_tower(model.model, scales=(1, 2))
    torch.testing.assert_close(model(**asked).logits, wanted)


@pytest.mark.parametrize("kind", ["deepseek_ocr2", "unlimited_ocr"])
def test_a_family_that_shows_its_tower_two_sizes_is_refused(kind):
    model = LLAVA.model()
    model.config.model_type = kind  # its own default configuration makes no model
    with pytest.raises(S2WrapError, match="images of two sizes"):
        s2wrap.wrap_tower(model, scales=(1, 2))


def test_models_that_generate_no_text_from_images_are_refused():
    vit = transformers.ViTModel(transformers.ViTConfig(**vision("vit")))
    for model in (vit, timm.create_model("test_vit"), nn.Linear(2, 2)):
        with pytest.raises(S2WrapError, match="generates text from images.* s2wrap.wrap"):
            s2wrap.wrap_tower(model, scales=(1, 2))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scales": (1, 2), "fuse": "concat"}, "fuse='concat' does not keep the width of 32"),
        ({"scales": (1, 2), "fuse": "auto"}, "fuse='auto' brings tokens to another length"),
        ({"scales": (1, 2), "fuse": "pyramid"}, "fuse='pyramid' does not keep"),
        ({"scales": (1, 2), "target_grid": "finest"}, "target_grid='finest', and projector .* 4×4"),
        ({"scales": (1, 2), "prefix": "drop"}, "prefix='drop' leaves out CLS"),
        ({"scales": (1, 2), "layers": (-2,)}, "no option 'layers'"),
        ({}, "no scales, and the config of LlavaForConditionalGeneration keeps none"),
        ({"fuse": "mean"}, "no scales beside fuse"),
    ],
)
def test_options_under_which_projector_or_text_would_not_fit_are_refused(options, reason):
    with pytest.raises(S2WrapError, match=reason):
        s2wrap.wrap_tower(LLAVA.model(), **options)


def test_options_that_no_config_can_keep_are_refused_before_the_model_is_changed():
    model = LLAVA.model()
    tower = model.model.vision_tower
    with pytest.raises(S2WrapError, match="a function of your own, which a file cannot hold"):
        s2wrap.wrap_tower(model, scales=(1, 2), fit="pad", policy=lambda *_: (1, 1))
    assert model.model.vision_tower is tower


@torch.no_grad()
def test_a_tower_of_a_method_is_loaded_again_from_its_state():
    vit = timm.create_model("test_vit", num_classes=0)
    tower = s2wrap.VisionTower(s2wrap.wrap(vit.forward_features, (1,), image_size=160, num_prefix_tokens=1))
    holder = nn.ModuleDict({"tower": tower})
    other = deepcopy(holder)
    vit.patch_embed.proj.weight.mul_(2)
    other.load_state_dict(holder.state_dict())
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(other["tower"](images).last_hidden_state, tower(images).last_hidden_state)


@torch.no_grad()
def test_a_wrapped_tower_can_be_wrapped_otherwise_and_copied():
    model = s2wrap.wrap_tower(LLAVA.model(), scales=(1, 2), fuse="detail")
    s2wrap.wrap_tower(model, scales=(1, 3), overlap=1)
    asked = LLAVA.ask(3 * SIDE)
    logits = model(**asked).logits
    torch.testing.assert_close(logits, s2wrap.wrap_tower(LLAVA.model(), scales=(1, 3), overlap=1)(**asked).logits)
    copy = deepcopy(model)
    model.model.vision_tower.embeddings.patch_embedding.weight.zero_()  # a part of the tower inside
    torch.testing.assert_close(copy(**asked).logits, logits)
    assert (model(**asked).logits - logits).abs().max() > 0.01
    copy.load_state_dict(model.state_dict())
    torch.testing.assert_close(copy(**asked).logits, model(**asked).logits)


@pytest.mark.parametrize(
    "asked",
    [
        {"interpolate_pos_encoding": True},
        {"output_attentions": True},
        {"bool_masked_pos": torch.ones(1, 16, dtype=torch.bool)},
        {"patch_attention_mask": torch.tensor([[True, False]])},
        {"pixel_attention_mask": torch.tensor([[1, 0]])},
        {"image_sizes": torch.tensor([[SIDE, 2 * SIDE]])},
        {"spatial_shapes": torch.tensor([[4, 4]])},
        {"grid_thw": torch.tensor([[1, 4, 4]])},
        {"do_pooling": True},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_would_change_the_features_is_refused(asked):
    tower = s2wrap.wrap_tower(LLAVA.model(), scales=(1, 2)).model.vision_tower
    with pytest.raises(S2WrapError, match=next(iter(asked))):
        tower(random_pixels(SIDE), **asked)


@torch.no_grad()
def test_what_changes_nothing_is_accepted():
    tower = s2wrap.wrap_tower(LLAVA.model(), scales=(1, 2)).model.vision_tower
    images = random_pixels(SIDE)
    plain = tower(images)
    masks = {"patch_attention_mask": torch.ones(1, 4, 4, dtype=torch.bool), "image_sizes": [[SIDE, SIDE]]}
    same = tower(images, output_hidden_states=[-2], output_attentions=False, bool_masked_pos=None, **masks)
    torch.testing.assert_close(same.last_hidden_state, plain.last_hidden_state, atol=0, rtol=0)
    assert plain.pooler_output is None
    torch.testing.assert_close(tower(images, return_dict=False)[0], plain.last_hidden_state)


def test_images_with_padding_are_refused_where_the_model_masks_it():
    family = next(family for family in FAMILIES if family.kind == "idefics3")
    model = s2wrap.wrap_tower(family.model(), scales=(1, 2))
    mask = torch.ones(1, 1, SIDE, SIDE, dtype=torch.long)
    mask[..., SIDE // 2 :] = 0
    with pytest.raises(S2WrapError, match="patch_attention_mask=.* images without padding"):
        model(**family.ask(SIDE), pixel_attention_mask=mask)


@torch.no_grad()
def test_pixtral_joins_the_images_of_a_batch():
    family = next(family for family in FAMILIES if family.kind == "mistral3")
    model = family.model()
    images, sizes = torch.randn(3, 3, SIDE, SIDE), [[SIDE, SIDE]] * 3
    wanted = model.get_image_features(images, image_sizes=sizes).pooler_output
    s2wrap.wrap_tower(model, scales=(1,))
    found = model.get_image_features(images, image_sizes=sizes).pooler_output
    torch.testing.assert_close(torch.stack(list(found)), torch.stack(list(wanted)), atol=1e-5, rtol=1e-5)
    with pytest.raises(S2WrapError, match=r"image_sizes=\[\(64, 64\)\].* 32×32 .*image_sizes=\[\[32, 32\]"):
        model.get_image_features(torch.randn(1, 3, 64, 64), image_sizes=[[64, 64]])


@torch.no_grad()
def test_a_tower_computes_in_the_precision_of_the_model():
    model, asked = LLAVA.model().bfloat16(), LLAVA.ask(SIDE)
    logits = model(**asked).logits
    s2wrap.wrap_tower(model, scales=(1,))
    torch.testing.assert_close(model(**asked).logits, logits)
    assert s2wrap.wrap_tower(model, scales=(1, 2))(**LLAVA.ask(2 * SIDE)).logits.dtype == torch.bfloat16


@torch.no_grad()
def test_llava_next_counts_as_many_tokens_of_larger_images_with_half_their_sizes():
    family = Family("llava_next", 0, CLIP, config={"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]})
    picture = torch.randint(0, 256, (3, 70, 100), dtype=torch.uint8)
    model = family.model()
    counts = []
    for factor in (1, 2):
        side = factor * SIDE
        pinpoints = [[factor * height, factor * width] for height, width in family.config["image_grid_pinpoints"]]
        sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        processor = transformers.LlavaNextImageProcessor(image_grid_pinpoints=pinpoints, **sizes)
        given = processor(picture, return_tensors="pt")
        assert given["pixel_values"].shape[-2:] == (side, side)
        given["image_sizes"] //= factor
        counts.append(len(model.get_image_features(**given).pooler_output[0]))
        s2wrap.wrap_tower(model, scales=(1, 2))
    assert counts[0] == counts[1] > 32


@torch.no_grad()
def test_llava_counts_as_many_tokens_of_larger_images_with_larger_patches():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, "look": 5, "<image>": 7}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=["<image>"])
    sizes = {"size": {"shortest_edge": 2 * SIDE}, "crop_size": {"height": 2 * SIDE, "width": 2 * SIDE}}
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(**sizes),
        tokenizer,
        patch_size=16,  # twice the tower's
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    picture = torch.randint(0, 256, (3, 70, 100), dtype=torch.uint8)
    given = processor(images=picture, text="look <image> look", return_tensors="pt")
    model = s2wrap.wrap_tower(LLAVA.model(), scales=(1, 2))
    assert int((given["input_ids"] == 7).sum()) == 16
    asked = {name: given[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    assert given["pixel_values"].shape[-2:] == (64, 64)
    assert model(**asked).logits.shape == (1, 18, 128)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"fit": "pad"}, {"fit": "aspect"}, {"whole": True}, {"fuse": "max", "norm": "l2"}])
def test_options_leave_the_number_of_image_tokens_as_it_is(options):
    model = s2wrap.wrap_tower(LLAVA.model(), scales=(1, 2), **options)
    asked = LLAVA.ask(SIDE)
    asked["pixel_values"] = torch.randn(1, 3, 48, 96)
    assert model(**asked).logits.shape == (1, 19, 128)


def put_into_llava(tower, **config):
    """A LLaVA that is made for a tower of any width."""
    parts = {"vision_config": tower.config, "text_config": text(), "image_token_index": 7, **config}
    model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(**parts)).eval()
    model.model.vision_tower = tower
    return model


@torch.no_grad()
@pytest.mark.parametrize("fuse", ["mean", "concat"])
def test_a_backbone_of_timm_sees_for_a_llava(fuse):
    inner = timm.create_model("test_vit", img_size=64, num_classes=0).eval()
    tower = s2wrap.VisionTower(s2wrap.wrap(inner, scales=(1, 2), layers=(-2,), fuse=fuse))
    model, images = put_into_llava(tower, vision_feature_layer=-2), random_pixels(128)
    assert tower.config.hidden_size == model.model.multi_modal_projector.linear_1.in_features
    features = s2wrap.wrap(inner, scales=(1, 2), layers=(-2,), fuse=fuse)(images)
    torch.testing.assert_close(tower(images).hidden_states[-2][:, 1:], features.tokens)
    ids = torch.tensor([[1, *[7] * 16, 2, 3]])
    said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=images, **FIVE)
    assert said.shape[1] > ids.shape[1]
    with pytest.raises(S2WrapError, match=r"hidden_states\[-3\]"):
        model.get_image_features(images, vision_feature_layer=-3)
    with pytest.raises(S2WrapError, match="wrapped test_vit, which is none of transformers"):
        s2wrap.wrap_tower(model, scales=(1,))
    inner = timm.create_model("test_vit", img_size=64, num_classes=0).eval()
    tower = s2wrap.VisionTower(s2wrap.wrap(inner, scales=(1, 2), layers=(-2,), fuse=fuse))
    again = put_into_llava(tower, vision_feature_layer=-2)
    again.load_state_dict(model.state_dict())
    asked = {"input_ids": ids, "pixel_values": images}
    torch.testing.assert_close(again(**asked).logits, model(**asked).logits)


@torch.no_grad()
def test_a_convolutional_network_sees_for_a_llava_by_its_last_map():
    from torchvision.models import resnet18

    inner, images = resnet18().eval(), random_pixels(128)
    tower = s2wrap.VisionTower(s2wrap.wrap(inner, scales=(1, 2), image_size=64, fuse="mean"))
    model = put_into_llava(tower, vision_feature_layer=-1, vision_feature_select_strategy="full")
    assert (tower.config.hidden_size, tower.config.image_size, tower.config.patch_size) == (512, 64, 32)
    maps = nn.Sequential(*list(inner.children())[:-2])
    small = maps(functional.interpolate(images, (64, 64), mode="bilinear", antialias=True))
    whole = functional.avg_pool2d(maps(images), 2)  # a network of convolutions sees 2× whole
    tokens = ((small + whole) / 2).flatten(2).mT
    torch.testing.assert_close(tower(images).hidden_states[-1], tokens, atol=1e-3, rtol=1e-3)
    wanted = model.model.multi_modal_projector(tokens)
    torch.testing.assert_close(model.get_image_features(images).pooler_output[0], wanted[0], atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("fuse", "width"), [("concat", 64), ("mean", 32)])
def test_a_tower_made_by_hand_states_the_width_that_the_projector_must_take(fuse, width):
    model = LLAVA.model()
    tower = s2wrap.VisionTower(s2wrap.wrap(model, scales=(1, 2), layers=(-2,), fuse=fuse))
    assert tower.config.hidden_size == width
    model.model.vision_tower = tower
    model.model.multi_modal_projector.linear_1 = nn.Linear(width, 32)
    assert model(**LLAVA.ask(2 * SIDE)).logits.shape == (1, 19, 128)


@torch.no_grad()
def test_a_tower_made_by_hand_of_one_scale_leaves_a_llava_as_it_is():
    model, asked = LLAVA.model(), LLAVA.ask(SIDE)
    logits, keys = model(**asked).logits, sorted(model.state_dict())
    model.model.vision_tower = s2wrap.VisionTower(s2wrap.wrap(model, scales=(1,), layers=(-2,)))
    torch.testing.assert_close(model(**asked).logits, logits)
    assert sorted(model.state_dict()) == keys


@torch.no_grad()
def test_layers_that_are_not_joined_lie_at_their_own_places():
    family = Family("llava", 16, vision("clip_vision_model", num_hidden_layers=3))
    model, images = family.model(), random_pixels(SIDE)
    states = model.model.vision_tower(images, output_hidden_states=True).hidden_states
    tower = s2wrap.VisionTower(s2wrap.wrap(model, scales=(1,), layers=(0, 1), join_layers=False))
    for place in (1, 2, -3, -2):
        torch.testing.assert_close(tower(images).hidden_states[place], states[place], atol=1e-5, rtol=1e-5)
    joined = s2wrap.VisionTower(s2wrap.wrap(model, scales=(1,), layers=(0, 1)))
    torch.testing.assert_close(joined(images).hidden_states[2], torch.cat(states[1:3], dim=-1), atol=1e-5, rtol=1e-5)
    assert (tower.config.hidden_size, joined.config.hidden_size) == (32, 64)
    with pytest.raises(S2WrapError, match=r"hidden_states\[1\].*join_layers=False"):
        joined(images).hidden_states[1]


def test_a_pyramid_is_no_tower():
    with pytest.raises(S2WrapError, match="fuse='pyramid' is no sequence"):
        s2wrap.VisionTower(s2wrap.load("timm:test_vit@1,2", pretrained=False, fuse="pyramid"))
