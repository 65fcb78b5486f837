"""The tables say what results.json says, fit their place, and no name is obeyed."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from kunlun.experiments.findings import findings
from kunlun.experiments.grid import Grid
from kunlun.experiments.matrix_tables import matrix_tables
from kunlun.experiments.results import CellResult, MatrixResult, ScalingResult
from kunlun.experiments.scaling_tables import scaling_tables
from kunlun.experiments.statistics import Estimate, fit_log
from kunlun.experiments.table import WIDTH, markdown, terminal
from tests.experiments.support import HOSTILE, cell, failed, matrix, scaling, variant


def grids(result: MatrixResult | ScalingResult) -> dict[str, Grid]:
    made = matrix_tables(result) if isinstance(result, MatrixResult) else scaling_tables(result)
    return {grid.key: grid for grid in made}


def cells_of(grid: Grid, name: str) -> dict[str, str]:
    row = next(row for row in grid.rows if row.cells[0] == name)
    return dict(zip([column.title for column in grid.columns], row.cells, strict=True))


def number(shown: str) -> float:
    return float(re.sub(r"[×%,+ A-Za-z]", "", shown.split(" (")[0]).replace("−", "-"))


def test_the_numbers_are_those_of_the_json() -> None:
    result = matrix()
    made = grids(result)
    for row in result.variants:
        if "ne" not in row.metrics:
            continue
        quality = cells_of(made["quality"], row.name)
        assert number(quality["NE"]) == pytest.approx(row.metrics["ne"].mean, abs=5e-5)
        assert number(quality["AUC"]) == pytest.approx(row.metrics["auc"].mean, abs=5e-5)
        assert number(quality["of oracle's gain"]) == pytest.approx(100 * row.metrics["oracle_share"].mean, abs=0.05)
        if (delta := row.delta_percent.get("ne")) and delta.half_width:
            assert number(quality["Δ NE to full"]) == pytest.approx(delta.mean, abs=5e-3)
            ends = re.findall(r"[+−]?\d+\.\d+", quality["Δ NE to full"])[1:]
            assert [number(end) for end in ends] == pytest.approx([delta.low, delta.high], abs=5e-3)
            assert ("▲" in quality["Δ NE to full"]) == (delta.is_clear and delta.mean > 0)
        if row.efficiency:
            speed, size = cells_of(made["speed"], row.name), cells_of(made["size"], row.name)
            assert number(speed["MFU"]) == pytest.approx(100 * row.efficiency["training"]["mfu"], abs=0.05)
            assert 1e6 * number(size["FLOPs / sample"]) == pytest.approx(row.efficiency["flops_per_sample"], rel=5e-3)
            assert number(size["× full"]) == pytest.approx(row.ratio["peak_memory"], abs=5e-3)


def test_what_was_learnt_of_each_part_is_told_where_the_parts_are_known() -> None:
    result = matrix()
    learnt = grids(result)["learnt"]
    assert [column.title for column in learnt.columns] == ["variant", "recency", "motif"]
    for row in result.variants:
        if "ne" in row.metrics:
            shown = cells_of(learnt, row.name)
            for part in ("recency", "motif"):
                assert number(shown[part]) == pytest.approx(row.metrics[f"learnt/{part}"].mean, abs=5.1e-3)
    assert "learnt" not in grids(matrix(synthetic=False))


def test_the_reference_is_first_and_families_are_together() -> None:
    result = matrix()
    rows = grids(replace(result, variants=result.variants[::-1]))["quality"].rows
    assert rows[0].cells[0] == "kunlun"
    groups = [row.group for row in rows]
    assert len([g for g, before in zip(groups, ["", *groups], strict=False) if g != before]) == len(set(groups))


def test_what_nobody_has_leaves_no_column_behind() -> None:
    made = grids(matrix(synthetic=False, measured=False))
    assert "of oracle's gain" not in [column.title for column in made["quality"].columns]
    assert not {"size", "speed"} & set(made)
    assert "true probabilities" not in made["quality"].note


def test_failed_and_missing_runs_are_seen() -> None:
    made = grids(matrix())
    assert cells_of(made["quality"], "drop_rote")["seeds"] == "3 of 5; 2 failed"
    assert cells_of(made["quality"], "dien")["seeds"] == "0 of 5; 5 missing"
    failures = cells_of(made["failures"], "drop_rote")
    assert (failures["seeds"], failures["reason"]) == ("3, 4", "RuntimeError: CUDA out of memory")


def test_the_paper_stands_beside_ours_in_its_own_direction() -> None:
    rows = [row for row in grids(matrix())["published"].rows if row.group.startswith("no_compskip:")]
    flops = next(row.cells for row in rows if row.cells[0] == "FLOPs when added")
    assert flops[1:] == ("−43.1 %", "−39.8 %", "+66.0 %")  # 1 / 1.66 − 1


def test_words_of_the_results_win_over_ours() -> None:
    result = matrix()
    others = [replace(v, published="as they said") if v.name in ("no_window", "din") else v for v in result.variants]
    groups = [row.group for row in grids(replace(result, variants=others))["published"].rows]
    assert "no_window: as they said" in groups
    assert groups.count("din: as they said") == 1


@pytest.mark.parametrize("result", [matrix(more=6), matrix(seeds=1), scaling()], ids=["matrix", "one seed", "scaling"])
def test_the_terminal_is_wide_enough(result: MatrixResult | ScalingResult) -> None:
    lines = terminal(result).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not [line for line in lines if line != line.rstrip()]


def test_nothing_steers_the_terminal() -> None:
    reason = "error\x1b[2J\nsecond line"
    result = replace(matrix(), variants=[variant("kunlun", [failed(0, reason)], [], family="full")])
    assert "\x1b" not in terminal(result)
    assert "\x1b" not in "".join(line for line in terminal(result).splitlines())
    assert "second line" in terminal(result)


def test_markdown_tables_hold_together_and_names_are_text() -> None:
    for result in (matrix(), scaling()):
        text = markdown(result)
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            bars = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(bars) == 1
            assert bars.pop() <= 10
    assert "<b>" not in markdown(matrix()).replace("\\<b\\>", "")
    assert HOSTILE not in markdown(matrix())
    assert "**Δ NE to full**: change of NE" in markdown(matrix())


def test_what_full_saves_stands_against_the_margin() -> None:
    """The margin is NE that full may lose: what takes more compute without full's component may be better by that."""
    full = [cell(seed, 0.0) for seed in range(5)]
    result = matrix()
    no_compskip = variant("no_compskip", full, full, family="no", ratio={"flops": 1.66})

    def told(margin: float, delta: Estimate) -> list[str]:
        changed = replace(no_compskip, delta_percent={"ne": delta})
        groups = findings(replace(result, variants=[result.variants[0], changed], margin=margin)).groups
        return [str(item) for group in groups if group.title.startswith("Whether what saves") for item in group.items]

    better = Estimate(-0.3, -0.7, 0.1, 5)
    said = "no_compskip may be better than full by up to 0.70 %: "
    assert told(1.0, better) == [f"{said}full passes."]
    assert told(0.5, better) == [f"{said}not shown."]
    assert "by up to 0.00 %: full passes" in told(0.5, Estimate(2.0, 1.0, 3.0, 5))[0]
    assert told(1.0, Estimate(-0.3, None, None, 1)) == []


