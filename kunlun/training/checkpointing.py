"""Which checkpoints a run keeps: the newest few and the best, each one that training goes on from exactly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from kunlun.checkpoints import SUFFIX, copy_checkpoint, link_checkpoint, state_of
from kunlun.configuration import RunError, shown
from kunlun.training.preemption import EXIT_CODE, Preemption
from kunlun.training.runs import CheckpointEvery, is_first_process

LAST = f"last{SUFFIX}"
SAVE, LEAVE = 1, 2


class LastCheckpoints(Checkpoint):
    """Writes ``step-<optimizer steps>.ckpt`` and keeps the newest; ``last.ckpt`` is the newest under another name.

    One is written at the end of every epoch, whenever one is due, and before leaving on a signal: at the first moment
    from which Lightning goes on exactly. It does not after a batch whose gradients wait for those of others, after one
    that a validation follows, which it would leave out, nor, with max_steps, at the end of an epoch.

    Args:
        folder: the run's folder of checkpoints.
        every: when one is due.
        keep: how many are kept.
        preemption: the signals to leave.
        resumed: the checkpoint that this process goes on from; RunError unless it is that of all others.
    """

    def __init__(
        self,
        folder: Path | None,
        every: CheckpointEvery,
        keep: int,
        preemption: Preemption,
        resumed: Path | None = None,
    ) -> None:
        self.folder, self.every, self.keep, self.preemption = folder, every, keep, preemption
        self.resumed = resumed
        self._files: list[Path] = []
        self._step, self._time = 0, 0.0
        self._missed = False  # the end of an epoch, at which one was due
        self._together = 0  # batches of a validation that every process has

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)
        first = trainer.strategy.broadcast(self.resumed)
        if trainer.strategy.reduce_boolean_decision(self.resumed != first, all=False):
            raise RunError(
                f"rank {trainer.global_rank} would go on from {self.resumed}, rank 0 from {first}: all must see one "
                "run.root, in which nothing else writes; start again, or name the checkpoint with --resume PATH"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._time = trainer.global_step, time.monotonic()
        self.preemption.defer()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        wanted = self._wanted(trainer)
        if wanted and _can_go_on_from_here(trainer):
            self._save(trainer)
            self._leave(trainer, wanted)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After a resumed validation Lightning's counters would for ever look as if one were under way.
        total: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        total.ready = total.started = total.processed = total.completed
        if trainer.world_size > 1:
            batches = torch.tensor(sum(trainer.num_val_batches), device=trainer.strategy.root_device)
            self._together = int(trainer.strategy.reduce(batches, reduce_op="min"))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # Processes agree on leaving only where all of them are asked.
        if (trainer.world_size > 1 and batch_idx >= self._together) or self._wanted(trainer) != LEAVE:
            return
        if trainer.global_step != trainer.max_steps:  # else Lightning would take the whole run for done
            _validate_again_when_resumed(trainer)
            self._save(trainer)
            self._leave(trainer, LEAVE)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.max_steps != -1 and trainer.global_step < trainer.max_steps:
            self._missed = True  # with max_steps, Lightning would end this epoch a second time
            return
        wanted = self._wanted(trainer)
        self._save(trainer)
        self._leave(trainer, wanted)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.preemption.deferred = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.preemption.deferred = False

    def _wanted(self, trainer: Trainer) -> int:
        """SAVE, LEAVE or 0: the most that any process wants; all of them ask this together. The first has the clock."""
        wanted = LEAVE if self.preemption.received is not None else SAVE * self._is_due(trainer)
        if trainer.world_size == 1:
            return wanted
        return int(trainer.strategy.reduce(torch.tensor(wanted, device=trainer.strategy.root_device), reduce_op="max"))

    def _is_due(self, trainer: Trainer) -> bool:
        every = self.every
        if self._missed:
            return True
        if every.steps is not None and trainer.global_step - self._step >= every.steps:
            return True
        if every.minutes is None or not trainer.is_global_zero:
            return False
        return time.monotonic() - self._time >= 60 * every.minutes

    def _save(self, trainer: Trainer) -> None:
        self._missed = False
        if trainer.global_step == self._step:
            return
        assert self.folder is not None
        path = self.folder / f"step-{trainer.global_step:08d}{SUFFIX}"
        trainer.save_checkpoint(path, weights_only=False)
        self._step, self._time = trainer.global_step, time.monotonic()
        if not trainer.is_global_zero:
            return
        link_checkpoint(path, LAST)
        self._files.append(path)
        while len(self._files) > self.keep:
            self._files.pop(0).unlink(missing_ok=True)

    def _leave(self, trainer: Trainer, wanted: int) -> None:
        if wanted != LEAVE:
            return
        if trainer.is_global_zero:
            name = self.preemption.received.name if self.preemption.received is not None else "a signal"
            saved = f"saved {shown(self._files[-1])}" if self._files else "nothing new to save"
            print(f"{name}: {saved}; go on with --resume auto", flush=True)
        raise SystemExit(EXIT_CODE)


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``, the best by ``monitor``; a resumed run takes over the one of the run before, and its score."""

    def __init__(self, folder: Path | None, monitor: str, mode: str) -> None:
        # After the validation, not after the epoch: from there Lightning goes on exactly, also with max_steps.
        super().__init__(
            folder,
            "best",
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Every attempt has a directory of its own, in which Lightning would begin without a best one.
        before = Path(state_dict["best_model_path"] or "-")
        assert self.dirpath is not None
        path = Path(self.dirpath) / before.name
        score = state_dict["best_model_score"]
        if score is None or not before.is_file() or state_of(before) == "damaged":
            return
        if before.resolve() != path.resolve() and not path.exists() and is_first_process():
            copy_checkpoint(before, path)
        self.best_model_path = self.kth_best_model_path = str(path)
        self.best_model_score = self.kth_value = self.current_score = torch.as_tensor(score)
        self.best_k_models = {str(path): self.best_model_score}


def _can_go_on_from_here(trainer: Trainer) -> bool:
    """Whether the batch that just ended was followed by nothing but the next one."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return not (loop._should_accumulate() or loop._num_ready_batches_reached() or loop._should_check_val_fx(fetcher))


def _validate_again_when_resumed(trainer: Trainer) -> None:
    """Let Lightning's counters say that the first batch of this validation is under way: whoever goes on from them
    runs the whole validation, whose metrics so far are in no checkpoint."""
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    before = progress.total.completed - progress.current.completed
    for counts, done in ((progress.total, before), (progress.current, 0)):
        counts.ready = counts.started = done + 1
        counts.processed = counts.completed = done
    progress.is_last_batch = False
