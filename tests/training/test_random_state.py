"""The random state: every generator, as plain values, and put back after validation."""

from __future__ import annotations

import io
import random
from types import SimpleNamespace

import numpy as np
import torch

from kunlun.training.random_state import RandomState, random_state, set_random_state


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


def test_ranks_draw_other_numbers_from_the_first_step_on() -> None:
    """Rank 0 those of a run alone."""
    seen = {}
    for rank in (None, 0, 1, 2):
        torch.manual_seed(7)
        if rank is not None:
            RandomState().on_train_start(SimpleNamespace(global_rank=rank), None)
        seen[rank] = torch.rand(4).tolist()
    assert seen[None] == seen[0]
    assert len({tuple(numbers) for numbers in seen.values()}) == 3
