import json
import os
import subprocess
import sys

import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file
from torch import nn

import s2wrap
from s2wrap import MultiScale, S2WrapError, Scale
from s2wrap.backbones import ProbedBackbone
from s2wrap.backbones.registry import unregister_backbone
from s2wrap.files import whole_folder


class Patches(nn.Module):
    """A backbone of no library: a convolution, and a layer with tied weights."""

    def __init__(self, width=8):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.randn(width), persistent=False)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.second(self.first(tokens).relu()) + self.offset


@pytest.fixture(scope="module", autouse=True)
def tiny_clip(tmp_path_factory):
    """A configuration of open_clip that is quick to make."""
    config = {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
    }
    folder = tmp_path_factory.mktemp("configs")
    (folder / "ViT-tiny-16.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def vision_config(kind, **options):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return getattr(transformers, kind)(**sizes, image_size=32, patch_size=8, **options)


def siglip():
    text = transformers.SiglipTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50_000)
    config = transformers.SiglipConfig(vision_config=vision_config("SiglipVisionConfig"), text_config=text)
    return transformers.SiglipModel(config)


def eager_vit():
    model = transformers.ViTForImageClassification(vision_config("ViTConfig", attn_implementation="eager"))
    return s2wrap.wrap(model, layers=(0, 1), join_layers=False)


MODELS = {
    "a timm ViT, a scale whole": lambda: s2wrap.wrap(timm.create_model("test_vit"), scales=(1, "1.5:whole")),
    "a timm ViT built otherwise": lambda: s2wrap.wrap(
        timm.create_model("test_vit", num_classes=7, img_size=96, in_chans=4, global_pool="avg"),
        mean=(0.2,),
        std=(0.3,),
    ),
    "a timm ResNet": lambda: s2wrap.wrap(timm.create_model("test_resnet.r160_in1k"), fuse="detail"),
    "a timm spec": lambda: s2wrap.load("timm:test_vit:size=96:patch=8@1,2:pad", pretrained=False, norm="l2"),
    "a torchvision model": lambda: s2wrap.wrap(torchvision.models.squeezenet1_1(num_classes=3), scales=(1,)),
    "a torchvision spec": lambda: s2wrap.load("torchvision:squeezenet1_1@1", pretrained=False),
    "a transformers tower": lambda: s2wrap.wrap(siglip(), fuse="pyramid", prefix="drop"),
    "a transformers model without its head": eager_vit,
    "an open_clip tower": lambda: s2wrap.wrap(
        open_clip.create_model("ViT-tiny-16", force_image_size=96), fuse="weighted", weights=(0.3, 0.7)
    ),
    "an open_clip spec": lambda: s2wrap.load("open_clip:ViT-tiny-16@1", pretrained=False),
}


def images_for(model):
    return torch.randn(2, model.input.channels, 90, 130, generator=torch.Generator().manual_seed(3))


def assert_same(model, other):
    images = images_for(model).to(model.backbone.dtype)
    ours, theirs = model(images), other(images)
    for one, two in zip((*ours.maps, *ours.prefixes), (*theirs.maps, *theirs.prefixes), strict=True):
        assert torch.equal(one, two)
    assert other.options == model.options
    assert other.input == model.input
    assert other.scales == model.scales


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_model_computes_the_same_numbers_to_the_bit(kind, tmp_path):
    model = MODELS[kind]()
    model.save(tmp_path / "saved")
    assert sorted(os.listdir(tmp_path / "saved")) == ["s2wrap.json", "weights.safetensors"]
    state = torch.random.get_rng_state()
    loaded = s2wrap.load(tmp_path / "saved")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(model, loaded)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again/s2wrap.json").read_text() == (tmp_path / "saved/s2wrap.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_precision(dtype, tmp_path):
    model = s2wrap.wrap(timm.create_model("test_vit")).to(dtype)
    model.save(tmp_path / "saved")
    loaded = s2wrap.load(str(tmp_path / "saved"))
    assert {weight.dtype for weight in loaded.state_dict().values()} == {dtype}
    assert_same(model, loaded)


