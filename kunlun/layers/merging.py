"""All events of a row as one history in time order, of which the types are not known (``drop_event_types``)."""

from __future__ import annotations

from dataclasses import replace

import torch

from kunlun.features import TIME, Batch, FeatureSchema
from kunlun.layers.joining import join_order, reorder

MERGED = "event"


def merged_schema(schema: FeatureSchema) -> FeatureSchema:
    """``schema`` with one event type in the place of several.

    Raises:
        ValueError: the types differ in their fields, or have no times to be ordered by.
    """
    if len(schema.events) < 2:
        return schema
    first = schema.events[0]
    for event in schema.events:
        if event.fields != first.fields:
            raise ValueError(
                f"drop event_types: {first.name!r} and {event.name!r} of {schema.name!r} cannot be one history, for "
                f"their fields differ: {[f.name for f in first.fields]} and {[f.name for f in event.fields]}"
            )
        if not event.timestamps:
            raise ValueError(
                f"drop event_types: the events {event.name!r} of {schema.name!r} have no times to merge them by"
            )
    mean_length, max_length = (sum(getattr(e, name) for e in schema.events) for name in ("mean_length", "max_length"))
    return replace(schema, events=(replace(first, name=MERGED, mean_length=mean_length, max_length=max_length),))


def merged(batch: Batch) -> Batch:
    """``batch`` as :func:`merged_schema` describes it; events of the same second are in the order of their types."""
    types = list(batch.events.values())
    if len(types) < 2:
        return batch
    times = [fields[TIME] for fields in types]
    order = join_order(times, torch.cat([t.values for t in times]))
    columns = {name: reorder(order, [fields[name].values for fields in types]) for name in types[0]}
    return replace(batch, events={MERGED: columns})
