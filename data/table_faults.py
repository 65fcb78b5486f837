"""Reads the YAML file of ``prepare table``; every fault is told with the file, the line and the key."""

from __future__ import annotations

import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from data.preparation import DataError
from data.prepared import SPLITS
from data.table_schema import CategoryColumn, TableSchema, TimeColumn, find_zone
from kunlun.config_check import ConfigChecker
from kunlun.configuration import ConfigError, ConfigTree, load_yaml, shown
from kunlun.features import TIME

# Names of the columns that stand beside the fields of an event, or the bags of an impression.
EVENT_COLUMNS = (TIME, "history", "row", "user", "type", "happened")
ROW_COLUMNS = ("labels", "dense", "sparse", "request_time", "user", "history", "pointers", "weight", "key")
LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
HASH_ROWS = 3  # the two reserved ids and one more

Fault = tuple[str, str]  # the key, and what is wrong with it


def read_schema(path: Path) -> tuple[TableSchema, Callable[[str], str]]:
    """The description in ``path``, and a function that says where one of its keys stands. DataError: it is faulty."""
    try:
        values, lines = load_yaml(path)
        origins = {f"table.{key}": f"{shown(path)}:{line}" for key, line in lines.items()}
        tree = ConfigTree({"table": values}, {"table": shown(path), **origins})
        checker = ConfigChecker(tree)
        for key, problem in _unsaid(values):
            checker.fail(f"table.{key}", problem)
        checker.arguments("table", values, TableSchema)
        schema = _make(TableSchema, values)
        for key, problem in faults(schema):
            checker.fail(f"table.{key}", problem)
    except ConfigError as error:
        raise DataError(str(error).replace(": table.", ": ", 1)) from error
    return schema, lambda key: f"{tree.where(f'table.{key}')}: {key}"


def _unsaid(values: Mapping[str, Any]) -> Iterator[Fault]:
    """What has no default."""
    if "labels" not in values:
        yield "labels", "name the column, or the columns, of the labels, as in labels: [click]"
    events = values.get("events")
    if isinstance(events, Mapping) and "fields" not in events:
        yield "events.fields", "name what an event shows, as in fields: [item]"
    times = {"time": values.get("time")}
    if isinstance(events, Mapping):
        times |= {f"events.{name}": events.get(name) for name in ("time", "known")}
    for key, value in times.items():
        if key == "time" and isinstance(value, str):
            yield key, f"say what its numbers count, as in time: {{column: {value}, unit: s}}"
        if isinstance(value, Mapping):
            for name, words in (("column", "the name of the column"), ("unit", "s, ms, us, ns or timestamp")):
                if name not in value:
                    yield f"{key}.{name}", f"say which: {words}"


