"""The command line: quick help, every wrong configuration refused with its key, and a run from end to end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

import cli
from kunlun.command_line import read_request
from kunlun.configuration import PROJECT_ROOT, ConfigError, RunError
from tests.wandb_file import read_offline_run

QUICK = [
    *("--data.batch_size=32", "--data.eval_batch_size=32", "--data.max_length=8"),
    *("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"),
    *("--trainer.limit_predict_batches=3", "--trainer.max_epochs=1"),
]


SELDOM = "--trainer.log_every_n_steps=50"  # nothing of a step: learning rates are logged without an epoch


def run_cli(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT_ROOT / "cli.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def fastest(*arguments: str, below: float, attempts: int = 4) -> tuple[float, subprocess.CompletedProcess[str]]:
    """The quickest of a few runs: other work on the machine only ever adds time."""
    best = float("inf")
    for _ in range(attempts):
        started = time.monotonic()
        done = run_cli(*arguments)
        best = min(best, time.monotonic() - started)
        if best < below:
            break
    return best, done


def build(argv: list[str]):
    """Everything up to the trainer, in this process."""
    from kunlun.training.cli import KunlunCLI
    from kunlun.training.precheck import precheck

    request = read_request("fit", argv)
    built = KunlunCLI(request, precheck(request))
    built.make_trainer([], logger=False)
    return built


def test_help_is_quick_and_lists_every_command() -> None:
    seconds, done = fastest("--help", below=1.5)
    assert done.returncode == 0
    assert all(f"  {command} " in done.stdout for command in cli.COMMANDS)
    assert seconds < 1.5


@pytest.mark.parametrize("argv", [["--help"], ["prepare", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = f"import sys, cli; code = cli.run({argv}); sys.exit(code or 'torch' in sys.modules or 'ibis' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, check=False).returncode == 0
    )


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    assert "usage:" in capsys.readouterr().err


def test_help_of_a_training_command_lists_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.run(["fit", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--trainer.max_epochs" in text
    assert "--run.patience" in text
    assert "Stop after so many validations" in text


def test_an_unknown_command_is_refused_with_a_suggestion() -> None:
    done = run_cli("fitt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'fit'?" in done.stderr


@pytest.mark.parametrize("name", ["criteo", "userbehavior", "taobao-x1"])
def test_prepare_lists_the_options_of_a_data_set(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["prepare", "--help"]) == 0
    assert name in capsys.readouterr().out
    assert cli.run(["prepare", name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--overwrite" in text
    assert "Replace a prepared data set" in text


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["crieto"], "did you mean 'criteo'"),
        (["criteo", "--raw={raw}"], "needs --raw FILE_OR_DIR and --out DIR"),
        (["criteo", "--raw=/nowhere/x", "--out=y"], "/nowhere/x: no such file"),
        (["criteo", "--raw={raw}", "--out=y", "--min_cuont=3"], "--min_cuont: .*did you mean 'min_count'"),
        (["criteo", "--raw={raw}", "--out=y", "--min-count=three"], "--min_count: expected a whole number"),
        (["criteo", "--raw={raw}", "--out=y", "--min-count=0"], "min_count must be at least 1"),
        (["criteo", "--raw={raw}", "--out=y", "--encoding=hush"], "did you mean 'hash'"),
    ],
)
def test_prepare_refuses_a_wrong_command_line(argv: list[str], told: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw.txt"
    raw.touch()
    with pytest.raises(ConfigError, match=told):
        cli.run(["prepare", *(argument.format(raw=raw) for argument in argv)])


def test_prepare_hands_over_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import data.criteo

    calls = []
    monkeypatch.setattr(data.criteo, "prepare", lambda *arguments: calls.append(arguments))
    raw = tmp_path / "train.txt"
    raw.touch()
    options = ["--min-count", "5", "--overwrite", "--train_fraction=0.5", "--memory_limit=2GB"]
    assert cli.run(["prepare", "criteo", "--raw", str(raw), f"--out={tmp_path / 'out'}", *options]) == 0
    expected = data.criteo.CriteoOptions(min_count=5, overwrite=True, train_fraction=0.5, memory_limit="2GB")
    assert calls == [(raw, tmp_path / "out", expected)]


# (the config file's text, what the message must say: the key, and the expectation or the suggestion)
MUTATIONS = [
    ("modle: {}", "modle", "did you mean 'model'"),
    ("sede_everything: 3", "sede_everything", "did you mean 'seed_everything'"),
    ("- model", "", "a mapping of sections"),
    ("model: [1", "", "not valid YAML"),
    ("data: {init_args: {seed: 1, seed: 2}}", "data.init_args.seed", "given twice"),
    ("model: 3", "model", "class_path"),
    ("model: {init_arg: {}}", "model.init_arg", "did you mean 'init_args'"),
    ("model: {class_path: 3}", "model", "class_path"),
    ("model: {class_path: kunlun.models.Kunlum}", "model.class_path", "did you mean 'Kunlun'"),
    ("model: {class_path: kunlun.modles.Kunlun}", "model.class_path", "did you mean 'kunlun.models'"),
    ("model: {class_path: kunlan.models.Kunlun}", "model.class_path", "did you mean 'kunlun'"),
    ("model: {class_path: lightning.pytorch.Trainer}", "model.class_path", "is no Module"),
    ("model: {init_args: {widht: 3}}", "model.init_args.widht", "did you mean 'width'"),
    ("model: {init_args: {width: wide}}", "model.init_args.width", "a whole number, got 'wide'"),
    ("model: {init_args: {width: 32.0}}", "model.init_args.width", "write 32"),
    ("model: {init_args: {width: null}}", "model.init_args.width", "got null"),
    ("model: {init_args: {schema: {}}}", "model.init_args.schema", "remove this key"),
    ("model: {init_args: {componentz: {}}}", "model.init_args.componentz", "did you mean 'components'"),
    ("model: {init_args: {components: {gdpaa: true}}}", "model.init_args.components.gdpaa", "did you mean 'gdpa'"),
    ("model: {init_args: {components: {gdpa: maybe}}}", "model.init_args.components.gdpa", "true or false"),
    ("model: {init_args: {components: 3}}", "model.init_args.components", "a mapping with gdpa"),
    ("model: {init_args: {components: [gdpa]}}", "model.init_args.components", "got a list"),
    ("model: {init_args: {towers: {default: {widht: 3}}}}", "model.init_args.towers.default.widht", "mean 'width'"),
    ("model: {init_args: {towers: {default: {width: -4}}}}", "model.init_args.towers.default", "≥ 1"),
    ("model: {init_args: {towers: [1]}}", "model.init_args.towers", "a mapping"),
    ("model: {init_args: {rote: {mode: tiem}}}", "model.init_args.rote.mode", "did you mean 'time'"),
    ("model: {init_args: {drop: [gpda]}}", "model.init_args.drop", "did you mean 'gdpa'"),
    ("model: {init_args: {head_hidden: [wide]}}", "model.init_args.head_hidden", "a whole number"),
    ("model: {init_args: {hsp: {seeds: 0}}}", "model.init_args.hsp", "≥ 1"),
    ("data: {class_path: data.SyntheticDat}", "data.class_path", "did you mean 'SyntheticData'"),
    ("data: {class_path: data.PreparedData}", "data.init_args.path", "needs this value"),
    ("data: {class_path: data.PreparedData, init_args: {path: /no/where}}", "data.init_args.path", "cli.py prepare"),
    ("data: {init_args: {preset: tyni}}", "data.init_args.preset", "tiny"),
    ("data: {init_args: {batch_sise: 3}}", "data.init_args.batch_sise", "did you mean 'batch_size'"),
    ("data: {init_args: {batch_size: -1}}", "data.init_args.batch_size", "-1"),
    ("data: {init_args: {batch_size: 0}}", "data.init_args.batch_size", "0"),
    ("data: {init_args: {max_length: 0}}", "data.init_args.max_length", "≥ 1"),
    ("data: {init_args: {num_workers: -2}}", "data.init_args.num_workers", "-2"),
    ("data: {init_args: {batch_size: 1e2}}", "data.init_args.batch_size", "write 100"),
    ("data: {init_args: {predict_split: tset}}", "data.init_args.predict_split", "did you mean 'test'"),
    ("training: {optimzer: {}}", "training.optimzer", "did you mean 'optimizer'"),
    ("training: {model: {}}", "training.model", "remove this key"),
    ("training: {optimizer: {lrr: 1}}", "training.optimizer.lrr", "did you mean 'lr'"),
    ("training: {optimizer: {lr: fast}}", "training.optimizer.lr", "a number, got 'fast'"),
    ("training: {optimizer: {lr: -1}}", "training.optimizer.lr", "-1"),
    ("training: {optimizer: {schedule: cosinus}}", "training.optimizer.schedule", "did you mean 'cosine'"),
    ("training: {optimizer: {warmup_steps: 1.5}}", "training.optimizer.warmup_steps", "a whole number, got 1.5"),
    ("trainer: {max_epoch: 3}", "trainer.max_epoch", "did you mean 'max_epochs'"),
    ("trainer: {max_epochs: many}", "trainer.max_epochs", "a whole number or null"),
    ("trainer: {max_epochs: -5}", "trainer.max_epochs", "-5"),
    ("trainer: {accelerator: gpuu}", "trainer.accelerator", "gpuu"),
    ("trainer: {devices: 0}", "trainer.devices", "0"),
    ("trainer: {precision: bf17}", "trainer.precision", "bf16"),
    ("trainer: {precision: bf16-true}", "trainer.precision", "write bf16-mixed"),
    ("trainer: {precision: 64}", "trainer.precision", "or 32-true"),
    ("trainer: {limit_train_batches: -1}", "trainer.limit_train_batches", "-1"),
    (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStoping}]}",
        "trainer.callbacks.0",
        "Stopping",
    ),
    (
        "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitr: x}}]}",
        "trainer.callbacks.0.init_args.monitr",
        "did you mean 'monitor'",
    ),
    ("run: {nam: x}", "run.nam", "did you mean 'name'"),
    ("run: base", "run", "mapping"),
    ("run: {name: a/b}", "run.name", "a/b"),
    ("run: {name: 7}", "run.name", "put it in quotes"),
    ("run: {wandb: off}", "run.wandb", "one of auto, offline, online, disabled"),
    ("run: {patience: 0}", "run.patience", "at least 1"),
    ("run: {keep_last: 0}", "run.keep_last", "at least 1"),
    ("run: {checkpoint_every: {step: 5}}", "run.checkpoint_every.step", "did you mean 'steps'"),
    ("run: {checkpoint_every: {steps: 0}}", "run.checkpoint_every", "at least 1"),
    ("run: {checkpoint_every: {minutes: soon}}", "run.checkpoint_every.minutes", "a number or null"),
    ("run: {nonfinite: ignore}", "run.nonfinite", "one of stop, skip"),
    ("run: {mode: minimum}", "run.mode", "did you mean 'min'"),
    ("seed_everything: x", "seed_everything", "a whole number"),
]


@pytest.mark.parametrize(("text", "key", "told"), MUTATIONS, ids=[m[0][:60] for m in MUTATIONS])
def test_a_mutated_config_is_refused(text: str, key: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mutated.yaml"
    path.write_text(f"# a comment\n{text}\n")
    with pytest.raises(ConfigError) as error:
        build(["--config", str(path), f"--run.root={tmp_path / 'runs'}"])
    message = str(error.value)
    assert "mutated.yaml:" in message
    assert key in message
    assert told in message
    assert len(message.splitlines()) <= 6
    assert not (tmp_path / "runs").exists()


OVERRIDES = [
    ("--data.batchsize=3", "data.init_args.batchsize", "did you mean 'batch_size'"),
    ("--data.batch_size=x", "data.init_args.batch_size", "a whole number, got 'x'"),
    ("--data.batch_size=-3", "data.init_args.batch_size", "-3"),
    ("--data.path=x", "data.init_args.path", "unknown key of SyntheticData"),
    ("--data=PreparedData", "data.init_args.path", "needs this value"),
    ("--data=PreparedDat", "data.class_path", "did you mean 'PreparedData'"),
    ("--model.componets.gdpa=false", "model.init_args.componets", "did you mean 'components'"),
    ("--model.init_args.componentz.gdpa=false", "model.init_args.componentz", "did you mean 'components'"),
    ("--model.components.gdpaa=1", "model.init_args.components.gdpaa", "did you mean 'gdpa'"),
    ("--model.components={gdpb: false}", "model.init_args.components.gdpb", "did you mean 'gdpa'"),
    ("--model.width=wide", "model.init_args.width", "a whole number"),
    ("--training.optimizer.schedule=x", "training.optimizer.schedule", "constant"),
    ("--trainer.max_epoch=3", "trainer.max_epoch", "did you mean 'max_epochs'"),
    ("--trainer.callbacks+=EarlyStoping", "trainer.callbacks", "EarlyStoping"),
    ("--run.name=a b", "run.name", "a b"),
    ("--seed_everything=x", "seed_everything", "a whole number"),
]


@pytest.mark.parametrize(("argument", "key", "told"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_a_wrong_override_is_refused(argument: str, key: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        build([argument, *([] if "run.name" in argument else ["--run.name=test"])])
    message = str(error.value)
    assert message.startswith(f"command line: {key}"), message
    assert told in message


def test_enough_mutations_are_tried() -> None:
    assert len({text for text, _, _ in MUTATIONS}) >= 50


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--config", "ablations/no_gdap"), "did you mean ablations/no_gdpa"),
        (("--model.init_args.componentz.gdpa=false",), "did you mean 'components'"),
        (("--data.batch_size=-1",), "data.init_args.batch_size"),
        (("--data=PreparedData", "--data.path=/no/where"), "/no/where"),
        (("--trainer.accelerator=gpuu",), "trainer.accelerator"),
    ],
)
def test_a_refusal_is_quick_and_starts_nothing(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    # On a machine that is busy with other things, as long as what cannot be avoided, once more.
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import lightning.pytorch"], check=True)
    import_of_lightning = time.monotonic() - started
    seconds, done = fastest("fit", *arguments, f"--run.root={tmp_path / 'runs'}", below=6.0, attempts=2)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 6
    assert not (tmp_path / "runs").exists()
    assert seconds < max(6.0, 2 * import_of_lightning)


def test_a_programming_error_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text(
        "from torch import nn\nclass Broken(nn.Module):\n"
        "    def __init__(self, schema) -> None:\n        super().__init__()\n        int('no number')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="invalid literal"):
        build(["--model=broken_package.Broken"])


def test_a_package_of_the_user_that_lacks_a_library_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_package.py").write_text("import a_library_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_installed"):
        build(["--model=needy_package.Model"])


@pytest.mark.parametrize("key", ["model.components.gdpa", "model.init_args.components.gdpa"])
def test_a_toggle_can_be_given_with_or_without_init_args(key: str) -> None:
    components = build([f"--{key}=false"]).config.model.init_args.components
    assert (components.gdpa, components.hsp) == (False, True)


def test_an_ablation_is_a_diff_over_the_base() -> None:
    full, ablation = build([]).config, build(["--config", "ablations/no_gdpa"]).config
    assert full.model.init_args.components.gdpa is True
    assert ablation.model.init_args.components.gdpa is False
    assert full.model.init_args.width == ablation.model.init_args.width
    assert full.training == ablation.training


def test_the_command_line_wins_over_every_config(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {init_args: {batch_size: 16}}\ntraining: {optimizer: {lr: 3e-4}}\n")
    built = build(["--data.batch_size=8", "--config", str(path), "--model.towers.default.width=16", "--run.name=7"])
    config = built.config
    assert config.data.init_args.batch_size == 8
    assert config.training.optimizer.lr == 3e-4
    assert config.model.init_args.towers["default"].width == 16
    assert config.run.name == "7"
    assert built.datamodule.batch_size == 8


def test_callbacks_can_be_appended() -> None:
    built = build(["--trainer.callbacks+=lightning.pytorch.callbacks.Timer", "--trainer.callbacks.interval=epoch"])
    assert [type(c).__name__ for c in built.config_init["trainer"]["callbacks"]] == ["Timer"]


def test_print_config_reads_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        build(["--config", "ablations/no_hsp", "--print_config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert build(["--config", str(printed)]).config.model == build(["--config", "ablations/no_hsp"]).config.model


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short fit in a process of its own, W&B offline: its run directory and what it printed."""
    root = tmp_path_factory.mktemp("runs")
    done = run_cli(
        "fit",
        "--config",
        "ablations/no_gdpa",
        f"--run.root={root}",
        "--run.group=tests",
        "--run.wandb=offline",
        "--trainer.log_every_n_steps=1",
        *QUICK,
    )
    assert done.returncode == 0, done.stderr
    runs = list(root.glob("no_gdpa/*"))
    assert len(runs) == 1
    return runs[0], done.stdout


