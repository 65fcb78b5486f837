"""Your own tables: every prepared row against pandas; every source, split and policy."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from data.encoding import hash_integer
from data.preparation import DataError, PreparationOptions
from data.reader import PreparedSplit
from data.table import prepare
from kunlun.features import FeatureSchema

SPLITS = ("train", "valid", "test")
START = 1_700_000_000
DAY = 86_400
WIDE = """
name: shop
user: member
time: {column: at, unit: ms}
labels: {click: clicked, order: ordered}
dense: {price: log, age: standard, share: {column: ratio, transform: standard}}
sparse:
  item: {min_count: 3}
  city:
  flag: {min_count: 1}
  shop: {policy: hash, rows: 50}
bags:
  tags: {max_length: 2}
  words: {table: city, separator: "|", pooling: sum}
  seen: {table: item}
key: id
weight: worth
events:
  type: code
  types: {view: [1, 2], buy: 3}
  other_types: drop
  user: who
  time: happened
  known: reported
  fields: {item: {column: sku, table: item}, place: {table: city}}
"""


def impressions(rows: int = 400) -> pd.DataFrame:
    draw = np.random.default_rng(1)
    words = ["rome", "oslo", "bern", "kyiv", "lima"]
    frame = pd.DataFrame(
        {
            "id": [f"row-{i}" for i in range(rows)],
            "member": draw.choice(["ann", "bob", "cy", "di"], rows),
            "at": (START + draw.integers(0, 10 * DAY, rows)) * 1000 + draw.integers(0, 1000, rows),
            "clicked": draw.integers(0, 2, rows),
            "ordered": draw.random(rows) < 0.3,
            "price": np.where(draw.random(rows) < 0.2, np.nan, draw.gamma(2, 10, rows)),
            "age": draw.integers(18, 80, rows),
            "ratio": np.full(rows, 0.5),
            "item": pd.array(draw.zipf(1.4, rows) % 40, "Int64"),
            "city": draw.choice([*words, None, ""], rows),
            "flag": draw.random(rows) < 0.5,
            "shop": draw.integers(-5, 2**40, rows),
            "tags": [None if i % 7 == 0 else [int(t) for t in draw.integers(0, 9, i % 4)] for i in range(rows)],
            "words": ["|".join(draw.choice([*words, ""], i % 4)) if i % 5 else None for i in range(rows)],
            "seen": [[None, *map(int, draw.integers(0, 40, i % 3))] for i in range(rows)],
            "worth": draw.random(rows),
        }
    )
    frame.loc[::11, "item"] = pd.NA
    return frame


def events(rows: int = 1500) -> pd.DataFrame:
    draw = np.random.default_rng(2)
    happened = (START + draw.integers(-3 * DAY, 10 * DAY, rows)) * 1000 + draw.integers(0, 1000, rows)
    frame = pd.DataFrame(
        {
            "who": draw.choice(["ann", "bob", "cy", "stranger"], rows),
            "happened": happened,
            "reported": happened + draw.integers(0, 2 * DAY, rows) * 1000,
            "code": draw.choice([1, 2, 3, 4], rows),
            "sku": pd.array(draw.zipf(1.4, rows) % 40, "Int64"),
            "place": draw.choice(["rome", "oslo", "nice", None], rows),
        }
    )
    frame.loc[::13, "sku"] = pd.NA
    # Some repeat in a later row group, in another order; some are shown in the very second of a request.
    shown = impressions()
    at = shown["at"].to_numpy()[:30]
    frame.loc[:29, "who"] = shown["member"].to_numpy()[:30]
    frame.loc[:29, "reported"] = at - draw.integers(0, 1500, 30)
    frame.loc[:29, "happened"] = frame.loc[:29, "reported"] - 10
    return pd.concat([frame, frame.sample(rows // 7, random_state=3)], ignore_index=True)


def prepared(folder: Path, yaml: str, rows: pd.DataFrame, log: pd.DataFrame | None = None, **options: Any) -> Path:
    """Write the tables and the YAML, prepare them; the prepared folder."""
    folder.mkdir(exist_ok=True)
    rows.to_parquet(folder / "rows.parquet")
    if log is not None:
        log.to_parquet(folder / "log.parquet", row_group_size=500)
    (folder / "my.yaml").write_text(yaml)
    places = folder / "rows.parquet", None if log is None else folder / "log.parquet"
    prepare(*places, folder / "my.yaml", folder / "out", PreparationOptions(**options))
    return folder / "out"


def read(out: Path, split: str) -> dict[str, Any]:
    return datasets.load_from_disk(str(out / split)).with_format("arrow")[:].to_pydict()


def read_all(out: Path) -> pd.DataFrame:
    """One row per impression, indexed by key."""
    schema = FeatureSchema.load(out)
    frames = []
    for split in SPLITS:
        loaded = read(out, split)
        frame = pd.DataFrame({name: loaded[name] for name in loaded if loaded[name]}, dtype=object)
        frames.append(frame.assign(split=split))
    frame = pd.concat(frames, ignore_index=True).set_index("key")
    names = {"dense": schema.dense, "sparse": [f.name for f in schema.sparse], "labels": [t.name for t in schema.tasks]}
    names["pointers"] = [e.name for e in schema.events]
    for column, fields in names.items():
        for i, name in enumerate(fields):
            frame[f"{column}:{name}"] = frame[column].map(lambda values, i=i: values[i])
    return frame


def history(out: Path, event: str) -> tuple[pd.DataFrame, np.ndarray]:
    table = pa.ipc.open_file(str(out / f"histories/{event}.arrow")).read_all().to_pandas()
    offsets = pa.ipc.open_file(str(out / f"histories/{event}.offsets.arrow")).read_all()["offset"].to_numpy()
    return table, offsets


def vocabulary(values: list[Any], min_count: int) -> dict[Any, int]:
    counts = Counter(v for v in values if missing(v) is not None)
    known = sorted((v for v in counts if counts[v] >= min_count), key=lambda v: (-counts[v], v))
    return {value: 2 + i for i, value in enumerate(known)}


def missing(value: Any) -> Any:
    return None if value is None or value is pd.NA or value == "" or value != value else value


def cut(words: Any) -> list[str]:
    return [] if missing(words) is None else [word for word in words.split("|") if word]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("wide") / "w", WIDE, impressions(), events())


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What pandas makes of the same tables."""
    rows = impressions().set_index("id")
    rows["request"] = rows["at"] // 1000
    rows["user"] = rows["member"].rank(method="dense").astype(int) - 1
    order = np.sort(rows["request"].to_numpy())
    valid_from, test_from = order[int(0.8 * len(order))], order[int(0.9 * len(order))]
    rows["split"] = np.select([rows["request"] < valid_from, rows["request"] < test_from], ["train", "valid"], "test")
    for name in ("item", "city"):
        rows[name] = [missing(v) for v in rows[name]]
    rows["words"] = [cut(v) for v in rows["words"]]
    rows["tags"] = [[] if v is None else v[:2] for v in rows["tags"]]
    rows["seen"] = [[v for v in values if v is not None] for values in rows["seen"]]

    log = events()
    log["row"] = range(len(log))
    log["time"] = log["reported"] // 1000
    log["type"] = log["code"].map({1: "view", 2: "view", 3: "buy"})
    for name in ("sku", "place"):
        log[name] = [missing(v) for v in log[name]]
    own = log[log["type"].notna() & log["who"].isin(rows["member"])]
    once = own.drop_duplicates(["who", "reported", "happened", "code", "sku", "place"])
    counts = {
        "events_input_rows": len(log),
        "events_of_other_types": int(log["type"].isna().sum()),
        "events_of_users_without_impressions": int((log["type"].notna() & ~log["who"].isin(rows["member"])).sum()),
        "events_duplicates": len(own) - len(once),
        "events_kept": len(once),
    }
    train = rows[rows["split"] == "train"]
    seen = once[once["time"] < once["who"].map(train.groupby("member")["request"].max())]
    flat = {name: [v for values in train[name] for v in values] for name in ("tags", "words", "seen")}
    vocabularies = {
        "item": vocabulary([*train["item"], *flat["seen"], *seen["sku"]], 3),
        "city": vocabulary([*train["city"], *flat["words"], *seen["place"]], 2),
        "flag": vocabulary([int(v) for v in train["flag"]], 1),
        "tags": vocabulary(flat["tags"], 2),
    }
    return {"rows": rows, "log": once, "counts": counts, "vocabularies": vocabularies, "train": train}


