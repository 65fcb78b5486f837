"""Data-parallel training with sharded tables: DDP for the dense part, TorchRec for the tables."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from kunlun.configuration import ConfigError, RunError
from kunlun.layers.embedding import EmbeddingTables
from kunlun.layers.sharded_tables import SHARDINGS, Adagrad, ShardedTables, shard_tables
from kunlun.training.data_parallel import SparseDDPStrategy
from kunlun.training.sharded_checkpoint import KEY, folder_of, read_tables, remove_unused, write_tables


def wants_sharding(model: nn.Module) -> bool:
    """Whether ``model`` has tables that wait to be sharded."""
    return any(isinstance(m, EmbeddingTables) and m.config.sharded for m in model.modules())


class _EvenLookups(Callback):
    """Lookups are common to all processes: one that has fewer batches to evaluate takes part in those of the others."""

    def __init__(self, tables: ShardedTables) -> None:
        self.tables, self._missing = tables, 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = int(sum(trainer._evaluation_loop.max_batches))
        most = torch.tensor(own, device=trainer.strategy.root_device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        self._missing = int(most) - own

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for _ in range(self._missing):
            self.tables.fetch_nothing()

    on_test_start, on_test_epoch_end = on_validation_start, on_validation_epoch_end


class ShardedTablesStrategy(SparseDDPStrategy):
    """DDP around the dense part; the tables lie outside of it, on one process each or spread by rows.

    A checkpoint is a file, as ever, and a folder ``….tables`` beside it, written before: a file that is whole has
    whole tables. Another number of processes can go on from it.

    Args:
        shardings: what TorchRec's planner may choose from.
        memory: GiB that the tables, and the ids and rows of a lookup, may take on each process; default: half of the
            GPU's memory, or of this process's share of the machine's.
        process_group_backend: of torch.distributed; default: by device.
    """

    def __init__(
        self,
        shardings: Sequence[str] = SHARDINGS,
        memory: float | None = None,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(process_group_backend=process_group_backend)
        self.shardings, self.memory = tuple(shardings), memory
        self.tables: ShardedTables | None = None
        self._folder: Path | None = None  # of the tables of the checkpoint that is loaded
        self._written: tuple[int, Path] | None = None

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Tables are there to be filled only when they are sharded."""
        return True

    def setup(self, trainer: Trainer) -> None:
        """Shard the tables, then what DDP does with the rest."""
        module: Any = self.lightning_module
        if trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                "trainer.accumulate_grad_batches: sharded tables move in every backward pass, so that it must be 1; "
                "use a larger data.batch_size or more devices"
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise ConfigError(
                "trainer.precision: sharded tables would move by scaled gradients; use bf16-mixed or 32-true"
            )
        config = module.optimizer_config
        adagrad = Adagrad(
            config.table_lr, config.table_eps, config.table_initial_accumulator, config.table_weight_decay
        )
        from torchrec.distributed.planner.types import PlannerError

        try:
            self.tables = shard_tables(
                module.model,
                module.schema,
                adagrad,
                self.root_device,
                self.num_processes,
                self._bytes(),
                self.shardings,
            )
        except PlannerError as error:
            raise RunError(
                f"TorchRec has no plan for the tables with {self._bytes() / 2**30:.1f} GiB per process: more "
                f"processes, narrower tables or fewer rows are needed. It says: {error}"
            ) from error
        if self.tables is None:
            raise ConfigError("trainer.strategy: the model has no sharded tables: model.init_args.embedding.sharded")
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # undeclared
        if not any(isinstance(c, _EvenLookups) for c in callbacks):
            # First of all: at the end of an evaluation others bring processes together too.
            callbacks.insert(0, _EvenLookups(self.tables))
        super().setup(trainer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """RunError: rows are not finite, or the disk does not take them."""
        assert self.tables is not None
        if not self.reduce_boolean_decision(self.tables.is_finite()):
            raise RunError(
                "rows of the tables are not finite any more, so no checkpoint is written; those before it are as "
                "they were. A smaller training.optimizer.table_lr may help."
            )
        folder, step = Path(filepath).resolve().parent, checkpoint["global_step"]
        if self._written is None or self._written[0] != step or not self._written[1].is_relative_to(folder):
            self._written = (step, self._write_tables(folder, step))
        checkpoint[KEY] = str(self._written[1])
        super().save_checkpoint(checkpoint, filepath, storage_options)
        if self.is_global_zero:
            remove_unused(folder)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        self._folder = folder_of(checkpoint, Path(checkpoint_path)) if KEY in checkpoint else None
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        super().load_model_state_dict(checkpoint, strict)
        if self._folder is not None:
            assert self.tables is not None
            read_tables(self._folder, self.tables.shards())

    def _write_tables(self, folder: Path, step: int) -> Path:
        assert self.tables is not None
        path = folder / self.broadcast(f"step-{step:08d}-{secrets.token_hex(3)}.tables")
        partial = path.with_suffix(".partial")
        names = [f"{table}.{kind}" for table in self.tables.rows for kind in ("rows", "row_sum")]
        write_tables(partial, self.tables.shards(), names)
        if self.is_global_zero:
            partial.rename(path)
        self.barrier()
        return path

    def _bytes(self) -> int:
        if self.memory is not None:
            return int(self.memory * 2**30)
        if self.root_device.type == "cuda":
            return torch.cuda.get_device_properties(self.root_device).total_memory // 2
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // self.num_processes // 2
