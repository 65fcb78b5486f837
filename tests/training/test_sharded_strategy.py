"""Training with sharded tables on two processes is training with plain ones, and so are its checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from benchmarks.torchrec import (
    Recorder,
    arguments,
    benchmark,
    build,
    on_processes,
    trainer,
)
from kunlun.configuration import RunError
from kunlun.layers.embedding import EmbeddingConfig
from kunlun.training.sharded_checkpoint import KEY, folder_of, remove_unused
from kunlun.training.sharded_strategy import ShardedTablesStrategy

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


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_a_checkpoint_of_two_is_loaded_by_one_and_by_a_plain_model(report: dict[str, Any], sharding: str) -> None:
    one = report[sharding]
    assert one["loaded_by_one_max_difference"] == 0
    assert one["loaded_by_plain_max_difference"] == 0
    assert sum(one["table_bytes_per_process"]) == one["table_bytes_alone"]


def resumed(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Eight steps, and the last four of them once more from a checkpoint, on one of several processes."""
    losses = []
    for ckpt_path in (None, folder / "step=4.ckpt"):
        data, module = build(args, sharded=True, world=2)
        recorder = Recorder()
        keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=4, save_top_k=-1)
        run = trainer(args, 2, [recorder, keep][: 1 if ckpt_path else 2], strategy=ShardedTablesStrategy())
        run.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        losses.append(recorder.losses)
    return {"unbroken": losses[0], "resumed": losses[1]}


@pytest.mark.slow
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    args = arguments(["--steps", "8", "--batch-size", "32"])
    for one in on_processes(resumed, tmp_path, 2, args, tmp_path):
        assert len(one["unbroken"]) == 8
        assert one["resumed"] == one["unbroken"][4:]
    assert len(list(tmp_path.glob("step-*.tables"))) == 2  # of two checkpoints, each with its own


def test_tables_that_no_checkpoint_refers_to_are_removed(tmp_path: Path) -> None:
    for name in ("step-1-a.tables", "step-2-b.tables", "other"):
        (tmp_path / name).mkdir()
    torch.save({KEY: str(tmp_path / "step-2-b.tables")}, tmp_path / "last.ckpt")
    remove_unused(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "other", "step-2-b.tables"]


def test_tables_are_found_beside_a_checkpoint_that_was_moved(tmp_path: Path) -> None:
    checkpoint = {KEY: "/elsewhere/step-2-b.tables"}
    with pytest.raises(RunError, match=r"step-2-b\.tables, which is neither beside it nor at"):
        folder_of(checkpoint, tmp_path / "last.ckpt")
    (tmp_path / "step-2-b.tables").mkdir()
    assert folder_of(checkpoint, tmp_path / "last.ckpt") == tmp_path / "step-2-b.tables"


def test_widths_are_checked() -> None:
    with pytest.raises(ValueError, match="widths that 4 divides"):
        EmbeddingConfig(width=6, sharded=True)