def ids(values: Any, known: dict[Any, int]) -> list[int]:
    return [0 if missing(v) is None else known.get(v, 1) for v in values]


def test_rows_are_those_of_pandas(wide: Path, expected: dict[str, Any]) -> None:
    found, rows = read_all(wide), expected["rows"]
    assert sorted(found.index) == sorted(rows.index)
    rows = rows.loc[found.index]
    for mine, theirs in (("split", "split"), ("user", "user"), ("history", "user"), ("request_time", "request")):
        assert list(found[mine]) == list(rows[theirs]), mine
    assert list(found["labels:click"]) == list(rows["clicked"])
    assert list(found["labels:order"]) == list(rows["ordered"])
    np.testing.assert_allclose(found["weight"].astype(float), rows["worth"], rtol=1e-6)
    known = expected["vocabularies"]
    assert list(found["sparse:item"]) == ids(rows["item"], known["item"])
    assert list(found["sparse:city"]) == ids(rows["city"], known["city"])
    assert list(found["sparse:flag"]) == ids(rows["flag"].astype(int), known["flag"])
    assert list(found["sparse:shop"]) == [2 + hash_integer(int(v)) % 48 for v in rows["shop"]]
    for bag, table in (("tags", "tags"), ("words", "city"), ("seen", "item")):
        assert list(found[bag]) == [ids(values, known[table]) for values in rows[bag]], bag
    for split, part in found.groupby("split"):
        assert list(part["request_time"]) == sorted(part["request_time"]), split


