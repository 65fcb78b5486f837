from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from kunlun.training.optimizers import (
    CompositeOptimizer,
    OptimizerConfig,
    build_optimizer,
    build_schedulers,
    clip_dense_grad_norm_,
    step_plateau,
)
from kunlun.training.row_wise_adagrad import RowWiseAdagrad

CONFIG = OptimizerConfig(lr=0.01, weight_decay=0.1, table_lr=0.05, table_weight_decay=0.01)


class Model(nn.Module):
    """A sparse table, a dense table, a norm and a head: ids (B, 3) → logits (B,)."""

    def __init__(self, table_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 4, sparse=True, dtype=table_dtype)
        self.positions = nn.Embedding(3, 4)
        self.norm = nn.LayerNorm((3, 4))
        self.head = nn.Linear(12, 1)

    def forward(self, ids: Tensor) -> Tensor:
        tokens = self.norm(self.table(ids).float() + self.positions.weight)
        return self.head(tokens.flatten(1)).squeeze(1)


def make_model(table_dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    return Model(table_dtype)


def data(rows: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(30, (rows, 3), generator=generator)
    return ids, (ids[:, 0] > ids[:, 1]).float()


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    ids, labels = data()
    for step in range(first, first + steps):
        part = slice(step % 4 * 16, step % 4 * 16 + 16)
        optimizer.zero_grad()
        loss_of(model, (ids[part], labels[part])).backward()
        optimizer.step()


def assert_same_parameters(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(a, b), name


def names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, list[str]]:
    known = {param: name for name, param in model.named_parameters()}
    return {group["name"]: [known[param] for param in group["params"]] for group in optimizer.param_groups}


# --- Which optimizer gets which parameter


def test_parameters_are_split_into_named_groups() -> None:
    model = make_model()
    optimizer = build_optimizer(model, CONFIG)
    assert names(model, optimizer) == {
        "dense": ["positions.weight", "head.weight"],
        "no_decay": ["norm.weight", "norm.bias", "head.bias"],
        "tables": ["table.weight"],
    }
    settings = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert settings == {"dense": (0.01, 0.1), "no_decay": (0.01, 0.0), "tables": (0.05, 0.01)}
    assert [type(inner) for inner in optimizer.optimizers] == [AdamW, RowWiseAdagrad]


def test_frozen_parameters_are_left_out_and_empty_groups_too() -> None:
    model = make_model()
    for param in (model.positions.weight, model.head.weight, model.table.weight):
        param.requires_grad_(False)
    assert list(names(model, build_optimizer(model, CONFIG))) == ["no_decay"]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="Model has no parameter"):
        build_optimizer(model, CONFIG)
    tables_only = nn.Embedding(5, 2, sparse=True)
    assert names(tables_only, build_optimizer(tables_only, CONFIG)) == {"tables": ["weight"]}


def test_batched_biases_do_not_decay() -> None:
    model = nn.Module()
    model.expert_bias = nn.Parameter(torch.zeros(4, 8))
    model.expert_weight = nn.Parameter(torch.zeros(4, 8, 8))
    assert names(model, build_optimizer(model, CONFIG)) == {"dense": ["expert_weight"], "no_decay": ["expert_bias"]}


def test_a_shared_parameter_is_optimized_once() -> None:
    model = make_model()
    model.other = nn.Embedding(30, 4, sparse=True)
    model.other.weight = model.table.weight
    assert names(model, build_optimizer(model, CONFIG))["tables"] == ["table.weight"]
    with pytest.raises(ValueError, match="more than one parameter group"):
        CompositeOptimizer([AdamW([model.table.weight]), RowWiseAdagrad([model.table.weight])])


# --- The composite behaves like one torch optimizer


def test_dense_parameters_follow_adamw_and_tables_row_wise_adagrad() -> None:
    model, twin = make_model(), make_model()
    optimizer = build_optimizer(model, CONFIG)
    moments = {
        name: (torch.zeros(p.shape).double(), torch.zeros(p.shape).double()) for name, p in twin.named_parameters()
    }
    row_sum = torch.zeros(30, dtype=torch.float64)
    ids, labels = data()
    for step in range(1, 4):
        optimizer.zero_grad()
        twin.zero_grad()
        loss_of(model, (ids, labels)).backward()
        loss_of(twin, (ids, labels)).backward()
        optimizer.step()
        with torch.no_grad():
            for name, param in twin.named_parameters():
                assert param.grad is not None
                gradient = param.grad.to_dense().double()
                if name == "table.weight":
                    touched = ids.unique()
                    g = gradient[touched] + 0.01 * param[touched].double()
                    row_sum[touched] += g.square().mean(1)
                    param[touched] -= (0.05 * g / (row_sum[touched].sqrt() + 1e-8)[:, None]).float()
                    continue
                mean, square = moments[name]
                mean.mul_(0.9).add_(0.1 * gradient)
                square.mul_(0.999).add_(0.001 * gradient**2)
                decay = 0.1 if name in ("positions.weight", "head.weight") else 0.0
                update = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
                param.copy_(param.double() * (1 - 0.01 * decay) - 0.01 * update)
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def reload(model: nn.Module, optimizer: CompositeOptimizer) -> tuple[nn.Module, CompositeOptimizer]:
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    torch.manual_seed(99)
    fresh = Model(model.table.weight.dtype)
    fresh.load_state_dict(saved["model"])
    fresh_optimizer = build_optimizer(fresh, OptimizerConfig(lr=9.0, table_lr=9.0))
    fresh_optimizer.load_state_dict(saved["optimizer"])
    return fresh, fresh_optimizer


def copied(model: nn.Module, optimizer: CompositeOptimizer) -> tuple[nn.Module, CompositeOptimizer]:
    return copy.deepcopy((model, optimizer))


def pickled(model: nn.Module, optimizer: CompositeOptimizer) -> tuple[nn.Module, CompositeOptimizer]:
    return pickle.loads(pickle.dumps((model, optimizer)))


Restore = Callable[[nn.Module, CompositeOptimizer], tuple[nn.Module, CompositeOptimizer]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("restore", [reload, copied, pickled])
def test_restored_training_continues_bit_for_bit(restore: Restore, dtype: torch.dtype) -> None:
    model = make_model(dtype)
    optimizer = build_optimizer(model, CONFIG)
    train(model, optimizer, steps=5)
    other, other_optimizer = restore(model, optimizer)
    assert_same_parameters(model, other)
    row_sum = other_optimizer.state[other.table.weight]["row_sum"]
    assert row_sum.dtype == torch.float32
    train(model, optimizer, steps=6, first=5)
    untouched = [param.detach().clone() for param in other.parameters()]
    train(other, other_optimizer, steps=6, first=5)
    assert_same_parameters(model, other)
    assert not any(torch.equal(a, b) for a, b in zip(untouched, other.parameters(), strict=True))
    assert torch.equal(optimizer.state[model.table.weight]["row_sum"], row_sum)


@pytest.mark.parametrize("restore", [lambda model, optimizer: (model, optimizer), reload, copied, pickled])
def test_groups_and_state_stay_shared_with_the_inner_optimizers(restore: Restore) -> None:
    model = make_model()
    optimizer = build_optimizer(model, CONFIG)
    train(model, optimizer, steps=1)
    model, optimizer = restore(model, optimizer)
    inner_groups = [group for inner in optimizer.optimizers for group in inner.param_groups]
    assert all(a is b for a, b in zip(optimizer.param_groups, inner_groups, strict=True))
    assert all(inner.state is optimizer.state for inner in optimizer.optimizers)
    assert set(optimizer.state) == set(model.parameters())
    before = copy.deepcopy(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, steps=1)
    assert_same_parameters(model, before)


def test_closure_runs_once_with_gradients_enabled() -> None:
    model = make_model()
    optimizer = build_optimizer(model, CONFIG)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(model, data())
        loss.backward()
        return loss

    expected = loss_of(model, data()).item()
    assert optimizer.step(closure).item() == expected
    assert calls == [True]
    assert loss_of(model, data()).item() < expected


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_reaches_all_groups(set_to_none: bool) -> None:
    model = make_model()
    optimizer = build_optimizer(model, CONFIG)
    loss_of(model, data()).backward()
    optimizer.zero_grad(set_to_none)
    if set_to_none:
        assert all(param.grad is None for param in model.parameters())
    else:
        assert not any(param.grad.to_dense().any() for param in model.parameters() if param.grad is not None)


def test_hooks_and_profiler_see_the_step() -> None:
    model = make_model()
    optimizer = build_optimizer(model, CONFIG)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, steps=1)
    assert seen == ["before", "after"]
    assert "Optimizer.step#CompositeOptimizer.step" in {event.key for event in profile.key_averages()}


def test_param_groups_cannot_be_added_later() -> None:
    optimizer = build_optimizer(make_model(), CONFIG)
    with pytest.raises(NotImplementedError, match="cannot grow"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


# --- Schedules


def learning_rates(config: OptimizerConfig, steps: int, total_steps: int | None) -> list[dict[str, float]]:
    """Learning rate per group at each of the first `steps` optimizer steps."""
    model = make_model()
    optimizer = build_optimizer(model, config)
    schedulers = build_schedulers(optimizer, config, total_steps)
    rates = []
    for _ in range(steps):
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        for scheduler in schedulers:
            if scheduler.get("interval") == "step":
                scheduler["scheduler"].step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ("plateau", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.85, 0.7, 0.55, 0.4, 0.4]),
        (
            "cosine",
            [0.25, 0.5, 0.75, 1, 1, 0.4 + 0.3 * (1 + math.sqrt(0.5)), 0.7, 0.4 + 0.3 * (1 - math.sqrt(0.5)), 0.4],
        ),
    ],
)
@pytest.mark.parametrize("tables_follow", [True, False])
def test_warm_up_and_decay(schedule: Any, expected: list[float], tables_follow: bool) -> None:
    config = OptimizerConfig(
        lr=0.01,
        table_lr=0.05,
        schedule=schedule,
        warmup_steps=4,
        min_lr_ratio=0.4,
        tables_follow_schedule=tables_follow,
    )
    rates = learning_rates(config, len(expected), total_steps=8)
    assert [rate["dense"] for rate in rates] == pytest.approx([0.01 * factor for factor in expected])
    assert [rate["no_decay"] for rate in rates] == [rate["dense"] for rate in rates]
    tables = [0.05 * factor if tables_follow else 0.05 for factor in expected]
    assert [rate["tables"] for rate in rates] == pytest.approx(tables)