def test_mixed_precisions_are_kept_each(tmp_path):
    vit = timm.create_model("test_vit").half()
    vit.norm.float()
    vit.norm.register_forward_pre_hook(lambda module, args: args[0].float())
    model = s2wrap.wrap(vit)
    model.save(tmp_path / "saved", rebuild=False)
    mixed = timm.create_model("test_vit")
    mixed.norm.register_forward_pre_hook(lambda module, args: args[0].float())
    loaded = s2wrap.load(tmp_path / "saved", backbone=mixed)
    assert mixed.norm.weight.dtype == torch.float32
    assert mixed.cls_token.dtype == torch.float16
    assert_same(model, loaded)


def test_tied_weights_are_written_once_and_stay_tied(tmp_path):
    model = s2wrap.wrap(Patches(), image_size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    model.save(tmp_path / "saved", rebuild=False)
    written = load_file(tmp_path / "saved/weights.safetensors")
    assert len([name for name in written if name.endswith(("first.weight", "second.weight"))]) == 1
    mine = Patches()
    loaded = s2wrap.load(tmp_path / "saved", backbone=mine)
    assert mine.first.weight is mine.second.weight
    assert torch.equal(mine.offset, model.backbone.model.offset)
    assert_same(model, loaded)


def test_views_that_overlap_are_written_apart(tmp_path):
    mine = Patches()
    whole = torch.randn(12)
    mine.first.bias.data, mine.second.bias.data = whole[:8], whole[4:]
    s2wrap.wrap(mine, image_size=64).save(tmp_path / "saved", rebuild=False)
    written = load_file(tmp_path / "saved/weights.safetensors")
    assert torch.equal(written["model.second.bias"], whole[4:])


def test_what_was_said_of_a_backbone_survives(tmp_path):
    class Answers(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(5, 6, 8, 8)

        def forward(self, images):
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            return {"noise": tokens * 0, "tokens": torch.cat([tokens[:, :2], tokens], 1)}

    told = {"image_size": (32, 48), "output": "tokens", "num_prefix_tokens": 2, "layout": "bnc", "name": "answers"}
    told |= {"mean": (0.1,) * 5, "std": (0.3,) * 5, "value_range": (0, 4095), "interpolation": "bilinear"}
    model = s2wrap.wrap(Answers(), scales=(1, Scale(2, policy="nvila", fit="aspect", max_tiles=5)), **told)
    model.save(tmp_path / "saved", rebuild=False)
    loaded = s2wrap.load(tmp_path / "saved", backbone=Answers())
    assert loaded.input == model.input
    assert loaded.backbone.name == "answers"
    assert loaded.backbone.layouts == model.backbone.layouts
    images = torch.rand(1, 5, 60, 90) * 4095
    assert torch.equal(model(images).spatial, loaded(images).spatial)


def test_what_a_processor_said_survives_without_the_processor(tmp_path):
    processor = transformers.ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], resample=2)
    model = s2wrap.wrap(timm.create_model("test_vit"), processor=processor)
    model.save(tmp_path / "saved")
    loaded = s2wrap.load(tmp_path / "saved")
    assert loaded.input == model.input
    assert loaded.input.mean == (0.1, 0.2, 0.3)
    assert loaded.input.origins["mean"] == "processor"
    pixels = torch.randint(0, 255, (1, 3, 200, 200), dtype=torch.uint8)
    assert torch.equal(model(pixels).spatial, loaded(pixels).spatial)


def test_any_saved_folder_takes_a_model_whose_weights_fit(tmp_path):
    model = s2wrap.wrap(timm.create_model("test_vit"))
    model.save(tmp_path / "saved")
    assert_same(model, s2wrap.load(tmp_path / "saved", backbone=timm.create_model("test_vit")))
    given = ProbedBackbone(nn.Conv2d(3, 4, 8, 8), s2wrap.BackboneOptions(image_size=32))
    model = MultiScale(given, s2wrap.Options((1, 2)))
    model.save(tmp_path / "other", rebuild=False)
    fresh = ProbedBackbone(nn.Conv2d(3, 4, 8, 8), s2wrap.BackboneOptions(image_size=32))
    assert_same(model, s2wrap.load(tmp_path / "other", backbone=fresh))


