"""Embedding tables spread over the processes by TorchRec, behind the interface of EmbeddingTables.

A batch costs one lookup: the distinct ids of all its fields are fetched before the model runs, and the fields of the
model find their rows among them. That is one exchange between processes instead of one per field, and one update of
each row per step, with the gradient summed over everything that looked it up, as row-wise Adagrad wants it.

Legend: R lookups of a field · K distinct ids of a table in a batch · w table width.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from kunlun.features import Batch, FeatureSchema, SparseField
from kunlun.layers.embedding import EmbeddingConfig, EmbeddingTables

SHARDINGS = ("table_wise", "row_wise")
_BLOCK = 1 << 12  # rows that are drawn together


@dataclass(frozen=True)
class Adagrad:
    """Of the rows: what :class:`kunlun.training.row_wise_adagrad.RowWiseAdagrad` takes."""

    lr: float = 0.02
    eps: float = 1e-8
    initial_accumulator: float = 0.0
    weight_decay: float = 0.0


class ShardedTables(nn.Module):
    """All tables of a schema, each on one process or its rows over all of them, as TorchRec's planner decides.

    The collections are no submodules: whoever walks the parameters of the model (DDP, clipping, the optimizer of the
    dense part, checkpoints) sees the dense part alone. :meth:`shards` is what checkpoints save.

    Args:
        schema: of the data set.
        config: widths (multiples of 4) and initialisation. The initial rows depend on torch's seed and the table's
            name, not on the number of processes.
        adagrad: the optimizer that steps inside the backward pass; ``learning_rate`` may be set to something that
            gives another rate at each lookup.
        device: of this process.
        local_processes: processes on this machine, which share its memory.
        memory: bytes that the tables may take on each process.
        shardings: what the planner may choose from; of :data:`SHARDINGS`.

    Raises:
        torchrec.distributed.planner.types.PlannerError: the tables do not fit into the memory of all processes.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        config: EmbeddingConfig,
        adagrad: Adagrad,
        device: torch.device,
        local_processes: int,
        memory: int,
        shardings: Sequence[str] = SHARDINGS,
    ) -> None:
        super().__init__()
        self.schema, self.device = schema, device
        self.widths = config.table_widths(schema)
        self.rows = {name: table.rows for name, table in schema.tables.items()}
        self.dropout = nn.Dropout1d(config.dropout) if config.dropout else nn.Identity()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # alike on all processes
            self.plan, self._by_width = _shard(self, adagrad, local_processes, memory, shardings)
        self.learning_rate: Callable[[], float] = lambda: adagrad.lr
        self._ids: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}
        for key, offset, values in self._local():
            name, kind = key.rsplit(".", 1)
            if kind == "rows":
                _draw(values, name, offset, config.init_std)
            else:
                values.fill_(adagrad.initial_accumulator)

    def fetch(self, batch: Batch) -> None:
        """Look up the distinct ids of ``batch``, for the calls of :meth:`forward` until the next one. All processes
        have to take part, each with a batch of its own or with :meth:`fetch_nothing`."""
        ids: dict[str, list[Tensor]] = {name: [] for name in self.rows}
        for column, field in enumerate(self.schema.sparse):
            ids[field.table].append(batch.sparse[:, column])
        for bag in self.schema.bags:
            ids[bag.table].append(batch.bags[bag.name].values)
        for event in self.schema.events:
            for field in event.fields:
                ids[field.table].append(batch.events[event.name][field.name].values)
        nothing = torch.empty(0, dtype=torch.long, device=self.device)
        self._fetch({name: torch.unique(torch.cat([nothing, *some])) for name, some in ids.items()})

    def before_model(self, model: nn.Module, inputs: tuple[Batch]) -> None:
        """Of a model that is about to run on a batch."""
        self.fetch(*inputs)

    def fetch_nothing(self) -> None:
        """Take part in the lookups of processes that have more batches than this one."""
        self._fetch({name: torch.empty(0, dtype=torch.long, device=self.device) for name in self.rows})

    def _fetch(self, ids: dict[str, Tensor]) -> None:
        from torchrec import KeyedJaggedTensor

        self._ids, self._found = ids, {}
        for width, collection in self._by_width.items():
            # The rate of a lookup is the one that its backward pass moves rows by.
            for group in collection.fused_optimizer.param_groups:
                group["lr"] = self.learning_rate()
            collection.fused_optimizer.step()
            names = [name for name, w in self.widths.items() if w == width]
            counts = torch.tensor([len(ids[name]) for name in names], device=self.device)
            found = collection(KeyedJaggedTensor(names, torch.cat([ids[name] for name in names]), lengths=counts))
            for name in names:
                rows = found[name].values()
                if rows.requires_grad:
                    rows.register_hook(_finite_or_nothing)
                self._found[name] = rows

    def forward(self, fields: tuple[SparseField, ...], ids: Tensor) -> list[Tensor]:
        """``ids`` (R, fields), all of the fetched batch → one (R, w) per field, in their order.

        RuntimeError: an id was not fetched.
        """
        out = []
        for column, field in enumerate(fields):
            known, wanted = self._ids[field.table], ids[:, column].contiguous()
            place = torch.searchsorted(known, wanted).clamp_(max=max(len(known) - 1, 0))
            if len(wanted):
                is_there = (known[place] == wanted).all() if len(known) else torch.tensor(False)
                torch._assert_async(is_there, f"an id of {field.table!r} was not fetched")
            rows = F.embedding(place, self._found[field.table])
            out.append(self.dropout(rows[:, None])[:, 0])
        return out

    def weight(self, name: str) -> Tensor:
        """(rows, w): the whole table, a copy on every process; all of them have to call it."""
        whole = torch.zeros(self.rows[name], self.widths[name], device=self.device)
        for key, offset, values in self._local():
            if key == f"{name}.rows":
                whole[offset : offset + len(values)] = values
        dist.all_reduce(whole)
        return whole

    def numel(self) -> int:
        """Of all tables, wherever their rows are."""
        return sum(self.rows[name] * width for name, width in self.widths.items())

    def shards(self) -> dict[str, Any]:
        """``<table>.rows`` (rows, w) and ``<table>.row_sum`` (rows,), as the sharded tensors that they are; a process
        may lack the sums of tables of which it has no row."""
        found: dict[str, Any] = {}
        for collection in self._by_width.values():
            for key, value in collection.state_dict().items():
                found[f"{key.split('.')[1]}.rows"] = value
            for state in collection.fused_optimizer.state_dict()["state"].values():
                for key, value in state.items():
                    found[f"{key.removesuffix('.momentum1')}.row_sum"] = value
        return found

    def is_finite(self) -> bool:
        """Whether the rows on this process are."""
        lows_and_highs = [torch.stack(torch.aminmax(values)) for _, _, values in self._local() if values.numel()]
        return all(bool(pair.isfinite().all()) for pair in lows_and_highs)

    def _local(self) -> Iterator[tuple[str, int, Tensor]]:
        """Key, first row and values of each shard on this process; the values are the tables' own memory."""
        for key, value in self.shards().items():
            for shard in value.local_shards():
                yield key, shard.metadata.shard_offsets[0], shard.tensor.detach()