def test_constant_without_warm_up_needs_no_scheduler() -> None:
    assert build_schedulers(build_optimizer(make_model(), CONFIG), CONFIG, total_steps=None) == []


@pytest.mark.parametrize("tables_follow", [True, False])
def test_plateau_cuts_survive_the_warm_up(tables_follow: bool) -> None:
    config = OptimizerConfig(
        lr=0.01,
        table_lr=0.05,
        schedule="plateau",
        warmup_steps=3,
        plateau_factor=0.1,
        min_lr_ratio=0.05,
        plateau_monitor="valid/auc",
        plateau_mode="max",
        tables_follow_schedule=tables_follow,
    )
    optimizer = build_optimizer(make_model(), config)
    plateau, warmup = build_schedulers(optimizer, config, total_steps=None)
    rates = []
    for auc in (0.7, 0.8, 0.8, 0.79, 0.78):
        for _ in range(4):
            optimizer.step()
            warmup["scheduler"].step()
        step_plateau([warmup["scheduler"], plateau["scheduler"]], config, {"valid/auc": torch.tensor(auc)})
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
    assert [rate["dense"] for rate in rates] == pytest.approx([0.01, 0.01, 0.001, 0.0005, 0.0005])
    tables = [0.05, 0.05, 0.005, 0.0025, 0.0025] if tables_follow else [0.05] * 5
    assert [rate["tables"] for rate in rates] == pytest.approx(tables)


