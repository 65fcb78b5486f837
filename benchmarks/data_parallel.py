"""Two ranks against one, through cli.py, into benchmarks/results/cpu/data_parallel.json:
`python -m benchmarks.data_parallel`.

Parity: the same rows in the same global batches, on one rank and on two. Resuming: two ranks that are killed, or told
to leave, and go on with `--resume auto`, against two that nothing happens to, bit for bit and on each rank.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import device, versions
from benchmarks.reliability.attempts import ROOT, Line, Setting, differences, missing, read_trace

RESULTS = Path(__file__).resolve().parent / "results" / "cpu" / "data_parallel.json"
RANKS = 2
# An odd number of batches: one rank has one more than the other.
WHOLE_SPLIT = ("--trainer.limit_val_batches=1.0", "--data.eval_batch_size=1200")


def start(setting: Setting, ranks: int, *more: str) -> subprocess.Popen:
    """cli.py in a process group of its own; the rows of a batch of the setting are those of all ranks together."""
    arguments = setting.arguments(f"--trainer.devices={ranks}", f"--data.batch_size={16 // ranks}", *more)
    with setting.log.open("a") as log:
        command = [sys.executable, str(ROOT / "cli.py"), *arguments]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def traced(setting: Setting, rank: int = 0) -> list[Line]:
    return read_trace(Path(f"{setting.trace}.{rank}") if rank else setting.trace)


def finished(setting: Setting, ranks: int, *more: str) -> list[list[Line]]:
    """The traces of the ranks of a run that must end well; RuntimeError with its log if it does not."""
    code = start(setting, ranks, *more).wait()
    if code != 0:
        raise RuntimeError(f"{setting.name} ended with {code}:\n{setting.log.read_text()}")
    return [traced(setting, rank) for rank in range(ranks)]


def parity(folder: Path, *more: str, strategy: str = "auto", epochs: int = 2, **settings: Any) -> dict[str, Any]:
    """One rank and two at the same global batches, without dropout: ranks draw it from numbers of their own.

    ``more``: options of both runs; ``strategy``: of the two ranks.
    """
    single, double = (Setting(folder, epochs, name=f"{n}-{strategy}", **settings) for n in ("one-rank", "two-ranks"))
    more = (*more, "--model.embedding.dropout=0", *WHOLE_SPLIT)
    (one,) = finished(single, 1, *more)
    two = finished(double, RANKS, f"--trainer.strategy={strategy}", *more)
    losses = [_losses(lines) for lines in (one, *two)]
    gaps = [abs(a - sum(b) / RANKS) for a, *b in zip(*losses, strict=True)]
    metrics = [_metrics(lines) for lines in (one, *two)]
    weights = [_weights(setting) for setting in (single, double)]
    return {
        "ranks": RANKS,
        "steps": len(gaps),
        "rows_of_a_step": 16,
        "first_loss_gap": gaps[0],
        "largest_loss_gap": max(gaps),
        "mean_loss": sum(losses[0]) / len(losses[0]),
        "loss_gap_between_ranks": max(abs(a - b) for a, b in zip(*losses[1:], strict=True)),
        "largest_metric_gap": max(abs(metrics[0][key] - metrics[1][key]) for key in metrics[0]),
        "metrics_are_those_of_every_rank": metrics[1] == metrics[2],
        "largest_weight_gap": max(float((a - b).abs().max()) for a, b in zip(*weights, strict=True)),
        "largest_weight": max(float(a.abs().max()) for a in weights[0]),
        "ranks_end_with_equal_weights": two[0][-1].told == two[1][-1].told,
    }


def resumed(
    folder: Path, expected: list[list[Line]], kills: int, signals: int, *more: str, epochs: int = 2, **settings: Any
) -> dict[str, Any]:
    """SIGKILL to all processes, then SIGTERM and SIGUSR1 in turn to the one that was started; against ``expected``."""
    setting = Setting(folder, epochs, name="broken", **settings)
    draw = random.Random(0)
    codes = []
    for number in range(kills + signals):
        process = start(setting, RANKS, *more, "--resume", "auto")
        before, steps = len(traced(setting)), draw.randint(1, 9)
        while process.poll() is None and len(traced(setting)) < before + steps:
            time.sleep(0.02)
        time.sleep(draw.random() * 0.1)
        if number < kills:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGUSR1 if number % 2 else signal.SIGTERM)
        codes.append(process.wait())
    codes.append(start(setting, RANKS, *more, "--resume", "auto").wait())
    lines = [traced(setting, rank) for rank in range(RANKS)]
    pairs = list(zip(lines, expected, strict=True))
    return {
        "kills": codes[:kills].count(-signal.SIGKILL),
        "signals": signals,
        "exit_143": codes[kills:-1].count(143),
        "finished": codes[-1] == 0,
        "lines_compared": sum(map(len, lines)),
        "differences": sum(len(differences(*pair)) for pair in pairs),
        "missing": sum(missing(*pair) for pair in pairs),
    }


def _losses(lines: list[Line]) -> list[float]:
    return [float.fromhex(line.told.split()[1]) for line in lines if line.kind == "train"]


def _metrics(lines: list[Line]) -> dict[tuple[int, str], float]:
    pairs = [(line.epoch, *pair.split("=")) for line in lines if line.kind == "valid" for pair in line.told.split()]
    return {(epoch, key): float.fromhex(value) for epoch, key, value in pairs}


def _weights(setting: Setting) -> list[torch.Tensor]:
    (path,) = setting.runs.glob("*/checkpoints/last.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    return [state[key].double() for key in sorted(state)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--signals", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result: dict[str, Any] = {"benchmark": "data_parallel", "device": device(1)}
    result["versions"] = versions("torch", "lightning", "torchdata")
    for strategy in ("ddp", "fsdp2"):
        with tempfile.TemporaryDirectory(prefix="data-parallel-") as name:
            folder, chosen = Path(name), f"--trainer.strategy={strategy}"
            unbroken = finished(Setting(folder, 2, name="unbroken"), RANKS, chosen)
            result[strategy] = {
                "parity": parity(folder, strategy=strategy),
                "resumed": resumed(folder, unbroken, args.kills, args.signals, chosen),
            }
        print(f"{strategy}: {json.dumps(result[strategy])}", flush=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
