"""Prepared Taobao ads against the raw files: everything a model is handed for a sample of users, worked out again.

The expected values come from plain pandas and NumPy over the CSVs, with nothing of the preparation: what counts as
train, which users there are, every vocabulary (all rows are counted, not only those of the sample), the price's mean
and deviation, the exact repetitions in the log, and for each impression the events strictly before it. The prepared
side is read as training reads it, with histories uncut. Any difference is an error that names the impression.

CSVs are read in chunks and the log is parted by user on disk, so memory does not grow with the log.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.reader import PreparedSplit
from data.taobao import TaobaoOptions
from kunlun.features import TIME, Batch, FeatureSchema

CHUNK_ROWS = 1_000_000
PART_BYTES = 2**26  # of the log's text for each part on disk
BATCH_ROWS = 64  # whole histories are long
BTAGS = ("pv", "cart", "fav", "buy")
AD = ("cate_id", "campaign_id", "customer", "brand")
NOTHING = -1  # raw ids are not negative
MISSING, UNKNOWN, FIRST = 0, 1, 2
EVENT = np.dtype([(name, np.int64) for name in ("user", "time", "btag", "cate", "brand", "row")])


class Difference(RuntimeError):
    """The prepared data is not what the raw files give."""


@dataclass
class Impressions:
    """What one pass over raw_sample.csv gives. ``splits``: rows of each; ``by_*``: impressions of train."""

    users: np.ndarray
    splits: dict[str, int]
    by_user: pd.Series
    by_ad: pd.Series
    by_pid: pd.Series


@dataclass
class Log:
    """The distinct usable events: those of the sampled users, and how often train has each value."""

    events: dict[int, np.ndarray] = field(default_factory=dict)
    cate: pd.Series = field(default_factory=lambda: pd.Series(dtype=np.int64))
    brand: pd.Series = field(default_factory=lambda: pd.Series(dtype=np.int64))
    kept: int = 0


@dataclass(frozen=True)
class Days:
    """Unix seconds of the days' beginnings in Shanghai."""

    start: int
    valid_day: int
    test_day: int
    end: int

    @classmethod
    def of(cls, options: TaobaoOptions) -> Days:
        names = ("start", "valid_day", "test_day", "end")
        return cls(*(int(pd.Timestamp(getattr(options, name), tz="Asia/Shanghai").timestamp()) for name in names))

    def within(self, time: pd.Series) -> pd.Series:
        return (time >= self.start) & (time < self.end)

    def split(self, time: int) -> str:
        return "train" if time < self.valid_day else "valid" if time < self.test_day else "test"


def check(raw: Path, prepared: Path, users: int, options: TaobaoOptions | None = None) -> dict[str, int]:
    """Compare all impressions of ``users`` users drawn at random; returns how much was compared.

    ``options``: those of the preparation. Difference: anything differs.
    """
    options = options or TaobaoOptions()
    days = Days.of(options)
    schema = FeatureSchema.load(prepared)
    impressions = count_impressions(raw, days)
    for split, rows in impressions.splits.items():
        _same(f"rows of {split}", rows, schema.rows[split])
    sample = np.random.default_rng(0).choice(impressions.users, min(users, len(impressions.users)), replace=False)
    log = read_log(raw, days, impressions.users, set(sample.tolist()))
    _same("events kept", log.kept, schema.provenance["counts"]["behavior_log_kept"])

    ads = _read(raw / "ad_feature.csv", "adgroup_id")
    profiles = _read(raw / "user_profile.csv", "userid")
    vocabularies = {
        table: _vocabulary(counts, options.min_count)
        for table, counts in _table_counts(impressions, log, ads, profiles).items()
    }
    for table, vocabulary in vocabularies.items():
        _same(f"rows of table {table}", FIRST + len(vocabulary), schema.tables[table].rows)
    expected = Expected(schema, impressions.users, ads, profiles, log, vocabularies, _price(impressions, ads, options))

    compared = {"users": len(sample), "impressions": 0, "events": 0, "values": 0}
    by_split: dict[str, dict[int, Any]] = {split: {} for split in impressions.splits}
    for row in _rows_of(raw, days, sample):
        by_split[days.split(row.time_stamp)][row.Index] = row
    for split, wanted in by_split.items():
        _compare_split(prepared, split, wanted, expected, compared)
    return compared


