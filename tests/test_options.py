"""Every option is defined once: what it takes, what it refuses, and what editors and type checkers know of it."""

import ast
import inspect
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import timm
import torch

import s2wrap
from s2wrap import BackboneOptions, Options, S2WrapError
from s2wrap.options import LoadOptions, WrapOptions, option_help, option_types, option_words, part_of

USER = Path(__file__).parent / "typing"
PATHS = os.environ | {"MYPYPATH": str(USER.parent.parent)}  # type checkers do not find editable installs


def test_every_option_has_a_type_and_a_sentence_of_help():
    for kind in (Options, BackboneOptions, LoadOptions):
        for name, text in option_help(kind).items():
            assert text[0].isupper(), name
            assert text.endswith("."), name


def test_the_words_of_an_option_are_written_in_one_module():
    """No other tuple, list, set or Literal has all of them (`scaling_attacks` lists kernels of other libraries)."""
    homes: dict[str, set[str]] = {}
    root = Path(s2wrap.__file__).parent
    lists = [
        (path.name, {part.value for part in node.elts if isinstance(part, ast.Constant)})
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Tuple | ast.List | ast.Set)
    ]
    for kind in (Options, BackboneOptions, LoadOptions):
        for name, hint in option_types(kind).items():
            words = {word for word in option_words(hint) if isinstance(word, str)}
            if len(words) > 1:
                homes[name] = {file for file, listed in lists if words <= listed}
    assert homes.keys() >= {"fit", "fuse", "norm", "blend", "prefix", "layout"}
    elsewhere = {
        name: files - {"options.py", "scales.py", "policies.py", "scaling_attacks.py"} for name, files in homes.items()
    }
    assert not any(elsewhere.values()), elsewhere
    assert all(homes.values()), homes


def test_wrap_and_load_name_no_option():
    for function in (s2wrap.wrap, s2wrap.load):
        assert set(inspect.signature(function).parameters) <= {"spec", "scales", "backbone", "options"}


@pytest.mark.parametrize("name", [name for name, hint in option_types(Options).items() if option_words(hint)])
def test_words_that_do_not_exist_are_refused_with_those_that_do(name):
    words = [str(word) for word in option_words(option_types(Options)[name]) if word is not None]
    with pytest.raises(S2WrapError) as error:
        Options(**{name: "nothing"})
    assert f"{name}='nothing' is unknown; use one of {', '.join(words)}" in str(error.value)


def test_a_larger_kind_holds_the_options_of_a_smaller_one():
    chosen = LoadOptions((1, 3), fuse="mean", mean=(0.5, 0.5, 0.5), pretrained=False)
    assert part_of(Options, chosen) == Options((1, 3), fuse="mean")
    assert part_of(BackboneOptions, chosen) == BackboneOptions(mean=[0.5, 0.5, 0.5])
    assert {field.name for field in fields(WrapOptions)} == {
        field.name for kind in (Options, BackboneOptions) for field in fields(kind)
    }


def test_the_caller_goes_before_the_family():
    facts = BackboneOptions(image_size=224, mean=(0, 0, 0), name="family")
    known = BackboneOptions(image_size=(64, 96), interpolation="bilinear").over(facts)
    assert (known.image_size, known.mean, known.name, known.interpolation) == (
        (64, 96),
        (0, 0, 0),
        "family",
        "bilinear",
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 2}, "overlap=2 has no effect: resnet18 sees every image at scale 1, 2 in one pass each"),
        ({"blend": "gaussian"}, "blend='gaussian' has no effect"),
        ({"join_layers": False}, "join_layers=False has no effect without layers"),
        ({"layers": (-3, -1), "fuse": "pyramid"}, "cannot be joined on channels; use join_layers=False"),
        ({"in_channels": 0}, "in_channels=0 is no number of channels; use 1 or more"),
        ({"value_range": (1, 0)}, "value_range=(1, 0) is no range; use two numbers, the lower first"),
        ({"value_range": 255}, "value_range=255 is no range"),
    ],
)
def test_options_without_effect_are_refused(options, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.wrap(timm.create_model("resnet18", num_classes=0), (1, 2), **options)
    assert words in str(error.value)


@pytest.mark.parametrize("scales", [(1, 2), (1, 1.5), (0.5, 2), (1, "2:whole"), (1, "2:pad"), ("1:aspect", "2:pad")])
@pytest.mark.parametrize(
    "option", [{"overlap": 7}, {"blend": "trim"}, {"fit": "pad"}, {"policy": "anyres"}, {"prefix": "base"}], ids=str
)
def test_an_option_changes_something_or_is_refused(scales, option):
    """For one of two images of no special size; what it leaves as it was, it has no effect on."""
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0)
    try:
        changed = s2wrap.wrap(network, scales, **option)
    except S2WrapError as error:
        assert "has no effect" in str(error)
        return
    plain = s2wrap.wrap(network, scales)
    for images in (torch.randn(1, 3, 190, 270), torch.randn(1, 3, 190, 390)):
        before, after = plain(images), changed(images)
        if not (torch.equal(before.spatial, after.spatial) and torch.equal(before.prefix, after.prefix)):
            return
    pytest.fail("nothing changed")