def shard_tables(
    model: nn.Module,
    schema: FeatureSchema,
    adagrad: Adagrad,
    device: torch.device,
    local_processes: int,
    memory: int,
    shardings: Sequence[str] = SHARDINGS,
) -> ShardedTables | None:
    """Put sharded tables where ``model`` has tables that wait for it; None if it has none, else the sharded ones.

    Args are those of :class:`ShardedTables`. The model must be called with a Batch.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, ShardedTables):
                return child
            if isinstance(child, EmbeddingTables) and child.config.sharded:
                tables = ShardedTables(schema, child.config, adagrad, device, local_processes, memory, shardings)
                setattr(parent, name, tables)
                model.register_forward_pre_hook(tables.before_model)
                return tables
    return None


def _shard(
    tables: ShardedTables, adagrad: Adagrad, local_processes: int, memory: int, shardings: Sequence[str]
) -> tuple[Any, dict[int, Any]]:
    """TorchRec's plan, and a sharded collection for each width: one holds tables of one width only."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
    from torchrec import EmbeddingCollection
    from torchrec import EmbeddingConfig as TableConfig
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import PlannerError
    from torchrec.distributed.types import ShardingEnv

    fused = {
        "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "learning_rate": adagrad.lr,
        "eps": adagrad.eps,
        "weight_decay": adagrad.weight_decay,
        "weight_decay_mode": WeightDecayMode.L2,
    }
    sharder = EmbeddingCollectionSharder(fused_params=fused)
    whole = nn.ModuleDict()
    for width in sorted(set(tables.widths.values())):
        configs = [
            TableConfig(name=n, num_embeddings=tables.rows[n], embedding_dim=w, feature_names=[n], init_fn=_leave)
            for n, w in tables.widths.items()
            if w == width
        ]
        whole[str(width)] = EmbeddingCollection(tables=configs, device=torch.device("meta"))
    group = dist.group.WORLD
    assert group is not None
    topology = Topology(
        group.size(),
        tables.device.type,
        hbm_cap=memory,
        ddr_cap=memory if tables.device.type == "cpu" else None,
        local_world_size=local_processes,
    )
    kernels = [EmbeddingComputeKernel.FUSED.value]
    limits = ParameterConstraints(sharding_types=list(shardings), compute_kernels=kernels)
    # ``memory`` is the tables' alone: nothing of it is reserved for the dense part.
    reserved = FixedPercentageStorageReservation(percentage=0.0)
    planner = EmbeddingShardingPlanner(
        topology, storage_reservation=reserved, constraints=dict.fromkeys(tables.rows, limits)
    )
    # Not ``collective_plan``, after whose failure on the first process the others would wait for ever.
    told: list[Any] = [None]
    if group.rank() == 0:
        try:
            told = [planner.plan(whole, [sharder])]
        except PlannerError as error:
            told = [error]
    dist.broadcast_object_list(told, group=group)
    (plan,) = told
    if isinstance(plan, PlannerError):
        raise plan
    env = ShardingEnv.from_process_group(group)
    by_width = {
        int(width): sharder.shard(collection, plan.get_plan_for_module(width), env, tables.device)
        for width, collection in whole.items()
    }
    return plan, by_width


def _leave(weight: Tensor) -> None:
    """Rows are drawn when it is known which of a table they are."""


@torch.no_grad()
def _draw(rows: Tensor, name: str, first: int, std: float) -> None:
    """Normal initial values for ``rows``, which begin at row ``first`` of table ``name``, block by block, so that it
    does not matter where a table is cut."""
    generator = torch.Generator()
    for block in range(first // _BLOCK, -(-(first + len(rows)) // _BLOCK)):
        generator.manual_seed(zlib.crc32(f"{torch.initial_seed()} {name} {block}".encode()))
        begin, end = max(first, block * _BLOCK), min(first + len(rows), (block + 1) * _BLOCK)
        # A whole block, whatever is needed of it: what torch draws depends on how much it draws.
        drawn = torch.empty(_BLOCK, rows.shape[1]).normal_(std=std, generator=generator)
        rows[begin - first : end - first] = drawn[begin - block * _BLOCK : end - block * _BLOCK]


def _finite_or_nothing(grad: Tensor | None) -> Tensor | None:
    """Rows move inside the backward pass, before anyone can look at the gradients: let none move by nan."""
    return None if grad is None else torch.where(grad.isfinite().all(), grad, 0.0)
