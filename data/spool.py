"""An Arrow file of one record batch, written from many: however large, it needs the memory of one of them.

A reader's work grows with the number of record batches, so a file shall hold one. Arrow writes a batch that is in
memory; here its buffers grow in files of their own first, and are mapped, not loaded, when the batch is written.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

CHUNK_BYTES = 32 * 1024**2


class Spool:
    """Collects columns in ``directory`` until :meth:`write`.

    Types: numbers, fixed-size lists, large lists and large strings of them, without nulls.
    """

    def __init__(self, directory: Path, name: str, schema: pa.Schema) -> None:
        self.schema, self.rows, self.bytes = schema, 0, 0
        self._prefix = directory / f"{name}.spool"
        self._parts = [_parts_of(field.type) for field in schema]
        paths = [[self._path(i, j) for j in range(len(parts))] for i, parts in enumerate(self._parts)]
        self._files = [[path.open("wb") for path in column] for column in paths]
        self._ends = [0] * len(schema)  # of the values in lists and strings

    def append(self, columns: list[pa.Array]) -> None:
        """``columns`` in the order of the schema, of its types."""
        for i, (column, files) in enumerate(zip(columns, self._files, strict=True)):
            if column.type != self.schema.types[i]:
                raise TypeError(f"column {self.schema.names[i]!r} is {column.type}, not {self.schema.types[i]}")
            if nulls := column.null_count or (column.flatten().null_count if pa.types.is_nested(column.type) else 0):
                raise RuntimeError(f"column {self.schema.names[i]!r} has {nulls} nulls where every row needs a value")
            buffers = list(_split(column))
            if len(buffers) == 2:  # lengths become offsets over the whole file
                lengths = buffers[0]
                offsets = self._ends[i] + np.cumsum(lengths, dtype=np.int64)
                if not files[0].tell():
                    offsets = np.concatenate([np.zeros(1, np.int64), offsets])
                self._ends[i] = int(offsets[-1]) if offsets.size else self._ends[i]
                buffers[0] = offsets
            for file, values in zip(files, buffers, strict=True):
                self.bytes += file.write(np.ascontiguousarray(values).data)
        self.rows += len(columns[0])

    def write(self, path: Path, kind: Literal["stream", "file"]) -> None:
        """The Arrow file ``path``; the spool is gone afterwards."""
        for files in self._files:
            for file in files:
                file.close()
        with _mapped(self._paths()) as maps:
            buffers = iter(maps)
            columns = [
                _array(field.type, self.rows, [pa.py_buffer(next(buffers)) for _ in parts])
                for field, parts in zip(self.schema, self._parts, strict=True)
            ]
            batch = pa.RecordBatch.from_arrays(columns, schema=self.schema)
            new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
            with path.open("wb") as out, pa.PythonFile(_Sink(out, maps), "w") as sink, new(sink, self.schema) as writer:
                writer.write_batch(batch)
            del batch, columns, buffers, writer
        for spool in self._paths():
            spool.unlink()

    def _paths(self) -> list[Path]:
        return [self._path(i, j) for i, parts in enumerate(self._parts) for j in range(len(parts))]

    def _path(self, column: int, part: int) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}-{column}-{part}")


class _Sink:
    """Passes large buffers on in chunks and lets the pages of the maps that they come from go again."""

    def __init__(self, file: Any, maps: list[mmap.mmap | bytes]) -> None:
        self.file, self.maps = file, [m for m in maps if isinstance(m, mmap.mmap)]
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for start in range(0, view.nbytes, CHUNK_BYTES):
            self.file.write(view[start : start + CHUNK_BYTES])
            if view.nbytes > CHUNK_BYTES:
                for m in self.maps:
                    m.madvise(mmap.MADV_DONTNEED)
        return view.nbytes

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True


def _parts_of(kind: pa.DataType) -> tuple[str, ...]:
    if pa.types.is_large_string(kind):
        return ("offsets", "values")
    varying = pa.types.is_large_list(kind)
    item = kind.value_type if varying or pa.types.is_fixed_size_list(kind) else kind
    if not (pa.types.is_integer(item) or pa.types.is_floating(item)):
        raise TypeError(f"columns of type {kind} cannot be written")
    return ("offsets", "values") if varying else ("values",)


def _split(column: pa.Array) -> Iterator[np.ndarray]:
    """The values; before them the lengths where they vary."""
    kind = column.type
    if pa.types.is_large_string(kind):
        column = column.cast(pa.large_binary())
        yield pa.compute.binary_length(column).to_numpy(zero_copy_only=False)
        start, end = (np.frombuffer(column.buffers()[1], np.int64)[column.offset + i] for i in (0, len(column)))
        yield np.frombuffer(column.buffers()[2] or b"", np.uint8)[start:end]
    elif pa.types.is_large_list(kind):
        yield column.value_lengths().to_numpy(zero_copy_only=False)
        yield column.flatten().to_numpy(zero_copy_only=False)
    elif pa.types.is_fixed_size_list(kind):
        yield column.flatten().to_numpy(zero_copy_only=False)
    else:
        yield column.to_numpy(zero_copy_only=False)


def _array(kind: pa.DataType, rows: int, buffers: list[pa.Buffer]) -> pa.Array:
    if pa.types.is_large_string(kind):
        return pa.LargeStringArray.from_buffers(rows, _offsets(buffers[0]), buffers[1])
    if pa.types.is_large_list(kind):
        item = kind.value_type
        values = pa.Array.from_buffers(item, buffers[1].size * 8 // item.bit_width, [None, buffers[1]])
        return pa.Array.from_buffers(kind, rows, [None, _offsets(buffers[0])], children=[values])
    if pa.types.is_fixed_size_list(kind):
        values = pa.Array.from_buffers(kind.value_type, rows * kind.list_size, [None, buffers[0]])
        return pa.FixedSizeListArray.from_arrays(values, type=kind)
    return pa.Array.from_buffers(kind, rows, [None, buffers[0]])


def _offsets(buffer: pa.Buffer) -> pa.Buffer:
    return buffer if buffer.size else pa.py_buffer(np.zeros(1, np.int64))


@contextmanager
def _mapped(paths: list[Path]) -> Iterator[list[mmap.mmap | bytes]]:
    """Read-only maps of the files; an empty file cannot be mapped."""
    maps: list[mmap.mmap | bytes] = []
    for path in paths:
        with path.open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b"")
    yield maps
    # Not closed by hand: Arrow's buffers may still be looking; the maps go with the last of them.
