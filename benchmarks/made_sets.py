"""Prepared data sets of random values, written for benchmarks of the reader: as large and as wide as is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.prepared import PreparedWriter
from data.taobao import EVENTS, HISTORY_FIELDS, SPARSE
from data.taobao import TABLES as TAOBAO_TABLES
from kunlun.features import EventType, FeatureSchema, SparseField, Table, Task

WRITE_ROWS = 65_536
WRITE_USERS = 4096
TABLE_ROWS = 100_000
START, DAY = 1_492_790_400, 86_400


def write_prepared(
    folder: Path,
    schema: FeatureSchema,
    rows: Iterator[pa.RecordBatch],
    logs: dict[str, Iterator[pa.RecordBatch]],
    users: int,
) -> None:
    """All rows are in train; ``logs``: the events of each type, sorted by history and time."""
    folder.mkdir()
    writer = PreparedWriter(folder, "made for a benchmark")
    for name, log in logs.items():
        writer.write_history(schema.event(name), schema.tables, users, log)
    for split, batches in (("train", rows), ("valid", iter(())), ("test", iter(()))):
        writer.write_split(split, schema, batches)
    writer.finish(schema, {})


def write_histories(folder: Path, rows: int, users: int, max_length: int) -> None:
    """Taobao's fields. A user has 1 … 3 × ``max_length`` events of each type; a row sees ``max_length`` or more."""
    rng = np.random.default_rng(0)
    tables = {name: Table(TABLE_ROWS) for name in TAOBAO_TABLES.values()}
    event_types = tuple(EventType(e, tuple(SparseField(name, name) for name in HISTORY_FIELDS)) for e in EVENTS)
    sparse = tuple(SparseField(name, TAOBAO_TABLES[name]) for name in SPARSE)
    tasks = (Task("click", 0.0),)
    schema = FeatureSchema("histories", tasks, ("price",), sparse, tables, event_types, users=True, request_times=True)
    lengths = {event: rng.integers(max_length, 3 * max_length, users) for event in EVENTS}

    def log(event: str) -> Iterator[pa.RecordBatch]:
        for first in range(0, users, WRITE_USERS):
            last = min(first + WRITE_USERS, users)
            history = np.repeat(np.arange(first, last), lengths[event][first:last])
            when = START + rng.integers(22 * DAY, size=len(history))
            columns = {"history": history, "time": when[np.lexsort((when, history))]}
            columns |= {name: rng.integers(TABLE_ROWS, size=len(history), dtype=np.int32) for name in HISTORY_FIELDS}
            yield pa.record_batch(columns)

    def impressions() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, WRITE_ROWS):
            count = min(WRITE_ROWS, rows - first)
            user = rng.integers(users, size=count)
            columns = {"label:click": rng.integers(2, size=count), "dense:price": rng.standard_normal(count)}
            columns |= {f"sparse:{name}": rng.integers(TABLE_ROWS, size=count) for name in SPARSE}
            columns |= {f"pointer:{event}": rng.integers(max_length, lengths[event][user] + 1) for event in EVENTS}
            when = np.full(count, START + 22 * DAY)
            yield pa.record_batch(columns | {"request_time": when, "user": user, "history": user})

    write_prepared(folder, schema, impressions(), {event: log(event) for event in EVENTS}, users)


def write_narrow(folder: Path, rows: int) -> None:
    """A label, a number and two ids per row."""
    rng = np.random.default_rng(0)
    sparse = (SparseField("a", "a"), SparseField("b", "b"))
    tables = {"a": Table(TABLE_ROWS), "b": Table(TABLE_ROWS)}
    schema = FeatureSchema("narrow", (Task("click", 0.0),), ("x",), sparse, tables)

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, rows, WRITE_ROWS):
            count = min(WRITE_ROWS, rows - first)
            columns = {"label:click": rng.integers(2, size=count), "dense:x": rng.standard_normal(count)}
            columns |= {f"sparse:{field.name}": rng.integers(TABLE_ROWS, size=count) for field in sparse}
            yield pa.record_batch(columns)

    write_prepared(folder, schema, batches(), {}, 0)
