"""UserBehavior: every impression and history of the prepared sample against pandas on the raw log."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data import userbehavior
from data.preparation import DataError
from data.userbehavior import EVENTS, UserBehaviorOptions
from kunlun.features import FeatureSchema

COLUMNS = ["user", "item", "category", "btag", "time"]
ITEM_ROWS = 131_072
START = 1_511_539_200  # 2017-11-25 00:00 in Shanghai
END = START + 9 * 86_400


def impressions(out: Path) -> pd.DataFrame:
    """All splits end to end, one column per value, with the raw row of the positive and the label."""
    parts = []
    for split in ("train", "valid", "test"):
        loaded = datasets.load_from_disk(str(out / split)).with_format("numpy")[:]
        if not len(loaded["key"]):
            continue
        frame = pd.DataFrame({name: loaded[name] for name in ("request_time", "user", "history", "key")})
        frame[["user_id", "item_id", "category_id"]] = loaded["sparse"]
        frame[[f"pointer_{event}" for event in EVENTS]] = loaded["pointers"]
        frame["label"] = loaded["labels"][:, 0].astype(int)
        parts.append(frame.assign(split=split))
    frame = pd.concat(parts, ignore_index=True)
    frame["row"] = frame.key.str[:-1].astype(int)
    return frame


def history(out: Path, event: str) -> tuple[pd.DataFrame, np.ndarray]:
    table = pa.ipc.open_file(pa.memory_map(str(out / f"histories/{event}.arrow"))).read_all()
    offsets = pa.ipc.open_file(pa.memory_map(str(out / f"histories/{event}.offsets.arrow"))).read_all()
    return table.to_pandas(), offsets["offset"].to_numpy()


def item_id(item: int, rows: int = ITEM_ROWS) -> int:
    """The documented hash, written out on Python integers: a 32-bit mixer over the high and the low word."""

    def mixer(x: int) -> int:
        for _ in range(2):
            x = (x ^ (x >> 16)) * 0x45D9F3B % 2**32
        return x ^ (x >> 16)

    return 2 + mixer(mixer(0x9E3779B9 ^ (item >> 32)) ^ (item % 2**32)) % (rows - 2)


@pytest.fixture(scope="module")
def out(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("userbehavior") / "out"
    options = UserBehaviorOptions(item_rows=ITEM_ROWS)
    userbehavior.prepare(sample_data / "taobao_userbehavior.csv.gz", out, options)
    return out


@pytest.fixture(scope="module")
def schema(out: Path) -> FeatureSchema:
    return FeatureSchema.load(out)


@pytest.fixture(scope="module")
def rows(out: Path) -> pd.DataFrame:
    return impressions(out)


@pytest.fixture(scope="module")
def log(sample_data: Path) -> pd.DataFrame:
    """The usable events, indexed by line number, with each user's dense index and place."""
    log = pd.read_csv(sample_data / "taobao_userbehavior.csv.gz", header=None, names=COLUMNS)
    assert (len(log), log.user.nunique()) == (75_795, 752)
    log.index = pd.RangeIndex(1, len(log) + 1, name="row")
    log = log[(log.time >= START) & (log.time < END)].drop_duplicates(COLUMNS)
    log["history"] = log.user.rank(method="dense").astype(int) - 1
    log = log.reset_index().sort_values(["history", "time", "row"])
    log["place"] = log.groupby("user").cumcount() + 1
    return log.set_index("row")


def test_every_view_from_the_sixth_event_on_is_a_pair(rows: pd.DataFrame, log: pd.DataFrame) -> None:
    expected = log[(log.btag == "pv") & (log.place >= 6)]
    assert len(rows) == 2 * len(expected)
    positives = rows[rows.label == 1].set_index("row")
    negatives = rows[rows.label == 0].set_index("row")
    assert set(rows.key[rows.label == 1].str[-1]) == {"+"}
    assert set(rows.key[rows.label == 0].str[-1]) == {"-"}
    for side in (positives, negatives):
        assert sorted(side.index) == sorted(expected.index)
        same = log.loc[side.index]
        np.testing.assert_array_equal(side.request_time, same.time)
        np.testing.assert_array_equal(side.user, same.history)
        np.testing.assert_array_equal(side.history, same.history)
    np.testing.assert_array_equal(positives.item_id, [item_id(item) for item in log.loc[positives.index].item])