def test_dense_values_are_standardised_on_train(wide: Path, expected: dict[str, Any]) -> None:
    found = read_all(wide)
    rows, train = expected["rows"].loc[found.index], expected["train"]
    for name, column, transform in (("price", "price", np.log1p), ("age", "age", float), ("share", "ratio", float)):
        change = np.vectorize(transform)
        mean, std = np.nanmean(change(train[column])), np.nanstd(change(train[column]))
        wanted = np.nan_to_num((change(rows[column]) - mean) / (std or 1.0))
        np.testing.assert_allclose(found[f"dense:{name}"].astype(float), wanted, atol=1e-5)


def test_histories_and_pointers_are_those_of_pandas(wide: Path, expected: dict[str, Any]) -> None:
    found, log, known = read_all(wide), expected["log"], expected["vocabularies"]
    users = dict(zip(expected["rows"]["member"], expected["rows"]["user"], strict=True))
    for event in ("view", "buy"):
        own = log[log["type"] == event].assign(history=lambda t: t["who"].map(users))
        own = own.sort_values(["history", "time", "happened", "row"])
        table, offsets = history(wide, event)
        assert list(table["time"]) == list(own["time"])
        assert list(table["item"]) == ids(own["sku"], known["item"])
        assert list(table["place"]) == ids(own["place"], known["city"])
        assert list(np.repeat(range(4), np.diff(offsets))) == list(own["history"])
        times = {user: own.loc[own["history"] == user, "time"].to_numpy() for user in range(4)}
        wanted = [int((times[u] < t).sum()) for u, t in zip(found["user"], found["request_time"], strict=True)]
        assert list(found[f"pointers:{event}"]) == wanted
        within_the_second = sum(
            (times[u] == t).sum() for u, t in zip(found["user"], found["request_time"], strict=True)
        )
        assert within_the_second > 0  # or the test would not tell < from ≤


