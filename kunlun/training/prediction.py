"""Predictions to Parquet: one row per row of the split, in its order, written batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader


class InOrder:
    """A loader as it is: Lightning rebuilds the batch sampler of a DataLoader before it predicts."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.dataset = loader.dataset

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)


class PredictionWriter(Callback):
    """Writes ``row``, the data set's own ``key`` where it has one, and a probability per task.

    One task gives the column ``probability``, several give ``probability_<task>``. The file appears under its name when
    it is complete.

    Args:
        path: the Parquet file to write.
        tasks: names of the tasks, in the order of the model's outputs.
    """

    def __init__(self, path: Path, tasks: Sequence[str]) -> None:
        self.path = path
        self.columns = ["probability"] if len(tasks) == 1 else [f"probability_{task}" for task in tasks]
        self.rows = 0
        self._partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        self._writer: pq.ParquetWriter | None = None

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Tensor],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        table = self._table(trainer, outputs)
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._partial, table.schema)
        self._writer.write_table(table)
        self.rows += table.num_rows

    def _table(self, trainer: Trainer, outputs: Mapping[str, Tensor]) -> pa.Table:
        row = outputs["row"].cpu().numpy()
        probability = outputs["probability"].float().cpu().numpy()  # (B, tasks)
        columns: dict[str, Any] = {"row": pa.array(row, pa.int64())}
        keys = getattr(getattr(trainer.predict_dataloaders, "dataset", None), "keys", None)
        key = keys(row) if callable(keys) else None
        if key is not None:
            columns["key"] = key
        for i, name in enumerate(self.columns):
            columns[name] = pa.array(probability[:, i], pa.float32())
        return pa.table(columns)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            os.replace(self._partial, self.path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._partial.unlink(missing_ok=True)
