"""Two processes on gloo: sparse gradients, steps that all agree on, and a run of cli.py against one process."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import data_parallel as benchmark
from benchmarks.reliability.attempts import Setting
from data.order import BatchOrder
from kunlun.configuration import ConfigError, RunError
from kunlun.training import data_parallel
from kunlun.training.checkpointing import LastCheckpoints
from kunlun.training.data_parallel import (
    SparseDDPStrategy,
    broadcast_from_first,
    exchange_sparse_gradients,
    let_processes_leave,
)
from kunlun.training.module import CTRModule
from kunlun.training.nonfinite import NonFiniteGuard
from kunlun.training.preemption import Preemption
from kunlun.training.runs import CheckpointEvery
from tests.processes import WORLD, spawn
from tests.training.test_module import Toy
from tests.training.test_nonfinite import SCHEMA, Poisoned

NAMES = {"auto", "ddp", "ddp_find_unused_parameters_true", "ddp_spawn"}
ROWS, WIDTHS = 50, (3, 8)
# Lookups of each rank in a table per backward pass; None: the table has no gradient there.
LOOKUPS: dict[str, tuple[tuple[int, ...] | None, tuple[int, ...] | None]] = {
    "both ranks": ((7,), (20,)),
    "a rank that touches no row": ((0,), (9,)),
    "a rank without a gradient": ((5,), None),
    "no rank has a gradient": (None, None),
    "nobody touches a row": ((0,), (0,)),
    "two passes": ((6, 4), (0, 30)),
}


def _gradients(rank: int, case: str, dtype: torch.dtype) -> list[Tensor | None]:
    """Of one rank, one per table, sparse and not coalesced."""
    draw = torch.Generator().manual_seed(100 * rank + len(case))
    found: list[Tensor | None] = []
    for width, counts in zip(WIDTHS, (LOOKUPS[case][rank], LOOKUPS[case][1 - rank]), strict=True):
        if counts is None:
            found.append(None)
            continue
        table = nn.Embedding(ROWS, width, sparse=True, dtype=dtype)
        for count in counts:
            out = table(torch.randint(0, ROWS // 2, (count,), generator=draw))
            (out * torch.randn(count, width, generator=draw).to(dtype)).sum().backward()
        found.append(table.weight.grad)
    return found


def _exchange(rank: int, folder: Path) -> None:
    for case in LOOKUPS:
        for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float64, 1e-6)):
            tables = [nn.Parameter(torch.zeros(ROWS, width, dtype=dtype)) for width in WIDTHS]
            for table, grad in zip(tables, _gradients(rank, case, dtype), strict=True):
                table.grad = grad
            exchange_sparse_gradients(tables)
            all_ranks = zip(tables, *(_gradients(r, case, dtype) for r in range(WORLD)), strict=True)
            for table, *gradients in all_ranks:
                dense = [torch.zeros(table.shape).double() if g is None else g.to_dense().double() for g in gradients]
                expected = sum(dense) / WORLD
                if table.grad is None:
                    assert not any(g is not None and g._nnz() for g in gradients), case
                    continue
                assert table.grad.is_sparse
                assert table.grad.dtype == dtype
                got = table.grad.to_dense()
                torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance, msg=case)
                if got.dtype != torch.bfloat16:
                    other = [torch.empty_like(got) for _ in range(WORLD)]
                    dist.all_gather(other, got)
                    assert torch.equal(*other), case
    table = nn.Parameter(torch.full((4, 2), float(rank)))
    broadcast_from_first([table])
    assert not table.any()


def test_the_exchange_is_the_mean_over_ranks(tmp_path: Path) -> None:
    spawn(_exchange, tmp_path)


def _trained(model: nn.Module, callback: L.Callback, unused: bool = False, **options) -> L.Trainer:
    os.environ["LOCAL_RANK"] = str(dist.get_rank())  # Lightning then starts no processes itself
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"max_epochs": 1, **quiet}
    options["enable_checkpointing"] = isinstance(callback, Checkpoint)
    options["use_distributed_sampler"] = False
    strategy = SparseDDPStrategy(find_unused_parameters=unused)
    trainer = L.Trainer(accelerator="cpu", devices=WORLD, strategy=strategy, callbacks=[callback], **options)
    data = Toy(SCHEMA)
    data.eval_batch_size = 24  # three batches: rank 0 has one more
    trainer.fit(CTRModule(model), data)
    return trainer


def _assert_equal_on_all_ranks(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        other = [torch.empty_like(tensor) for _ in range(WORLD)]
        dist.all_gather(other, tensor)
        assert torch.equal(*other), name


def _train(rank: int, folder: Path) -> None:
    exchanged = []
    exchange = data_parallel.exchange_sparse_gradients
    data_parallel.exchange_sparse_gradients = lambda tables: exchanged.append(len(tables)) or exchange(tables)

    forwards = []
    forward = DistributedDataParallel.forward
    DistributedDataParallel.forward = lambda ddp, *inputs: forwards.append(1) or forward(ddp, *inputs)

    # Different weights at first, and an exchange per update, not per batch; nothing is exchanged in evaluation.
    torch.manual_seed(rank)
    model = Poisoned(set(), 0.0, "loss")
    assert _trained(model, NonFiniteGuard(None, "stop", 0), accumulate_grad_batches=2).global_step == 2
    assert exchanged == [1, 1]
    assert len(forwards) == 4
    _assert_equal_on_all_ranks(model)

    model = Poisoned(set(), 0.0, "loss")
    model.unused = nn.Linear(2, 2)
    _trained(model, NonFiniteGuard(None, "stop", 0), unused=True)
    _assert_equal_on_all_ranks(model)

    # One rank has a bad batch: both leave it out, and both ranks' rows are named.
    model, guard = Poisoned({2} if rank else set(), math.nan, "loss"), NonFiniteGuard(folder, "skip", 1)
    _trained(model, guard)
    assert guard.skipped == 1
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    _assert_equal_on_all_ranks(model)
    if rank == 0:
        record = json.loads((folder / "nonfinite.jsonl").read_text())
        assert record["losses"][1] == "nan"
        assert math.isfinite(float(record["losses"][0]))
        orders = [BatchOrder(64, 8, shuffle=True, drop_last=True, rank=r, world=WORLD) for r in range(WORLD)]
        assert record["rows"] == np.concatenate([list(order)[2] for order in orders]).tolist()

    # They would go on from different checkpoints: neither begins.
    last = LastCheckpoints(folder, CheckpointEvery(), 1, Preemption(), folder / "step.ckpt" if rank else None)
    with pytest.raises(RunError, match="rank 0 from None"):
        _trained(Poisoned(set(), 0.0, "loss"), last)

    # Or both stop, of which one says why.
    with pytest.raises(SystemExit if rank else RunError):
        _trained(Poisoned({1} if rank else set(), math.inf, "table"), NonFiniteGuard(folder, "stop", 0))


def test_all_ranks_agree(tmp_path: Path) -> None:
    spawn(_train, tmp_path)


def test_it_is_what_auto_and_ddp_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in StrategyRegistry if name.startswith("ddp")]:
        monkeypatch.setitem(StrategyRegistry, name, StrategyRegistry[name])  # put back afterwards
    SparseDDPStrategy.register_strategies(StrategyRegistry)
    chosen = {name: L.Trainer(accelerator="cpu", devices=2, strategy=name, logger=False).strategy for name in NAMES}
    assert {name for name, strategy in chosen.items() if type(strategy) is SparseDDPStrategy} == NAMES - {"ddp_spawn"}
    assert chosen["ddp_find_unused_parameters_true"]._ddp_kwargs == {"find_unused_parameters": True}


def test_no_process_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that left as it should, with an exit code of its own, end the one that started it."""
    monkeypatch.setattr(data_parallel, "SECONDS_TO_LEAVE", 0.5)
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), 3, 1)
    leaving, staying = (subprocess.Popen(["sh", "-c", command]) for command in ("exit 143", "exec sleep 60"))
    launcher.procs = watched = [leaving, staying]
    let_processes_leave(launcher)
    assert watched == []  # what Lightning's observer looks at
    assert (leaving.wait(), staying.wait()) == (143, -signal.SIGKILL)


