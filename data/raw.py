"""Raw text files: find them, stage them as Parquet, and refuse bad ones naming file, line and column.

Staging keeps every value as the text it was and numbers the rows in the order of the files, so that preparation
needs one pass over the compressed text and no engine's idea of row order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from data.preparation import DataError, Workspace

ROW = "row"  # 1-based number of the data row over all source files; the line number where one file has no header
COMPRESSIONS = ("", ".gz", ".zst")
BLOCK_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class Layout:
    """What a line looks like: the columns, what parts them, and whether the first line names them."""

    columns: tuple[str, ...]
    delimiter: str
    header: bool = False


@dataclass(frozen=True)
class Raw:
    """Staged rows: ``table`` has ``row`` and the layout's columns as strings, null where the text is empty."""

    table: ir.Table
    rows: int
    layout: Layout
    files: tuple[tuple[Path, int], ...]  # each file and its number of rows, in order

    def place(self, row: int) -> tuple[Path, int]:
        """The file and the line (from 1) of a row."""
        for path, rows in self.files:
            if row <= rows:
                return path, row + self.layout.header
            row -= rows
        raise IndexError(f"there is no row {row}")


@dataclass(frozen=True)
class Check:
    """A demand on one column: ``passes`` (false or null fails) and in words what is expected there."""

    column: str
    passes: ir.BooleanValue
    expected: str


