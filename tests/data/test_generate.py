"""Generated raw files: the layouts to the letter, every quirk's share, the signal, and that preparation takes them."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import cli
from data import criteo, generate_ads, generate_criteo, generate_log, generate_taobao, taobao_x1, userbehavior
from data import taobao as taobao_ads
from data.generate import LAYOUTS, Draws, blocks, generate, options_of, share_out, zipf
from data.generate_ads import CATEGORY_LIFT, PROFILE_FIELDS, World
from data.generate_criteo import CATEGORICALS, INTEGERS, CriteoRaw, CriteoX1Raw, CriteoX4Raw
from data.generate_log import UserBehaviorRaw
from data.generate_taobao import TaobaoRaw, TaobaoX1Raw
from data.preparation import DataError
from kunlun.configuration import PROJECT_ROOT, ConfigError

START, END = 1_492_790_400, 1_494_691_200  # 2017-04-22 and 05-14 in China
SMALL = {
    "taobao": TaobaoRaw(impressions=300, events=5_000),
    "taobao-x1": TaobaoX1Raw(rows=300),
    "userbehavior": UserBehaviorRaw(rows=3_000),
    "criteo": CriteoRaw(rows=300),
    "criteo-x1": CriteoX1Raw(rows=300),
    "criteo-x4": CriteoX4Raw(rows=300),
}


def about(share: float, rows: int, draws: float = 1) -> object:
    """Equal to the share up to five standard deviations of a mean of ``rows`` draws, each repeated ``draws`` times."""
    return pytest.approx(share, abs=5 * (share * (1 - share) * draws / rows) ** 0.5)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def taobao(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "taobao"
    generate("taobao", out, TaobaoRaw(impressions=30_000, events=300_000, ads=5_000, categories=600, brands=3_000))
    return out


@pytest.fixture(scope="module")
def impressions(taobao: Path) -> pd.DataFrame:
    return pd.read_csv(taobao / "raw_sample.csv")


@pytest.fixture(scope="module")
def log(taobao: Path) -> pd.DataFrame:
    return pd.read_csv(taobao / "behavior_log.csv")


@pytest.fixture(scope="module")
def ads(taobao: Path) -> pd.DataFrame:
    return pd.read_csv(taobao / "ad_feature.csv", dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def profiles(taobao: Path) -> pd.DataFrame:
    return pd.read_csv(taobao / "user_profile.csv", dtype=str, keep_default_na=False)


def test_taobao_headers_are_those_of_the_real_files(taobao: Path) -> None:
    headers = {path.name: path.open().readline() for path in taobao.iterdir()}
    assert headers == {
        "raw_sample.csv": "user,time_stamp,adgroup_id,pid,nonclk,clk\n",
        "ad_feature.csv": "adgroup_id,cate_id,campaign_id,customer,brand,price\n",
        "user_profile.csv": "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
        "occupation,new_user_class_level \n",
        "behavior_log.csv": "user,time_stamp,btag,cate,brand\n",
    }
    assert tuple(headers["user_profile.csv"].strip().split(",")[1:]) == PROFILE_FIELDS


def test_taobao_impressions(impressions: pd.DataFrame, ads: pd.DataFrame) -> None:
    assert len(impressions) == 30_000
    assert (impressions.clk + impressions.nonclk == 1).all()
    assert impressions.clk.mean() == about(0.0514, 30_000)
    assert set(impressions.pid) == {"430548_1007", "430539_1007"}
    assert not impressions.duplicated(["user", "time_stamp", "adgroup_id"]).any()
    assert set(impressions.adgroup_id) <= set(ads.adgroup_id.astype(int))
    days = pd.to_datetime(impressions.time_stamp + 8 * 3600, unit="s").dt.strftime("%m-%d").value_counts()
    assert sorted(days.index) == [f"05-{day:02}" for day in range(6, 14)]
    assert (days / 30_000).to_numpy() == pytest.approx(0.125, abs=0.001)
    assert not impressions.time_stamp.is_monotonic_increasing
    assert not impressions.user.is_monotonic_increasing


def test_taobao_ads(ads: pd.DataFrame) -> None:
    assert len(ads) == ads.adgroup_id.nunique() == 5_000
    assert (ads.brand == "NULL").mean() == about(0.29, 5_000)
    assert ads.brand[ads.brand != "NULL"].str.fullmatch(r"[1-9]\d*").all()
    assert ads.price.str.fullmatch(r"(0|[1-9]\d*)\.(0|\d?[1-9])").all()
    price = ads.price.astype(float)
    assert (price.min(), price.max()) == (0.01, 99_999_999)
    assert 100 < price.median() < 250
    assert price.quantile(0.99) > 10 * price.median()
    assert ads.groupby("campaign_id").customer.nunique().max() == 1


def test_taobao_profiles(profiles: pd.DataFrame, impressions: pd.DataFrame) -> None:
    rows = len(profiles)
    assert profiles.userid.is_unique
    assert (profiles.pvalue_level == "").mean() == about(0.54, rows)
    assert (profiles["new_user_class_level "] == "").mean() == about(0.32, rows)
    assert (~impressions.user.isin(profiles.userid.astype(int))).mean() == pytest.approx(0.057, abs=0.005)
    values = {name: set(profiles[name]) - {""} for name in profiles.columns}
    assert values["final_gender_code"] == {"1", "2"}
    assert values["pvalue_level"] == {"1", "2", "3"}
    assert values["new_user_class_level "] == {"1", "2", "3", "4"}
    assert values["age_level"] <= set("0123456")
    assert profiles.cms_group_id.astype(int).max() <= 12
    assert profiles.cms_segid.astype(int).max() <= 96


def test_taobao_behaviour(log: pd.DataFrame) -> None:
    assert len(log) == 300_000
    shares = log.btag.value_counts(normalize=True)
    for btag, share in {"pv": 0.95, "cart": 0.024, "fav": 0.014, "buy": 0.013}.items():
        assert shares[btag] == pytest.approx(share, abs=0.002)
    assert log.duplicated().mean() == pytest.approx(0.07, abs=0.005)
    stray = log.time_stamp[(log.time_stamp < START) | (log.time_stamp >= END)]
    assert 5 <= len(stray) <= 100
    assert stray.min() < 0
    assert pd.to_datetime(stray, unit="s").dt.year.between(1902, 2032).all()
    lengths = log.groupby("user").size()
    assert lengths.quantile(0.99) > 5 * lengths.median()
    for column in ("cate", "brand"):
        counts = log[column].value_counts().to_numpy()
        assert counts[:10].sum() > 20 * counts[len(counts) // 2 :][:10].sum()
    # Users come in blocks, and within a block in no order.
    assert (np.diff(log.user[:1000]) == 0).mean() < 0.1


def test_taobao_clicks_follow_what_was_met_strictly_before(
    impressions: pd.DataFrame, ads: pd.DataFrame, log: pd.DataFrame
) -> None:
    met = log[(log.time_stamp >= START) & (log.time_stamp < END)]
    ads = ads.assign(adgroup_id=ads.adgroup_id.astype(int), cate_id=ads.cate_id.astype(int))
    rows = impressions.merge(ads, on="adgroup_id")
    first = met.groupby(["user", "cate"]).time_stamp.min().rename("category").reset_index()
    rows = rows.merge(first, how="left", left_on=["user", "cate_id"], right_on=["user", "cate"])
    first = met.assign(brand=met.brand.astype(str)).groupby(["user", "brand"]).time_stamp.min().rename("first_brand")
    rows = rows.merge(first.reset_index(), how="left", on=["user", "brand"])
    category, brand = rows.category < rows.time_stamp, rows.first_brand < rows.time_stamp
    neither, only_category = rows.clk[~category & ~brand], rows.clk[category & ~brand]
    both = rows.clk[category & brand]
    assert min(len(neither), len(only_category), len(both)) > 1_000
    assert only_category.mean() / neither.mean() == pytest.approx(1 + CATEGORY_LIFT, rel=0.3)
    assert both.mean() / only_category.mean() == pytest.approx(7 / 3, rel=0.25)
    # Equal seconds happen, so that it shows whether a reader takes them for the past.
    assert (rows.category == rows.time_stamp).sum() + (rows.first_brand == rows.time_stamp).sum() > 10


def test_the_world_judges_its_impressions_as_the_files_say() -> None:
    world = World(Draws(3), TaobaoRaw(impressions=200, events=2_000, users=20).size())
    events = world.events(0, 20)
    shown = world.impressions(0, 20, events)
    lift = world._lift(shown, events)
    brands = world.brand_ids[events.category, events.thing]
    for i in range(200):
        past = (events.user == shown.user[i]) & (events.time >= START) & (events.time < min(shown.time[i], END))
        category = world.ad_categories[shown.ad[i]] in events.category[past]
        brand = world.ad_brands[shown.ad[i]] in brands[past]
        assert lift[i] == 1 + 2 * category + 4 * brand
    assert len(set(lift)) >= 3


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_seed_and_options_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    options = SMALL[name]
    for run in ("first", "second"):
        generate(name, tmp_path / run, options)
    generate(name, tmp_path / "other", options_of(name)(**{**vars(options), "seed": 1}))
    first, second, other = (contents(tmp_path / run) for run in ("first", "second", "other"))
    assert first == second
    assert first.keys() == other.keys()
    assert all(first[file] != other[file] for file in first)


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_do_not_hang_on_how_many_are_made_at_a_time(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(name, tmp_path / "whole", SMALL[name])
    for module in (generate_log, generate_ads, generate_criteo, generate_taobao):
        monkeypatch.setattr(module, "BLOCK_ROWS", 70)
    generate(name, tmp_path / "pieces", SMALL[name])
    whole, pieces = contents(tmp_path / "whole"), contents(tmp_path / "pieces")
    if name.startswith("taobao"):  # whose rows are in no order within a block of users
        whole, pieces = ({file: sorted(text.split()) for file, text in files.items()} for files in (whole, pieces))
    assert whole == pieces


@pytest.mark.parametrize(("compress", "ending"), [("gzip", ".gz"), ("zstd", ".zst")])
def test_compressed_files_hold_the_same(compress: str, ending: str, tmp_path: Path) -> None:
    plain, packed = UserBehaviorRaw(rows=1_000), UserBehaviorRaw(rows=1_000, compress=compress)
    for run, options in (("plain", plain), ("packed", packed), ("again", packed)):
        generate("userbehavior", tmp_path / run, options)
    path = tmp_path / "packed" / f"UserBehavior.csv{ending}"
    with pa.input_stream(str(path), compression="detect") as stream:
        assert stream.read() == (tmp_path / "plain" / "UserBehavior.csv").read_bytes()
    assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert path.stat().st_size < (tmp_path / "plain" / "UserBehavior.csv").stat().st_size / 2


def test_userbehavior(tmp_path: Path) -> None:
    generate("userbehavior", tmp_path / "out", UserBehaviorRaw(rows=100_000))
    names = ["user", "item", "category", "btag", "time"]
    log = pd.read_csv(tmp_path / "out" / "UserBehavior.csv", header=None, names=names)
    assert len(log) == 100_000
    assert log.user.drop_duplicates().is_unique
    assert (log.user != log.user.shift()).sum() == log.user.nunique()  # whole users …
    assert log.user.astype(str).is_monotonic_increasing  # … as the real file sorts them
    assert (log.groupby("user").time.diff().dropna() >= 0).all()
    assert 800 < log.user.nunique() <= 990
    start, end = userbehavior.UserBehaviorOptions().time_range()
    assert 10 <= ((log.time < start) | (log.time >= end)).sum() <= 100
    assert 5 <= log.duplicated().sum() <= 200
    assert log.groupby("item").category.nunique().max() == 1
    assert log.btag.value_counts(normalize=True)["pv"] == about(0.8958, 100_000)
    assert set(log.btag) == {"pv", "cart", "fav", "buy"}
    # What is to be learnt: users stay in a category and come back to what they have seen.
    assert 0.3 < (log.category == log.groupby("user").category.shift()).mean() < 0.6
    assert 0.2 < log.duplicated(["user", "item"]).mean() < 0.5


def test_criteo(tmp_path: Path) -> None:
    generate("criteo", tmp_path / "out", CriteoRaw(rows=20_000))
    path = tmp_path / "out" / "train.txt"
    rows = pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False)
    assert rows.shape == (20_000, 40)
    assert set(rows[0]) == {"0", "1"}
    assert (rows[0] == "1").mean() == about(0.256, 20_000)
    for column, integer in enumerate(INTEGERS, start=1):
        assert rows[column].str.fullmatch(r"|-?\d+").all()
        assert (rows[column] == "").mean() == about(integer.missing, 20_000)
    assert rows[2].astype(int).min() == -2
    for column, categorical in enumerate(CATEGORICALS, start=14):
        assert rows[column].str.fullmatch(r"|[0-9a-f]{8}").all()
        assert (rows[column] == "").mean() == about(categorical.missing, 20_000)
        there = rows[column][rows[column] != ""]
        assert there.value_counts(normalize=True).iloc[0] == about(categorical.top, len(there))
        assert there.nunique() <= categorical.values
    assert (rows[1] == "").equals(rows[10] == "")
    clicks = (rows[0] == "1").groupby(rows[27]).agg(["mean", "size"])
    rates = clicks["mean"][clicks["size"] > 500]
    assert rates.max() - rates.min() > 0.1


def test_criteo_terabyte_days(tmp_path: Path) -> None:
    generate("criteo", tmp_path / "out", CriteoRaw(rows=30_001, days=3, compress="gzip"))
    assert sorted(contents(tmp_path / "out")) == ["day_0.gz", "day_1.gz", "day_2.gz"]
    days = [gzip.decompress(content).splitlines() for content in contents(tmp_path / "out").values()]
    assert [len(day) for day in days] == [10_000, 10_000, 10_001]
    assert {line.count(b"\t") for day in days for line in day} == {39}
    assert np.mean([line[:1] == b"1" for day in days for line in day]) == about(0.03, 30_001)


@pytest.mark.parametrize(
    ("name", "sizes"), [("criteo-x1", (7_199, 1_800, 1_001)), ("criteo-x4", (8_000, 1_000, 1_000))]
)
def test_criteo_benchmark_versions(name: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    generate(name, tmp_path / "out", options_of(name)(rows=10_000))
    files = ("train.csv", "valid.csv", "test.csv")
    parts = [pd.read_csv(tmp_path / "out" / file, dtype=str, keep_default_na=False) for file in files]
    assert tuple(len(part) for part in parts) == sizes
    names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    assert all(list(part.columns) == names for part in parts)
    rows = pd.concat(parts)
    assert (rows.label == "1").mean() == about(0.256, 10_000)
    integers, categoricals = rows[names[1:14]], rows[names[14:]]
    if name == "criteo-x1":
        assert categoricals.apply(lambda c: c.str.fullmatch(r"\d+")).all(axis=None)
        assert integers.apply(lambda c: c.str.fullmatch(r"[01]|0\.\d{1,6}")).all(axis=None)
    else:
        assert categoricals.apply(lambda c: c.str.fullmatch(r"|[0-9a-f]{8}")).all(axis=None)
        assert integers.apply(lambda c: c.str.fullmatch(r"|-?\d+")).all(axis=None)


def test_taobao_x1(tmp_path: Path) -> None:
    generate("taobao-x1", tmp_path / "out", TaobaoX1Raw(rows=4_000))
    parts = [
        pd.read_csv(tmp_path / "out" / file, dtype=str, keep_default_na=False) for file in ("train.csv", "test.csv")
    ]
    assert [len(part) for part in parts] == [3_500, 500]
    assert all(tuple(part.columns) == taobao_x1.LAYOUT.columns for part in parts)
    rows = pd.concat(parts)
    assert (rows.clk == "1").mean() == about(0.0514, 4_000)
    lengths = rows.btag_his.map(lambda codes: len(codes.split("^")) if codes else 0)
    assert (lengths.max(), lengths.median()) == (50, 50)
    assert lengths.min() < 50
    for column in ("cate_his", "brand_his"):
        assert (rows[column].map(lambda ids: len(ids.split("^")) if ids else 0) == lengths).all()
    codes = pd.Series("^".join(rows.btag_his[rows.btag_his != ""]).split("^")).value_counts(normalize=True)
    assert set(codes.index) == {"1", "2", "3", "4"}
    assert codes["1"] == pytest.approx(0.95, abs=0.01)
    assert (set(rows.btag), set(rows.pid)) == ({"1"}, {"0", "1"})
    assert (rows.brand == "0").any()
    assert (rows.pvalue_level == "0").mean() > 0.3


def test_preparation_takes_the_files(tmp_path: Path) -> None:
    generate("criteo", tmp_path / "criteo", CriteoRaw(rows=2_000))
    schema = criteo.prepare(tmp_path / "criteo", tmp_path / "prepared/criteo", criteo.CriteoOptions(threads=1))
    assert schema.rows == {"train": 1_600, "valid": 200, "test": 200}

    generate("taobao-x1", tmp_path / "taobao-x1", TaobaoX1Raw(rows=800, compress="zstd"))
    options = taobao_x1.TaobaoX1Options(threads=1)
    schema = taobao_x1.prepare(tmp_path / "taobao-x1", tmp_path / "prepared/taobao-x1", options)
    assert sum(schema.rows.values()) == 800
    assert schema.rows["test"] == 100

    generate("taobao", tmp_path / "taobao", TaobaoRaw(impressions=800, events=16_000))
    options = taobao_ads.TaobaoOptions(threads=1)
    schema = taobao_ads.prepare(tmp_path / "taobao", tmp_path / "prepared/taobao", options)
    assert schema.rows == {"train": 600, "valid": 100, "test": 100}

    generate("userbehavior", tmp_path / "userbehavior", UserBehaviorRaw(rows=20_000, compress="gzip"))
    options = userbehavior.UserBehaviorOptions(threads=1)
    schema = userbehavior.prepare(tmp_path / "userbehavior", tmp_path / "prepared/userbehavior", options)
    counts = schema.provenance["counts"]
    assert counts["input_rows"] == 20_000
    assert counts["dropped_stray_times"] > 0
    assert counts["dropped_duplicates"] > 0
    assert sum(schema.rows.values()) > 20_000


@pytest.mark.parametrize("name", LAYOUTS)
def test_ten_rows(name: str, tmp_path: Path) -> None:
    options = TaobaoRaw(impressions=10, events=10) if name == "taobao" else options_of(name)(rows=10)
    generate(name, tmp_path / "out", options)
    rows = {file: text.count(b"\n") for file, text in contents(tmp_path / "out").items()}
    expected = {
        "taobao": {"raw_sample.csv": 11, "behavior_log.csv": 11, "ad_feature.csv": 11, "user_profile.csv": 2},
        "taobao-x1": {"train.csv": 10, "test.csv": 2},
        "userbehavior": {"UserBehavior.csv": 10},
        "criteo": {"train.txt": 10},
        "criteo-x1": {"train.csv": 8, "valid.csv": 2, "test.csv": 3},
        "criteo-x4": {"train.csv": 9, "valid.csv": 2, "test.csv": 2},
    }
    assert rows == expected[name]


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_what_is_at_out_is_left_alone(taken: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if taken == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "mine").touch()
    with pytest.raises(DataError, match="is not an empty directory, so it is left alone"):
        generate("criteo", out, CriteoRaw(rows=10))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    generate("criteo", tmp_path / "out", CriteoRaw(rows=10))
    assert list(contents(tmp_path / "out")) == ["train.txt"]


def test_a_run_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        assert [path.name for path in tmp_path.iterdir()] == [f"out.partial-{os.getpid()}-once"]
        raise OSError("no space left")

    monkeypatch.setattr(generate_criteo, "_raw", fail)
    monkeypatch.setattr("secrets.token_hex", lambda size: "once")
    with pytest.raises(DataError, match="no space left"):
        generate("criteo", tmp_path / "out", CriteoRaw(rows=10))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("criteo", {"rows": 0}, "rows must be at least 1"),
        ("criteo", {"rows": 2, "days": 3}, "one for each of 3 days"),
        ("criteo", {"seed": -1}, "seed must not be negative"),
        ("criteo-x1", {"rows": 9}, "at least 10"),
        ("taobao-x1", {"rows": 9}, "at least 10"),
        ("taobao", {"impressions": 0}, "impressions must be at least 1"),
        ("taobao", {"users": -1}, "users must be at least 1, or 0"),
        ("taobao", {"impressions": 10, "events": 10, "users": 21}, "at most impressions"),
        ("taobao", {"events": 1_000_000, "users": 100}, "give more users"),
        ("taobao", {"brands": 2**21}, "brands at most"),
        ("userbehavior", {"items": -1}, "items and categories"),
        ("userbehavior", {"users": 1, "rows": 1_000_000}, "give more users"),
    ],
)
def test_impossible_options(name: str, options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        options_of(name)(**options)


def test_the_number_of_users_follows_the_larger_file() -> None:
    assert TaobaoRaw(impressions=2_300, events=10).size().users == 100
    assert TaobaoRaw(impressions=10, events=633_000).size().users == 1_000


def test_shares_and_blocks() -> None:
    assert share_out(10, np.array([1.0, 1, 2])).tolist() == [0, 2, 5, 10]
    assert list(blocks(np.array([0, 3, 3, 9, 10, 30]), 5)) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    ranks = np.bincount(zipf(np.linspace(0, 1, 100_000, endpoint=False), 50), minlength=50)
    assert len(ranks) == 50
    assert ranks[0] / ranks[9] == pytest.approx(7.3, rel=0.05)  # ln(2) / ln(11 / 10)


def test_draws_are_the_same_from_any_place_on() -> None:
    draws = Draws(5)
    np.testing.assert_array_equal(draws.uniform("x", 0, 100)[37:], draws.uniform("x", 37, 63))
    assert not np.isin(draws.uniform("x", 0, 100), draws.uniform("y", 0, 100)).any()


def test_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "cli.py"), "generate", "userbehavior", "--out", "raw", "--rows=500"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "done: raw · rows: UserBehavior.csv 500" in done.stdout
    generate("userbehavior", tmp_path / "same", UserBehaviorRaw(rows=500))
    assert contents(tmp_path / "raw") == contents(tmp_path / "same")
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 2
    assert again.stderr.startswith("error: raw exists and is not an empty directory")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["taobap", "--out=x"], "did you mean 'taobao'"),
        (["taobao"], "generate taobao needs --out DIR"),
        (["taobao", "--out=x", "--impresions=3"], "--impresions: .*did you mean 'impressions'"),
        (["criteo", "--out=x", "--rows=few"], "--rows: expected a whole number"),
        (["criteo", "--out=x", "--rows=0"], "generate criteo: rows must be at least 1"),
    ],
)
def test_a_wrong_command_line_is_refused(argv: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        cli.run(["generate", *argv])


def test_help_lists_layouts_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in LAYOUTS)
    for name in LAYOUTS:
        assert cli.run(["generate", name, "--help"]) == 0
        text = capsys.readouterr().out
        assert "--out" in text
        assert "Seed of all random values" in text
