"""Raw Taobao ads: every impression and history of a generated set against pandas on the same four files."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from data import taobao
from data.generate import generate
from data.generate_taobao import TaobaoRaw
from data.preparation import DataError
from data.taobao import AD, EVENTS, FILES, PROFILE, SPARSE, TABLES, TaobaoOptions
from kunlun.features import FeatureSchema

HOURS_8 = 8 * 3_600
MIN_COUNT = 5


def shanghai_day(time: pd.Series) -> pd.Series:
    return pd.to_datetime(time + HOURS_8, unit="s").dt.strftime("%Y-%m-%d")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taobao") / "raw"
    generate("taobao", folder, TaobaoRaw(impressions=6_000, events=60_000, seed=5))
    return folder


@pytest.fixture(scope="module")
def out(raw: Path) -> Path:
    out = raw.parent / "out"
    taobao.prepare(raw, out, TaobaoOptions(min_count=MIN_COUNT))
    return out


@pytest.fixture(scope="module")
def schema(out: Path) -> FeatureSchema:
    return FeatureSchema.load(out)


@pytest.fixture(scope="module")
def impressions(raw: Path) -> pd.DataFrame:
    """The impression log with ads and profiles, raw values, indexed by the row number from 1."""
    ads = pd.read_csv(raw / "ad_feature.csv").astype({"brand": "Int64"})
    profiles = pd.read_csv(raw / "user_profile.csv").rename(columns=str.strip)
    profiles = profiles.astype(dict.fromkeys(PROFILE, "Int64"))
    log = pd.read_csv(raw / "raw_sample.csv")
    joined = log.merge(ads, on="adgroup_id", how="left").merge(profiles, left_on="user", right_on="userid", how="left")
    assert len(joined) == len(log)
    joined["userid"] = joined.user
    joined["day"] = shanghai_day(joined.time_stamp)
    joined["split"] = np.select([joined.day < "2017-05-12", joined.day < "2017-05-13"], ["train", "valid"], "test")
    joined.index = pd.RangeIndex(1, len(joined) + 1)
    return joined


@pytest.fixture(scope="module")
def log(raw: Path, impressions: pd.DataFrame) -> pd.DataFrame:
    """The usable behaviour: in time, of users with impressions, each row once."""
    log = pd.read_csv(raw / "behavior_log.csv").rename(columns={"cate": "category"})
    day = shanghai_day(log.time_stamp.clip(0, 2**31))
    log = log[(day >= "2017-04-22") & (day < "2017-05-14") & log.user.isin(impressions.user)]
    return log.drop_duplicates()


@pytest.fixture(scope="module")
def rows(out: Path) -> pd.DataFrame:
    parts = []
    for split in ("train", "valid", "test"):
        loaded = datasets.load_from_disk(str(out / split)).with_format("numpy")[:]
        frame = pd.DataFrame({name: loaded[name] for name in ("key", "request_time", "user", "history")})
        frame[list(SPARSE)] = loaded["sparse"]
        frame[[f"pointer_{event}" for event in EVENTS]] = loaded["pointers"]
        frame["price"], frame["label"] = loaded["dense"][:, 0], loaded["labels"][:, 0].astype(int)
        parts.append(frame.assign(split=split))
    return pd.concat(parts, ignore_index=True)


def history(out: Path, event: str) -> tuple[pd.DataFrame, np.ndarray]:
    table = pa.ipc.open_file(pa.memory_map(str(out / f"histories/{event}.arrow"))).read_all()
    offsets = pa.ipc.open_file(pa.memory_map(str(out / f"histories/{event}.offsets.arrow"))).read_all()
    return table.to_pandas(), offsets["offset"].to_numpy()


def vocabulary(train: pd.DataFrame, log: pd.DataFrame, table: str) -> dict:
    """Ids by falling count over train impressions and behaviour before the valid day, then by value."""
    values = [train[name] for name in SPARSE if TABLES[name] == table]
    if table in ("category", "brand"):
        values.append(log[shanghai_day(log.time_stamp) < "2017-05-12"][table])
    counts = pd.concat(values).dropna().value_counts()
    known = sorted((-n, value) for value, n in counts.items() if n >= MIN_COUNT)
    return {value: 2 + i for i, (_, value) in enumerate(known)}


def test_every_impression_is_there_once_in_its_split(rows: pd.DataFrame, impressions: pd.DataFrame) -> None:
    assert sorted(rows.key) == list(impressions.index)
    same = impressions.loc[rows.key]
    np.testing.assert_array_equal(rows.split, same.split)
    np.testing.assert_array_equal(rows.label, same.clk)
    np.testing.assert_array_equal(rows.request_time, same.time_stamp)
    np.testing.assert_array_equal(rows.history, impressions.user.rank(method="dense").astype(int)[rows.key] - 1)
    np.testing.assert_array_equal(rows.user, rows.history)
    for _, part in rows.groupby("split"):
        assert part.request_time.is_monotonic_increasing
    # The days are those of Shanghai: some of the test impressions are on May 12 in UTC.
    in_utc = pd.to_datetime(same.time_stamp[same.split == "test"], unit="s").dt.strftime("%m-%d")
    assert {"05-12", "05-13"} == set(in_utc)


def test_ids_are_those_of_the_joined_fields(
    rows: pd.DataFrame, impressions: pd.DataFrame, log: pd.DataFrame, schema: FeatureSchema
) -> None:
    train = impressions[impressions.split == "train"]
    same = impressions.loc[rows.key]
    for name in SPARSE:
        ids = vocabulary(train, log, TABLES[name])
        assert schema.tables[TABLES[name]].rows == 2 + len(ids), name
        expected = [0 if pd.isna(value) else ids.get(value, 1) for value in same[name]]
        np.testing.assert_array_equal(rows[name], expected, err_msg=name)
    assert 0.2 < (rows.brand == 0).mean() < 0.4  # NULL is missing, not a brand
    assert (rows.cms_segid == 0).mean() == pytest.approx(0.057, abs=0.02)  # no profile


def test_the_price_is_the_standardised_logarithm(rows: pd.DataFrame, impressions: pd.DataFrame) -> None:
    train = np.log1p(impressions.price[impressions.split == "train"])
    expected = (np.log1p(impressions.price[rows.key]) - train.mean()) / train.std(ddof=0)
    np.testing.assert_allclose(rows.price, expected, atol=1e-5)


def test_pointers_count_what_lies_strictly_before(
    rows: pd.DataFrame, impressions: pd.DataFrame, log: pd.DataFrame
) -> None:
    users = impressions.user[rows.key].to_numpy()
    ties = 0
    for event in EVENTS:
        times = {u: np.sort(t.to_numpy()) for u, t in log[log.btag == event].groupby("user").time_stamp}
        pairs = list(zip(users, rows.request_time, strict=True))
        expected = [np.searchsorted(times.get(u, ()), t, side="left") for u, t in pairs]
        np.testing.assert_array_equal(rows[f"pointer_{event}"], expected, err_msg=event)
        ties += sum(np.searchsorted(times.get(u, ()), t, side="right") for u, t in pairs) - sum(expected)
    assert ties > 0  # or nothing would tell "before" from "until"


def test_histories_are_the_behaviour_of_users_with_impressions(
    out: Path, log: pd.DataFrame, impressions: pd.DataFrame, schema: FeatureSchema
) -> None:
    train = impressions[impressions.split == "train"]
    ids = {table: vocabulary(train, log, table) for table in ("category", "brand")}
    users = np.sort(impressions.user.unique())
    for event in EVENTS:
        events, offsets = history(out, event)
        expected = log[log.btag == event].reset_index().sort_values(["user", "time_stamp", "index"])
        assert len(events) == len(expected) == schema.provenance["counts"][f"{event}_events"]
        np.testing.assert_array_equal(np.repeat(users, np.diff(offsets)), expected.user)
        np.testing.assert_array_equal(events.time, expected.time_stamp)
        for table in ids:
            np.testing.assert_array_equal(events[table], [ids[table].get(v, 1) for v in expected[table]])


def test_every_row_of_behaviour_is_accounted_for(
    out: Path, raw: Path, log: pd.DataFrame, schema: FeatureSchema
) -> None:
    counts = schema.provenance["counts"]
    parts = ("stray_times", "of_users_without_impressions", "duplicates", "kept")
    assert counts["behavior_log_input_rows"] == 60_000
    assert sum(counts[f"behavior_log_{part}"] for part in parts) == 60_000
    assert counts["behavior_log_kept"] == len(log)
    assert min(counts["behavior_log_stray_times"], counts["behavior_log_duplicates"]) > 0
    assert counts["impressions_without_profile"] > 0
    assert [source["name"] for source in schema.provenance["source"]] == [f"{name}.csv" for name in FILES]


def write(folder: Path, **changes: str) -> Path:
    """Four small files of two users and two ads; ``changes`` replaces one."""
    folder.mkdir(exist_ok=True)
    time = 1_494_000_000  # 2017-05-06 in Shanghai
    files = {
        "raw_sample": "user,time_stamp,adgroup_id,pid,nonclk,clk\n"
        + "".join(
            f"{u},{time + 60 * i},{1 + i % 2},430548_1007,{i % 2},{1 - i % 2}\n" for i in range(8) for u in (3, 7)
        ),
        "ad_feature": f"adgroup_id,{','.join(AD)},price\n1,5,6,7,NULL,9.9\n2,5,6,8,11,0.01\n",
        "user_profile": f"userid,{','.join(PROFILE)} \n3,1,2,1,3,,3,0,\n",
        "behavior_log": f"user,time_stamp,btag,cate,brand\n"
        f"3,{time},pv,5,11\n3,{time + 60},buy,5,11\n9,{time},pv,5,11\n",
    }
    for name, text in {**files, **changes}.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_a_click_sees_the_second_before_it_and_not_its_own(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw")
    schema = taobao.prepare(raw, tmp_path / "out", TaobaoOptions(min_count=1))
    loaded = datasets.load_from_disk(str(tmp_path / "out" / "train"))
    mine = sorted(zip(loaded["request_time"][:], loaded["pointers"][:], loaded["user"][:], strict=True))
    of_user_3 = [pointers for _, pointers, user in mine if user == 0]
    assert of_user_3[:3] == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1]]
    assert {tuple(pointers) for _, pointers, user in mine if user == 1} == {(0, 0, 0, 0)}
    assert schema.provenance["counts"]["behavior_log_of_users_without_impressions"] == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "raw_sample",
            "3,1494000000,1,430548_1007,1,1\n",
            r"line \d+, column 6 \(clk\): expected the opposite of nonclk",
        ),
        ("raw_sample", "3,1494000000,1,430548_1007,0,2\n", r"column 6 \(clk\): expected the label, 0 or 1, found '2'"),
        (
            "raw_sample",
            "3,May 6,1,430548_1007,0,1\n",
            r"column 2 \(time_stamp\): expected a whole number, found 'May 6'",
        ),
        ("ad_feature", "1,5,6,7,8,9.9\n", r"line 4, column 1 \(adgroup_id\): expected a adgroup_id that has not come"),
        ("ad_feature", "3,5,6,7,8,cheap\n", r"line 4, column 6 \(price\): expected a finite number or nothing, found"),
        ("user_profile", "7,x,2,1,3,,3,0,\n", r"line 3, column 2 \(cms_segid\): .*found 'x'"),
        ("behavior_log", "3,1494000000,view,5,11\n", r"line 5, column 3 \(btag\): expected one of pv, cart, fav, buy"),
    ],
)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, name: str, text: str, message: str) -> None:
    raw = write(tmp_path / "raw")
    whole = taobao.prepare(raw, tmp_path / "whole", TaobaoOptions(min_count=1))
    with (raw / f"{name}.csv").open("a") as file:
        file.write(text)
    with pytest.raises(DataError, match=rf"{name}.csv, .*{message}"):
        taobao.prepare(raw, tmp_path / "out", TaobaoOptions(min_count=1))
    assert not (tmp_path / "out").exists()
    skipped = taobao.prepare(raw, tmp_path / "out", TaobaoOptions(min_count=1, on_bad_row="skip"))
    assert (skipped.rows, skipped.tables) == (whole.rows, whole.tables)
    assert skipped.provenance["counts"][f"{name}_rejected_rows"] == 1
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv")
    assert rejected.text.tolist() == [text.strip()]
    assert rejected.file.tolist() == [f"{name}.csv"]


def test_the_folder_must_hold_all_four(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw")
    with pytest.raises(DataError, match=r"one file; give --raw the folder of raw_sample\.csv, ad_feature\.csv"):
        taobao.prepare(raw / "raw_sample.csv", tmp_path / "out")
    (raw / "user_profile.csv").unlink()
    with pytest.raises(DataError, match=r"holds none of user_profile\.csv"):
        taobao.prepare(raw, tmp_path / "out")


def test_days_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="valid_day 'Friday' is not a day such as"):
        TaobaoOptions(valid_day="Friday")
    with pytest.raises(ValueError, match="must follow each other"):
        TaobaoOptions(valid_day="2017-05-13", test_day="2017-05-12")
    raw = write(tmp_path / "raw")
    later = TaobaoOptions(start="2018-04-22", valid_day="2018-05-12", test_day="2018-05-13", end="2018-05-14")
    with pytest.raises(DataError, match="no impression lies between 2018-04-22 and 2018-05-14"):
        taobao.prepare(raw, tmp_path / "out", later)
