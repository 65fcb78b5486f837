"""Training really works: rows can be learnt by heart, with and without ids, and noise cannot be learnt at all."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data import PreparedData
from data.criteo import CriteoOptions
from data.criteo import prepare as prepare_criteo
from data.order import BatchOrder
from data.userbehavior import UserBehaviorOptions
from data.userbehavior import prepare as prepare_userbehavior
from kunlun.features import Batch, FeatureSchema
from kunlun.layers.embedding import EmbeddingConfig
from kunlun.layers.gdpa import GDPAConfig
from kunlun.layers.wukong import WukongConfig
from kunlun.models.kunlun import HSPConfig, Kunlun, TowerConfig
from kunlun.training.metrics import AUC
from kunlun.training.optimizers import OptimizerConfig, build_optimizer, clip_dense_grad_norm_

IDS = {"user", "item"}


@pytest.fixture(scope="module")
def criteo(sample_data, tmp_path_factory) -> PreparedData:
    out = tmp_path_factory.mktemp("criteo") / "prepared"
    options = CriteoOptions(train_rows=95_000, valid_rows=15_000)
    prepare_criteo(sample_data / "criteo_kaggle_110k.tsv.gz", out, options)
    return PreparedData(str(out))


@pytest.fixture(scope="module")
def userbehavior(sample_data, tmp_path_factory) -> PreparedData:
    out = tmp_path_factory.mktemp("userbehavior") / "prepared"
    options = UserBehaviorOptions(item_rows=131_072)
    prepare_userbehavior(sample_data / "taobao_userbehavior.csv.gz", out, options)
    return PreparedData(str(out), max_length=32)


def build(schema: FeatureSchema, seed: int = 0) -> Kunlun:
    torch.manual_seed(seed)
    return Kunlun(
        schema,
        width=24,
        layers=2,
        context_tokens=8,
        towers={"default": TowerConfig(16, 2, 2, 2, 4)},
        gdpa=GDPAConfig(kv_tokens=8),
        hsp=HSPConfig(seeds=4, rank=2),
        wukong=WukongConfig(experts=2, tokens=8, rank=4, hidden=64),
        embedding=EmbeddingConfig(width=8, init_std=0.3),
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    logits = model(batch)
    optimizer.zero_grad()
    nn.functional.binary_cross_entropy_with_logits(logits, batch.labels).backward()
    clip_dense_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return logits.detach()


def auc(logits: Tensor, labels: Tensor) -> float:
    metric = AUC()
    metric.update(logits[:, 0], labels[:, 0])
    return float(metric.compute())


def without_ids(schema: FeatureSchema, batch: Batch) -> tuple[FeatureSchema, Batch]:
    keep = [i for i, f in enumerate(schema.sparse) if f.name not in IDS]
    events = tuple(replace(e, fields=tuple(f for f in e.fields if f.name not in IDS)) for e in schema.events)
    return (
        replace(schema, sparse=tuple(schema.sparse[i] for i in keep), events=events),
        replace(
            batch,
            sparse=batch.sparse[:, keep],
            events={e: {k: j for k, j in c.items() if k not in IDS} for e, c in batch.events.items()},
        ),
    )


@pytest.mark.parametrize("ids", [True, False], ids=["with ids", "without user and item"])
@pytest.mark.parametrize("name", ["criteo", "userbehavior"])
def test_512_rows_are_learnt_by_heart(name, ids, request):
    data: PreparedData = request.getfixturevalue(name)
    rows = np.sort(np.random.default_rng(0).choice(len(data.split("train")), 512, replace=False))
    schema, batch = data.schema, data.split("train").__getitems__(rows)
    if not ids:
        schema, batch = without_ids(schema, batch)
    model = build(schema)
    optimizer = build_optimizer(model, OptimizerConfig(lr=5e-3, weight_decay=0.0, table_lr=0.1))
    assert any(auc(step(model, optimizer, batch), batch.labels) > 0.999 for _ in range(150))


@pytest.mark.parametrize("name", ["criteo", "userbehavior"])
def test_shuffled_labels_teach_nothing(name, request):
    """The only link between a row and its label is cut: whatever is learnt must not help on other rows.

    One network's AUC strays, because any function of features that tell something is a little right or wrong; the mean
    over networks and draws of labels does not.
    """
    data: PreparedData = request.getfixturevalue(name)
    train, valid = data.split("train"), data.split("valid").__getitems__(np.arange(3000))
    labels = train.__getitems__(np.arange(len(train))).labels
    values = []
    for seed in range(8):
        model = build(data.schema, seed)
        optimizer = build_optimizer(model, OptimizerConfig(lr=2e-3, table_lr=0.02))
        generator = torch.Generator().manual_seed(seed)
        order = BatchOrder(len(train), 256, shuffle=True, seed=seed, drop_last=True)
        for rows in itertools.islice(order, 20):
            drawn = labels[torch.randint(0, len(labels), (256,), generator=generator)]
            step(model, optimizer, replace(train.__getitems__(rows), labels=drawn))
        with torch.no_grad():
            values.append(auc(model(valid), valid.labels))
    assert np.mean(values) == pytest.approx(0.5, abs=0.02)
