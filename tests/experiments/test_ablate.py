"""A matrix from its command to its table: resumed, partly failed, refused; and one real small one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import yaml

from kunlun.command_line import read_request
from kunlun.configuration import ConfigError
from kunlun.experiments import ablate, running
from kunlun.experiments.costs import Costs
from kunlun.experiments.matrix import read_matrix
from kunlun.experiments.outputs import ratios
from kunlun.experiments.results import MatrixResult
from tests.conftest import ROOT
from tests.experiments.fits import Fits, benchmark

FEW = ["--config", "ablations/matrix.yaml", "--config", "models/tiny.yaml", "--data.preset", "tiny"]
FEW += ["--variants", "[kunlun, no_gdpa, din]", "--run.wandb", "disabled"]


def planted(config, seed):
    """Without GDPA worse by 0.02; DIN fails with seed 1."""
    if config["run"]["name"] == "din" and seed == 1:
        raise RuntimeError("no room for DIN")
    return 0.8 + 0.01 * seed + 0.02 * (config["run"]["name"] == "no_gdpa")


def run(fits, folder, monkeypatch, *more):
    @contextmanager
    def stoppable():
        yield fits

    monkeypatch.setattr(ablate, "stoppable", stoppable)
    code = ablate.main([*FEW, "--seeds", "3", "--rounds", "2", "--out", str(folder), *more])
    return code, MatrixResult.load(folder / "results.json")


def test_a_matrix_becomes_a_table_and_a_second_command_runs_only_what_failed(tmp_path, monkeypatch, capsys):
    fits = Fits(planted, flops=lambda config: 2e3 if "Kunlun" in config["model"]["class_path"] else 1e3)
    code, result = run(fits, tmp_path / "m", monkeypatch, "--jobs", "2")
    assert code == 1
    assert len(fits.commands) == 9 + 6
    delta = result.variant("no_gdpa").delta["ne"]
    assert (delta.mean, delta.count) == (pytest.approx(0.02), 3)
    assert result.variant("no_gdpa").delta_percent["ne"].mean == pytest.approx(100 * 0.02 / 0.81)
    assert result.variant("din").delta["ne"].count == 2
    assert [c.reason for c in result.variant("din").cells if c.status == "failed"] == ["no room for DIN (exit code 1)"]
    assert result.variant("din").ratio["flops"] == 0.5
    assert result.variant("din").ratio["training_qps"] == 2.0
    assert result.variant("no_gdpa").changes == {"model.init_args.components.gdpa": [True, False]}
    assert result.oracle == {"ne": 0.5}
    assert result.data["name"] == "made-up"
    assert "no room for DIN" in capsys.readouterr().out
    assert "gdpa" in (tmp_path / "m/table.md").read_text()
    assert "no room for DIN" in (tmp_path / "m/report.html").read_text()

    again = Fits(lambda config, seed: 0.9)
    code, result = run(again, tmp_path / "m", monkeypatch)
    assert code == 0
    assert [c[0] for c in again.commands] == ["fit"]
    assert result.variant("din").delta["ne"].count == 3


def test_a_benchmark_that_fails_is_told_and_no_matrix_is_done_without_it(tmp_path, monkeypatch):
    class Tight(Fits):
        def run(self, command, log, environment):
            if command[0] == "benchmark" and "no_gdpa" in command[command.index("--config") + 1]:
                log.write_text("error: out of memory\n")
                return 1
            return super().run(command, log, environment)

    code, result = run(Tight(lambda config, seed: 0.9), tmp_path / "m", monkeypatch)
    assert code == 1
    assert all(cell.status == "done" for cell in result.cells())
    (told,) = result.notes
    assert told.startswith(
        "The efficiency of no_gdpa is missing in a round or more: out of memory (efficiency/no_gdpa-"
    )


def test_the_peak_of_the_device_can_be_given(tmp_path, monkeypatch):
    fits = Fits(lambda config, seed: 0.9)
    run(fits, tmp_path / "m", monkeypatch, "--rounds", "1", "--peak_flops", "1e12")
    measured = [command for command in fits.commands if command[0] == "benchmark"]
    assert [("--peak_flops=1000000000000.0" in command) for command in measured] == [True] * 3


def test_what_needs_no_clock_is_in_the_table_without_a_round(tmp_path, monkeypatch):
    fits = Fits(planted, flops=lambda config: 2e3 if "Kunlun" in config["model"]["class_path"] else 1e3)
    _, result = run(fits, tmp_path / "m", monkeypatch, "--rounds", "0")
    din = result.variant("din")
    assert din.ratio == {"flops": 0.5, "parameters_dense": 1.0}
    assert Costs.of(din.efficiency).flops == 1e3
    assert Costs.of(din.efficiency).training_qps is None
    assert "| 1.00 k | ×0.50 |" in (tmp_path / "m/table.md").read_text()
    _, measured = run(fits, tmp_path / "m", monkeypatch)
    assert measured.variant("din").ratio["training_qps"] == 2.0


def test_every_variant_has_the_same_search_and_its_best_is_trained_with_the_seeds(tmp_path, monkeypatch, capsys):
    def steep(config, seed):
        name, lr = config["run"]["name"], config["training"]["optimizer"]["lr"]
        if name == "no_gdpa" and seed == 1000:
            raise RuntimeError("too steep")
        return 0.8 + 0.1 * (lr != (0.01 if name == "din" else 0.001))

    fits = Fits(steep)
    more = ["--search", "{training.optimizer.lr: [0.001, 0.01]}", "--rounds", "0"]
    code, result = run(fits, tmp_path / "m", monkeypatch, *more)
    seeds = [word for command in fits.commands for word in command if word.startswith("--seed_everything")]
    assert [seeds.count(f"--seed_everything={seed}") for seed in (1000, 0, 1, 2)] == [6, 3, 3, 3]
    assert code == 1
    assert result.variant("din").changes["training.optimizer.lr"] == [0.001, 0.01]
    assert [result.variant(name).metrics["ne"].mean for name in ("kunlun", "din")] == pytest.approx([0.8, 0.8])
    assert "no_gdpa lost 2 of 2 trials of its search: too steep (exit code 1)." in result.notes
    assert result.variant("no_gdpa").changes["training.optimizer.lr"] == [0.001, 0.003]  # as configured
    assert "| din | lr 0.01 | 0.9000 | 0.8000 |" in (tmp_path / "m/table.md").read_text()
    assert "The search" in (tmp_path / "m/report.html").read_text()

    (tmp_path / "clone").mkdir()
    (tmp_path / "m/results.json").rename(tmp_path / "clone/results.json")
    again = Fits(steep)
    _, same = run(again, tmp_path / "clone", monkeypatch, *more)
    assert len(again.commands) == 2, "what had failed, and nothing else"
    assert same.variants == result.variants


def test_a_changed_configuration_runs_only_its_own_cells(tmp_path, monkeypatch):
    run(Fits(lambda config, seed: 0.9), tmp_path / "m", monkeypatch)
    mine = tmp_path / "no_gdpa.yaml"
    mine.write_text("run: {name: no_gdpa}\nmodel: {init_args: {components: {gdpa: false}, hsp: {seeds: 8}}}\n")
    fits = Fits(lambda config, seed: 0.9)
    run(fits, tmp_path / "m", monkeypatch, "--variants", f"[kunlun, {mine}, din]")
    assert len(fits.commands) == 3 + 6  # and every round again, as a whole


def test_a_table_alone_is_gone_on_from(tmp_path, monkeypatch, capsys):
    """Of all that a matrix leaves only results.json is there: its cells are not run again, those that are new are."""
    _, whole = run(Fits(planted), tmp_path / "m", monkeypatch)
    (tmp_path / "clone").mkdir()
    (tmp_path / "m/results.json").rename(tmp_path / "clone/results.json")
    fits = Fits(lambda config, seed: 0.9)
    code, result = run(fits, tmp_path / "clone", monkeypatch, "--seeds", "4", "--rounds", "0")
    assert code == 0
    assert "8 cells are known from" in capsys.readouterr().out
    assert len(fits.commands) == 3 + 1, "the fourth seed, and what had failed"
    for before in whole.variants:
        now = result.variant(before.name)
        assert (now.efficiency, now.ratio) == (before.efficiency, before.ratio)
        assert now.efficiency
    for before in whole.variants:
        kept = result.variant(before.name).cells[:3]
        assert [a == b for a, b in zip(kept, before.cells, strict=True)] == [c.status == "done" for c in before.cells]
    again = Fits(lambda config, seed: 0.9)
    (tmp_path / "third").mkdir()
    (tmp_path / "clone/results.json").rename(tmp_path / "third/results.json")
    code, last = run(again, tmp_path / "third", monkeypatch, "--seeds", "4", "--rounds", "0")
    assert not again.commands
    assert last.data == whole.data
    assert [v.metrics for v in last.variants] == [v.metrics for v in result.variants]


def test_what_was_not_asked_for_this_time_is_kept(tmp_path, monkeypatch):
    """results.json is written anew with every command; what only it knew is a cell of the folder by then."""
    run(Fits(lambda config, seed: 0.9 + seed / 100), tmp_path / "m", monkeypatch, "--rounds", "0")
    (tmp_path / "clone").mkdir()
    (tmp_path / "m/results.json").rename(tmp_path / "clone/results.json")
    _, few = run(Fits(lambda config, seed: 0.8), tmp_path / "clone", monkeypatch, "--rounds", "0", "--seeds", "1")
    assert len(few.cells()) == 3
    again = Fits(lambda config, seed: 0.8)
    _, whole = run(again, tmp_path / "clone", monkeypatch, "--rounds", "0")
    assert not again.commands
    assert len(whole.cells()) == 9


def test_a_damaged_table_is_told_and_not_gone_on_from(tmp_path, monkeypatch, capsys):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/results.json").write_text('{"format": 1, "kind": "ablation", "variants": 3}')
    fits = Fits(lambda config, seed: 0.9)
    run(fits, tmp_path / "m", monkeypatch, "--rounds", "0")
    assert "results.json is not read" in capsys.readouterr().out
    assert len(fits.commands) == 9


def test_what_cannot_be_begun_is_refused_before_a_cell_runs(tmp_path, monkeypatch):
    fits = Fits(lambda config, seed: 0.9)
    monkeypatch.setattr(running, "Processes", lambda: fits)
    missing = ["--config", "data/userbehavior.yaml", "--data.path", str(tmp_path / "nothing")]
    with pytest.raises((ConfigError, FileNotFoundError), match="nothing"):
        ablate.main([*FEW[:4], *FEW[6:], *missing, "--out", str(tmp_path / "m")])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out: .*cannot be written"):
        ablate.main([*FEW, "--out", str(tmp_path / "file" / "m")])
    monkeypatch.setattr(running, "SPARE_BYTES", 1 << 60)
    with pytest.raises(ConfigError, match="GiB are free there"):
        ablate.main([*FEW, "--out", str(tmp_path / "m")])
    assert not fits.commands


def test_the_sweep_runs_the_very_cells(tmp_path, monkeypatch):
    run(Fits(lambda config, seed: 0.9), tmp_path / "m", monkeypatch)
    sweep = yaml.safe_load((tmp_path / "m/sweep.yaml").read_text())
    matrix = read_matrix([*FEW, "--seeds", "3", "--out", str(tmp_path / "m")])
    assert sweep["parameters"]["seed_everything"]["values"] == [0, 1, 2]
    start = sweep["command"].index("fit")
    for variant, config in zip(matrix.variants, sweep["parameters"]["config"]["values"], strict=True):
        given = [f"--config={config}", "--seed_everything=1"]
        words = [w for word in sweep["command"][start + 1 :] for w in (given if word == "${args}" else [word])]
        tree = read_request("fit", words).tree.values
        assert tree["run"]["group"] == "matrix"
        assert {k: v for k, v in tree.items() if k not in ("run", "seed_everything")} == {
            k: v for k, v in variant.values.items() if k not in ("run", "seed_everything")
        }


def test_a_ratio_is_taken_within_a_round():
    own = {0: benchmark(1e3), 1: benchmark(4e3), 2: benchmark(1e3)}
    reference = {0: benchmark(1e3), 1: benchmark(8e3)}
    assert ratios(own, reference)["training_qps"] == pytest.approx((1.0 + 2.0) / 2)
    assert ratios({}, reference) == {}


def test_jobs_share_the_cores_and_the_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert running.environment(1, 2, [4, 7]) == {"CUDA_VISIBLE_DEVICES": "7", "OMP_NUM_THREADS": "4"}
    assert running.environment(0, 1, []) == {"OMP_NUM_THREADS": "8"}


REAL = [
    *(
        "--config",
        "ablations/matrix.yaml",
        "--config",
        "models/tiny.yaml",
        "--variants",
        "[kunlun, logistic_regression]",
    ),
    *("--seeds", "1", "--rounds", "1", "--data.preset", "tiny", "--data.train_rows", "512"),
    *("--data.batch_size", "128", "--data.eval_batch_size", "256"),
    *(
        "--trainer.limit_val_batches",
        "1",
        "--trainer.limit_test_batches",
        "1",
        "--training.optimizer.warmup_steps",
        "1",
    ),
]


@pytest.mark.slow
def test_a_killed_matrix_goes_on_and_ends_as_if_nothing_had_been(tmp_path):
    command = [sys.executable, str(ROOT / "cli.py"), "ablate", *REAL, "--out", str(tmp_path / "m")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "m").glob("cells/*/result.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime for path in (tmp_path / "m").glob("cells/*/result.json")}
    assert len(kept) == 1
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(path.stat().st_mtime == at for path, at in kept.items())
    result = MatrixResult.load(tmp_path / "m/results.json")
    assert [cell.status for variant in result.variants for cell in variant.cells] == ["done", "done"]
    kunlun, logistic = result.variants
    assert logistic.ratio["flops"] < 0.1
    assert kunlun.efficiency["training"]["samples_per_second"] > 0
    assert "W&B: the table is in" in done.stdout
    assert json.loads((tmp_path / "m/results.json").read_text())["kind"] == "ablation"


MACHINE = """
import sys, time
from contextlib import contextmanager
from kunlun.experiments import ablate, running
from tests.experiments.fits import Fits

