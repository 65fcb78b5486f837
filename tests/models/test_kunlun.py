"""What must hold of the whole model: packing, causality, CompSkip, toggles, FLOPs, empty histories."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from kunlun.features import FeatureSchema, Jagged, SparseField, Table, Task
from kunlun.layers import gdpa as gdpa_layer
from kunlun.layers.gdpa import GDPA, GDPAConfig, LinearPFFN
from kunlun.layers.pooling import HSP
from kunlun.layers.wukong import WukongConfig
from kunlun.models.kunlun import Components, HSPConfig, Kunlun, TowerConfig, tower_parts
from tests.models.by_hand import counted_flops, enumerate_ops
from tests.support import NOW, take_rows, toy_batch, toy_schema

TOWERS = {"view": TowerConfig(16, 2, 3, 3, 4), "default": TowerConfig(8, 2, 2, 2, 2)}
SETTINGS = {
    "width": 8,
    "layers": 3,
    "context_tokens": 4,
    "towers": TOWERS,
    "gdpa": GDPAConfig(kv_tokens=6),
    "hsp": HSPConfig(seeds=5, rank=2),
    "wukong": WukongConfig(experts=2, tokens=8, rank=3, hidden=16),
}
ALL_TOGGLES = [
    Components(**dict(zip([f.name for f in fields(Components)], values, strict=True)))
    for values in itertools.product([True, False], repeat=5)
]
VARIANTS = [
    {},
    {"components": Components(gdpa=False)},
    {"components": Components(hsp=False)},
    {"components": Components(window=False)},
    {"components": Components(compskip=False)},
    {"components": Components(event_personalization=False)},
    {"drop": ["gdpa"]},
    {"drop": ["attention"]},
    {"drop": ["hsp"]},
    {"drop": ["wukong"]},
    {"drop": ["event_types"]},
    {"drop": ["gdpa", "attention", "hsp"], "components": Components(compskip=False)},
    {"uniform_events": True},
    {"wukong": WukongConfig(experts=1, tokens=8, rank=3, hidden=16)},
]


def build(schema: FeatureSchema | None = None, **changes) -> Kunlun:
    torch.manual_seed(0)
    return Kunlun(schema or toy_schema(), **{**SETTINGS, **changes})


def batch_of(rows: int, seed: int = 0, **options):
    return toy_batch(toy_schema(), rows, torch.Generator().manual_seed(seed), **options)


def gradient(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.to_dense()


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_sample_alone_equals_the_same_sample_in_any_batch(changes):
    model, batch = build(**changes).double(), batch_of(9)
    batch = replace(batch, dense=batch.dense.double())
    together = model(batch)
    for rows in ([0], [8, 3], [4, 4, 1]):
        torch.testing.assert_close(model(take_rows(batch, rows)), together[rows])


@pytest.mark.parametrize("components", ALL_TOGGLES, ids=lambda c: "".join("01"[getattr(c, f.name)] for f in fields(c)))
def test_every_toggle_combination_learns_with_all_its_parameters(components):
    model, batch = build(components=components), batch_of(48)
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if "by_width" not in n], lr=3e-3)
    losses = []
    for step in range(8):
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch), batch.labels)
        optimizer.zero_grad()
        model.zero_grad()
        loss.backward()
        if step == 0:
            dead = [name for name, p in model.named_parameters() if not gradient(p).abs().sum() > 0]
            assert not dead
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("drop", [None, ["attention"]])
@pytest.mark.parametrize("compskip", [True, False])
def test_no_dead_compute_whatever_the_depth_of_a_tower(depth, drop, compskip):
    tower = TowerConfig(8, 2, 2, depth, 2)
    for layers in (depth, 5):
        model = build(layers=layers, towers={"default": tower}, drop=drop, components=Components(compskip=compskip))
        batch = batch_of(32)
        model(batch).sum().backward()
        assert not [name for name, p in model.named_parameters() if not gradient(p).abs().sum() > 0]


@pytest.mark.parametrize("changes", VARIANTS + [{"components": c} for c in ALL_TOGGLES], ids=str)
def test_analytic_flops_equal_flops_counted_by_brute_force(changes, monkeypatch):
    model = build(**changes)
    length = 9  # longer than the windows, shorter than the full attention's
    batch = batch_of(1, lengths=torch.tensor([length]))
    enumerate_ops(monkeypatch)
    counted = counted_flops(model, batch)
    lengths = {event.name: length for event in model.schema.events}
    assert sum(model.flops(lengths).values()) == counted


def test_compskip_owns_no_skipped_parameters_and_reuses_the_cached_summary():
    model, batch = build(), batch_of(4)
    tower = model.towers["view"]
    assert isinstance(tower.pool[0], HSP)
    assert isinstance(tower.pool[2], HSP)
    for skipped in (tower.pool[1], tower.pffn[1], tower.attention[0], tower.attention[2]):
        assert not list(skipped.parameters())
    names = {f"{part}.{i}" for part in ("pffn", "pool", "attention") for i in range(3)}
    owned = {n for n in names if any(p.startswith(f"towers.view.{n}.") for p, _ in model.named_parameters())}
    assert owned == {"pffn.0", "pool.0", "attention.1", "pffn.2", "pool.2"}

    sequences, rotations = model._events(batch)
    context = gdpa_layer.Context(
        torch.randn(4, 4, 8), model.encoders["view"].encode_candidate(batch.sparse, model.tables)
    )
    sequence, summary = tower.step(0, sequences["view"], None, context, rotations["view"])
    disturbed = sequence.with_values(torch.randn_like(sequence.values))
    _, reused = tower.step(1, disturbed, summary, context, rotations["view"])
    assert reused is summary
    _, fresh = tower.step(2, disturbed, summary, context, rotations["view"])
    assert not torch.allclose(fresh, summary)


def test_removing_a_component_changes_flops_the_way_the_paper_says():
    """Window, CompSkip and event personalization save FLOPs."""
    lengths = {"view": 200, "buy": 200}
    full = sum(build().flops(lengths).values())
    for name in ("window", "compskip", "event_personalization"):
        assert sum(build(components=Components(**{name: False})).flops(lengths).values()) > full, name


@pytest.mark.parametrize("changes", [{}, {"components": Components(False, False, False, False, False)}], ids=str)
def test_compiles_into_one_graph(changes):
    """Forward and backward; the decompositions are inductor's, without its code generation."""
    model, batch = build(**changes), batch_of(6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager_decomp_partition")
    grads = []
    for run in (model, compiled):
        model.zero_grad()
        out = run(batch)
        out.sum().backward()
        grads.append([out.detach(), *(gradient(p) for p in model.parameters())])
    for eager, ours in zip(*grads, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)


def test_unfused_gdpa_is_the_same_function():
    batch = batch_of(16)
    fused, unfused = build(), build(gdpa=GDPAConfig(kv_tokens=6, fused=False))
    unfused.load_state_dict(fused.state_dict())
    for model in (fused, unfused):
        model(batch).sum().backward()
    torch.testing.assert_close(fused(batch), unfused(batch))
    for (name, p), q in zip(fused.named_parameters(), unfused.parameters(), strict=True):
        torch.testing.assert_close(gradient(p), gradient(q), msg=name, atol=1e-4, rtol=1e-3)


def test_the_first_summary_sees_the_candidate():
    model, batch = build(), batch_of(6, lengths=torch.full((6,), 5))
    changed = replace(batch, sparse=batch.sparse.clone())
    changed.sparse[:, 0] = (changed.sparse[:, 0] + 7) % 200

    def first_summary(batch):
        sequences, rotations = model._events(batch)
        x_sum = model.summaries[0](model.context(batch, model.tables))
        context = gdpa_layer.Context(x_sum, model.encoders["view"].encode_candidate(batch.sparse, model.tables))
        return model.towers["view"].step(0, sequences["view"], None, context, rotations["view"])[1]

    difference = (first_summary(batch) - first_summary(changed)).abs().amax(dim=(1, 2))
    assert (difference > 1e-4).all()


def test_events_enter_only_through_the_batch_and_their_age_counts():
    """The same events at other ages give another prediction, at the same ages the same one."""
    model, batch = build(), batch_of(6, lengths=torch.full((6,), 5))
    later = replace(batch, request_time=batch.request_time + 86_400)
    assert (model(later) - model(batch)).abs().min() > 1e-7

    def moved(columns):
        return {**columns, "time": columns["time"].with_values(columns["time"].values + 86_400)}

    shifted = replace(later, events={e: moved(c) for e, c in batch.events.items()})
    torch.testing.assert_close(model(shifted), model(batch))


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_empty_histories_in_any_or_all_types_are_finite(changes):
    model = build(**changes)
    for lengths in (torch.zeros(3, dtype=torch.long), torch.tensor([0, 2, 0])):
        model.zero_grad()
        logits = model(batch_of(3, lengths=lengths))
        logits.sum().backward()
        assert torch.isfinite(logits).all()
        assert all(torch.isfinite(gradient(p)).all() for p in model.parameters() if p.grad is not None)
    one_empty = batch_of(3)
    nothing = {k: Jagged(j.values[:0], torch.zeros(4, dtype=torch.long), 0) for k, j in one_empty.events["buy"].items()}
    assert torch.isfinite(model(replace(one_empty, events={**one_empty.events, "buy": nothing}))).all()


def test_rows_that_share_a_history_score_as_if_each_had_its_own():
    model, batch = build(), batch_of(3)
    history = torch.tensor([0, 0, 1, 2, 2, 2])
    generator = torch.Generator().manual_seed(5)
    candidates = replace(
        batch_of(6, seed=9),
        sparse=torch.randint(0, 5, (6, 3), generator=generator),
        request_time=torch.full((6,), NOW),
    )
    shared = replace(candidates, events=batch.events, history=history)
    repeated = {e: {k: j.select(history) for k, j in c.items()} for e, c in batch.events.items()}
    seen = []
    model.encoders["view"].hidden.register_forward_hook(lambda m, x, y: seen.append(x[0].shape[0]))
    torch.testing.assert_close(model(shared), model(replace(candidates, events=repeated)))
    # Encoded once per history, then once per candidate: the longer calls are those of the events.
    assert batch.events["view"]["item"].values.numel() in seen


def test_without_histories_the_interaction_side_is_left():
    schema = FeatureSchema(
        name="rows",
        tasks=(Task("click", 0.2),),
        dense=("a",),
        sparse=(SparseField("x", "x"),),
        tables={"x": Table(10)},
    )
    model = build(schema)
    batch = replace(batch_of(5), dense=torch.randn(5, 1), sparse=torch.randint(0, 10, (5, 1)), events={})
    logits = model(batch)
    logits.sum().backward()
    assert logits.shape == (5, 1)
    assert not len(model.towers)
    assert all(gradient(p).abs().sum() > 0 for p in model.parameters())
    assert set(model.flops({})) >= {"tokens", "interaction", "head"}


def test_several_tasks_have_a_head_each():
    schema = toy_schema(tasks=2)
    batch = toy_batch(schema, 7, torch.Generator().manual_seed(0))
    logits = build(schema)(batch)
    assert logits.shape == (7, 2)
    assert not torch.allclose(logits[:, 0], logits[:, 1])


def test_event_personalization_off_gives_every_type_the_largest_tower():
    configs = {n: t.config for n, t in build(components=Components(event_personalization=False)).towers.items()}
    assert set(configs.values()) == {TOWERS["view"]}


def test_uniform_events_are_level_at_nearly_equal_flops():
    lengths = {"view": 12, "buy": 12}
    towers = {"view": TowerConfig(64, 2, 4, 3, 8), "default": TowerConfig(16, 2, 2, 1, 4)}

    def cost(model: Kunlun) -> int:
        return sum(m.flops(12) for t in model.towers.values() for part in tower_parts(t).values() for m in part)

    full, uniform = build(towers=towers), build(towers=towers, uniform_events=True)
    assert len({t.config for t in uniform.towers.values()}) == 1
    assert cost(uniform) == pytest.approx(cost(full), rel=0.1)
    assert set(full.flops(lengths)) == set(uniform.flops(lengths))


def test_without_event_types_a_type_is_worth_no_more_than_another():
    """Events that change their type stay the same history, in the largest tower."""
    model, batch = build(drop=["event_types"]), batch_of(6)
    swapped = replace(
        batch, events=dict(zip(("view", "buy"), (batch.events["buy"], batch.events["view"]), strict=True))
    )
    torch.testing.assert_close(model(swapped), model(batch))
    assert not torch.allclose(build()(swapped), build()(batch))
    assert {tower.config for tower in model.towers.values()} == {TOWERS["view"]}


def test_toggles_choose_modules_at_construction():
    inner = build(components=Components(gdpa=False)).towers["view"].pffn[0].inner
    assert isinstance(inner, LinearPFFN)
    assert isinstance(build().towers["view"].pffn[0].inner, GDPA)
    assert build(components=Components(window=False)).towers["view"].attention[1].half_window is None


def test_bf16_autocast_stays_close():
    model, batch = build(), batch_of(16)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(batch)
    torch.testing.assert_close(low.float(), model(batch), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width, layers and context_tokens"),
        ({"towers": {"viev": TowerConfig()}}, r"no event type \['viev'\]"),
        ({"towers": {"default": TowerConfig(layers=9)}}, "towers.view.layers: 9 exceed"),
        ({"hsp": HSPConfig(seeds=3)}, "seeds must exceed the summary tokens"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TowerConfig(width=12, heads=4), "multiple of 2 · heads"),
        (lambda: WukongConfig(experts=3, tokens=16), "multiple of 2 · experts"),
        (lambda: GDPAConfig(activation="gelo"), "unknown 'gelo'"),
        (lambda: GDPAConfig(kv_tokens=0), "kv_tokens"),
    ],
)
def test_sizes_are_checked_where_they_are_declared(make, message):
    with pytest.raises(ValueError, match=message):
        make()
