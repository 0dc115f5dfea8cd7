"""Write a comparison as one self-contained HTML page."""

import xml.etree.ElementTree as ElementTree
from importlib.resources import files

from s2wrap.compare.comparison import Comparison
from s2wrap.compare.labels import INK, PAPER
from s2wrap.compare.plots import image, plot, printable
from s2wrap.compare.score import LEVEL, RESAMPLES
from s2wrap.compare.table import cell, column_groups, facts_line, keys, not_measured

SVG = "{http://www.w3.org/2000/svg}"


def to_html(comparison: Comparison) -> str:
    """Return one self-contained HTML page: verdict, a table that can be sorted, plots, and how it was measured."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    template = environment.from_string((files("s2wrap") / "compare" / "report.html").read_text("utf-8"))
    rows, measures = comparison.rows, comparison.deciding or [None]
    svgs = {name or "costs": [_inline_svg(comparison, name, panel) for panel in ("cost", "time")] for name in measures}
    details = {name: [cell(row.details.get(name)) for row in rows] for name in keys(row.details for row in rows)}
    groups = [*column_groups(comparison), details]
    return template.render(
        comparison=comparison,
        title=f"{len(rows)} {'model' if len(rows) == 1 else 'models'} compared",
        under=facts_line(comparison),
        plots={name: [Markup(text) for text in texts if text] for name, texts in svgs.items()},
        columns={heading: cells for group in groups for heading, cells in group.items()},
        front=any(row.on_front for row in rows),
        timed=any("median_ms" in figures for row in rows for figures in row.timings.values()),
        missing=not_measured(rows),
        level=f"{100 * LEVEL:g} %",
        resamples=f"{RESAMPLES:,}",
    )


def _inline_svg(comparison: Comparison, measure: str | None, panel: str) -> str:
    """Return a panel as SVG for a page, with unique ids and the page's colours; "" where the panel has no figures."""
    figure = plot(comparison, measure, (panel,))
    if not figure.axes:
        return ""
    root = ElementTree.fromstring(image(figure, format="svg", facecolor="none", metadata={"Date": None}))
    prefix = f"plot-{panel}-{comparison.measures.index(measure) if measure else 0}-"
    for metadata in root.findall(f"{SVG}metadata"):
        root.remove(metadata)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        attributes = {name.rpartition("}")[2]: text for name, text in element.attrib.items()}
        for name, text in attributes.items():
            if name == "id":
                attributes[name] = prefix + text
            elif name == "href":
                attributes[name] = f"#{prefix}{text[1:]}"
            elif name in ("style", "clip-path"):
                text = text.replace("url(#", f"url(#{prefix}")
                attributes[name] = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
        element.attrib.clear()
        element.attrib.update(attributes)
    title = f"{measure or 'costs'}: {figure.axes[0].get_xlabel()}"
    size = {name: root.attrib.pop(name) for name in ("width", "height")}
    root.attrib |= {"role": "img", "aria-label": title, "style": f"max-width: {size['width']}"}
    return ElementTree.tostring(root, encoding="unicode")
