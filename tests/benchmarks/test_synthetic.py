"""The benchmark of the synthetic world: every batch size is written down, and other samples are not timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import synthetic
from data.synthetic import SyntheticWorld
from data.synthetic_presets import CALIBRATIONS


def test_every_batch_size_is_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "synthetic.json"
    synthetic.main(["--batch-sizes", "4", "32", "--gpu-batch-sizes", "8", "--rounds", "2", "--out", str(file)])
    report = json.loads(file.read_text())
    on_cpu = [r for r in report["results"] if r["device"] == "cpu"]
    assert [(r["world"], r["batch_size"]) for r in on_cpu] == [("small", 4), ("small", 32), ("full", 4), ("full", 32)]
    for r in report["results"]:
        assert r["samples_per_s_fastest"] >= r["samples_per_s"] > 0
        assert r["ns_per_event"] == pytest.approx(1e9 / r["samples_per_s"] / r["events_per_sample"])
    assert report["versions"]["torch"]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(report["results"])


def test_the_full_world_has_a_hundred_events_of_each_type() -> None:
    world = SyntheticWorld(synthetic.CONFIGS["full"], CALIBRATIONS["small"])
    for columns in world.batch(torch.arange(512)).events.values():
        assert float(columns["item"].lengths().double().mean()) > 95


def test_other_samples_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = SyntheticWorld(synthetic.CONFIGS["small"], CALIBRATIONS["small"])
    synthetic.check(world, torch.device("cpu"))
    made = iter([world.batch(torch.arange(256)), world.batch(torch.arange(1, 257))])
    monkeypatch.setattr(world, "batch", lambda index: next(made))
    with pytest.raises(RuntimeError, match="nothing is timed"):
        synthetic.check(world, torch.device("cpu"))
