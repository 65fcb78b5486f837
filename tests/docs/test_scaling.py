"""The figures of docs/scaling.md are those that the benchmarks wrote, and its commands are accepted."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from benchmarks import network_traffic
from kunlun.command_line import read_request
from kunlun.training.precheck import precheck
from tests.conftest import ROOT

TEXT = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
PARITY = ROOT / "benchmarks/results/cpu/data_parallel.json"
TRAFFIC = ROOT / "benchmarks/results/network_traffic.json"


def parity_rows(found: dict[str, Any]) -> list[str]:
    """Those of the table of what was measured."""
    runs = [found["ddp"], found["fsdp2"]]

    def row(name: str, form: str, part: str, *keys: str) -> str:
        cells = [form.format(*(run[part][key] for key in keys)) for run in runs]
        return f"| {name} | {' | '.join(cells)} |"

    return [
        row("steps compared with one rank", "{}", "parity", "steps"),
        row("largest difference of a step's loss", "{:.1e}", "parity", "largest_loss_gap"),
        row("… of a validation metric", "{:.1e}", "parity", "largest_metric_gap"),
        row("… of a weight at the end", "{:.1e}", "parity", "largest_weight_gap"),
        row("SIGKILLs", "{}", "resumed", "kills"),
        row("SIGTERMs and SIGUSR1s, of which ended with 143", "{}, {}", "resumed", "signals", "exit_143"),
        row("differences among the lines compared", "{} of {}", "resumed", "differences", "lines_compared"),
    ]


def traffic_rows(found: dict[str, Any]) -> list[str]:
    """Those of the table of what crosses the network."""

    def cell(mb: float, ms: float) -> str:
        return f"{mb:,.0f} MB, {ms:,.1f} ms"

    rows = []
    for step in found["steps"]:
        touched = list(step["rows"].values())
        cells = [cell(step["dense_mb"], step["dense_ms"])]
        cells += [cell(x["exchanged_mb"], x["exchanged_ms"]) for x in touched]
        cells.append(cell(touched[-1]["split_tables_mb"], touched[-1]["split_tables_ms"]))
        rows.append(f"| {step['ranks']:,} | {' | '.join(cells)} |")
    return rows


def figures(found: dict[str, Any]) -> dict[str, str]:
    """Those within sentences, by name."""
    largest = next(table for table in found["tables"] if table["parameters"] == 10**12)
    at_64 = next(step for step in found["steps"] if step["ranks"] == 64)
    return {
        "DENSE": f"{found['dense_parameters']:,}",
        "LARGEST": f"{found['largest_whole_tables'] / 1e9:.1f} · 10⁹",
        "WHOLE": f"{largest['whole_gb']:,.0f}",
        "SPLIT": f"{largest['split_over_1000_gb']:.1f}",
        "FSDP": f"{at_64['dense_memory_mb']:,.0f}",
        "DDPMB": f"{found['dense_memory_ddp_mb']:,.0f}",
    }


def test_the_figures_are_those_that_were_printed() -> None:
    found = json.loads(TRAFFIC.read_text())
    for row in parity_rows(json.loads(PARITY.read_text())) + traffic_rows(found):
        assert row in TEXT
    for name, figure in figures(found).items():
        assert figure in TEXT, name
    tables = {int(ranks.replace(",", "")) for ranks in re.findall(r"^\| ([\d,]+) \| \d", TEXT, re.MULTILINE)}
    assert tables == {step["ranks"] for step in found["steps"]}


def test_what_was_measured_is_what_is_claimed() -> None:
    for run in (json.loads(PARITY.read_text())[strategy] for strategy in ("ddp", "fsdp2")):
        assert run["parity"]["steps"] >= 50
        assert run["parity"]["largest_loss_gap"] < 1e-5
        assert run["parity"]["ranks_end_with_equal_weights"]
        assert run["parity"]["metrics_are_those_of_every_rank"]
        assert (run["resumed"]["differences"], run["resumed"]["missing"], run["resumed"]["finished"]) == (0, 0, True)
        assert run["resumed"]["exit_143"] == run["resumed"]["signals"]


def test_the_formulas_are_those_of_the_page(tmp_path) -> None:
    network_traffic.main(["--out", str(tmp_path / "traffic.json")])
    assert json.loads((tmp_path / "traffic.json").read_text()) == json.loads(TRAFFIC.read_text())
    assert network_traffic.dense_bytes(100, 4) == 4 * 100 * 2 * 3 / 4
    assert network_traffic.sparse_bytes(10, 16, 4) == 10 * (8 + 4 * 16) * 3


@pytest.mark.parametrize("arguments", re.findall(r"cli\.py fit ((?:[^\n`]|\n {14}--)*)", TEXT))
def test_every_command_is_accepted(arguments: str) -> None:
    request = read_request("fit", arguments.replace("/shared/runs", "runs").split())
    assert request.tree.values["trainer"]["devices"]
    precheck(request)
