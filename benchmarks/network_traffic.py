"""What data-parallel training sends per step, and what a rank must hold, by formula: nothing is measured.

    python -m benchmarks.network_traffic

Legend: W ranks · P parameters of the dense part · R rows of tables that a rank's batch touches · D width of a table ·
N parameters of all tables. A ring is assumed, in which all-gather and reduce-scatter each send (W − 1) / W of the whole
from every rank; float32 throughout; ids are int64.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from benchmarks.paper_flops import arguments
from data import SyntheticData
from kunlun.models import Kunlun
from kunlun.training.optimizers import sparse_tables

OUT = Path(__file__).parent / "results" / "network_traffic.json"
RANKS = (2, 8, 64, 1000)
ROWS = (10_000, 100_000, 1_000_000)
WIDTH = 64
TABLES = (10**9, 10**10, 10**12)
BYTES_PER_SECOND = 50e9  # 400 Gbit/s, the network card of one GPU
GPU_BYTES = 80e9


def dense_bytes(parameters: int, ranks: int) -> float:
    """Sent per rank and step: the all-reduce of DDP, or as much by the all-gather and reduce-scatter of FSDP2."""
    return 4 * parameters * 2 * (ranks - 1) / ranks


def sparse_bytes(rows: int, width: int, ranks: int) -> float:
    """Sent per rank and step: every rank's ids and rows pass through every other; all touch ``rows`` rows."""
    return rows * (8 + 4 * width) * (ranks - 1)


def looked_up_bytes(rows: int, width: int, ranks: int) -> float:
    """The same with tables split over the ranks: ids out, vectors back, gradients out, each to the rank that has it."""
    return rows * (8 + 2 * 4 * width) * (ranks - 1) / ranks


def dense_memory(parameters: int, ranks: int) -> float:
    """Bytes on a rank with FSDP2 as a backward pass ends: all weights and gradients, and its part of weights, gradients
    and AdamW's two moments. Buffers for sending are left out, here and in the 16 P of DDP."""
    return 8 * parameters + 16 * parameters / ranks


def table_memory(parameters: int, width: int, ranks: int = 1) -> float:
    """Bytes of tables, and of one float32 of state per row, of a rank when they are split over ``ranks``."""
    return (4 * parameters + 4 * parameters / width) / ranks


def dense_parameters() -> int:
    """Of configs/models/base.yaml on the synthetic schema."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Kunlun, skip={"schema"})
    chosen = parser.instantiate(parser.parse_object(arguments())).as_dict()
    with torch.device("meta"):
        model = Kunlun(SyntheticData("tiny").schema.with_max_length(1000), **chosen)
    tables = {id(table) for table in sparse_tables(model).values()}
    return sum(p.numel() for p in model.parameters() if id(p) not in tables)


def report() -> dict[str, Any]:
    parameters = dense_parameters()
    steps = []
    for ranks in RANKS:
        dense = dense_bytes(parameters, ranks)
        sparse = {
            str(rows): {
                "exchanged_mb": sparse_bytes(rows, WIDTH, ranks) / 1e6,
                "exchanged_ms": sparse_bytes(rows, WIDTH, ranks) / BYTES_PER_SECOND * 1e3,
                "held_mb": rows * (8 + 4 * WIDTH) * ranks / 1e6,
                "split_tables_mb": looked_up_bytes(rows, WIDTH, ranks) / 1e6,
                "split_tables_ms": looked_up_bytes(rows, WIDTH, ranks) / BYTES_PER_SECOND * 1e3,
            }
            for rows in ROWS
        }
        steps.append(
            {
                "ranks": ranks,
                "dense_mb": dense / 1e6,
                "dense_ms": dense / BYTES_PER_SECOND * 1e3,
                "dense_memory_mb": dense_memory(parameters, ranks) / 1e6,
                "rows": sparse,
            }
        )
    return {
        "assumed": {"bytes_per_second": BYTES_PER_SECOND, "table_width": WIDTH, "gpu_bytes": GPU_BYTES},
        "dense_parameters": parameters,
        "dense_memory_ddp_mb": 16 * parameters / 1e6,
        "steps": steps,
        "tables": [
            {
                "parameters": n,
                "whole_gb": table_memory(n, WIDTH) / 1e9,
                "split_over_1000_gb": table_memory(n, WIDTH, 1000) / 1e9,
            }
            for n in TABLES
        ],
        "largest_whole_tables": GPU_BYTES / (4 + 4 / WIDTH),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args(argv).out
    found = report()
    print(f"dense part of models/base: {found['dense_parameters']:,} parameters; tables of width {WIDTH}")
    print("ranks · dense MB, ms · per rows touched by a rank: exchanged MB, ms | tables split MB, ms")
    for step in found["steps"]:
        cells = [
            f"{int(rows):,}: {x['exchanged_mb']:,.1f}, {x['exchanged_ms']:,.2f} | "
            f"{x['split_tables_mb']:,.1f}, {x['split_tables_ms']:,.2f}"
            for rows, x in step["rows"].items()
        ]
        print(f"{step['ranks']:>5} · {step['dense_mb']:,.1f}, {step['dense_ms']:,.2f} · {' · '.join(cells)}")
    for table in found["tables"]:
        whole, split = table["whole_gb"], table["split_over_1000_gb"]
        print(f"{table['parameters']:.0e} parameters of tables: {whole:,.1f} GB, split over 1000 ranks {split:,.3f}")
    print(f"the largest that one GPU holds: {found['largest_whole_tables']:.2e} parameters of tables, and nothing else")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
