"""All events of a row as one history in time order, of which the types are not known (``drop_event_types``).

Legend: G histories · N events of all types.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kunlun.features import TIME, Batch, FeatureSchema, Jagged

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
    times = torch.cat([fields[TIME].values for fields in types])
    segments = torch.cat([fields[TIME].segments() for fields in types])
    order = times.argsort(stable=True)
    order = order[segments[order].argsort(stable=True)]
    offsets = torch.stack([fields[TIME].offsets for fields in types]).sum(0)
    longest = sum(fields[TIME].max_length for fields in types)

    def one(values: list[Tensor]) -> Jagged:
        return Jagged(torch.cat(values)[order], offsets, longest)

    return replace(batch, events={MERGED: {name: one([fields[name].values for fields in types]) for name in types[0]}})
