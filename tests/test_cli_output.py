"""Laws of every command: what is on stdout, on stderr, and what the exit code says."""

import io
import json
import os
import re
import signal
import sys
from importlib.metadata import version

import pytest
import timm
from PIL import Image
from rich.console import Console

import s2wrap
from s2wrap import cli
from s2wrap.cli import COMMANDS, output

SHOWING = {"show", "play"}  # their result is a picture, not text
WRITING = {"compare", "features", "export", "search"}
MODEL = ["--model", "timm:test_vit@1,2", "--random-weights", "--workers", "0"]


@pytest.fixture(autouse=True)
def _handlers():
    """Handlers of signals are those of before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(monkeypatch, capsys):
    """A command in this process: its exit code, and what it printed on stdout and stderr."""

    def run(*arguments, terminal=None):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["s2wrap", *map(str, arguments)])
            if terminal is not None:
                patch.setenv("TERM", terminal)
                for stream in (sys.stdout, sys.stderr):
                    patch.setattr(stream, "isatty", lambda: True, raising=False)
            with pytest.raises(SystemExit) as stop:
                cli.main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.radial_gradient("L").convert("RGB").save(path)
    return path


def flags(name):
    return {flag for parameter in cli._command(name).params for flag in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_says_how_much_it_prints(name, run):
    code, out, err = run(name, "-h")
    assert (code, err) == (0, "")
    assert run(name, "--help")[1] == out
    assert "Usage: s2wrap" in out
    assert {"--quiet", "-q"} <= flags(name)
    assert "--json" in flags(name) or name in SHOWING
    assert ("--overwrite" in flags(name)) == (name in WRITING) or name in SHOWING


def test_the_version_is_that_of_the_package(run):
    assert run("--version") == (0, f"s2wrap {version('s2wrap')}\n", "")
    assert s2wrap.__version__ == version("s2wrap")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["exprot"], "'export'"),
        (["inspect", "timm:test_vit", "--imge", "3"], "--image"),
        (["inspect"], "'spec'"),
        (["inspect", "timm:test_vit", "more"], "more"),
        (["bench", "timm:test_vit", "--batch", "many"], "--batch"),
        (["inspect", "timm:test_vit", "--image"], "--image"),
        (["--wrong"], "--wrong"),
        (["inspect", "nonsense"], "FAMILY:NAME@SCALES"),
    ],
)
@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_wrong_calls_are_one_line_on_stderr_and_exit_code_2(arguments, words, json_flag, run):
    code, out, err = run(*arguments, *json_flag)
    assert (code, out) == (2, "")
    assert err.startswith("s2wrap: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_call_without_a_command_is_help_and_no_success(run):
    code, out, err = run()
    assert code == 2
    assert "Commands" in out + err
    assert "s2wrap: " not in err


def test_an_interruption_is_exit_code_130_and_silent(run, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("s2wrap.cli.models.specs", interrupted)
    assert run("models") == (130, "", "")


def test_a_reader_that_has_enough_ends_a_command_silently(run, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        code, _, err = run("models", "sample:*")
    assert (code, err) == (1, "")


def test_signals_that_end_a_program_end_it_as_an_exception_does(run):
    run("--version")
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(SystemExit) as stop:
            signal.getsignal(number)(number, None)
        assert stop.value.code == 128 + number


def test_bars_and_notes_are_for_terminals(run, picture, tmp_path):
    assert run("features", picture, *MODEL, "--output", tmp_path / "a.npz")[2] == ""
    assert run("bench", "timm:test_vit", "--seconds", "0.01", "--backend", "eager")[2] == ""
    assert run("compare", "timm:test_vit@1", "--seconds", "0.01")[2] == ""
    assert run("compare", "timm:test_vit@1", "--budget", "9GMAC", "--backend", "none")[2] == ""


def test_a_terminal_shows_a_bar_unless_quiet(run, picture, tmp_path):
    command = ["features", picture, *MODEL, "--overwrite", "--output", tmp_path / "a.npz"]
    code, out, err = run(*command, terminal="xterm")
    assert "pictures/s" in err or "━" in err
    assert "\x1b" not in out
    assert run(*command, "--quiet", terminal="xterm") == (code, out, "")


def test_quiet_silences_notes_and_warnings_but_no_error(run, picture, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    code, out, err = run("features", tmp_path, *MODEL, "--output", tmp_path / "a.npz", "-q")
    assert (code, err) == (3, "")
    assert "1 could not be read" in out
    assert run("inspect", "nonsense", "--quiet")[2] != ""


def test_json_is_all_that_stdout_holds(run, picture, tmp_path):
    store = tmp_path / "a.npz"
    code, out, err = run("features", picture, *MODEL, "--output", store, "--json")
    assert (code, err) == (0, "")
    shapes = [{"spatial": [128, 10, 10], "prefix": [1, 128]}]
    assert json.loads(out) == {"output": str(store), "pictures": 1, "failed": 0, "left_out": {}, "shapes": shapes}
    rows = json.loads(run("bench", "timm:test_vit", "--seconds", "0.01", "--backend", "eager,cuda-graph", "--json")[1])
    assert [row["way"] for row in rows["rows"]] == ["eager", "cuda-graph"]
    file = tmp_path / "a.onnx"
    exported = json.loads(run("export", "timm:test_vit", file, "--random-weights", "--json", "--quiet")[1])
    assert exported["path"] == str(file)
    assert exported["verification"]["passed"]
    code, out, err = run("verify", file, "--json")
    assert (code, err, json.loads(out)["passed"]) == (0, "", True)
    code, out, err = run("verify", file, "--json", "--gate", "1,1,0")
    assert (code, json.loads(out)["passed"], err.count("\n")) == (1, False, 1)
    before = file.read_bytes()
    assert "add --overwrite" in run("export", "timm:test_vit", file, "--random-weights")[2]
    assert file.read_bytes() == before


def test_nothing_is_replaced_unasked(run, picture, tmp_path, monkeypatch):
    occupied = {name: tmp_path / name for name in ("a.npz", "a.onnx.json", "a.csv", "a.jsonl")}
    for path in occupied.values():
        path.write_text("precious")
    commands = {
        "a.npz": ["features", picture, *MODEL, "--output", occupied["a.npz"]],
        "a.jsonl": ["features", picture, *MODEL, "--output", tmp_path / "b.npz", "--errors", occupied["a.jsonl"]],
        "a.onnx.json": ["export", "timm:test_vit", tmp_path / "a.onnx", "--random-weights"],
        "a.csv": ["compare", "timm:test_vit@1", "--backend", "none", "--report", occupied["a.csv"]],
    }
    for name, command in commands.items():
        with monkeypatch.context() as patch:
            patch.setattr(timm, "create_model", None)  # refused before the work
            code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert re.search(f"{name} exists already; add --overwrite", err)
        assert occupied[name].read_text() == "precious"
    for name in ("a.npz", "a.csv"):
        assert run(*commands[name], "--overwrite")[0] == 0
        assert occupied[name].read_bytes() != b"precious"


def test_a_store_goes_on_or_is_begun_anew_where_asked(run, picture, tmp_path):
    store = tmp_path / "a.parquet"
    command = ["features", picture, *MODEL, "--output", store, "--errors", tmp_path / "a.jsonl"]
    assert run(*command)[0] == 0
    assert "all there before" in run(*command)[1]  # its list of errors goes on too
    code, _, err = run(*command, "--fuse", "mean")
    assert (code, "--overwrite" in err) == (2, True)
    (tmp_path / "a.parquet.s2wrap" / "failures.jsonl").write_text("old\n")
    assert run(*command, "--fuse", "mean", "--overwrite")[:2] == (0, f"1 pictures, (64,) each → {store}\n")
    assert "all there before" in run(*command, "--fuse", "mean")[1]
    assert (tmp_path / "a.jsonl").read_text() == ""
    other = tmp_path / "other.zarr"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    assert run("features", picture, *MODEL, "--output", other, "--overwrite")[0] == 2
    assert (other / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("width", [1, 20, 33, 34, 60, 61, 200])
def test_tables_never_break_a_text(width, monkeypatch, capsys):
    columns = {"model": ["a:b[c]", "timm:" + "long" * 5], "size": ["1", "12345"], "more": ["x" * 30, "y"]}
    monkeypatch.setattr(output, "results", lambda: Console(width=width))
    output.print_table(columns)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = lines[0]
    assert shown == list(columns)[: len(shown)]
    assert shown[0] == "model"
    assert lines[2:] == [[columns[heading][row] for heading in shown] for row in range(2)]
    widths = [max(map(len, (heading, *texts))) for heading, texts in columns.items()]
    fits = [count for count in (1, 2, 3) if sum(widths[:count]) + 2 * (count - 1) <= width]
    assert len(shown) == max(fits, default=1)


def test_a_dumb_terminal_gets_no_escapes(run):
    for command in (
        ["models", "sample:*"],
        ["inspect", "timm:test_vit"],
        ["compare", "timm:test_vit", "--backend", "none"],
    ):
        code, out, err = run(*command, terminal="dumb")
        assert code == 0
        assert "\x1b" not in out + err


def test_an_encoding_without_signs_gets_others(run, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    assert run("inspect", "timm:test_vit@1")[0] == 0
    printed = content.getvalue().decode("ascii")
    assert "160x160 pixels" in printed
    assert "?" not in printed


@pytest.mark.parametrize(
    ("words", "found"), [("s2wrap exp", "export"), ("s2wrap inspect --overl", "--overlap"), ("s2wrap bench -q", "-q")]
)
def test_shells_complete_commands_and_their_flags(words, found, run, monkeypatch):
    monkeypatch.setenv("_S2WRAP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert run()[1].split() == [found]