def test_everything_is_counted(wide: Path, expected: dict[str, Any]) -> None:
    schema = FeatureSchema.load(wide)
    counts = schema.provenance["counts"]
    assert {name: counts[name] for name in expected["counts"]} == expected["counts"]
    dropped = ("events_of_other_types", "events_of_users_without_impressions", "events_duplicates", "events_kept")
    assert sum(counts[name] for name in dropped) == counts["events_input_rows"]
    assert counts["view_events"] + counts["buy_events"] == counts["events_kept"]
    assert counts["impressions_input_rows"] == sum(schema.rows.values()) == 400
    assert schema.provenance["options"]["table"]["bags"]["words"]["separator"] == "|"
    assert [(bag.name, bag.table, bag.pooling) for bag in schema.bags] == [
        ("tags", "tags", "mean"),
        ("words", "city", "sum"),
        ("seen", "item", "mean"),
    ]


def test_the_reader_hands_out_what_was_prepared(wide: Path) -> None:
    schema = FeatureSchema.load(wide).with_max_length(5)
    split = PreparedSplit(wide, schema, "train", share_histories=False)
    batch = split.__getitems__(np.arange(10))
    raw = read(wide, "train")
    assert batch.bags["tags"].values.tolist() == [i for values in raw["tags"][:10] for i in values]
    assert batch.weight is not None
    torch.testing.assert_close(batch.weight, torch.tensor(raw["weight"][:10]))
    assert batch.events["view"]["item"].max_length <= 5


TINY = "user: u\ntime: {column: t, unit: s}\nlabels: [y]\nsparse: [x]\nmin_count: 1\n"


def tiny(rows: int = 40, **columns: Any) -> pd.DataFrame:
    whole = np.arange(rows)
    return pd.DataFrame({"u": whole % 5, "t": START + whole, "y": whole % 2, "x": whole % 3, **columns})


def test_without_user_time_and_events(tmp_path: Path) -> None:
    out = prepared(tmp_path / "a", "labels: y\nsparse: [x]\nsplit: {by: row, valid: 0.2, test: 0.2}\n", tiny(200))
    schema = FeatureSchema.load(out)
    assert (schema.name, schema.users, schema.request_times, schema.events) == ("table", False, False, ())
    assert min(schema.rows.values()) > 20
    assert set(read(out, "train")) == {"labels", "sparse", "key"}
    found = read_all(out)
    assert sorted(found.index) == list(range(1, 201))
    share = {key: hash_integer(key, 0) / 2**32 for key in found.index}
    wanted = ["valid" if share[k] < 0.2 else "test" if share[k] < 0.4 else "train" for k in found.index]
    assert list(found["split"]) == wanted


def test_a_user_is_in_one_split(tmp_path: Path) -> None:
    yaml = TINY + "split: {by: user, valid: 0.3, test: 0.3, seed: 4}\n"
    rows = tiny(300, u=[f"u{i % 30}" for i in range(300)])
    found = read_all(prepared(tmp_path / "a", yaml, rows))
    assert found.groupby("user")["split"].nunique().max() == 1
    assert found["split"].nunique() == 3
    other = read_all(prepared(tmp_path / "b", yaml.replace("seed: 4", "seed: 5"), rows))
    assert dict(other.groupby("user")["split"].first()) != dict(found.groupby("user")["split"].first())


def test_a_vocabulary_is_fitted_on_what_training_sees(tmp_path: Path) -> None:
    """By user: what only users of other splits did is unknown, not an id that training never moves."""
    yaml = TINY + "split: {by: user, valid: 0.3, test: 0.3, seed: 4}\nevents: {fields: [x]}\n"
    rows = tiny(300, u=np.arange(300) % 30)
    log = pd.DataFrame({"u": np.arange(30), "t": START - 5, "x": np.arange(30) + 1000})
    out = prepared(tmp_path / "a", yaml, rows, log)
    found = read_all(out)
    of_train = found.groupby("user")["split"].first().map(lambda split: split == "train")
    table, _ = history(out, "event")
    assert list(table["x"] > 1) == [of_train[user] for user in range(30)]


