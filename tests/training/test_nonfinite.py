"""A loss or gradient that is not finite never reaches the weights, nor a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from kunlun.configuration import RunError
from kunlun.training.module import CTRModule
from kunlun.training.nonfinite import NonFiniteGuard
from tests.support import toy_schema
from tests.training.test_module import Linear, Toy

SCHEMA = toy_schema()


class Poisoned(Linear):
    """Its output for some batches, or the gradient of it, is ``value``."""

    def __init__(self, batches: set[int], value: float, where: str) -> None:
        super().__init__(SCHEMA)
        self.batches, self.value, self.where, self.count = batches, value, where, 0
        self.before: dict[int, dict] = {}

    def forward(self, batch):
        out = super().forward(batch)
        if not self.training:
            return out
        self.before[self.count] = {k: v.clone() for k, v in self.state_dict().items()}
        if self.count in self.batches:
            if self.where == "loss":
                out = out + self.value
            elif self.where == "dense":
                out.register_hook(lambda grad: grad * self.value)
            else:
                self.table.weight.register_hook(lambda grad: grad * self.value)
        self.count += 1
        return out


def fit(model: nn.Module, guard: NonFiniteGuard, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": False, **quiet, **options}
    trainer = L.Trainer(accelerator="cpu", callbacks=[guard], **options)
    trainer.fit(CTRModule(model), Toy(SCHEMA))
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "dense", "table"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_it_stops_before_the_update_and_names_the_batch(value: float, where: str, clip, tmp_path: Path) -> None:
    model = Poisoned({3}, value, where)
    with pytest.raises(RunError, match=r"step 3 of epoch 0: .* is not finite .*nonfinite\.jsonl"):
        fit(model, NonFiniteGuard(tmp_path, "stop", 0), gradient_clip_val=clip)
    assert all(torch.equal(model.before[3][name], tensor) for name, tensor in model.state_dict().items())
    (record,) = [json.loads(line) for line in (tmp_path / "nonfinite.jsonl").read_text().splitlines()]
    order = Toy(SCHEMA).train_dataloader().batch_sampler
    assert record["rows"] == list(order)[3].tolist()
    assert record["step"] == 3


def test_with_accumulation_all_its_batches_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="step 1 of epoch 0: the loss"):
        fit(Poisoned({5}, math.nan, "loss"), NonFiniteGuard(tmp_path, "stop", 0), accumulate_grad_batches=4)
    record = json.loads((tmp_path / "nonfinite.jsonl").read_text())
    assert len(record["rows"]) == 4 * 8
    assert [math.isfinite(float(loss)) for loss in record["losses"]] == [True, False, True, True]


def test_skipping_leaves_the_batch_out_and_counts(tmp_path: Path) -> None:
    model, guard = Poisoned({2, 5}, math.nan, "loss"), NonFiniteGuard(tmp_path, "skip", 2)
    trainer = fit(model, guard)
    assert guard.skipped == 2
    assert trainer.callback_metrics["train/skipped"] == 2
    for batch in (2, 5):
        assert all(torch.equal(model.before[batch + 1][name], old) for name, old in model.before[batch].items())
    assert not torch.equal(model.before[4]["dense.weight"], model.before[3]["dense.weight"])
    assert all(p.isfinite().all() for p in model.parameters())
    assert len((tmp_path / "nonfinite.jsonl").read_text().splitlines()) == 2


def test_more_skips_than_the_limit_stop_the_run() -> None:
    with pytest.raises(RunError, match="nonfinite_limit=1"):
        fit(Poisoned({1, 2}, math.nan, "loss"), NonFiniteGuard(None, "skip", 1))


def test_the_count_survives_a_checkpoint() -> None:
    guard, resumed = NonFiniteGuard(None, "skip", 2), NonFiniteGuard(None, "skip", 2)
    guard.skipped = 2
    resumed.load_state_dict(guard.state_dict())
    assert resumed.skipped == 2


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trainer = fit(Linear(SCHEMA), NonFiniteGuard(None, "stop", 0))
    trainer.save_checkpoint(path)
    good = path.read_bytes()
    with torch.no_grad():
        trainer.lightning_module.model.table.weight[7] = math.inf
    with pytest.raises(RunError, match=r"table\.weight is not finite any more"):
        trainer.save_checkpoint(path)
    assert path.read_bytes() == good