def test_another_model_is_refused_for_its_keys_its_size_or_its_features(tmp_path):
    s2wrap.wrap(timm.create_model("test_vit", num_classes=0)).save(tmp_path / "saved")
    with pytest.raises(S2WrapError, match=r"left over: model.head.bias|missing: model.head.bias"):
        s2wrap.load(tmp_path / "saved", backbone=timm.create_model("test_vit"))
    with pytest.raises(S2WrapError, match="of another shape: model.patch_embed.proj.weight"):
        s2wrap.load(tmp_path / "saved", backbone=timm.create_model("test_vit", num_classes=0, patch_size=8))
    other = timm.create_model("test_vit", num_classes=0, act_layer="relu")
    with pytest.raises(S2WrapError, match="computes other features than test_vit"):
        s2wrap.load(tmp_path / "saved", backbone=other)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (nn.Conv2d(3, 4, 8, 8), {"image_size": 32}),
        (lambda images: images[..., ::8, ::8], {"image_size": 32}),
        (timm.create_model("test_vit", act_layer="relu"), {}),
        (torchvision.models.mnasnet0_5(dropout=0.0).requires_grad_(False), {"name": "changed"}),
    ],
)
def test_a_backbone_that_cannot_be_made_again_is_refused_at_saving_with_what_works(model, options, tmp_path):
    if options.get("name") == "changed":
        model.layers[2] = nn.ReLU6()
    wrapped = s2wrap.wrap(model, **options)
    with pytest.raises(S2WrapError, match=r"rebuild=False.*backbone=my_model"):
        wrapped.save(tmp_path / "saved")
    assert os.listdir(tmp_path) == []
    wrapped.save(tmp_path / "saved", rebuild=False)
    with pytest.raises(S2WrapError, match=r"rebuild=False.*backbone=my_model"):
        s2wrap.load(tmp_path / "saved")
    assert_same(wrapped, s2wrap.load(tmp_path / "saved", backbone=model))


def test_a_policy_of_the_callers_is_refused_by_name(vit, tmp_path):
    def my_policy(image_hw, tile_hw, least, most):
        return 1, 1

    with pytest.raises(S2WrapError, match="my_policy"):
        s2wrap.wrap(vit, fit="aspect", policy=my_policy).save(tmp_path / "saved")
    assert os.listdir(tmp_path) == []


def test_a_family_of_the_users_is_made_again_by_its_spec_also_after_loading(tmp_path):
    def load(name, options, *, pretrained=True, checkpoint=None):
        return ProbedBackbone(Patches(), s2wrap.BackboneOptions(image_size=64).over(options))

    s2wrap.register_backbone("patches", ProbedBackbone, names=["eight"], load=load)
    try:
        model = s2wrap.load("patches:eight@1,2", name="mine")
        model.save(tmp_path / "saved")
        loaded = s2wrap.load(tmp_path / "saved")
        assert_same(model, loaded)
        loaded.save(tmp_path / "again")
        assert_same(model, s2wrap.load(tmp_path / "again"))
    finally:
        unregister_backbone("patches")
    with pytest.raises(S2WrapError, match="family 'patches' is unknown"):
        s2wrap.load(tmp_path / "saved")


def test_the_recipe_of_a_loaded_model_makes_it_again(model, tmp_path):
    model.save(tmp_path / "saved")
    assert_same(model, s2wrap.load(**s2wrap.load(tmp_path / "saved").recipe))


