"""docs/results: its tables and sentences are those of its results.json."""

from __future__ import annotations

import shlex

import pytest

from kunlun.experiments.findings import findings
from kunlun.experiments.results import MatrixResult
from kunlun.experiments.table import markdown
from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "results"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
BASELINES = {"interformer", "wukong", "din", "hstu", "dien", "dcnv2", "dlrm", "logistic_regression"}


def result_of(name: str) -> MatrixResult:
    return MatrixResult.load(FOLDER / name / "results.json")


def section(name: str) -> str:
    """What the page says between the link to this report and the next."""
    _, _, rest = PAGE.partition(f"[report]({name}/report.html)")
    return rest.partition("[report](")[0]


def worse(result: MatrixResult) -> set[str]:
    """The variants whose NE is told apart from full's; fails where one of them is better."""
    found = {v.name: v.delta_percent["ne"] for v in result.variants if "ne" in v.delta_percent}
    clear = {name for name, change in found.items() if change.is_clear}
    assert all(found[name].mean > 0 for name in clear)
    return clear


@pytest.mark.parametrize("name", ["small"])
def test_the_page_has_what_was_run(name: str) -> None:
    result, page = result_of(name), section(name)
    table = (FOLDER / name / "table.md").read_text(encoding="utf-8")
    assert markdown(result) == table
    assert findings(result).answer in " ".join(page.split())
    assert shlex.join(["python", *result.command]) in page
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| variant ")]
    assert len(rows) > 10
    assert all(row in table for row in rows)


def test_what_the_page_says_of_small() -> None:
    result, page = result_of("small"), section("small")
    assert worse(result) == BASELINES | {"no_gdpa", "drop_gdpa", "drop_attention", "drop_hsp", "drop_event_types"}
    ratios = [result.variant(name).ratio["flops"] for name in BASELINES - {"logistic_regression"}]
    assert 0.5 <= min(ratios) <= max(ratios) <= 1.2
    for name, percent in (("no_compskip", "12.5 %"), ("no_event_personalization", "27.6 %")):
        assert f"{100 * (1 - 1 / result.variant(name).ratio['flops']):.1f} %" == percent
        assert percent in page
        pairs = zip(result.variant(name).cells, result.variant("kunlun").cells, strict=True)
        assert all(without.metrics["ne"] < full.metrics["ne"] for without, full in pairs)
    fall = {v.name: [cell.curve[-2].ne - cell.curve[-1].ne for cell in v.cells] for v in result.variants}
    assert all(0.01 <= last <= 0.06 for name in ("interformer", "din", "no_gdpa") for last in fall[name])
    assert max(fall["kunlun"]) <= 0.013
    for name in ("no_hsp", "no_rote", "drop_wukong"):
        assert result.variant(name).delta["ne"].mean > 0
