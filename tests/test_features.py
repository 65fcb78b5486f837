"""A batch's rows, taken out of it, are the rows that were in it."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.support import jagged, take_rows, toy_batch, toy_schema


def with_all_fields(rows: int):
    generator = torch.Generator().manual_seed(0)
    batch = toy_batch(toy_schema(), rows, generator)
    lengths = torch.randint(0, 3, (rows,), generator=generator)
    bag = jagged(torch.arange(int(lengths.sum())), lengths)
    return replace(batch, weight=torch.rand(rows, generator=generator), bags={"tags": bag})


def assert_same(a, b) -> None:
    found, expected = [], []
    a.apply(lambda t: (found.append(t), t)[1])
    b.apply(lambda t: (expected.append(t), t)[1])
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_select_takes_rows_in_any_order_and_repeatedly():
    batch, rows = with_all_fields(6), [4, 0, 4, 2]
    index = torch.tensor(rows)
    expected = replace(
        take_rows(batch, rows), weight=batch.weight[index], bags={"tags": batch.bags["tags"].select(index)}
    )
    assert_same(batch.select(index), expected)


def test_select_keeps_only_the_histories_that_its_rows_share():
    batch = with_all_fields(5)
    shared = replace(batch, history=torch.tensor([3, 3, 1, 0, 1]))
    found = shared.select(torch.tensor([0, 2, 4]))
    assert found.history.tolist() == [1, 0, 0]
    columns = found.events["view"]["item"]
    for row, history in enumerate([3, 1, 1]):
        ours, theirs = columns.select(found.history[row : row + 1]), batch.events["view"]["item"]
        assert ours.values.tolist() == theirs.select(torch.tensor([history])).values.tolist()
    assert len(columns) == 2
