import re
import shlex
from pathlib import Path

import pytest
import torch

from s2wrap.backbones import registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_python_blocks_run_and_print_what_they_say(monkeypatch, tmp_path):
    """A line that ends in a comment with a shape must give that shape."""
    monkeypatch.chdir(tmp_path)
    namespace = {"images": torch.rand(2, 3, 500, 400), "backbone": torch.nn.AvgPool2d(16)}
    namespace |= {"AcmeNet": type("AcmeNet", (torch.nn.Module,), {}), "llava": tiny_llava()}
    namespace["pictures"] = [torch.rand(3, 200, 300), torch.rand(3, 300, 100)]
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 3
    checked = 0
    monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES))  # a block adds one
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
        for expression, shape in re.findall(r"^(features\.\w+)\.shape +# (.*)$", block, re.MULTILINE):
            assert str(tuple(eval(expression, namespace).shape)) == shape.strip()
            checked += 1
    assert checked >= 2


def tiny_llava():
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    text = transformers.LlamaConfig(**sizes, vocab_size=64)
    return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(vision_config=vision, text_config=text))


def test_commands_and_files_named_exist():
    for path in re.findall(r"`((?:benchmarks|demos|tests|s2wrap|export)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("line", [line for line in README.splitlines() if line.startswith("s2wrap ")])
def test_options_in_commands_exist(line, capsys):
    import click
    from typer.main import get_command

    from s2wrap.cli import app

    words = shlex.split(line, comments=True)
    group = get_command(app)
    _, command, _ = group.resolve_command(click.Context(group), words[1:2])
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_ci_runs_the_readmes_test_command():
    (command,) = [line for line in README.splitlines() if line.endswith("&& pytest")]
    assert command.removesuffix(" && pytest") in (ROOT / ".ci" / "run").read_text()
    assert "\npytest" in (ROOT / ".ci" / "run").read_text()
