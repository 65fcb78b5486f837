"""What to say when memory runs out: what was asked for, what is large, and which settings help."""

from __future__ import annotations

import re

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kunlun.configuration import RunError
from kunlun.features import Batch, FeatureSchema

_TOLD_BY_CPU = re.compile(r"DefaultCPUAllocator.*?tried to allocate (\d+) bytes", re.DOTALL)
_TOLD_BY_GPU = re.compile(r"Tried to allocate ([\d.]+ \w+)")
_TABLES_SHOWN = 3


class BatchSizes(Callback):
    """Remembers how large the latest batch is; nothing of the batch itself."""

    def __init__(self) -> None:
        self.text = ""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self._note(batch)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._note(batch)

    def _note(self, batch: Batch) -> None:
        if not isinstance(batch, Batch):
            return
        parts = [f"{len(batch):,} rows"]
        for name, columns in batch.events.items():
            longest = max((c.max_length for c in columns.values()), default=0)
            events = max((len(c.values) for c in columns.values()), default=0)
            parts.append(f"{events:,} {name} events, the longest history {longest:,}")
        self.text = "; ".join(parts)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the GPU or of the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _TOLD_BY_CPU.search(str(error)) is not None


def explained(error: BaseException, schema: FeatureSchema | None, model: nn.Module | None, batch: str) -> RunError:
    """The error for the user; ``batch`` as `BatchSizes` says it, "" before the first one."""
    lines = [f"out of memory{_wanted(error)}"]
    if batch:
        lines.append(f"  the batch: {batch}")
    tables = _tables(schema, model)
    if tables:
        lines.append(f"  the largest embedding tables: {tables}")
    lines.append(
        "  what helps: a smaller data.batch_size (with trainer.accumulate_grad_batches for the same step), "
        "a smaller data.max_length, a smaller model.embedding.width"
    )
    return RunError("\n".join(lines))


def _wanted(error: BaseException) -> str:
    cpu, gpu = _TOLD_BY_CPU.search(str(error)), _TOLD_BY_GPU.search(str(error))
    if cpu:
        return f": {_size(int(cpu[1]))} more were wanted of the computer's memory"
    return f": {gpu[1]} more were wanted of the GPU's memory" if gpu else ""


def _tables(schema: FeatureSchema | None, model: nn.Module | None) -> str:
    """The rows of the largest few, and the bytes of all of them where there is a model."""
    tables = sorted(schema.tables.items(), key=lambda item: item[1].rows, reverse=True) if schema else []
    text = ", ".join(f"{name} {table.rows:,} rows" for name, table in tables[:_TABLES_SHOWN])
    modules = model.modules() if model is not None else ()
    weights = [m.weight for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    total = sum(w.numel() * w.element_size() for w in weights)
    return f"{text}; all tables {_size(total)}" if total else text


def _size(number: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1024
    return f"{number:,.1f} TiB"
