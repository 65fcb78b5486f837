"""Time of a training step against the size of the embedding table: `python -m benchmarks.embedding_step`.

A step is the lookup of B×F ids in one table, a small tower, the backward pass, and the step of one optimizer: AdamW for
the tower and, for the table, row-wise Adagrad or one of torch's own optimizers for sparse gradients. Steps with the
large and the small table and with all optimizers are interleaved in one run, so that load from outside strikes all.

Both tables see the same number of ids and of distinct rows per step: ids are drawn until the wanted number of distinct
rows is reached, and the remaining positions repeat draws. Every step gets fresh ids, from one of three draws:
* frequency: P(row r) ∝ (r+1)^-1.05, as item and user traffic looks with the ids that `cli.py prepare` gives (the most
  frequent value first);
* hashed: the same traffic with ids scattered over the table, as hashing gives: hot rows on a memory page each;
* uniform: every row equally likely, the worst case: with the large table nearly every access misses the caches.
What the large table costs more is the processor's waiting for memory. With THP_MEM_ALLOC_ENABLE=1 in the environment
torch asks the kernel for huge pages, which saves part of it; the report says whether it was set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adagrad, AdamW, Optimizer, SparseAdam

from kunlun.training.optimizers import CompositeOptimizer, RowWiseAdagrad

TABLE_OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "row-wise Adagrad (ours)": lambda table: RowWiseAdagrad(table, lr=0.02),
    "torch Adagrad": lambda table: Adagrad(table, lr=0.02),
    "torch SparseAdam": lambda table: SparseAdam(table, lr=1e-3),
}
ZIPF_EXPONENT = 1.05
DRAWS = ("frequency", "hashed", "uniform")


class Tower(nn.Module):
    """One table for all fields and a two-layer tower: ids (B, F) → logits (B,)."""

    def __init__(self, rows: int, dim: int, fields: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, dim, sparse=True)
        self.tower = nn.Sequential(nn.Flatten(), nn.Linear(fields * dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, ids_BF: Tensor) -> Tensor:
        return self.tower(self.table(ids_BF)).squeeze(1)


def draw_rows(rng: np.random.Generator, draw: str, rows: int, count: int) -> np.ndarray:
    """`count` independent draws of a table row."""
    if draw == "uniform":
        return rng.integers(rows, size=count)
    exponent = 1.0 - ZIPF_EXPONENT
    rank = ((rows**exponent - 1.0) * rng.random(count) + 1.0) ** (1.0 / exponent) - 1.0
    rank = np.minimum(rank.astype(np.int64), rows - 1)
    # A prime that divides no table size in use: neighbouring ranks land far apart, each on its own row.
    return rank if draw == "frequency" else rank * 7_368_787 % rows


def draw_ids(rng: np.random.Generator, draw: str, rows: int, count: int, distinct: int) -> np.ndarray:
    """`count` draws in random order with exactly `distinct` different rows."""
    draws = draw_rows(rng, draw, rows, count)
    while len(first := np.unique(draws, return_index=True)[1]) < distinct:
        draws = np.concatenate([draws, draw_rows(rng, draw, rows, count)])
    kept = draws[: np.sort(first)[distinct - 1] + 1]
    if len(kept) > count:  # more draws than positions were needed: one position per row, the rest as drawn
        kept = np.concatenate([kept[np.unique(kept, return_index=True)[1]], kept])[:count]
    return rng.permutation(np.concatenate([kept, rng.choice(kept, count - len(kept))]))


def timed_step(model: Tower, optimizer: Optimizer, ids_BF: Tensor, labels_B: Tensor) -> dict[str, float]:
    """Milliseconds of one whole step and of the optimizer's share in it."""
    start = time.perf_counter()
    loss = nn.functional.binary_cross_entropy_with_logits(model(ids_BF), labels_B)
    optimizer.zero_grad()
    loss.backward()
    before_update = time.perf_counter()
    optimizer.step()
    end = time.perf_counter()
    optimizer.zero_grad()
    return {"step_ms": 1e3 * (end - start), "optimizer_ms": 1e3 * (end - before_update)}


def state_bytes(optimizer: Optimizer, table: Tensor) -> int:
    """Bytes of optimizer state that belong to the table."""
    return sum(value.nbytes for value in optimizer.state[table].values() if isinstance(value, Tensor) and value.ndim)


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Run all combinations and return their medians, ratios and state sizes."""
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    sizes, count = (args.small_rows, args.large_rows), args.batch_size * args.fields
    models = {rows: Tower(rows, args.dim, args.fields, args.hidden) for rows in sizes}
    optimizers: dict[tuple[str, int], Optimizer] = {}
    for name, build in TABLE_OPTIMIZERS.items():
        for rows, model in models.items():
            tower = AdamW(model.tower.parameters(), lr=1e-3)
            inner = build([model.table.weight])
            optimizers[name, rows] = CompositeOptimizer([tower, inner])
    labels_B = torch.randint(2, (args.batch_size,)).float()

    results = []
    for draw in DRAWS:
        rng = np.random.default_rng(0)
        distinct = min(len(np.unique(draw_rows(rng, draw, rows, count))) for rows in sizes)
        times: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in optimizers}
        for step in range(args.warmup + args.rounds):
            for name in TABLE_OPTIMIZERS:
                for rows in sizes if step % 2 else sizes[::-1]:
                    ids_BF = torch.from_numpy(draw_ids(rng, draw, rows, count, distinct)).view(-1, args.fields)
                    times[name, rows].append(timed_step(models[rows], optimizers[name, rows], ids_BF, labels_B))
        for name in TABLE_OPTIMIZERS:
            result: dict[str, Any] = {"draw": draw, "table_optimizer": name, "distinct_rows_per_step": distinct}
            for measure in ("step_ms", "optimizer_ms"):
                small, large = (
                    statistics.median(step[measure] for step in times[name, rows][args.warmup :]) for rows in sizes
                )
                result |= {f"small_{measure}": small, f"large_{measure}": large, f"{measure}_ratio": large / small}
            table = models[args.large_rows].table.weight
            result["large_state_bytes_per_row"] = state_bytes(optimizers[name, args.large_rows], table) / len(table)
            results.append(result)
    return {
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()},
        "results": results,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table; with --out, write the same numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small-rows", type=int, default=100_000)
    parser.add_argument("--large-rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--fields", type=int, default=26)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=64, help="width of the tower: the smaller, the larger the ratio")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=3, help="rounds that are run first and not counted")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    report = benchmark(args)
    peak = report["peak_memory_bytes"] / 1e9
    print(
        f"huge pages {report['huge_pages']}, peak memory {peak:.1f} GB, {args.threads} thread(s), tower {args.hidden}"
    )
    print(
        f"{'draw':10} {'table optimizer':24} {'distinct':>8} {'step ms: small':>15} {'large':>8} {'ratio':>6} "
        f"{'state B/row':>12}"
    )
    for r in report["results"]:
        print(
            f"{r['draw']:10} {r['table_optimizer']:24} {r['distinct_rows_per_step']:8d} {r['small_step_ms']:15.1f} "
            f"{r['large_step_ms']:8.1f} {r['step_ms_ratio']:6.2f} {r['large_state_bytes_per_row']:12.0f}"
        )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
