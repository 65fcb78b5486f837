"""`inspect synthetic`: its figures are those of the world; a browser draws its page on a wide and a narrow screen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import cli
from data.inspection.tables import Section
from data.synthetic import SyntheticWorld
from data.synthetic_inspection import (
    WorldInspection,
    calibration_curve,
    inspect_world,
    world_page,
    world_sections,
    world_text,
)
from data.synthetic_options import SyntheticInspectionOptions
from data.synthetic_oracle import summarise
from data.synthetic_presets import PRESETS
from kunlun.configuration import ConfigError
from tests.pages import PHONE, QUIET, Elements, chromium


@pytest.fixture(scope="module")
def inspected() -> WorldInspection:
    return inspect_world(SyntheticInspectionOptions(preset="tiny", rows=3_000))


def section(inspected: WorldInspection, key: str) -> Section:
    return next(s for s in world_sections(inspected) if s.key == key)


def test_figures_are_those_of_the_rows_of_the_world(inspected: WorldInspection) -> None:
    assert [split.read for split in inspected.found.splits] == [3_000] * 3
    assert [split.rows for split in inspected.found.splits] == [65_536, 8_192, 8_192]
    assert inspected.p.shape == inspected.labels.shape == (9_000,)
    positives = sum(split.positives[0] for split in inspected.found.splits)
    assert positives == int(inspected.labels.sum())
    spread = float(np.sqrt((inspected.p * (1 - inspected.p)).sum()))
    assert abs(positives - float(inspected.p.sum())) < 4 * spread
    everything = inspect_world(SyntheticInspectionOptions(preset="tiny", rows=8_192))
    world = SyntheticWorld(PRESETS["tiny"])
    valid = world.split("valid")
    p = world.oracle(torch.arange(valid.start, valid.stop))[:, 0].numpy()
    assert np.array_equal(everything.p[8_192:16_384], p)
    lengths = world.batch(torch.arange(valid.start, valid.stop)).events["click"]["item"].lengths()
    assert everything.found.splits[1].histories["click"].mean == pytest.approx(float(lengths.double().mean()))


def test_what_the_oracle_knows_comes_after_the_overview(inspected: WorldInspection) -> None:
    keys = [s.key for s in world_sections(inspected)]
    assert keys[:5] == ["overview", "oracle", "gains", "probability", "calibration"]
    assert {"splits", "days", "coverage", "tables", "dense", "histories", "provenance"} <= set(keys)
    summary = summarise(SyntheticWorld(PRESETS["tiny"]), max_rows=3_000)
    assert inspected.oracle == summary
    rows = section(inspected, "oracle").rows
    assert [row[:3] for row in rows] == [
        ("click", "NE", f"{summary.nes[0].ne:.4f}"),
        ("click", "AUC", f"{summary.aucs[0].auc:.4f}"),
    ]
    gains = section(inspected, "gains").rows
    assert [row[:2] for row in gains][:2] == [("recency", "0.7"), ("motif", "0.4")]


def test_the_text_has_every_figure_and_fits_the_terminal(inspected: WorldInspection) -> None:
    text = world_text(inspected)
    assert max(map(len, text.splitlines())) <= 100
    assert f"{inspected.oracle.nes[0].ne:.4f}" in text
    assert "event_types" in text
    assert "9,000 of 81,920 rows were read" in text


def test_labels_lie_on_the_curve_of_their_probabilities(inspected: WorldInspection) -> None:
    rows, mean, rate, error = calibration_curve(inspected.p, inspected.labels)
    assert rows.sum() == 9_000
    assert np.all(np.diff(mean) > 0)
    assert float((rows * rate).sum()) == pytest.approx(float(inspected.labels.sum()))
    assert float(np.abs((rate - mean) / error).max()) < 4
    assert 0.4 < float(((rate - mean) / error).std()) < 1.6
    assert len(calibration_curve(np.array([0.5]), np.array([1.0]))[0]) == 1


def test_changed_strengths_and_rates_are_those_of_the_options() -> None:
    options = SyntheticInspectionOptions(
        preset="tiny", strengths={"recency": 0.0, "memory": 1.0}, ctr=0.1, label_noise=0.2, rows=500
    )
    found = inspect_world(options)
    shares = {gain.part: gain.share for gain in found.oracle.gains}
    assert abs(shares["recency"]) < 1e-6
    assert shares["memory"] > 0.1
    assert found.rate == 0.1
    assert ("recency", "0") in [row[:2] for row in section(found, "gains").rows]


def test_a_world_of_billions_of_rows_is_looked_at_in_a_few() -> None:
    found = inspect_world(SyntheticInspectionOptions(preset="massive", rows=64))
    assert found.found.splits[0].rows == 70_000_000_000
    assert found.found.read == 192
    assert "70,000,000,000" in world_text(found)
    assert "Plotly" in world_page(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "smal"], "expected one of tiny, small, small_5pct, large, massive"),
        (["--rows", "0"], "rows must be at least 1, not 0"),
        (["--html", "page.txt"], "html must be the name of a file that ends in .html"),
        (["--html", "/nowhere/page.html"], "no such directory: /nowhere"),
        (["--ctr", "2"], r"ctr must lie in \[0.001, 0.999\], got 2"),
        (["--strengths", "{recency: 11}"], r"strengths.recency must lie in \[0, 10\], got 11"),
        (["--strengths", "{recenc: 1}"], "strengths has no part 'recenc'; did you mean 'recency'"),
        (["--colour", "red"], "unknown key"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.run(["inspect", "synthetic", *options])


def test_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["inspect", "synthetic", "--help"]) == 0
    shown = capsys.readouterr().out
    for option in ("--preset", "--strengths", "--ctr", "--label_noise", "--html", "--rows"):
        assert option in shown


def test_the_page_names_its_charts_and_its_sections(inspected: WorldInspection) -> None:
    elements = Elements(world_page(inspected)).found
    ids = {attributes["id"] for _, attributes in elements if "id" in attributes}
    links = {str(attributes["href"]).removeprefix("#") for tag, attributes in elements if tag == "a"}
    assert {"oracle", "gains", "probability", "calibration"} <= links <= ids
    drawn = [attributes for _, attributes in elements if attributes.get("class") == "chart"]
    assert len(drawn) == 7
    assert all(len(attributes["aria-label"] or "") > 40 for attributes in drawn)


def test_a_browser_draws_it(tmp_path: Path) -> None:
    program = chromium()
    from playwright.sync_api import sync_playwright

    file = tmp_path / "page.html"
    assert cli.run(["inspect", "synthetic", "--preset=tiny", "--rows=2000", f"--html={file}"]) == 0
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        for width in (1280, PHONE):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.on("console", lambda message: problems.append(message.text))
            tab.on("pageerror", lambda error: problems.append(str(error)))
            tab.goto(file.as_uri())
            tab.locator(".chart").nth(6).locator("svg.main-svg").first.wait_for()
            for chart in tab.locator(".chart").all():
                assert chart.locator("svg.main-svg").count() >= 1
            assert tab.locator('[data-figure="gains"] .bars .point path').count() == 7
            assert tab.locator('[data-figure="calibration"] path.point').count() == 20
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert not problems