def count_impressions(raw: Path, days: Days) -> Impressions:
    users = np.zeros(0, np.int64)
    splits = dict.fromkeys(("train", "valid", "test"), 0)
    counts = {name: pd.Series(dtype=np.int64) for name in ("user", "adgroup_id", "pid")}
    for chunk in pd.read_csv(raw / "raw_sample.csv", chunksize=CHUNK_ROWS):
        chunk = chunk[days.within(chunk.time_stamp)]
        users = np.union1d(users, chunk.user.to_numpy())
        train = chunk[chunk.time_stamp < days.valid_day]
        splits["train"] += len(train)
        splits["test"] += int((chunk.time_stamp >= days.test_day).sum())
        splits["valid"] += len(chunk) - len(train) - int((chunk.time_stamp >= days.test_day).sum())
        counts = {name: _add(seen, train[name]) for name, seen in counts.items()}
    return Impressions(users, splits, counts["user"], counts["adgroup_id"], counts["pid"])


def read_log(raw: Path, days: Days, users: np.ndarray, sample: set[int]) -> Log:
    """Parts by user first, so that exact repetitions meet in memory."""
    source = raw / "behavior_log.csv"
    parts = 1 + source.stat().st_size // PART_BYTES
    log = Log()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(part) for part in range(parts)]
        for chunk in pd.read_csv(source, chunksize=CHUNK_ROWS, keep_default_na=False, na_values=["NULL", ""]):
            chunk = chunk[days.within(chunk.time_stamp) & chunk.user.isin(users)]
            events = np.empty(len(chunk), EVENT)
            events["user"], events["time"], events["row"] = chunk.user, chunk.time_stamp, chunk.index
            events["btag"] = chunk.btag.map({btag: i for i, btag in enumerate(BTAGS)})
            events["cate"], events["brand"] = chunk.cate.fillna(NOTHING), chunk.brand.fillna(NOTHING)
            for part, path in enumerate(paths):
                with path.open("ab") as file:
                    events[events["user"] % parts == part].tofile(file)
        for path in paths:
            _add_part(log, np.fromfile(path, EVENT), days, sample)
    return log


def _add_part(log: Log, events: np.ndarray, days: Days, sample: set[int]) -> None:
    what = [name for name in EVENT.names or () if name != "row"]
    events = events[np.lexsort([events["row"], *(events[name] for name in what)])]
    repeated = np.zeros(len(events), bool)
    repeated[1:] = (events[what][1:] == events[what][:-1]) if len(events) else False
    events = events[~repeated]
    log.kept += len(events)
    train = events[events["time"] < days.valid_day]
    log.cate = _add(log.cate, pd.Series(train["cate"][train["cate"] != NOTHING]))
    log.brand = _add(log.brand, pd.Series(train["brand"][train["brand"] != NOTHING]))
    chosen = events[np.isin(events["user"], list(sample))]
    # Events of one second keep the order of the file.
    chosen = chosen[np.lexsort((chosen["row"], chosen["time"], chosen["user"]))]
    cuts = np.flatnonzero(np.diff(chosen["user"])) + 1
    log.events |= {int(own["user"][0]): own for own in np.split(chosen, cuts) if len(own)}


def _add(counts: pd.Series, values: pd.Series) -> pd.Series:
    return counts.add(values.value_counts(), fill_value=0).astype(np.int64)


