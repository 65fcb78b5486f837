"""DIEN against a slow reference: one row, one event, one gate at a time, in float64."""

from __future__ import annotations

from dataclasses import replace

import torch

from kunlun.features import Batch
from kunlun.layers.embedding import EmbeddingConfig
from kunlun.models.dien import DIEN, InterestEvolution
from tests.support import jagged, spans, toy_batch, toy_schema


def build(**changes) -> DIEN:
    torch.manual_seed(0)
    return DIEN(toy_schema(), **{"width": 8, "head_hidden": [16], **changes})


def batch_of(rows: int, lengths: list[int] | None = None, seed: int = 0) -> Batch:
    given = None if lengths is None else torch.tensor(lengths)
    return toy_batch(toy_schema(), rows, torch.Generator().manual_seed(seed), given)


def step(h, x, w_x, b_x, w_h, b_h, attention=None):
    """Gates in the order reset, update, new; the update gate is scaled by the attention where there is one."""
    d = len(h)
    of_x, of_h = w_x @ x + b_x, w_h @ h + b_h
    r = torch.sigmoid(of_x[:d] + of_h[:d])
    u = torch.sigmoid(of_x[d : 2 * d] + of_h[d : 2 * d])
    new = torch.tanh(of_x[2 * d :] + r * of_h[2 * d :])
    # torch's z is 1 − u: it says how much is kept.
    return u * h + (1 - u) * new if attention is None else (1 - attention * u) * h + attention * u * new


def evolve_by_hand(interest: InterestEvolution, events, candidate):
    gru, augru = interest.extract.unit, interest.evolve
    h, states = torch.zeros(8, dtype=torch.float64), []
    for x in events:
        h = step(h, x, gru.weight_ih_l0, gru.bias_ih_l0, gru.weight_hh_l0, gru.bias_hh_l0)
        states.append(h)
    out = torch.zeros(8, dtype=torch.float64)
    if not states:
        return out
    attention = torch.stack([s @ interest.query.weight @ candidate for s in states]).softmax(0)
    inputs, recurrent = augru.inputs, augru.recurrent
    for x, a in zip(states, attention, strict=True):
        out = step(out, x, inputs.weight, inputs.bias, recurrent.weight, recurrent.bias, a)
    return out


def test_interests_are_those_of_the_equations_row_by_row():
    torch.manual_seed(0)
    interest = InterestEvolution(8).double()
    sequence = jagged(torch.randn(11, 8, dtype=torch.float64), torch.tensor([3, 0, 6, 2]))
    candidates = torch.randn(4, 8, dtype=torch.float64)
    out = interest(sequence, candidates, batch_of(4))
    for b, (start, end) in enumerate(spans(sequence.offsets)):
        torch.testing.assert_close(out[b], evolve_by_hand(interest, sequence.values[start:end], candidates[b]))


def test_its_gradients_are_those_of_the_slow_reference():
    torch.manual_seed(0)
    interest = InterestEvolution(8).double()
    sequence = jagged(torch.randn(7, 8, dtype=torch.float64), torch.tensor([2, 0, 4, 1]))
    candidates = torch.randn(4, 8, dtype=torch.float64)
    events = [sequence.values[start:end] for start, end in spans(sequence.offsets)]
    rows = [evolve_by_hand(interest, *pair) for pair in zip(events, candidates, strict=True)]
    weight = torch.randn(4, 8, dtype=torch.float64)
    expected = torch.autograd.grad((torch.stack(rows) * weight).sum(), list(interest.parameters()))
    found = torch.autograd.grad(
        (interest(sequence, candidates, batch_of(4)) * weight).sum(), list(interest.parameters())
    )
    torch.testing.assert_close(found, expected)


def test_an_event_without_attention_leaves_the_state():
    torch.manual_seed(0)
    augru = InterestEvolution(8).evolve
    sequence = jagged(torch.randn(3, 8), torch.tensor([3]))
    with_gap = augru(sequence, torch.tensor([0.5, 0.0, 0.7]))
    without = augru(jagged(sequence.values[[0, 2]], torch.tensor([2])), torch.tensor([0.5, 0.7]))
    torch.testing.assert_close(with_gap, without)


def test_a_shared_history_is_extracted_once():
    model, histories = build(), batch_of(2, [4, 3])
    batch = replace(batch_of(6, seed=1), events=histories.events, history=torch.tensor([0, 1, 1, 0, 1, 1]))
    seen = []
    model.interests["view"].extract.register_forward_hook(lambda m, x, y: seen.append(x[0].values.shape[0]))
    model(batch)
    assert seen == [7]


def test_interest_depends_on_the_candidate():
    model, batch = build(embedding=EmbeddingConfig(8, init_std=1.0)), batch_of(6, [5] * 6)
    seen = []
    model.interests["view"].register_forward_hook(lambda m, x, y: seen.append(y))
    model(batch)
    model(replace(batch, sparse=(batch.sparse + 1) % 5))
    assert ((seen[1] - seen[0]).abs().amax(dim=1) > 1e-6).all()


def test_parameters_are_those_of_the_formula():
    model, d = build(), 8
    interest = 2 * (6 * d * d + 6 * d) + d * d
    assert sum(p.numel() for p in model.interests["view"].parameters()) == interest
    assert sum(p.numel() for p in model.heads.parameters()) == (4 + 2 * 2) * d * 16 + 16 + 16 + 1
