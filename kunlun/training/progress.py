"""A progress bar in a terminal; a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

SECONDS_BETWEEN_LINES = 10.0


def progress_bar() -> ProgressBar:
    """The one that suits the standard output."""
    return TerminalBar() if sys.stdout.isatty() else LogLines()


class TerminalBar(TQDMProgressBar):
    """tqdm, without the version number among the metrics."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class LogLines(ProgressBar):
    """Plain lines: at the end of every epoch, and at most every ten seconds in between."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._last = time.monotonic()

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def _line(self, text: str) -> None:
        if self._enabled:
            print(text, flush=True)
        self._last = time.monotonic()

    def _step(self, what: str, done: int, total: float, metrics: str = "") -> None:
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._line(f"{what}: {done}/{total:g} batches{metrics}")

    def _metrics(self, trainer: Trainer, pl_module: LightningModule) -> str:
        values = self.get_metrics(trainer, pl_module)
        values.pop("v_num", None)
        return "".join(f" · {k} {_shown(v)}" for k, v in values.items())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        what = f"epoch {trainer.current_epoch}"
        self._step(what, batch_idx + 1, self.total_train_batches, self._metrics(trainer, pl_module))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._step("validation", batch_idx + 1, trainer.num_val_batches[dataloader_idx])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line(f"epoch {trainer.current_epoch} done{self._metrics(trainer, pl_module)}")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._step("test", batch_idx + 1, trainer.num_test_batches[dataloader_idx])

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._step("predict", batch_idx + 1, trainer.num_predict_batches[dataloader_idx])


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
