"""One history of all events: every event once, in time order, in the row that it belongs to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kunlun.features import TIME, SparseField
from kunlun.layers.merging import MERGED, merged, merged_schema
from tests.support import toy_batch, toy_schema


def test_every_event_is_there_once_in_time_order():
    schema = toy_schema(events=("view", "buy", "cart"))
    batch = toy_batch(schema, 7, torch.Generator().manual_seed(0))
    for fields in batch.events.values():  # in steps of months, so that many events share one: types keep their order
        fields[TIME] = fields[TIME].with_values(fields[TIME].values >> 21)
    one = merged(batch).events
    assert set(one) == {MERGED}
    for row in range(7):
        expected = []
        for fields in batch.events.values():
            begin, end = fields[TIME].offsets[row : row + 2].tolist()
            columns = [fields[name].values[begin:end].tolist() for name in (TIME, "item", "shop")]
            expected += zip(*columns, strict=True)
        begin, end = one[MERGED][TIME].offsets[row : row + 2].tolist()
        found = [one[MERGED][name].values[begin:end].tolist() for name in (TIME, "item", "shop")]
        assert list(zip(*found, strict=True)) == sorted(expected, key=lambda event: event[0])
        assert end - begin <= one[MERGED][TIME].max_length


def test_the_schema_says_what_the_batch_holds():
    schema = toy_schema(max_length=24)
    (event,) = merged_schema(schema).events
    assert (event.name, event.max_length, event.mean_length) == (MERGED, 48, 24.0)
    assert event.fields == schema.events[0].fields
    single = toy_schema(events=("view",))
    assert merged_schema(single) is single


def test_types_that_cannot_be_one_history_are_named():
    view, buy = toy_schema().events
    fields = replace(toy_schema(), events=(view, replace(buy, fields=(SparseField("item", "item"),))))
    with pytest.raises(ValueError, match=r"'view' and 'buy' of 'toy' .* \['item', 'shop'\] and \['item'\]"):
        merged_schema(fields)
    timeless = replace(toy_schema(), events=(view, replace(buy, timestamps=False)))
    with pytest.raises(ValueError, match="'buy' of 'toy' have no times to merge them by"):
        merged_schema(timeless)
