"""Prepared data → :class:`Batch`: memory-mapped columns, gathered for a whole batch at a time.

Nothing is read before it is asked for, so opening costs the same whatever the size; no row passes through Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.preparation import DataError
from kunlun.features import TIME, Batch, EventType, FeatureSchema, Jagged

Split = Literal["train", "valid", "test"]


def ranges(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of all ranges end to end, and their offsets (n + 1,)."""
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return rows, offsets


def to_tensor(array: np.ndarray, dtype: type) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype))


def _flat(array: pa.Array) -> np.ndarray:
    """A view of the values: (rows,), or (rows, n) of a fixed-size list."""
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=True).reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=True)


@dataclass(frozen=True)
class Place:
    """Rows of a batch that lie in one file: ``out`` where they stand in the batch, ``rows`` where in the file."""

    file: int
    out: np.ndarray
    rows: np.ndarray


class Columns:
    """The columns of one split over all its files, gathered by row number."""

    def __init__(self, directory: Path) -> None:
        files = sorted(directory.glob("*.arrow"))
        if not files:
            raise FileNotFoundError(f"{directory} holds no *.arrow file: the data set is incomplete; prepare it again")
        opened = [_open(file, "stream") for file in files]
        batches = [batch for found, _ in opened for batch in found]
        self.first = np.cumsum([0, *(b.num_rows for b in batches)])
        self.rows = int(self.first[-1])
        self._batches = batches
        self.names = opened[0][1].names
        self._views: dict[str, list[np.ndarray]] = {}

    def locate(self, rows: np.ndarray) -> list[Place]:
        """Where the rows lie, worked out once for all columns of a batch."""
        if len(self._batches) == 1:
            return [Place(0, np.arange(rows.size), rows)]
        file = np.searchsorted(self.first, rows, side="right") - 1
        order = np.argsort(file, kind="stable")
        cuts = np.flatnonzero(np.diff(file[order])) + 1
        return [Place(int(file[o[0]]), o, rows[o] - self.first[file[o[0]]]) for o in np.split(order, cuts) if o.size]

    def take(self, name: str, places: list[Place]) -> np.ndarray:
        """(rows, …)."""
        if name not in self._views:
            self._views[name] = [_flat(b.column(name)) for b in self._batches]
        views = self._views[name]
        if len(places) == 1:
            return np.take(views[places[0].file], places[0].rows, axis=0)  # quicker than an index for a matrix
        out = np.empty((sum(p.out.size for p in places), *views[0].shape[1:]), views[0].dtype)
        for place in places:
            out[place.out] = np.take(views[place.file], place.rows, axis=0)
        return out

    def take_lists(self, name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and offsets of a list column."""
        if not rows.size:
            return np.zeros(0, np.int64), np.zeros(1, np.int64)
        taken = self.take_any(name, rows)
        lengths = taken.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return taken.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], np.cumsum(lengths)])

    def take_any(self, name: str, rows: np.ndarray) -> pa.Array:
        """Of any type, strings too; for a few rows."""
        return pa.chunked_array([b.column(name) for b in self._batches]).take(pa.array(rows)).combine_chunks()


class History:
    """One event type's log: every user's events once."""

    def __init__(self, directory: Path, event: EventType) -> None:
        self.path = directory / f"{event.name}.arrow"
        table = _map(self.path)
        self.offsets = _flat(_map(directory / f"{event.name}.offsets.arrow").column("offset"))
        self.columns = {name: _flat(table.column(name)) for name in table.schema.names}
        last = int(self.offsets[-1]) if self.offsets.size else -1
        if last != table.num_rows:
            raise DataError(f"{self.path} holds {table.num_rows:,} events, its offsets {last:,}; prepare it again")

    def starts(self, owners: np.ndarray, pointers: np.ndarray) -> np.ndarray:
        """Where the histories of the requests begin. DataError: a pointer outside its history, of a damaged file.

        Out of its history, a pointer would quietly hand out the events of another user.
        """
        if owners.size and (owners.min() < 0 or owners.max() >= self.offsets.size - 1):
            raise DataError(
                f"{self.path} has {self.offsets.size - 1:,} histories, a row asks for another; prepare again"
            )
        starts = self.offsets[owners]
        if (pointers < 0).any() or (pointers > self.offsets[owners + 1] - starts).any():
            raise DataError(f"a row points outside its history in {self.path}; prepare the data set again")
        return starts


def _open(path: Path, kind: Literal["stream", "file"]) -> tuple[list[pa.RecordBatch], pa.Schema]:
    """The batches of a file, mapped and not read. DataError: it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: the data set is incomplete; prepare it again")
    try:
        mapped = pa.memory_map(str(path))
        if kind == "stream":
            stream = pa.ipc.open_stream(mapped)
            return list(stream), stream.schema
        file = pa.ipc.open_file(mapped)
        return [file.get_batch(i) for i in range(file.num_record_batches)], file.schema
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); prepare the data set again") from error


