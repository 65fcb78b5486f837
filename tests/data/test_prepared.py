"""The writer of the prepared format: what it writes, and that it lets nothing wrong through."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest

from data import prepared
from data.preparation import DataError
from data.prepared import PreparedWriter
from kunlun.features import BagField, EventType, FeatureSchema, SparseField, Table, Task

SCHEMA = FeatureSchema(
    name="toy",
    tasks=(Task("click", 0.0), Task("buy", 0.0)),
    dense=("price",),
    sparse=(SparseField("user", "user"), SparseField("item", "item")),
    bags=(BagField("tags", "tag"),),
    tables={"user": Table(5), "item": Table(7), "tag": Table(4)},
    events=(
        EventType("pv", (SparseField("item", "item"),)),
        EventType("cart", (SparseField("item", "item"),)),
    ),
    users=True,
    request_times=True,
)


def wide(rows: int = 4, **changes: object) -> pa.RecordBatch:
    """A batch of the wide layout; ``changes`` replaces columns (``sparse_item`` is sparse:item)."""
    n = np.arange(rows)
    columns = {
        "label:click": n % 2,
        "label:buy": n % 2 * 0,
        "dense:price": n / 2,
        "sparse:user": n % 5,
        "sparse:item": n % 7,
        "bag:tags": [[1, 2]] * rows,
        "pointer:pv": n,
        "pointer:cart": n * 0 + 3,
        "request_time": 100 + n,
        "user": n % 2,
        "history": n % 2,
        "key": [f"{i}+" for i in n],
    }
    for name, values in changes.items():
        columns[name if name in columns else name.replace("_", ":", 1)] = values
    return pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})


def events(history: list[int], item: list[int], time: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"history": history, "item": item, "time": time})


@pytest.fixture
def writer(tmp_path: Path) -> PreparedWriter:
    return PreparedWriter(tmp_path, fingerprint="f" * 64)


def test_a_split_opens_with_datasets_and_holds_the_rows(writer: PreparedWriter, tmp_path: Path) -> None:
    writer.write_split("train", SCHEMA, [wide(3), wide(4)])
    split = datasets.load_from_disk(str(tmp_path / "train"))
    assert split.num_rows == 7
    assert split[5] == {
        "labels": [0.0, 0.0],
        "dense": [1.0],
        "sparse": [2, 2],
        "tags": [1, 2],
        "request_time": 102,
        "user": 0,
        "history": 0,
        "pointers": [2, 3],
        "key": "2+",
    }
    types = {f.name: f.type for f in split.data.schema}
    assert types["labels"] == pa.list_(pa.float32(), 2)
    assert types["sparse"] == pa.list_(pa.int32(), 2)
    assert types["tags"] == pa.large_list(pa.int32())
    assert types["pointers"] == pa.list_(pa.int64(), 2)


def test_a_shard_is_one_record_batch_and_shards_keep_the_order(
    writer: PreparedWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "SHARD_BYTES", 600)
    parts = [wide(4, request_time=np.arange(4) + 4 * i) for i in range(5)] + [wide(0), wide(25)]
    writer.write_split("train", SCHEMA, parts)
    files = sorted((tmp_path / "train").glob("*.arrow"))
    assert [path.name for path in files] == [f"data-{i:05d}-of-{len(files):05d}.arrow" for i in range(len(files))]
    batches = [list(pa.ipc.open_stream(pa.memory_map(str(path)))) for path in files]
    assert len(files) > 2
    assert {len(file) for file in batches} == {1}
    together = pa.Table.from_batches([batch for file in batches for batch in file])
    together.validate(full=True)
    expected = [value for part in parts for value in part["request_time"].to_pylist()]
    assert together["request_time"].to_pylist() == expected
    assert together["key"].to_pylist() == [value for part in parts for value in part["key"].to_pylist()]
    assert datasets.load_from_disk(str(tmp_path / "train"))["request_time"][:] == expected


def test_an_empty_split_has_the_columns_of_train(writer: PreparedWriter, tmp_path: Path) -> None:
    writer.write_split("train", SCHEMA, [wide(3)])
    writer.write_split("valid", SCHEMA, [])
    valid = datasets.load_from_disk(str(tmp_path / "valid"))
    assert valid.num_rows == 0
    assert valid.column_names == datasets.load_from_disk(str(tmp_path / "train")).column_names


def test_an_empty_train_split_is_an_error(writer: PreparedWriter) -> None:
    with pytest.raises(DataError, match="toy: the train split is empty"):
        writer.write_split("train", SCHEMA, [])


def test_weights_and_large_tables(writer: PreparedWriter, tmp_path: Path) -> None:
    schema = dataclasses.replace(SCHEMA, tables={**SCHEMA.tables, "item": Table(2**31 + 5)})
    batch = wide(2, sparse_item=[2**31 + 4, 1]).append_column("weight", pa.array([0.5, 2.0]))
    writer.write_split("train", schema, [batch])
    split = datasets.load_from_disk(str(tmp_path / "train"))
    assert split["sparse"][0] == [0, 2**31 + 4]
    assert split["weight"][:] == [0.5, 2.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparse_item": [0, 1, 2, 7]}, "item: ids 0 … 7 do not fit a table of 7 rows"),
        ({"sparse_user": [0, -1, 2, 3]}, "user: ids -1 … 3 do not fit"),
        ({"sparse_user": [0, None, 2, 3]}, "'sparse:user' has 1 nulls"),
        ({"label_click": [0, 1, 2, 0]}, "label is neither 0 nor 1"),
        ({"dense_price": [0.0, 1.0, float("nan"), 0.0]}, "dense value is not finite"),
        ({"dense_price": [0.0, 1.0, float("inf"), 0.0]}, "dense value is not finite"),
    ],
)
def test_a_wrong_batch_is_never_written(writer: PreparedWriter, changes: dict, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        writer.write_split("train", SCHEMA, [wide(4, **changes)])


def test_histories_are_one_batch_with_offsets(writer: PreparedWriter, tmp_path: Path) -> None:
    # History 1 has no events; history 2 goes over two batches; history 3 is the last, and empty.
    batches = [events([0, 0, 2], [2, 3, 4], [5, 5, 1]), events([2, 2], [5, 6], [1, 9])]
    assert writer.write_history(SCHEMA.events[0], SCHEMA.tables, 4, batches) == 5
    file = pa.ipc.open_file(pa.memory_map(str(tmp_path / "histories/pv.arrow")))
    assert file.num_record_batches == 1
    table = file.read_all()
    assert table.schema == pa.schema([("item", pa.int32()), ("time", pa.int64())])
    assert table.to_pydict() == {"item": [2, 3, 4, 5, 6], "time": [5, 5, 1, 1, 9]}
    offsets = pa.ipc.open_file(pa.memory_map(str(tmp_path / "histories/pv.offsets.arrow"))).read_all()
    assert offsets.to_pydict() == {"offset": [0, 2, 2, 5, 5]}
    assert sorted(path.name for path in (tmp_path / "histories").iterdir()) == ["pv.arrow", "pv.offsets.arrow"]


def test_an_event_type_that_never_happens(writer: PreparedWriter, tmp_path: Path) -> None:
    assert writer.write_history(SCHEMA.events[1], SCHEMA.tables, 2, []) == 0
    file = pa.ipc.open_file(pa.memory_map(str(tmp_path / "histories/cart.arrow")))
    assert (file.num_record_batches, file.read_all().num_rows) == (1, 0)
    offsets = pa.ipc.open_file(pa.memory_map(str(tmp_path / "histories/cart.offsets.arrow"))).read_all()
    assert offsets.to_pydict() == {"offset": [0, 0, 0]}


@pytest.mark.parametrize(
    "batches",
    [
        [events([1, 0], [2, 2], [1, 1])],
        [events([0, 0], [2, 2], [2, 1])],
        [events([0], [2], [2]), events([0], [2], [1])],
        [events([1], [2], [2]), events([0], [2], [3])],
    ],
)
def test_unsorted_events_are_an_error(writer: PreparedWriter, batches: list[pa.RecordBatch]) -> None:
    with pytest.raises(RuntimeError, match="'pv' are not sorted"):
        writer.write_history(SCHEMA.events[0], SCHEMA.tables, 2, batches)


def test_an_event_outside_its_table_is_an_error(writer: PreparedWriter) -> None:
    with pytest.raises(RuntimeError, match="item: ids 7 … 7 do not fit a table of 7 rows"):
        writer.write_history(SCHEMA.events[0], SCHEMA.tables, 1, [events([0], [7], [1])])


def test_finish_completes_the_schema_from_train(writer: PreparedWriter, tmp_path: Path) -> None:
    writer.write_split("train", SCHEMA, [wide(4, pointer_pv=[1, 2, 3, 5])])
    writer.write_split("valid", SCHEMA, [wide(1)])
    with pytest.raises(RuntimeError, match=r"\['test'\]"):
        writer.finish(SCHEMA, {})
    writer.write_split("test", SCHEMA, [])
    schema = writer.finish(SCHEMA, {"source": "here"})
    assert [task.train_rate for task in schema.tasks] == [0.5, 0.0]
    assert [event.mean_length for event in schema.events] == [2.75, 3.0]
    assert schema.rows == {"train": 4, "valid": 1, "test": 0}
    assert FeatureSchema.load(tmp_path) == schema
    assert json.loads((tmp_path / "schema.json").read_text())["provenance"] == {"source": "here"}
