"""The command line wins over what a checkpoint remembers of an optimizer."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest

from kunlun.training.checkpoint_io import SealedCheckpointIO
from kunlun.training.module import CTRModule
from kunlun.training.optimizers import OptimizerConfig
from kunlun.training.resumed_options import Patience, ResumedOptions
from tests.support import toy_schema
from tests.training.test_module import Linear, StopAt, Toy

SCHEMA = toy_schema()


def fit(config: OptimizerConfig, *more: L.Callback, resume: Path | None = None) -> list[dict]:
    """The param groups at the end."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 4, "limit_val_batches": 0, "enable_checkpointing": False, **quiet}
    callbacks = [ResumedOptions(), *more]
    trainer = L.Trainer(accelerator="cpu", callbacks=callbacks, plugins=[SealedCheckpointIO()], **options)
    trainer.fit(CTRModule(Linear(SCHEMA), config), Toy(SCHEMA), ckpt_path=resume)
    return trainer.optimizers[0].param_groups


@pytest.mark.parametrize("schedule", ["constant", "linear", "plateau"])
def test_changed_rates_and_decays_take_effect(schedule: str, tmp_path: Path) -> None:
    path = tmp_path / "half.ckpt"

    def config(**options) -> OptimizerConfig:
        return OptimizerConfig(schedule=schedule, min_lr_ratio=0.5, warmup_steps=2, **options)

    fit(config(), StopAt(9, path))
    same, changed = fit(config(), resume=path), fit(config(lr=4e-3, weight_decay=0.5, betas=(0.5, 0.6)), resume=path)
    for old, new in zip(same, changed, strict=True):
        ratio = 1 if old["name"] == "tables" else 4
        assert new["lr"] == pytest.approx(ratio * old["lr"])
    assert changed[0]["weight_decay"] == 0.5
    assert tuple(changed[0]["betas"]) == (0.5, 0.6)
    assert same[0]["weight_decay"] == OptimizerConfig().weight_decay


def test_patience_is_that_of_this_run_and_a_decision_stands() -> None:
    before = Patience("valid/ne", "min", 5)
    before.wait_count = 3
    for patience, stops in ((2, True), (4, False)):
        now = Patience("valid/ne", "min", patience)
        now.load_state_dict(before.state_dict())
        trainer = type("Trainer", (), {"should_stop": False})()
        now.on_train_start(trainer, None)
        assert trainer.should_stop is stops
