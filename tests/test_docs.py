import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pages
import pytest
from PIL import Image

from s2wrap.backbones import registry

DOCS = pages.ROOT / "docs"
PAGES = sorted((DOCS / "pages").rglob("*.md"))
SERVED = DOCS / "pages" / "how-to" / "serve.md"  # asks a server, as tests/test_serve.py does
RUN = [path for path in PAGES if "```python" in path.read_text() and path != SERVED]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
EXTRAS = {"how-to/integrations.md": "captum dask datasets lightning peft pytorch_grad_cam segmentation_models_pytorch"}
"""What the blocks of a page import, and the dev extra has not: without it the page is skipped."""
NEEDS_SAMPLES = pytest.mark.usefixtures("has_samples")


def page_name(path):
    return str(path.relative_to(DOCS)).removeprefix("pages/")


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """A working folder with what the pages name: photo.jpg, photos/ and textile/ with two classes."""
    random = np.random.default_rng(0)
    names = ["photo.jpg", *(f"photos/{i}.jpg" for i in range(4))]
    for name in names + [f"textile/{kind}/{i}.jpg" for kind in "ab" for i in range(6)]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((640, 480) if name == "photo.jpg" else (160, 120), Image.Resampling.BICUBIC).save(path)
    (tmp_path / "demos").symlink_to(pages.ROOT / "demos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "FAMILIES", dict(registry.FAMILIES))  # a page adds one


@NEEDS_SAMPLES
@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("path", RUN, ids=page_name)
def test_python_blocks_of_a_page_run_and_print_what_they_say(path):
    for package in EXTRAS.get(page_name(path), "").split():
        pytest.importorskip(package, reason="needs the [integrations] extra")
    namespace = {"__name__": "page"}
    compared = 0
    for kind, block in pages.runnable_blocks(path.read_text()):
        if kind == "python":
            compared += pages.run_block(block, namespace, page_name(path))
            continue
        for line in pages.shell_lines(f"```sh\n{block}```"):
            pages.run_command(line)
    assert compared


@NEEDS_SAMPLES
@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=page_name)
def test_cells_of_a_notebook_run_and_print_what_they_say(path):
    import matplotlib

    matplotlib.use("Agg")
    notebook = json.loads(path.read_text())
    namespace = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "strip the outputs"
            pages.run_block("".join(cell["source"]), namespace, path.name)
    assert notebook["nbformat"] == 4


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_commands_and_files_that_a_page_names_exist(path):
    text = path.read_text()
    for line in pages.shell_lines(text):
        if line.startswith("s2wrap "):
            pages.commands_exist(line)
    missing = [name for name in pages.named_files(text) if not (pages.ROOT / name).exists()]
    assert not missing


def test_the_page_of_the_command_line_names_every_command():
    from s2wrap.cli import COMMANDS

    text = (DOCS / "pages" / "how-to" / "command-line.md").read_text()
    assert set(re.findall(r"^\| `s2wrap (\w+)` \|", text, re.MULTILINE)) == set(COMMANDS)


def test_drawings_are_those_of_their_script():
    sys.path.insert(0, str(DOCS))
    try:
        import drawings
    finally:
        sys.path.remove(str(DOCS))
    assert {path.stem for path in drawings.PICTURES.glob("*.svg")} == set(drawings.DRAWINGS)
    for name, draw in drawings.DRAWINGS.items():
        assert (drawings.PICTURES / f"{name}.svg").read_text() == str(draw())


class Links(HTMLParser):
    """The links, pictures and scripts of a page, and the ids that links can lead to."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.ids, self.loaded = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and attributes.get("href"):
            self.targets.add(attributes["href"])
        elif tag in ("img", "script", "iframe") and attributes.get("src"):
            self.loaded.add(attributes["src"])
        elif tag == "link" and attributes.get("rel") == "stylesheet":
            self.loaded.add(attributes["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", DOCS / "mkdocs.yml", "-d", folder]
    built = subprocess.run(command, capture_output=True, text=True, cwd=pages.ROOT)
    assert built.returncode == 0, built.stderr  # --strict: 1 where there was a warning
    return folder


def test_the_site_builds_without_a_warning_and_every_link_leads_somewhere(site):
    parsed = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    assert len(parsed) > len(PAGES)
    for path, links in parsed.items():
        if path.name == "404.html":
            continue
        for target in links.targets | links.loaded:
            address, _, anchor = target.partition("#")
            if re.match(r"\w+:", address):
                continue
            other = (path.parent / address).resolve() if address else path
            other = other / "index.html" if other.is_dir() else other
            assert other.exists(), (path, target)
            if anchor and other.suffix == ".html" and anchor != "__comments":
                assert anchor in parsed[other].ids, (path, target)


def test_the_site_loads_nothing_from_other_servers(site):
    loaded = {target for path in site.rglob("*.html") for target in Links(path.read_text()).loaded}
    assert not [target for target in loaded if "//" in target]


def test_the_tables_of_options_have_every_option_with_its_help(site):
    from html import unescape

    from s2wrap.options import BackboneOptions, LoadOptions, Options, option_help

    text = unescape(re.sub(r"<[^>]+>", "", (site / "how-to" / "options" / "index.html").read_text()))
    for kind in (Options, BackboneOptions, LoadOptions):
        for name, sentence in option_help(kind).items():
            assert name in text
            assert sentence in text


def test_every_public_name_is_in_the_reference(site):
    import s2wrap
    import s2wrap.compare
    import s2wrap.export

    text = "".join(path.read_text() for path in (site / "reference").rglob("index.html"))
    for module in (s2wrap, s2wrap.export, s2wrap.compare):
        for name in module.__all__:
            assert f"{module.__name__}.{name}" in text, name


def test_the_zoo_page_counts_what_the_table_has():
    import csv
    from collections import Counter

    with (pages.ROOT / "s2wrap" / "zoo.csv").open() as file:
        counts = Counter((row["library"], row["result"]) for row in csv.DictReader(file))
    text = (DOCS / "pages" / "benchmarks" / "zoo.md").read_text()
    for library in ("timm", "open_clip", "transformers", "torchvision"):
        of_library = [counts[library, result] for result in ("equal", "refused", "wrong")]
        assert f"| {library} | {sum(of_library)} | {' | '.join(map(str, of_library))} |" in text


def test_a_comment_that_says_something_else_than_the_code_is_noticed():
    for block in ("1 + 1  # 3", "print('a')  # b", "0.5  # about 0.7", "import torch\ntorch.zeros(2).shape  # (3,)"):
        with pytest.raises(AssertionError):
            pages.run_block(block, {}, "page.md")
    assert pages.run_block("1 + 1  # 2\nprint(1, 2)  # 1 2\n0.65  # about 0.7\n3  # a remark", {}, "page.md") == 3
    with pytest.raises(AssertionError):
        pages.commands_exist("s2wrap features photos/ --no-such-flag")
