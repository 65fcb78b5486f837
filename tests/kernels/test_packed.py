"""Packed sequences cut into rectangles: nothing is lost, doubled or mixed up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.packed import check_layout, known_lengths, layout_of, pieces_of
from tests.kernels.support import LENGTHS, layout, randn


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.sampled_from([1, 20, 64, 10_000]))
def test_pieces_hold_every_token_once(lengths, places):
    offsets = layout(lengths)
    x, seen = randn(sum(lengths), 2), []
    back = torch.full_like(x, float("nan"))
    for piece in pieces_of(offsets, places):
        padded = piece.pad(x)
        assert padded.shape[:2] == piece.mask.shape == (len(piece.samples), piece.length)
        assert piece.mask.numel() <= max(places, piece.length)
        for row, mask, b in zip(padded, piece.mask, piece.samples.tolist(), strict=True):
            assert int(mask.sum()) == lengths[b]
            torch.testing.assert_close(row[mask], x[offsets[b] : offsets[b + 1]])
            assert not row[~mask].any()
        piece.write(back, padded)
        seen += piece.samples.tolist()
    assert sorted(seen) == [b for b, length in enumerate(lengths) if length]
    torch.testing.assert_close(back, x)


def test_equally_long_sequences_are_a_view():
    x = randn(12, 2)
    (piece,) = pieces_of(layout([4, 4, 4]), 100)
    assert piece.pad(x).data_ptr() == x.data_ptr()
    # Not in the order of the tokens: no view, though as many places as tokens.
    pieces = pieces_of(layout([4, 9, 4]), 100)
    assert [p.span for p in pieces] == [None, (4, 13)]


def test_a_layout_is_made_anew_when_its_offsets_change():
    offsets = layout([2, 3])
    assert layout_of(offsets) is layout_of(offsets)
    assert pieces_of(offsets, 8) is pieces_of(offsets, 8)
    old, pieces = layout_of(offsets), pieces_of(offsets, 8)
    offsets[1] = 4
    assert layout_of(offsets) is not old
    assert pieces_of(offsets, 8) is not pieces


def test_offsets_are_checked_again_when_they_change():
    offsets = layout([2, 3])
    check_layout("offsets", offsets, 5, 3)
    with pytest.raises(ValueError, match="offsets: must run from 0 to 6, got 0 … 5"):
        check_layout("offsets", offsets, 6, 3)
    offsets[1] = 1
    with pytest.raises(ValueError, match="offsets: sequence 1 has 4 tokens, over max_length 3"):
        check_layout("offsets", offsets, 5, 3)
    offsets[1] = 7
    with pytest.raises(ValueError, match="offsets: must never decrease"):
        check_layout("offsets", offsets, 5, 3)


def test_lengths_without_values_are_taken_as_equal():
    offsets = layout([1, 7, 4])
    assert known_lengths(offsets, 12) == [1, 7, 4]
    assert known_lengths(offsets.to("meta"), 12) == [4, 4, 4]
