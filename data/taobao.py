"""Taobao display ads from the four raw files: an impression log, ads, user profiles and 22 days of behaviour.

A history is what a user viewed (pv), put in the cart, marked as favourite and bought, as category, brand and time;
an impression sees what lies strictly before it. Days are those of Asia/Shanghai: cut in UTC, the first hours of a
day would fall on the day before. Behaviour of users without impressions is left out, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Literal

import ibis
import ibis.expr.types as ir

from data.builder import Encoding, Source, build, distinct
from data.preparation import DataError, PreparationOptions, Workspace, prepare_dataset
from data.raw import ROW, Check, Layout, Raw, find_sources, is_finite_number, is_integer, require, stage
from kunlun.features import TIME, EventType, FeatureSchema, SparseField, Task

EVENTS = ("pv", "cart", "fav", "buy")
SHANGHAI = timezone(timedelta(hours=8))
MISSING = ("", "NULL")
PROFILE = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
AD = ("cate_id", "campaign_id", "customer", "brand")
FILES = ("raw_sample", "ad_feature", "user_profile", "behavior_log")
LAYOUTS = {
    "raw_sample": Layout(("user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk"), ",", True, MISSING),
    "ad_feature": Layout(("adgroup_id", *AD, "price"), ",", True, MISSING),
    "user_profile": Layout(("userid", *PROFILE), ",", True, MISSING),
    "behavior_log": Layout(("user", "time_stamp", "btag", "cate", "brand"), ",", True, MISSING),
}
SPARSE = ("userid", *PROFILE, "adgroup_id", *AD, "pid")
TABLES = {name: {"cate_id": "category"}.get(name, name) for name in SPARSE}
HISTORY_FIELDS = {"category": "cate", "brand": "brand"}


@dataclass(frozen=True)
class TaobaoOptions(PreparationOptions):
    """Which days are which split, which times are real, and how ids are encoded."""

    valid_day: str = "2017-05-12"
    """The first day, in Asia/Shanghai, of the valid split; train is all before it."""
    test_day: str = "2017-05-13"
    """The first day of the test split."""
    start: str = "2017-04-22"
    """Rows before this day are dropped as stray, and counted."""
    end: str = "2017-05-14"
    """Rows from this day on are dropped as stray, and counted."""
    min_count: int = 10
    """Values seen less often than this in train, behaviour included, are 'unknown'."""
    dense: Literal["log", "standard"] = "log"
    """The price: log(1 + price) standardised on train, or only standardised; its largest, 99999999, is no price."""

    def __post_init__(self) -> None:
        super().__post_init__()
        days = {name: self.time(name) for name in ("start", "valid_day", "test_day", "end")}
        if list(days.values()) != sorted(set(days.values())):
            raise ValueError("start, valid_day, test_day and end must follow each other, on different days")
        if self.min_count < 1:
            raise ValueError(f"min_count must be at least 1, not {self.min_count}")

    def time(self, name: str) -> int:
        """The beginning of the day of option ``name`` in Asia/Shanghai, as unix seconds."""
        text = getattr(self, name)
        try:
            return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=SHANGHAI).timestamp())
        except ValueError as error:
            raise ValueError(f"{name} {text!r} is not a day such as 2017-05-13") from error


def prepare(raw: Path, out: Path, options: TaobaoOptions = TaobaoOptions()) -> FeatureSchema:
    """Prepare the folder ``raw`` of the four files into ``out``. DataError: see data.preparation."""
    raw = Path(raw)
    if raw.is_file():
        raise DataError(f"{raw} is one file; give --raw the folder of {', '.join(f'{name}.csv' for name in FILES)}")
    sources = [find_sources(raw, (f"{name}.csv",))[0] for name in FILES]
    return prepare_dataset("taobao", sources, out, options, partial(_build, options=options))


def _build(workspace: Workspace, options: TaobaoOptions) -> FeatureSchema:
    raws = {}
    for name, path in zip(FILES, workspace.sources, strict=True):
        raw = stage(workspace, LAYOUTS[name], [path], name)
        raws[name] = require(workspace, raw, CHECKS[name](raw.table))
    impressions = _impressions(workspace, raws, options)
    log = _log(workspace, raws["behavior_log"], impressions, options)
    schema = FeatureSchema(
        name="taobao",
        tasks=(Task("click", 0.0),),
        dense=("price",),
        sparse=tuple(SparseField(name, TABLES[name]) for name in SPARSE),
        tables=dict.fromkeys(TABLES.values()),  # type: ignore[arg-type] # sizes come from the fit
        events=tuple(EventType(e, tuple(SparseField(name, name) for name in HISTORY_FIELDS)) for e in EVENTS),
        users=True,
        request_times=True,
    )
    return build(
        workspace,
        Source(
            schema,
            impressions,
            {event: log.filter(log.btag == event).drop("btag") for event in EVENTS},
            {table: Encoding("vocabulary", options.min_count) for table in TABLES.values()},
            {"price": options.dense},
            train_end=options.time("valid_day"),
        ),
    )


def _impressions(workspace: Workspace, raws: dict[str, Raw], options: TaobaoOptions) -> ir.Table:
    """Every impression with its ad and its user's profile, where there are any."""
    sample = raws["raw_sample"].table
    ads, profiles = raws["ad_feature"].table, raws["user_profile"].table
    ads = ads.select(ad="adgroup_id", **{f"ad:{name}": name for name in (*AD, "price")})
    profiles = profiles.select(profile="userid", **{f"profile:{name}": name for name in PROFILE})
    joined = sample.left_join(ads, sample.adgroup_id == ads.ad).left_join(profiles, sample.user == profiles.profile)
    time = joined.time_stamp.try_cast("int64")
    split = ibis.cases(
        (time < options.time("valid_day"), "train"), (time < options.time("test_day"), "valid"), else_="test"
    )
    numbers = {"userid": joined.user, "adgroup_id": joined.adgroup_id}
    numbers |= {name: joined[f"profile:{name}"] for name in PROFILE} | {name: joined[f"ad:{name}"] for name in AD}
    typed = joined.select(
        ROW,
        user=joined.user.try_cast("int64"),
        **{TIME: time},
        split=split,
        has_ad=joined.ad.notnull(),
        has_profile=joined.profile.notnull(),
        **{"label:click": joined.clk.try_cast("int64"), "dense:price": joined["ad:price"].try_cast("float64")},
        **{f"sparse:{name}": value.try_cast("int64") for name, value in numbers.items()},
        **{"sparse:pid": joined.pid},
    )
    typed = workspace.save(typed, "typed_impressions")
    within = typed.filter(typed[TIME] >= options.time("start"), typed[TIME] < options.time("end"))
    counts = within.aggregate(
        rows=within.count(), without_ad=(~within.has_ad).sum(), without_profile=(~within.has_profile).sum()
    )
    found = counts.to_pyarrow().to_pylist()[0]
    total = raws["raw_sample"].rows - workspace.rejects.counts.get("raw_sample", 0)
    workspace.counts["raw_sample_stray_times"] = total - found["rows"]
    workspace.counts["impressions_without_ad"] = int(found["without_ad"] or 0)
    workspace.counts["impressions_without_profile"] = int(found["without_profile"] or 0)
    workspace.say(
        f"{found['rows']:,} impressions; {workspace.counts['impressions_without_ad']:,} have no ad and "
        f"{workspace.counts['impressions_without_profile']:,} no profile"
    )
    if not found["rows"]:
        raise DataError(
            f"{workspace.sources[0]}: no impression lies between {options.start} and {options.end}; "
            "set --start, --valid_day, --test_day and --end"
        )
    return within.drop("has_ad", "has_profile")


