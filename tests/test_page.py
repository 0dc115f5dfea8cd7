import re
from html.parser import HTMLParser

import pytest
from made_up import comparison

from s2wrap.compare.page import to_html

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What is in a page, and whether every element that begins also ends, in order."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes, self.words, self.scripts = [], [], [], "", 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open += [tag] * (tag not in self.VOID)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        self.scripts += tag == "script"

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def text():
    found = comparison(8, measures=("accuracy", "information"))
    for one in found.rows:
        one.timings["compile"] = {"reason": "no compiler"}
    return to_html(found)


def test_a_page_is_well_formed_and_loads_nothing(text):
    page = Page(text)
    assert page.open == []
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "srcset", "data")]
    links += re.findall(r"url\(([^)]*)\)", text)
    assert links
    assert all(link.startswith("#") for link in links)
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in links} <= set(page.ids)


def test_a_page_says_why_a_backend_did_not_run_once(text):
    assert text.count("no compiler") == text.count("compile (all models): no compiler") == 1


def test_a_page_says_the_verdict_first_then_all_figures_then_draws_them(text):
    words = Page(text).words
    parts = [
        "The best is first.",
        "One against another: worse.",
        "86.0 (81.2–88.8)",
        "multiply-adds of one image, billions",
        "eager: milliseconds",
    ]
    parts += [
        "0.860 (0.812 to 0.888)",
        "11/11/11",
        "150 pictures in 3 classes",
        "95 % intervals",
        "broken.jpg: truncated",
    ]
    places = [words.rindex(part) if part == "95 % intervals" else words.index(part) for part in parts]
    order = [places[number] for number in (0, 1, 2, 6, 3, 4)]
    assert order == sorted(order)
    assert places[-1] == max(places)


def test_nothing_in_a_name_becomes_markup():
    found = comparison(2, verdict=[EVIL], skipped=[EVIL + "\udcff"])
    found.rows[0].spec = f"timm:test_vit@1 name={EVIL}"
    found.rows[1].timings = {EVIL: {"reason": EVIL}}
    found.facts = {EVIL: EVIL}
    page = Page(to_html(found))
    assert page.scripts == 1  # the one that sorts
    assert page.words.count(EVIL) >= 8