def test_an_unknown_plateau_monitor_names_the_known_values() -> None:
    config = OptimizerConfig(schedule="plateau", plateau_monitor="valid/aux")
    [plateau] = build_schedulers(build_optimizer(make_model(), config), config, total_steps=None)
    with pytest.raises(ValueError, match="'valid/aux', but validation logs valid/auc, valid/ne"):
        step_plateau(plateau["scheduler"], config, {"valid/auc": torch.tensor(0.5), "valid/ne": torch.tensor(0.9)})
    step_plateau(None, config, {})  # nothing to step, as in validation without training


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("total_steps", [None, -1, 0])
def test_a_decay_needs_the_number_of_steps(schedule: Any, total_steps: int | None) -> None:
    config = OptimizerConfig(schedule=schedule)
    with pytest.raises(ValueError, match="max_steps"):
        build_schedulers(build_optimizer(make_model(), config), config, total_steps)


def test_a_warm_up_longer_than_the_run_is_reported() -> None:
    config = OptimizerConfig(schedule="cosine", warmup_steps=100)
    with pytest.warns(UserWarning, match="warmup_steps is 100, but the run has 10"):
        build_schedulers(build_optimizer(make_model(), config), config, total_steps=10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("table_lr", -1.0),
        ("table_eps", 0.0),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("weight_decay", -0.1),
        ("table_weight_decay", math.inf),
        ("table_initial_accumulator", -1.0),
        ("schedule", "cosin"),
        ("warmup_steps", -1),
        ("min_lr_ratio", 1.5),
        ("plateau_factor", 1.0),
        ("plateau_patience", -1),
        ("plateau_mode", "maximum"),
    ],
)
def test_wrong_configuration_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is .* must be"):
        OptimizerConfig(**{field: value})


