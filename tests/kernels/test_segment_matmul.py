"""A matrix for each sequence, against a loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from kernels import segment_matmul
from tests.kernels.support import LENGTHS, assert_as_good_as_torch, layout, randn
from tests.support import spans


@settings(max_examples=30, deadline=None)
@given(LENGTHS)
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_equals_a_loop(backend, lengths):
    offsets = layout(lengths)
    x, w = randn(sum(lengths), 3), randn(len(lengths), 3, 5)
    expected = torch.cat([x[a:b] @ w[i] for i, (a, b) in enumerate(spans(offsets))])
    torch.testing.assert_close(segment_matmul(x, w, offsets, backend=backend), expected)
    op = lambda backend: lambda *inputs: segment_matmul(*inputs, offsets, backend=backend)  # noqa: E731
    assert_as_good_as_torch(op("torch"), op("reference"), [x, w], torch.float32)


@pytest.mark.parametrize("lengths", [[3, 0, 2], [0, 0]])
def test_gradients_and_their_gradients(lengths):
    offsets = layout(lengths)
    inputs = (randn(sum(lengths), 3).requires_grad_(), randn(len(lengths), 3, 2).requires_grad_())
    assert gradcheck(lambda *x: segment_matmul(*x, offsets), inputs)
    assert gradgradcheck(lambda *x: segment_matmul(*x, offsets, backend="reference"), inputs)


def test_is_a_well_behaved_operator():
    x, w, offsets = randn(6, 3).requires_grad_(), randn(3, 3, 2).requires_grad_(), layout([2, 0, 4])
    torch.library.opcheck(torch.ops.kunlun.segment_matmul, (x, w, offsets))
    arguments = (torch.ones(6, 2), x.detach(), w.detach(), offsets)
    torch.library.opcheck(torch.ops.kunlun.segment_matmul_backward, (*(t.double() for t in arguments[:3]), offsets))
    compiled = torch.compile(segment_matmul, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w, offsets), segment_matmul(x, w, offsets))


def test_flops():
    x, w = randn(6, 3).requires_grad_(), randn(3, 3, 2).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        out = segment_matmul(x, w, layout([2, 0, 4]))
        assert counter.get_total_flops() == 2 * 6 * 3 * 2
        out.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 6 * 3 * 2


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (torch.zeros(5, 4), torch.zeros(2, 3, 3), r"x \(N, i\) and weight \(B, i, o\) expected, got \(5, 4\) and"),
        (torch.zeros(5, 3), torch.zeros(3, 3, 3), "weight: one matrix for each of 2 sequences, got 3"),
        (torch.zeros(5, 3), torch.zeros(2, 3, 3).double(), "weight: torch.float32 on cpu expected, got torch.float64"),
        (torch.zeros(4, 3), torch.zeros(2, 3, 3), "offsets: must run from 0 to 4, got 0 … 5"),
    ],
)
def test_bad_arguments_are_named(x, w, message):
    with pytest.raises(ValueError, match=message):
        segment_matmul(x, w, torch.tensor([0, 2, 5]))
