"""Pointers against counting, one event after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pointers import Timeline, write_pointers
from data.prepared import PreparedWriter
from kunlun.features import EventType, SparseField, Table

FAR = 10**18 - 1  # the most that a raw file may say
TIMES = st.integers(0, 12) | st.sampled_from([-FAR, -1, 10**9, FAR])  # few values, so that ties are common


def histories(folder: Path, logs: dict[str, list[list[int]]]) -> None:
    """The files of each event type: the times of each history."""
    writer = PreparedWriter(folder, "f" * 64)
    for name, times in logs.items():
        event = EventType(name, (SparseField("item", "item"),))
        columns = {
            "history": np.repeat(np.arange(len(times)), [len(t) for t in times]),
            "item": np.ones(sum(map(len, times)), np.int64),
            "time": np.array([t for history in times for t in sorted(history)], np.int64),
        }
        writer.write_history(event, {"item": Table(10)}, len(times), [pa.RecordBatch.from_pydict(columns)])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(TIMES, max_size=9), min_size=1, max_size=6), st.data())
def test_as_many_events_are_before_as_are_counted(
    tmp_path_factory: pytest.TempPathFactory, log: list[list[int]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("pointers")
    histories(folder, {"view": log})
    requests = data.draw(st.lists(st.tuples(st.integers(0, len(log) - 1), TIMES), max_size=20))
    history, time = np.array(requests, np.int64).reshape(-1, 2).T
    timeline = Timeline(folder / "histories", "view")
    assert timeline.count_before(history, time).tolist() == [sum(t < at for t in log[h]) for h, at in requests]
    timeline.forget()  # lets pages go, and reads them again
    assert timeline.count_before(history, time).tolist() == [sum(t < at for t in log[h]) for h, at in requests]


def test_every_event_type_gets_its_pointers_by_key(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    sizes = {"view": (0, 900), "buy": (0, 4), "never": (0, 1)}
    logs = {
        name: [generator.integers(0, 500, n).tolist() for n in generator.integers(*size, 40)]
        for name, size in sizes.items()
    }
    histories(tmp_path, logs)
    history = np.sort(generator.integers(0, 40, 3000))
    time = generator.integers(-5, 510, 3000)
    key = generator.permutation(3000) + 2**40

    def batches() -> Iterator[pa.RecordBatch]:
        for part in np.split(np.arange(3000), [0, 1, 700, 2999]):
            columns = {"row": key[part], "history": history[part].astype(np.int32), "time": time[part]}
            yield pa.RecordBatch.from_pydict(columns)

    write_pointers(batches(), tmp_path / "histories", list(logs), tmp_path / "pointers.parquet", "row")
    found = pa.parquet.read_table(tmp_path / "pointers.parquet")
    assert found["row"].to_numpy().tolist() == key.tolist()
    for name, log in logs.items():
        wanted = [sum(t < at for t in log[h]) for h, at in zip(history, time, strict=True)]
        assert found[f"pointer:{name}"].to_numpy().tolist() == wanted
    assert not any(found["pointer:never"].to_numpy())
