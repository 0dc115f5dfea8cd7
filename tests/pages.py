"""What the tests of README.md and of docs/ share: they run the Python blocks of a page, and look its commands up."""

import ast
import io
import re
import shlex
import tokenize
from contextlib import redirect_stdout
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
NAMED_FILE = re.compile(r"(?<![\w/.])((?:benchmarks|demos|docs|tests|s2wrap|export)/[\w/.]+\w)")


def python_blocks(text):
    """The blocks of Python code of a page; those in the tabs of a page are indented."""
    return _blocks(text, "python")


def runnable_blocks(text):
    """The blocks that the tests run, in order: those of Python, and those of shell code after `<!-- run -->`."""
    pattern = re.compile(r"^( *)(?:<!-- run -->\n+\1)?```(python|sh)\n(.*?)^\1```", re.DOTALL | re.M)
    for match in pattern.finditer(text):
        if match[2] == "python" or "<!-- run -->" in match[0]:
            yield match[2], _dedent(match[3], match[1])


def shell_lines(text):
    """The lines of the blocks of shell code of a page, without comments."""
    joined = [re.sub(r"\\\n *", "", block) for block in _blocks(text, "sh")]  # a line may go on after a backslash
    return [line for block in joined for line in block.splitlines() if line and not line.startswith("#")]


def run_block(block, namespace, name):
    """Run a block, and return how many values were compared with what the comments behind them say.

    A statement that is only an expression, or prints, with a comment behind it must have the value that the comment
    gives: a literal such as (2, 3), the printed text, or "about 0.7" for 0.6 to 0.8. Other comments are remarks.
    """
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(block).readline)
        if token.type == tokenize.COMMENT
    }
    compared = 0
    for node in ast.parse(block).body:
        comment = comments.get(node.end_lineno)
        if not isinstance(node, ast.Expr) or comment is None:
            exec(compile(ast.Module([node], []), name, "exec"), namespace)
            continue
        with redirect_stdout(io.StringIO()) as printed:
            value = eval(compile(ast.Expression(node.value), name, "eval"), namespace)
        where = f"{name}: {ast.unparse(node)}"
        compared += _agrees(printed.getvalue().strip(), value, comment, where)
    return compared


def run_command(line):
    """Run an `s2wrap` command line in this process; AssertionError where it fails."""
    from typer.testing import CliRunner

    from s2wrap.cli import app

    result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
    assert result.exit_code == 0, (line, result.output, result.exception)


def commands_exist(line):
    """Assert that the options of an `s2wrap` command line exist."""
    import click
    from typer.main import get_command

    from s2wrap.cli import app

    words = shlex.split(line, comments=True)
    group = get_command(app)
    _, command, _ = group.resolve_command(click.Context(group), words[1:2])
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known, line


def named_files(text):
    """The files of the repository that a page names."""
    return {path.rstrip("/.") for path in NAMED_FILE.findall(text)}


def tiny_llava():
    """A LLaVA of a few random weights."""
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    text = transformers.LlamaConfig(**sizes, vocab_size=64)
    return transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(vision_config=vision, text_config=text))


def _agrees(printed, value, comment, where):
    """Whether there was something to compare; AssertionError where it differs."""
    if match := re.match(r"about (-?[\d.]+)", comment):
        assert abs(float(printed or value) - float(match[1])) <= 0.1, (where, printed, value)
        return True
    if printed:
        assert printed == comment, (where, printed)
        return True
    try:
        said = ast.literal_eval(comment)
    except (SyntaxError, ValueError):
        return False
    assert (tuple(value) if isinstance(value, torch.Size) else value) == said, (where, value)
    return True


def _blocks(text, language):
    fenced = re.finditer(rf"^( *)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [_dedent(match[2], match[1]) for match in fenced]


def _dedent(block, indent):
    return "\n".join(line.removeprefix(indent) for line in block.splitlines()) + "\n"
