"""Your own data: any impression table, and any event log, described by a YAML file, as a prepared data set.

The files are read once into Parquet of known types (``data.table_staging``); here they are split, repetitions are
dropped and counted, and `data.builder` does the rest. An event counts from when it is known, to the second: what the
log learns within the second of the request is not shown, so that nothing of the future can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from data.builder import Source, build, distinct
from data.preparation import DataError, PreparationOptions, Workspace, count_rows, prepare_dataset
from data.prepared import SPLITS
from data.raw import ROW
from data.table_faults import described, read_schema
from data.table_files import TableFile, find_tables, match_tables, open_table
from data.table_schema import CategoryColumn, TableSchema, TimeColumn
from data.table_split import check_splits, split_rows
from data.table_staging import Demand, Input, Staged, Target, check_columns, stage
from data.table_values import Bag, Category, Choice, Kind, Label, Number, Time, category_kind, is_list, value_type
from kunlun.features import TIME, BagField, EventType, FeatureSchema, SparseField, Task

OTHER = ""  # the type of events that are left out
KNOWN = "known:"  # no name of a field has a colon
Where = Callable[[str], str]


@dataclass(frozen=True)
class _Options(PreparationOptions):
    """The options, and what else decides what the rows are."""

    files: dict[str, int] | None = None
    table: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Plan:
    """What is to be done, before anything is read."""

    schema: TableSchema
    where: Where
    impressions: tuple[Input, ...]
    events: tuple[TableFile, ...]
    kinds: dict[str, Kind]

    def kind(self, table: str) -> Kind:
        return self.kinds[f"table {table}"]


def prepare(
    impressions: Path,
    events: Path | None,
    schema: Path,
    out: Path,
    options: PreparationOptions | None = None,
) -> FeatureSchema:
    """Prepare the table ``impressions`` and the log ``events`` (files or folders) as the YAML file ``schema`` says.

    DataError: see data.preparation; or the description is faulty, or does not fit the tables.
    """
    described_by, where = read_schema(Path(schema))
    plan = _plan(described_by, where, Path(impressions), None if events is None else Path(events))
    files = {part.split or "impressions": len(part.files) for part in plan.impressions} | {"events": len(plan.events)}
    given = {name: getattr(options or PreparationOptions(), name) for name in PreparationOptions.__dataclass_fields__}
    defining = _Options(**given, files=files, table=described(described_by))
    sources = [file.path for part in plan.impressions for file in part.files] + [file.path for file in plan.events]
    return prepare_dataset("table", sources, out, defining, partial(_build, plan=plan))


def _plan(schema: TableSchema, where: Where, impressions: Path, events: Path | None) -> _Plan:
    """Find the files and look at their columns."""
    if (schema.events is None) != (events is None):
        raise DataError(
            f"--events {events} is given, but {where('events')} does not say what is in it; describe it there"
            if schema.events is None
            else f"{where('events')} describes an event log; give it with --events, or remove the section"
        )
    found: list[tuple[str | None, list[Path]]] = [(None, [])]
    if schema.split_by() == "files":
        if not impressions.is_dir():
            raise DataError(
                f"{impressions} is no folder, but {where('split')} says that its splits are files; "
                "give --impressions the folder that they lie in"
            )
        named = {name: schema.split_values(name) for name in SPLITS}
        found = [(name, match_tables(impressions, n, where(f"split.{name}"))) for name, n in named.items() if n]
    else:
        found = [(None, find_tables(impressions, "--impressions"))]
    seen: dict[Path, str | None] = {}
    for split, paths in found:
        for path in paths:
            if path in seen:
                raise DataError(f"{where('split')}: {path} is both {seen[path]} and {split}; a row is in one split")
            seen[path] = split
    inputs = tuple(Input(tuple(open_table(p, schema.delimiter) for p in paths), split) for split, paths in found)
    log = tuple(open_table(p, schema.delimiter) for p in (find_tables(events, "--events") if events else []))
    return _Plan(schema, where, inputs, log, _kinds(schema, [f for part in inputs for f in part.files], log))


def _kinds(schema: TableSchema, rows: Sequence[TableFile], log: Sequence[TableFile]) -> dict[str, Kind]:
    """Of each table, of the users and of the keys: whole numbers if all their columns are, else text."""
    columns: dict[str, list[tuple[Sequence[TableFile], str | None]]] = {}
    for fields, files in ((schema.sparse_columns(), rows), (schema.bag_columns(), rows), (schema.event_columns(), log)):
        for c in fields.values():
            columns.setdefault(f"table {c.table}", []).append((files, c.column))
    columns["user"] = [(rows, schema.user), (log, _event_user(schema))]
    columns["key"] = [(rows, schema.key)]
    kinds: dict[str, Kind] = {}
    for name, places in columns.items():
        found = {_kind(f, column, name == "key") for files, column in places if column is not None for f in files}
        kinds[name] = "text" if "text" in found else "integer"
    return kinds


def _kind(file: TableFile, column: str, is_key: bool) -> Kind | None:
    if file.is_text:
        return "text"
    if column not in file.columns.names:
        return None  # refused later, with its place
    kind = value_type(file.columns.field(column).type)
    if is_key and pa.types.is_uint64(kind):
        return "text"  # not every engine has numbers as large, and a key is handed back as it was
    return category_kind(kind.value_type if is_list(kind) else kind)


def _event_user(schema: TableSchema) -> str | None:
    return (schema.events.user or schema.user) if schema.events else None


def _build(workspace: Workspace, plan: _Plan) -> FeatureSchema:
    schema = plan.schema
    targets = _impression_targets(plan)
    check_columns([file for part in plan.impressions for file in part.files], targets)
    event_targets = _event_targets(plan)
    check_columns(plan.events, event_targets)

    staged = stage(workspace, "impressions", plan.impressions, targets)
    rows = staged.table if schema.key is None else _unique_keys(workspace, staged, schema.key)
    rows = split_rows(workspace, schema, rows)
    check_splits(schema, plan.where, rows)
    events = _events(workspace, plan, event_targets, rows) if schema.events else {}
    encodings = schema.encodings()
    fields = {name: SparseField(name, str(c.table)) for name, c in schema.event_columns().items()}
    return build(
        workspace,
        Source(
            FeatureSchema(
                name=schema.name,
                tasks=tuple(Task(task, 0.0) for task in schema.tasks()),
                dense=tuple(schema.dense_columns()),
                sparse=tuple(SparseField(name, str(c.table)) for name, c in schema.sparse_columns().items()),
                bags=tuple(BagField(name, str(c.table), c.pooling) for name, c in schema.bag_columns().items()),
                tables=dict.fromkeys(encodings),  # type: ignore[arg-type] # sizes come from the fit
                events=tuple(EventType(name, tuple(fields.values())) for name in events),
                users=schema.user is not None,
                request_times=schema.time is not None,
            ),
            rows,
            events,
            encodings,
            {name: column.transform for name, column in schema.dense_columns().items()},
            train_end=None,
            bags=staged.bags,
        ),
    )


def _impression_targets(plan: _Plan) -> list[Target]:
    schema, where = plan.schema, plan.where
    missing = tuple(schema.missing)
    targets = []
    if schema.user is not None:
        role = Category(plan.kinds["user"], missing, required=True, expected="a user")
        targets.append(Target("user", schema.user, role, where("user")))
    if schema.time is not None:
        targets.append(_time(TIME, schema.time, where("time")))
    for name, column in schema.tasks().items():
        targets.append(Target(f"label:{name}", column, Label(), where(f"labels.{name}")))
    for name, dense in schema.dense_columns().items():
        targets.append(Target(f"dense:{name}", str(dense.column), Number(missing), where(f"dense.{name}")))
    for name, sparse in schema.sparse_columns().items():
        targets.append(_category(plan, f"sparse:{name}", sparse, where(f"sparse.{name}")))
    for name, bag in schema.bag_columns().items():
        lists = Bag(Category(plan.kind(str(bag.table)), missing), bag.separator, bag.max_length)
        targets.append(Target(f"bag:{name}", str(bag.column), lists, where(f"bags.{name}")))
    if schema.weight is not None:
        positive = Number(missing, required=True, least=0.0, expected="a finite number, at least 0")
        targets.append(Target("weight", schema.weight, positive, where("weight")))
    if schema.key is not None:
        role = Category(plan.kinds["key"], missing, required=True, expected="a key")
        targets.append(Target("key", schema.key, role, where("key")))
    if schema.split_by() == "column":
        names = {value: name for name in SPLITS for value in schema.split_values(name)}
        targets.append(Target("split", str(schema.split.column), Choice(names, missing), where("split.column")))
    return targets


def _event_targets(plan: _Plan) -> list[Target]:
    schema, where, events = plan.schema, plan.where, plan.schema.events
    if events is None:
        return []
    user, time, known = _event_user(schema), schema.event_time("time"), schema.event_time("known")
    if user is None or time is None:
        raise ValueError("events without users and times have passed the check of the description")
    missing = tuple(schema.missing)
    role = Category(plan.kinds["user"], missing, required=True, expected="a user")
    targets = [Target("user", user, role, where("events.user" if events.user else "user"))]
    place = where("events.time" if events.time else "time")
    # Beside the seconds that the model sees, all that the columns tell: of two events of one second, the earlier comes
    # first, and they are no repetition.
    targets.append(_time("happened", time, place, precise=True))
    if known:
        targets.append(_time(KNOWN, known, where("events.known"), precise=True))
        place = where("events.known")
    targets.append(_time(TIME, known or time, place))
    if events.type is not None:
        values = {value: value for of_type in schema.event_types().values() for value in of_type}
        other = OTHER if events.other_types == "drop" else None
        targets.append(Target("type", events.type, Choice(values, missing, other), where("events.type")))
    for name, field in schema.event_columns().items():
        targets.append(_category(plan, name, field, where(f"events.fields.{name}")))
    return targets


def _time(name: str, time: TimeColumn, place: str, precise: bool = False) -> Target:
    return Target(name, time.column, Time(time.unit, time.zone, precise), place)


def _category(plan: _Plan, name: str, column: CategoryColumn, place: str) -> Target:
    return Target(name, str(column.column), Category(plan.kind(str(column.table)), tuple(plan.schema.missing)), place)


def _unique_keys(workspace: Workspace, staged: Staged, column: str) -> ir.Table:
    """The rows whose key has not come before. DataError about the first other, unless bad rows are skipped."""
    table = staged.table
    first = table.group_by("key").aggregate(first_row=table[ROW].min(), rows=table.count())
    first = first.filter(first["rows"] > 1).select(again="key", first_row="first_row")
    joined = table.select(ROW, "key").join(first, table["key"] == first["again"])
    again = workspace.save(joined.filter(joined[ROW] != joined["first_row"]), "again")
    for batch in workspace.batches(again.order_by(ROW)):
        for bad in batch.to_pylist():
            path, row = staged.place(bad[ROW])
            where, before = staged.place(bad["first_row"])
            reason = f"expected a key that has not come before, found {bad['key']!r} of {where.name}, row {before}"
            text = f'{{"{column}": {bad["key"]!r}}}'
            workspace.rejects.add("impressions", path, row, column, reason, text, counted="row")
    if workspace.rejects.skip:
        workspace.counts["impressions_rejected_rows"] = workspace.rejects.counts.get("impressions", 0)
    return table.anti_join(again.select(ROW), ROW)


def _events(workspace: Workspace, plan: _Plan, targets: list[Target], rows: ir.Table) -> dict[str, ir.Table]:
    """Event type → its events of users with impressions, each once."""
    demands = []
    if any(target.name == KNOWN for target in targets):
        demands.append(Demand(KNOWN, _known_after, "a time not before the event happened"))
    log = stage(workspace, "events", [Input(plan.events)], targets, demands).table
    users = rows.select(with_impressions="user").distinct()
    joined = log.left_join(users, log["user"] == users["with_impressions"])
    other = joined["type"] == OTHER if "type" in log.columns else ibis.literal(False)
    joined = joined.mutate(other_type=other)
    joined = joined.mutate(foreign=joined["with_impressions"].isnull() & ~joined["other_type"])
    kept = joined.filter(~joined["other_type"], ~joined["foreign"]).select(*log.columns)
    counted = joined.aggregate(
        rows=joined.count(),
        other=joined["other_type"].cast("int64").sum(),
        foreign=joined["foreign"].cast("int64").sum(),
    )
    found = {name: int(value or 0) for name, value in counted.to_pyarrow().to_pylist()[0].items()}
    once = workspace.save(distinct(kept), "events_once")
    unique = count_rows(once)
    duplicates = found["rows"] - found["other"] - found["foreign"] - unique
    workspace.counts |= {
        "events_of_other_types": found["other"],
        "events_of_users_without_impressions": found["foreign"],
        "events_duplicates": duplicates,
        "events_kept": unique,
    }
    workspace.say(
        f"events: dropped {found['other']:,} of other types, {found['foreign']:,} of users without impressions, "
        f"{duplicates:,} duplicates; kept {unique:,}"
    )
    types = plan.schema.event_types()
    once = once.drop(*({KNOWN} & set(once.columns)))
    if "type" not in once.columns:
        return dict.fromkeys(types, once)
    return {name: once.filter(once["type"].isin(values)).drop("type") for name, values in types.items()}


def _known_after(columns: dict[str, pa.Array]) -> np.ndarray:
    return columns[KNOWN].to_numpy() >= columns["happened"].to_numpy()
