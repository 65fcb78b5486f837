"""The comparison of the full model with the one without a part's component, at toy size."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks import synthetic_parts
from benchmarks.synthetic_parts import COMPONENTS, Cell, interval, line, main, summary
from data.synthetic_config import PARTS
from tests.conftest import ROOT


def test_every_part_but_memory_has_its_ablation() -> None:
    assert set(COMPONENTS) == set(PARTS) - {"memory"}
    assert all((ROOT / "configs" / synthetic_parts.ablation(part)).is_file() for part in COMPONENTS)


def test_the_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.776 * statistics.stdev([1, 2, 3, 4, 5]) / 5**0.5)


@pytest.mark.parametrize(("behind", "word"), [(0.02, "ahead"), (-0.02, "worse"), (0.0, "level")])
def test_a_difference_counts_only_beyond_its_interval(behind: float, word: str) -> None:
    noise = [-0.004, 0.001, 0.003]
    cells = {
        Cell("motif", 2.0, seed, "tiny", 512): {
            "oracle_ne": 0.5,
            "full_ne": 0.8,
            "dropped_ne": 0.8 + behind + noise[seed],
        }
        for seed in range(3)
    }
    (row,) = summary(cells)
    assert row["behind"] == pytest.approx(behind)
    assert row["full_share_of_gain"] == pytest.approx(0.4)
    assert f"full is {word}" in line(row)


@pytest.mark.slow
def test_cells_are_kept_and_a_second_run_only_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_parts, "VALID_ROWS", 512)
    small = [
        "--part",
        "recency",
        "--seeds",
        "1",
        "--rows",
        "512",
        "--preset",
        "tiny",
        "--cells",
        str(tmp_path / "cells"),
    ]
    main([*small, "--out", str(tmp_path / "first.json")])
    monkeypatch.setattr(synthetic_parts, "run", None)  # to call it is an error
    main([*small, "--out", str(tmp_path / "second.json")])
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("first.json", "second.json"))
    assert first == second
    assert {row["strength"] for row in first["results"]} == {0.0, 2.0}
    assert all(0 < row["oracle_ne"] < row["full_ne"] for row in first["results"])
    assert not list((tmp_path / "cells").glob("*.claim"))
