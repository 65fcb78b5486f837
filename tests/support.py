"""What several tests build: random packed batches, and ops enumerated by hand in plain loops."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kernels.activations import ACTIVATIONS
from kunlun.features import Batch, EventType, FeatureSchema, Jagged, SparseField, Table, Task

NOW = 1_700_000_000


def toy_schema(events: tuple[str, ...] = ("view", "buy"), max_length: int = 24, tasks: int = 1) -> FeatureSchema:
    fields = (SparseField("item", "item"), SparseField("shop", "shop"))
    return FeatureSchema(
        name="toy",
        tasks=tuple(Task(f"task{t}", 0.3) for t in range(tasks)),
        dense=("a", "b"),
        sparse=(*fields, SparseField("device", "device")),
        tables={"item": Table(200), "shop": Table(20), "device": Table(5)},
        events=tuple(EventType(name, fields, True, max_length / 2, max_length) for name in events),
        users=True,
        request_times=True,
    )


def jagged(values: Tensor, lengths: Tensor) -> Jagged:
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return Jagged(values, offsets, int(lengths.max()) if lengths.numel() else 0)


def toy_batch(schema: FeatureSchema, rows: int, generator: torch.Generator, lengths: Tensor | None = None) -> Batch:
    """Random rows; ``lengths`` (rows,) are those of every event type, else random with some of 0."""

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    events = {}
    for event in schema.events:
        n = integers(event.max_length + 1, rows) * (integers(4, rows) > 0) if lengths is None else lengths
        total = int(n.sum())
        age = [torch.sort(integers(10_000_000, int(k)), descending=True).values + 1 for k in n]
        columns = {f.name: jagged(integers(schema.tables[f.table].rows, total), n) for f in event.fields}
        columns["time"] = jagged(NOW - torch.cat(age), n)
        events[event.name] = {k: replace(v, offsets=columns["item"].offsets) for k, v in columns.items()}
    return Batch(
        labels=integers(2, rows, len(schema.tasks)).float(),
        dense=torch.randn(rows, len(schema.dense), generator=generator),
        sparse=torch.stack([integers(schema.tables[f.table].rows, rows) for f in schema.sparse], dim=1),
        row=torch.arange(rows),
        events=events,
        request_time=torch.full((rows,), NOW),
        user=integers(5, rows),
    )


def take_rows(batch: Batch, rows: list[int]) -> Batch:
    """The same rows in a batch of their own."""
    index = torch.tensor(rows)
    assert batch.history is None
    return replace(
        batch,
        labels=batch.labels[index],
        dense=batch.dense[index],
        sparse=batch.sparse[index],
        row=batch.row[index],
        request_time=batch.request_time[index],
        user=batch.user[index],
        events={e: {k: j.select(index) for k, j in columns.items()} for e, columns in batch.events.items()},
    )


def spans(offsets: Tensor) -> list[tuple[int, int]]:
    return list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))


def gdpa_by_hand(q, k, v, offsets, names, tau, position):
    """One token, one head at a time."""
    out = torch.zeros(*q.shape[:2], v.shape[-1], dtype=q.dtype)
    for b, (start, end) in enumerate(spans(offsets)):
        for t in range(start, end):
            for h, name in enumerate(names):
                # One row times a matrix, not a vector: the FLOP counter sees matrix products only.
                scores = q[t, None, h] @ k[b, :, h].T
                weights = ACTIVATIONS[name](scores / tau) if position == "pre" else ACTIVATIONS[name](scores) / tau
                out[t, h] = (weights @ v[b, :, h])[0]
    return out


def window_by_hand(q, k, v, offsets, left, right, scale):
    """One token at a time, over exactly the keys it may see."""
    rows = []
    for start, end in spans(offsets):
        for t in range(start, end):
            low, high = max(start, t - left), min(end, t + right + 1)
            weights = [(q[t, None, h] @ k[low:high, h].T * scale).softmax(-1) for h in range(q.shape[1])]
            rows.append(torch.cat([w @ v[low:high, h] for h, w in enumerate(weights)]))
    return torch.stack(rows) if rows else v * 1.0


def seeds_by_hand(seeds, k, v, offsets, scale):
    """One sample, one head at a time; zeros for an empty one."""
    samples = []
    for start, end in spans(offsets):
        heads = []
        for h in range(seeds.shape[1]):
            if end == start:
                heads.append(seeds[:, h] * 0)
            else:
                weights = (seeds[:, h] @ k[start:end, h].T * scale).softmax(-1)
                heads.append(weights @ v[start:end, h])
        samples.append(torch.stack(heads, dim=1))
    return torch.stack(samples)
