import re

import pages
import pytest

README = (pages.ROOT / "README.md").read_text()


def test_python_blocks_run_in_a_fresh_clone_and_print_what_they_say(monkeypatch, has_samples):
    """An expression with a literal in the comment behind it must have that value: see `pages.run_block`."""
    monkeypatch.chdir(pages.ROOT)
    namespace = {}
    blocks = pages.python_blocks(README)
    assert len(blocks) >= 3
    assert sum(pages.run_block(block, namespace, "README.md") for block in blocks) >= 4


def test_it_is_read_in_a_minute():
    assert len(README.splitlines()) <= 150


def test_commands_and_files_named_exist():
    for path in re.findall(r"`((?:benchmarks|demos|docs|tests|s2wrap|export)/[\w/.]+)`", README):
        assert (pages.ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (pages.ROOT / target).exists(), target


@pytest.mark.parametrize("line", [line for line in pages.shell_lines(README) if line.startswith("s2wrap ")])
def test_options_in_commands_exist(line):
    pages.commands_exist(line)


def test_ci_runs_the_readmes_test_command():
    (command,) = [line for line in README.splitlines() if "&& pytest" in line]
    lines = (pages.ROOT / ".ci" / "run").read_text().splitlines()
    with_heavy_ones = command.replace('".[dev]"', '".[dev,integrations]"')  # their tests skip without the extra
    assert set(with_heavy_ones.split(" && ")) <= set(lines)
