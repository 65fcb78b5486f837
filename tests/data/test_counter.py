"""The counter-based draws: exact arithmetic, uniform, uncorrelated."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.counter import below, below_small, bits, draw, make_key, python_draw


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62 - 1))
@settings(max_examples=200, deadline=None)
def test_draw_equals_arithmetic_modulo_two_to_the_64(key: int, counter: int) -> None:
    expected = python_draw(key, counter)
    as_counter = draw(key, torch.tensor([counter]))
    as_key = draw(torch.tensor([key]), torch.tensor(counter))
    with_int = draw(torch.tensor([key]), counter)
    assert int(as_counter) % 2**64 == int(as_key) % 2**64 == int(with_int) % 2**64 == expected
    assert int(bits(as_counter, 60, 4)) == expected >> 60
    assert int(bits(as_counter, 0, 16)) == expected & 0xFFFF


def test_draws_are_uniform_and_uncorrelated() -> None:
    word = draw(make_key(0, 1), torch.arange(1 << 16))
    for values in (below(word, 10), below_small(word, 0, 10), below_small(word, 16, 10)):
        counts = torch.bincount(values, minlength=10).double()
        expected = len(word) / 10
        assert counts.numel() == 10
        assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # chi-square, 9 degrees, p = 0.001
    unit = torch.stack([below(word, 1 << 20), below(draw(word, 1), 1 << 20), below_small(word, 0, 1 << 15)]).double()
    pairs = torch.corrcoef(torch.cat([unit[:, 1:], unit[:1, :-1]])) - torch.eye(4)
    assert float(pairs.abs().max()) < 4 / math.sqrt(len(word))
