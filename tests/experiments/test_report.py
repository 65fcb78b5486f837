"""The report: self-contained, escaped, and drawn by a real browser on a wide screen, on a phone and on paper."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from kunlun.experiments import numbers
from kunlun.experiments.matrix_charts import components, cost_bars, curves, forest, scatters
from kunlun.experiments.report import report, write_report
from kunlun.experiments.results import CellResult, MatrixResult, ScalingResult
from kunlun.experiments.scaling_charts import scaling_plot
from tests.experiments.support import HOSTILE, cell, failed, matrix, scaling, variant
from tests.pages import PHONE, QUIET, Elements, chromium

CSS = Path(__file__).resolve().parents[2] / "kunlun" / "experiments" / "report.css"


@pytest.fixture(scope="module")
def written() -> str:
    return report([matrix(), scaling()])


def test_the_report_comes_from_the_json_alone(tmp_path: Path, written: str) -> None:
    for name, result in (("a", matrix()), ("b", scaling())):
        (tmp_path / name).write_text(result.to_json())
    write_report([MatrixResult.load(tmp_path / "a"), ScalingResult.load(tmp_path / "b")], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == written


def test_names_are_shown_and_not_obeyed(written: str) -> None:
    found = Elements(written)
    assert not [tag for tag, _ in found.found if tag in ("b", "script")]
    assert found.text.count(HOSTILE) >= 5


def test_the_page_needs_nothing_else(written: str) -> None:
    for tag, attributes in Elements(written).found:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img", "script")
        assert not {"src", "srcset", "data", "poster", "action", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in written
    assert "@import" not in written


def test_the_page_can_be_found_ones_way_around_in(written: str) -> None:
    elements = Elements(written).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = [a[key] for _, a in elements for key in ("href", "aria-labelledby") if key in a]
    assert {str(reference).removeprefix("#") for reference in references} <= set(ids)
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    images = [attributes for _, attributes in elements if attributes.get("role") == "img"]
    assert len(images) > 20
    assert all(len(attributes["aria-label"] or "") > 20 for attributes in images)
    assert ("html", {"lang": "en"}) in elements


def test_a_large_matrix_is_a_small_file() -> None:
    large = matrix(seeds=5, more=8)
    assert len(large.variants) >= 24
    assert len(report([large]).encode()) < 1_000_000


def test_charts_show_the_figures() -> None:
    result = matrix()
    block = forest(result)[0]
    delta = {row.name: result.variant(row.name).delta_percent.get("ne") for row in block.rows}
    shown = {row.name: row for row in block.rows}
    for name, estimate in delta.items():
        if estimate is not None:
            assert (shown[name].tone != "unclear") == estimate.is_clear
            assert numbers.change(estimate) in shown[name].text
    known = [(estimate.mean, shown[name].middle) for name, estimate in delta.items() if estimate is not None]
    known.sort()
    assert [place for _, place in known] == sorted(place for _, place in known if place is not None)
    assert shown[HOSTILE].middle is None

    bars = next(chart for chart in cost_bars(result) if chart.title.startswith("Training speed"))
    qps = {v.name: v.efficiency["training"]["samples_per_second"] for v in result.variants if v.efficiency}
    assert {bar.name: bar.length for bar in bars.rows} == pytest.approx(
        {name: 100 * value / max(qps.values()) for name, value in qps.items()}, abs=0.01
    )
    parts = components(result)
    assert parts is not None
    assert parts.parts[0] == "GDPA"

    drawn, closer = scatters(result)
    assert {mark.title.split(":")[0] for series in closer.wide.series for mark in series.marks} == {
        v.name for v in result.variants if v.efficiency and v.family != "baseline"
    }
    places = {mark.title.split(":")[0]: mark for series in drawn.wide.series for mark in series.marks}
    assert set(places) == set(qps)
    assert places["dcnv2"].x < places["kunlun"].x < places["no_compskip"].x
    assert places["dcnv2"].y < places["kunlun"].y  # worse is higher, and y goes down
    assert set(drawn.untold[0]) == {name for name, mark in places.items() if not mark.label}


def test_curves_are_the_means_of_the_seeds() -> None:
    full = [cell(seed, 0.0) for seed in range(3)]
    other = [cell(seed, 0.01) for seed in range(3)]
    other[2] = replace(other[2], curve=[*other[2].curve[:5], replace(other[2].curve[5], ne=float("nan"))])
    result = replace(matrix(), variants=[variant("kunlun", full, full), variant("a", other, full)])
    ((_, [panel]),) = curves(result)
    line = re.findall(r"[\d.-]+ ([\d.-]+)", panel.series[1].line)
    assert len(line) == 5
    mean_first, mean_last = (sum(c.curve[i].ne for c in other) / 3 for i in (0, 4))
    tick_a, tick_b = panel.y_ticks[0], panel.y_ticks[-1]
    slope = (tick_b.at - tick_a.at) / (float(tick_b.label) - float(tick_a.label))
    assert float(line[4]) - float(line[0]) == pytest.approx(slope * (mean_last - mean_first), rel=0.02)


def test_the_oracle_is_the_floor_of_the_scaling_plot() -> None:
    result = scaling()
    plot = scaling_plot(result)
    assert plot is not None
    assert plot.floor is not None
    assert all(mark.y < plot.floor.at for series in plot.series for mark in series.marks)
    assert [len(series.marks) for series in plot.series] == [15, 15, 5]
    without = scaling_plot(replace(result, oracle=None))
    assert without is not None
    assert without.floor is None


EMPTY = CellResult(0, "missing")


@pytest.mark.parametrize(
    "result",
    [
        matrix(seeds=1),
        matrix(synthetic=False, measured=False),
        replace(matrix(), variants=[]),
        replace(matrix(), variants=[variant("kunlun", [cell(0, 0.0)], [], family="full")]),
        replace(matrix(), variants=[variant(name, [failed(0), EMPTY], []) for name in ("kunlun", "a")], notes=[]),
        scaling(sizes=2, seeds=1),
        replace(scaling(), ladders=[], ratios={}, oracle=None, device=None, versions={}),
    ],
    ids=["one seed", "bare", "no variant", "full alone", "all failed", "two sizes", "no ladder"],
)
def test_extremes_give_a_page(result: MatrixResult | ScalingResult) -> None:
    page = report([result])
    shown = Elements(page).text
    assert "How it was run" in shown
    assert not re.search(r"\b(nan|None|inf)\b", shown)


def test_no_result_at_all() -> None:
    assert "There are no results" in report([])


def contrast(one: str, other: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_have_contrast_in_light_and_dark() -> None:
    schemes = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        color = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for name in ("ink", "soft", "link"):
            assert contrast(color[name], color["page"]) >= 4.5, name
            assert contrast(color[name], color["card"]) >= 4.5, name
        for name in ("blue", "red", "green", "purple", "gold", "gray", "bar"):
            assert contrast(color[name], color["page"]) >= 3, name


def test_a_browser_draws_it(tmp_path: Path) -> None:
    program = chromium()
    from playwright.sync_api import sync_playwright

    file = tmp_path / "report.html"
    write_report([matrix(more=5), scaling()], file)
    problems: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        for width, scheme in ((1280, "light"), (PHONE, "dark")):
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
            tab.on("console", lambda message: problems.append(message.text))
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.on("request", lambda request: requests.append(request.url))
            tab.goto(file.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            for name in ("wide", "narrow"):
                assert tab.locator(f".plot.{name}").first.is_visible() == ((width == PHONE) == (name == "narrow"))
            for plot in tab.locator(".plot:visible > svg").all():
                box = plot.bounding_box()
                assert box is not None
                assert 60 < box["width"] <= width
            label = tab.locator("svg text.label:visible").first
            assert label.evaluate("e => getComputedStyle(e).fontSize") == "12px"
            dark = "rgb(20, 23, 26)"
            assert (tab.evaluate("getComputedStyle(document.body).backgroundColor") == dark) == (scheme == "dark")
        tab.set_viewport_size({"width": 695, "height": 900})  # A4 without its margins
        tab.emulate_media(media="print")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 695
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        browser.close()
    assert not problems
    assert set(requests) == {file.as_uri()}
