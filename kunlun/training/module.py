"""CTRModule: loss, metrics and optimizers around any model that maps a Batch to logits (B, tasks)."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from kunlun.features import Batch, FeatureSchema
from kunlun.training.metrics import CTRMetrics
from kunlun.training.optimizers import (
    OptimizerConfig,
    build_optimizer,
    build_schedulers,
    clip_dense_grad_norm_,
    step_plateau,
)


class CTRModule(L.LightningModule):
    """Trains ``model`` by binary cross-entropy on its logits, summed over tasks.

    Logs ``train/loss`` per step and, per evaluation split, ``<split>/ne, auc, gauc, log_loss, calibration`` of the
    first task (further tasks as ``<split>/<task>/ne`` …).

    Args:
        model: has ``schema`` and maps a :class:`Batch` to logits (B, tasks).
        optimizer: learning rates, regularisation and schedule.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.schema = cast(FeatureSchema, model.schema)
        self.optimizer_config = optimizer or OptimizerConfig()
        self.tasks = [task.name for task in self.schema.tasks]
        metrics = nn.ModuleDict(
            {
                split: nn.ModuleList(CTRMetrics(task.train_rate, self.schema.users) for task in self.schema.tasks)
                for split in ("valid", "test")
            }
        )
        self.metrics = cast("dict[str, list[CTRMetrics]]", metrics)

    def configure_model(self) -> None:
        """Let a strategy split the model that knows how to; TypeError for one that would leave it to this class."""
        strategy = self.trainer.strategy
        if hasattr(strategy, "shard"):
            strategy.shard(self.model)
        elif isinstance(strategy, ModelParallelStrategy):
            raise TypeError(
                f"{type(strategy).__name__} does not say how to split a model; use --trainer.strategy fsdp2"
            )

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, tasks), float32."""
        return self.model(batch).float()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._loss(self(batch), batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits (B, tasks)."""
        return self._evaluate("valid", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits (B, tasks)."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``row`` (B,) and ``probability`` (B, tasks)."""
        return {"row": batch.row, "probability": torch.sigmoid(self(batch))}

    def on_validation_epoch_end(self) -> None:
        values = self._report("valid")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            step_plateau(self.lr_schedulers(), self.optimizer_config, values)

    def on_test_epoch_end(self) -> None:
        self._report("test")

    @staticmethod
    def _loss(logits: Tensor, batch: Batch) -> Tensor:
        weight = None if batch.weight is None else batch.weight[:, None]
        loss = F.binary_cross_entropy_with_logits(logits, batch.labels, weight, reduction="sum")
        total = len(batch) if batch.weight is None else batch.weight.sum()
        return loss / total

    def _evaluate(self, split: str, batch: Batch) -> Tensor:
        logits = self(batch)
        for task, metrics in enumerate(self.metrics[split]):
            metrics.update(logits[:, task], batch.labels[:, task], user=batch.user, weight=batch.weight)
        return logits

    def _report(self, split: str) -> dict[str, float]:
        """Log, and return, the values over the whole split."""
        logged = {}
        for task, metrics in enumerate(self.metrics[split]):
            prefix = split if task == 0 else f"{split}/{self.tasks[task]}"
            for name, value in metrics.compute().items():
                # Already exact over all processes: Lightning must not average them again.
                shown = task == 0 and name in ("ne", "auc")
                self.log(f"{prefix}/{name}", value.float(), prog_bar=shown, sync_dist=False)
                logged[f"{prefix}/{name}"] = float(value)
            metrics.reset()
        return logged

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        optimizer = build_optimizer(self.model, self.optimizer_config)
        schedulers = build_schedulers(optimizer, self.optimizer_config, self._total_steps())
        return [optimizer], schedulers

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the dense part by norm: embedding rows have sparse gradients and Adagrad's own scale."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(
                f"trainer.gradient_clip_algorithm: only 'norm' is supported, got {gradient_clip_algorithm!r}"
            )
        if gradient_clip_val:
            clip_dense_grad_norm_(self.model.parameters(), gradient_clip_val)

    def _total_steps(self) -> int | None:
        """Optimizer steps of the whole run, None if it has no end. Not ``trainer.estimated_stepping_batches``: that
        builds the loader early and drops a restored reading position."""
        trainer = self.trainer
        data = trainer.datamodule  # type: ignore[attr-defined]  # the Trainer sets it without declaring it
        steps = [trainer.max_steps] if trainer.max_steps > 0 else []
        if trainer.max_epochs is not None and trainer.max_epochs > 0 and data is not None:
            batches = len(data.train_dataloader())
            limit = trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            steps.append(trainer.max_epochs * max(1, -(-batches // trainer.accumulate_grad_batches)))
        return min(steps, default=None)
