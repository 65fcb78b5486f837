"""Tables of any origin as one Parquet file of known types, and the bad rows refused naming file, row and column."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from data.preparation import DataError, Workspace
from data.raw import ROW
from data.table_files import TableFile
from data.table_values import Bag, Role, is_text, value_type
from kunlun.configuration import closest

SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Target:
    """A staged column: ``name``, from the source's ``column``, as a ``role``; ``place`` says who asks for it."""

    name: str
    column: str
    role: Role
    place: str


@dataclass(frozen=True)
class Demand:
    """What staged columns must be beside each other, told of the target ``name``."""

    name: str
    holds: Callable[[dict[str, pa.Array]], np.ndarray]
    expected: str


@dataclass(frozen=True)
class Input:
    """Files of rows that share the value of ``split``, where the files tell it."""

    files: tuple[TableFile, ...]
    split: str | None = None


@dataclass
class Staged:
    """``table``: ``row`` and the targets, a bag as its length · ``bags``: ``row``, ``place`` from 0, ``value``."""

    name: str
    table: ir.Table
    bags: dict[str, ir.Table]
    rows: int = 0
    files: list[tuple[Path, int]] = field(default_factory=list)

    def place(self, row: int) -> tuple[Path, int]:
        """The file, and the row in it from 1, of a row."""
        for path, rows in self.files:
            if row <= rows:
                return path, row
            row -= rows
        raise IndexError(f"there is no row {row}")


def check_columns(files: Sequence[TableFile], targets: Sequence[Target]) -> None:
    """DataError: a file lacks a column, or has one of a type that cannot be what it is taken for."""
    for file in files:
        for target in targets:
            if target.column not in file.columns.names:
                listed = ", ".join(file.columns.names[:20]) + (", …" if len(file.columns.names) > 20 else "")
                raise DataError(
                    f"{file.path} has no column {target.column!r}{closest(target.column, file.columns.names)} "
                    f"(asked for by {target.place}; it has {listed})"
                )
            kind = pa.string() if file.is_text else file.columns.field(target.column).type
            if remedy := target.role.refuses(kind):
                shown = value_type(kind)
                raise DataError(
                    f"{file.path}, column {target.column!r} holds {'text' if is_text(shown) else shown}, "
                    f"but {target.place} needs something else: {remedy}"
                )


def stage(
    workspace: Workspace, name: str, inputs: Sequence[Input], targets: Sequence[Target], demands: Sequence[Demand] = ()
) -> Staged:
    """Read all ``inputs`` once. DataError: a bad row, unless they are skipped; a file without rows, or damaged."""
    bags = [t for t in targets if isinstance(t.role, Bag)]
    columns = [(t.name, pa.int64() if isinstance(t.role, Bag) else t.role.staged) for t in targets]
    if inputs[0].split is not None:
        columns.append(("split", pa.string()))
    path = workspace.directory / f"staged-{name}.parquet"
    bag_paths = {t.name: workspace.directory / f"staged-{name}-bag-{i}.parquet" for i, t in enumerate(bags)}
    rows, files = 0, []
    with ExitStack() as stack:
        main = stack.enter_context(pa.parquet.ParquetWriter(path, pa.schema([(ROW, pa.int64()), *columns])))
        writers = {
            t.name: stack.enter_context(pa.parquet.ParquetWriter(bag_paths[t.name], _bag_schema(t))) for t in bags
        }
        for part in inputs:
            for file in part.files:
                count, good = 0, 0
                for numbers, staged in _good_rows(workspace, name, file, targets, demands):
                    count = max(count, int(numbers[-1])) if numbers.size else count
                    if staged is None:
                        continue
                    good += len(staged[0])
                    by_name = {t.name: column for t, column in zip(targets, staged[1:], strict=True)}
                    ids = pa.array(staged[0].to_numpy() + rows)
                    for t in bags:
                        writers[t.name].write_batch(_flatten(ids, by_name[t.name], _bag_schema(t)))
                        by_name[t.name] = pa.array(np.diff(by_name[t.name].offsets.to_numpy()).astype(np.int64))
                    if part.split is not None:
                        by_name["split"] = pa.array([part.split] * len(ids), pa.string())
                    main.write_batch(pa.RecordBatch.from_arrays([ids, *by_name.values()], schema=main.schema))
                if not good:
                    why = f"none of its {count:,} rows is good" if count else "there are no rows in it"
                    raise DataError(f"{file.path}: {why}; is this the right file?")
                files.append((file.path, count))
                rows += count
    read = workspace.connection.read_parquet
    rejected = workspace.rejects.counts.get(name, 0)
    workspace.counts[f"{name}_input_rows"] = rows
    if workspace.rejects.skip:
        workspace.counts[f"{name}_rejected_rows"] = rejected
    workspace.say(f"read {rows:,} {name} of {len(files)} {'file' if len(files) == 1 else 'files'}")
    if rejected:
        workspace.say(f"rejected {rejected:,} of them, see {workspace.rejects.path.name}")
    return Staged(name, read(path), {n.removeprefix("bag:"): read(p) for n, p in bag_paths.items()}, rows, files)


