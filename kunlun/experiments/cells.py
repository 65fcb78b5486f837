"""A cell: one variant with one seed, trained by ``cli.py fit`` in a process of its own, its result kept in a file.

Layout under the matrix's folder: ``cells/NAME/`` with config.yaml, log.txt, result.json and the run's own directory.
Several processes, on one machine or on several that share the folder, take cells by a lock on ``NAME.lock``; the lock
goes with the process that holds it, so a killed matrix leaves nothing that would have to be cleaned up.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kunlun.configuration import PROJECT_ROOT
from kunlun.experiments.matrix import Variant
from kunlun.experiments.results import CHANGES, CellResult, CurvePoint, read_cell

RESULT, LOG, CONFIG = "result.json", "log.txt", "config.yaml"


@dataclass(frozen=True)
class Cell:
    """One training. ``folder`` is the matrix's; equal cells have equal names, whatever matrix they are in."""

    variant: Variant
    seed: int
    split: str
    group: str
    folder: Path

    @cached_property
    def name(self) -> str:
        return f"{self.variant.name}-{self.seed}-{self.variant.key(self.seed, self.split)}"

    @property
    def path(self) -> Path:
        return self.folder / "cells" / self.name

    def read(self) -> CellResult:
        """What is known of it: ``missing`` until it has run."""
        found = _read(self.path)
        # What was kept before results had names gets one here.
        return replace(found, name=self.name) if found else CellResult(self.seed, "missing", name=self.name)

    def write(self, result: CellResult) -> None:
        """Keep ``result`` as what is known of it."""
        _write(self.path, result)

    def finished(self) -> float:
        """When its result was written, in unix seconds; 0 if it was not."""
        try:
            return (self.path / RESULT).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def is_settled(self, since: float) -> bool:
        """Done, or failed after ``since``: what failed before is tried again, once."""
        status = self.read().status
        return status == "done" or (status == "failed" and self.finished() >= since)


def _read(path: Path) -> CellResult | None:
    """The result in the folder of a cell; None where it is not there, or damaged."""
    try:
        return read_cell(json.loads((path / RESULT).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _write(path: Path, result: CellResult) -> None:
    write_whole(path / RESULT, json.dumps(asdict(result), indent=1) + "\n")


def restore(folder: Path, known: Iterable[CellResult]) -> int:
    """Keep each of ``known`` that is done as the result of its cell under ``folder``, unless that is done there; how
    many were kept."""
    kept = 0
    for result in known:
        if result.status == "done" and result.name and Path(result.name).name == result.name:
            path = folder / "cells" / result.name
            here = _read(path)
            if here is None or here.status != "done":
                path.mkdir(parents=True, exist_ok=True)
                _write(path, result)
                kept += 1
    return kept


def finish(cell: Cell, since: float, environment: Mapping[str, str], processes: Processes) -> CellResult | None:
    """Run ``cell`` unless it is settled; None if it was, or if another process is at it."""
    if cell.is_settled(since):
        return None
    cell.path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{cell.path}.lock", blocking=False):
            if cell.is_settled(since):
                return None
            result = _train(cell, environment, processes)
            if result is not None:
                cell.write(result)
            return result
    except Timeout:
        return None


def _train(cell: Cell, environment: Mapping[str, str], processes: Processes) -> CellResult | None:
    begun = time.monotonic()
    config = cell.path / CONFIG
    config.write_text(cell.variant.text(), encoding="utf-8")
    options = {
        "seed_everything": cell.seed,
        "run.name": cell.variant.name,
        "run.root": cell.path / "runs",
        "run.group": cell.group,
        "run.test": str(cell.split == "test").lower(),
    }
    arguments = [f"--{key}={value}" for key, value in options.items()]
    command = ["fit", "--config", str(config), *arguments, *cell.variant.extra]
    before = set(cell.path.glob("runs/*/*"))
    code = processes.run(command, cell.path / LOG, environment)
    if code is None:
        return None
    runs = sorted(set(cell.path.glob("runs/*/*")) - before)
    seconds = time.monotonic() - begun
    try:
        if code == 0 and runs:
            return CellResult(cell.seed, "done", seconds=seconds, name=cell.name, **read_run(runs[-1], cell.split))
        reason = last_words(cell.path / LOG, code)
    except (OSError, ValueError, KeyError) as error:
        reason = f"its run is not whole: {error!r}"
    log = str((cell.path / LOG).relative_to(cell.folder))
    return CellResult(cell.seed, "failed", seconds=seconds, reason=reason, log=log, name=cell.name)


def read_run(run: Path, split: str) -> dict[str, Any]:
    """Metrics, curve and commit of a finished fit, from what it left in its directory."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    values = summary["best"] if split == "valid" else summary["test"]
    metrics = {name.removeprefix(f"{split}/"): value for name, value in values.items() if name.startswith(f"{split}/")}
    if not math.isfinite(metrics.get("ne", math.nan)):
        raise ValueError(f"{split}/ne in {run / 'summary.json'} is {metrics.get('ne', 'missing')}")
    curve = [CurvePoint(point["samples"], point["valid/ne"]) for point in summary["curve"] if "valid/ne" in point]
    return {
        "metrics": metrics,
        "curve": curve,
        "flops": summary["flops_per_sample"],
        "parameters": summary["parameters"],
        "commit": _commit(record.get("git") or {}),
    }


def _commit(git: dict[str, Any]) -> str | None:
    """As far as it names the code: with ``+changes`` where files differed from it."""
    commit = git.get("commit")
    return f"{commit}{CHANGES}" if commit and git.get("dirty") else commit


def last_words(log: Path, code: int) -> str:
    """Why a command failed, in a line."""
    if code < 0:
        hint = " (out of memory?)" if code == -9 else ""
        return f"killed by signal {-code}{hint}"
    return f"{last_line(log)} (exit code {code})"


def last_line(log: Path) -> str:
    """The last error in ``log``; where it has none, its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error:")] or lines[-1:]
    return (told[-1].removeprefix("error:").strip() if told else "it said nothing")[:500]


class Processes:
    """The commands that run now; `stop` ends them all and lets no other begin."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()
        # Signals are handled in the main thread, which may hold it already.
        self._guard = threading.RLock()

    def run(self, command: list[str], log: Path, environment: Mapping[str, str]) -> int | None:
        """Run ``cli.py command`` with its output in ``log``; its exit code, or None if it was stopped."""
        with log.open("wb") as out:
            with self._guard:
                if self.stopped.is_set():
                    return None
                process = subprocess.Popen(
                    [sys.executable, str(PROJECT_ROOT / "cli.py"), *command],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **environment},
                )
                self._running.add(process)
                if self.stopped.is_set():
                    process.terminate()
            code = process.wait()
        self._running.discard(process)
        return None if self.stopped.is_set() else code

    def stop(self) -> None:
        with self._guard:
            self.stopped.set()
            for process in list(self._running):
                process.terminate()


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all: several threads and machines may write it at the same time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
