"""docs/results: its tables and sentences are those of its results.json."""

from __future__ import annotations

import shlex

from kunlun.experiments.findings import findings
from kunlun.experiments.results import MatrixResult
from kunlun.experiments.table import markdown
from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "results"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_ablation_is_the_one_that_was_run() -> None:
    result = MatrixResult.load(FOLDER / "small" / "results.json")
    table = (FOLDER / "small" / "table.md").read_text(encoding="utf-8")
    assert markdown(result) == table
    assert findings(result).answer in " ".join(PAGE.split())
    assert shlex.join(["python", *result.command]) in PAGE
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert len(rows) == 8
    assert all(row in table for row in rows)


def test_what_the_page_says_is_told_apart_is() -> None:
    result = MatrixResult.load(FOLDER / "small" / "results.json")
    clear = {v.name for v in result.variants if "ne" in v.delta_percent and v.delta_percent["ne"].is_clear}
    ahead = {"interformer", "wukong", "dien", "dcnv2", "dlrm", "logistic_regression"}
    assert clear == ahead | {"no_gdpa", "drop_gdpa", "drop_event_types"}
