import re
from importlib import import_module
from inspect import getdoc

import pytest
import typer
from typer.testing import CliRunner

import s2wrap
from s2wrap.cli import COMMANDS, app
from s2wrap.cli.model import NO_FLAGS, flag_name, model_options, read_option
from s2wrap.options import LoadOptions, option_help, option_types

FLAGS = [name for name in option_types(LoadOptions) if name not in NO_FLAGS]


def words(text):
    """The words of a help text, without the frames around it."""
    return re.sub(r"[│╭╰─╮╯]|\s", "", text)


def given(*arguments, **defaults):
    """The options that a command with every flag is called with."""
    seen = {}

    @model_options(**defaults)
    def command(spec: str, *, options: dict) -> None:
        seen.update(options)

    small = typer.Typer()
    small.command()(command)
    result = CliRunner().invoke(small, ["spec", *arguments])
    assert result.exit_code == 0, result.output
    return seen


@pytest.mark.parametrize("command", ["inspect", "export", "features", "compare", "bench"])
def test_every_option_is_a_flag_and_its_help_is_the_sentence_of_the_option(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "4000", "TERMINAL_WIDTH": "4000"})
    assert result.exit_code == 0
    matches = [(re.match(r"│[ *]+(--[a-z0-9-]+)", line), words(line)) for line in result.output.splitlines()]
    lines = {match[1]: line for match, line in matches if match}
    for name in FLAGS:
        flag = flag_name(name).split("/")[0]
        assert words(option_help(LoadOptions)[name]) in lines[flag]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--weights", "0.5,0.3,0.2"], {"weights": (0.5, 0.3, 0.2)}),
        (["--target-grid", "48x64"], {"target_grid": (48, 64)}),
        (["--target-grid", "-1"], {"target_grid": -1}),
        (["--target-grid", "finest"], {"target_grid": "finest"}),
        (["--mean", "0.5", "--std", "1"], {"mean": (0.5,), "std": (1,)}),
        (["--value-range", "0,1"], {"value_range": (0, 1)}),
        (["--image-size", "448"], {"image_size": 448}),
        (["--image-size", "224x336"], {"image_size": (224, 336)}),
        (["--layers", "-7,-1", "--no-join-layers"], {"layers": (-7, -1), "join_layers": False}),
        (["--whole"], {"whole": True}),
        (["--tiled"], {"whole": False}),
        (["--random-weights"], {"pretrained": False}),
        (["--overlap", "2", "--tile-batch", "8"], {"overlap": 2, "tile_batch": 8}),
        (["--output-part", "1"], {"output": 1}),
        (["--output-part", "last_hidden_state"], {"output": "last_hidden_state"}),
        (["--checkpoint", "a,b.pth"], {"checkpoint": "a,b.pth"}),
    ],
)
def test_flags_are_read_as_load_takes_them(arguments, options):
    assert given(*arguments) == options


def test_the_text_of_every_flag_makes_the_option_that_python_has():
    texts = {"mean": "0.1,0.2,0.3", "std": "1,1,1", "value_range": "0,255", "layers": "-2,-1", "image_size": "96x64"}
    options = LoadOptions(**{name: read_option(name, text) for name, text in texts.items()})
    assert (options.mean, options.value_range) == ((0.1, 0.2, 0.3), (0.0, 255.0))
    assert (options.layers, options.image_size) == ((-2, -1), (96, 64))


def test_a_command_has_defaults_of_its_own_unless_a_checkpoint_is_given():
    assert given(pretrained=False) == {"pretrained": False}
    assert given("--pretrained", pretrained=False) == {"pretrained": True}
    assert given("--checkpoint", "weights.pth", pretrained=False) == {"checkpoint": "weights.pth"}


def test_the_list_of_commands_says_what_each_command_says_first():
    for home, text in COMMANDS.values():
        module, function = home.split(":")
        first = (getdoc(getattr(import_module(f"s2wrap.cli.{module}"), function)) or "").partition("\n\n")[0]
        assert " ".join(first.split()) == text


def test_a_command_that_does_not_exist_is_refused_with_the_nearest():
    result = CliRunner().invoke(app, ["inspct"])
    assert result.exit_code == 2
    assert "inspect" in result.output


def test_flags_make_the_model_that_python_makes(capsys):
    import json

    flags = ["--fuse", "mean", "--overlap", "1", "--mean", "0.1,0.2,0.3", "--std", "1,1,1", "--json"]
    result = CliRunner().invoke(app, ["inspect", "timm:test_vit@1,2", *flags])
    told = json.loads(result.output)["input"]
    model = s2wrap.load(
        "timm:test_vit@1,2", pretrained=False, fuse="mean", overlap=1, mean=(0.1, 0.2, 0.3), std=(1, 1, 1)
    )
    assert tuple(told["mean"]["value"]) == model.input.mean == (0.1, 0.2, 0.3)
    assert told["mean"]["known_from"] == "the caller"
    assert told["interpolation"]["known_from"] == "the model's own config"
