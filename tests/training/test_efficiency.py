"""What the monitor says of a run whose slow places are known, and that the run does not notice it."""

from __future__ import annotations

import csv
import time

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from kunlun.models.kunlun import Kunlun
from kunlun.training.efficiency import EfficiencyMonitor, parts_of
from kunlun.training.module import CTRModule
from tests.support import toy_schema
from tests.training.test_module import Linear, Toy, trainer


class Asleep(nn.Module):
    """A linear model that sleeps 20 ms in one of its parts."""

    def __init__(self, schema) -> None:
        super().__init__()
        self.schema = schema
        self.quick = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.slow = Sleeping(2)
        self.outer = nn.Sequential(self.slow, nn.Linear(1, 1))

    def forward(self, batch):
        x = batch.dense
        for layer in self.quick:
            x = layer(x)
        return self.outer(x) + self.slow(x)


class Sleeping(nn.Linear):
    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 1)

    def forward(self, x):
        time.sleep(0.02)
        return super().forward(x)


class SlowReading(Toy):
    """Reading a batch takes 30 ms."""

    def split(self, name, share_histories=False):
        rows = super().split(name, share_histories)
        read = type(rows).__getitems__
        type(rows).__getitems__ = lambda self, index: (time.sleep(0.03), read(self, index))[1]
        return rows


def logged(model, data, tmp_path, **options) -> list[dict[str, float]]:
    """The rows of the CSV file that a fit of one epoch of 8 steps writes."""
    run = trainer(
        max_epochs=1,
        callbacks=[EfficiencyMonitor(**options)],
        logger=CSVLogger(tmp_path, version=""),
        log_every_n_steps=2,
    )
    run.fit(CTRModule(model), data)
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def reports(model, data, tmp_path, **options) -> list[dict[str, float]]:
    return [row for row in logged(model, data, tmp_path, **options) if "efficiency/peak_memory_mib" in row]


def shares(row) -> dict[str, float]:
    prefix = "efficiency/forward_share/"
    return {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}


def test_the_columns_are_there_and_consistent(tmp_path):
    schema = toy_schema()
    model = Kunlun(schema)
    rows = reports(model, Toy(schema), tmp_path, peak_flops=1e12)
    assert len(rows) == 4
    for row in rows:
        assert row["efficiency/samples_per_second"] > 0
        assert row["efficiency/tokens_per_second"] > 4 * row["efficiency/samples_per_second"]
        assert 0 <= row["efficiency/data_wait_share"] < 1
        assert row["efficiency/peak_memory_mib"] > 50
        per_sample = row["efficiency/mfu"] * 1e12 / 3 / row["efficiency/samples_per_second"]
        longest = {event.name: event.max_length for event in schema.events}
        assert sum(model.flops({}).values()) < per_sample < sum(model.flops(longest).values())
        assert set(shares(row)) == set(model.parts()) == set(model.flops({}))
        assert 0.3 < sum(shares(row).values()) <= 1


def test_reports_bear_the_step_of_what_else_is_logged(tmp_path):
    rows = logged(Linear(toy_schema()), Toy(toy_schema()), tmp_path)
    steps = {key: [row["step"] for row in rows if key in row] for key in ("train/loss", "efficiency/data_wait_share")}
    assert steps["efficiency/data_wait_share"] == steps["train/loss"] == [1, 3, 5, 7]
    (every,) = [row["step"] for row in reports(Linear(toy_schema()), Toy(toy_schema()), tmp_path / "5", every=5)]
    assert every == 4


def test_waiting_for_data_is_seen(tmp_path):
    schema = toy_schema()
    slow = reports(Linear(schema), SlowReading(schema), tmp_path / "slow")
    quick = reports(Asleep(schema), Toy(schema), tmp_path / "quick")
    for name, rows, low, high in (("slow", slow, 0.5, 1), ("quick", quick, 0, 0.5)):
        waits = sorted(row["efficiency/data_wait_share"] for row in rows)
        assert low <= waits[len(waits) // 2] <= high, name
    assert max(row["efficiency/samples_per_second"] for row in slow) <= 8 / 0.03


def test_the_slow_part_is_picked_out_and_nothing_counts_twice(tmp_path):
    """The sleeping module also runs inside another part: then its time is that part's."""
    rows = reports(Asleep(toy_schema()), Toy(toy_schema()), tmp_path)
    for row in rows:
        found = shares(row)
        assert sum(found.values()) <= 1
        assert found["slow"] + found["outer"] > 0.8
        assert found["quick"] < 0.2
        assert 0.2 < found["slow"] < 0.8
        assert "efficiency/mfu" not in row


def test_a_model_without_flops_is_told_once(tmp_path):
    with pytest.warns(UserWarning, match=r"no MFU, for Linear has no flops") as warnings:
        reports(Linear(toy_schema()), Toy(toy_schema()), tmp_path)
    assert len([w for w in warnings if "no MFU" in str(w.message)]) == 1


def test_the_run_does_not_notice():
    schema = toy_schema()
    states = []
    for callbacks in ([], [EfficiencyMonitor(every=2)]):
        torch.manual_seed(0)
        module, run = CTRModule(Kunlun(schema, dropout=0.1)), trainer(max_epochs=1, callbacks=callbacks)
        run.fit(module, Toy(schema))
        own = {"samples/s", "tokens/s", "MFU", "wait"}
        metrics = {k: float(v) for k, v in run.callback_metrics.items() if k not in own}
        assert own <= set(run.progress_bar_metrics) or not callbacks
        states.append((metrics, module.state_dict(), torch.rand(1)))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    (metrics, weights, random), (monitored, monitored_weights, monitored_random) = states
    assert metrics == pytest.approx(monitored, nan_ok=True)
    assert all(torch.equal(weights[k], monitored_weights[k]) for k in weights)
    assert torch.equal(random, monitored_random)


def test_a_compiled_model_is_left_alone(tmp_path):
    model = torch.compile(Linear(toy_schema()), backend="eager")
    rows = reports(model, Toy(toy_schema()), tmp_path)
    assert rows
    assert not any(shares(row) for row in rows)


def test_parts_are_the_models_own_or_its_children():
    model = Asleep(toy_schema())
    assert parts_of(model) == {"quick": list(model.quick), "slow": [model.slow], "outer": [model.outer]}


@pytest.mark.parametrize(("option", "told"), [({"every": 0}, "every"), ({"peak_flops": 0.0}, "peak_flops")])
def test_wrong_options_are_refused(option, told):
    with pytest.raises(ValueError, match=told):
        EfficiencyMonitor(**option)
