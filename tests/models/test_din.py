"""DIN's activation unit, row by row."""

from __future__ import annotations

import torch

from kunlun.models.din import DIN, ActivationUnit
from tests.support import jagged, spans, toy_schema


def test_the_activation_unit_is_the_sum_over_each_rows_events():
    torch.manual_seed(0)
    unit = ActivationUnit(6, [5]).double()
    lengths = torch.tensor([3, 0, 4])
    sequence = jagged(torch.randn(7, 6, dtype=torch.float64), lengths)
    candidates = torch.randn(3, 6, dtype=torch.float64)
    first, _, _, last = unit.weigh
    for b, (start, end) in enumerate(spans(sequence.offsets)):
        expected = torch.zeros(6, dtype=torch.float64)
        for e in sequence.values[start:end]:
            v = candidates[b]
            x = torch.cat([v, e, v - e, v * e])
            weight = last.weight[0] @ torch.nn.functional.gelu(first.weight @ x + first.bias) + last.bias[0]
            expected += weight * e
        torch.testing.assert_close(unit(sequence, candidates)[b], expected)


def test_no_softmax_so_an_event_that_comes_twice_counts_twice():
    unit = ActivationUnit(4, [5])
    candidate, event = torch.randn(1, 4), torch.randn(1, 4)
    once = unit(jagged(event, torch.tensor([1])), candidate)
    twice = unit(jagged(event.repeat(2, 1), torch.tensor([2])), candidate)
    torch.testing.assert_close(twice, 2 * once)


def test_parameters_are_those_of_the_formula():
    model = DIN(toy_schema(), width=8, attention_hidden=[12], head_hidden=[16])
    unit = 4 * 8 * 12 + 12 + 12 + 1
    encoder = 32 * 16 + 16 + 16 * 8 + 8
    tokens = 3 * (16 * 8 + 8) + (2 + 2) * 8 + 8
    head = (4 + 2 * 2) * 8 * 16 + 16 + 16 + 1
    dense = sum(p.numel() for n, p in model.named_parameters() if "by_width" not in n)
    assert dense == tokens + 2 * (encoder + unit) + head
