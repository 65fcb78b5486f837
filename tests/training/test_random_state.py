"""The random state: every generator, as plain values, and put back after validation."""

from __future__ import annotations

import io
import random

import numpy as np
import torch

from kunlun.training.random_state import random_state, set_random_state


def draws() -> list[float]:
    random.gauss(0, 1)  # remembers a second number
    return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002


def test_the_same_numbers_come_again_from_a_file_of_plain_values() -> None:
    np.random.randn()  # noqa: NPY002
    random.gauss(0, 1)
    file = io.BytesIO()
    torch.save(random_state(), file)
    first = draws()
    assert draws() != first
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True))
    assert draws() == first
