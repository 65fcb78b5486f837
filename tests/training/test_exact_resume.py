"""A run that is killed and resumed gives bit for bit what an unbroken one gives, wherever it is killed."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from kunlun.checkpoints import newest_intact
from kunlun.features import Batch
from kunlun.training.checkpoint_io import SealedCheckpointIO
from kunlun.training.checkpointing import BestCheckpoint, LastCheckpoints
from kunlun.training.module import CTRModule
from kunlun.training.nonfinite import NonFiniteGuard
from kunlun.training.optimizers import OptimizerConfig
from kunlun.training.preemption import Preemption
from kunlun.training.random_state import RandomState
from kunlun.training.resumed_options import Patience, ResumedOptions
from kunlun.training.runs import CheckpointEvery
from tests.support import toy_schema
from tests.training.test_module import Linear, Toy

SCHEMA = toy_schema()
EPOCHS, BATCHES = 3, 8


class Kill(BaseException):
    """What a test takes for SIGKILL: nothing catches it."""


class Noisy(Linear):
    """Draws from every random number generator, in training and in validation."""

    def forward(self, batch: Batch) -> torch.Tensor:
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002
        return super().forward(batch) * (1 + 0.1 * noise)


class Trace(L.Callback):
    """Loss, rows and learning rate of every training batch, the metrics of every validation, by their place."""

    def __init__(self, kill: tuple[str, int] | None = None, preemption: Preemption | None = None) -> None:
        self.kill, self.preemption = kill, preemption
        self.seen: dict[Any, Any] = {}
        self.ended: BaseException | None = None

    def reached(self, hook: str, trainer: L.Trainer) -> None:
        if self.kill == (hook, trainer.fit_loop.total_batch_idx + 1) and not trainer.sanity_checking:
            if self.preemption is None:
                raise Kill
            self.preemption.received = signal.SIGTERM

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        where = ("train", trainer.current_epoch, batch_idx)
        self.seen[where] = (trainer.global_step, batch.row.tolist(), outputs["loss"].item(), rate)
        self.reached("train", trainer)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.reached("validation", trainer)

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            values = {name: float(value) for name, value in trainer.callback_metrics.items() if "valid" in name}
            self.seen["valid", trainer.current_epoch, trainer.global_step] = values
        self.reached("validated", trainer)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.reached("epoch", trainer)


@dataclass
class Case:
    """How a run is configured."""

    workers: int = 0
    patience: int | None = None
    steps: int = 3
    optimizer: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)


CASES = {
    "plain": Case(),
    "cosine": Case(optimizer={"schedule": "cosine", "warmup_steps": 5}),
    "accumulation": Case(trainer={"accumulate_grad_batches": 3}, steps=1),
    "validation inside the epoch": Case(trainer={"val_check_interval": 3}),
    "validation by steps": Case(trainer={"val_check_interval": 5, "check_val_every_n_epoch": None}),
    "no validation": Case(trainer={"limit_val_batches": 0}),
    "validation every other epoch": Case(trainer={"check_val_every_n_epoch": 2}),
    "max_steps": Case(trainer={"max_epochs": -1, "max_steps": EPOCHS * BATCHES}),
    "max_steps inside an epoch": Case(trainer={"max_epochs": -1, "max_steps": EPOCHS * BATCHES - 3}),
    "part of the batches": Case(trainer={"limit_train_batches": 5}),
    "max_steps and part of the batches": Case(trainer={"max_epochs": -1, "max_steps": 15, "limit_train_batches": 5}),
    "max_steps and early stopping": Case(
        patience=1, optimizer={"lr": 3.0}, trainer={"max_epochs": -1, "max_steps": EPOCHS * BATCHES}
    ),
    "plateau": Case(optimizer={"schedule": "plateau", "lr": 0.5, "warmup_steps": 9}, trainer={"val_check_interval": 4}),
    "early stopping": Case(patience=1, optimizer={"lr": 3.0}),
    "early stopping inside the epoch": Case(patience=2, optimizer={"lr": 3.0}, trainer={"val_check_interval": 2}),
    "workers": Case(workers=2),
}


def run(case: Case, folder: Path, trace: Trace, resume: Path | None = None, preemption: Preemption | None = None):
    """Train until the end or the kill; the module, and the trainer."""
    L.seed_everything(0 if resume is None else 99, verbose=False)
    module = CTRModule(Noisy(SCHEMA), OptimizerConfig(**case.optimizer))
    data = Toy(SCHEMA)
    data.num_workers = case.workers
    best = BestCheckpoint(folder, "valid/ne", "min")
    callbacks = [
        RandomState(),
        ResumedOptions(),
        NonFiniteGuard(None, "stop", 0),
        trace,
        LastCheckpoints(folder, CheckpointEvery(steps=case.steps), 3, preemption or Preemption()),
        *([best] if case.trainer.get("limit_val_batches") != 0 else []),
        *([Patience("valid/ne", "min", case.patience)] if case.patience else []),
    ]
    options = {"max_epochs": EPOCHS, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", callbacks=callbacks, plugins=[SealedCheckpointIO()], **{**options, **case.trainer}
    )
    try:
        trainer.fit(module, data, ckpt_path=resume)
    except (Kill, SystemExit) as error:
        trace.ended = error
    return module, trainer


def check(case: Case, tmp_path: Path, kill: tuple[str, int], whole, signalled: bool = False) -> None:
    expected, module, optimizer = whole
    preemption = Preemption() if signalled else None
    first = Trace(kill, preemption)
    run(case, tmp_path / "first", first, preemption=preemption)
    assert not isinstance(first.ended, SystemExit) or first.ended.code == 143
    checkpoint, damaged = newest_intact((tmp_path / "first").glob("*.ckpt"))
    assert not damaged
    second = Trace()
    resumed, trainer = run(case, tmp_path / "second", second, checkpoint)
    for trace in (first, second):
        wrong = {k: (v, expected.get(k)) for k, v in trace.seen.items() if v != expected.get(k)}
        assert not wrong, (kill, checkpoint, wrong)
    missing = set(expected) - set(first.seen) - set(second.seen)
    assert not missing, (kill, checkpoint, missing)
    if signalled and checkpoint is not None:
        twice = {k for k in set(first.seen) & set(second.seen) if k[0] == "train"}
        assert not twice, (kill, checkpoint, twice)
    for a, b in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), (kill, checkpoint)
    state = trainer.optimizers[0].state_dict()
    assert str(state) == str(optimizer), (kill, checkpoint)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory):
    """The unbroken run of a case, made once."""
    made: dict[str, Any] = {}

    def get(name: str):
        if name not in made:
            trace = Trace()
            module, trainer = run(CASES[name], tmp_path_factory.mktemp("whole"), trace)
            made[name] = (trace.seen, module, trainer.optimizers[0].state_dict())
        return made[name]

    return get


# After the first batch, in the middle of an accumulation, before and at and after the end of an epoch, in a validation.
KILLS = [("train", 1), ("train", 7), ("train", 8), ("validation", 8), ("epoch", 8), ("train", 9), ("train", 20)]
# For the long form, which `make reliability` runs.
EVERYWHERE = [("train", n) for n in range(1, 25)] + [
    (hook, n) for n in (8, 16) for hook in ("validation", "validated", "epoch")
]


@pytest.mark.parametrize("name", [name for name in CASES if name != "workers"])
def test_a_killed_run_goes_on_exactly(name: str, tmp_path: Path, wholes) -> None:
    # Of each kind of run, another two of the places, one of them with a signal to leave: the long form has them all.
    first = list(CASES).index(name)
    for i in (2 * first, 2 * first + 1):
        check(CASES[name], tmp_path / str(i), KILLS[i % len(KILLS)], wholes(name), signalled=bool(i % 2))


def test_with_workers_too(tmp_path: Path, wholes) -> None:
    check(CASES["workers"], tmp_path, ("train", 12), wholes("workers"))


@pytest.mark.skipif("KUNLUN_LONG" not in os.environ, reason="long: make reliability runs it")
@pytest.mark.parametrize("signalled", [False, True], ids=["killed", "signalled"])
@pytest.mark.parametrize("name", CASES)
def test_wherever_it_is_killed(name: str, signalled: bool, tmp_path: Path, wholes) -> None:
    for i, kill in enumerate(EVERYWHERE):
        check(CASES[name], tmp_path / str(i), kill, wholes(name), signalled)