def test_pointers_count_exactly_what_lies_strictly_before(rows: pd.DataFrame, log: pd.DataFrame) -> None:
    for event in EVENTS:
        times = {h: np.sort(t.to_numpy()) for h, t in log[log.btag == event].groupby("history").time}
        none = np.zeros(0)
        expected = [
            np.searchsorted(times.get(h, none), t, side="left")
            for h, t in zip(rows.history, rows.request_time, strict=True)
        ]
        np.testing.assert_array_equal(rows[f"pointer_{event}"], expected, err_msg=event)


def test_no_event_of_the_future_is_inside_a_pointer(rows: pd.DataFrame, out: Path) -> None:
    for event in EVENTS:
        events, offsets = history(out, event)
        first, pointer = offsets[rows.history], rows[f"pointer_{event}"].to_numpy()
        assert (pointer <= np.diff(offsets)[rows.history]).all()
        some = pointer > 0
        newest = events.time.to_numpy()[(first + pointer - 1)[some]]
        assert (newest < rows.request_time[some]).all()
        more = first + pointer < offsets[rows.history + 1]
        following = events.time.to_numpy()[(first + pointer)[more]]
        assert (following >= rows.request_time[more]).all()


def test_histories_are_the_log(out: Path, log: pd.DataFrame, schema: FeatureSchema) -> None:
    counts = schema.provenance["counts"]
    for event in EVENTS:
        events, offsets = history(out, event)
        expected = log[log.btag == event]
        assert len(events) == len(expected) == counts[f"{event}_events"]
        np.testing.assert_array_equal(np.repeat(np.arange(752), np.diff(offsets)), expected.history)
        np.testing.assert_array_equal(events.time, expected.time)
        np.testing.assert_array_equal(events["item"], [item_id(item) for item in expected["item"]])
        assert events.category.max() < schema.tables["category"].rows


def test_negatives_are_near_views_of_other_users(rows: pd.DataFrame, log: pd.DataFrame) -> None:
    views = log[log.btag == "pv"].reset_index().sort_values(["time", "row"], ignore_index=True)
    ids = views["item"].map(item_id).to_numpy()
    users, items = views["history"].to_numpy(), views["item"].to_numpy()
    position = pd.Series(views.index, index=views["row"])
    negatives = rows[rows.label == 0]
    distances = []
    for row, user, found in zip(negatives.row, negatives.user, negatives.item_id, strict=True):
        p = position[row]
        near = np.arange(max(0, p - 200), min(len(views), p + 201))
        fits = near[(ids[near] == found) & (users[near] != user) & (items[near] != items[p])]
        assert fits.size, f"the negative of row {row} is no other user's view within 200 places"
        distances.extend(fits - p if fits.size == 1 else [])
    distances = np.array(distances)
    # Drawn evenly from both sides and all distances.
    assert abs((distances > 0).mean() - 0.5) < 0.02
    assert np.abs(distances).mean() == pytest.approx(100.5, abs=2)


def test_splits_are_by_time_and_keep_pairs_together(rows: pd.DataFrame, schema: FeatureSchema) -> None:
    sizes = rows.split.value_counts()
    assert dict(sizes) == schema.rows
    assert sizes["train"] / len(rows) == pytest.approx(0.8, abs=0.001)
    assert sizes["valid"] / len(rows) == pytest.approx(0.1, abs=0.001)
    spans = rows.groupby("split").request_time.agg(["min", "max"])
    assert spans.loc["train", "max"] < spans.loc["valid", "min"]
    assert spans.loc["valid", "max"] < spans.loc["test", "min"]
    assert (rows.groupby("split").label.mean() == 0.5).all()
    assert rows.groupby("row").split.nunique().max() == 1
    for _, split in rows.groupby("split"):
        assert split.request_time.is_monotonic_increasing
    assert schema.tasks[0].train_rate == 0.5


