"""The writer of the prepared format: wide record batches in, memory-mappable Arrow files out.

A data set streams record batches with one column per value, named as below; here they are checked and packed::

    label:<task>  dense:<name>  sparse:<field>  bag:<field>  pointer:<event type>
    request_time  user  history  weight  key

    DIR/schema.json                       the FeatureSchema
    DIR/<split>/data-*.arrow              Arrow streams of one record batch each; ``datasets.load_from_disk`` opens them
    DIR/histories/<event>.arrow           one record batch: the event type's columns, sorted by (history, time)
    DIR/histories/<event>.offsets.arrow   history h = rows offset[h]:offset[h + 1]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.preparation import DataError
from data.spool import Spool
from kunlun.features import SCHEMA_FILE, TIME, EventType, FeatureSchema, Table

SPLITS = ("train", "valid", "test")
SHARD_BYTES = 4 * 1024**3
INT32_ROWS = 2**31


@dataclass(frozen=True)
class SplitSummary:
    """What was written: rows, the mean of each label, the mean pointer of each event type."""

    rows: int
    label_means: np.ndarray
    pointer_means: np.ndarray


class PreparedWriter:
    """Writes one prepared data set into ``directory``; ``finish`` makes it complete.

    Every wrong batch (a missing column, a null, an id outside its table) is an error here, so that none can reach
    training.
    """

    def __init__(self, directory: Path, fingerprint: str) -> None:
        self.directory = Path(directory)
        self.fingerprint = fingerprint
        self._splits: dict[str, SplitSummary] = {}
        self._columns: pa.Schema | None = None

    def write_split(self, split: str, schema: FeatureSchema, batches: Iterable[pa.RecordBatch]) -> SplitSummary:
        """Write the impressions of one split, in the order given; train first. DataError: train is empty."""
        directory = self.directory / split
        directory.mkdir()
        labels, pointers, rows = np.zeros(len(schema.tasks)), np.zeros(len(schema.events)), 0

        def packed() -> Iterator[pa.RecordBatch]:
            nonlocal labels, pointers, rows
            for batch in batches:
                if batch.num_rows:
                    labels += [_numbers(batch, f"label:{task.name}").sum() for task in schema.tasks]
                    pointers += [_numbers(batch, f"pointer:{event.name}").sum() for event in schema.events]
                    rows += batch.num_rows
                    yield _pack(batch, schema)

        if split != "train" and self._columns is None:
            raise RuntimeError(f"{schema.name}: {split} cannot be written before train")
        self._columns, files = _write_shards(directory, self._columns, packed())
        if self._columns is None:
            raise DataError(
                f"{schema.name}: the train split is empty; the source has too few usable rows, "
                "or the options give none to training"
            )
        _describe_for_datasets(directory, self._columns, files, f"{self.fingerprint[:16]}-{split}")
        summary = SplitSummary(rows, labels / max(rows, 1), pointers / max(rows, 1))
        self._splits[split] = summary
        return summary

    def write_history(
        self, event: EventType, tables: dict[str, Table], histories: int, batches: Iterable[pa.RecordBatch]
    ) -> int:
        """Write all events of one type; returns how many.

        Batches have ``history`` (0 … histories - 1) and the event's fields, plus ``time`` where it has times,
        sorted by (history, time).
        """
        directory = self.directory / "histories"
        directory.mkdir(exist_ok=True)
        types = {f.name: _id_type(tables[f.table]) for f in event.fields}
        if event.timestamps:
            types[TIME] = pa.int64()
        lengths = np.zeros(histories, np.int64)
        spool = Spool(directory, event.name, pa.schema(list(types.items())))
        last = (-1, 0)
        for batch in batches:
            history = _numbers(batch, "history")
            last = _check_sorted(history, _numbers(batch, TIME) if event.timestamps else None, last, event.name)
            _count(lengths, history)
            for f in event.fields:
                _check_ids(_numbers(batch, f.name), tables[f.table], f.name)
            spool.append([pa.array(_numbers(batch, name), kind) for name, kind in types.items()])
        count = spool.rows
        spool.write(directory / f"{event.name}.arrow", "file")
        offsets = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
        _write_one_batch(directory / f"{event.name}.offsets.arrow", {"offset": pa.array(offsets)})
        return count

    def finish(self, schema: FeatureSchema, provenance: dict[str, Any]) -> FeatureSchema:
        """Complete the schema with what was seen in the train split and write it."""
        missing = [split for split in SPLITS if split not in self._splits]
        if missing:
            raise RuntimeError(f"{schema.name}: splits {missing} were not written")
        train = self._splits["train"]
        schema = replace(
            schema,
            tasks=tuple(
                replace(task, train_rate=float(rate))
                for task, rate in zip(schema.tasks, train.label_means, strict=True)
            ),
            events=tuple(
                replace(event, mean_length=float(mean))
                for event, mean in zip(schema.events, train.pointer_means, strict=True)
            ),
            rows={split: self._splits[split].rows for split in SPLITS},
            provenance=provenance,
        )
        (self.directory / SCHEMA_FILE).write_text(schema.to_json(), encoding="utf-8")
        return schema


def _pack(batch: pa.RecordBatch, schema: FeatureSchema) -> pa.RecordBatch:
    """Wide columns → the fixed-size lists of the format."""
    tables = [schema.tables[f.table] for f in schema.sparse]
    for f, table in zip(schema.sparse, tables, strict=True):
        _check_ids(_numbers(batch, f"sparse:{f.name}"), table, f.name)
    columns = {"labels": _matrix(batch, [f"label:{t.name}" for t in schema.tasks], pa.float32())}
    if not np.isin(columns["labels"].values.to_numpy(), (0.0, 1.0)).all():
        raise RuntimeError(f"{schema.name}: a label is neither 0 nor 1")
    if schema.dense:
        columns["dense"] = _matrix(batch, [f"dense:{name}" for name in schema.dense], pa.float32())
        if not np.isfinite(columns["dense"].values.to_numpy()).all():
            raise RuntimeError(f"{schema.name}: a dense value is not finite")
    if schema.sparse:
        kind = pa.int64() if any(table.rows >= INT32_ROWS for table in tables) else pa.int32()
        columns["sparse"] = _matrix(batch, [f"sparse:{f.name}" for f in schema.sparse], kind)
    for bag in schema.bags:
        columns[bag.name] = batch.column(f"bag:{bag.name}").cast(pa.large_list(_id_type(schema.tables[bag.table])))
    if schema.request_times:
        columns["request_time"] = _vector(batch, "request_time", pa.int64())
    if schema.users:
        columns["user"] = _vector(batch, "user", pa.int64())
    if schema.events:
        columns["history"] = _vector(batch, "history", pa.int64())
        columns["pointers"] = _matrix(batch, [f"pointer:{e.name}" for e in schema.events], pa.int64())
    if "weight" in batch.schema.names:
        columns["weight"] = _vector(batch, "weight", pa.float32())
    if "key" in batch.schema.names:
        key = batch.column("key")
        columns["key"] = key.cast(pa.large_string()) if pa.types.is_string(key.type) else key
    return pa.RecordBatch.from_pydict(columns)


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    column = batch.column(name)
    if column.null_count:
        raise RuntimeError(f"column {name!r} has {column.null_count} nulls where every row needs a value")
    return column.to_numpy(zero_copy_only=False)


def _vector(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    return pa.array(_numbers(batch, name), kind)


def _matrix(batch: pa.RecordBatch, names: list[str], kind: pa.DataType) -> pa.Array:
    """Columns side by side as one fixed-size list (rows × names)."""
    values = np.empty((batch.num_rows, len(names)), kind.to_pandas_dtype())
    for i, name in enumerate(names):
        values[:, i] = _numbers(batch, name)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), len(names))


def _id_type(table: Table) -> pa.DataType:
    return pa.int64() if table.rows >= INT32_ROWS else pa.int32()


def _check_ids(ids: np.ndarray, table: Table, name: str) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= table.rows):
        raise RuntimeError(f"{name}: ids {ids.min()} … {ids.max()} do not fit a table of {table.rows} rows")


def _check_sorted(history: np.ndarray, time: np.ndarray | None, last: tuple[int, int], event: str) -> tuple[int, int]:
    """Fail unless (history, time) never falls; returns the last pair. ``last`` is that of the batch before."""
    if history.size == 0:
        return last
    time = np.zeros_like(history) if time is None else time
    steps = np.diff(history, prepend=last[0])
    back = np.diff(time, prepend=last[1]) < 0
    if (steps < 0).any() or (back & (steps == 0)).any():
        raise RuntimeError(f"events of {event!r} are not sorted by history and time")
    return int(history[-1]), int(time[-1])


def _write_one_batch(path: Path, columns: dict[str, pa.Array]) -> None:
    batch = pa.RecordBatch.from_pydict(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _count(lengths: np.ndarray, history: np.ndarray) -> None:
    """Add how often each history occurs; sorted, so only the histories of this batch are touched."""
    if history.size:
        first = int(history[0])
        seen = np.bincount(history - first)
        lengths[first : first + seen.size] += seen


def _write_shards(
    directory: Path, columns: pa.Schema | None, batches: Iterable[pa.RecordBatch]
) -> tuple[pa.Schema | None, list[str]]:
    """Arrow stream files of about SHARD_BYTES, one record batch each. ``columns``: those of train, None for train.

    A split without rows gets one file with the columns alone, so that it opens too.
    """
    paths: list[Path] = []
    spool: Spool | None = None

    def close() -> None:
        if spool is not None:
            paths.append(directory / f"{len(paths)}.shard")
            spool.write(paths[-1], "stream")

    for batch in batches:
        columns = columns or batch.schema
        if spool is None or spool.bytes >= SHARD_BYTES:
            close()
            spool = Spool(directory, "shard", columns)
        spool.append(batch.cast(columns).columns)
    if spool is None and columns is not None:
        spool = Spool(directory, "shard", columns)
    close()
    names = [f"data-{i:05d}-of-{len(paths):05d}.arrow" for i in range(len(paths))]
    for path, name in zip(paths, names, strict=True):
        path.rename(directory / name)
    return columns, names


def _describe_for_datasets(directory: Path, columns: pa.Schema, files: list[str], fingerprint: str) -> None:
    """The two JSON files that Hugging Face's ``load_from_disk`` expects beside the shards."""
    from datasets import DatasetInfo, Features

    DatasetInfo(features=Features.from_arrow_schema(columns)).write_to_directory(str(directory))
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": directory.name,
    }
    (directory / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True), encoding="utf-8")