def _read(path: Path, key: str) -> pd.DataFrame:
    """A table of whole numbers (but for the price) by its key; what is missing is null."""
    table = pd.read_csv(path, keep_default_na=False, na_values=["NULL", ""])
    table.columns = table.columns.str.strip()
    whole = {name: "Int64" for name in table.columns if name != "price"}
    return table.astype(whole).set_index(key)


def _table_counts(
    impressions: Impressions, log: Log, ads: pd.DataFrame, profiles: pd.DataFrame
) -> dict[str, pd.Series]:
    """Table → how often each raw value occurs in train: in its impressions, and in the behaviour before its end."""

    def spread(by: pd.Series, values: pd.Series) -> pd.Series:
        """Counts by key → counts by the value that the key's row has."""
        known = values.dropna()
        return by.reindex(known.index, fill_value=0).groupby(known).sum()

    counts = {"userid": impressions.by_user, "adgroup_id": impressions.by_ad, "pid": impressions.by_pid}
    counts |= {name: spread(impressions.by_user, profiles[name]) for name in profiles.columns}
    counts |= {name: spread(impressions.by_ad, ads[name]) for name in AD}
    counts["category"] = counts.pop("cate_id").add(log.cate, fill_value=0)
    counts["brand"] = counts["brand"].add(log.brand, fill_value=0)
    return counts


def _vocabulary(counts: pd.Series, min_count: int) -> dict[Any, int]:
    """Raw value → id: by falling count, then by value."""
    known = counts[counts >= min_count]
    values = sorted(zip(-known.to_numpy(np.int64), known.index.tolist(), strict=True))
    return {value: FIRST + i for i, (_, value) in enumerate(values)}


@dataclass(frozen=True)
class Price:
    """How a price becomes a dense value."""

    log: bool
    mean: float
    std: float

    def __call__(self, price: float | None) -> float:
        """Missing: the mean, which is 0."""
        return 0.0 if price is None or np.isnan(price) else float((self.plain(price) - self.mean) / self.std)

    def plain(self, price: Any) -> Any:
        return np.sign(price) * np.log1p(np.abs(price)) if self.log else price


def _price(impressions: Impressions, ads: pd.DataFrame, options: TaobaoOptions) -> Price:
    shown = impressions.by_ad.reindex(ads.index, fill_value=0)[ads.price.notna()].to_numpy()
    plain = Price(options.dense == "log", 0.0, 1.0).plain(ads.price.dropna().to_numpy(np.float64))
    if not shown.sum():
        return Price(options.dense == "log", 0.0, 1.0)
    mean = float(np.average(plain, weights=shown))
    std = float(np.sqrt(np.average((plain - mean) ** 2, weights=shown)))
    return Price(options.dense == "log", mean, std or 1.0)


def _rows_of(raw: Path, days: Days, sample: np.ndarray) -> Iterator[Any]:
    """Impressions of the sampled users; ``Index`` is the row from 1, as the prepared key."""
    for chunk in pd.read_csv(raw / "raw_sample.csv", chunksize=CHUNK_ROWS):
        chunk.index += 1
        yield from chunk[chunk.user.isin(sample) & days.within(chunk.time_stamp)].itertuples()


@dataclass(frozen=True)
class Expected:
    """What the raw files give for an impression."""

    schema: FeatureSchema
    users: np.ndarray
    ads: pd.DataFrame
    profiles: pd.DataFrame
    log: Log
    vocabularies: dict[str, dict[Any, int]]
    price: Price

    def sparse(self, row: Any) -> list[int]:
        values: dict[str, Any] = {"userid": row.user, "adgroup_id": row.adgroup_id, "pid": row.pid}
        for table, key in ((self.ads, row.adgroup_id), (self.profiles, row.user)):
            if key in table.index:
                values |= table.loc[key].to_dict()
        return [self._id(field.table, values.get(field.name)) for field in self.schema.sparse]

    def dense(self, row: Any) -> float:
        return self.price(self.ads.price[row.adgroup_id] if row.adgroup_id in self.ads.index else None)

    def before(self, row: Any, btag: str) -> np.ndarray:
        events = self.log.events.get(row.user, np.zeros(0, EVENT))
        return events[(events["btag"] == BTAGS.index(btag)) & (events["time"] < row.time_stamp)]

    def event_ids(self, table: str, values: np.ndarray) -> np.ndarray:
        return np.array([self._id(table, None if value == NOTHING else value) for value in values.tolist()], np.int64)

    def _id(self, table: str, value: Any) -> int:
        return MISSING if value is None or value is pd.NA else self.vocabularies[table].get(value, UNKNOWN)


