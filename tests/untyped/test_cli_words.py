"""Words that the command line takes as text: the options' own checks say what would work."""

import sys

import pytest

from s2wrap import cli

MODEL = ["timm:test_vit@1,2", "--random-weights"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fuse", "join"], "fuse='join' is unknown; use one of concat"),
        (["--fuse", "weighted", "--weights", "a,b"], "weights=a,b for 2 scales; give one finite number a scale"),
        (["--target-grid", "middle"], "target_grid='middle' is no grid"),
        (["--mean", "grey"], "mean='grey' is no mean; use one number a channel"),
        (["--policy", "widest"], "policy='widest' is unknown"),
    ],
)
def test_a_word_that_does_not_exist_is_one_line_and_exit_code_2(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["s2wrap", "inspect", *MODEL, *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"s2wrap: {words}")
