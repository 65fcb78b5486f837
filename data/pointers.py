"""Where a request stands in its user's history: how many events lie strictly before it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from kunlun.features import TIME

ROWS_AT_ONCE = 65_536


class Timeline:
    """The times of one event type, sorted within each history, as they lie on disk."""

    def __init__(self, directory: Path, event: str) -> None:
        with (directory / f"{event}.arrow").open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        batch = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map))).get_batch(0)
        self.times = batch.column(TIME).to_numpy()
        with pa.OSFile(str(directory / f"{event}.offsets.arrow")) as file:
            self.offsets = pa.ipc.open_file(file).get_batch(0).column("offset").to_numpy()

    def count_before(self, history: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(n,) int64: the events of ``history`` (n,) strictly before ``time`` (n,), by bisection of all n at once."""
        first = self.offsets[history]
        low, high = first.copy(), self.offsets[history + 1]
        todo = np.flatnonzero(low < high)
        while todo.size:
            middle = (low[todo] + high[todo]) >> 1
            before = self.times[middle] < time[todo]
            low[todo[before]] = middle[before] + 1
            high[todo[~before]] = middle[~before]
            todo = todo[low[todo] < high[todo]]
        return low - first

    def forget(self) -> None:
        """Let the pages read so far go, so that a log larger than memory passes through it."""
        self._map.madvise(mmap.MADV_DONTNEED)


def write_pointers(
    requests: Iterator[pa.RecordBatch], histories: Path, events: list[str], path: Path, key: str
) -> None:
    """For batches of (``key``, history, time) sorted by history: Parquet of ``key`` and ``pointer:<event>`` of each."""
    timelines = {event: Timeline(histories, event) for event in events}
    schema = pa.schema([(key, pa.int64()), *((f"pointer:{event}", pa.int64()) for event in events)])
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for batch in requests:
            history, time = batch.column("history").to_numpy(), batch.column(TIME).to_numpy()
            history, time = history.astype(np.int64), time.astype(np.int64)
            pointers = [timeline.count_before(history, time) for timeline in timelines.values()]
            keys = batch.column(key).to_numpy().astype(np.int64)
            writer.write_batch(pa.RecordBatch.from_arrays([pa.array(x) for x in (keys, *pointers)], schema=schema))
            for timeline in timelines.values():
                timeline.forget()
