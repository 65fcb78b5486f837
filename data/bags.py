"""Multi-valued fields on their way to disk: one id per row in the engine, lists only when they are written.

An engine that collects lists holds them all in memory; sorting ids into the order of the impressions spills, and the
lists are then cut from one stream by their lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from data.preparation import Workspace
from data.raw import ROW

BAG = "bag:"


def write_ids(workspace: Workspace, bag: ir.Table, rows: ir.Table, order: list[str], path: Path) -> Path:
    """The ``id`` of ``bag`` (row, place, id) of ``rows``, in the ``order`` of the rows and by place, as the file
    ``path``, which is returned."""
    owners = rows.select(*(name for name in order if name != ROW), of_row=ROW)
    joined = bag.join(owners, bag[ROW] == owners["of_row"])
    ids = joined.order_by([*order, "place"]).select("id")
    schema = pa.schema([("id", pa.int64())])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in workspace.batches(ids):
            writer.write_batch(batch.cast(schema))
    return path


def attach(batches: Iterator[pa.RecordBatch], ids: Mapping[str, Path]) -> Iterator[pa.RecordBatch]:
    """``batches`` with the lists of each field in place of their lengths, ``bag:<field>``; the files are used up."""
    streams = {f"{BAG}{name}": _Stream(path) for name, path in ids.items()}
    for batch in batches:
        if not streams:
            yield batch
            continue
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name, stream in streams.items():
            offsets = np.concatenate([[0], np.cumsum(columns[name].to_numpy(zero_copy_only=False).astype(np.int64))])
            columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets), stream.take(int(offsets[-1])))
        yield pa.RecordBatch.from_pydict(columns)
    for name, stream in streams.items():
        if stream.remaining():
            raise RuntimeError(f"{name}: more values than the lengths of the lists add up to")
    for path in ids.values():
        path.unlink()


class _Stream:
    """The ids of a file in order, as many at a time as are asked for."""

    def __init__(self, path: Path) -> None:
        self._batches = iter(pa.ipc.open_stream(pa.memory_map(str(path))))
        self._rest = pa.array([], pa.int64())

    def take(self, count: int) -> pa.Array:
        parts, size = [self._rest], len(self._rest)
        while size < count:
            parts.append(next(self._batches).column(0))
            size += len(parts[-1])
        found = pa.concat_arrays(parts)
        self._rest = found.slice(count)
        return found.slice(0, count)

    def remaining(self) -> bool:
        return bool(len(self._rest)) or any(batch.num_rows for batch in self._batches)
