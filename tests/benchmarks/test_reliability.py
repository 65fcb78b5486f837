"""The short form of benchmarks.reliability: a run that is killed, told to leave, and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.reliability import damage, kills, memory
from benchmarks.reliability.attempts import ROOT, Line, Setting, differences, missing, replays

EPOCHS = 1
BATCHES = 24


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Line]]:
    folder = tmp_path_factory.mktemp("reliability")
    return folder, kills.unbroken(folder, EPOCHS, batches=BATCHES)


def test_a_killed_run_is_the_unbroken_one(unbroken: tuple[Path, list[Line]]) -> None:
    folder, expected = unbroken
    found = kills.killed(folder, expected, 2, EPOCHS, 2, batches=BATCHES)
    assert (found["failed_resumes"], found["differences"], found["missing"], found["finished"]) == (0, 0, 0, True)
    assert found["largest_replay"] <= found["checkpoint_interval"]
    assert found["batches_compared"] >= BATCHES


def test_a_run_that_is_told_to_leave_has_saved(unbroken: tuple[Path, list[Line]]) -> None:
    folder, expected = unbroken
    found = kills.terminated(folder, expected, 1, EPOCHS, 0, batches=BATCHES)
    assert (found["exit_143"], found["differences"], found["missing"], found["finished"]) == (1, 0, 0, True)
    assert found["largest_replay"] == 0
    # Where nothing else keeps the machine busy; a busy one needs longer for everything.
    assert found["saved_after_seconds_max"] < 30


def test_every_damage_is_noticed(unbroken: tuple[Path, list[Line]], tmp_path: Path) -> None:
    checkpoint = Setting(unbroken[0], EPOCHS, name="unbroken").checkpoints()[0]
    found = damage.noticed(checkpoint, tmp_path, 30)
    assert found["untouched_is_intact"]
    assert (found["cut_noticed"], found["changed_noticed"]) == (15, 15)


def test_saving_and_resuming_copy_nothing(tmp_path: Path) -> None:
    found = memory.measured(tmp_path, 64)
    if "skipped" in found:
        pytest.skip(found["skipped"])
    for action in ("save", "resume"):
        assert found[f"this project: {action}"]["extra_mib"] < 24 < found[f"Lightning: {action}"]["extra_mib"]


def test_the_comparison_finds_what_is_wrong() -> None:
    expected = [Line(1, "train", 0, batch, batch + 1, 0.0, f"rows loss{batch}") for batch in range(4)]
    other = Line(2, "train", 0, 2, 3, 0.0, "rows other")
    assert differences([*expected[:2], other], expected) == [other]
    assert missing([*expected[:2], other], expected) == 1
    assert replays([*expected[:3], other]) == [1]


def test_the_page_tells_how_wrong_configurations_were_refused() -> None:
    found = json.loads((ROOT / "benchmarks/results/cpu/reliability.json").read_text())["configs"]
    text = " ".join((ROOT / "docs/reliability.md").read_text().split())
    assert (
        f"Of {found['configs']} wrong configurations, each given to a command line of its own, "
        f"{found['refused_with_the_key']} were refused with the key named, after {found['seconds_median']:.1f} s in "
        f"the median and {found['seconds_max']:.1f} s at most."
    ) in text
