"""An inspection as one HTML page: tables and charts, with all that they need inside, so that it works offline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from data.inspection.charts import Chart, charts
from data.inspection.results import Inspection
from data.inspection.tables import Section, rows_read, sections

TEMPLATE = "page.html.j2"


def page(found: Inspection, own: Sequence[Section] = (), drawn: Sequence[Chart] = ()) -> str:
    """The whole page; ``own`` sections come after the overview, and the charts ``drawn`` of them first."""
    # The text of users' data is escaped in the template by autoescape, and in the charts' JSON by `tojson`.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    drawn = [*drawn, *charts(found)]
    return environment.get_template(TEMPLATE).render(
        found=found,
        read=rows_read(found),
        sections=sections(found, own),
        charts=drawn,
        figures={chart.section: chart.figure for chart in drawn},
        plotly=Markup(get_plotlyjs()),
    )