def _make(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance of the dataclass ``cls`` with the dataclasses inside it; ``values`` have passed the checker."""
    hints = typing.get_type_hints(cls)
    return cls(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, Mapping):
        for option in options:
            if is_dataclass(option):
                return _make(typing.cast(type, option), value)
            if typing.get_origin(option) is dict:
                return {str(name): _typed(typing.get_args(option)[1], item) for name, item in value.items()}
    return value


def faults(schema: TableSchema) -> Iterator[Fault]:
    """What the types of the keys do not rule out."""
    for part in (_names, _numbers, _policies, _events, _split):
        yield from part(schema)


def _names(schema: TableSchema) -> Iterator[Fault]:
    """Names become columns, and files of event types: nothing in them may mean anything to an engine or a disk."""
    events = schema.events
    listed: dict[str, Any] = {name: getattr(schema, name) for name in ("labels", "dense", "sparse", "bags")}
    listed |= {"events.fields": events.fields, "events.types": events.types} if events else {}
    for key, given in listed.items():
        for name, count in Counter(map(str, given) if isinstance(given, list) else ()).items():
            if count > 1:
                yield key, f"{name!r} is there {count} times; name it once"
    named = {
        "labels": list(schema.tasks()),
        "dense": list(schema.dense_columns()),
        "sparse": list(schema.sparse_columns()),
        "bags": list(schema.bag_columns()),
        "events.fields": list(schema.event_columns()),
        "events.types": list(schema.event_types()),
    }
    for key, names in named.items():
        for name in names:
            if not name or set(name) - LETTERS:
                remedy = "give it another: name: {column: …}" if key != "events.types" else "give it another"
                yield f"{key}.{name}", f"{name!r} must consist of letters, digits, _ and -; {remedy}"
        for name, count in Counter(name.lower() for name in names).items():
            if count > 1:
                yield (
                    key,
                    f"{name!r} is there {count} times, as capitals do not tell names apart; give one another name",
                )
    tables = {c.table or "" for c in _categories(schema).values()}
    for key, column in _categories(schema).items():
        table = column.table or ""
        if set(table) - LETTERS:
            yield f"{key}.table", f"{table!r} must consist of letters, digits, _ and -"
        if sum(other.lower() == table.lower() for other in tables) > 1:
            yield f"{key}.table", f"another table differs from {table!r} by capitals only; write both the same"
    for name in named["events.fields"]:
        if name.lower() in EVENT_COLUMNS:
            yield f"events.fields.{name}", f"the name is taken; give it another: my_{name}: {{column: {name}}}"
    for name in named["bags"]:
        if name.lower() in ROW_COLUMNS:
            yield f"bags.{name}", f"the name is taken; give it another: my_{name}: {{column: {name}}}"
    for name in named["events.types"]:
        if hasattr(nn.ModuleDict(), name):  # the model keeps its towers in one
            yield f"events.types.{name}", f"the name {name!r} is taken; give it another: my_{name}: {name}"
    if not named["labels"]:
        yield "labels", "at least one is needed"
    if not (named["dense"] or named["sparse"] or named["bags"]):
        yield "sparse", "the model would see nothing of the impressions: name columns under sparse, dense or bags"


def _numbers(schema: TableSchema) -> Iterator[Fault]:
    if schema.min_count < 1:
        yield "min_count", f"must be at least 1, not {schema.min_count}"
    if schema.delimiter is not None and len(schema.delimiter.encode()) != 1:
        yield "delimiter", f"must be one character, not {schema.delimiter!r}"
    for name, bag in schema.bag_columns().items():
        if bag.max_length is not None and bag.max_length < 1:
            yield f"bags.{name}.max_length", f"must be at least 1, not {bag.max_length}"
        if bag.separator == "":
            yield f"bags.{name}.separator", "must not be empty"
    times = {"time": schema.time}
    if schema.events:
        times |= {"events.time": schema.events.time, "events.known": schema.events.known}  # type: ignore[dict-item]
    for key, time in times.items():
        if isinstance(time, TimeColumn) and time.zone is not None:
            try:
                find_zone(time.zone)
            except ValueError as error:
                yield f"{key}.zone", str(error)


def _categories(schema: TableSchema) -> dict[str, CategoryColumn]:
    """Key → column, of all categorical fields."""
    return {
        **{f"sparse.{name}": column for name, column in schema.sparse_columns().items()},
        **{f"bags.{name}": column for name, column in schema.bag_columns().items()},
        **{f"events.fields.{name}": column for name, column in schema.event_columns().items()},
    }


def _policies(schema: TableSchema) -> Iterator[Fault]:
    stated: dict[str, str] = {}
    columns = _categories(schema)
    for key, column in columns.items():
        if column.policy == "hash":
            if column.rows is None or column.rows < HASH_ROWS:
                yield f"{key}.rows", f"say how many rows the table has, at least {HASH_ROWS}, as in rows: 100000"
            if column.min_count is not None:
                yield f"{key}.min_count", "is for policy: vocabulary; hashing counts nothing"
        elif column.rows is not None:
            yield f"{key}.rows", "is for policy: hash; a vocabulary has as many as there are values"
        elif column.min_count is not None and column.min_count < 1:
            yield f"{key}.min_count", f"must be at least 1, not {column.min_count}"
        if not column.states_policy():
            continue
        first = stated.setdefault(column.table or "", key)
        if schema.encoding(column) != schema.encoding(columns[first]):
            yield key, f"shares the table {column.table!r} with {first}, which has another policy; write both the same"


def _events(schema: TableSchema) -> Iterator[Fault]:
    events = schema.events
    if events is None:
        return
    for key in ("user", "time"):
        if getattr(schema, key) is None:
            yield key, f"histories need the {key} of the impressions too; name its column"
    if not schema.event_columns():
        yield "events.fields", "at least one is needed"
    types = schema.event_types()
    if not types:
        yield "events.types", "at least one is needed"
    if events.type is None and (len(types) > 1 or isinstance(events.types, Mapping)):
        yield "events.types", "without events.type, the column of types, there is one: types: [name]"
    if events.type is None and events.other_types == "drop":
        yield "events.other_types", "needs events.type, the column of types"
    if events.type is not None and events.types is None:
        yield "events.types", f"say which values of {events.type!r} are event types, as in types: [view, buy]"
    owner: dict[str, str] = {}
    for name, values in types.items():
        for value in values:
            if owner.setdefault(value, name) != name:
                yield "events.types", f"the value {value!r} is both {owner[value]} and {name}"


def _split(schema: TableSchema) -> Iterator[Fault]:
    split, by = schema.split, schema.split_by()
    for what in ("time", "user"):
        if by == what and getattr(schema, what) is None:
            yield "split.by", f"a split by {what} needs the column: {what}"
    if split.column is not None and by != "column":
        yield "split.column", "is for by: column"
    if by in ("column", "files"):
        if by == "column" and split.column is None:
            yield "split.column", "say which column tells the split"
        owner: dict[str, str] = {}
        for name in SPLITS:
            if isinstance(getattr(split, name), float):
                yield f"split.{name}", f"a share is for by: time, user or row; by {by} it is a name"
            if name == "train" and not schema.split_values(name):
                yield "split.train", "say which are the train split" if by == "column" else "say which file it is"
            for text in schema.split_values(name):
                if owner.setdefault(text, name) != name:
                    yield f"split.{name}", f"{text!r} is {owner[text]} already"
        return
    if split.train is not None:
        yield "split.train", f"by {by}, train is what valid and test leave; remove this key"
    if split.seed != 0 and by == "time":
        yield "split.seed", "is for by: user or row"
    try:
        schema.split_points()
    except ValueError as error:
        key, _, problem = str(error).partition(": ")
        yield f"split.{key}", problem


def described(value: Any) -> Any:
    """A description as JSON has it, without what is null."""
    if is_dataclass(value):
        given = {f.name: getattr(value, f.name) for f in fields(value)}
        return {name: described(item) for name, item in given.items() if item is not None}
    if isinstance(value, Mapping):
        return {name: described(item) for name, item in value.items()}
    return value
