"""Gaps between marks are the time that passed."""

from __future__ import annotations

import time

import pytest
import torch

from kunlun.training.clock import Clock

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_gaps_between_marks(device):
    clock = Clock(torch.device(device))
    marks = [clock.mark()]
    for seconds in (0.05, 0.0):
        time.sleep(seconds)
        marks.append(clock.mark())
    first, second = clock.gaps(marks)
    assert 0.045 < first < 1
    assert 0 <= second < first
    assert all(clock.reached(mark) for mark in marks)