def test_the_table_says_what_mfu_is_against() -> None:
    assert "The peak that MFU is against: table: NVIDIA H100, bf16." in grids(matrix())["speed"].note


def test_one_seed_gives_no_interval_and_says_so() -> None:
    result = matrix(seeds=1)
    delta = cells_of(grids(result)["quality"], "drop_hsp")["Δ NE to full"]
    assert delta.endswith("% (one seed)")
    assert "▲" not in delta
    assert "rest on one seed" in findings(result).answer


def test_why_there_is_no_ratio_is_told() -> None:
    result = scaling()
    alone = replace(result, ratios={}, ladders=[replace(v, log=None) for v in result.ladders])
    assert "interformer has too few sizes that finished" in findings(alone).answer
    others = [v if v.model == "interformer" else replace(v, log=None) for v in result.ladders]
    assert "no other model has a fit" in findings(replace(result, ratios={}, ladders=others)).answer
    worse = fit_log([1e6, 1e7, 1e8], [0.8, 0.82, 0.81], base=1e6)
    others = [replace(v, log=worse) if v.model == "interformer" else v for v in result.ladders]
    assert "interformer does not improve" in findings(replace(result, ratios={}, ladders=others)).answer


def test_a_ratio_without_an_upper_end_is_told_as_such() -> None:
    result = replace(scaling(), ratios={"kunlun": Estimate(7.0, 2.4, None, 4)})
    told = "kunlun gains 7.00 (2.40 … ∞) times as much NE from compute as interformer; no upper end"
    assert told in findings(result).answer
    assert cells_of(grids(result)["log"], "kunlun")["η / η of interformer"] == "7.00 (2.40 … ∞)"
    unclear = replace(result, ratios={"kunlun": Estimate(7.0, 0.4, None, 4)})
    assert "No model's scaling can be told apart" in findings(unclear).answer