class Slow(Fits):
    def run(self, command, log, environment):
        time.sleep(0.2)
        return super().run(command, log, environment)

fits = Slow(lambda config, seed: 0.9)

@contextmanager
def stoppable():
    yield fits

ablate.stoppable, running.POLL_SECONDS = stoppable, 0.1
print("begun", flush=True)
sys.stdin.readline()
code = ablate.main(sys.argv[1:])
print("ran", len(fits.commands), code)
"""


@pytest.mark.slow
def test_two_machines_share_the_cells_of_one_folder(tmp_path):
    command = [sys.executable, "-c", MACHINE, *FEW, "--seeds", "4", "--rounds", "0", "--out", str(tmp_path / "m")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    machines = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for machine in machines:
        assert machine.stdout.readline() == "begun\n"
    ran = []
    for machine in machines:
        machine.stdin.write("\n")
        machine.stdin.flush()
    for machine in machines:
        told = machine.communicate(timeout=200)[0].splitlines()[-1].split()
        assert (told[0], told[2]) == ("ran", "0")
        ran.append(int(told[1]))
    assert sum(ran) == 12
    assert min(ran) > 0
    result = MatrixResult.load(tmp_path / "m/results.json")
    assert {cell.status for variant in result.variants for cell in variant.cells} == {"done"}
