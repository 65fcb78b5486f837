"""TaobaoAd_x1: Taobao display-ad clicks with ready-made histories of at most 50 events, without times.

A row carries its own history as ``^``-joined lists (btag_his, cate_his, brand_his), so a history here is a row's
own, and its pointers take in all of it. The type of an event is its btag code: 1 pv, 3 cart, 4 fav, 2 buy.

*Assumption*: the lists run from the oldest event to the newest. The data set's description does not say so; in its
rows the share of events in the advertised category rises towards the end of the lists.

The data set has no official validation split: a share of train is taken, by a hash of the row number. The last
column, btag, is left out: it has one value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import ibis
import ibis.expr.types as ir

from data.encoding import WORD, Standardisation, fit_vocabulary, hash_integer, look_up, number_values
from data.preparation import PreparationOptions, Workspace, count_rows, prepare_dataset
from data.raw import ROW, Check, Layout, Raw, find_sources, is_finite_number, is_integer, require, stage
from kunlun.features import EventType, FeatureSchema, SparseField, Task

CODES = {"pv": "1", "cart": "3", "fav": "4", "buy": "2"}
HISTORY_FIELDS = {"category": "cate_his", "brand": "brand_his"}
SPARSE = (
    "userid",
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
    "adgroup_id",
    "cate_id",
    "campaign_id",
    "customer",
    "brand",
    "pid",
)
TABLES = {name: {"cate_id": "category"}.get(name, name) for name in SPARSE}
LAYOUT = Layout(
    columns=("clk", "btag_his", "cate_his", "brand_his", *SPARSE[:-1], "price", "pid", "btag"),
    delimiter=",",
    header=True,
)
ROWS_PER_QUERY = 131_072


@dataclass(frozen=True)
class TaobaoX1Options(PreparationOptions):
    """How TaobaoAd_x1 is split and encoded."""

    valid_fraction: float = 0.1
    """Share of the rows (of train.csv, where there is a test.csv) that is the valid split."""
    test_fraction: float = 0.1
    """Share of the rows that is the test split, where the source is one file; with test.csv that is the test split."""
    seed: int = 2017
    """Seed of the split."""
    min_count: int = 10
    """Values seen less often than this in train, its histories included, are 'unknown'."""
    dense: Literal["log", "standard"] = "standard"
    """The price: standardised on train, or its logarithm, log(1 + price), standardised."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.valid_fraction, self.test_fraction) < 0 or self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction {self.valid_fraction} and test_fraction {self.test_fraction} must be shares "
                "that leave some rows to train"
            )
        if self.min_count < 1:
            raise ValueError(f"min_count must be at least 1, not {self.min_count}")


def prepare(raw: Path, out: Path, options: TaobaoX1Options = TaobaoX1Options()) -> FeatureSchema:
    """Prepare ``raw`` (one CSV, or the folder of train.csv and test.csv) into ``out``.

    DataError: see data.preparation.
    """
    raw = Path(raw)
    sources = find_sources(raw, ("train.csv",))
    if raw.is_dir():
        sources += find_sources(raw, ("test.csv",))
    return prepare_dataset("taobao-x1", sources, out, options, partial(_build, options=options))


def _build(workspace: Workspace, options: TaobaoX1Options) -> FeatureSchema:
    raw = stage(workspace, LAYOUT, workspace.sources)
    raw = require(workspace, raw, _checks(raw.table))
    rows = workspace.view(_typed(raw, options), "typed")
    users = number_values(workspace, rows, "userid", "user")
    events = workspace.save(exploded(rows), "events")
    train, train_events = rows.filter(rows.split == "train"), events.filter(events.split == "train")
    workspace.say(f"checked; {raw.rows:,} rows have {count_rows(events):,} events")

    vocabularies = {}
    for field, table in TABLES.items():
        values = train.select(value=field)
        if table in HISTORY_FIELDS:
            values = ibis.union(values, train_events.select(value=table))
        vocabularies[table] = fit_vocabulary(workspace, values.value, table, options.min_count)
    price = Standardisation.fit(workspace, train.price, options.dense)
    workspace.statistics["dense"] = {"price": price.provenance()}
    tables = {name: vocabulary.table for name, vocabulary in vocabularies.items()}
    schema = FeatureSchema(
        name="taobao-x1",
        tasks=(Task("click", 0.0),),
        dense=("price",),
        sparse=tuple(SparseField(field, table) for field, table in TABLES.items()),
        tables=tables,
        events=tuple(
            EventType(event, tuple(SparseField(name, name) for name in HISTORY_FIELDS), timestamps=False)
            for event in CODES
        ),
        users=True,
    )
    workspace.say(f"fitted {len(vocabularies)} vocabularies on train")

    encoded = look_up(rows, {field: (field, vocabularies[table]) for field, table in TABLES.items()})
    encoded = encoded.join(users, "userid")
    wide = encoded.select(
        "split",
        "history",
        "user",
        key=encoded[ROW],
        **{"label:click": encoded.clk, "dense:price": price.apply(encoded.price)},
        **{f"sparse:{field}": encoded[f"id:{field}"] for field in SPARSE},
        **{f"pointer:{event}": _occurrences(encoded.btag_his, code) for event, code in CODES.items()},
    )
    for split in ("train", "valid", "test"):
        part = workspace.view(wide.filter(wide.split == split), split)
        batches = workspace.batches_by_range(part, ["history"], 0, raw.rows, ROWS_PER_QUERY)
        summary = workspace.writer.write_split(split, schema, batches)
        workspace.counts[f"{split}_rows"] = summary.rows
        workspace.say(f"wrote {split}: {summary.rows:,} rows")

    events = look_up(events, {name: (name, vocabularies[name]) for name in HISTORY_FIELDS})
    for event in schema.events:
        part = events.filter(events.code == CODES[event.name])
        part = part.select("history", "place", **{name: part[f"id:{name}"] for name in HISTORY_FIELDS})
        batches = workspace.batches_by_range(part, ["history", "place"], 0, raw.rows, ROWS_PER_QUERY)
        workspace.counts[f"{event.name}_events"] = workspace.writer.write_history(event, tables, raw.rows, batches)
    workspace.say("wrote the histories")
    return schema