def _bag_schema(target: Target) -> pa.Schema:
    return pa.schema([(ROW, pa.int64()), ("place", pa.int64()), ("value", target.role.staged.value_type)])


def _flatten(ids: pa.Array, lists: pa.ListArray, schema: pa.Schema) -> pa.RecordBatch:
    """One row per element."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    place = np.arange(lengths.sum()) - np.repeat(offsets[:-1] - offsets[0], lengths)
    owner = np.repeat(ids.to_numpy(), lengths)
    return pa.RecordBatch.from_arrays([pa.array(owner), pa.array(place), lists.flatten()], schema=schema)


def _good_rows(
    workspace: Workspace, name: str, file: TableFile, targets: Sequence[Target], demands: Sequence[Demand]
) -> Iterator[tuple[np.ndarray, list[pa.Array] | None]]:
    """(numbers of all rows seen, [numbers, columns] of the good ones), batch by batch."""
    names = list(dict.fromkeys(t.column for t in targets))
    by_name = {t.name: t for t in targets}
    for rows, batch, unparted in file.batches(names):
        numbers, columns = rows, [batch.column(names.index(t.column)) for t in targets]
        bad: list[tuple[int, str | None, str, str]] = [(b.row, None, b.reason, b.text) for b in unparted]
        if file.is_text:
            columns, numbers, undecodable = _decode(columns, numbers, targets)
            bad += undecodable
        converted = [t.role.convert(column) for t, column in zip(targets, columns, strict=True)]
        staged = {t.name: values for t, (values, _) in zip(targets, converted, strict=True)}
        tests = [(t, t.role.expected, good) for t, (_, good) in zip(targets, converted, strict=True)]
        fine = np.logical_and.reduce([good for _, _, good in tests])
        tests += [(by_name[d.name], d.expected, d.holds(staged) | ~fine) for d in demands]
        fine = np.logical_and.reduce([good for _, _, good in tests])
        for i in np.flatnonzero(~fine):
            target, expected = next((t, expected) for t, expected, good in tests if not good[i])
            text = {t.column: column[i].as_py() for t, column in zip(targets, columns, strict=True)}
            reason = f"expected {expected}, found {_shown(text[target.column])}"
            bad.append((int(numbers[i]), target.column, reason, json.dumps(text, ensure_ascii=False, default=str)))
        for row, column, reason, line in sorted(bad, key=lambda found: found[0]):
            workspace.rejects.add(name, file.path, row, column, reason, line, counted="row")
        seen = np.concatenate([rows, [b.row for b in unparted]]).astype(np.int64)
        good_rows = pa.array(fine)
        kept = [pa.array(numbers), *staged.values()]
        yield np.sort(seen), [column.filter(good_rows) for column in kept] if fine.any() else None


def _decode(
    columns: list[pa.Array], numbers: np.ndarray, targets: Sequence[Target]
) -> tuple[list[pa.Array], np.ndarray, list[tuple[int, str | None, str, str]]]:
    """Bytes as text, without the rows that are not UTF-8."""
    try:
        return [column.cast(pa.string()) for column in columns], numbers, []
    except pa.ArrowInvalid:
        good = np.ones(len(numbers), bool)
        bad: list[tuple[int, str | None, str, str]] = []
        for target, column in zip(targets, columns, strict=True):
            for i, value in enumerate(column.to_pylist()):
                if good[i] and value is not None and value.decode("utf-8", "ignore").encode() != value:
                    good[i] = False
                    reason = "the text is not UTF-8; is this the right file?"
                    bad.append((int(numbers[i]), target.column, reason, value.decode("utf-8", "replace")))
        mask = pa.array(good)
        return [column.filter(mask).cast(pa.string()) for column in columns], numbers[good], bad


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, (str, int, float)) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 2] + "…" + text[-1]
