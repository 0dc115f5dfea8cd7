import io
import re

import pytest
from made_up import SPECS, comparison
from rich.console import Console

from s2wrap.compare.table import print_table


def printed(found, width=None):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=width is not None, color_system=None, _environ={})
    print_table(found, console)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_terminal_shows_all_figures_whole_within_its_width(width):
    found = comparison(15, measures=("accuracy", "k-NN", "information"))
    for one in found.rows:
        one.timings["max-autotune"] = one.timings["eager"]
    text = printed(found, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert {"86.0 (81.2–88.8)", "0.860 (0.812 to 0.888)", "11/11/11", "22.1", "5.50", "28.6", "79"} <= set(
        re.split(r"\s{2,}", text.replace("\n", "  "))
    )


def test_a_pipe_gets_one_line_a_model():
    found = comparison(15, measures=("accuracy", "k-NN", "information"))
    lines = printed(found).splitlines()
    for one in found.rows:
        (line,) = [line for line in lines if f" {one.spec} " in line]
        assert line.startswith("●") == one.on_front
        assert f"{100 * one.scores['k-NN'].value:.1f} (" in line


def test_a_terminal_tells_what_is_missing_and_the_verdict_last():
    found = comparison(2, skipped=[f"{number}.jpg: broken" for number in range(13)])
    found.rows[1].timings["compile"] = {"reason": "no compiler"}
    lines = printed(found, 120).splitlines()
    assert lines[0] == "150 pictures in 3 classes, CPU (x86_64), torch 2.11"
    assert f"compile ({SPECS[1]}): no compiler" in lines
    assert "left out: 9.jpg: broken" in lines
    assert "left out: 10.jpg: broken" not in lines
    assert lines[-3:] == ["left out: 3 more", "One against another: worse.", "The best is first."]


def test_why_a_backend_did_not_run_is_said_once_with_the_models_that_it_holds_for():
    found = comparison(4)
    for number, one in enumerate(found.rows):
        one.timings["tensorrt"] = {"reason": "no GPU"}
        one.timings["compile"] = {"reason": "too large" if number == 2 else "no compiler"}
    del found.rows[0].timings["compile"]
    lines = printed(found).splitlines()
    told = [line for line in lines if "no GPU" in line or "too large" in line or "no compiler" in line]
    assert told == [
        "tensorrt (all models): no GPU",
        f"compile ({SPECS[1]}, {SPECS[3]}): no compiler",
        f"compile ({SPECS[2]}): too large",
    ]


def test_names_are_printed_as_they_are_and_control_nothing():
    evil = "[bold]x[/bold] :dog: \x1b[2Jy\udcff"
    found = comparison(1, skipped=[evil])
    found.rows[0].spec = evil
    text = printed(found, 200)
    assert text.count(r"[bold]x[/bold] :dog: \x1b[2Jy\udcff") == 2
    assert "\x1b[2J" not in text


def test_a_model_that_cannot_do_a_task_says_so_in_its_cell_and_why_below():
    found = comparison(3, measures=("accuracy", "mIoU"))
    del found.rows[1].scores["mIoU"]
    found.rows[1].unable["task of mIoU"] = "2 maps a picture"
    lines = printed(found).splitlines()
    assert f"task of mIoU ({SPECS[1]}): 2 maps a picture" in lines
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines if f" {SPECS[1]} " in line]
    assert "unable" in " ".join(cells[0])
    assert sum("unable" in line for line in lines) == 1