@pytest.mark.parametrize("point", ["2023-11-14T23:13:50+01:00", "2023-11-14T22:13:50Z"])
def test_a_split_at_given_times(tmp_path: Path, point: str) -> None:
    out = prepared(tmp_path / "a", TINY + f"split: {{valid: {point}, test: '2023-11-14T22:14:00+00:00'}}\n", tiny(60))
    assert FeatureSchema.load(out).rows == {"train": 30, "valid": 10, "test": 20}
    out = prepared(tmp_path / "b", TINY + f"split: {{valid: {point}}}\n", tiny(60))
    assert FeatureSchema.load(out).rows == {"train": 30, "valid": 30, "test": 0}


def test_rows_of_one_second_are_in_one_split(tmp_path: Path) -> None:
    out = prepared(tmp_path / "a", TINY, tiny(100, t=START + np.repeat([0, 1, 2, 3, 4], [70, 12, 3, 7, 8])))
    assert FeatureSchema.load(out).rows == {"train": 70, "valid": 15, "test": 15}


def test_splits_by_a_column_and_by_files(tmp_path: Path) -> None:
    rows = tiny(40, part=["train"] * 20 + ["dev"] * 10 + ["held"] * 5 + ["out"] * 5)
    split = "split: {by: column, column: part, valid: dev, test: [held, out]}\n"
    by_column = read_all(prepared(tmp_path / "a", TINY + split, rows))
    assert Counter(by_column["split"]) == {"train": 20, "valid": 10, "test": 10}
    folder = tmp_path / "files"
    (folder / "late").mkdir(parents=True)
    rows[:12].to_parquet(folder / "train-2.parquet")
    rows[12:20].to_parquet(folder / "train-10.parquet")
    rows[20:30].to_parquet(folder / "dev.parquet")
    rows[30:].to_parquet(folder / "late/part.parquet")
    (tmp_path / "f.yaml").write_text(TINY + "split: {by: files, train: train-*, valid: dev.parquet, test: late}\n")
    prepare(folder, None, tmp_path / "f.yaml", tmp_path / "out")
    by_files = read_all(tmp_path / "out")
    pd.testing.assert_frame_equal(by_files, by_column)
    names = [source["name"] for source in FeatureSchema.load(tmp_path / "out").provenance["source"]]
    assert names == ["train-2.parquet", "train-10.parquet", "dev.parquet", "part.parquet"]


@pytest.mark.parametrize(
    ("values", "time"),
    [
        (lambda t: t, "{column: t, unit: s}"),
        (lambda t: t + 0.75, "{column: t, unit: s}"),
        (lambda t: t.astype(str), "{column: t, unit: s}"),
        (lambda t: t * 1000 + 999, "{column: t, unit: ms}"),
        (lambda t: (t * 10**9).astype(str), "{column: t, unit: ns}"),
        (lambda t: pd.to_datetime(t, unit="s"), "{column: t, unit: timestamp, zone: '+00:00'}"),
        (lambda t: pd.to_datetime(t, unit="s", utc=True).tz_convert("Asia/Tokyo"), "{column: t, unit: timestamp}"),
        (
            lambda t: pd.to_datetime(t, unit="s", utc=True).tz_convert("Asia/Shanghai").tz_localize(None),
            "{column: t, unit: timestamp, zone: Asia/Shanghai}",
        ),
        (lambda t: pd.to_datetime(t, unit="s").strftime("%Y-%m-%dT%H:%M:%S.5Z"), "{column: t, unit: timestamp}"),
        (
            lambda t: (pd.to_datetime(t, unit="s") + pd.Timedelta(hours=8)).strftime("%Y-%m-%d %H:%M:%S"),
            "{column: t, unit: timestamp, zone: '+08:00'}",
        ),
    ],
)
def test_times_of_every_kind(tmp_path: Path, values: Any, time: str) -> None:
    given = values(pd.Index(START + np.arange(40)))
    out = prepared(tmp_path / "a", TINY.replace("{column: t, unit: s}", time), tiny(t=given))
    assert list(read_all(out)["request_time"]) == [START + i for i in range(40)]


