"""Taobao UserBehavior: a log of pv, cart, fav and buy events, prepared as next-click prediction.

Every page view (pv) from a user's ``first_event``-th event on is a positive, requested at its own time. Beside it
stands one negative at the same time: item and category of another user's pv, drawn by seed from the ``window`` pvs
before and after it in the order of time. Near draws have the popularity of the moment, so that no model wins by
knowing which items are views at all. The history is all that the user did strictly before the request.

Item ids are hashed by default: an item that training never saw is then still the same item in the history and in
the request, which is the strongest signal there is here. A vocabulary would make all such items one 'unknown'.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

import ibis
import ibis.expr.types as ir
import numpy as np

from data.builder import distinct
from data.encoding import fit_vocabulary, hash_id, hash_integer, look_up, number_values
from data.preparation import DataError, PreparationOptions, Workspace, count_rows, prepare_dataset
from data.raw import ROW, Check, Layout, find_sources, is_integer, require, stage
from kunlun.features import EventType, FeatureSchema, SparseField, Table, Task

EVENTS = ("pv", "cart", "fav", "buy")
LAYOUT = Layout(columns=("user", "item", "category", "btag", "time"), delimiter=",")
FILES = ("UserBehavior.csv", "*.csv")
MOST_ATTEMPTS = 1024


@dataclass(frozen=True)
class UserBehaviorOptions(PreparationOptions):
    """Which events count, how negatives are drawn, how the time is split and ids are encoded."""

    start: str = "2017-11-25T00:00:00+08:00"
    """Events before this time (ISO 8601 with the offset from UTC) are dropped as stray."""
    end: str = "2017-12-04T00:00:00+08:00"
    """Events from this time on are dropped as stray."""
    train_fraction: float = 0.8
    """Share of the impressions, by time, that is the train split."""
    valid_fraction: float = 0.1
    """Share of the impressions after those that is the valid split; the rest is the test split."""
    first_event: int = 6
    """A user's pvs are positives from this event of any type on, counted from 1."""
    window: int = 200
    """Negatives come from this many pvs before and as many after, in the order of time."""
    attempts: int = 32
    """Draws per positive; where none is another user's pv of another item, the positive is left out and counted."""
    seed: int = 2017
    """Seed of the negatives."""
    items: Literal["hash", "vocabulary"] = "hash"
    """Item ids: hashed to item_rows, or a vocabulary fitted on the training time."""
    item_rows: int = 2**20
    """Rows of the item table with items 'hash', the two reserved ids included."""
    min_count: int = 2
    """Categories, users (and items with a vocabulary) of fewer events in the training time are 'unknown'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.train_fraction <= 1 or not 0 <= self.valid_fraction <= 1 - self.train_fraction + 1e-9:
            raise ValueError(
                f"train_fraction {self.train_fraction} and valid_fraction {self.valid_fraction} must be shares "
                "of the impressions with a sum of at most 1, the first above 0"
            )
        if self.time_range()[0] >= self.time_range()[1]:
            raise ValueError(f"start {self.start!r} must lie before end {self.end!r}")
        if min(self.first_event, self.window, self.attempts, self.min_count) < 1 or self.item_rows < 3:
            raise ValueError("first_event, window, attempts and min_count must be at least 1, item_rows at least 3")
        if self.attempts > MOST_ATTEMPTS:
            raise ValueError(f"attempts must be at most {MOST_ATTEMPTS}, not {self.attempts}")

    def time_range(self) -> tuple[int, int]:
        """(start, end) in unix seconds."""
        times = []
        for name, text in (("start", self.start), ("end", self.end)):
            try:
                time = datetime.fromisoformat(text)
            except ValueError as error:
                raise ValueError(f"{name} {text!r} is not an ISO 8601 time") from error
            if time.tzinfo is None:
                raise ValueError(f"{name} {text!r} lacks the offset from UTC, such as +08:00")
            times.append(int(time.timestamp()))
        return times[0], times[1]


def prepare(raw: Path, out: Path, options: UserBehaviorOptions = UserBehaviorOptions()) -> FeatureSchema:
    """Prepare ``raw`` (UserBehavior.csv or its folder) into ``out``. DataError: see data.preparation."""
    sources = find_sources(raw, FILES)
    return prepare_dataset("userbehavior", sources, out, options, partial(_build, options=options))


def _build(workspace: Workspace, options: UserBehaviorOptions) -> FeatureSchema:
    raw = stage(workspace, LAYOUT, workspace.sources)
    raw = require(workspace, raw, _checks(raw.table))
    log = _clean(workspace, raw.table, options)
    users = number_values(workspace, log, "user", "history")
    n_users = count_rows(users)
    log = workspace.save(log.join(users, "user"), "log")

    views = workspace.save(with_pointers(log), "views")
    positives = views.filter(views.place > options.first_event - 1)
    pairs = _draw_negatives(workspace, views, positives, options)
    train_end, valid_end = _cuts(pairs, options)
    workspace.counts["users"] = n_users
    workspace.counts["users_without_impressions"] = n_users - count_rows(pairs.select("user").distinct())

    known = log.filter(log.time < train_end)
    vocabularies = {
        name: fit_vocabulary(workspace, known[name], name, options.min_count)
        for name in ("user", "category", *(("item",) if options.items == "vocabulary" else ()))
    }
    tables = {"item": Table(rows=options.item_rows, encoding="hash")}
    tables |= {name: vocabulary.table for name, vocabulary in vocabularies.items()}
    schema = FeatureSchema(
        name="userbehavior",
        tasks=(Task("click", 0.0),),
        dense=(),
        sparse=tuple(SparseField(name, name) for name in ("user", "item", "category")),
        tables=tables,
        events=tuple(
            EventType(event, (SparseField("item", "item"), SparseField("category", "category"))) for event in EVENTS
        ),
        users=True,
        request_times=True,
    )
    workspace.say(f"fitted vocabularies on the events of the training time; {n_users:,} users")

    impressions = look_up(_impressions(pairs), {name: (name, v) for name, v in vocabularies.items()})
    item_id = impressions["id:item"] if "item" in vocabularies else _item_hash(impressions.item, options)
    wide = impressions.select(
        "request_time",
        "history",
        "key",
        ROW,
        *(f"pointer:{event}" for event in EVENTS),
        **{
            "user": impressions.history,
            "label:click": impressions.label,
            "sparse:user": impressions["id:user"],
            "sparse:item": item_id,
            "sparse:category": impressions["id:category"],
        },
    )
    splits = {
        "train": wide.filter(wide.request_time < train_end),
        "valid": wide.filter(wide.request_time >= train_end, wide.request_time < valid_end),
        "test": wide.filter(wide.request_time >= valid_end),
    }
    for split, part in splits.items():
        ordered = part.order_by("request_time", ROW, ibis.desc("label:click"))
        summary = workspace.writer.write_split(split, schema, workspace.batches(ordered))
        workspace.counts[f"{split}_rows"] = summary.rows
        workspace.say(f"wrote {split}: {summary.rows:,} rows")

    events = look_up(log, {name: (name, v) for name, v in vocabularies.items() if name != "user"})
    events = events.mutate(item_id=events["id:item"] if "item" in vocabularies else _item_hash(events.item, options))
    for event in schema.events:
        part = events.filter(events.btag == event.name).order_by("history", "time", ROW)
        part = part.select("history", "time", item=part.item_id, category=part["id:category"])
        count = workspace.writer.write_history(event, tables, n_users, workspace.batches(part))
        workspace.counts[f"{event.name}_events"] = count
    workspace.say(f"wrote the histories of {n_users:,} users")
    return schema


def _checks(raw: ir.Table) -> list[Check]:
    numbers = [
        Check(name, is_integer(raw[name], allow_negative=name == "time"), "a whole number")
        for name in ("user", "item", "category", "time")
    ]
    return [*numbers, Check("btag", raw.btag.isin(EVENTS), "one of " + ", ".join(EVENTS))]


def _clean(workspace: Workspace, raw: ir.Table, options: UserBehaviorOptions) -> ir.Table:
    """Typed rows within the time range, each once: an exact repetition of an earlier row is dropped."""
    start, end = options.time_range()
    numbers = {name: raw[name].try_cast("int64") for name in ("user", "item", "category", "time")}
    typed = workspace.save(raw.select(ROW, "btag", **numbers), "typed")
    within = typed.filter(typed.time >= start, typed.time < end)
    log = workspace.save(distinct(within), "unique")
    total, inside, kept = (count_rows(table) for table in (typed, within, log))
    workspace.counts.update(dropped_stray_times=total - inside, dropped_duplicates=inside - kept, kept_rows=kept)
    workspace.say(f"checked; dropped {total - inside:,} stray times and {inside - kept:,} duplicates, kept {kept:,}")
    if not kept:
        raise DataError(
            f"{workspace.sources[0]}: no event lies between {options.start} and {options.end}; set --start and --end"
        )
    return log


def with_pointers(log: ir.Table) -> ir.Table:
    """The pvs of the log with what came before them.

    ``place`` of the pv among its user's events from 1, ``position`` among all pvs from 0, both by (time, row);
    ``pointer:<event>`` how many events of the type the user had strictly before the pv's second.
    """
    in_order = ibis.window(group_by="user", order_by=[log.time, log[ROW]])
    before = ibis.range_window(preceding=(None, 1), group_by="user", order_by="time")
    pointers = {
        f"pointer:{event}": (log.btag == event).cast("int64").sum().over(before).fill_null(0) for event in EVENTS
    }
    places = log.mutate(place=ibis.row_number().over(in_order) + 1, **pointers)
    views = places.filter(places.btag == "pv")
    return views.mutate(position=ibis.row_number().over(ibis.window(order_by=[views.time, views[ROW]])))


def _draw_negatives(
    workspace: Workspace, views: ir.Table, positives: ir.Table, options: UserBehaviorOptions
) -> ir.Table:
    """``positives`` with ``negative_item`` and ``negative_category``; those for whom every draw fails are left out.

    A draw is one of the pvs at most ``window`` places away in the order of time, chosen by a hash of (seed, place,
    attempt); it holds if it is another user's, of another item. The first that holds is taken.
    """
    others = views.select(
        drawn_position="position", drawn_user="user", negative_item="item", negative_category="category"
    )
    last = count_rows(views) - 1
    total = left = count_rows(positives)
    found, remaining = [], positives
    # Nearly every first draw holds, so the others are made together, and only for the positives that are left.
    for first, end in ((0, 1), (1, options.attempts)):
        if not left or first >= end:
            break
        draws = remaining.mutate(attempt=ibis.range(first, end).unnest())
        lowest = ibis.greatest(draws.position - options.window, 0)
        others_near = ibis.greatest(ibis.least(draws.position + options.window, last) - lowest, 1)
        hashed = hash_integer(draws.position * MOST_ATTEMPTS + draws.attempt, options.seed)
        draws = draws.mutate(drawn=lowest + hashed % others_near)
        # The place of the pv itself is not among those to draw from.
        draws = draws.mutate(drawn=draws.drawn + ibis.ifelse(draws.drawn >= draws.position, 1, 0))
        draws = draws.join(others, draws.drawn == others.drawn_position)
        draws = draws.filter(draws.user != draws.drawn_user, draws["item"] != draws.negative_item)
        in_turn = ibis.row_number().over(ibis.window(group_by=ROW, order_by="attempt"))
        draws = draws.mutate(turn=in_turn).filter(lambda t: t.turn == 0)
        draws = draws.drop("turn", "attempt", "drawn", "drawn_position", "drawn_user")
        found.append(workspace.save(draws, f"negatives-{first}"))
        remaining = workspace.save(remaining.anti_join(found[-1], ROW), f"remaining-{first}")
        left = count_rows(remaining)
    workspace.counts.update(positives=total, positives_without_negative=left)
    workspace.say(f"drew a negative beside {total - left:,} of {total:,} positives")
    if total == left:
        raise DataError(
            f"{workspace.sources[0]}: no impression can be made: {total:,} pvs come at or after their user's "
            f"event number {options.first_event}, none has another user's pv near; more users or rows are needed"
        )
    return ibis.union(*found) if len(found) > 1 else found[0]


def _cuts(pairs: ir.Table, options: UserBehaviorOptions) -> tuple[int, int]:
    """The request times that begin valid and test: impressions of one second, so both of a pair, stay together."""
    seconds = pairs.group_by("time").aggregate(rows=lambda t: t.count()).order_by("time").to_pyarrow()
    times, up_to = seconds["time"].to_numpy(), seconds["rows"].to_numpy().cumsum()
    shares = np.array([options.train_fraction, options.train_fraction + options.valid_fraction])
    first = np.searchsorted(up_to, (shares * up_to[-1] + 1e-6).astype(np.int64), side="right")
    begin = [int(times[place]) if place < len(times) else int(times[-1]) + 1 for place in first]
    return begin[0], begin[1]


def _impressions(pairs: ir.Table) -> ir.Table:
    """Two rows per pair: the positive (key "<row>+") and the negative ("<row>-")."""
    shared = ["user", "history", ROW, *(f"pointer:{event}" for event in EVENTS)]
    row = pairs[ROW].cast("string")
    positive = pairs.select(*shared, "item", "category", request_time="time", label=1, key=row + "+")
    negative = pairs.select(
        *shared, item="negative_item", category="negative_category", request_time="time", label=0, key=row + "-"
    )
    return ibis.union(positive, negative)


def _item_hash(item: ir.IntegerColumn, options: UserBehaviorOptions) -> ir.IntegerValue:
    return hash_id(hash_integer(item), options.item_rows)
