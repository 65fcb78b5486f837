"""The order of reading: a bijection, independent of who asks, and a state that names the next batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import BatchOrder, permute


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5))
def test_permute_is_a_bijection(n, seed, epoch):
    order = permute(np.arange(n), n, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(n))


def test_any_part_of_the_order_can_be_computed_alone():
    whole = permute(np.arange(1000), 1000, 3, 1)
    assert np.array_equal(permute(np.arange(500, 520), 1000, 3, 1), whole[500:520])


def test_seeds_and_epochs_give_unrelated_orders():
    n = 20_000
    orders = [permute(np.arange(n), n, s, e) for s, e in ((0, 0), (0, 1), (1, 0), (2**33, 0))]
    for i, a in enumerate(orders):
        for b in [np.arange(n), *orders[:i]]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
            assert (a == b).mean() < 0.01
    # Neighbours in the order come from everywhere, and every place is about equally likely.
    assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.05
    first = [int(permute(np.array([0]), 8, seed, 0)[0]) for seed in range(4000)]
    counts = np.bincount(first, minlength=8)
    assert ((counts - 500) ** 2 / 500).sum() < 30


def test_billions_of_rows_cost_nothing_to_open():
    rows = 70_000_000_000
    order = BatchOrder(rows, 64, shuffle=True)
    batch = next(iter(order))
    assert batch.size == 64 == np.unique(batch).size
    assert batch.min() >= 0
    assert 2**32 < batch.max() < rows


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 4), st.booleans())
def test_ranks_cover_every_row_exactly_once(rows, batch_size, world, shuffle):
    ranks = [BatchOrder(rows, batch_size, shuffle=shuffle, rank=r, world=world) for r in range(world)]
    seen = [list(order) for order in ranks]
    assert [len(s) for s in seen] == [len(order) for order in ranks]
    flat = np.concatenate([b for s in seen for b in s] or [np.zeros(0, int)])
    assert np.array_equal(np.sort(flat), np.arange(rows))


def test_drop_last_gives_all_ranks_full_batches_of_equal_number():
    ranks = [BatchOrder(107, 10, shuffle=True, drop_last=True, rank=r, world=3) for r in range(3)]
    seen = [list(order) for order in ranks]
    assert {len(s) for s in seen} == {3}
    flat = np.concatenate([b for s in seen for b in s])
    assert flat.size == np.unique(flat).size == 90


@pytest.mark.parametrize("stop", [0, 1, 5, 9])
def test_a_saved_state_names_the_next_batch(stop):
    whole, order = BatchOrder(95, 10, shuffle=True, seed=1), BatchOrder(95, 10, shuffle=True, seed=1)
    expected = [list(whole), list(whole)]
    iterator = iter(order)
    for _ in range(stop):
        next(iterator)
    resumed = BatchOrder(95, 10, shuffle=True, seed=1)
    resumed.load_state_dict(order.state_dict())
    rest = list(resumed)
    assert len(rest) == 10 - stop
    assert all(np.array_equal(a, b) for a, b in zip(rest, expected[0][stop:], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(list(resumed), expected[1], strict=True))
    assert not np.array_equal(expected[0][0], expected[1][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"batch_size": 0}, "batch_size"), ({"batch_size": 5, "rank": 2, "world": 2}, "rank 2 of 2")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchOrder(10, shuffle=False, **arguments)


def test_every_iteration_is_a_new_epoch_from_its_beginning():
    order, stopped = BatchOrder(20, 5, shuffle=True), BatchOrder(20, 5, shuffle=False)
    epochs = []
    for _ in range(3):
        iterator = iter(order)
        epochs.append(np.concatenate([next(iterator) for _ in range(len(order))]))  # never asks for one more
        assert next(iter(stopped)).tolist() == [0, 1, 2, 3, 4]  # leaves after the first batch
    assert all(np.array_equal(np.sort(e), np.arange(20)) for e in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_state_saved_at_the_last_batch_goes_on_with_the_next_epoch():
    order, resumed = BatchOrder(20, 5, shuffle=True), BatchOrder(20, 5, shuffle=True)
    iterator = iter(order)
    for _ in range(4):
        next(iterator)
    resumed.load_state_dict(order.state_dict())
    assert np.array_equal(np.concatenate(list(resumed)), np.concatenate(list(order)))
