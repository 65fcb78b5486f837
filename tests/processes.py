"""What the tests of several processes share: two on gloo, each at the same function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def spawn(worker: Callable[[int, Path], None], folder: Path) -> None:
    """``worker(rank, folder)`` in WORLD processes of one group; what one of them raises is raised here."""
    mp.spawn(_in_group, args=(worker, folder), nprocs=WORLD)


def _in_group(rank: int, worker: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    worker(rank, folder)
    dist.destroy_process_group()