def find_sources(raw: Path, names: Sequence[str]) -> list[Path]:
    """The file ``raw``, or the files of folder ``raw`` that match the first of ``names`` (globs) that any match.

    Plain, ``.gz`` and ``.zst`` files count; numbers in names sort as numbers. DataError: nothing is there.
    """
    raw = Path(raw)
    if raw.is_file():
        return [raw]
    if not raw.exists():
        raise DataError(f"{raw} does not exist; give --raw the downloaded file or the folder that holds it")
    for name in names:
        found = {path for ending in COMPRESSIONS for path in raw.glob(name + ending) if path.is_file()}
        plain = [path for path in found if path.suffix in (".gz", ".zst") and path.with_suffix("") in found]
        if plain:
            raise DataError(f"{raw} holds both {plain[0].name} and its unpacked form; remove one of them")
        if found:
            return sorted(found, key=lambda path: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", path.name)])
    raise DataError(f"{raw} holds none of {', '.join(names)} (plain, .gz or .zst); give --raw the right folder")


def stage(workspace: Workspace, layout: Layout, sources: Sequence[Path], name: str = "raw") -> Raw:
    """Read ``sources`` once into Parquet. DataError: empty, truncated, wrong header or wrong number of columns."""
    schema = pa.schema([(ROW, pa.int64()), *((column, pa.string()) for column in layout.columns)])
    path = workspace.directory / f"{name}.parquet"
    rows, files = 0, []
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for source in sources:
            before = rows
            for batch in _read(source, layout):
                numbers = pa.array(np.arange(rows + 1, rows + 1 + batch.num_rows))
                writer.write_batch(pa.RecordBatch.from_arrays([numbers, *batch.columns], schema=schema))
                rows += batch.num_rows
            if rows == before:
                raise DataError(f"{source}: there are no rows in it; is the download complete?")
            files.append((source, rows - before))
    workspace.say(f"read {rows:,} rows")
    return Raw(workspace.connection.read_parquet(path), rows, layout, tuple(files))


def require(raw: Raw, checks: Sequence[Check]) -> None:
    """DataError about the first row that fails any of ``checks``."""
    fails = [~check.passes.fill_null(False) for check in checks]
    bad = raw.table.filter(reduce(or_, fails))
    summary = bad.aggregate(rows=bad.count(), first=bad[ROW].min()).to_pyarrow().to_pylist()[0]
    if not summary["rows"]:
        return
    flags = {f"fails{i}": fail for i, fail in enumerate(fails)}
    record = raw.table.mutate(**flags).filter(raw.table[ROW] == summary["first"]).to_pyarrow().to_pylist()[0]
    check = next(check for i, check in enumerate(checks) if record[f"fails{i}"])
    path, line = raw.place(summary["first"])
    value = record[check.column]
    found = "nothing" if value is None else repr(value if len(value) <= 60 else value[:57] + "…")
    more = f" ({summary['rows'] - 1:,} more rows are bad)" if summary["rows"] > 1 else ""
    raise DataError(
        f"{path}, line {line}, column {raw.layout.columns.index(check.column) + 1} ({check.column}): "
        f"expected {check.expected}, found {found}{more}; "
        "correct or remove the row, or download the file again"
    )


def is_integer(column: ir.StringValue, allow_negative: bool = True) -> ir.BooleanValue:
    """Whether the text is a whole number that fits int64. Engines' casts are laxer: some read '1.5' as 2."""
    return column.re_search(r"^-?[0-9]{1,18}$" if allow_negative else r"^[0-9]{1,18}$")


def is_finite_number(column: ir.StringValue) -> ir.BooleanValue:
    """Whether the text is a decimal number: 'nan' and 'inf' are not."""
    return column.re_search(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?$")


def _read(source: Path, layout: Layout) -> Iterator[pa.RecordBatch]:
    options = {
        "read_options": pa.csv.ReadOptions(
            column_names=layout.columns, block_size=BLOCK_BYTES, skip_rows=int(layout.header)
        ),
        "parse_options": pa.csv.ParseOptions(
            delimiter=layout.delimiter, quote_char=False, newlines_in_values=False, ignore_empty_lines=False
        ),
        "convert_options": pa.csv.ConvertOptions(
            column_types=dict.fromkeys(layout.columns, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    }
    try:
        if layout.header:
            _check_header(source, layout)
        with pa.input_stream(str(source), compression="detect") as stream:
            yield from pa.csv.open_csv(stream, **options)
    except pa.ArrowInvalid as error:
        raise DataError(_explain(source, layout, error)) from error
    except OSError as error:
        raise DataError(f"{source}: the compressed file is truncated or damaged ({error}); fetch it again") from error


def _check_header(source: Path, layout: Layout) -> None:
    _, first = next(_lines(source), (1, b""))
    names = [name.strip() for name in first.decode("utf-8", "replace").split(layout.delimiter)]
    if names != list(layout.columns):
        wrong = next((i for i, pair in enumerate(zip(names, layout.columns, strict=False)) if pair[0] != pair[1]), None)
        detail = f"{len(names)} names" if wrong is None else f"{names[wrong]!r} as column {wrong + 1}"
        raise DataError(
            f"{source}, line 1: the header must be {layout.delimiter.join(layout.columns)} "
            f"({len(layout.columns)} names) but has {detail}"
        )


def _explain(source: Path, layout: Layout, error: Exception) -> str:
    """Find the line that the fast reader refused; slow, but only failures come here."""
    expected = len(layout.columns)
    number = 0
    for number, line in _lines(source):
        try:
            found = line.decode("utf-8").count(layout.delimiter) + 1
        except UnicodeDecodeError as problem:
            column = line[: problem.start].count(layout.delimiter.encode()) + 1
            return f"{source}, line {number}, column {column}: the text is not UTF-8; is this the right file?"
        if found != expected and line:
            return (
                f"{source}, line {number}: expected {expected} columns parted by {layout.delimiter!r}, found {found}; "
                "correct or remove the line, or download the file again"
            )
    if number <= layout.header:
        return f"{source}: there are no rows in it; is the download complete?"
    return f"{source}: {error}"


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its end)."""
    number, rest = 0, b""
    with pa.input_stream(str(source), compression="detect") as stream:
        while chunk := stream.read(1 << 20):
            *complete, rest = (rest + chunk).split(b"\n")
            for line in complete:
                number += 1
                yield number, line.rstrip(b"\r")
    if rest:
        yield number + 1, rest.rstrip(b"\r")