def test_a_model_that_gains_nothing_from_compute_is_told_so() -> None:
    result = replace(scaling(), ratios={"kunlun": Estimate(-0.5, -0.8, -0.2, 5)})
    assert (
        "kunlun gains nothing from compute (−0.50 (−0.80 … −0.20) times interformer's slope)" in findings(result).answer
    )


def test_sentences_follow_the_intervals() -> None:
    result = matrix()
    by_title = {group.title: [item.name for item in group.items] for group in findings(result).groups}
    clear = {v.name for v in result.variants if "ne" in v.delta_percent and v.delta_percent["ne"].is_clear}
    assert set(by_title["Worse than full"]) == {
        name for name in clear if result.variant(name).delta_percent["ne"].mean > 0
    }
    assert "no_window" in by_title["Cannot be told apart from full"]
    assert by_title["No result"] == ["dien", HOSTILE]
    told = next(str(item) for group in findings(result).groups for item in group.items if item.name == "drop_hsp")
    assert told.startswith("drop_hsp worsens NE by 0.9")


def test_an_improvement_is_called_one() -> None:
    full = [cell(seed, 0.0) for seed in range(4)]
    better = variant("other", [replace(c, metrics={"ne": c.metrics["ne"] * 0.99}) for c in full], full)
    result = replace(matrix(), variants=[variant("kunlun", full, full, family="full"), better])
    assert [group.title for group in findings(result).groups] == ["Better than full"]
    assert "1 is better" in findings(result).answer


@pytest.mark.parametrize("cells", [[failed(0), failed(1)], [CellResult(0, "missing")], []])
def test_without_a_reference_nothing_is_compared(cells: list[CellResult]) -> None:
    full = variant("kunlun", cells, [], family="full")
    result = replace(matrix(), variants=[full, variant("din", [cell(0, 0.1)], cells)])
    assert "has no result" in findings(result).answer
    assert "nan" not in terminal(result) + markdown(result)


def test_the_scaling_tables_say_what_was_fitted() -> None:
    result = scaling()
    made = grids(result)
    log, first = cells_of(made["log"], "kunlun"), result.ladders[0]
    assert first.log is not None
    assert number(log["η"]) == pytest.approx(first.log.coefficients["eta"].mean, abs=5e-5)
    assert number(log["η / η of interformer"]) == pytest.approx(result.ratios["kunlun"].mean, abs=5e-3)
    assert cells_of(made["log"], "wukong")["η"] == "too few sizes"
    assert "2.00 MFLOPs" in made["log"].note
    assert "falls 2×" not in findings(result).answer
    assert findings(result).answer.startswith("kunlun gains 1.8")
    assert len(made["points"].rows) == 12
    assert made["failures"].rows[0].cells[:3] == ("wukong", "s1", "0")


def test_a_ratio_that_may_be_one_is_not_told_apart() -> None:
    result = scaling()
    wide = replace(result.ratios["kunlun"], low=0.7, high=2.9)
    found = findings(replace(result, ratios={**result.ratios, "kunlun": wide}))
    assert found.answer.startswith("No model's scaling can be told apart")
    assert [group.title for group in found.groups] == ["Cannot be told apart", "No fit"]