def exploded(rows: ir.Table) -> ir.Table:
    """One row per event of the rows' histories: history, split, place in the list from 0, code, category, brand."""
    rows = rows.filter(rows.btag_his.notnull())
    # Through a comma, because some engines read the separator as a regular expression, where ^ has a meaning.
    lists = {name: rows[column].fill_null("").replace("^", ",").split(",") for name, column in HISTORY_FIELDS.items()}
    rows = rows.select("history", "split", codes=rows.btag_his.replace("^", ",").split(","), **lists)
    places = rows.mutate(place=ibis.range(rows.codes.length()).unnest())
    fields = {name: places[name][places.place].nullif("") for name in HISTORY_FIELDS}
    return places.select("history", "split", "place", code=places.codes[places.place], **fields)


def _checks(raw: ir.Table) -> list[Check]:
    codes = ", ".join(f"{code} ({event})" for event, code in CODES.items())
    known = raw.btag_his.isnull() | raw.btag_his.re_search(r"^[1-4](\^[1-4])*$")
    lists = [
        Check(
            column,
            ibis.ifelse(
                raw.btag_his.isnull(),
                raw[column].isnull(),
                (_occurrences(raw[column], "^") == _occurrences(raw.btag_his, "^"))
                & raw[column].fill_null("").re_search(r"^[0-9^]*$"),
            ),
            "as many whole numbers, joined by ^, as btag_his has codes",
        )
        for column in HISTORY_FIELDS.values()
    ]
    integers = [
        Check(name, is_integer(raw[name], allow_negative=False) | raw[name].isnull(), "a whole number or nothing")
        for name in SPARSE
        if name != "userid"
    ]
    return [
        Check("clk", raw.clk.isin(["0", "1"]), "the label, 0 or 1"),
        Check("btag_his", known, f"the codes {codes} joined by ^"),
        *lists,
        Check("userid", is_integer(raw.userid, allow_negative=False), "a whole number"),
        *integers,
        Check("price", is_finite_number(raw.price) | raw.price.isnull(), "a finite number or nothing"),
    ]


def _typed(raw: Raw, options: TaobaoX1Options) -> ir.Table:
    """Numbers parsed, ``split`` and ``history`` (the row's number from 0) added."""
    table = raw.table
    draw = hash_integer(table[ROW], options.seed)
    valid = int(options.valid_fraction * (WORD + 1))
    if len(raw.files) > 1:
        split = ibis.cases((table[ROW] > raw.files[0][1], "test"), (draw < valid, "valid"), else_="train")
    else:
        test = int(options.test_fraction * (WORD + 1))
        split = ibis.cases((draw < valid, "valid"), (draw < valid + test, "test"), else_="train")
    return table.select(
        ROW,
        "btag_his",
        *HISTORY_FIELDS.values(),
        *SPARSE,
        clk=table.clk.try_cast("int64"),
        price=table.price.try_cast("float64"),
        history=table[ROW] - 1,
        split=split,
    )


def _occurrences(text: ir.StringValue, character: str) -> ir.IntegerValue:
    """How often a character stands in a text; 0 in a missing one."""
    text = text.fill_null("")
    return text.length() - text.replace(character, "").length()
