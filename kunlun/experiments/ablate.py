"""``python cli.py ablate``: train every variant with every seed, measure what each costs, and write one table.

What is finished stays: a matrix that was killed goes on where it was, and a changed configuration runs only its own
cells again. Quality first, efficiency after it, when nothing else of the matrix runs on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from filelock import FileLock, Timeout

from kunlun.experiments import running
from kunlun.experiments.cells import Processes, last_words
from kunlun.experiments.matrix import Matrix, read_matrix
from kunlun.experiments.outputs import (
    cells_of,
    collect,
    earlier,
    efficiency_path,
    publish,
    write_plan,
)
from kunlun.experiments.results import MatrixResult
from kunlun.experiments.running import check_data, environment, exit_code, prepare_folder, run_cells, stoppable
from kunlun.experiments.search import chosen, search_cell


def main(argv: Sequence[str]) -> int:
    """Run a matrix; 0 if every cell is done and every round measured, 1 if not. ConfigError before the first cell if it
    cannot be."""
    matrix = read_matrix(argv)
    folder = matrix.options.folder
    prepare_folder(folder)
    check_data(matrix.reference)
    before = earlier(folder, MatrixResult)
    with stoppable() as processes:
        matrix = search(matrix, processes)
        write_plan(matrix)
        train(matrix, processes)
        if matrix.options.rounds and not processes.stopped.is_set():
            measure(matrix, processes)
    result = collect(matrix, ["ablate", *argv], before)
    publish(result, folder, matrix.reference)
    return exit_code(processes, folder, result.cells()) or int(not is_measured(matrix))


def search(matrix: Matrix, processes: Processes) -> Matrix:
    """Try every variant with all that the options ask for, if anything; the matrix of those that were best."""
    o, cells = matrix.options, [search_cell(matrix.options, candidate) for candidate in matrix.candidates]
    if not cells:
        return matrix
    title = f"{o.name}, search: {len(matrix.variants)} variants × {len(o.tries)} trials"
    run_cells(title, cells, o.jobs, o.gpus, processes)
    return chosen(matrix)


def train(matrix: Matrix, processes: Processes) -> None:
    """Every cell of the matrix."""
    o = matrix.options
    title = f"{o.name}: {len(matrix.variants)} variants × {len(o.seed_list)} seeds"
    run_cells(title, cells_of(matrix), o.jobs, o.gpus, processes)


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
            processes.stopped.wait(running.POLL_SECONDS)


def is_measured(matrix: Matrix) -> bool:
    """Whether every round has the efficiency of every variant."""
    rounds = range(matrix.options.rounds)
    return all(efficiency_path(matrix, variant, number).is_file() for variant in matrix.variants for number in rounds)


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
        given = [f"--peak_flops={peak}"] if (peak := matrix.options.peak_flops) else []
        command = ["benchmark", "--config", str(config), "--out", str(partial), *given, *variant.extra]
        code = processes.run(command, log, environment(0, 1, matrix.options.gpus))
        if code == 0:
            partial.replace(path)
        elif code is not None:
            path.unlink(missing_ok=True)
            print(f"efficiency of {variant.name}: FAILED: {last_words(log, code)}", flush=True)
    print(f"efficiency: round {number + 1} of {matrix.options.rounds}", flush=True)
