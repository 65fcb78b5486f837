"""MFU on known numbers; FLOPs are the mean over the rows' own lengths."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kunlun.models.kunlun import Kunlun, TowerConfig
from kunlun.training.utilization import TRAINING_PASSES, flops_by_part, history_lengths, mfu, tokens
from tests.support import toy_batch, toy_schema


def test_mfu_is_flops_done_over_flops_possible():
    assert mfu(2e9, 500, 1e13, passes=1) == pytest.approx(0.1)
    assert mfu(2e9, 500, 1e13, passes=TRAINING_PASSES) == pytest.approx(0.3)
    assert mfu(None, 500, 1e13, passes=1) is None
    assert mfu(2e9, 500, None, passes=1) is None


def ragged():
    """A window that the longer histories exceed: there attention's FLOPs stop being quadratic."""
    schema = toy_schema(max_length=24)
    batch = toy_batch(schema, 12, torch.Generator().manual_seed(0))
    return Kunlun(schema, towers={"default": TowerConfig(window=2)}), batch


def test_flops_are_the_mean_over_rows_not_the_flops_of_the_mean_length():
    model, batch = ragged()
    lengths = history_lengths(batch)
    rows = [model.flops({name: int(n[row]) for name, n in lengths.items()}) for row in range(len(batch))]
    found = flops_by_part(model, [history_lengths(batch)])
    assert found == pytest.approx({part: sum(row[part] for row in rows) / len(rows) for part in rows[0]})
    of_mean = model.flops({name: round(float(n.float().mean())) for name, n in lengths.items()})
    assert found["attention"] != pytest.approx(of_mean["attention"], rel=1e-3)
    fields = 1 + 3  # the dense features are one token
    assert tokens(batch) == sum(int(n.sum()) for n in lengths.values()) + fields * len(batch)


def test_a_shared_history_counts_for_each_of_its_rows():
    model, batch = ragged()
    index = torch.tensor([3, 3, 5, 0])
    shared = replace(batch.select(index), events=batch.events, history=index)
    parted = [history_lengths(batch.select(index))]
    assert flops_by_part(model, [history_lengths(shared)]) == pytest.approx(flops_by_part(model, parted))


def test_some_rows_stand_for_all():
    model, batch = ragged()
    few = batch.select(torch.tensor([0, 5, 11]))
    for rows, same in ((3, few), (100, batch)):
        found = flops_by_part(model, [history_lengths(batch, rows)])
        assert found == pytest.approx(flops_by_part(model, [history_lengths(same)]))


def test_data_without_histories_and_models_without_flops():
    schema = toy_schema(events=())
    batch = toy_batch(schema, 4, torch.Generator().manual_seed(0))
    model = Kunlun(schema)
    assert flops_by_part(model, [history_lengths(batch)]) == pytest.approx(model.flops({}))
    assert flops_by_part(model, [history_lengths(batch, 2)]) == pytest.approx(model.flops({}))
    assert tokens(batch) == 4 * len(batch)
    assert flops_by_part(nn.Linear(2, 2), [history_lengths(batch)]) == {}
