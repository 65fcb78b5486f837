"""InterFormer's three arches: what S_sum is made of, where CLS tokens go, what flows from one side to the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kunlun.features import Jagged
from kunlun.layers.gdpa import Context
from kunlun.layers.rote import Rote, RoteConfig
from kunlun.models.interformer import InteractionArch, InteractionConfig, InterFormer, SequenceSummary, SummaryConfig
from tests.support import jagged, spans, toy_batch, toy_schema

SIZES = SummaryConfig(context=3, pooled=2, recent=4)


def build(**changes) -> InterFormer:
    torch.manual_seed(0)
    return InterFormer(toy_schema(), **{"width": 8, "layers": 2, "summary": SIZES, **changes})


def batch_of(rows: int, lengths: list[int] | None = None, seed: int = 0):
    given = None if lengths is None else torch.tensor(lengths)
    return toy_batch(toy_schema(), rows, torch.Generator().manual_seed(seed), given)


def test_s_sum_is_cls_then_pma_then_the_newest_events_and_zeros_where_there_are_fewer():
    torch.manual_seed(0)
    summary = SequenceSummary(8, 2, SIZES)
    summary.gate = nn.Identity()
    events = [6, 0, 2, 4]
    sequence = jagged(torch.randn(sum(events) + 3 * 4, 8), torch.tensor(events) + 3)
    rotation = Rote(4, RoteConfig(mode="position"))(sequence, None, None)
    s_sum = summary(sequence, rotation)
    assert s_sum.shape == (4, SIZES.sequence, 8)
    pooled = summary.pool(sequence, rotation)
    for b, (start, end) in enumerate(spans(sequence.offsets)):
        own = sequence.values[start + 3 : end]
        newest = own.flip(0)[:4]
        torch.testing.assert_close(s_sum[b, :3], sequence.values[start : start + 3])
        torch.testing.assert_close(s_sum[b, 3:5], pooled[b])
        torch.testing.assert_close(s_sum[b, 5 : 5 + len(newest)], newest)
        assert not s_sum[b, 5 + len(newest) :].any()


def test_cls_tokens_are_x_sum_and_are_prepended_once():
    model, batch = build(), batch_of(4, [5, 0, 1, 3])
    x_sum = model.summaries[0](model.context(batch, model.tables))
    sequences, _ = model._events(batch, x_sum)
    events = model.encoders["view"](batch.events["view"], model.tables)
    for b, (start, end) in enumerate(spans(sequences["view"].offsets)):
        torch.testing.assert_close(sequences["view"].values[start : start + 3], x_sum[b])
        first, last = spans(events.offsets)[b]
        torch.testing.assert_close(sequences["view"].values[start + 3 : end], events.values[first:last])
    seen = []
    for attention in model.towers["view"].attention:
        attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].offsets.diff().tolist()))
    model(batch)
    assert seen == [[8, 3, 4, 6]] * 2


def test_each_samples_events_are_multiplied_by_a_matrix_made_from_its_x_sum():
    torch.manual_seed(0)
    inner = build().towers["view"].pffn[0].inner
    x_sum = torch.randn(2, 3, 8)
    sequence = jagged(torch.randn(5, 8), torch.tensor([3, 2]))
    out = inner(sequence, Context(x_sum, None))
    for b, (start, end) in enumerate(spans(sequence.offsets)):
        weight = inner.rows.weight @ inner.norm(x_sum[b] @ inner.project.weight.T) * 8**-0.5
        torch.testing.assert_close(out[start:end], sequence.values[start:end] @ weight)


@pytest.mark.parametrize("kind", ["dcnv2", "dot"])
def test_the_interaction_arch_multiplies_both_sides_and_keeps_a_shortcut(kind):
    torch.manual_seed(0)
    arch = InteractionArch(4, 6, 8, InteractionConfig(kind, rank=None, hidden=5))
    x, s_sum = torch.randn(2, 4, 8), torch.randn(2, 6, 8)
    tokens = torch.cat([x, s_sum], dim=1)
    if kind == "dot":
        gram = torch.einsum("bid,bjd->bij", tokens, tokens)
        features = torch.stack([gram[:, i, j] for i in range(10) for j in range(i + 1, 10)], dim=1)
    else:
        flat, layer = tokens.flatten(1), arch.interact.layers[0]
        features = flat * (flat @ layer.weight.T + layer.bias) + flat
    torch.testing.assert_close(arch(x, [s_sum[:, :2], s_sum[:, 2:]]), arch.norm(x + arch.mlp(features).view(2, 4, 8)))


def test_each_side_learns_from_the_other():
    """The first interaction sees the events; the events after the first layer see the fields."""
    model, batch = build(), batch_of(6, [5] * 6)
    seen: dict[str, list[torch.Tensor]] = {"x": [], "s": []}
    model.interactions[0].register_forward_hook(lambda m, i, out: seen["x"].append(out))
    model.towers["view"].attention[0].register_forward_hook(lambda m, i, out: seen["s"].append(out.values))
    fields = replace(batch, sparse=(batch.sparse + 1) % 5)
    for run in (batch, replace(batch, events=batch_of(6, [5] * 6, seed=1).events), fields):
        model(run)
    assert ((seen["x"][1] - seen["x"][0]).abs().amax(dim=(1, 2)) > 1e-4).all()
    assert ((seen["s"][2] - seen["s"][0]).abs().amax(dim=1) > 1e-5).all()


def test_age_counts_only_where_rote_is_told_to_read_it():
    batch = batch_of(6, [5] * 6)
    later = replace(batch, request_time=batch.request_time + 86_400)
    for mode, counts in (("position", False), ("time", True)):
        model = build(rote=RoteConfig(mode=mode))
        assert ((model(later) - model(batch)).abs() > 1e-7).all() == counts


def test_an_empty_history_leaves_the_cls_tokens():
    batch = batch_of(2, [0, 3])
    nothing = Jagged(torch.zeros(0, dtype=torch.long), torch.zeros(3, dtype=torch.long), 0)
    empty = {e: {k: replace(nothing) for k in c} for e, c in batch.events.items()}
    model = build().double()
    batch = replace(batch, dense=batch.dense.double())
    torch.testing.assert_close(model(batch)[0], model(replace(batch, events=empty))[0])


def test_parameters_are_those_of_the_formula():
    model = build(interaction=InteractionConfig(rank=5, hidden=12))
    d, n, n_sum = 8, 4, 3
    gate = 2 * (d * d + d)
    pma = 2 * d + 2 * 2 * d + 2 * d * d + d * d + d  # queries, two norms, K and V, output
    pffn = 2 * d + d + d * d + d + n_sum * d  # two norms of the block; project, norm and rows of the map
    attention = 2 * d + 4 * d * d + 3 * d  # norm, four maps, the biases of queries, keys and values
    assert sum(p.numel() for p in model.towers["view"].parameters()) == 2 * (pffn + attention) + 3 * (pma + gate)
    assert sum(p.numel() for p in model.summaries.parameters()) == 3 * (n * n_sum + gate)
    flat = (n + 2 * SIZES.sequence) * d
    interaction = 2 * flat * 5 + flat + flat * 12 + 12 + 12 * n * d + n * d + 2 * d
    assert sum(p.numel() for p in model.interactions.parameters()) == 2 * interaction
