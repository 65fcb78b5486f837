"""``python cli.py ablate``: train every variant with every seed, measure what each costs, and write one table.

What is finished stays: a matrix that was killed goes on where it was, and a changed configuration runs only its own
cells again. Quality first, efficiency after it, when nothing else of the matrix runs on this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from kunlun.configuration import ConfigError, RunError, shown
from kunlun.experiments.cells import Cell, Processes, finish, last_words
from kunlun.experiments.matrix import Matrix, Variant, read_matrix
from kunlun.experiments.outputs import cells_of, collect, efficiency_path, write_outputs, write_variants
from kunlun.experiments.results import CellResult

SPARE_BYTES = 1 << 30
POLL_SECONDS = 5.0


def main(argv: Sequence[str]) -> int:
    """Run a matrix; 0 if every cell is done, 1 if some failed. ConfigError before the first cell if it cannot be."""
    matrix = read_matrix(argv)
    folder = matrix.options.folder
    prepare_folder(folder)
    check_data(matrix.reference)
    write_variants(matrix)
    with stoppable() as processes:
        train(matrix, processes)
        if matrix.options.rounds and not processes.stopped.is_set():
            measure(matrix, processes)
    result = collect(matrix, ["ablate", *argv])
    write_outputs(matrix, result)
    if processes.stopped.is_set():
        print(f"stopped; the same command goes on from here ({shown(folder)})", flush=True)
        return 130
    return int(any(cell.status != "done" for variant in result.variants for cell in variant.cells))


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


def train(matrix: Matrix, processes: Processes) -> None:
    """Every cell of the matrix."""
    o = matrix.options
    title = f"{o.name}: {len(matrix.variants)} variants × {len(o.seed_list)} seeds"
    run_cells(title, cells_of(matrix), o.jobs, o.gpus, processes)


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


def measure(matrix: Matrix, processes: Processes) -> None:
    """The efficiency of every variant, in rounds: in each the reference and all others, so that a slow hour of the
    machine falls on all of them. One process at a time, whatever ``jobs`` says."""
    folder = matrix.options.folder / "efficiency"
    folder.mkdir(exist_ok=True)
    lock, told = FileLock(folder / ".lock"), False
    while not processes.stopped.is_set():
        try:
            with lock.acquire(blocking=False):
                for number in range(matrix.options.rounds):
                    _round(matrix, number, processes)
                return
        except Timeout:
            if not told:
                print("waiting for the efficiency that is measured elsewhere", flush=True)
            told = True
            processes.stopped.wait(POLL_SECONDS)


def _round(matrix: Matrix, number: int, processes: Processes) -> None:
    paths = {variant.name: efficiency_path(matrix, variant, number) for variant in matrix.variants}
    if all(path.is_file() for path in paths.values()):
        return
    for variant in matrix.variants:
        # Where anything is missing all of the round is measured: a ratio is of one machine at one time.
        if processes.stopped.is_set():
            return
        path = paths[variant.name]
        config, log, partial = (path.with_suffix(suffix) for suffix in (".yaml", ".log", ".partial"))
        config.write_text(variant.text(), encoding="utf-8")
        command = ["benchmark", "--config", str(config), "--out", str(partial), *variant.extra]
        code = processes.run(command, log, environment(0, 1, matrix.options.gpus))
        if code == 0:
            partial.replace(path)
        elif code is not None:
            path.unlink(missing_ok=True)
            print(f"efficiency of {variant.name}: FAILED: {last_words(log, code)}", flush=True)
    print(f"efficiency: round {number + 1} of {matrix.options.rounds}", flush=True)


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
