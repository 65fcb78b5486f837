"""Batches from a small prepared data set whose every value is known, and the DataModule around them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data import PreparedData
from data.prepared import PreparedWriter
from data.reader import Columns, PreparedSplit
from kunlun.features import BagField, EventType, FeatureSchema, Jagged, SparseField, Table, Task

USERS, ROWS = 3, 12
EVENTS = {"view": [5, 0, 40], "buy": [2, 1, 0]}  # events of each user, at times 10, 20, 30 …
FIELD = (SparseField("item", "item"),)
SCHEMA = FeatureSchema(
    name="toy",
    tasks=(Task("click", 0.5),),
    dense=("a",),
    sparse=(SparseField("item", "item"), SparseField("user", "user")),
    tables={"item": Table(1000), "user": Table(10), "tag": Table(9)},
    bags=(BagField("tags", "tag"),),
    events=tuple(EventType(name, FIELD) for name in EVENTS),
    users=True,
    request_times=True,
)


def rows(split: int) -> pa.RecordBatch:
    """Row i belongs to user i mod 3 and asks at time 95 + 10 · (i // 6): neighbours share requests three apart."""
    i = np.arange(ROWS) + split * ROWS
    user, time = i % USERS, 95 + 10 * (np.arange(ROWS) // 6)
    before = {e: [min(n[u], (t - 1) // 10) for u, t in zip(user, time, strict=True)] for e, n in EVENTS.items()}
    return pa.RecordBatch.from_pydict(
        {
            "label:click": i % 2,
            "dense:a": i / 4,
            "sparse:item": i + 2,
            "sparse:user": user + 2,
            "bag:tags": [[int(k) % 7 + 2] * (int(k) % 3) for k in i],
            "request_time": time,
            "user": user,
            "history": user,
            "key": [f"row-{k}" for k in i],
            **{f"pointer:{e}": before[e] for e in EVENTS},
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "toy"
    out.mkdir()
    writer = PreparedWriter(out, "f" * 64)
    for number, split in enumerate(("train", "valid", "test")):
        writer.write_split(split, SCHEMA, [rows(number).slice(0, 7), rows(number).slice(7)])
    for event in SCHEMA.events:
        lengths = EVENTS[event.name]
        history = np.repeat(np.arange(USERS), lengths)
        step = np.concatenate([np.arange(n) for n in lengths])
        columns = {"history": history, "item": 2 + history * 100 + step, "time": 10 * (step + 1)}
        writer.write_history(event, SCHEMA.tables, USERS, [pa.RecordBatch.from_pydict(columns)])
    writer.finish(SCHEMA, {"source": "made for this test"})
    return out


def split_of(prepared: Path, name="train", max_length=100, share=False) -> PreparedSplit:
    return PreparedSplit(prepared, FeatureSchema.load(prepared).with_max_length(max_length), name, share)


def test_every_value_of_a_batch_in_any_order(prepared):
    wanted = np.array([11, 0, 5, 5])
    batch = split_of(prepared).__getitems__(wanted)
    assert batch.row.tolist() == wanted.tolist()
    assert batch.labels[:, 0].tolist() == [1, 0, 1, 1]
    assert batch.dense[:, 0].tolist() == [11 / 4, 0, 5 / 4, 5 / 4]
    assert batch.sparse.tolist() == [[13, 4], [2, 2], [7, 4], [7, 4]]
    assert batch.user.tolist() == [2, 0, 2, 2]
    assert batch.request_time.tolist() == [105, 95, 95, 95]
    assert batch.bags["tags"].offsets.tolist() == [0, 2, 2, 4, 6]
    assert batch.bags["tags"].values.tolist() == [6, 6, 7, 7, 7, 7]
    view = batch.events["view"]
    assert view["item"].lengths().tolist() == [10, 5, 9, 9]
    assert view["item"].values[:10].tolist() == list(range(202, 212))
    assert view["time"].values[10:15].tolist() == [10, 20, 30, 40, 50]
    assert batch.events["buy"]["item"].lengths().tolist() == [0, 2, 0, 0]
    assert batch.history is None


def test_no_event_at_or_after_the_request_is_ever_handed_out(prepared):
    batch = split_of(prepared).__getitems__(np.arange(ROWS))
    for columns in batch.events.values():
        segments = columns["time"].segments()
        assert (columns["time"].values < batch.request_time[segments]).all()


def test_the_newest_events_are_kept_when_l_max_is_short(prepared):
    batch = split_of(prepared, max_length=3).__getitems__(np.array([2, 0]))
    assert batch.events["view"]["time"].values.tolist() == [70, 80, 90, 30, 40, 50]
    assert batch.events["view"]["item"].max_length == 3


def test_rows_of_one_request_share_one_history(prepared):
    wanted = np.array([0, 3, 1, 6])  # 0 and 3: user 0 at time 95; 6: user 0 later
    shared, own = (split_of(prepared, share=s).__getitems__(wanted) for s in (True, False))
    assert len(shared.events["view"]["item"]) == 3
    assert shared.history[0] == shared.history[1] != shared.history[3]
    for event, columns in shared.events.items():
        for name, jagged in columns.items():
            expanded = jagged.select(shared.history)
            assert torch.equal(expanded.values, own.events[event][name].values)
            assert torch.equal(expanded.offsets, own.events[event][name].offsets)


def test_keys_come_back_as_given(prepared):
    assert split_of(prepared, "valid").keys(np.array([3, 0])).to_pylist() == ["row-15", "row-12"]


def test_a_split_travels_to_a_worker_without_its_memory_maps(prepared):
    split = split_of(prepared)
    before = split.__getitems__(np.array([4]))
    other = pickle.loads(pickle.dumps(split))
    assert torch.equal(other.__getitems__(np.array([4])).sparse, before.sparse)


def test_columns_over_several_record_batches(tmp_path):
    folder = tmp_path / "split"
    folder.mkdir()
    parts = [list(range(5)), list(range(5, 6)), list(range(6, 20))]
    for number, values in enumerate(parts):
        batch = pa.RecordBatch.from_pydict({"x": pa.array(values, pa.int64()), "l": [[v] * (v % 3) for v in values]})
        with pa.ipc.new_stream(str(folder / f"data-{number}.arrow"), batch.schema) as sink:
            sink.write(batch)
    columns, wanted = Columns(folder), np.array([19, 0, 5, 6, 6, 4])
    assert columns.rows == 20
    assert columns.take("x", columns.locate(wanted)).tolist() == wanted.tolist()
    values, offsets = columns.take_lists("l", wanted)
    assert offsets.tolist() == [0, 1, 1, 3, 3, 3, 4]
    assert values.tolist() == [19, 5, 5, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_reads_every_row_in_the_same_order_whatever_the_workers(prepared, workers):
    def read(data: PreparedData) -> list[list[int]]:
        return [batch.row.tolist() for batch in data.train_dataloader()]

    single = PreparedData(str(prepared), batch_size=4, max_length=8, seed=7)
    many = PreparedData(str(prepared), batch_size=4, max_length=8, seed=7, num_workers=workers)
    assert read(many) == read(single)
    assert sorted(row for batch in read(single) for row in batch) == list(range(ROWS))
    assert read(PreparedData(str(prepared), batch_size=4, seed=8)) != read(single)


def test_evaluation_reads_in_order_and_shares_histories(prepared):
    data = PreparedData(str(prepared), eval_batch_size=5)
    batches = list(data.val_dataloader())
    assert [r for b in batches for r in b.row.tolist()] == list(range(ROWS))
    assert all(b.history is not None for b in batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_resumes_with_the_batch_that_would_have_come(prepared, workers):
    data = PreparedData(str(prepared), batch_size=2, num_workers=workers)
    loader = data.train_dataloader()
    iterator = iter(loader)
    seen = [next(iterator).row.tolist() for _ in range(2)]
    state = loader.state_dict()
    expected = [b.row.tolist() for b in iterator]
    other = data.train_dataloader()
    other.load_state_dict(state)
    assert [b.row.tolist() for b in other] == expected
    assert len(seen) + len(expected) == 6


def test_missing_pieces_say_what_to_do(tmp_path, prepared):
    with pytest.raises(FileNotFoundError, match=r"not a prepared data set.*cli.py prepare"):
        _ = PreparedData(str(tmp_path)).schema
    schema = FeatureSchema.load(prepared)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="incomplete; prepare it again"):
        len(PreparedSplit(tmp_path, schema, "train", False))


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("max_length", 0), ("num_workers", -1)])
def test_bad_sizes_are_named(name, value):
    with pytest.raises(ValueError, match=f"data.{name}"):
        PreparedData("anywhere", **{name: value})


def test_a_checkpoint_of_other_tables_is_refused(prepared):
    data = PreparedData(str(prepared))
    state = data.state_dict()
    state["schema"] = state["schema"].replace('"rows": 1000', '"rows": 999')
    with pytest.raises(ValueError, match="other id spaces"):
        data.load_state_dict(state)


def test_jagged_select_repeats_and_reorders():
    jagged = Jagged(torch.arange(6.0, requires_grad=True), torch.tensor([0, 1, 4, 4, 6]), 3)
    picked = jagged.select(torch.tensor([3, 1, 2, 1]))
    assert picked.values.tolist() == [4, 5, 1, 2, 3, 1, 2, 3]
    assert picked.offsets.tolist() == [0, 2, 5, 5, 8]
    assert picked.segments().tolist() == [0, 0, 1, 1, 1, 3, 3, 3]
    picked.values.sum().backward()
    assert jagged.values.grad.tolist() == [0, 2, 2, 2, 1, 1]
