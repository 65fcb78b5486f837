"""Attempts at one run, each a process of its own, and what their traces say."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# One fork each from a process that has imported everything and done nothing: a fresh process without the seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.reliability.imports"])


@dataclass(frozen=True)
class Line:
    """A line of a trace; ``told`` is what must not differ between runs."""

    process: int
    kind: str
    epoch: int
    batch: int
    step: int
    seconds: float
    told: str


def read_trace(path: Path) -> list[Line]:
    """The whole lines of the file."""
    text = path.read_text() if path.exists() else ""
    lines = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        process, kind, epoch, batch, step, seconds, told = line.split(" ", 6)
        lines.append(Line(int(process), kind, int(epoch), int(batch), int(step), float(seconds), told))
    return lines


@dataclass(frozen=True)
class Setting:
    """The run that all attempts are at: models/tiny on synthetic rows, with dropout, validation and a schedule."""

    folder: Path
    epochs: int
    batches: int = 40
    interval: int = 5
    workers: int = 0
    name: str = "run"

    @property
    def trace(self) -> Path:
        return self.folder / f"{self.name}.trace"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def runs(self) -> Path:
        return self.folder / "runs" / self.name

    def checkpoints(self) -> list[Path]:
        return list(self.runs.glob("*/checkpoints/*.ckpt"))

    def arguments(self, *more: str) -> list[str]:
        rows = 16 * self.batches
        return [
            *("fit", "--config", "models/tiny", f"--run.name={self.name}", f"--run.root={self.folder / 'runs'}"),
            *("--run.wandb=disabled", f"--run.checkpoint_every.steps={self.interval}", "--run.patience=1000"),
            *(f"--data.train_rows={rows}", "--data.batch_size=16", "--data.eval_batch_size=64", "--data.max_length=12"),
            *(f"--data.num_workers={self.workers}", "--trainer.limit_val_batches=3", "--trainer.accelerator=cpu"),
            *(f"--trainer.max_epochs={self.epochs}", "--model.embedding.dropout=0.1"),
            *("--trainer.callbacks+=benchmarks.reliability.trace.Trace", f"--trainer.callbacks.path={self.trace}"),
            *more,
        ]

    def start(self, *more: str) -> BaseProcess:
        """A process that runs the command line, in a process group of its own."""
        process = CONTEXT.Process(target=_main, args=(self.arguments(*more), str(self.log)))
        process.start()
        return process

    def wait_for(self, process: BaseProcess, reached: Callable[[list[Line]], bool]) -> list[Line]:
        """Until the lines that this process has written say so, or it ends."""
        while process.is_alive():
            lines = [line for line in read_trace(self.trace) if line.process == process.pid]
            if reached(lines):
                return lines
            time.sleep(0.02)
        return [line for line in read_trace(self.trace) if line.process == process.pid]


def finish(process: BaseProcess) -> int:
    """Wait, and the exit code as a shell tells it."""
    process.join()
    code = process.exitcode or 0
    return 128 - code if code < 0 else code


def differences(lines: list[Line], expected: list[Line]) -> list[Line]:
    """The lines that say something else than the unbroken run at that place."""
    known = {(line.kind, line.epoch, line.batch): (line.step, line.told) for line in expected}
    return [line for line in lines if known.get((line.kind, line.epoch, line.batch)) != (line.step, line.told)]


def missing(lines: list[Line], expected: list[Line]) -> int:
    """Places of the unbroken run that no attempt came to."""
    return len({(e.kind, e.epoch, e.batch) for e in expected} - {(x.kind, x.epoch, x.batch) for x in lines})


def replays(lines: list[Line]) -> list[int]:
    """For each attempt after the first, how many optimizer steps it did again."""
    found, last, process = [], 0, None
    for line in lines:
        if line.kind != "train":
            continue
        if process is not None and line.process != process:
            found.append(max(last - line.step + 1, 0))
        process, last = line.process, max(last, line.step)
    return found


def _main(argv: list[str], log: str) -> None:
    os.setsid()
    os.chdir(ROOT)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import cli

    sys.argv = ["cli.py", *argv]
    sys.exit(cli.main())
