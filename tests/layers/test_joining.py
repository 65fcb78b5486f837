"""Joining packed sequences: part after part, or by time."""

from __future__ import annotations

import torch

from kunlun.layers.joining import as_sequences, join_order, reorder
from tests.support import jagged


def test_parts_lie_one_after_another_in_each_sequence():
    a = jagged(torch.tensor([1, 2, 3]), torch.tensor([2, 0, 1]))
    b = jagged(torch.tensor([10, 20]), torch.tensor([0, 1, 1]))
    joined = reorder(join_order([a, b]), [a.values, b.values])
    assert joined.values.tolist() == [1, 2, 10, 3, 20]
    assert joined.offsets.tolist() == [0, 2, 3, 5]
    assert joined.max_length == 3


def test_by_time_the_oldest_comes_first_and_equals_keep_their_order():
    a = jagged(torch.tensor([5, 9, 2]), torch.tensor([2, 1]))
    b = jagged(torch.tensor([5, 7, 1, 1]), torch.tensor([2, 2]))
    order = join_order([a, b], torch.cat([a.values, b.values]))
    assert order.values.tolist() == [0, 3, 4, 1, 5, 6, 2]


def test_tokens_of_each_sample_are_sequences_of_one_length():
    x = torch.randn(3, 2, 4)
    assert as_sequences(x).offsets.tolist() == [0, 2, 4, 6]
    torch.testing.assert_close(as_sequences(x).values.view_as(x), x)
