"""What the site takes from the code when it is built: tables of options, drawings, pictures of the demos, notebooks."""

import re
import sys
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))  # the site is that of this checkout

OPTIONS = re.compile(r"<!-- (own )?options: ([\w.]+) -->")
DEMO = re.compile(r"\]\((?:\.\./)+demos/(\w+\.png)\)")
DRAWING = re.compile(r'<img alt="([^"]*)" src="[./]*pictures/(\w+)\.svg"\s*/?>')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures of demos/ and the notebooks, which are stored elsewhere or excluded, to the site."""
    for path in sorted(DOCS.parent.glob("demos/*.png")):
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fill in tables of options; pictures of demos are looked for in pictures/."""
    markdown = OPTIONS.sub(lambda match: options_table(match[2], own=bool(match[1])), markdown)
    up = "../" * page.file.src_uri.count("/")
    return DEMO.sub(lambda match: f"]({up}pictures/{match[1]})", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Put drawings into the page itself, where they take the colours of the light or the dark theme."""
    return DRAWING.sub(lambda match: _inline(match[2], match[1]), html)


def options_table(name: str, *, own: bool = False) -> str:
    """The options of a class, such as s2wrap.options.Options, as a table; with `own` without those it inherits."""
    module, _, kind = name.rpartition(".")
    options = getattr(import_module(module), kind)
    inherited = {field.name for base in options.__bases__ if is_dataclass(base) for field in fields(base)}
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for field in fields(options):
        if own and field.name in inherited:
            continue
        hint, text = get_args(field.type)[:2]
        default = "" if field.default is MISSING else f"`{field.default!r}`".replace("|", "\\|")
        rows.append(f"| `{field.name}` | {default} | {_sentence(text)}{_words(hint)} |")
    return "\n".join(rows)


def _sentence(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _words(hint: Any) -> str:
    """The words that an option takes, as a sentence; nothing for other types."""
    from s2wrap.options import option_words

    words = [word for word in option_words(hint) if isinstance(word, str)]
    return f" One of {', '.join(f'`{word!r}`' for word in words)}." if words else ""


def _inline(name: str, title: str) -> str:
    svg = (DOCS / "pages" / "pictures" / f"{name}.svg").read_text()
    return svg.replace(' class="s2"', f' class="s2 drawing" role="img" aria-label="{title}"', 1)
