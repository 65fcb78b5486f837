"""Which checkpoints there are, when they are written, and what a resumed run takes over."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import lightning as L
import pytest
import torch

from kunlun.checkpoints import state_of
from kunlun.configuration import RunError
from kunlun.training.checkpoint_io import SealedCheckpointIO
from kunlun.training.checkpointing import BestCheckpoint, LastCheckpoints
from kunlun.training.module import CTRModule
from kunlun.training.preemption import Preemption
from kunlun.training.runs import CheckpointEvery
from tests.support import toy_schema
from tests.training.test_module import Linear, Toy

SCHEMA = toy_schema()
NEVER = CheckpointEvery(minutes=None)


def fit(folder: Path, *more: L.Callback, every=NEVER, keep=3, preemption=None, resume=None, **options) -> L.Trainer:
    last = LastCheckpoints(folder, every, keep, preemption or Preemption())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[*more, last],
        plugins=[SealedCheckpointIO()],
        **{"max_epochs": 2, "limit_val_batches": 0, **quiet, **options},
    )
    trainer.fit(CTRModule(Linear(SCHEMA)), Toy(SCHEMA), ckpt_path=resume)
    return trainer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept_and_last_is_one_of_them(tmp_path: Path) -> None:
    fit(tmp_path, every=CheckpointEvery(steps=3, minutes=None), keep=2)
    assert names(tmp_path) == ["last.ckpt", "step-00000014.ckpt", "step-00000016.ckpt"]
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "step-00000016.ckpt")
    assert all(state_of(path) == "intact" for path in tmp_path.iterdir())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 16


def test_without_an_interval_there_is_one_per_epoch(tmp_path: Path) -> None:
    fit(tmp_path)
    assert names(tmp_path) == ["last.ckpt", "step-00000008.ckpt", "step-00000016.ckpt"]


def test_minutes_count_too(tmp_path: Path) -> None:
    fit(tmp_path, every=CheckpointEvery(minutes=1e-9), keep=99)
    assert len(names(tmp_path)) == 17


class At(L.Callback):
    """Does something after a batch."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.step:
            self.action()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_with_143(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, preemption = signal.getsignal(number), Preemption()
    with pytest.raises(SystemExit) as ending, preemption.handled():
        fit(tmp_path, At(3, lambda: os.kill(os.getpid(), number)), preemption=preemption)
    assert ending.value.code == 143
    assert names(tmp_path) == ["last.ckpt", "step-00000003.ckpt"]
    assert f"{signal.Signals(number).name}: saved" in capsys.readouterr().out
    assert signal.getsignal(number) == before


def test_a_signal_waits_for_the_end_of_an_accumulation(tmp_path: Path) -> None:
    preemption, action = Preemption(), At(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit), preemption.handled():
        fit(tmp_path, action, preemption=preemption, accumulate_grad_batches=4, max_epochs=3)
    # Batches 5 … 8 are the second step, at the end of the epoch.
    assert names(tmp_path) == ["last.ckpt", "step-00000002.ckpt"]


def test_before_training_a_signal_ends_at_once() -> None:
    preemption = Preemption()
    with pytest.raises(SystemExit) as ending, preemption.handled():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ending.value.code == 143


def test_an_error_is_no_reason_to_save(tmp_path: Path) -> None:
    def fail() -> None:
        raise RunError("no")

    with pytest.raises(RunError):
        fit(tmp_path, At(3, fail))
    assert names(tmp_path) == []


def test_a_disk_that_is_gone_stops_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="could not be saved"):
        fit(tmp_path / "file" / "folder")


def test_a_resumed_run_takes_over_the_best(tmp_path: Path) -> None:
    def best(folder: Path) -> BestCheckpoint:
        return BestCheckpoint(folder, "valid/ne", "min")

    first, second = best(tmp_path / "1"), best(tmp_path / "2")
    fit(tmp_path / "1", first, limit_val_batches=1.0, max_epochs=1)
    fit(tmp_path / "2", second, limit_val_batches=1.0, max_epochs=1, resume=tmp_path / "1" / "last.ckpt")
    assert second.best_model_score == first.best_model_score
    assert (tmp_path / "2" / "best.ckpt").read_bytes() == (tmp_path / "1" / "best.ckpt").read_bytes()
    # A worse one does not replace it.
    third = best(tmp_path / "3")
    third.load_state_dict({**second.state_dict(), "best_model_score": torch.tensor(-1.0)})
    fit(tmp_path / "3", third, limit_val_batches=1.0, max_epochs=1)
    assert third.best_model_score == -1
    assert state_of(tmp_path / "3" / "best.ckpt") == "intact"


def test_a_best_one_that_is_damaged_is_not_taken_over(tmp_path: Path) -> None:
    first, second = BestCheckpoint(tmp_path / "1", "valid/ne", "min"), BestCheckpoint(tmp_path / "2", "valid/ne", "min")
    fit(tmp_path / "1", first, limit_val_batches=1.0, max_epochs=1)
    path = tmp_path / "1" / "best.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    second.load_state_dict(first.state_dict())
    assert second.best_model_score is None
    assert not (tmp_path / "2").exists()