def _log(workspace: Workspace, raw: Raw, impressions: ir.Table, options: TaobaoOptions) -> ir.Table:
    """The behaviour of users with impressions, within the time range, each row once."""
    table = raw.table
    typed = table.select(
        ROW,
        "btag",
        user=table.user.try_cast("int64"),
        **{TIME: table.time_stamp.try_cast("int64")},
        **{name: table[column].try_cast("int64") for name, column in HISTORY_FIELDS.items()},
    )
    users = impressions.select(known="user").distinct()
    joined = typed.left_join(users, typed.user == users.known)
    joined = joined.mutate(
        stray=(joined[TIME] < options.time("start")) | (joined[TIME] >= options.time("end")),
        foreign=joined.known.isnull(),
    )
    found = joined.aggregate(
        rows=joined.count(), stray=joined.stray.sum(), foreign=(joined.foreign & ~joined.stray).sum()
    )
    counts = {name: int(value or 0) for name, value in found.to_pyarrow().to_pylist()[0].items()}
    kept = joined.filter(~joined.stray, ~joined.foreign).select(*typed.columns)
    log = workspace.save(distinct(kept), "behavior")
    unique = int(log.count().to_pyarrow().as_py())
    workspace.counts |= {
        "behavior_log_stray_times": counts["stray"],
        "behavior_log_of_users_without_impressions": counts["foreign"],
        "behavior_log_duplicates": counts["rows"] - counts["stray"] - counts["foreign"] - unique,
        "behavior_log_kept": unique,
    }
    workspace.say(
        f"behaviour: dropped {counts['stray']:,} stray times, {counts['foreign']:,} rows of users without impressions, "
        f"{workspace.counts['behavior_log_duplicates']:,} duplicates; kept {unique:,}"
    )
    return log


def _new(table: ir.Table, column: str) -> Check:
    """A key may come once: the join would give an impression for each."""
    place = ibis.row_number().over(ibis.window(group_by=column, order_by=table[ROW]))
    return Check(column, place == 0, f"a {column} that has not come before")


def _whole(table: ir.Table, *columns: str, missing: bool = False, negative: bool = False) -> list[Check]:
    words = "a whole number or nothing" if missing else "a whole number"
    return [
        Check(name, is_integer(table[name], negative) | (table[name].isnull() if missing else False), words)
        for name in columns
    ]


def _check_sample(table: ir.Table) -> list[Check]:
    return [
        *_whole(table, "user", "adgroup_id"),
        *_whole(table, "time_stamp", negative=True),
        Check("nonclk", table.nonclk.isin(["0", "1"]), "0 or 1"),
        Check("clk", table.clk.isin(["0", "1"]), "the label, 0 or 1"),
        Check("clk", table.clk != table.nonclk, "the opposite of nonclk"),
    ]


def _check_ads(table: ir.Table) -> list[Check]:
    price = is_finite_number(table.price) | table.price.isnull()
    return [
        *_whole(table, "adgroup_id"),
        _new(table, "adgroup_id"),
        *_whole(table, *AD, missing=True),
        Check("price", price, "a finite number or nothing"),
    ]


def _check_profiles(table: ir.Table) -> list[Check]:
    return [*_whole(table, "userid"), _new(table, "userid"), *_whole(table, *PROFILE, missing=True)]


def _check_log(table: ir.Table) -> list[Check]:
    return [
        *_whole(table, "user"),
        *_whole(table, "time_stamp", negative=True),
        Check("btag", table.btag.isin(EVENTS), "one of " + ", ".join(EVENTS)),
        *_whole(table, *HISTORY_FIELDS.values(), missing=True),
    ]


CHECKS = {
    "raw_sample": _check_sample,
    "ad_feature": _check_ads,
    "user_profile": _check_profiles,
    "behavior_log": _check_log,
}
