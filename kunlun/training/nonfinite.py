"""A loss or gradient that is nan or infinite: stops the run, or skips the batch, before it reaches the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kunlun.configuration import RunError, shown
from kunlun.features import Batch

FILE = "nonfinite.jsonl"


class NonFiniteGuard(Callback):
    """Checks losses and gradients before every update, and the weights before every checkpoint.

    Each batch that fails is a line of ``nonfinite.jsonl``: its step, its losses, the parameters whose gradients are
    not finite, and its row numbers in the training split.

    Args:
        folder: the run directory; None writes no file.
        action: ``stop`` the run, or ``skip`` the update.
        limit: skips after which the run stops all the same.
    """

    def __init__(self, folder: Path | None, action: Literal["stop", "skip"], limit: int) -> None:
        self.folder, self.action, self.limit = folder, action, limit
        self.skipped = 0
        self._losses: list[Tensor] = []
        self._rows: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._rows.append(batch.row)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        losses, rows = torch.stack([loss.float() for loss in self._losses]), torch.cat(self._rows)
        self._losses, self._rows = [], []
        values = [losses]
        if getattr(trainer.precision_plugin, "scaler", None) is None:  # a scaler expects infinities and skips by itself
            values += _gradients(pl_module)
        # The largest absolute value: one number to wait for, however many tensors there are.
        is_bad = not math.isfinite(nn.utils.get_total_norm(values, math.inf).item())
        if not trainer.strategy.reduce_boolean_decision(is_bad, all=False):
            return
        names = [name for name, p in pl_module.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
        losses, rows = _of_all_processes(trainer, losses), _of_all_processes(trainer, rows)
        where = self._write(trainer, losses, names, rows)
        what = "the loss" if not bool(losses.isfinite().all()) else f"the gradient of {names[0] if names else '?'}"
        told = f"step {trainer.global_step} of epoch {trainer.current_epoch}: {what} is not finite{where}"
        if self.action == "stop":
            raise _stopped(
                trainer,
                f"{told}. The weights are as they were before it. Look at these rows; a smaller "
                "training.optimizer.lr or trainer.gradient_clip_val may help, and run.nonfinite=skip leaves such "
                "batches out.",
            )
        self.skipped += 1
        pl_module.log("train/skipped", float(self.skipped), batch_size=1)
        if self.skipped > self.limit:
            raise _stopped(trainer, f"{told}. That is more than run.nonfinite_limit={self.limit} batches skipped.")
        if trainer.is_global_zero:
            print(f"{told}: skipped ({self.skipped} of at most {self.limit})", flush=True)
        optimizer.zero_grad(set_to_none=True)  # no optimizer touches a parameter without a gradient

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        names = [name for name, parameter in pl_module.named_parameters() if not _is_finite(parameter.detach())]
        if trainer.strategy.reduce_boolean_decision(bool(names), all=False):
            raise _stopped(
                trainer,
                f"step {trainer.global_step}: {names[0] if names else 'a weight'} is not finite any more, so no "
                "checkpoint is written; those before it are as they were. A smaller training.optimizer.lr or table_lr "
                "may help.",
            )

    def _write(self, trainer: Trainer, losses: Tensor, names: list[str], rows: Tensor) -> str:
        if self.folder is None or not trainer.is_global_zero:
            return ""
        record = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "losses": [str(loss) for loss in losses.tolist()],
            "gradients": names,
            "rows": rows.tolist(),
        }
        path = self.folder / FILE
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return f" (its {len(rows)} rows are listed in {shown(path)})"


def _of_all_processes(trainer: Trainer, values: Tensor) -> Tensor:
    """Joined in the order of their ranks: gradients, unlike these, are the same in all of them."""
    if trainer.world_size == 1:
        return values
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, values.cpu())
    return torch.cat(found)


def _stopped(trainer: Trainer, told: str) -> BaseException:
    """All processes stop for one reason; one of them says it."""
    return RunError(told) if trainer.is_global_zero else SystemExit(1)


def _gradients(module: LightningModule) -> list[Tensor]:
    """The gradients that are there; of a sparse one, the rows it has."""
    grads = [_local(p.grad) for p in module.parameters() if p.grad is not None]
    values = [g._values() if g.is_sparse else g for g in grads]
    return [v for v in values if v.numel()]


def _local(tensor: Tensor) -> Tensor:
    """Of a tensor that is split over the processes, the part of this one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_finite(tensor: Tensor) -> bool:
    tensor = _local(tensor)
    values = tensor._values() if tensor.is_sparse else tensor
    if values.numel() == 0 or not values.is_floating_point():
        return True
    # Without a temporary of the tensor's size, which may be most of the memory.
    low, high = torch.aminmax(values)
    return math.isfinite(low.item()) and math.isfinite(high.item())
