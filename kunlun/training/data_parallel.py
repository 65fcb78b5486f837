"""DDP for models with sparse embedding gradients: the dense part as ever, the touched rows of tables by all-gather.

NCCL has no sparse all-reduce. Gathering dense tensors of ids and rows is all that is used here, so that GPUs and CPUs
do the same.

Legend: W ranks · T tables · D width of a table · R rows a rank touched · M most rows that any rank touched.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kunlun.training.optimizers import sparse_tables
from kunlun.training.row_wise_adagrad import touched_rows

SECONDS_TO_LEAVE = 10.0


class SparseDDPStrategy(DDPStrategy):
    """torch's DDP, which never sees the sparse tables: their gradients are exchanged after the backward pass of the
    batch that ends an accumulation, before anything reads them."""

    _tables: tuple[Tensor, ...] = ()

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        tables = sparse_tables(model)
        self._tables = tuple(dict.fromkeys(tables.values()))
        broadcast_from_first(self._tables)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*tables, *_constants(model)])
        return super()._setup_model(model)

    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        if getattr(self.model, "require_backward_grad_sync", False):
            exchange_sparse_gradients(self._tables)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        # Not through DDP, whose forward may talk to the other ranks: some of them have a batch less than others.
        assert self.lightning_module is not None
        with self.precision_plugin.val_step_context():
            return self.lightning_module.validation_step(*args, **kwargs)

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        let_processes_leave(self.launcher)

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """The names ``ddp``, which ``auto`` chooses too, and ``ddp_find_unused_parameters_*`` mean this from now on."""
        for name, arguments in (
            ("ddp", {}),
            ("ddp_find_unused_parameters_false", {"find_unused_parameters": False}),
            ("ddp_find_unused_parameters_true", {"find_unused_parameters": True}),
        ):
            strategy_registry.register(name, cls, "DDP, and sparse gradients by all-gather", override=True, **arguments)


def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Every rank has rank 0's values afterwards."""
    for tensor in tensors:
        dist.broadcast(tensor.detach(), 0)


@torch.no_grad()
def exchange_sparse_gradients(tables: Sequence[Tensor]) -> None:
    """Replace the gradient of each table by its mean over the ranks: sparse, and the same on every rank bit for bit.

    A rank without a gradient, or whose batch touched no row of a table, takes part like any other. Rows are summed
    within a rank in float32 and sent in the dtype of the table; a row that several ranks touched occurs several times
    in the result, for whoever reads it to sum. All ranks must call this together, with the same tables in one order.
    """
    if not tables:
        return
    world = dist.get_world_size()
    own = [_own_rows(table) for table in tables]
    counts_T = torch.tensor([len(ids_R) for ids_R, _ in own], device=tables[0].device)
    counts_TW = _gathered(counts_T, world).T.tolist()
    for table, (ids_R, rows_RD), counts_W in zip(tables, own, counts_TW, strict=True):
        most = max(counts_W)
        if most == 0:
            continue
        ids_WM = _gathered(_padded(ids_R, most), world)
        rows_WMD = _gathered(_padded(rows_RD, most), world)
        ids = torch.cat([ids_M[:n] for ids_M, n in zip(ids_WM, counts_W, strict=True)])
        rows = torch.cat([rows_MD[:n] for rows_MD, n in zip(rows_WMD, counts_W, strict=True)])
        table.grad = torch.sparse_coo_tensor(ids[None], rows.div_(world), table.shape, check_invariants=False)


def _own_rows(table: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids (R,) and rows (R, D) of the gradient on this rank."""
    if table.grad is None:
        return table.new_empty(0, dtype=torch.int64), table.new_empty(0, table.shape[1])
    ids_R, rows_RD = touched_rows(table.grad)
    return ids_R, rows_RD.to(table.dtype)


def _padded(x_R: Tensor, length: int) -> Tensor:
    return torch.cat([x_R, x_R.new_zeros(length - len(x_R), *x_R.shape[1:])])


def _gathered(x: Tensor, world: int) -> Tensor:
    """(W, ...): ``x`` of every rank; they all have one shape."""
    out = x.new_empty(world, *x.shape)
    dist.all_gather(list(out), x.contiguous())
    return out


def _constants(model: nn.Module) -> list[str]:
    """Buffers that no checkpoint holds are computed from the configuration: they need not travel before each step."""
    return [
        f"{name}.{buffer}" if name else buffer
        for name, module in model.named_modules()
        for buffer in module._non_persistent_buffers_set
    ]


def let_processes_leave(launcher: Any) -> None:
    """Wait for the processes that this one has started, which leave for the same reason, and kill those that do not.

    Lightning's own observer would kill this process too, at once and whatever it still has to save, as soon as another
    one ends with an exit code other than 0.
    """
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    processes = list(launcher.procs)
    launcher.procs.clear()  # the observer looks at this very list
    deadline = time.monotonic() + SECONDS_TO_LEAVE
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.0))
        process.kill()
