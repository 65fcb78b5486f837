"""HSTU: the order of events, what each token sees, and the unit against its equations."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from kunlun.features import Batch
from kunlun.layers.stu import STU, Places
from kunlun.models.hstu import HSTU
from tests.support import NOW, jagged, spans, toy_batch, toy_schema


def build(schema=None, **changes) -> HSTU:
    torch.manual_seed(0)
    return HSTU(schema or toy_schema(), **{"width": 8, "layers": 2, "head_hidden": [16], **changes})


def batch_of(rows: int, lengths: list[int] | None = None, seed: int = 0) -> Batch:
    given = None if lengths is None else torch.tensor(lengths)
    return toy_batch(toy_schema(), rows, torch.Generator().manual_seed(seed), given)


def shared_by(batch: Batch, history: list[int]) -> Batch:
    """Other rows on the histories of ``batch``, at request times of their own."""
    rows = batch_of(len(history), seed=7)
    request = NOW + 1000 * torch.arange(len(history))
    return replace(rows, events=batch.events, history=torch.tensor(history), request_time=request)


def by_hand(layer: STU, x: torch.Tensor, places: Places) -> torch.Tensor:
    """One sequence, one query, one key, one head at a time."""
    heads, size = layer.heads, layer.size
    u, v, q, k = F.silu(layer.uvqk(layer.norm(x))).chunk(4, dim=1)
    pooled = torch.zeros_like(x)
    width = x.shape[1] // heads
    for t in range(len(x)):
        for j in range(t + 1):
            if places.candidate[j] and j != t:
                continue
            seconds = int(places.time[t] - places.time[j])
            bucket = 0 if seconds == 0 else math.floor(math.log2(seconds)) + 1
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                rab = layer.bias.position[h, places.position[t] - places.position[j]] + layer.bias.time[h, bucket]
                pooled[t, part] += F.silu(q[t, part] @ k[j, part] + rab) * v[j, part] / size
    return x + layer.out(layer.out_norm(pooled) * u)


def test_the_unit_is_its_equations_pair_by_pair():
    torch.manual_seed(0)
    layer = STU(6, 2, 12, timed=True).double()
    for p in layer.bias.parameters():
        torch.nn.init.normal_(p)
    lengths = torch.tensor([5, 1, 11])
    candidate = torch.zeros(17, dtype=torch.bool)
    candidate[[3, 4, 5, 16]] = True  # two behind three events, one alone, one behind ten
    position = torch.cat([torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0]), torch.arange(11)])
    time = torch.cat([torch.tensor([0, 1, 100, 102, 5000]), torch.tensor([9]), 3 ** torch.arange(11)])
    sequence = jagged(torch.randn(17, 6, dtype=torch.float64), lengths)
    out = layer(sequence, Places(position, time, candidate)).values
    for start, end in spans(sequence.offsets):
        one = Places(position[start:end], time[start:end], candidate[start:end])
        torch.testing.assert_close(out[start:end], by_hand(layer, sequence.values[start:end], one))


def test_events_of_all_types_stand_in_the_order_of_time_and_candidates_last():
    batch = shared_by(batch_of(3, [4, 0, 6]), [2, 0, 2, 1])
    model = build()
    sequence, places, rows = model._sequence(batch)
    assert sequence.offsets.tolist() == [0, 9, 10, 24]
    assert places.candidate.nonzero().flatten().tolist() == [8, 9, 22, 23]
    assert rows.tolist() == [22, 8, 23, 9]
    assert places.position[places.candidate].tolist() == [8, 0, 12, 12]
    assert places.position[10:22].tolist() == list(range(12))
    for g, (start, end) in enumerate(spans(sequence.offsets)):
        times = places.time[start:end]
        events = times[~places.candidate[start:end]]
        both = [batch.events[name]["time"] for name in ("view", "buy")]
        expected = torch.cat([t.values[t.offsets[g] : t.offsets[g + 1]] for t in both]).sort().values
        assert torch.equal(events, expected)
    assert torch.equal(places.time[rows], batch.request_time)


def test_without_times_the_types_lie_end_to_end():
    schema, batch = toy_schema(), batch_of(2, [3, 2])
    untimed = replace(schema, events=tuple(replace(e, timestamps=False) for e in schema.events))
    model = build(untimed)
    sequence, places, _ = model._sequence(batch)
    parts = []
    encoded = {name: model.events[name](batch, model.tables) for name in ("view", "buy")}
    for g in range(2):
        for place, name in enumerate(("view", "buy")):
            start, end = spans(batch.events[name]["item"].offsets)[g]
            parts.append(encoded[name][0].values[start:end] + model.types[place])
        parts.append((encoded["view"][1][g] + encoded["buy"][1][g])[None] / 2 + model.types[2])
    torch.testing.assert_close(sequence.values, torch.cat(parts))
    assert places.time is None
    assert all(layer.bias.time is None for layer in model.layers)


def test_candidates_that_share_a_history_never_see_each_other():
    model, batch = build(), shared_by(batch_of(2, [5, 3]), [0, 0, 0, 1])
    together = model(batch)
    columns = ("labels", "dense", "sparse", "row", "request_time", "history")
    for b in range(4):
        alone = replace(batch, **{name: getattr(batch, name)[b : b + 1] for name in columns})
        torch.testing.assert_close(model(alone)[0], together[b])
    other = replace(batch, sparse=batch.sparse.clone())
    other.sparse[1] = (other.sparse[1] + 3) % 5
    changed = (model(other) - together).flatten() != 0
    assert changed.tolist() == [False, True, False, False]


def test_a_token_sees_nothing_that_comes_after_it():
    model, batch = build(), batch_of(2, [6, 4])
    sequence, places, _ = model._sequence(batch)
    touched = sequence.values.clone()
    touched[7] = torch.randn(8)
    plain, other = sequence, sequence.with_values(touched)
    for layer in model.layers:
        plain, other = layer(plain, places), layer(other, places)
    same = (plain.values == other.values).all(dim=1)
    assert same.tolist() == [True] * 7 + [False] * 6 + [True] * 9


def test_the_events_of_a_shared_history_are_computed_once():
    model, batch = build(), shared_by(batch_of(2, [5, 3]), [0] * 6)
    seen = []
    model.layers[0].uvqk.register_forward_hook(lambda m, x, y: seen.append(x[0].shape[0]))
    model(batch)
    assert seen == [2 * (5 + 3) + 6]


def test_the_age_of_events_counts():
    model, batch = build(), batch_of(6, [5] * 6)
    later = replace(batch, request_time=batch.request_time + 30 * 86_400)
    assert ((model(later) - model(batch)).abs() > 1e-7).all()


def test_parameters_are_those_of_the_formula():
    model, d, heads = build(), 8, 2
    unit = 2 * d + 4 * d * d + 4 * d + (2 * 24 + 1 + 33) * heads + 2 * d + d * d + d
    assert sum(p.numel() for p in model.layers.parameters()) == 2 * unit
    assert model.types.shape == (3, d)
    assert sum(p.numel() for p in model.heads.parameters()) == (4 + 1) * d * 16 + 16 + 16 + 1
