"""Sharded tables follow the rate of the param group "tables", whatever changes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from kunlun.training.fused_tables import FusedTables
from kunlun.training.optimizers import CompositeOptimizer, OptimizerConfig, build_schedulers


def optimizer_and_tables() -> tuple[CompositeOptimizer, Any]:
    tables: Any = SimpleNamespace()
    dense = [{"params": [nn.Parameter(torch.ones(2))], "name": "dense"}]
    return CompositeOptimizer([AdamW(dense, lr=1.0), FusedTables(tables, lr=0.4)]), tables


def test_tables_follow_the_schedule():
    optimizer, tables = optimizer_and_tables()
    (entry,) = build_schedulers(optimizer, OptimizerConfig(warmup_steps=4), None)
    rates = []
    for _ in range(5):
        rates.append(tables.learning_rate())
        optimizer.step()
        entry["scheduler"].step()
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_tables_follow_a_restored_optimizer():
    saved, _ = optimizer_and_tables()
    saved.param_groups[1]["lr"] = 0.05
    optimizer, tables = optimizer_and_tables()
    optimizer.load_state_dict(saved.state_dict())
    assert tables.learning_rate() == 0.05
    assert [group["name"] for group in optimizer.param_groups] == ["dense", "tables"]


def test_a_closure_is_evaluated_once():
    calls: list[int] = []
    assert FusedTables(SimpleNamespace(), lr=0.1).step(lambda: calls.append(1) or 7.0) == 7.0
    assert calls == [1]
