"""What a finished fit says: how good, how fast, where the run is, and what to try next."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kunlun.configuration import shown
from kunlun.features import FeatureSchema
from kunlun.training.utilization import flops_at_mean_lengths, parameter_counts

_METRICS = (
    ("ne", "NE"),
    ("auc", "AUC"),
    ("gauc", "GAUC"),
    ("log_loss", "log loss"),
    ("calibration", "calibration"),
    ("oracle_share", "share of the oracle's gain"),
)


_KEPT = ("best", "best_epoch", "epochs", "curve", "samples")  # over a resumption


class FitSummary(Callback):
    """Collects what the summary needs.

    Samples per second count the time from the end of one training batch to the end of the next, reading included,
    validation and each epoch's first batch left out.

    Args:
        monitor: the metric that decides which epoch is the best.
        mode: ``min`` or ``max``.
    """

    def __init__(self, monitor: str, mode: str) -> None:
        self.monitor, self.mode = monitor, mode
        self.best: dict[str, float] = {}
        self.test: dict[str, float] = {}
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0
        self.best_epoch: int | None = None
        self.epochs = 0
        self._started = time.monotonic()
        self._mark: float | None = None
        self._seconds, self._samples, self.samples = 0.0, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in _KEPT:
            setattr(self, name, state_dict[name])

    @property
    def samples_per_second(self) -> float | None:
        return self._samples / self._seconds if self._seconds else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.samples += len(batch) * trainer.world_size
        if self._mark is not None:
            self._seconds += now - self._mark
            self._samples += len(batch) * trainer.world_size
        self._mark = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = None
        if trainer.sanity_checking:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        valid = {name: value for name, value in metrics.items() if name.startswith("valid/")}
        self.curve.append({"step": trainer.global_step, "samples": self.samples, **valid})
        score = metrics.get(self.monitor)
        if score is None:
            return
        best = self.best.get(self.monitor)
        if best is None or math.isnan(best) or (score < best if self.mode == "min" else score > best):
            self.best, self.best_epoch = metrics, trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs = trainer.current_epoch + 1
        self.seconds = time.monotonic() - self._started

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.test = {name: value for name, value in found.items() if name.startswith("test/")}

    def record(self, model: nn.Module, schema: FeatureSchema) -> dict[str, Any]:
        """For ``summary.json``: metrics of the best epoch and of the test split, the curve, costs, the data."""
        return {
            "monitor": self.monitor,
            "best_epoch": self.best_epoch,
            "epochs": self.epochs,
            "best": self.best,
            "test": self.test,
            "curve": self.curve,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
            "flops_per_sample": flops_at_mean_lengths(model, schema),
            "parameters": parameter_counts(model),
            "data": {
                "name": schema.name,
                "rows": schema.rows,
                "train_rate": {task.name: task.train_rate for task in schema.tasks},
            },
        }

    def text(self, name: str, run: Path | None, commands: Sequence[str]) -> str:
        """The summary, a few lines."""
        split = self.monitor.partition("/")[0]
        lines = [""]
        found = _figures(self.best, split)
        if found:
            lines.append(f"{name}: {found}  ({split}, epoch {self.best_epoch}, the best of {self.epochs})")
            if learnt := _learnt(self.best, split):
                lines.append(f"  learnt of each part: {learnt}")
        else:
            lines.append(f"{name}: no validation ran")
        if self.test:
            lines.append(f"  {_figures(self.test, 'test')}  (test, with the best checkpoint)")
        speed = f"{self.samples_per_second:,.0f} samples/s in training · " if self.samples_per_second else ""
        lines.append(f"  {speed}{_duration(time.monotonic() - self._started)}")
        if run is not None:
            lines.append(f"  run: {shown(run)}")
        lines += ["  next:"] * bool(commands) + [f"    {command}" for command in commands]
        return "\n".join(lines)


def _learnt(metrics: Mapping[str, float], split: str) -> str:
    """Of each part of a click probability that is known, how much was found; empty where none is."""
    prefix = f"{split}/learnt/"
    found = {name.removeprefix(prefix): v for name, v in metrics.items() if name.startswith(prefix)}
    return " · ".join(f"{part} {round(v, 2) + 0.0:.2f}" for part, v in found.items())  # + 0.0: no minus before a zero


def _figures(metrics: Mapping[str, float], split: str) -> str:
    return " · ".join(f"{label} {metrics[f'{split}/{m}']:.4f}" for m, label in _METRICS if f"{split}/{m}" in metrics)


def next_commands(run: Path, configs: Sequence[str], data_class: str, offline: bool, ablation: str) -> list[str]:
    """Three commands that work as they are: a test, an ablation on the same data, and one for what comes after."""
    checkpoint = shown(run / "checkpoints" / "best.ckpt")
    same = [part for config in configs for part in ("--config", config) if not config.startswith("ablations/")]
    commands = [["cli.py", "test", "--ckpt_path", checkpoint], ["cli.py", "fit", *same, "--config", ablation]]
    if "Synthetic" in data_class:
        commands.append(["cli.py", "prepare", "--help"])
    elif not offline:
        commands.append(["cli.py", "predict", "--ckpt_path", checkpoint])
    lines = [shlex.join([_program("python"), *command]) for command in commands]
    if len(lines) < 3:
        folder = sorted((run / "wandb").glob("offline-run-*"))
        lines.append(shlex.join([_program("wandb"), "sync", shown(folder[0] if folder else run / "wandb")]))
    return lines


def _program(name: str) -> str:
    """``name`` if the shell finds this environment's, else its path."""
    here = Path(sys.executable).parent / name
    found = shutil.which(name)
    return name if found and os.path.abspath(found) == str(here) else shown(here)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