@pytest.mark.parametrize(
    ("scales", "options", "words"),
    [
        ((1,), {"overlap": 2}, "overlap=2 has no effect: test_vit sees every image at scale 1 in one pass each"),
        ((1, 2), {"blend": "trim"}, "blend='trim' has no effect: no tiles overlap (overlap=0)"),
        (("1:pad", "2:aspect"), {"fit": "pad"}, "fit='pad' has no effect: every scale has a fit of its own"),
        (("1:tiled", "2:whole"), {"whole": True}, "whole=True has no effect: every scale has a whole of its own"),
    ],
)
def test_an_option_that_every_scale_decides_or_that_has_no_tiles_is_refused(scales, options, words):
    with pytest.raises(S2WrapError) as error:
        s2wrap.load("timm:test_vit", scales, pretrained=False, **options)
    assert words in str(error.value)


def test_a_wrap_that_fails_leaves_the_model_as_it_was():
    network = timm.create_model("vit_tiny_patch16_224", img_size=32)
    with pytest.raises(S2WrapError):
        s2wrap.wrap(network, (1, "2:whole"), overlap=1)
    s2wrap.wrap(network, (1, 2))
    assert network.dynamic_img_size is False
    s2wrap.wrap(network, (1, "2:whole"))
    assert network.dynamic_img_size is True


def test_overlap_has_an_effect_where_one_scale_has_tiles():
    network = timm.create_model("test_resnet", num_classes=0)
    assert s2wrap.wrap(network, (1, "2:tiled"), overlap=2).options.overlap == 2


def test_a_pyramid_of_layers_has_a_map_a_scale_and_layer():
    network = timm.create_model("test_resnet", num_classes=0).eval()
    options = {"layers": (-3, -1), "whole": False, "join_layers": False}
    images = torch.randn(1, 3, 320, 320)
    features = s2wrap.wrap(network, (1, 2), fuse="pyramid", **options)(images)
    assert [(geometry.scale, geometry.layer) for geometry in features.geometry] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    for spatial, geometry in zip(features.maps, features.geometry, strict=True):
        assert tuple(spatial.shape[-2:]) == geometry.grid
        single = s2wrap.wrap(network, (1, 2), fuse="pyramid", layers=((-3, -1)[geometry.layer],), whole=False)(images)
        torch.testing.assert_close(spatial, single.maps[geometry.scale], atol=1e-5, rtol=0)


def test_joined_layers_of_several_grids_have_that_of_the_scale_that_was_chosen():
    network = timm.create_model("test_resnet", num_classes=0).eval()
    images, options = torch.randn(1, 3, 320, 320), {"layers": (-3, -1), "whole": False}
    joined = s2wrap.wrap(network, (1, 2), target_grid=1, **options)(images)
    listed = s2wrap.wrap(network, (1, 2), target_grid=1, join_layers=False, **options)(images)
    assert tuple(joined.spatial.shape[-2:]) == min(tuple(spatial.shape[-2:]) for spatial in listed.maps)


def test_options_can_be_replaced():
    plain = Options()
    assert replace(plain, fuse="detail").result_grid == "finest"
    assert replace(plain, fuse="pyramid").fuse == "pyramid"
    assert plain.changed().keys() <= {"scales"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": "14"}, "patch_size='14' is no patch"),
        ({"patch_size": (16, 16, 16)}, "is no patch"),
        ({"grid": (4,)}, "grid=(4,) is no grid"),
        ({"num_prefix_tokens": "1"}, "num_prefix_tokens='1' is no number of tokens"),
        ({"name": 5}, "name=5 is no text"),
    ],
)
def test_what_is_said_of_a_backbone_is_checked(options, words):
    with pytest.raises(S2WrapError) as error:
        BackboneOptions(**options)
    assert words in str(error.value)


def test_a_grid_may_be_a_list_and_equal_scales_are_equal():
    assert BackboneOptions(grid=[4, 4]) == BackboneOptions(grid=(4, 4))
    assert Options(("1", "2")) == Options((1, 2.0))


CHECKERS = {
    "pyright": [sys.executable, "-m", "pyright", "--project", str(USER)],
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--config-file", str(USER / "mypy.ini")],
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_program_is_checked(checker, tmp_path):
    """The right program passes in strict mode, and each planted misuse is reported at its line, and nothing else."""
    if checker == "pyright" and not shutil.which("pyright"):
        pytest.skip("needs pyright, of the [dev] extra")
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": PATHS}
    right = subprocess.run([*CHECKERS[checker], str(USER / "right.py")], **options)
    assert right.returncode == 0, right.stdout + right.stderr
    wrong = USER / "wrong.py"
    planted = {number for number, line in enumerate(wrong.read_text().splitlines(), 1) if "# wrong" in line}
    found = subprocess.run([*CHECKERS[checker], str(wrong)], **options)
    reported = {
        int(line.split(":")[1]) for line in found.stdout.splitlines() if "wrong.py:" in line and "error" in line
    }
    assert len(planted) == 8
    assert reported == planted, found.stdout