def test_a_run_directory_holds_what_is_needed_to_repeat_the_run(finished: tuple[Path, str]) -> None:
    run, _ = finished
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["components"]["gdpa"] is False
    assert config["data"]["init_args"]["batch_size"] == 32
    assert "ckpt_path" not in config
    record = json.loads((run / "run.json").read_text())
    assert record["command"][:4] == ["cli.py", "fit", "--config", "ablations/no_gdpa"]
    assert {"python", "torch", "lightning", "numpy"} <= set(record["versions"])
    assert len(record["schema"]["sha256"]) == 64
    assert record["seed"] == config["seed_everything"]
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "step-00000002.ckpt"}
    assert record["group"] == "tests"
    with (run / "metrics.csv").open() as file:
        assert "valid/ne" in next(csv.reader(file))


def test_a_run_keeps_its_own_wandb_files(finished: tuple[Path, str]) -> None:
    run, _ = finished
    stores = list(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(stores) == 1
    assert run.name in stores[0].name
    told = read_offline_run(stores[0])
    assert (told.project, told.group, told.exit_code) == ("kunlun", "tests", 0)
    assert told.config["model"]["init_args"]["components"]["gdpa"] is False
    logged = {key for line in told.history for key in line}
    assert {"valid/ne", "valid/auc", "trainer/global_step"} <= logged
    assert {"efficiency/samples_per_second", "efficiency/mfu", "efficiency/data_wait_share"} <= logged
    assert any(key.startswith("efficiency/forward_share/") for key in logged)


def test_the_summary_says_how_good_how_fast_and_what_next(finished: tuple[Path, str]) -> None:
    run, output = finished
    summary = output[output.rindex("no_gdpa: ") :]
    assert "NE " in summary
    assert "AUC " in summary
    assert "samples/s" in summary
    assert run.name in summary
    commands = [line.strip() for line in summary[summary.index("next:") :].splitlines()[1:] if line.strip()]
    assert len(commands) == 3
    assert " test --ckpt_path " in commands[0]
    assert all("cli.py" in command or "wandb" in command for command in commands)


def test_the_run_can_be_evaluated_and_scored(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = finished
    assert cli.run(["test", "--ckpt_path", str(run / "checkpoints/best.ckpt")]) == 0
    assert "test/ne" in capsys.readouterr().out
    assert "test/auc" in json.loads((run / "test.json").read_text())
    assert cli.run(["validate", "--ckpt_path", str(run)]) == 0
    assert "valid/ne" in json.loads((run / "validate.json").read_text())
    assert cli.run(["predict", "--ckpt_path", str(run), "--split", "valid", "--data.eval_batch_size=20"]) == 0
    table = pq.read_table(run / "predictions-valid.parquet")
    assert table.num_rows == 60
    assert table["row"].to_pylist() == sorted(table["row"].to_pylist())
    assert all(0 < p < 1 for p in table.columns[-1].to_pylist())
    assert not list(run.glob("*.partial*"))


def test_validation_of_the_best_checkpoint_repeats_its_metrics(finished: tuple[Path, str]) -> None:
    run, _ = finished
    assert cli.run(["validate", "--ckpt_path", str(run)]) == 0
    with (run / "metrics.csv").open() as file:
        logged = [row["valid/ne"] for row in csv.DictReader(file) if row.get("valid/ne")]
    assert json.loads((run / "validate.json").read_text())["valid/ne"] == pytest.approx(float(logged[-1]), rel=1e-5)


def test_the_configuration_of_a_run_can_be_measured(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    out = tmp_path / "speed.json"
    options = ["--steps=2", "--warmup=1", f"--out={out}"]
    assert cli.run(["benchmark", "--config", str(run / "config.yaml"), *options]) == 0
    assert json.loads(out.read_text())["inference"]["batch"] == 32


def test_a_run_resumes_in_a_directory_of_its_own(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    arguments = ["--trainer.max_epochs=2", f"--run.root={tmp_path}", "--run.wandb=disabled", SELDOM]
    assert cli.run(["fit", "--ckpt_path", str(run), *arguments]) == 0
    (resumed,) = tmp_path.glob("no_gdpa/*")
    record = json.loads((resumed / "run.json").read_text())
    assert record["resumed_from"].endswith("step-00000002.ckpt")
    assert record["group"] == "tests"
    with (resumed / "metrics.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"1"}


def test_auto_goes_on_from_the_newest_intact_checkpoint(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "no_gdpa" / finished[0].name
    shutil.copytree(finished[0], copy)
    damaged = copy / "checkpoints" / "best.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    os.utime(damaged)  # the newest
    arguments = ["--run.name=no_gdpa", f"--run.root={tmp_path}", "--run.wandb=disabled", "--trainer.max_epochs=2"]
    assert cli.run(["fit", "--resume", "auto", *arguments, SELDOM, "--training.optimizer.lr=1e-4"]) == 0
    printed = capsys.readouterr()
    assert "best.ckpt is damaged, or not written by this program: going on from" in printed.err
    assert "changed: training.optimizer.lr: 0.003 → 0.0001" in printed.out
    assert "changed: trainer.max_epochs: 1 → 2" in printed.out
    (resumed,) = [path for path in tmp_path.glob("no_gdpa/*") if path != copy]
    with (resumed / "metrics.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"1"}


def test_resume_without_a_checkpoint(tmp_path: Path) -> None:
    request = read_request("fit", ["--resume=auto", f"--run.root={tmp_path}"])
    assert (request.checkpoint, request.run, request.warnings) == (None, None, [])
    with pytest.raises(ConfigError, match=r"--resume: .* is no checkpoint file"):
        read_request("fit", [f"--resume={tmp_path}"])
    with pytest.raises(ConfigError, match="give one of them"):
        read_request("fit", ["--resume=auto", f"--ckpt_path={tmp_path}"])


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    arguments = ["--training.optimizer.lr=1e30", "--training.optimizer.warmup_steps=0", "--trainer.max_epochs=3"]
    done = run_cli("fit", "--config=models/tiny", f"--run.root={tmp_path}", "--run.wandb=disabled", *QUICK, *arguments)
    assert done.returncode == 1
    assert "is not finite" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = tmp_path.glob("kunlun/*")
    assert json.loads((run / "nonfinite.jsonl").read_text())["rows"]
    for path in run.glob("checkpoints/*.ckpt"):
        state = torch.load(path, weights_only=True)["state_dict"]
        assert all(t.isfinite().all() for t in state.values())


def test_tables_too_large_for_memory_say_what_helps(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"out of memory: .* TiB more(.|\n)*model\.embedding\.width"):
        cli.run(["fit", "--model.embedding.width=20000000000", f"--run.root={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_model_is_refused(finished: tuple[Path, str]) -> None:
    run, _ = finished
    with pytest.raises(ConfigError, match="does not fit the model"):
        cli.run(["test", "--ckpt_path", str(run), "--model.width=16"])


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    assert cli.run(["fit", "--trainer.fast_dev_run=true", f"--run.root={tmp_path / 'runs'}", *QUICK[:3]]) == 0
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "cli.py"), "fit", f"--run.root={tmp_path}", "--run.wandb=disabled"]
    process = subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background job, as CI may be, passes on that it ignores the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("run: "):
            break
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [
        (["--seed_everything=3"], 3),
        (["--seed_everything=3", "--data.seed=7"], 7),
        (["--seed_everything=3", "--data.seed=0"], 0),
        (["--seed_everything=false"], 0),
        ([], 0),
    ],
)
def test_another_seed_is_another_order_of_the_rows(arguments: list[str], seed: int) -> None:
    assert build(["--config", "ablations/kunlun.yaml", *arguments]).datamodule.seed == seed
