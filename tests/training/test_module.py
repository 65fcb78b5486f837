"""CTRModule wires loss, metrics and optimizers: what it logs, clips, accumulates and resumes."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from data.module import DataModule
from kunlun.features import Batch, FeatureSchema
from kunlun.training.module import CTRModule
from kunlun.training.optimizers import OptimizerConfig
from tests.support import take_rows, toy_batch, toy_schema


class Linear(nn.Module):
    """Logits from the dense features, and from a sparse table."""

    def __init__(self, schema: FeatureSchema) -> None:
        super().__init__()
        self.schema = schema
        self.dense = nn.Linear(2, len(schema.tasks))
        self.table = nn.Embedding(200, len(schema.tasks), sparse=True)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.dense(batch.dense) + self.table(batch.sparse[:, 0])


class Toy(DataModule):
    """64 rows of random data for every split."""

    def __init__(self, schema: FeatureSchema, batch_size: int = 8) -> None:
        super().__init__(batch_size, 16, 24, 0, 0, "test")
        self._schema = schema
        self.batch = toy_batch(schema, 64, torch.Generator().manual_seed(1))

    @property
    def schema(self) -> FeatureSchema:
        return self._schema

    def split(self, name, share_histories=False):
        batch = self.batch

        class Rows(Dataset):
            def __len__(self) -> int:
                return 64

            def __getitems__(self, rows) -> Batch:
                return take_rows(batch, list(rows))

        return Rows()


def trainer(**options) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, **{**quiet, "max_epochs": 2, **options})


def test_metrics_are_those_of_the_whole_split_for_every_task():
    schema = toy_schema(tasks=2)
    module, data = CTRModule(Linear(schema)), Toy(schema)
    (logged,) = trainer().validate(module, data, verbose=False)
    logits, labels = module(data.batch), data.batch.labels
    for task, prefix in enumerate(("valid", "valid/task1")):
        loss = nn.functional.binary_cross_entropy_with_logits(logits[:, task], labels[:, task]).item()
        assert logged[f"{prefix}/log_loss"] == pytest.approx(loss, rel=1e-5)
        entropy = -(0.3 * torch.tensor(0.3).log() + 0.7 * torch.tensor(0.7).log()).item()
        assert logged[f"{prefix}/ne"] == pytest.approx(loss / entropy, rel=1e-5)
        ratio = torch.sigmoid(logits[:, task]).sum() / labels[:, task].sum()
        assert logged[f"{prefix}/calibration"] == pytest.approx(ratio.item(), rel=1e-5)
        assert {f"{prefix}/auc", f"{prefix}/gauc"} <= set(logged)


def test_the_loss_is_the_weighted_mean_summed_over_tasks():
    schema = toy_schema(tasks=2)
    batch = toy_batch(schema, 5, torch.Generator().manual_seed(0))
    logits = torch.randn(5, 2)
    each = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none").sum(1)
    torch.testing.assert_close(CTRModule._loss(logits, batch), each.mean())
    weight = torch.tensor([1.0, 0, 2, 1, 0])
    expected = (each * weight).sum() / weight.sum()
    torch.testing.assert_close(CTRModule._loss(logits, replace(batch, weight=weight)), expected)


def test_clipping_is_of_the_dense_part_and_refuses_by_value():
    schema = toy_schema()
    module = CTRModule(Linear(schema))
    batch = toy_batch(schema, 8, torch.Generator().manual_seed(0))
    (module._loss(module(batch), batch) * 100).backward()
    table = module.model.table.weight.grad.to_dense().clone()
    module.configure_gradient_clipping(None, 0.5, "norm")
    norm = torch.cat([p.grad.flatten() for p in module.model.dense.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-4)
    assert torch.equal(module.model.table.weight.grad.to_dense(), table)
    with pytest.raises(ValueError, match="only 'norm'"):
        module.configure_gradient_clipping(None, 0.5, "value")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_schedule_ends_with_the_run(accumulate):
    schema = toy_schema()
    module = CTRModule(Linear(schema), OptimizerConfig(schedule="linear", warmup_steps=2))
    run = trainer(accumulate_grad_batches=accumulate, gradient_clip_val=1.0)
    run.fit(module, Toy(schema))
    assert run.global_step == 2 * 8 // accumulate
    assert all(group["lr"] == pytest.approx(0, abs=1e-6) for group in run.optimizers[0].param_groups)


class StopAt(L.Callback):
    """Saves and stops in the middle of an epoch."""

    def __init__(self, step: int, path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


@pytest.mark.parametrize("step", [3, 8, 21])
def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path, step):
    schema, path = toy_schema(), tmp_path / "half.ckpt"

    def module() -> CTRModule:
        torch.manual_seed(0)
        return CTRModule(Linear(schema), OptimizerConfig(schedule="cosine", warmup_steps=3))

    whole, broken, resumed = module(), module(), module()
    trainer(max_epochs=4).fit(whole, Toy(schema))
    trainer(max_epochs=4, callbacks=[StopAt(step, path)]).fit(broken, Toy(schema))
    rest = trainer(max_epochs=4)
    rest.fit(resumed, Toy(schema), ckpt_path=path, weights_only=True)
    assert rest.global_step == 32
    for a, b, c in zip(whole.parameters(), resumed.parameters(), broken.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_predictions_are_probabilities_of_rows():
    schema = toy_schema(tasks=2)
    module, data = CTRModule(Linear(schema)), Toy(schema)
    out = module.predict_step(data.batch, 0)
    torch.testing.assert_close(out["probability"], torch.sigmoid(module(data.batch)))
    assert out["row"].tolist() == list(range(64))
