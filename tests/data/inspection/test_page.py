"""The page of an inspection: escaped, self-contained, and drawn by a real browser on a wide and a narrow screen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import cli
from data.inspection.charts import charts
from data.inspection.options import InspectionOptions
from data.inspection.page import page
from data.inspection.prepared import inspect_prepared
from data.inspection.results import Inspection
from tests.data.inspection.conftest import Toy
from tests.pages import PHONE, QUIET, Elements, chromium


@pytest.fixture(scope="module")
def found(toy: Toy) -> Inspection:
    return inspect_prepared(toy.path, InspectionOptions(max_length=7))


@pytest.fixture(scope="module")
def written(found: Inspection) -> str:
    return page(found)


def test_names_are_shown_and_not_obeyed(written: str, found: Inspection) -> None:
    assert "alert('x')" not in written
    assert "<title>toy &lt;script&gt;" in written
    elements = Elements(written)
    assert len(elements.scripts) == 1
    figures = re.search(r"const figures = (\{.*\});", elements.scripts[0])
    assert figures
    assert not set("<>&'") & set(figures[1])
    # Plotly obeys some markup in text: in its JSON a name is text twice over.
    labels = json.loads(figures[1])["coverage"]["layout"]["yaxis"]["ticktext"]
    assert "<b>&lt;script&gt;alert(&#x27;x&#x27;)&lt;/s…</b> train" in labels


def test_the_page_needs_nothing_else(written: str) -> None:
    loading = ("src", "srcset", "data", "poster", "action")
    for tag, attributes in Elements(written).found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert not set(loading) & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    styles = written[written.index("<style>") : written.index("</style>")]
    assert "url(" not in styles
    assert "@import" not in styles


def test_the_page_can_be_found_ones_way_around_in(written: str) -> None:
    elements = Elements(written).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    assert len(ids) == len(set(ids))
    assert len(links) == 13
    assert {str(link).removeprefix("#") for link in links} <= set(ids)
    assert ("html", {"lang": "en"}) in elements
    viewport = [attributes for tag, attributes in elements if attributes.get("name") == "viewport"]
    assert viewport[0]["content"] == "width=device-width, initial-scale=1"
    drawn = [attributes for _, attributes in elements if attributes.get("class") == "chart"]
    assert len(drawn) == written.count("<figcaption>") == 4
    assert all(attributes["role"] == "img" and len(attributes["aria-label"] or "") > 40 for attributes in drawn)
    assert "@media print" in written


def test_charts_show_the_figures(found: Inspection) -> None:
    drawn = {chart.section: chart for chart in charts(found)}
    assert list(drawn) == ["days", "coverage", "tables", "histories"]
    bars = [trace for trace in drawn["days"].figure["data"] if trace["type"] == "bar"]
    assert [list(bar["y"]) for bar in bars] == [[day.rows for day in split.days] for split in found.splits]
    unknown = next(trace for trace in drawn["coverage"].figure["data"] if trace["name"] == "unknown")
    coverage = found.splits[0].sparse["item"]
    assert unknown["x"][0] == pytest.approx(coverage.unknown / coverage.total)
    view = drawn["histories"].figure["data"][0]
    lengths = found.splits[0].histories["view"]
    for length, y in zip(view["x"], view["y"], strict=True):
        assert y == pytest.approx(lengths.share_above(length - 1))
    assert "dash" in str(drawn["histories"].figure["layout"]["shapes"])


def test_a_sample_says_so(toy: Toy) -> None:
    assert "192 of 940 rows were read" in page(inspect_prepared(toy.path, InspectionOptions(rows=64)))


def test_a_browser_draws_it(toy: Toy, tmp_path: Path) -> None:
    program = chromium()
    from playwright.sync_api import sync_playwright

    file = tmp_path / "page.html"
    assert cli.run(["inspect", str(toy.path), f"--html={file}", "--max_length=7"]) == 0
    problems: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        for width in (1280, PHONE):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.on("console", lambda message: problems.append(message.text))
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.on("dialog", lambda dialog: problems.append(dialog.message))
            tab.on("request", lambda request: requests.append(request.url))
            tab.goto(file.as_uri())
            tab.locator(".chart").nth(3).locator("svg.main-svg").first.wait_for()
            for chart in tab.locator(".chart").all():
                assert chart.locator("svg.main-svg").count() >= 1
                box, svg = chart.bounding_box(), chart.locator("svg.main-svg").first.bounding_box()
                assert box is not None
                assert svg is not None
                assert svg["width"] == pytest.approx(box["width"], abs=2)
            assert tab.locator(".chart path.js-line, .chart .bars path").count() > 20
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.locator("tbody th", has_text="<script>").count() == 1
            tab.screenshot(path=tmp_path / f"page-{width}.png", full_page=True)
            assert (tmp_path / f"page-{width}.png").stat().st_size > 20_000
        browser.close()
    assert not problems
    assert set(requests) == {file.as_uri()}