def test_global_batches_have_the_rows_of_one_rank() -> None:
    """Training leaves out less than one global batch; evaluation nothing, though a rank may have a batch more."""
    (single,) = (list(BatchOrder(205, 8, shuffle=True, drop_last=True)),)
    ranks = [list(BatchOrder(205, 4, shuffle=True, drop_last=True, rank=r, world=2)) for r in range(2)]
    assert [np.concatenate(parts).tolist() for parts in zip(*ranks, strict=True)] == [rows.tolist() for rows in single]
    parts = [list(BatchOrder(205, 10, shuffle=False, rank=r, world=2)) for r in range(2)]
    assert [len(part) for part in parts] == [11, 10]
    assert sorted(np.concatenate([*parts[0], *parts[1]]).tolist()) == list(range(205))


def test_no_rank_is_without_a_batch() -> None:
    """It would let the others wait for ever."""
    data = Toy(SCHEMA)
    seen = []
    for rank in range(9):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=9)
        batches = list(data.val_dataloader().batch_sampler)
        assert batches
        seen += [row for batch in batches for row in batch.tolist()]
    assert sorted(seen) == list(range(64))
    with pytest.raises(ConfigError, match="64 train rows are less than one batch of 8 for each of 9 devices"):
        data.train_dataloader()
    data.trainer.world_size = 65
    with pytest.raises(ConfigError, match="64 valid rows"):
        data.val_dataloader()


@pytest.mark.slow
def test_two_ranks_are_level_with_one_and_go_on_after_a_signal(tmp_path: Path) -> None:
    more = ("--trainer.accumulate_grad_batches=2", "--run.wandb=offline", "--trainer.max_epochs=1")
    found = benchmark.parity(tmp_path, *more, epochs=1, batches=24)
    assert found["steps"] == 24
    assert found["largest_loss_gap"] < 1e-5
    assert found["loss_gap_between_ranks"] > 1e-3  # they had rows of their own
    assert found["largest_metric_gap"] < 1e-4
    assert found["metrics_are_those_of_every_rank"]
    assert found["largest_weight_gap"] < 1e-3
    assert found["ranks_end_with_equal_weights"]

    setting = Setting(tmp_path, 1, name="two-ranks-auto", batches=24)
    (run,) = setting.runs.iterdir()
    assert len(list(run.rglob("*.wandb"))) == 1
    assert setting.log.read_text().count("run: ") == 2  # as it starts and as it ends, by one process

    options = (*more, "--model.embedding.dropout=0", *benchmark.WHOLE_SPLIT)
    expected = [benchmark.traced(setting, rank) for rank in range(benchmark.RANKS)]
    found = benchmark.resumed(tmp_path, expected, 0, 1, *options, epochs=1, batches=24)
    assert (found["exit_143"], found["finished"], found["differences"], found["missing"]) == (1, True, 0, 0)
