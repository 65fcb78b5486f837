"""docs/results: its tables and sentences are those of its results.json."""

from __future__ import annotations

import itertools
import shlex

import pytest

from kunlun.experiments.findings import findings
from kunlun.experiments.results import CellResult, MatrixResult, ScalingResult, VariantResult
from kunlun.experiments.table import markdown
from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "results"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
BASELINES = {"interformer", "wukong", "din", "hstu", "dien", "dcnv2", "dlrm", "logistic_regression"}


def result_of(name: str) -> MatrixResult:
    return MatrixResult.load(FOLDER / name / "results.json")


def law() -> ScalingResult:
    return ScalingResult.load(FOLDER / "scaling" / "results.json")


def section(name: str) -> str:
    """What the page says between the link to this report and the next."""
    _, _, rest = PAGE.partition(f"[report]({name}/report.html)")
    return rest.partition("[report](")[0]


def told_apart(result: MatrixResult) -> tuple[set[str], set[str]]:
    """The variants whose NE is worse than full's, and those whose NE is better, beyond the interval."""
    clear = {v.name: v.delta_percent["ne"].mean for v in result.variants if v.name != "kunlun" and is_clear(v)}
    return {name for name, mean in clear.items() if mean > 0}, {name for name, mean in clear.items() if mean < 0}


def is_clear(variant: VariantResult) -> bool:
    return variant.delta_percent["ne"].is_clear


def saved(result: MatrixResult, variant: str) -> float:
    """Percent of the FLOPs that the component saves which ``variant`` is without."""
    return 100 * (1 - 1 / result.variant(variant).ratio["flops"])


@pytest.mark.parametrize("name", ["small", "userbehavior", "scaling"])
def test_the_page_has_what_was_run(name: str) -> None:
    result, page = law() if name == "scaling" else result_of(name), section(name)
    table = (FOLDER / name / "table.md").read_text(encoding="utf-8")
    assert markdown(result) == table
    assert findings(result).answer in " ".join(page.split())
    assert shlex.join(["python", *result.command]) in page
    rows = [
        line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| variant", "| model"))
    ]
    assert len(rows) > (2 if name == "scaling" else 10)
    assert all(row in table for row in rows)


def test_what_the_page_says_of_small() -> None:
    result, page = result_of("small"), section("small")
    worse, better = told_apart(result)
    assert worse == BASELINES | {"no_gdpa", "drop_gdpa", "drop_attention", "drop_hsp", "drop_event_types"}
    assert not better
    ratios = [result.variant(name).ratio["flops"] for name in BASELINES - {"logistic_regression"}]
    assert 0.5 <= min(ratios) <= max(ratios) <= 1.2
    for name, percent in (("no_compskip", "12.5 %"), ("no_event_personalization", "27.6 %")):
        assert f"{saved(result, name):.1f} %" == percent
        assert percent in page
        pairs = zip(result.variant(name).cells, result.variant("kunlun").cells, strict=True)
        assert all(without.metrics["ne"] < full.metrics["ne"] for without, full in pairs)
    fall = {v.name: [cell.curve[-2].ne - cell.curve[-1].ne for cell in v.cells] for v in result.variants}
    assert all(0.01 <= last <= 0.06 for name in ("interformer", "din", "no_gdpa") for last in fall[name])
    assert max(fall["kunlun"]) <= 0.013
    for name in ("no_hsp", "no_rote", "drop_wukong"):
        assert result.variant(name).delta["ne"].mean > 0


def test_what_the_page_says_of_userbehavior() -> None:
    result = result_of("userbehavior")
    worse, better = told_apart(result)
    assert worse == BASELINES | {"no_gdpa", "drop_gdpa", "drop_hsp"}
    assert better == {"drop_event_types"}
    assert round(result.variant("drop_hsp").delta_percent["ne"].mean) == 13
    for name, percent in (("no_window", 3), ("no_compskip", 17), ("no_event_personalization", 27)):
        assert round(saved(result, name)) == percent
    for name in ("no_window", "no_compskip"):
        change = result.variant(name).delta_percent["ne"]
        assert -1.2 < change.low < 0 < change.high < 1.2
    assert all(cell.metrics["ne"] > 0.98 for cell in result.variant("dien").cells)
    assert sum(cell.metrics["ne"] > 0.99 for cell in result.variant("wukong").cells) == 2
    # The trees of the README, on the same test rows.
    assert all(variant.metrics["ne"].mean > 0.53 for variant in result.variants)


def test_what_the_page_says_of_scaling() -> None:
    result, page = law(), section("scaling")
    assert f"{len(result.cells())} trainings" in page
    ladders = {ladder.model: ladder for ladder in result.ladders}
    lowest, highest = (f(p.flops for v in result.ladders for p in v.points) for f in (min, max))
    assert (f"{lowest / 1e3:.0f} kFLOPs", f"{highest / 1e6:.1f} MFLOPs") == ("154 kFLOPs", "18.9 MFLOPs")
    means = {name: [mean_ne(point.cells) for point in ladder.points] for name, ladder in ladders.items()}
    ahead = [other - own for own, other in zip(means["kunlun"], means["interformer"], strict=True)]
    assert all(own < other for own, other in zip(means["kunlun"], means["wukong"], strict=True))
    assert f"{min(ahead):.2f} to {max(ahead):.2f} below InterFormer's" in page
    assert f"its η is {result.ratios['kunlun'].mean:.1f} times InterFormer's as estimated" in " ".join(page.split())
    assert not any(ladder.log.coefficients["eta"].is_clear for ladder in result.ladders)
    gains = [before - after for before, after in itertools.pairwise(means["kunlun"])]
    assert gains[0] > sum(gains[1:])
    assert round(means["interformer"][-1], 2) == 0.80
    assert round(result_of("small").variant("interformer").metrics["ne"].mean, 2) == 0.70
    first = ladders["kunlun"].points[0]
    (trial,) = (t for t in result.search if (t.model, t.size, t.tried) == ("kunlun", "1", first.chosen))
    assert round(trial.cell.metrics["ne"], 2) == 0.67
    assert [round(cell.metrics["ne"], 2) for cell in first.cells] == [0.76, 0.80]
    for ladder in result.ladders:
        rates = [point.chosen["training.optimizer.lr"] for point in ladder.points]
        assert (rates[0], *rates[2:]) == (0.01, 0.003, 0.003)
    spread = [abs(p.cells[0].metrics["ne"] - p.cells[1].metrics["ne"]) for v in result.ladders for p in v.points]
    assert f"seeds differ by up to {max(spread):.2f} in NE" in " ".join(page.split())


def mean_ne(cells: list[CellResult]) -> float:
    return sum(cell.metrics["ne"] for cell in cells) / len(cells)
