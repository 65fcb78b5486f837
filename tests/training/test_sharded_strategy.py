"""Training with sharded tables on two processes is training with plain ones, and so are its checkpoints."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file
from torch import nn

from benchmarks.torchrec import (
    Recorder,
    arguments,
    benchmark,
    build,
    on_processes,
    trainer,
)
from kunlun.configuration import ConfigError, RunError
from kunlun.exported import load_exported
from kunlun.training.checkpoint_io import SealedCheckpointIO
from kunlun.training.sharded_checkpoint import KEY, folder_of, plain_state, remove_unused
from kunlun.training.sharded_strategy import ShardedTablesStrategy
from tests.conftest import ROOT

pytest.importorskip("torchrec", reason="TorchRec is not installed; `make torchrec` installs it")

STEPS = 50


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return {
        one["sharding"]: one for one in benchmark(arguments(["--steps", str(STEPS), "--batch-size", "64"]))["results"]
    }


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_losses_are_those_of_plain_tables(report: dict[str, Any], sharding: str) -> None:
    """Two processes with half of each batch against one with all of it, under a schedule and clipping."""
    one = report[sharding]
    assert one["steps"] == STEPS
    assert one["loss_last"] != one["loss_first"]
    assert one["loss_max_difference"] < 1e-4
    assert one["tables_max_difference"] < 1e-2
    assert one["row_sums_max_difference"] < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_a_checkpoint_of_two_is_loaded_by_one_and_by_a_plain_model(report: dict[str, Any], sharding: str) -> None:
    one = report[sharding]
    assert one["loaded_by_one_max_difference"] == 0
    assert one["loaded_by_plain_max_difference"] == 0
    assert sum(one["table_bytes_per_process"]) == one["table_bytes_alone"]


class SavedAt(Callback):
    """Saves after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


class Asking(Callback):
    """Brings all processes together after the first batch of a validation, as checkpoints do on a signal."""

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
        if index == 0:
            assert trainer.strategy.reduce_boolean_decision(True)


def resumed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Eight steps and a validation, and the last four steps once more from a checkpoint, on one of two processes."""
    losses, valid = [], []
    for ckpt_path in (None, folder / "middle.ckpt"):
        data, module = build(args, sharded=True, world=2)
        recorder, saved = Recorder(), SavedAt(4, folder / "middle.ckpt")
        strategy = ShardedTablesStrategy()
        run = trainer(
            args, 2, [recorder, saved, Asking()], strategy=strategy, limit_val_batches=1.0, val_check_interval=8
        )
        run.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        losses.append(recorder.losses)
        valid.append(float(run.callback_metrics["valid/ne"]))
    run.save_checkpoint(folder / "end.ckpt")
    return {"unbroken": losses[0], "resumed": losses[1], "valid": valid}


@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit_and_uneven_validations_agree(tmp_path: Path) -> None:
    args = arguments(["--steps", "8", "--batch-size", "32"])
    processes = on_processes(resumed, tmp_path, 2, args, tmp_path)
    assert len(list(tmp_path.glob("step-*.tables"))) == 2  # of two checkpoints, each with its own
    # One process validates three batches; of two, one has two batches and the other has one.
    data, module = build(args, sharded=False, world=1)
    path = tmp_path / "end.ckpt"
    module.load_state_dict(plain_state(module, SealedCheckpointIO().load_checkpoint(path), path))
    (plain,) = trainer(args, 1, [], limit_val_batches=1.0).validate(module, data, verbose=False)
    for one in processes:
        assert len(one["unbroken"]) == 8
        assert one["resumed"] == one["unbroken"][4:]
        assert one["valid"] == pytest.approx([plain["valid/ne"]] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"accumulate_grad_batches": 2}, "must be 1"), ({"precision": "16-mixed"}, "bf16-mixed")],
)
def test_what_would_move_rows_wrongly_is_refused(options: dict[str, Any], told: str) -> None:
    strategy = ShardedTablesStrategy()
    strategy.connect(nn.Module())  # type: ignore[arg-type]
    run = SimpleNamespace(accumulate_grad_batches=options.get("accumulate_grad_batches", 1), precision_plugin=None)
    if "precision" in options:
        run.precision_plugin = SimpleNamespace(scaler=object())
    with pytest.raises(ConfigError, match=told):
        strategy.setup(run)  # type: ignore[arg-type]


def test_tables_that_no_checkpoint_refers_to_are_removed(tmp_path: Path) -> None:
    for name in ("step-1-a.tables", "step-2-b.tables", "other"):
        (tmp_path / name).mkdir()
    torch.save({KEY: str(tmp_path / "step-2-b.tables")}, tmp_path / "last.ckpt")
    (tmp_path / "damaged.ckpt").write_bytes(b"PK")
    remove_unused(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.ckpt", "last.ckpt", "other", "step-2-b.tables"]


def test_tables_are_found_beside_a_checkpoint_that_was_moved(tmp_path: Path) -> None:
    checkpoint = {KEY: "/elsewhere/step-2-b.tables"}
    with pytest.raises(RunError, match=r"step-2-b\.tables, which is neither beside it nor at"):
        folder_of(checkpoint, tmp_path / "last.ckpt")
    (tmp_path / "step-2-b.tables").mkdir()
    assert folder_of(checkpoint, tmp_path / "last.ckpt") == tmp_path / "step-2-b.tables"


SHORT = ["--data.init_args.train_rows=1024", "--trainer.max_epochs=1", "--run.wandb=disabled", "--run.name=s"]


@pytest.mark.slow
def test_one_option_shards_and_an_export_is_plain(tmp_path: Path) -> None:
    option = "--model.init_args.embedding.sharded=true"
    for given in (
        ["fit", "--config=models/tiny", option, *SHORT, "--trainer.accelerator=cpu", "--trainer.devices=2"],
        ["export", "--ckpt_path=runs/s", "--out=exported"],
    ):
        command = [sys.executable, str(ROOT / "cli.py"), *given]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs/s").iterdir()
    (folder,) = (run / "checkpoints").glob("*.tables")
    model: Any = load_exported(tmp_path / "exported")
    assert not model.tables.config.sharded
    pieces = {}
    for path in folder.iterdir():
        for name, values in load_file(path).items():
            pieces.setdefault(name, []).append(len(values))
    assert sum(pieces["item.rows"]) == sum(pieces["item.row_sum"]) == len(model.tables.weight("item"))
    counts = json.loads((run / "summary.json").read_text())["parameters"]
    assert counts["embedding"] == sum(p.numel() for p in model.tables.parameters())