def _map(path: Path) -> pa.RecordBatch:
    batches, _ = _open(path, "file")
    if len(batches) != 1:
        raise DataError(f"{path} is damaged: it has {len(batches)} record batches, not one; prepare the data set again")
    return batches[0]


class PreparedSplit(Dataset[Batch]):
    """One split of a prepared data set; ``split[rows]`` is a whole batch.

    Args:
        directory: the prepared data set.
        schema: its schema with L_max set: the newest L_max events before a row's pointer are handed out.
        split: train, valid or test.
        share_histories: rows of one request (same history, same time) get one history between them.
    """

    def __init__(self, directory: str | Path, schema: FeatureSchema, split: Split, share_histories: bool) -> None:
        self.directory, self.schema, self.split = Path(directory), schema, split
        self.share_histories = share_histories
        self._columns: Columns | None = None
        self._histories: dict[str, History] = {}

    def __getstate__(self) -> dict:
        # Memory maps do not travel to worker processes: each opens its own.
        return {**self.__dict__, "_columns": None, "_histories": {}}

    @property
    def columns(self) -> Columns:
        if self._columns is None:
            columns = Columns(self.directory / self.split)
            expected = self.schema.rows.get(self.split, columns.rows)
            if columns.rows != expected:
                raise DataError(
                    f"{self.directory / self.split} holds {columns.rows:,} rows where the schema counts {expected:,}: "
                    "a file is missing, cut short or of another data set; prepare it again"
                )
            folder = self.directory / "histories"
            self._histories = {e.name: History(folder, e) for e in self.schema.events}
            self._columns = columns
        return self._columns

    def __len__(self) -> int:
        return self.columns.rows

    def __getitem__(self, row: int) -> Batch:
        return self.__getitems__(np.array([row]))

    def __getitems__(self, rows: np.ndarray) -> Batch:
        """``rows`` (B,) int64, any order → Batch."""
        columns, schema = self.columns, self.schema
        rows = np.asarray(rows, np.int64)
        places = columns.locate(rows)
        has = set(columns.names)

        def matrix(name: str, width: int, dtype: type) -> Tensor:
            return to_tensor(columns.take(name, places) if width else np.zeros((len(rows), 0)), dtype)

        def vector(name: str, dtype: type = np.int64) -> Tensor | None:
            return to_tensor(columns.take(name, places), dtype) if name in has else None

        request_time = vector("request_time")
        events, history = self._events(places, request_time) if schema.events else ({}, None)
        return Batch(
            labels=matrix("labels", len(schema.tasks), np.float32),
            dense=matrix("dense", len(schema.dense), np.float32),
            sparse=matrix("sparse", len(schema.sparse), np.int64),
            row=torch.from_numpy(rows),
            bags={b.name: self._bag(b.name, rows) for b in schema.bags},
            events=events,
            request_time=request_time,
            user=vector("user"),
            weight=vector("weight", np.float32),
            history=history,
        )

    def keys(self, rows: np.ndarray) -> pa.Array | None:
        """The user's own row keys, where the data set has them."""
        return self.columns.take_any("key", rows) if "key" in self.columns.names else None

    def _bag(self, name: str, rows: np.ndarray) -> Jagged:
        values, offsets = self.columns.take_lists(name, rows)
        longest = int(np.diff(offsets).max(initial=0))
        return Jagged(to_tensor(values, np.int64), to_tensor(offsets, np.int64), longest)

    def _events(
        self, places: list[Place], request_time: Tensor | None
    ) -> tuple[dict[str, dict[str, Jagged]], Tensor | None]:
        owners = self.columns.take("history", places)
        pointers = self.columns.take("pointers", places)
        shared = None
        if self.share_histories:
            keys = [owners, pointers]
            if request_time is not None:
                keys.append(request_time.numpy())
            _, first, inverse = np.unique(np.column_stack(keys), axis=0, return_index=True, return_inverse=True)
            owners, pointers = owners[first], pointers[first]
            shared = torch.from_numpy(inverse.reshape(-1))
        events = {}
        for i, event in enumerate(self.schema.events):
            history = self._histories[event.name]
            lengths = np.minimum(pointers[:, i], event.max_length)
            index, offsets = ranges(history.starts(owners, pointers[:, i]) + pointers[:, i] - lengths, lengths)
            where, longest = to_tensor(offsets, np.int64), int(lengths.max(initial=0))
            names = [f.name for f in event.fields] + ([TIME] if event.timestamps else [])
            events[event.name] = {
                n: Jagged(to_tensor(history.columns[n][index], np.int64), where, longest) for n in names
            }
        return events, shared
