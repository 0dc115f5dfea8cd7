import re

import pages
import pytest
import torch

from s2wrap.backbones import registry

README = (pages.ROOT / "README.md").read_text()


def test_python_blocks_run_and_print_what_they_say(monkeypatch, tmp_path):
    """An expression with a literal in the comment behind it must have that value: see `pages.run_block`."""
    monkeypatch.chdir(tmp_path)
    namespace = {"images": torch.rand(2, 3, 500, 400), "backbone": torch.nn.AvgPool2d(16)}
    namespace |= {"AcmeNet": type("AcmeNet", (torch.nn.Module,), {}), "llava": pages.tiny_llava()}
    namespace["pictures"] = [torch.rand(3, 200, 300), torch.rand(3, 300, 100)]
    blocks = pages.python_blocks(README)
    assert len(blocks) >= 3
    monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES))  # a block adds one
    assert sum(pages.run_block(block, namespace, "README.md") for block in blocks) >= 2


def test_commands_and_files_named_exist():
    for path in re.findall(r"`((?:benchmarks|demos|docs|tests|s2wrap|export)/[\w/.]+)`", README):
        assert (pages.ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (pages.ROOT / target).exists(), target


@pytest.mark.parametrize("line", [line for line in README.splitlines() if line.startswith("s2wrap ")])
def test_options_in_commands_exist(line):
    pages.commands_exist(line)


def test_ci_runs_the_readmes_test_command():
    (command,) = [line for line in README.splitlines() if line.endswith("&& pytest")]
    assert command.removesuffix(" && pytest") in (pages.ROOT / ".ci" / "run").read_text()
    assert "\npytest" in (pages.ROOT / ".ci" / "run").read_text()
