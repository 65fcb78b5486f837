"""What saving and resuming cost in memory, beside Lightning's own way: each in a process of its own."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.attempts import CONTEXT


def measured(folder: Path, mebibytes: int) -> dict[str, Any]:
    """A checkpoint of so many MiB, half of it weights, half optimizer state. Skipped where the system does not tell."""
    if not Path("/proc/self/status").exists():
        return {"skipped": "the memory of a process is read from /proc, which is not here"}
    results: dict[str, Any] = {"checkpoint_mib": mebibytes}
    for way in ("this project", "Lightning"):
        for action in ("save", "resume"):
            queue = CONTEXT.Queue()
            process = CONTEXT.Process(target=_measure, args=(way, action, str(folder), mebibytes, queue))
            process.start()
            results[f"{way}: {action}"] = queue.get(timeout=600)
            process.join()
    return results


def _measure(way: str, action: str, folder: str, mebibytes: int, queue: Any) -> None:
    import torch
    from lightning.pytorch.plugins.io import TorchCheckpointIO

    from kunlun.training.checkpoint_io import SealedCheckpointIO

    io = SealedCheckpointIO() if way == "this project" else TorchCheckpointIO()
    path = Path(folder) / f"{way.replace(' ', '-')}.ckpt"
    rows = mebibytes * 2**20 // 2 // 64  # 16 numbers of 4 bytes
    table = torch.nn.Embedding(rows, 16)
    table_state = torch.zeros(rows, 16)
    table.weight.data.fill_(1.0)
    table_state.fill_(2.0)

    def save() -> None:
        io.save_checkpoint({"state_dict": table.state_dict(), "optimizer": {"sum": table_state}}, path)

    def resume() -> None:
        found = io.load_checkpoint(path, weights_only=True)
        table.load_state_dict(found["state_dict"])
        table_state.copy_(found["optimizer"]["sum"])

    action_of: dict[str, Callable[[], None]] = {"save": save, "resume": resume}
    gc.collect()
    seconds, peak = _peak_during(action_of[action])
    queue.put({"extra_mib": round(peak / 2**20, 1), "seconds": round(seconds, 3)})


def _peak_during(action: Callable[[], None]) -> tuple[float, int]:
    """Seconds, and the most private memory beyond what there was before, sampled each millisecond.

    Private: a mapped file's pages, which the system takes back whenever it needs them, do not count.
    """
    before, peak, done = _private(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _private() - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.monotonic()
    action()
    seconds = time.monotonic() - started
    done.set()
    sampler.join()
    return seconds, max(peak, _private() - before)


def _private() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
