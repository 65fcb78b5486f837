"""A callback that writes down, bit for bit, what a run does."""

from __future__ import annotations

import os
import time
import zlib
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from kunlun.features import Batch


class Trace(Callback):
    """A line per training batch and per validation, and one at the end, appended to ``path`` in one write each.

    train:  process, "train", epoch, batch, step, seconds since 1970, checksum of the rows, loss
    valid:  process, "valid", epoch, batch, step, seconds since 1970, the metrics
    end:    process, "end", epochs, 0, step, seconds since 1970, checksum of the weights

    Of several ranks, rank r > 0 has a file of its own, ``path.r``.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.global_rank:
            self.path += f".{trainer.global_rank}"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        rows = zlib.crc32(batch.row.numpy().tobytes())
        self._write("train", trainer, batch_idx, f"{rows:08x} {outputs['loss'].item().hex()}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            values = sorted((k, float(v).hex()) for k, v in trainer.callback_metrics.items() if k.startswith("valid/"))
            self._write("valid", trainer, trainer.fit_loop.batch_idx, " ".join(f"{k}={v}" for k, v in values))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = 0
        for parameter in pl_module.parameters():
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            weights = zlib.crc32(whole.detach().cpu().numpy().tobytes(), weights)
        self._write("end", trainer, 0, f"{weights:08x}")

    def _write(self, kind: str, trainer: Trainer, batch: int, told: str) -> None:
        where = f"{os.getpid()} {kind} {trainer.current_epoch} {batch} {trainer.global_step} {time.time():.6f}"
        with open(self.path, "ab", buffering=0) as file:
            file.write(f"{where} {told}\n".encode())