def test_nothing_is_overwritten_unasked_and_only_a_saved_model_when_asked(model, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    model.save(folder)
    before = (folder / "s2wrap.json").read_text()
    other = s2wrap.wrap(model.backbone, scales=(1, 3))
    with pytest.raises(S2WrapError, match="exists already"):
        other.save(folder)
    assert (folder / "s2wrap.json").read_text() == before
    other.save(folder, overwrite=True)
    assert s2wrap.load(folder).options == other.options
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(S2WrapError, match="exists already"):
        model.save(folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert os.listdir(tmp_path) == ["saved"]


def test_a_save_that_fails_leaves_the_old_folder_and_nothing_else(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "out", replace=True) as draft:
        (draft / "new").touch()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["old"]


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder, **changes):
    content = json.loads((folder / "s2wrap.json").read_text()) | changes
    (folder / "s2wrap.json").write_text(json.dumps(content))


@pytest.mark.parametrize("place", [0, 200, -1])
def test_damaged_weights_are_refused(saved, place):
    file = saved / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(S2WrapError, match="weights.safetensors is damaged"):
        s2wrap.load(saved)


def test_every_lacking_or_broken_part_is_one_clear_error(saved, tmp_path):
    with pytest.raises(S2WrapError, match="no saved model: there is no such folder"):
        s2wrap.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(S2WrapError, match="no saved model: it has no s2wrap.json"):
        s2wrap.load(str(tmp_path / "empty"))
    with pytest.raises(S2WrapError, match="has its options"):
        s2wrap.load(saved, scales=(1, 2))
    rewrite(saved, format=2)
    with pytest.raises(S2WrapError, match="format 2.*pip install -U s2wrap"):
        s2wrap.load(saved)
    rewrite(saved, format=1, options={"scales": 3})
    with pytest.raises(S2WrapError, match="s2wrap.json is damaged"):
        s2wrap.load(saved)
    (saved / "s2wrap.json").write_text('{"format": 1, "inp')
    with pytest.raises(S2WrapError, match="s2wrap.json is damaged"):
        s2wrap.load(saved)
    (saved / "weights.safetensors").unlink()


def test_missing_weights_are_named(saved):
    (saved / "weights.safetensors").unlink()
    with pytest.raises(S2WrapError, match="weights.safetensors is missing"):
        s2wrap.load(saved)


def test_features_that_another_version_computes_are_refused_with_the_versions(saved):
    content = json.loads((saved / "s2wrap.json").read_text())
    content["features"][0]["values"][3] += 0.1
    rewrite(saved, features=content["features"], versions=content["versions"] | {"timm": "0.1"})
    with pytest.raises(S2WrapError, match=r"computes other features.*timm was 0\.1"):
        s2wrap.load(saved)


@pytest.mark.parametrize(
    "description",
    [
        {"name": "hf-hub:someone/else", "arguments": {}},
        {"name": "test_vit", "arguments": {"checkpoint_path": "/etc/passwd"}},
    ],
)
def test_a_description_cannot_ask_for_files_or_a_hub(saved, description):
    content = json.loads((saved / "s2wrap.json").read_text())
    rewrite(saved, backbone=content["backbone"] | {"description": description})
    with pytest.raises(S2WrapError, match="hub|checkpoint_path"):
        s2wrap.load(saved)


def test_a_class_that_is_no_model_of_transformers_is_not_called(tmp_path):
    s2wrap.wrap(siglip()).save(tmp_path / "saved")
    content = json.loads((tmp_path / "saved/s2wrap.json").read_text())
    for module, name in (("subprocess", "Popen"), ("transformers.models.auto.modeling_auto", "AutoModel")):
        content["backbone"]["description"] |= {"module": module, "class": name}
        rewrite(tmp_path / "saved", backbone=content["backbone"])
        with pytest.raises(S2WrapError, match="is no model of transformers"):
            s2wrap.load(tmp_path / "saved")


def test_a_missing_library_is_named_with_its_pip_line(tmp_path):
    s2wrap.wrap(siglip()).save(tmp_path / "saved")
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import s2wrap\n"
        "try: s2wrap.load(sys.argv[1])\n"
        "except s2wrap.MissingExtraError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")], capture_output=True, text=True, check=True
    )
    assert 'pip install "s2wrap[transformers]"' in run.stdout
