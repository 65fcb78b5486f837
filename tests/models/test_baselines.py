"""What must hold of every model that Kunlun is compared with; what is each model's own has a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from kunlun.features import Batch, EventType, FeatureSchema, Jagged, SparseField, Table, Task
from kunlun.layers.embedding import EmbeddingConfig
from kunlun.layers.rote import RoteConfig
from kunlun.layers.wukong import WukongConfig
from kunlun.models import DIEN, DIN, DLRM, HSTU, DCNv2, InterFormer, LogisticRegression, Wukong
from kunlun.models.interformer import InteractionConfig, SummaryConfig
from tests.models.by_hand import counted_flops, enumerate_ops
from tests.support import take_rows, toy_batch, toy_schema


def interformer(schema: FeatureSchema, **changes) -> InterFormer:
    sizes = {"summary": SummaryConfig(3, 2, 4), "interaction": InteractionConfig(rank=5, hidden=12), **changes}
    return InterFormer(schema, 8, 2, 2, embedding=EMBEDDING, head_hidden=[16], **sizes)


EMBEDDING = EmbeddingConfig(8, init_std=0.3)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "wukong": lambda s: Wukong(s, 8, 2, WukongConfig(1, 8, 3, 16), EMBEDDING, [16]),
    "dcnv2": lambda s: DCNv2(s, 8, 2, None, EMBEDDING, [16]),
    "dcnv2_low_rank": lambda s: DCNv2(s, 8, 2, 5, EMBEDDING, [16]),
    "dlrm": lambda s: DLRM(s, 8, [12], EMBEDDING, [16]),
    "din": lambda s: DIN(s, 8, [12], EMBEDDING, [16]),
    "logistic_regression": LogisticRegression,
    "dien": lambda s: DIEN(s, 8, EMBEDDING, [16]),
    "hstu": lambda s: HSTU(s, 8, 2, 2, EMBEDDING, [16]),
    "interformer": lambda s: interformer(s),
    "interformer_dot": lambda s: interformer(s, interaction=InteractionConfig("dot", hidden=12)),
    "interformer_time": lambda s: interformer(s, rote=RoteConfig()),
}
every_model = pytest.mark.parametrize("name", MODELS)


def build(name: str, schema: FeatureSchema | None = None) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name](schema or toy_schema())


def awake(model: nn.Module) -> nn.Module:
    """The logistic regression starts at zero, where nothing depends on anything."""
    for p in model.parameters():
        if not p.abs().sum() > 0:
            nn.init.normal_(p, std=0.3)
    return model


def batch_of(rows: int, schema: FeatureSchema | None = None, seed: int = 0, **options) -> Batch:
    return toy_batch(schema or toy_schema(), rows, torch.Generator().manual_seed(seed), **options)


def without_times(schema: FeatureSchema, batch: Batch) -> tuple[FeatureSchema, Batch]:
    events = tuple(replace(e, timestamps=False) for e in schema.events)
    columns = {e: {k: j for k, j in c.items() if k != "time"} for e, c in batch.events.items()}
    return replace(schema, events=events, request_times=False), replace(batch, events=columns, request_time=None)


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.to_dense()


@every_model
@pytest.mark.parametrize("times", [True, False], ids=["times", "no times"])
def test_a_sample_alone_equals_the_same_sample_in_any_batch(name, times):
    schema, batch = toy_schema(), batch_of(9)
    if not times:
        schema, batch = without_times(schema, batch)
    model = awake(build(name, schema)).double()
    batch = replace(batch, dense=batch.dense.double())
    if not times:
        batch = replace(batch, request_time=torch.zeros(9))  # for take_rows; no model may read it
    together = model(batch)
    assert together.shape == (9, 1)
    assert together.std() > 0
    for rows in ([0], [8, 3], [4, 4, 1]):
        torch.testing.assert_close(model(take_rows(batch, rows)), together[rows])


@every_model
def test_room_for_longer_sequences_changes_nothing(name):
    model, batch = awake(build(name)), batch_of(5)
    roomy = {e: {k: replace(j, max_length=99) for k, j in c.items()} for e, c in batch.events.items()}
    torch.testing.assert_close(model(replace(batch, events=roomy)), model(batch))


@every_model
def test_learns_with_all_its_parameters(name):
    schema = toy_schema(tasks=2)
    model, batch = build(name, schema), batch_of(48, schema)
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if "by_width" not in n], lr=1e-2)
    losses = []
    for step in range(10):
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch), batch.labels)
        model.zero_grad()
        loss.backward()
        if step == 0:
            assert not [n for n, p in model.named_parameters() if not gradient(p).abs().sum() > 0]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01


@every_model
def test_analytic_flops_equal_flops_counted_by_brute_force(name, monkeypatch):
    schema = toy_schema(tasks=2)
    model = build(name, schema)
    batch = batch_of(1, schema, lengths=torch.tensor([9]))
    enumerate_ops(monkeypatch)
    assert sum(model.flops({"view": 9, "buy": 9}).values()) == counted_flops(model, batch)


@every_model
def test_empty_histories_in_any_or_all_types_are_finite(name):
    model = build(name)
    for lengths in (torch.zeros(3, dtype=torch.long), torch.tensor([0, 2, 0])):
        model.zero_grad()
        logits = model(batch_of(3, lengths=lengths))
        logits.sum().backward()
        assert torch.isfinite(logits).all()
        assert all(torch.isfinite(gradient(p)).all() for p in model.parameters())
    one_empty = batch_of(3)
    nothing = {k: Jagged(j.values[:0], torch.zeros(4, dtype=torch.long), 0) for k, j in one_empty.events["buy"].items()}
    assert torch.isfinite(model(replace(one_empty, events={**one_empty.events, "buy": nothing}))).all()


def sharing() -> tuple[Batch, Batch]:
    """Six rows on three histories, one of them empty, and the same rows with a history each."""
    histories = batch_of(3, lengths=torch.tensor([5, 0, 7]))
    history = torch.tensor([0, 2, 0, 1, 2, 2])
    shared = replace(batch_of(6, seed=9), events=histories.events, history=history)
    repeated = {e: {k: j.select(history) for k, j in c.items()} for e, c in histories.events.items()}
    return shared, replace(shared, events=repeated, history=None)


@every_model
@pytest.mark.parametrize("times", [True, False], ids=["times", "no times"])
def test_rows_that_share_a_history_score_as_if_each_had_its_own(name, times):
    shared, repeated = sharing()
    schema = toy_schema()
    if not times:
        (schema, shared), (_, repeated) = without_times(schema, shared), without_times(schema, repeated)
    model = awake(build(name, schema)).double()
    shared, repeated = (replace(b, dense=b.dense.double()) for b in (shared, repeated))
    torch.testing.assert_close(model(shared), model(repeated))


@every_model
def test_without_histories_the_fields_are_left(name):
    schema = FeatureSchema(
        name="rows",
        tasks=(Task("click", 0.2),),
        dense=("a",),
        sparse=(SparseField("x", "x"),),
        tables={"x": Table(10)},
    )
    model = build(name, schema)
    batch = replace(batch_of(5), dense=torch.randn(5, 1), sparse=torch.randint(0, 10, (5, 1)), events={})
    logits = model(batch)
    logits.sum().backward()
    assert logits.shape == (5, 1)
    assert all(gradient(p).abs().sum() > 0 for p in model.parameters())
    assert sum(model.flops({}).values()) == counted_flops(model, take_rows(batch, [0]))


@every_model
def test_without_dense_features_and_histories_the_sparse_fields_are_left(name):
    schema = replace(toy_schema(events=()), dense=())
    model = build(name, schema)
    logits = model(replace(batch_of(4, schema), dense=torch.zeros(4, 0)))
    logits.sum().backward()
    assert all(gradient(p).abs().sum() > 0 for p in model.parameters())


@every_model
def test_a_candidate_without_the_fields_of_an_event_is_no_error(name):
    schema = toy_schema()
    strange = EventType("search", (SparseField("word", "word"),), True, 12, 24)
    schema = replace(schema, events=(*schema.events, strange), tables={**schema.tables, "word": Table(30)})
    model, batch = build(name, schema), batch_of(5)
    words = {k: j for k, j in batch.events["view"].items() if k != "shop"}
    words = {"word": words["item"].with_values(words["item"].values % 30), "time": words["time"]}
    logits = model(replace(batch, events={**batch.events, "search": words}))
    logits.sum().backward()
    assert torch.isfinite(logits).all()
    assert all(gradient(p).abs().sum() > 0 for p in model.parameters())


@every_model
def test_several_tasks_have_a_logit_each(name):
    schema = toy_schema(tasks=2)
    logits = awake(build(name, schema))(batch_of(7, schema))
    assert logits.shape == (7, 2)
    assert not torch.allclose(logits[:, 0], logits[:, 1])


@every_model
def test_the_history_counts(name):
    """Other events, as many: only the logistic regression, which sees their number alone, gives the same."""
    model, batch = awake(build(name)), batch_of(6, lengths=torch.full((6,), 5))
    other = batch_of(6, seed=1, lengths=torch.full((6,), 5))
    difference = (model(replace(batch, events=other.events)) - model(batch)).abs()
    assert (difference == 0).all() if name == "logistic_regression" else (difference > 1e-6).all()


@every_model
def test_bf16_autocast_stays_close(name):
    model, batch = build(name), batch_of(16)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(batch)
    torch.testing.assert_close(low.float(), model(batch), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: Wukong(s, layers=0), "width and layers must be ≥ 1"),
        (lambda s: DCNv2(s, layers=0), "layers and rank must be ≥ 1"),
        (lambda s: DCNv2(s, rank=0), "layers and rank must be ≥ 1"),
        (lambda s: DIN(s, width=0), "width must be ≥ 1"),
        (lambda s: DIEN(s, width=0), "width must be ≥ 1"),
        (lambda s: HSTU(s, layers=0), "width, heads and layers"),
        (lambda s: HSTU(s, width=8, heads=3), "heads must divide the width"),
        (lambda s: InterFormer(s, heads=0), "width, heads and layers"),
        (lambda s: InterFormer(s, width=12, heads=4), "multiple of 2 · heads"),
        (lambda s: InterFormer(s, summary=SummaryConfig(recent=0)), "context, pooled and recent"),
        (lambda s: InterFormer(s, interaction=InteractionConfig(hidden=0)), "hidden must be ≥ 1"),
        (lambda s: DLRM(replace(s, events=(), dense=(), sparse=s.sparse[:1])), "'toy' gives only one"),
    ],
)
def test_settings_that_do_not_fit_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(toy_schema())
