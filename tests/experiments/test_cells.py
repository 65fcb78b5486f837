"""Cells are taken once, kept, tried again where they failed, and told apart from runs that were killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from kunlun.experiments import cells as module
from kunlun.experiments.cells import LOG, Cell, Processes, finish, last_words, read_run
from kunlun.experiments.matrix import read_matrix
from kunlun.experiments.outputs import notes
from kunlun.experiments.results import CellResult
from tests.experiments.fits import Fits, leave_run


@pytest.fixture(scope="module")
def variant():
    return read_matrix(["--config", "ablations/matrix.yaml", "--variants", "[kunlun]"]).reference


def fails(config, seed):
    raise ValueError("model.width: must be ≥ 1")


def test_a_cell_runs_once_and_is_kept(tmp_path, variant):
    cell, fits = Cell(variant, 4, "test", "group", tmp_path), Fits(lambda config, seed: 0.91)
    assert cell.read().status == "missing"
    result = finish(cell, time.time(), {}, fits)
    assert result.metrics == {"ne": 0.91, "auc": 0.7, "oracle_ne": 0.5}
    assert [(p.samples, round(p.ne, 6)) for p in result.curve] == [(100, 0.96), (200, 0.9)]
    assert cell.read() == result
    assert finish(cell, time.time(), {}, fits) is None
    assert len(fits.commands) == 1
    assert {"--seed_everything=4", "--run.group=group", "--run.test=true"} <= set(fits.commands[0])


def test_a_failure_is_kept_with_its_reason_and_tried_again_by_the_next_command(tmp_path, variant):
    cell, since = Cell(variant, 0, "test", "group", tmp_path), time.time()
    failed = finish(cell, since, {}, Fits(fails))
    assert failed.status == "failed"
    assert failed.reason == "model.width: must be ≥ 1 (exit code 1)"
    assert (tmp_path / failed.log).is_file()
    assert finish(cell, since, {}, Fits(lambda config, seed: 0.91)) is None
    assert finish(cell, time.time() + 1, {}, Fits(lambda config, seed: 0.91)).status == "done"


def test_a_run_without_what_is_asked_of_it_is_told(tmp_path):
    leave_run(tmp_path / "run", 0.9)
    (tmp_path / "run/summary.json").write_text(json.dumps({"best": {}, "test": {}, "curve": []}))
    with pytest.raises(ValueError, match=r"test/ne in .* is missing"):
        read_run(tmp_path / "run", "test")


def test_code_that_no_commit_holds_is_told(tmp_path):
    leave_run(tmp_path / "run", 0.9)
    told = {}
    for dirty in (False, True):
        (tmp_path / "run/run.json").write_text(json.dumps({"git": {"commit": "abc", "dirty": dirty}}))
        cell = CellResult(0, "done", **read_run(tmp_path / "run", "test"))
        told[cell.commit] = notes({"kunlun": [cell]})
    assert told == {"abc": [], "abc+changes": ["Some cells ran code that no commit holds: files had been changed."]}


def test_two_workers_never_run_the_same_cell(tmp_path, variant):
    cell, inside, most = Cell(variant, 0, "test", "group", tmp_path), 0, 0

    class Slow(Fits):
        def run(self, command, log, environment):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.1)
            inside -= 1
            return super().run(command, log, environment)

    fits = Slow(lambda config, seed: 0.9)
    workers = [threading.Thread(target=finish, args=(cell, time.time(), {}, fits)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (most, len(fits.commands)) == (1, 1)


HOLDER = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1], blocking=False):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_s_cell_is_left_alone_until_that_process_is_killed(tmp_path, variant):
    cell, fits = Cell(variant, 0, "test", "group", tmp_path), Fits(lambda config, seed: 0.91)
    cell.path.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDER, f"{cell.path}.lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert finish(cell, time.time(), {}, fits) is None
        assert not fits.commands
        holder.kill()
    assert finish(cell, time.time(), {}, fits).status == "done"


def test_stopping_ends_the_process_and_keeps_no_result(tmp_path, variant, monkeypatch):
    (tmp_path / "cli.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(module, "PROJECT_ROOT", tmp_path)
    cell, processes = Cell(variant, 0, "test", "group", tmp_path), Processes()
    worker = threading.Thread(target=finish, args=(cell, time.time(), dict(os.environ), processes))
    worker.start()
    log = cell.path / LOG
    while not (log.is_file() and "begun" in log.read_text()):
        time.sleep(0.02)
    processes.stop()
    worker.join(timeout=20)
    assert not worker.is_alive()
    assert cell.read().status == "missing"
    assert processes.run(["fit"], log, {}) is None


def test_the_reason_of_a_failure_is_what_was_said_last(tmp_path):
    log = tmp_path / LOG
    log.write_text("one\nValueError: two\n\n")
    assert last_words(log, 1) == "ValueError: two (exit code 1)"
    log.write_text("")
    assert last_words(log, 1) == "it said nothing (exit code 1)"
    assert last_words(log, -9) == "killed by signal 9 (out of memory?)"


def test_equal_cells_have_equal_names_in_any_matrix(tmp_path, variant):
    one, other = (Cell(variant, 1, "test", group, tmp_path) for group in ("a", "b"))
    assert one.name == other.name
    assert one.name != Cell(variant, 2, "test", "a", tmp_path).name
    assert one.name != Cell(variant, 1, "valid", "a", tmp_path).name
