"""Axes have round ticks within them; labels keep clear of one another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kunlun.experiments.plots import MARK, Box, Mark, _text_box, axis, labelled

values = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=8)


@given(values, st.booleans(), st.booleans())
def test_an_axis_holds_its_values_and_some_ticks(found: list[float], log: bool, flipped: bool) -> None:
    scale = axis(found, log=log, flipped=flipped)
    assert all(0 <= scale.at(value) <= 100 for value in found)
    ticks = [scale.at(value) for value in scale.values(4)]
    assert all(-0.01 <= tick <= 100.01 for tick in ticks)
    assert 2 <= len(ticks) <= 9 or log


def test_a_flipped_axis_goes_down() -> None:
    up, down = axis([0.0, 1.0], room=0.0), axis([0.0, 1.0], flipped=True, room=0.0)
    assert (up.at(0.25), down.at(0.25)) == (25, 75)


def test_equal_ratios_are_equal_steps_on_a_log_axis() -> None:
    scale = axis([1.0, 100.0], log=True, room=0.0)
    assert scale.at(10.0) == pytest.approx(50)
    assert scale.values(3) == [1.0, 10.0, 100.0]


def test_labels_meet_neither_one_another_nor_points() -> None:
    rng = np.random.default_rng(0)
    marks = [Mark(float(x), float(y), "") for x, y in rng.uniform(0, 100, (30, 2))]
    placed = labelled(marks, [f"a_variant_{i}" for i in range(30)], 600, 400)
    points = [(mark.x * 6, mark.y * 4) for mark in marks]
    texts = [
        _text_box(m.label, x + m.dx, y + m.dy, m.anchor) for m, (x, y) in zip(placed, points, strict=True) if m.label
    ]
    assert len(texts) >= 15
    assert not any(a.meets(b) for a, b in itertools.combinations(texts, 2))
    assert not any(text.meets(Box(x - MARK, y - MARK, x + MARK, y + MARK)) for text in texts for x, y in points)
    assert all(text.left >= 0 and text.right <= 600 for text in texts)


def test_a_label_without_room_is_left_out() -> None:
    marks = [Mark(50, 50, "")] * 60
    assert any(not mark.label for mark in labelled(marks, ["a long name of a variant"] * 60, 300, 200))
