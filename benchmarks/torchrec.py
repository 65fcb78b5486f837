"""Sharded tables against plain ones: `python -m benchmarks.torchrec --out benchmarks/results/cpu/torchrec.json`.

The same model, from the same weights, learns from the same rows: on one process with plain tables and the whole batch,
and on several with sharded tables and their part of each batch each. Compared are the loss of every step, averaged over
the processes, the tables at the end, and Adagrad's sums of their rows, as a share of the largest; once per kind of
sharding. Then the tables are saved by all processes and loaded by one, and by a plain model; there nothing may differ.
Processes are of this machine, and talk by gloo.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from benchmarks.machine import device, versions
from data import SyntheticData
from kunlun.layers.embedding import EmbeddingConfig
from kunlun.layers.sharded_tables import SHARDINGS
from kunlun.models import Kunlun
from kunlun.training.checkpoint_io import SealedCheckpointIO
from kunlun.training.module import CTRModule
from kunlun.training.optimizers import OptimizerConfig
from kunlun.training.sharded_checkpoint import folder_of, plain_state, read_tables, write_tables
from kunlun.training.sharded_strategy import ShardedTablesStrategy

DENSE, TABLES = "dense.pt", "start"


class Recorder(Callback):
    """The loss of every step, averaged over processes."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach().double()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        self.losses.append(float(loss))


class FromTables(Callback):
    """Begin with the rows in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        read_tables(self.folder, strategy.tables.shards())


def build(args: argparse.Namespace, sharded: bool, world: int) -> tuple[SyntheticData, CTRModule]:
    """Data whose batches are a ``world``-th of the batch, and the model. There are three batches to validate."""
    seed_everything(0, verbose=False)
    data = SyntheticData(preset="tiny", batch_size=args.batch_size // world, eval_batch_size=2731)
    embedding = EmbeddingConfig(width=16, widths={"user": 8}, init_std=0.3, sharded=sharded)
    model = Kunlun(data.schema, embedding=embedding)
    optimizer = OptimizerConfig(lr=3e-3, schedule="cosine", warmup_steps=args.steps // 4)
    return data, CTRModule(model, optimizer)


def trainer(args: argparse.Namespace, world: int, callbacks: list[Callback], **more: Any) -> Trainer:
    options = {
        "accelerator": "cpu",
        "devices": world,
        "max_steps": args.steps,
        "gradient_clip_val": 1.0,
        "use_distributed_sampler": False,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "plugins": [SealedCheckpointIO()],
        "callbacks": callbacks,
    }
    return Trainer(**(options | more))


def plain_run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train with plain tables; the weights it began with are left in ``folder`` for the sharded runs."""
    data, module = build(args, sharded=False, world=1)
    tables: Any = module.model.tables
    state = module.state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("model.tables.")}, folder / DENSE)
    begin = {f"{name}.rows": tables.weight(name).detach() for name in tables.rows}
    begin |= {f"{name}.row_sum": torch.zeros(rows) for name, rows in tables.rows.items()}
    write_tables(folder / TABLES, begin, list(begin))
    recorder = Recorder()
    run = trainer(args, 1, [recorder])
    run.fit(module, data)
    return {
        "losses": recorder.losses,
        "tables": {name: tables.weight(name).detach() for name in tables.rows},
        "sums": {name: _plain_sums(run, tables, name) for name in tables.rows},
    }


def _plain_sums(run: Trainer, tables: Any, name: str) -> Tensor:
    """Adagrad's sums of the rows of one table."""
    sums = run.optimizers[0].state[tables.by_width[str(tables.widths[name])].weight]["row_sum"]
    return sums[tables.first_row[name] :][: tables.rows[name]]


def saved_sums(path: Path, rows: dict[str, int]) -> dict[str, Tensor]:
    """Adagrad's sums in the checkpoint ``path`` of a sharded run."""
    sums = {name: torch.zeros(count) for name, count in rows.items()}
    folder = folder_of(SealedCheckpointIO().load_checkpoint(path), path)
    read_tables(folder, {f"{name}.row_sum": values for name, values in sums.items()}, alone=True)
    return sums


def sharded_runs(args: argparse.Namespace, folder: Path, world: int) -> dict[str, Any]:
    """One process of a run per kind of sharding, each of which ends with a checkpoint."""
    return {sharding: _sharded_run(args, folder, world, sharding) for sharding in args.shardings}