def test_text_files_are_read_like_parquet(tmp_path: Path) -> None:
    rows = tiny(60).astype(str)
    rows["x"] = [['a,"b"', "ü\nz", "\t", ""][i % 4] for i in range(60)]
    yaml = TINY + "dense: [d]\nkey: k\n"
    rows["d"], rows["k"] = [["1.5", "", "-2e3"][i % 3] for i in range(60)], [f"k{i}" for i in range(60)]
    wanted = read_all(prepared(tmp_path / "a", yaml, rows))
    assert Counter(wanted["sparse:x"]) == {0: 15, 2: 15, 3: 15, 4: 15}
    for name, delimiter in (("r.csv", ","), ("r.tsv.gz", "\t"), ("r.csv.zst", ",")):
        text = ("\ufeff" + rows.to_csv(sep=delimiter, index=False)).encode()
        with pa.output_stream(str(tmp_path / name), compression="detect") as file:
            file.write(text)
        prepare(tmp_path / name, None, tmp_path / "a/my.yaml", tmp_path / f"out-{name}")
        pd.testing.assert_frame_equal(read_all(tmp_path / f"out-{name}"), wanted)


def test_categories_of_unlike_types_meet_as_text(tmp_path: Path) -> None:
    yaml = TINY.replace("[x]", "{x: {table: t}, z: {table: t}}") + "events: {fields: {x: {table: t}}}\n"
    log = pd.DataFrame({"u": [str(i % 5) for i in range(40)], "t": START - 9, "x": ["7", "8"] * 20})
    out = prepared(tmp_path / "a", yaml, tiny(x=7, z=pd.Categorical(["8"] * 40)), log)
    found = read_all(out)
    (seven,), (eight,) = set(found["sparse:x"]), set(found["sparse:z"])
    assert {seven, eight} == {2, 3}
    assert set(history(out, "event")[0]["x"]) == {seven, eight}
    assert set(found["pointers:event"]) == {2}  # each user's events are two, four times over


def test_large_unsigned_numbers_stay_apart(tmp_path: Path) -> None:
    big = np.array([2**64 - 1, 2**63 + 5, 2**63 - 1, 3] * 10, np.uint64)
    keys = np.arange(2**63, 2**63 + 40, dtype=np.uint64)
    found = read_all(prepared(tmp_path / "a", TINY + "key: k\n", tiny(x=big, u=big, k=keys)))
    assert Counter(found["sparse:x"]) == {2: 10, 3: 10, 4: 10, 5: 10}
    assert found["user"].nunique() == 4
    assert set(found.index) == {str(2**63 + i) for i in range(40)}


def test_a_folder_of_parquet_is_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    (folder / "_temporary").mkdir(parents=True)
    rows = tiny(40)
    rows[:20].to_parquet(folder / "part-1.parquet")
    rows[20:].to_parquet(folder / "part-2.parquet")
    rows.to_parquet(folder / "_temporary/part-1.parquet")
    (folder / "_SUCCESS").touch()
    (tmp_path / "my.yaml").write_text(TINY)
    prepare(folder, None, tmp_path / "my.yaml", tmp_path / "out")
    pd.testing.assert_frame_equal(read_all(tmp_path / "out"), read_all(prepared(tmp_path / "a", TINY, rows)))


def test_the_description_is_part_of_what_was_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(tmp_path / "a", TINY, tiny())
    prepared(tmp_path / "a", "# a remark\n" + TINY, tiny())
    assert "already prepared" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"with other options.*--overwrite"):
        prepared(tmp_path / "a", TINY.replace("min_count: 1", "min_count: 2"), tiny())


@pytest.mark.slow
def test_spark_gives_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("pyspark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    rows, log = impressions(60), events(150)
    for engine in ("duckdb", "spark"):
        prepared(tmp_path / engine, WIDE, rows, log, engine=engine)
    ours, theirs = tmp_path / "duckdb/out", tmp_path / "spark/out"
    for split in SPLITS:
        assert read(ours, split) == read(theirs, split)
    for path in sorted((ours / "histories").iterdir()):
        assert path.read_bytes() == (theirs / "histories" / path.name).read_bytes(), path.name
    counts = [FeatureSchema.load(out).provenance["counts"] for out in (ours, theirs)]
    assert counts[0] == counts[1]
