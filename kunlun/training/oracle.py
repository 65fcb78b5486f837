"""On data whose true probabilities are known: the share of the gain that a model captures, and of which part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kunlun.features import Batch
from kunlun.training.metrics import LogLoss, Slopes, binary_entropy
from kunlun.training.module import CTRModule


@runtime_checkable
class KnownAnswer(Protocol):
    """What a data module offers if it knows the probabilities that its labels were drawn with."""

    @property
    def parts(self) -> Sequence[str]:
        """Names of the parts that the first task's log-odds are the sum of."""

    def truth(self, split: str, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (B, tasks) and parts (B, parts), float64, for the ``row`` (B,) of a batch of ``split``."""

    def oracle(self) -> tuple[str, Mapping[str, float]]:
        """What the best model can expect: a line to read, and the figures by name."""


def known_answer(data: object) -> list[Callback]:
    """The callback where ``data`` knows the answer, else none."""
    return [OracleShare(data)] if isinstance(data, KnownAnswer) else []


class OracleShare(Callback):
    """Logs the share of the achievable gain, per validation and test; once per fit, what the oracle can expect.

    ``<split>/oracle_share = (NE_rate - NE_model) / (NE_rate - NE_oracle)`` of the first task, further tasks as
    ``<split>/<task>/oracle_share``; all three on the labels of the very rows that the split's metrics use, so that the
    luck of these labels, which moves all of them alike, cancels. NE_rate is that of always predicting the training
    rate: a model that knows only it has 0, the true probabilities have 1. nan where there is nothing to gain.
    ``<split>/oracle_ne`` is NE_oracle.

    ``<split>/learnt/<part>`` says which parts of the first task the model has found: the slope of its logit on the
    part, all others given, over that of the true log-odds. 1: as strong as it is; 0: the model knows nothing of it.

    What is true of a split is computed at its first evaluation and kept.
    """

    def __init__(self, data: KnownAnswer) -> None:
        self.data = data
        self._known: dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._losses: list[tuple[LogLoss, LogLoss]] = []  # of the rate and of the oracle, per task
        self._slopes = Slopes(len(data.parts), 2)  # of the model and of the oracle

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            line, figures = self.data.oracle()
            print(line, flush=True)
            for logger in trainer.loggers:
                logger.log_hyperparams(dict(figures))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = []
        self._slopes.to(pl_module.device).reset()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = []
        self._slopes.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._add("valid", pl_module, outputs, batch, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._add("test", pl_module, outputs, batch, batch_idx)

    # These run before the module's own, which reports its metrics and forgets them.

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._report("valid", pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report("test", pl_module)

    def _add(self, split: str, pl_module: LightningModule, logits: Tensor, batch: Batch, batch_idx: int) -> None:
        assert isinstance(pl_module, CTRModule)
        tasks = pl_module.schema.tasks
        if not self._losses:
            self._losses = [(LogLoss().to(pl_module.device), LogLoss().to(pl_module.device)) for _ in tasks]
        p, parts = self._true(split, batch.row, batch_idx)
        true = torch.logit(p, eps=1e-15)
        if parts.shape[1]:
            self._slopes.update(parts, torch.stack([logits[:, 0].double(), true[:, 0]], dim=1), batch.weight)
        for number, (task, (rate, oracle)) in enumerate(zip(tasks, self._losses, strict=True)):
            labels = batch.labels[:, number]
            always = torch.logit(torch.tensor(task.train_rate, dtype=torch.float64, device=labels.device))
            rate.update(always.expand(len(labels)), labels, batch.weight)
            oracle.update(true[:, number], labels, batch.weight)

    def _true(self, split: str, rows: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Probabilities and parts. Kept by batch: the rows of an evaluation come in the same order each time."""
        known = self._known.get((split, batch_idx))
        if known is None or not torch.equal(known[0], rows):
            known = (rows, *self.data.truth(split, rows))
            self._known[split, batch_idx] = known
        return known[1:]

    def _report(self, split: str, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, CTRModule)
        for number, (rate_loss, oracle_loss) in enumerate(self._losses):
            task = pl_module.schema.tasks[number]
            prefix = split if number == 0 else f"{split}/{task.name}"
            model_loss = pl_module.metrics[split][number].log_loss.compute()
            rate, oracle = rate_loss.compute(), oracle_loss.compute()
            share = torch.where(rate > oracle, (rate - model_loss) / (rate - oracle), torch.nan)
            # Already sums over all processes, as the module's metrics are.
            pl_module.log(f"{prefix}/oracle_share", share.float(), sync_dist=False)
            pl_module.log(f"{prefix}/oracle_ne", (oracle / binary_entropy(task.train_rate)).float(), sync_dist=False)
        if self.data.parts:
            model, oracle = self._slopes.compute().unbind(1)
            for part, learnt in zip(self.data.parts, (model / oracle).tolist(), strict=True):
                pl_module.log(f"{split}/learnt/{part}", learnt, sync_dist=False)