def _compare_split(
    prepared: Path, split: str, wanted: dict[int, Any], expected: Expected, compared: dict[str, int]
) -> None:
    """Every row of the split that belongs to the sample, once."""
    data = PreparedSplit(prepared, expected.schema.with_max_length(2**40), split, share_histories=False)  # type: ignore[arg-type]
    sampled = np.unique(np.searchsorted(expected.users, [row.user for row in wanted.values()]))
    seen: list[int] = []
    for first in range(0, len(data), CHUNK_ROWS):
        chunk = np.arange(first, min(first + CHUNK_ROWS, len(data)))
        users = data.columns.take("user", data.columns.locate(chunk))
        rows = chunk[np.isin(users, sampled)]
        for start in range(0, len(rows), BATCH_ROWS):
            part = rows[start : start + BATCH_ROWS]
            keys = data.keys(part)
            assert keys is not None, "the preparation writes keys"
            batch = data.__getitems__(part)
            for i, key in enumerate(keys.to_pylist()):
                if key not in wanted:
                    raise Difference(f"{split}: row {part[i]} has the key {key}, which is no impression of the sample")
                _compare(batch, i, wanted[key], expected, compared)
                seen.append(key)
    if sorted(seen) != sorted(wanted):
        raise Difference(
            f"{split}: {len(wanted)} impressions of the sample, but {len(seen)} rows ({len(set(seen))} keys)"
        )


def _compare(batch: Batch, i: int, row: Any, expected: Expected, compared: dict[str, int]) -> None:
    where = f"impression {row.Index} of user {row.user}"
    assert batch.request_time is not None
    assert batch.user is not None
    _same(f"{where}: label", row.clk, int(batch.labels[i, 0]))
    _same(f"{where}: time", row.time_stamp, int(batch.request_time[i]))
    _same(f"{where}: user", int(np.searchsorted(expected.users, row.user)), int(batch.user[i]))
    for of, value, got in zip(expected.schema.sparse, expected.sparse(row), batch.sparse[i].tolist(), strict=True):
        _same(f"{where}: {of.name}", value, got)
    price = float(batch.dense[i, 0])
    if abs(price - expected.dense(row)) > 1e-5:
        raise Difference(f"{where}: price: the raw files give {expected.dense(row)}, the prepared data {price}")
    for event in expected.schema.events:
        before = expected.before(row, event.name)
        handed = batch.events[event.name]
        values = {TIME: before["time"], "category": before["cate"], "brand": before["brand"]}
        for name, jagged in handed.items():
            found = jagged.values[jagged.offsets[i] : jagged.offsets[i + 1]].numpy()
            _same(f"{where}: number of {event.name} events", len(before), len(found))
            want = values[name] if name == TIME else expected.event_ids(name, values[name])
            wrong = np.flatnonzero(want != found)
            if wrong.size:
                place = int(wrong[0])
                _same(f"{where}: {event.name} event {place}: {name}", int(want[place]), int(found[place]))
        compared["events"] += len(before)
        compared["values"] += len(handed) * len(before)
    compared["impressions"] += 1
    compared["values"] += 4 + len(expected.schema.sparse)


def _same(what: str, raw: int, prepared: int) -> None:
    if raw != prepared:
        raise Difference(f"{what}: the raw files give {raw}, the prepared data {prepared}")
