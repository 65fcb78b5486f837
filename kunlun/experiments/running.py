"""Running many cells: what is checked before, jobs side by side, and how they are stopped."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from kunlun.configuration import ConfigError, RunError, shown
from kunlun.experiments.cells import Cell, Processes, finish
from kunlun.experiments.matrix import Variant
from kunlun.experiments.results import CellResult

SPARE_BYTES = 1 << 30
POLL_SECONDS = 5.0


def prepare_folder(folder: Path) -> None:
    """Make the matrix's folder; ConfigError if it cannot be written or has no room."""
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise ConfigError(f"--out: {shown(folder)}: cannot be written: {error.strerror}") from error
    if free < SPARE_BYTES:
        raise ConfigError(
            f"--out: {shown(folder)}: only {free / 2**30:.2f} GiB are free there; runs and checkpoints need "
            f"{SPARE_BYTES / 2**30:.0f} GiB or more"
        )


def check_data(reference: Variant) -> None:
    """Build the reference's data and model once: what is missing or does not fit ends here, not in every cell."""
    from kunlun.training.cli import KunlunCLI
    from kunlun.training.precheck import precheck

    request = reference.request
    KunlunCLI(request, precheck(request))


def run_cells(title: str, cells: list[Cell], jobs: int, gpus: list[int], processes: Processes) -> None:
    """Run ``cells`` until each is settled, here or on another machine that shares the folder."""
    since = time.time()
    done = sum(cell.read().status == "done" for cell in cells)
    print(f"{title}: {len(cells)} cells, {done} done", flush=True)
    guard = threading.Lock()

    def say(cell: Cell, result: CellResult) -> None:
        with guard:
            settled = sum(c.is_settled(since) for c in cells)
            told = f"NE {result.metrics['ne']:.4f}" if result.status == "done" else f"FAILED: {result.reason}"
            place = f"{settled}/{len(cells)}"
            print(f"{place:>9}  {cell.variant.name} seed {cell.seed}: {told}  ({result.seconds:.0f} s)", flush=True)

    errors: list[OSError] = []

    def work(job: int) -> None:
        try:
            for cell in cells:
                if processes.stopped.is_set():
                    return
                result = finish(cell, since, environment(job, jobs, gpus), processes)
                if result is not None:
                    say(cell, result)
        except OSError as error:  # of the folder: no other cell could be written either
            errors.append(error)
            processes.stop()

    told = 0
    while not processes.stopped.is_set():
        workers = [threading.Thread(target=work, args=(job,)) for job in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        waiting = sum(not cell.is_settled(since) for cell in cells)
        if not waiting or processes.stopped.is_set():
            break
        if waiting != told:
            print(f"waiting for {waiting} cells that run elsewhere", flush=True)
            told = waiting
        processes.stopped.wait(POLL_SECONDS)
    if errors:
        raise RunError(
            f"{errors[0].filename or 'the folder'}: {errors[0].strerror}; what is finished is kept"
        ) from errors[0]


def environment(job: int, jobs: int, gpus: list[int]) -> dict[str, str]:
    """Of the process of one job: its GPU, and its share of the cores unless OMP_NUM_THREADS says otherwise.

    ``gpus`` count among the visible ones, as a scheduler may have chosen them.
    """
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    found = {}
    if gpus:
        number = gpus[job]
        found["CUDA_VISIBLE_DEVICES"] = visible[number] if number < len(visible) else str(number)
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    return found


def exit_code(processes: Processes, folder: Path, cells: Iterable[CellResult]) -> int:
    """0 if every cell is done, 1 if not, 130 if the experiment was stopped, and then how to go on."""
    if processes.stopped.is_set():
        print(f"stopped; the same command goes on from here ({shown(folder)})", flush=True)
        return 130
    return int(any(cell.status != "done" for cell in cells))


@contextmanager
def stoppable() -> Iterator[Processes]:
    """Processes that Ctrl-C and SIGTERM end; what they were at is not kept, what was finished is."""
    processes = Processes()

    def stop(signum: int, frame: FrameType | None) -> None:
        processes.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield processes
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
