"""Instead of processes that train: what a finished fit or benchmark leaves, at once, with figures that were planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from kunlun.experiments.cells import Processes


def leave_run(folder: Path, ne: float, flops: float = 1_000.0) -> None:
    """The directory of a finished fit."""
    folder.mkdir(parents=True)
    curve = [{"samples": 100, "valid/ne": ne + 0.05}, {"samples": 200, "valid/ne": ne - 0.01}]
    metrics = {"ne": ne, "auc": 0.7, "oracle_ne": 0.5}
    summary = {
        "best": {f"valid/{k}": v for k, v in metrics.items()},
        "test": {f"test/{k}": v for k, v in metrics.items()},
        "curve": curve,
        "flops_per_sample": flops,
        "parameters": {"dense": 10, "embedding": 20},
        "data": {"name": "made-up", "rows": {"train": 200}, "train_rate": {"click": 0.25}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "run.json").write_text(json.dumps({"git": {"commit": "abc"}}))


class Fits(Processes):
    """``ne`` and ``flops`` give the figures of a configuration and a seed; an exception is a failure that says so."""

    def __init__(
        self, ne: Callable[[dict[str, Any], int], float], flops: Callable[[dict[str, Any]], float] = lambda _: 1e3
    ) -> None:
        super().__init__()
        self.ne, self.flops = ne, flops
        self.commands: list[list[str]] = []

    def run(self, command, log, environment):
        self.commands.append(command)
        options = dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)
        config = yaml.safe_load(Path(command[command.index("--config") + 1]).read_text())
        if command[0] == "benchmark":
            Path(command[command.index("--out") + 1]).write_text(json.dumps(benchmark(self.flops(config))))
            return 0
        try:
            seed = int(options["seed_everything"])
            folder = Path(options["run.root"]) / options["run.name"] / f"run-{len(self.commands)}"
            leave_run(folder, self.ne(config, seed), self.flops(config))
        except Exception as error:
            log.write_text(f"Traceback …\nerror: {error}\n")
            return 1
        return 0


def benchmark(flops: float) -> dict[str, Any]:
    """What ``cli.py benchmark`` writes."""
    return {
        "flops_per_sample": flops,
        "flops": {"head": flops},
        "parameters": {"dense": 10, "embedding": 20},
        "training": {"samples_per_second": 1e6 / flops, "spread": [1.0, 2.0], "mfu": 0.1},
        "inference": {
            "samples_per_second": 3e6 / flops,
            "latency_ms": {"batch": 1, "p50": 1.0, "p95": 2.0, "p99": 3.0},
        },
        "peak_memory_bytes": 1 << 20,
        "device": "a device",
    }