def test_vocabularies_know_only_the_training_time(rows: pd.DataFrame, log: pd.DataFrame, schema: FeatureSchema) -> None:
    known = log[log.time < rows[rows.split == "valid"].request_time.min()]
    positives = rows[rows.label == 1]
    for name in ("category", "user"):
        counts = known[name].value_counts()
        ranked = sorted((-n, value) for value, n in counts.items() if n >= 2)
        ids = {value: 2 + i for i, (_, value) in enumerate(ranked)}
        assert schema.tables[name].rows == 2 + len(ids)
        expected = log.loc[positives.row, name].map(lambda value, ids=ids: ids.get(value, 1))
        np.testing.assert_array_equal(positives[f"{name}_id"], expected)
    assert (positives.category_id == 1).any()
    assert (schema.tables["item"].rows, schema.tables["item"].encoding) == (ITEM_ROWS, "hash")


def test_schema(rows: pd.DataFrame, schema: FeatureSchema) -> None:
    assert [f.name for f in schema.sparse] == ["user", "item", "category"]
    assert [event.name for event in schema.events] == list(EVENTS)
    train = rows[rows.split == "train"]
    for event in schema.events:
        assert {f.name: f.table for f in event.fields} == {"item": "item", "category": "category"}
        assert event.timestamps
        assert event.mean_length == pytest.approx(train[f"pointer_{event.name}"].mean())


def test_counts_add_up(log: pd.DataFrame, rows: pd.DataFrame, schema: FeatureSchema) -> None:
    counts = schema.provenance["counts"]
    assert counts["input_rows"] == 75_795
    assert counts["input_rows"] == counts["kept_rows"] + counts["dropped_stray_times"] + counts["dropped_duplicates"]
    assert counts["kept_rows"] == len(log)
    assert counts["dropped_stray_times"] == 34
    assert counts["users"] == 752
    assert counts["users_without_impressions"] == 752 - rows.user.nunique()
    assert 2 * (counts["positives"] - counts["positives_without_negative"]) == len(rows)


def test_another_seed_draws_other_negatives(sample_data: Path, rows: pd.DataFrame, tmp_path: Path) -> None:
    raw = sample_data / "taobao_userbehavior.csv.gz"
    options = UserBehaviorOptions(item_rows=ITEM_ROWS, seed=1, threads=1)
    userbehavior.prepare(raw, tmp_path / "out", options)
    other = impressions(tmp_path / "out")
    positive = rows.label == 1
    pd.testing.assert_frame_equal(other[positive], rows[positive])
    assert (other.item_id == rows.item_id)[~positive].mean() < 0.05


def test_the_same_seed_is_the_same_data_on_any_number_of_threads(sample_data: Path, out: Path, tmp_path: Path) -> None:
    raw = sample_data / "taobao_userbehavior.csv.gz"
    userbehavior.prepare(raw, tmp_path / "out", UserBehaviorOptions(item_rows=ITEM_ROWS, threads=1))
    files = sorted(path.relative_to(out) for path in out.rglob("*.arrow"))
    assert len(files) == 3 + 2 * len(EVENTS)
    for file in files:
        assert (tmp_path / "out" / file).read_bytes() == (out / file).read_bytes(), file


def event(user: int = 1, item: int = 1, btag: object = "pv", time: object = START, category: object = 7) -> str:
    return f"{user},{item},{category},{btag},{time}\n"


def small(tmp_path: Path, text: str, **options: object) -> tuple[FeatureSchema, pd.DataFrame]:
    (tmp_path / "UserBehavior.csv").write_text(text)
    schema = userbehavior.prepare(tmp_path, tmp_path / "out", UserBehaviorOptions(**options))
    return schema, impressions(tmp_path / "out")


def two_users(n: int) -> str:
    """Two users' views in turn, one per second, every one of another item."""
    return "".join(event(user=1 + i % 2, item=i, time=START + i) for i in range(n))


def test_duplicates_stray_times_and_short_users_are_counted(tmp_path: Path) -> None:
    text = two_users(40) + event(item=39, user=2, time=START + 39) + event(time=0) + event(time=END)
    text += event(time=-5) + event(user=3, item=99, time=START + 3)
    schema, rows = small(tmp_path, text)
    counts = schema.provenance["counts"]
    assert (counts["input_rows"], counts["dropped_stray_times"], counts["dropped_duplicates"]) == (45, 3, 1)
    assert (counts["users"], counts["users_without_impressions"]) == (3, 1)
    assert len(rows) == 2 * (40 - 10)
    assert 45 not in set(rows.row)
    # User 3 has a history, of one view, that no impression points into.
    assert np.diff(history(tmp_path / "out", "pv")[1]).tolist() == [20, 20, 1]


