"""Write a comparison as one self-contained HTML page."""

import re
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from s2wrap.compare.comparison import Comparison, unit_of
from s2wrap.compare.disagree import disagreements, thumbnail, two_best
from s2wrap.compare.plots import INK, PAPER, image, plot, printable
from s2wrap.compare.score import LEVEL, RESAMPLES
from s2wrap.compare.table import column_groups, facts_line, not_measured


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
    rows, measures = comparison.rows, comparison.deciding
    svgs = {name: [_inline_svg(comparison, name, panel) for panel in ("cost", "time")] for name in measures}
    return template.render(
        comparison=comparison,
        title=f"{len(rows)} {'model' if len(rows) == 1 else 'models'} compared",
        under=facts_line(comparison),
        plots={name: [Markup(text) for text in texts if text] for name, texts in svgs.items()},
        columns={heading: cells for group in column_groups(comparison) for heading, cells in group.items()},
        disagreements={name: _disagreements(comparison, name) for name in comparison.deciding},
        front=any(row.on_front for row in rows),
        timed=any("median_ms" in figures for row in rows for figures in row.timings.values()),
        missing=not_measured(rows),
        level=f"{100 * LEVEL:g} %",
        resamples=f"{RESAMPLES:,}",
    )


def _disagreements(comparison: Comparison, measure: str) -> list[dict[str, Any]]:
    """Return what the page says of each picture on which the two best models disagree most."""
    models, unit = two_best(comparison, measure), unit_of(measure)
    return [
        {
            "name": Path(each.picture).name,
            "source": thumbnail(each.picture),
            "figures": dict(zip(models, (unit.text(each.one), unit.text(each.other)), strict=True)),
        }
        for each in disagreements(comparison, measure, models)
    ]


def _inline_svg(comparison: Comparison, measure: str, panel: str) -> str:
    """Return a panel as SVG for a page, with unique ids and the page's colours; "" where the panel has no figures."""
    figure = plot(comparison, measure, (panel,))
    if not figure.axes:
        return ""
    text = image(figure, format="svg", facecolor="none", metadata={"Date": None}).decode()
    text = re.sub(
        r"<metadata>.*?</metadata>| xmlns(:xlink)?=\"[^\"]*\"", "", text[text.index("<svg") :], flags=re.DOTALL
    )
    prefix = f"plot-{panel}-{comparison.measures.index(measure)}-"
    text = re.sub(r"( id=\"| xlink:href=\"#|url\(#)", rf"\1{prefix}", text)
    text = text.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    title = escape(f"{measure}: {figure.axes[0].get_xlabel()}")
    size = rf'role="img" aria-label="{title}" style="max-width: \1"'
    return re.sub(r'width="([^"]*)" height="[^"]*"', lambda match: match.expand(size), text, count=1)
