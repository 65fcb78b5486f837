"""The figures of the page on sharded tables are those that were measured."""

from __future__ import annotations

import json

from tests.conftest import ROOT

TEXT = (ROOT / "docs/torchrec.md").read_text(encoding="utf-8")


def test_the_figures_are_those_of_the_benchmark():
    found = json.loads((ROOT / "benchmarks/results/cpu/torchrec.json").read_text())["results"]
    assert [one["sharding"] for one in found] == ["table_wise", "row_wise"]
    rows = (
        ("steps", lambda r: f"{r['steps']}"),
        ("loss of the first and the last step, plain", lambda r: f"{r['loss_first']:.4f}, {r['loss_last']:.4f}"),
        (
            "largest difference of a step's loss from the plain one",
            lambda r: f"{r['loss_max_difference']:.1e}",
        ),
        ("largest difference of an element of a table after them", lambda r: f"{r['tables_max_difference']:.1e}"),
        (
            "… of a row's Adagrad sum, as a share of the largest sum",
            lambda r: f"{r['row_sums_max_difference']:.1e}",
        ),
        (
            "largest difference of an element between the run and its checkpoint, loaded by one process",
            lambda r: f"{r['loaded_by_one_max_difference']:g}",
        ),
        ("… loaded by a plain model", lambda r: f"{r['loaded_by_plain_max_difference']:g}"),
        (
            "bytes of rows and sums on the two processes",
            lambda r: " and ".join(f"{n:,}" for n in r["table_bytes_per_process"]),
        ),
    )
    for name, shown in rows:
        assert f"| {name} | {shown(found[0])} | {shown(found[1])} |" in TEXT
