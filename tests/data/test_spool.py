"""What a spool writes is what was appended, in one record batch, however it came and whatever the sizes."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.spool import Spool

NUMBERS = [pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.float32(), pa.float64()]
RANGES = {"i": st.integers(-100, 100), "u": st.integers(0, 200), "f": st.floats(width=32, allow_nan=False)}


def number_of(kind: pa.DataType) -> st.SearchStrategy:
    return RANGES["f" if pa.types.is_floating(kind) else "u" if str(kind).startswith("u") else "i"]


def fixed(kind: pa.DataType, size: int) -> pa.DataType:
    return pa.list_(kind, size)


KINDS = st.one_of(
    st.sampled_from(NUMBERS),
    st.builds(fixed, st.sampled_from(NUMBERS), st.integers(1, 3)),
    st.builds(pa.large_list, st.sampled_from(NUMBERS)),
    st.just(pa.large_string()),
)


def value_of(kind: pa.DataType) -> st.SearchStrategy:
    if pa.types.is_large_string(kind):
        return st.text(max_size=5)
    if pa.types.is_fixed_size_list(kind):
        return st.lists(number_of(kind.value_type), min_size=kind.list_size, max_size=kind.list_size)
    if pa.types.is_large_list(kind):
        return st.lists(number_of(kind.value_type), max_size=4)
    return number_of(kind)


@st.composite
def appended(draw: st.DrawFn) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """A schema and the batches to append; some are slices, whose buffers begin before their first row."""
    kinds = draw(st.lists(KINDS, min_size=1, max_size=4))
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate(kinds)])
    batches = []
    for rows in draw(st.lists(st.integers(0, 6), max_size=6)):
        before = draw(st.integers(0, 2))
        values = [draw(st.lists(value_of(k), min_size=rows + before, max_size=rows + before)) for k in kinds]
        arrays = [pa.array(column, kind) for column, kind in zip(values, kinds, strict=True)]
        batches.append(pa.RecordBatch.from_arrays(arrays, schema=schema).slice(before))
    return schema, batches


def read(path: Path, kind: str) -> pa.RecordBatch:
    if kind == "stream":
        (batch,) = pa.ipc.open_stream(pa.memory_map(str(path)))
        return batch
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    assert file.num_record_batches == 1
    return file.get_batch(0)


@settings(max_examples=150, deadline=None)
@given(appended(), st.sampled_from(["stream", "file"]), st.sampled_from([1, 7, 64, 2**20]))
def test_one_batch_holds_all_that_was_appended(
    tmp_path_factory: pytest.TempPathFactory, given_: tuple[pa.Schema, list[pa.RecordBatch]], kind: str, chunk: int
) -> None:
    schema, batches = given_
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, "x", schema)
    for batch in batches:
        spool.append(batch.columns)
    wanted = pa.Table.from_batches(batches, schema)
    assert spool.rows == wanted.num_rows
    with patch("data.spool.CHUNK_BYTES", chunk):
        spool.write(folder / "x.arrow", kind)
    assert [path.name for path in folder.iterdir()] == ["x.arrow"]
    batch = read(folder / "x.arrow", kind)
    batch.validate(full=True)
    assert batch.schema == schema
    assert pa.Table.from_batches([batch]).combine_chunks() == wanted.combine_chunks()


def test_buffers_of_many_chunks_let_go_of_what_they_have_passed_on(tmp_path: Path) -> None:
    schema = pa.schema([("number", pa.int64()), ("text", pa.large_string())])
    spool = Spool(tmp_path, "x", schema)
    for start in range(0, 40_000, 10_000):
        numbers = range(start, start + 10_000)
        spool.append([pa.array(numbers, pa.int64()), pa.array([f"number {n}" for n in numbers], pa.large_string())])
    assert spool.bytes == 40_000 * 8 + 40_001 * 8 + sum(len(f"number {n}") for n in range(40_000))
    with patch("data.spool.CHUNK_BYTES", 4096):
        spool.write(tmp_path / "x.arrow", "file")
    batch = read(tmp_path / "x.arrow", "file")
    batch.validate(full=True)
    assert batch.column("number").to_pylist() == list(range(40_000))
    assert batch.column("text").to_pylist() == [f"number {n}" for n in range(40_000)]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int64(), [1, None]),
        (pa.large_string(), ["a", None]),
        (pa.large_list(pa.int32()), [[1], None]),
        (pa.large_list(pa.int32()), [[1], [2, None]]),
        (pa.list_(pa.int32(), 2), [[1, 2], [3, None]]),
    ],
    ids=str,
)
def test_a_null_is_refused(tmp_path: Path, kind: pa.DataType, values: list) -> None:
    spool = Spool(tmp_path, "x", pa.schema([("c", kind)]))
    with pytest.raises(RuntimeError, match="column 'c' has 1 nulls"):
        spool.append([pa.array(values, kind)])


def test_a_type_that_has_no_plain_buffers_is_refused(tmp_path: Path) -> None:
    for kind in (pa.bool_(), pa.date32(), pa.string(), pa.list_(pa.int32()), pa.large_list(pa.bool_())):
        with pytest.raises(TypeError, match="cannot be written"):
            Spool(tmp_path, "x", pa.schema([("c", kind)]))
    spool = Spool(tmp_path, "x", pa.schema([("c", pa.int64())]))
    with pytest.raises(TypeError, match="column 'c' is int32, not int64"):
        spool.append([pa.array([1], pa.int32())])
    assert spool.rows == 0
