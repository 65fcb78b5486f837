"""FSDP2 for the dense part of a model, with its sparse tables left whole on every rank: ``--trainer.strategy fsdp2``.

Weights of the dense part, their gradients and the state of AdamW are split over the ranks; each rank has all weights
from the forward pass to the end of the backward pass (ZeRO stage 2). Gathering them anew for the backward pass needs
hooks on the tensors that a layer returns, and FSDP finds none in a packed sequence. Gradients of tables are exchanged
as in DDP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from kunlun.checkpoints import require_whole
from kunlun.training.data_parallel import broadcast_from_first, exchange_sparse_gradients, let_processes_leave
from kunlun.training.optimizers import sparse_tables


class SparseFSDP2Strategy(ModelParallelStrategy):
    """All ranks are one data-parallel group. Checkpoints are those of one process: whole, and in one file."""

    _tables: tuple[Tensor, ...] = ()
    _is_last_batch = True  # of an accumulation

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def shard(self, model: nn.Module) -> None:
        """Called by CTRModule, when it is built and before its optimizers are."""
        if not isinstance(model, FSDPModule):  # else from the fit before this test
            model.to(self.root_device)
            self._tables = split_dense(model, self.device_mesh["data_parallel"])

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        self._is_last_batch = False
        try:
            yield
        finally:
            self._is_last_batch = True

    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        if self._is_last_batch:
            exchange_sparse_gradients(self._tables)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """RunError: the file is damaged."""
        require_whole(Path(checkpoint_path))
        return super().load_checkpoint(checkpoint_path, weights_only=True)

    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        let_processes_leave(self.launcher)

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        strategy_registry.register("fsdp2", cls, "FSDP2 for the dense part; tables as in DDP", override=True)


def split_dense(model: nn.Module, mesh: DeviceMesh) -> tuple[Tensor, ...]:
    """Split the dense part of ``model`` over ``mesh``, with rank 0's values; returns the tables, which stay whole."""
    broadcast_from_first([*model.parameters(), *model.buffers()])
    tables = tuple(dict.fromkeys(sparse_tables(model).values()))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=cast("set[nn.Parameter]", set(tables)))
    return tables


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The members of module lists, outermost first: what is gathered and reduced by itself."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (layer for layer in child if any(True for _ in layer.parameters()))
        else:
            yield from layers_of(child)
