"""Small HTML tables, for objects that a notebook shows."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as HTML, without styles of its own; every text is escaped.

    >>> html_table("one <scale>", ["image"], [["224×224"]])
    '<table><caption>one &lt;scale&gt;</caption><tr><th>image</th></tr><tr><td>224×224</td></tr></table>'
    """
    lines = [f"<tr>{_cells('th', header)}</tr>"] if header else []
    lines += [f"<tr>{_cells('td', row)}</tr>" for row in rows]
    return f"<table><caption>{escape(caption)}</caption>{''.join(lines)}</table>"


def _cells(tag: str, texts: Iterable[object]) -> str:
    return "".join(f"<{tag}>{escape(str(text))}</{tag}>" for text in texts)
