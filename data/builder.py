"""From impressions and events to a prepared data set: what every data set with users, times and a log shares.

A data set's module cleans its raw rows and names the columns; here the encoders are fitted on train, the histories
are written once per user, and every impression gets its pointers, strictly before its time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import ibis
import ibis.expr.types as ir

from data.bags import attach, write_ids
from data.encoding import (
    Standardisation,
    Vocabulary,
    fit_vocabulary,
    hash_id,
    hash_integer,
    hash_text,
    look_up,
    number_values,
)
from data.pointers import write_pointers
from data.preparation import Workspace, count_rows
from data.prepared import SPLITS
from data.raw import ROW
from kunlun.features import TIME, FeatureSchema, Table


@dataclass(frozen=True)
class Encoding:
    """How the values of one table become ids: a vocabulary fitted on train, or feature hashing into ``rows``."""

    kind: Literal["vocabulary", "hash"] = "vocabulary"
    min_count: int = 1
    rows: int = 2**20


@dataclass(frozen=True)
class Source:
    """Cleaned rows.

    schema: the draft, without table sizes.
    impressions: ``row``, ``split``, ``label:<task>``, ``dense:<name>`` (null = missing), ``sparse:<field>`` (raw
        values, null = missing), ``bag:<field>`` (how many values), and ``user``, ``time`` (unix seconds), ``weight``
        and ``key`` where there are any.
    events: event type → ``row``, ``user``, ``time``, the fields' raw values, and ``happened`` where that tells the
        order of events of one ``time``.
    encodings: of each table · dense: transform of each dense value.
    train_end: events from this time on are not used to fit vocabularies; None: those are that lie before the last
        train impression of their user, so that what training never sees is 'unknown'.
    bags: multi-valued field → ``row``, ``place`` from 0, ``value`` (raw, never null).
    """

    schema: FeatureSchema
    impressions: ir.Table
    events: Mapping[str, ir.Table]
    encodings: Mapping[str, Encoding]
    dense: Mapping[str, Literal["log", "standard"]]
    train_end: int | None
    bags: Mapping[str, ir.Table] = field(default_factory=dict)


def build(workspace: Workspace, source: Source) -> FeatureSchema:
    """Fit, encode and write everything; returns the schema with its tables. DataError: train is empty."""
    impressions = workspace.save(source.impressions, "impressions")
    events: dict[str, ir.Table] = {}
    n_users = 0
    if source.schema.users:
        users = number_values(workspace, impressions, "user", "history")
        n_users = workspace.counts["users"] = count_rows(users)
        impressions = workspace.view(impressions.join(users, "user"), "numbered_impressions")
        events = {name: _of_users(workspace, name, log, users) for name, log in source.events.items()}
        workspace.say(f"joined: {n_users:,} users with impressions")

    train = impressions.filter(impressions.split == "train")
    vocabularies = _fit_vocabularies(workspace, source, train, events)
    dense = {n: Standardisation.fit(workspace, train[f"dense:{n}"], how) for n, how in source.dense.items()}
    workspace.statistics["dense"] = {name: fitted.provenance() for name, fitted in dense.items()}
    tables = {
        name: vocabularies[name].table if name in vocabularies else Table(encoding.rows, "hash")
        for name, encoding in source.encodings.items()
    }
    schema = replace(source.schema, tables=tables)
    workspace.say(f"fitted {len(vocabularies)} vocabularies and {len(dense)} dense statistics on train")

    for event in schema.events:
        log = events[event.name]
        ids = _encode(log, {f.name: (f.name, f.table) for f in event.fields}, vocabularies, source.encodings)
        ordered = ids.order_by("history", TIME, *(["happened"] if "happened" in ids.columns else []), ROW).drop(ROW)
        count = workspace.writer.write_history(event, tables, n_users, workspace.batches(ordered))
        workspace.counts[f"{event.name}_events"] = count
    if events:
        workspace.say(f"wrote the histories of {n_users:,} users")

    wide = _wide(workspace, source, impressions, vocabularies, dense)
    bags = _encode_bags(workspace, source, vocabularies)
    order = [name for name in (TIME, "history", ROW) if name in impressions.columns]
    for split in SPLITS:
        part = impressions.filter(impressions.split == split).select(*order)
        paths = (workspace.directory / f"bag-ids-{i}.arrow" for i in range(len(bags)))  # a name may be any text
        ids = {n: write_ids(workspace, bag, part, order, p) for (n, bag), p in zip(bags.items(), paths, strict=True)}
        ordered = wide.filter(wide.split == split).order_by(["request_time" if o == TIME else o for o in order])
        batches = workspace.batches(ordered.drop("split", ROW))
        summary = workspace.writer.write_split(split, schema, attach(batches, ids))
        workspace.counts[f"{split}_rows"] = summary.rows
        workspace.say(f"wrote {split}: {summary.rows:,} rows")
    return schema


def distinct(table: ir.Table) -> ir.Table:
    """Every row once: of exact repetitions in all columns but ``row``, the first."""
    columns = [name for name in table.columns if name != ROW]
    return table.group_by(columns).aggregate(**{ROW: table[ROW].min()})


def _of_users(workspace: Workspace, name: str, log: ir.Table, users: ir.Table) -> ir.Table:
    """The log with ``history``, of the users that have impressions."""
    return workspace.save(log.join(users, "user").drop("user"), f"log_{name}")


def _fit_vocabularies(
    workspace: Workspace, source: Source, train: ir.Table, events: Mapping[str, ir.Table]
) -> dict[str, Vocabulary]:
    """Table → vocabulary, over all fields of train impressions and of events before the end of train."""
    vocabularies = {}
    for table, encoding in source.encodings.items():
        if encoding.kind == "hash":
            continue
        columns = [train.select(value=f"sparse:{f.name}") for f in source.schema.sparse if f.table == table]
        in_train = train.select(ROW)
        columns += [
            source.bags[bag.name].semi_join(in_train, ROW).select("value")
            for bag in source.schema.bags
            if bag.table == table
        ]
        for event in source.schema.events:
            known = _seen(events[event.name], train, source.train_end)
            columns += [known.select(value=f.name) for f in event.fields if f.table == table]
        values = columns[0] if len(columns) == 1 else ibis.union(*columns)
        vocabularies[table] = fit_vocabulary(workspace, values.value, table, encoding.min_count)
    return vocabularies


def _seen(log: ir.Table, train: ir.Table, train_end: int | None) -> ir.Table:
    """The events that training sees."""
    if train_end is not None:
        return log.filter(log[TIME] < train_end)
    last = train.group_by("history").aggregate(last_request=train[TIME].max())
    last = last.select(last_request="last_request", of_history="history")
    joined = log.join(last, log["history"] == last["of_history"])
    return joined.filter(joined[TIME] < joined["last_request"]).select(*log.columns)


def _encode_bags(workspace: Workspace, source: Source, vocabularies: Mapping[str, Vocabulary]) -> dict[str, ir.Table]:
    """Field → ``row``, ``place``, ``id``."""
    encoded = {}
    for bag in source.schema.bags:
        ids = _encode(source.bags[bag.name], {"id": ("value", bag.table)}, vocabularies, source.encodings)
        encoded[bag.name] = workspace.save(ids, f"bag_{bag.name}")
    return encoded


def _encode(
    rows: ir.Table,
    fields: Mapping[str, tuple[str, str]],
    vocabularies: Mapping[str, Vocabulary],
    encodings: Mapping[str, Encoding],
) -> ir.Table:
    """Replace raw columns by ids: field → (raw column, table)."""
    known = {name: (column, vocabularies[table]) for name, (column, table) in fields.items() if table in vocabularies}
    found = look_up(rows, known)
    ids: dict[str, ir.Value] = {name: found[f"id:{name}"] for name in known}
    for name, (column, table) in fields.items():
        if name not in known:
            value = found[column]
            hashed = hash_text(value) if value.type().is_string() else hash_integer(value)
            ids[name] = hash_id(hashed, encodings[table].rows)
    raw = {column for column, _ in fields.values()}
    return found.select(
        *(name for name in rows.columns if name not in raw),
        **{name: value.cast("int64") for name, value in ids.items()},
    )


def _wide(
    workspace: Workspace,
    source: Source,
    impressions: ir.Table,
    vocabularies: Mapping[str, Vocabulary],
    dense: Mapping[str, Standardisation],
) -> ir.Table:
    """The columns that the writer takes, with the pointers joined."""
    rows = _with_pointers(workspace, source, impressions) if source.schema.events else impressions
    fields = {f"sparse:{f.name}": (f"sparse:{f.name}", f.table) for f in source.schema.sparse}
    ids = _encode(rows, fields, vocabularies, source.encodings)
    as_it_is = ("label:", "sparse:", "pointer:", "bag:")
    other = [name for name in ids.columns if name.startswith(as_it_is) or name == "weight"]
    added: dict[str, ir.Value] = {"key": ids["key"] if "key" in ids.columns else ids[ROW]}
    if source.schema.request_times:
        added["request_time"] = ids[TIME]
    if source.schema.users:
        added |= {"history": ids["history"], "user": ids["history"]}
    added |= {f"dense:{name}": fitted.apply(ids[f"dense:{name}"]) for name, fitted in dense.items()}
    return ids.select(ROW, "split", *other, **added)


def _with_pointers(workspace: Workspace, source: Source, impressions: ir.Table) -> ir.Table:
    """The impressions with how many events of each type lie strictly before them."""
    path = workspace.directory / "pointers.parquet"
    events = [event.name for event in source.schema.events]
    requests = impressions.select(ROW, "history", TIME).order_by("history", TIME)
    write_pointers(workspace.batches(requests), workspace.writer.directory / "histories", events, path, ROW)
    pointers = workspace.connection.read_parquet(path)
    pointers = pointers.select(pointer_row=pointers[ROW], **{f"pointer:{e}": pointers[f"pointer:{e}"] for e in events})
    return workspace.view(impressions.join(pointers, impressions[ROW] == pointers.pointer_row), "pointed_impressions")
