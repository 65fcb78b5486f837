"""The comparison of the full model with the one without a part's component, at toy size."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import synthetic_parts
from benchmarks.synthetic_parts import COMPONENTS, World, compare, line, main, read, unpack
from data.synthetic_config import PARTS
from tests.conftest import ROOT


def test_every_part_but_memory_has_its_ablation() -> None:
    assert set(COMPONENTS) == set(PARTS) - {"memory"}
    assert all((ROOT / f"configs/ablations/{name}.yaml").is_file() for name in ("kunlun", *COMPONENTS.values()))


def test_worlds_without_a_part_share_their_full_model() -> None:
    at_0 = [World(part, 0.0).trainings(3, "tiny", 512) for part in COMPONENTS if part != "crosses"]
    assert len({full.name() for full, _ in at_0}) == 1
    assert len({dropped.name() for _, dropped in at_0}) == len(at_0)
    assert World("crosses", 0.0).trainings(3, "tiny", 512)[0] != at_0[0][0]
    assert World("motif", 2.0).trainings(3, "tiny", 512)[0] != at_0[0][0]


@pytest.mark.parametrize(("behind", "word"), [(0.02, "ahead"), (-0.02, "worse"), (0.0, "level")])
def test_a_difference_counts_only_beyond_its_interval(behind: float, word: str) -> None:
    noise = [-0.004, 0.001, 0.003]
    pairs = [({"oracle_ne": 0.5, "ne": 0.8}, {"ne": 0.8 + behind + luck}) for luck in noise]
    row = compare(World("motif", 2.0), pairs)
    assert row["behind"] == pytest.approx(behind)
    assert row["full_share_of_gain"] == pytest.approx(0.4)
    assert f"full is {word}" in line(row)


@pytest.mark.slow
def test_what_is_finished_is_kept_and_a_second_run_only_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic_parts, "VALID_ROWS", 512)
    small = ["--part", "recency", "--seeds", "1", "--rows", "512", "--cells", str(tmp_path / "cells")]
    main([*small, "--out", str(tmp_path / "first.json")])
    monkeypatch.setattr(synthetic_parts, "run", None)  # to call it is an error
    main([*small, "--out", str(tmp_path / "second.json")])
    shutil.rmtree(tmp_path / "cells")
    main([*small, "--out", str(tmp_path / "second.json")])  # from the report alone
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("first.json", "second.json"))
    assert first == second
    assert {row["strength"] for row in first["results"]} == {0.0, 3.0}
    assert all(0 < row["oracle_ne"] < row["full_ne"] for row in first["results"])


def test_figures_of_another_configuration_are_not_taken(tmp_path: Path) -> None:
    training = World("motif", 2.0).trainings(3, "tiny", 512)[0]
    known = {"name": training.name(), **asdict(training), "ne": 0.5, "oracle_ne": 0.4, "seconds": 1.0}
    for other in ({**known, "name": "another"}, {key: value for key, value in known.items() if key != "name"}):
        unpack({"trainings": [other]}, tmp_path)
        assert read(training, tmp_path) is None
    unpack({"trainings": [known]}, tmp_path)
    assert read(training, tmp_path) == {"ne": 0.5, "oracle_ne": 0.4, "seconds": 1.0}
