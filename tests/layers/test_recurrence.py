"""Steps through packed sequences, and the GRU on them."""

from __future__ import annotations

import torch

from kunlun.layers.recurrence import AUGRU, GRU, steps_of
from tests.support import jagged, spans


def test_steps_take_all_running_sequences_the_longest_first():
    steps = steps_of(jagged(torch.zeros(6, 1), torch.tensor([1, 0, 3, 2])))
    assert steps.rows.tolist() == [2, 3, 0, 1]
    assert steps.order.tolist() == [1, 4, 0, 2, 5, 3]
    assert steps.sizes == [3, 2, 1]


def test_a_gru_on_packed_sequences_is_a_gru_on_each():
    torch.manual_seed(0)
    gru = GRU(4, 5)
    sequence = jagged(torch.randn(9, 4), torch.tensor([4, 0, 2, 3]))
    states = gru(sequence)
    for start, end in spans(sequence.offsets):
        if end > start:
            alone, _ = gru.unit(sequence.values[start:end])
            torch.testing.assert_close(states.values[start:end], alone)


def test_at_full_attention_an_augru_is_a_gru_whose_gate_keeps_instead():
    torch.manual_seed(0)
    gru, augru = GRU(4, 5), AUGRU(4, 5)
    with torch.no_grad():
        for ours, kind in ((augru.inputs, "ih"), (augru.recurrent, "hh")):
            sign = torch.ones(15)
            sign[5:10] = -1  # 1 − σ(x) = σ(−x)
            ours.weight.copy_(getattr(gru.unit, f"weight_{kind}_l0") * sign[:, None])
            ours.bias.copy_(getattr(gru.unit, f"bias_{kind}_l0") * sign)
    sequence = jagged(torch.randn(6, 4), torch.tensor([4, 2]))
    torch.testing.assert_close(augru(sequence, torch.ones(6)), gru(sequence).values[[3, 5]])


def test_without_any_token_gradients_are_zeros_not_missing():
    gru, augru = GRU(4, 5), AUGRU(5, 5)
    nothing = jagged(torch.zeros(0, 4), torch.tensor([0, 0]))
    out = augru(gru(nothing), torch.zeros(0))
    assert out.shape == (2, 5)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for m in (gru, augru) for p in m.parameters())
