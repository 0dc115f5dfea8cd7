import base64
import io
import shutil
import socket
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from s2wrap import cli

gradio = pytest.importorskip("gradio", reason="needs the [play] extra")
LEFT, RIGHT, OTHER = (60, 60), (240, 60), (150, 230)
"""Centres of two discs that are alike, and of one thing that is not."""


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    picture = Image.new("RGB", (300, 300), "white")
    pen = ImageDraw.Draw(picture)
    for centre in (LEFT, RIGHT):
        pen.circle(centre, 50, fill="red")
    pen.rectangle((100, 200, 200, 260), fill="green", outline="black", width=8)
    path = tmp_path_factory.mktemp("photo") / "discs.png"
    picture.save(path)
    return path


@pytest.fixture(scope="module")
def address(has_samples):
    from s2wrap.play import launch, make_page

    page = make_page("sample:dinov2_s14@1,2", torch.device("cpu"))
    port = free_port()
    launch(page, port, prevent_thread_lock=True)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(120_000)
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(address)
    yield opened
    opened.close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def maps(page):
    """The maps that the page shows last, as how bright their cells are."""
    pictures = page.locator(".s2wrap:has(i) img").evaluate_all("images => images.map(image => image.src)")
    opened = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in pictures]
    return [np.asarray(picture.convert("L"), dtype=float) for picture in opened[1:]]  # the first is the photograph


def around(cells, centre):
    """How bright the cells are at a point of a photograph of 300×300 pixels."""
    row, column = (int(centre[axis] / 300 * cells.shape[axis ^ 1]) for axis in (1, 0))
    return cells[row, column]


def test_a_click_on_a_disc_lights_up_the_other_one_at_every_scale(page, photo):
    page.set_input_files("input[type=file]", photo)
    page.wait_for_selector(".s2wrap figure")
    assert page.locator(".s2wrap figure").count() == 4  # the photograph, two scales, fused
    assert "5 tiles, 30.6 G multiply-adds" in page.inner_text("body")
    picture = page.get_by_test_id("image").locator("img")
    box = picture.bounding_box()
    picture.click(position={"x": LEFT[0] / 300 * box["width"], "y": LEFT[1] / 300 * box["height"]})
    page.wait_for_selector(".s2wrap i")
    shown = maps(page)
    assert [cells.shape for cells in shown] == [(16, 16), (32, 32), (16, 16)]
    for cells in shown:
        assert around(cells, LEFT) == cells.max()
        assert around(cells, RIGHT) > around(cells, OTHER) + 20
    assert {address.split("/")[2].partition(":")[0] for address in page.asked if address[:4] == "http"} == {"127.0.0.1"}


def test_what_cannot_work_is_said_on_the_page_in_the_words_of_the_library(page, photo, tmp_path):
    page.get_by_role("button", name="Look").click()
    page.get_by_text("there is no photograph yet").wait_for()
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("input[type=file]", tmp_path / "text.png")
    page.get_by_text("not a picture, or cut short in its header").wait_for()
    page.reload()
    page.set_input_files("input[type=file]", photo)
    page.wait_for_selector(".s2wrap figure")
    page.get_by_label("overlap").fill("40")
    page.get_by_role("button", name="Look").click()
    page.get_by_text("overlap=40 tokens, but a tile of vit_small_patch14_dinov2 has 16; use 0 to 15").wait_for()
    assert page.locator(".s2wrap figure").count() == 0


def test_a_phone_needs_no_scrolling_sideways(page, photo):
    page.set_viewport_size({"width": 390, "height": 844})
    page.set_input_files("input[type=file]", photo)
    page.wait_for_selector(".s2wrap figure")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_port_that_is_taken_is_one_sentence_that_says_the_way_out(capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["s2wrap", "play", "--port", str(port), "--no-browser"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"s2wrap: port {port} is taken; give another one, such as --port {port + 1}"
