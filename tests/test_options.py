"""Every option is defined once: what it takes, what it refuses, and what editors and type checkers know of it."""

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


def test_options_are_written_in_no_signature_but_their_own():
    """`wrap` and `load` say `**options`; nothing else in the package takes `fuse` or lists the words of `blend`."""
    for function in (s2wrap.wrap, s2wrap.load):
        assert {"scales", "backbone", "options"} >= set(list(inspect.signature(function).parameters)[1:])
    root = Path(s2wrap.__file__).parent
    for path in root.rglob("*.py"):
        if path.name != "options.py":
            assert "fuse: str" not in path.read_text(), path
            assert '"smooth", "trim"' not in path.read_text(), path


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