# --- Clipping


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_clipping_scales_dense_gradients_only(max_norm: float) -> None:
    model = make_model()
    loss_of(model, data()).backward()
    before = {name: param.grad.to_dense().clone() for name, param in model.named_parameters() if param.grad is not None}
    norm = clip_dense_grad_norm_(model.parameters(), max_norm)
    dense = torch.cat([gradient.flatten() for name, gradient in before.items() if name != "table.weight"])
    assert norm.item() == pytest.approx(dense.norm().item(), rel=1e-5)
    scale = min(1.0, max_norm / norm.item())
    for name, param in model.named_parameters():
        assert param.grad is not None
        expected = before[name] * (1.0 if name == "table.weight" else scale)
        torch.testing.assert_close(param.grad.to_dense(), expected, rtol=1e-3, atol=0)


def test_clipping_without_dense_gradients_returns_zero() -> None:
    assert clip_dense_grad_norm_([nn.Parameter(torch.ones(2))], 1.0).item() == 0.0


# --- Lightning


class TinyModule(L.LightningModule):
    def __init__(self, config: OptimizerConfig) -> None:
        super().__init__()
        self.model = make_model()
        self.config = config
        self.rates: list[list[float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return loss_of(self.model, (batch[0], batch[1]))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, *_: Any, **__: Any) -> None:
        clip_dense_grad_norm_(self.model.parameters(), gradient_clip_val)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("valid/ne", 1.0)

    def on_validation_epoch_end(self) -> None:
        step_plateau(self.lr_schedulers(), self.config, {"valid/ne": torch.tensor(1.0)})

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.config)
        return [optimizer], build_schedulers(optimizer, self.config, total_steps=12)


def fit(module: TinyModule, folder: Path, epochs: int, resume: Path | None = None) -> Path:
    loader = DataLoader(TensorDataset(*data()), batch_size=8)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=2,
        gradient_clip_val=0.05,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename=f"{epochs}", monitor=None, save_on_train_epoch_end=True)],
        default_root_dir=folder,
    )
    trainer.fit(module, loader, loader, ckpt_path=resume, weights_only=True)
    return folder / f"{epochs}.ckpt"


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*smaller than the logging interval")
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_lightning_trains_and_resumes_bit_for_bit(tmp_path: Path, schedule: Any) -> None:
    config = OptimizerConfig(lr=0.01, table_lr=0.05, schedule=schedule, warmup_steps=3)
    module = TinyModule(config)
    checkpoint = fit(module, tmp_path / "whole", epochs=1)
    assert len(module.rates) == 4  # 8 batches, 2 per optimizer step

    # By hand: two half batches of 8 rows are one batch of 16.
    twin = make_model()
    optimizer = build_optimizer(twin, config)
    ids, labels = data()
    for step, rates in enumerate(module.rates):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad()
        part = slice(16 * step, 16 * step + 16)
        loss_of(twin, (ids[part], labels[part])).backward()
        clip_dense_grad_norm_(twin.parameters(), 0.05)
        optimizer.step()
    for (name, a), b in zip(module.model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a, b[1], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")

    whole, resumed = TinyModule(config), TinyModule(config)
    fit(whole, tmp_path / "whole", epochs=3)
    fit(resumed, tmp_path / "resumed", epochs=3, resume=checkpoint)
    assert_same_parameters(whole, resumed)
    assert module.rates + resumed.rates == whole.rates
    assert whole.rates[0][0] == pytest.approx(0.01 / 3)
    assert whole.rates[2] == pytest.approx([0.01, 0.01, 0.05])
    last = {"cosine": 0.01 * (1 + math.cos(math.pi * 8 / 9)) / 2, "plateau": 0.001}[schedule]
    assert whole.rates[-1] == pytest.approx([last, last, 5 * last])