def _sharded_run(args: argparse.Namespace, folder: Path, world: int, sharding: str) -> dict[str, Any]:
    data, module = build(args, sharded=True, world=world)
    module.load_state_dict(torch.load(folder / DENSE, weights_only=True), strict=False)
    recorder, strategy = Recorder(), ShardedTablesStrategy(shardings=[sharding])
    run = trainer(args, world, [recorder, FromTables(folder / TABLES)], strategy=strategy)
    run.fit(module, data)
    run.save_checkpoint(folder / f"{sharding}.ckpt")
    return {"losses": recorder.losses, **_of_tables(strategy)}


def loaded_runs(args: argparse.Namespace, folder: Path, world: int) -> dict[str, Any]:
    """What runs at another number of processes find in the checkpoints; they go no step further."""
    found = {}
    for sharding in args.shardings:
        data, module = build(args, sharded=True, world=world)
        strategy = ShardedTablesStrategy(shardings=[sharding])
        path = folder / f"{sharding}.ckpt"
        trainer(args, world, [], strategy=strategy).fit(module, data, ckpt_path=path, weights_only=True)
        found[sharding] = _of_tables(strategy)
    return found


def plain_tables(args: argparse.Namespace, path: Path) -> dict[str, Tensor]:
    """What a plain model has after loading the checkpoint ``path``."""
    _, module = build(args, sharded=False, world=1)
    module.load_state_dict(plain_state(module, SealedCheckpointIO().load_checkpoint(path), path))
    tables: Any = module.model.tables
    return {name: tables.weight(name).detach() for name in tables.rows}


def on_processes(run: Callable[..., Any], folder: Path, world: int, *arguments: Any) -> list[Any]:
    """What ``run(*arguments)`` returns on each of ``world`` processes: tensors and plain values."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, (run, folder, world, port, arguments), nprocs=world)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(world)]


def _process(rank: int, run: Callable, folder: Path, world: int, port: int, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("torchrec", "torch.fx._symbolic_trace", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group("gloo")
    torch.save(run(*arguments), folder / f"result-{rank}.pt")
    dist.destroy_process_group()


def _of_tables(strategy: ShardedTablesStrategy) -> dict[str, Any]:
    tables = strategy.tables
    assert tables is not None
    shards = [shard for value in tables.shards().values() for shard in value.local_shards()]
    return {
        "tables": {name: tables.weight(name) for name in tables.rows},
        "bytes": sum(shard.tensor.nbytes for shard in shards),
    }


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """All comparisons, as plain values."""
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plain = plain_run(args, folder)
        processes = on_processes(sharded_runs, folder, args.world, args, folder, args.world)
        alone = on_processes(loaded_runs, folder, 1, args, folder, 1)[0]
        for sharding in args.shardings:
            first = processes[0][sharding]
            differences = [abs(a - b) for a, b in zip(plain["losses"], first["losses"], strict=True)]
            sums = saved_sums(folder / f"{sharding}.ckpt", {name: len(t) for name, t in plain["tables"].items()})
            largest = max(float(values.max()) for values in sums.values())
            results.append(
                {
                    "sharding": sharding,
                    "steps": len(differences),
                    "loss_first": plain["losses"][0],
                    "loss_last": plain["losses"][-1],
                    "loss_max_difference": max(differences),
                    "tables_max_difference": _difference(plain["tables"], first["tables"]),
                    "row_sums_max_difference": _difference(plain["sums"], sums) / largest,
                    "loaded_by_one_max_difference": _difference(first["tables"], alone[sharding]["tables"]),
                    "loaded_by_plain_max_difference": _difference(
                        first["tables"], plain_tables(args, folder / f"{sharding}.ckpt")
                    ),
                    "table_bytes_per_process": [one[sharding]["bytes"] for one in processes],
                    "table_bytes_alone": alone[sharding]["bytes"],
                }
            )
    return {
        "settings": {"world": args.world, "steps": args.steps, "batch_size": args.batch_size},
        "device": device(1),
        "versions": versions("torch", "lightning", "torchrec", "fbgemm-gpu-cpu"),
        "results": results,
    }


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=2, help="processes of the sharded runs")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=256, help="rows of a step, over all processes")
    parser.add_argument("--shardings", nargs="+", choices=SHARDINGS, default=list(SHARDINGS))
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Print the report; with --out, write it too."""
    args = arguments(given)
    report = json.dumps(benchmark(args), indent=2)
    print(report)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report + "\n")


if __name__ == "__main__":
    main()
