"""Logistic regression: the sum of one weight per value, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import torch

from kunlun.features import BagField, SparseField
from kunlun.models.logistic_regression import LogisticRegression
from tests.support import jagged, toy_batch, toy_schema


def test_a_logit_is_the_sum_of_one_weight_per_value():
    schema = replace(toy_schema(tasks=2), bags=(BagField("tags", "device"),))
    batch = toy_batch(schema, 3, torch.Generator().manual_seed(0), torch.tensor([2, 0, 5]))
    batch = replace(batch, bags={"tags": jagged(torch.tensor([1, 3, 4]), torch.tensor([2, 0, 1]))})
    model = LogisticRegression(schema)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    weight = {name: model.tables.weight(name) for name in ("item", "shop", "device", "tags")}
    tags = [weight["tags"][[1, 3]].mean(0), torch.zeros(2), weight["tags"][4]]
    logits = model(batch)
    for b, n in enumerate((2, 0, 5)):
        counts = torch.log1p(torch.tensor([n, n]).float())
        expected = model.bias + model.dense @ torch.cat([batch.dense[b], counts]) + tags[b]
        expected = expected + sum(
            weight[f][i] for f, i in zip(("item", "shop", "device"), batch.sparse[b], strict=True)
        )
        torch.testing.assert_close(logits[b], expected)


def test_fields_of_one_table_have_weights_of_their_own():
    schema = toy_schema()
    schema = replace(schema, sparse=(*schema.sparse, SparseField("last_item", "item")))
    model = LogisticRegression(schema)
    values = 2 * 200 + 20 + 5
    assert sum(p.numel() for p in model.parameters()) == values + (2 + 2) + 1
    with torch.no_grad():
        model.tables.weight("item")[7] = 1.0
    batch = toy_batch(schema, 2, torch.Generator().manual_seed(0))
    sparse = torch.tensor([[7, 0, 0, 3], [3, 0, 0, 7]])
    assert model(replace(batch, sparse=sparse)).flatten().tolist() == [1.0, 0.0]


def test_it_starts_at_even_odds():
    assert not LogisticRegression(toy_schema())(toy_batch(toy_schema(), 4, torch.Generator())).any()