def test_all_events_of_one_type(tmp_path: Path) -> None:
    schema, rows = small(tmp_path, two_users(60))
    assert (rows[["pointer_cart", "pointer_fav", "pointer_buy"]] == 0).all(axis=None)
    assert [event.mean_length for event in schema.events][1:] == [0.0, 0.0, 0.0]
    assert len(history(tmp_path / "out", "buy")[0]) == 0


def test_events_of_the_same_second_are_not_history(tmp_path: Path) -> None:
    text = "".join(event(user=1 + i % 2, item=i, time=START + i // 16) for i in range(64))
    _, rows = small(tmp_path, text)
    # Eight of each user's events per second: what a request sees comes in eights.
    assert set(rows.pointer_pv) == {0, 8, 16, 24}


def test_positives_without_a_partner_are_left_out_and_counted(tmp_path: Path) -> None:
    # Only user 1 looks at anything for a while: with a window of 3 the middle views have no other user near.
    text = two_users(40) + "".join(event(item=100 + i, time=START + 40 + i) for i in range(30))
    text += "".join(event(user=1 + i % 2, item=200 + i, time=START + 70 + i) for i in range(30))
    schema, rows = small(tmp_path, text, window=3)
    counts = schema.provenance["counts"]
    assert counts["positives"] == 100 - 10
    # Lines 42 … 69 of user 1 have only user 1 within three places but for those beside user 2's views.
    alone = {
        row for row in range(41, 71) if not set(range(row - 3, row + 4)) & ({*range(2, 41, 2), *range(72, 101, 2)})
    }
    assert counts["positives_without_negative"] == len(alone) > 20
    assert not alone & set(rows.row)
    assert (rows.groupby("row").size() == 2).all()


def test_item_vocabulary(tmp_path: Path) -> None:
    text = "".join(event(user=1 + i % 2, item=i // 2 % 5, time=START + i) for i in range(100)) + two_users(0)
    schema, rows = small(tmp_path, text, items="vocabulary", min_count=3)
    assert (schema.tables["item"].rows, schema.tables["item"].encoding) == (7, "vocabulary")
    assert set(rows.item_id) == set(range(2, 7))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (event(btag="share"), r"UserBehavior.csv, line 41, column 4 \(btag\): expected one of pv, cart, fav, buy"),
        (event(time="today"), r"line 41, column 5 \(time\): expected a whole number, found 'today'"),
        (event(time=""), r"line 41, column 5 \(time\): .* found nothing"),
        (event(category=-1), r"line 41, column 3 \(category\): .* found '-1'"),
        (event(category="7.0"), r"line 41, column 3 \(category\)"),
        ("1,2,3,pv\n", r"line 41: expected 5 columns parted by ',', found 4"),
        ("user,item,category,btag,time\n", r"line 41, column 1 \(user\)"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, bad: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small(tmp_path, two_users(40) + bad)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["UserBehavior.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (event(time=5) * 3, "no event lies between 2017-11-25.*set --start and --end"),
        ("".join(event(item=i, time=START + i) for i in range(20)), "15 pvs come at or after .* event number 6"),
        ("".join(event(item=i, time=START + i) for i in range(3)), "0 pvs come at or after"),
        ("".join(event(user=1 + i % 2, item=i) for i in range(40)), "the train split is empty"),
    ],
)
def test_logs_that_give_no_impressions(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small(tmp_path, text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["UserBehavior.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "yesterday"}, "start 'yesterday' is not an ISO 8601 time"),
        ({"end": "2017-12-04T00:00:00"}, "end .* lacks the offset from UTC"),
        ({"end": "2017-11-01T00:00:00+08:00"}, "must lie before end"),
        ({"train_fraction": 0.95}, "train_fraction 0.95 and valid_fraction 0.1"),
        ({"window": 0}, "window"),
        ({"item_rows": 2}, "item_rows"),
    ],
)
def test_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UserBehaviorOptions(**options)
