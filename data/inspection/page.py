"""An inspection as one HTML page: tables and charts, with all that they need inside, so that it works offline."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from data.inspection.charts import charts
from data.inspection.results import Inspection
from data.inspection.tables import rows_read, sections
from data.preparation import DataError

TEMPLATE = "page.html.j2"


def page(found: Inspection) -> str:
    """The whole page."""
    # The text of users' data is escaped in the template by autoescape, and in the charts' JSON by `tojson`.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    drawn = charts(found)
    return environment.get_template(TEMPLATE).render(
        found=found,
        read=rows_read(found),
        sections=sections(found),
        charts=drawn,
        figures={chart.section: chart.figure for chart in drawn},
        plotly=Markup(get_plotlyjs()),
    )


def write_page(found: Inspection, path: Path) -> None:
    """Write the page to ``path``; DataError: it cannot be written."""
    try:
        path.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise DataError(f"--html {path} cannot be written: {error.strerror}") from error
