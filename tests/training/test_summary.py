"""The summary of a fit: the best epoch, the speed, and commands that can be pasted."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kunlun.training.summary import FitSummary, next_commands


def validated(scores: list[float], mode: str = "min") -> FitSummary:
    summary = FitSummary("valid/ne", mode)
    for epoch, score in enumerate(scores):
        metrics = {"valid/ne": torch.tensor(score), "valid/auc": torch.tensor(0.1 * epoch)}
        trainer = SimpleNamespace(
            sanity_checking=False, callback_metrics=metrics, current_epoch=epoch, global_step=10 * (epoch + 1)
        )
        summary.on_validation_end(trainer, None)
        summary.on_train_epoch_end(trainer, None)
    return summary


@pytest.mark.parametrize(
    ("scores", "mode", "epoch"),
    [
        ([0.9, 0.7, 0.8], "min", 1),
        ([0.9, 0.7, 0.8], "max", 0),
        ([math.nan, 0.8], "min", 1),
        ([0.8, math.nan], "min", 0),
    ],
)
def test_the_metrics_are_those_of_the_best_epoch(scores: list[float], mode: str, epoch: int) -> None:
    summary = validated(scores, mode)
    assert summary.best_epoch == epoch
    text = summary.text("name", None, [])
    assert f"NE {scores[epoch]:.4f} · AUC {0.1 * epoch:.4f}" in text
    assert f"epoch {epoch}, the best of {len(scores)}" in text
    assert [point["step"] for point in summary.curve] == [10 * (e + 1) for e in range(len(scores))]
    assert [point["valid/ne"] for point in summary.curve] == pytest.approx(scores, nan_ok=True)


def test_the_sanity_check_does_not_count() -> None:
    summary = FitSummary("valid/ne", "min")
    metrics = {"valid/ne": torch.tensor(0.1)}
    summary.on_validation_end(SimpleNamespace(sanity_checking=True, callback_metrics=metrics, current_epoch=0), None)
    assert "no validation ran" in summary.text("name", None, [])


def test_speed_leaves_out_validation_and_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 102.0, 500.0, 504.0])
    monkeypatch.setattr("kunlun.training.summary.time.monotonic", lambda: next(clock))
    summary = FitSummary("valid/ne", "min")  # 0 s
    trainer = SimpleNamespace(world_size=2, sanity_checking=False, callback_metrics={}, current_epoch=0, global_step=3)
    batch = range(30)
    summary.on_train_epoch_start(trainer, None)
    summary.on_train_batch_end(trainer, None, None, batch, 0)  # 100 s, not counted
    summary.on_train_batch_end(trainer, None, None, batch, 1)  # 102 s
    summary.on_validation_end(trainer, None)
    summary.on_train_batch_end(trainer, None, None, batch, 2)  # 500 s, not counted
    summary.on_train_batch_end(trainer, None, None, batch, 3)  # 504 s
    assert summary.samples_per_second == pytest.approx(2 * (30 + 30) / (2 + 4))


def test_three_commands_follow_that_work_as_they_are(tmp_path: Path) -> None:
    run = tmp_path / "my runs"
    (run / "wandb" / "offline-run-1").mkdir(parents=True)
    given = ["data/criteo.yaml", "ablations/kunlun.yaml"]
    for data, offline, third in [
        ("data.SyntheticData", True, ["cli.py", "prepare", "--help"]),
        ("data.PreparedData", True, ["sync", str(run / "wandb" / "offline-run-1")]),
        ("data.PreparedData", False, ["cli.py", "predict", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]),
    ]:
        lines = [shlex.split(line) for line in next_commands(run, given, data, offline, "ablations/no_gdpa.yaml")]
        assert lines[0][1:] == ["cli.py", "test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
        assert lines[1][1:] == ["cli.py", "fit", "--config", given[0], "--config", "ablations/no_gdpa.yaml"]
        assert lines[2][1:] == third
