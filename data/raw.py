"""Raw text files: find them, stage them as Parquet, and refuse bad rows naming file, line and column.

Staging keeps every value as the text it was and numbers the rows in the order of the files, so that preparation
needs one pass over the compressed text and no engine's idea of row order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from data.lines import Block, read_lines
from data.preparation import DataError, Workspace, count_rows
from data.rejects import column_name

ROW = "row"  # 1-based number of the data row over all source files, bad rows counted too
TEXT = "line text"  # the row as it stands in the file, where nothing is not the only text that means missing
LARGEST = 1e30  # its square, summed over any number of rows, fits float64, and what is standardised fits float32
COMPRESSIONS = ("", ".gz", ".zst")


@dataclass(frozen=True)
class Layout:
    """What a line looks like: the columns, what parts them, whether the first line names them, what means missing."""

    columns: tuple[str, ...]
    delimiter: str
    header: bool = False
    missing: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Raw:
    """Staged rows: ``table`` has ``row`` and the layout's columns as strings, null where the value is missing.

    And TEXT, if the layout has other texts that mean missing than nothing.

    rows: of the source, bad ones included · files: each file and its number of rows, in order.
    """

    name: str
    table: ir.Table
    rows: int
    layout: Layout
    files: tuple[tuple[Path, int], ...]

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
    """Read ``sources`` once into Parquet; lines that cannot be parted into columns are bad rows.

    DataError: a bad row, unless they are skipped; no rows; truncated; wrong header.
    """
    schema = pa.schema([(ROW, pa.int64()), *((column, pa.string()) for column in layout.columns)])
    path = workspace.directory / f"{name}.parquet"
    rows, files = 0, []
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for source in sources:
            before, good = rows, 0
            for block in _data_lines(source, layout):
                for bad in block.bad:
                    column = column_name(layout.columns, bad.column)
                    workspace.rejects.add(name, source, bad.line, column, bad.reason, bad.text)
                good += block.lines.size
                rows += block.lines.size + len(block.bad)
                if block.lines.size:
                    numbers = pa.array(block.lines - layout.header + before)
                    writer.write_batch(pa.RecordBatch.from_arrays([numbers, *_part(block, layout)], schema=schema))
            if not good:
                lines = f"none of its {rows - before:,} rows is good" if rows > before else "there are no rows in it"
                raise DataError(f"{source}: {lines}; is the download complete?")
            files.append((source, rows - before))
    workspace.counts[_count(name, "input_rows")] = rows
    workspace.say(f"read {rows:,} rows of {', '.join(path.name for path in sources)}")
    return Raw(name, _with_nulls(workspace, path, layout, name), rows, layout, tuple(files))


def require(workspace: Workspace, raw: Raw, checks: Sequence[Check]) -> Raw:
    """The rows that pass all ``checks``. DataError about the first that fails any, unless bad rows are skipped."""
    passes = [check.passes.fill_null(False) for check in checks]
    failed = ibis.cases(*((~ok, i) for i, ok in enumerate(passes)), else_=-1)
    bad = raw.table.mutate(failed=failed).filter(lambda t: t.failed >= 0).order_by(ROW)
    if workspace.rejects.skip:
        records = (record for batch in workspace.batches(bad) for record in batch.to_pylist())
        others = 0
    else:
        records = iter(first := bad.limit(1).to_pyarrow().to_pylist())
        others = count_rows(bad) - 1 if first else 0
    for record in records:
        check = checks[record["failed"]]
        value = record[check.column]
        found = "nothing" if value is None else repr(value if len(value) <= 60 else value[:57] + "…")
        path, line = raw.place(record[ROW])
        workspace.rejects.add(
            raw.name,
            path,
            line,
            column_name(raw.layout.columns, raw.layout.columns.index(check.column) + 1),
            f"expected {check.expected}, found {found}",
            record[TEXT] if TEXT in record else raw.layout.delimiter.join(record[c] or "" for c in raw.layout.columns),
            f" ({others:,} more {'rows are' if others > 1 else 'row is'} bad)" if others else "",
        )
    if not workspace.rejects.skip:
        return raw
    rejected = workspace.rejects.counts.get(raw.name, 0)
    workspace.counts[_count(raw.name, "rejected_rows")] = rejected
    if rejected == raw.rows:
        raise DataError(f"{raw.files[0][0]}: all {rejected:,} rows are bad, so none is left; is this the right file?")
    if rejected:
        workspace.say(f"rejected {rejected:,} of {raw.rows:,} rows of {raw.name}, see {workspace.rejects.path.name}")
    return replace(raw, table=workspace.view(raw.table.filter(reduce(and_, passes)), f"good_{raw.name}"))


def is_integer(column: ir.StringValue, allow_negative: bool = True) -> ir.BooleanValue:
    """Whether the text is a whole number that fits int64. Engines' casts are laxer: some read '1.5' as 2."""
    # Not $, which in Spark's regular expressions also stands before a last U+0085, U+2028 or U+2029.
    return column.re_search(r"^-?[0-9]{1,18}\z" if allow_negative else r"^[0-9]{1,18}\z")


def is_finite_number(column: ir.StringValue) -> ir.BooleanValue:
    """Whether the text is a decimal number of at most LARGEST: 'nan' and 'inf' are none."""
    number = column.re_search(r"^[-+]?([0-9]{1,200}\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?\z")
    return number & (column.try_cast("float64").abs() <= LARGEST)


def _count(name: str, what: str) -> str:
    """Counts carry the name of their source, unless it is the only one."""
    return what if name == "raw" else f"{name}_{what}"


def _data_lines(source: Path, layout: Layout) -> Iterator[Block]:
    """The blocks of lines behind the header, which is checked."""
    blocks = read_lines(source, layout.delimiter, len(layout.columns))
    if layout.header:
        first = next(blocks, None)
        if first is None:
            raise DataError(f"{source}: there are no rows in it; is the download complete?")
        if first.bad and first.bad[0].line == 1:
            _check_header(source, layout, first.bad[0].text)
            raise DataError(f"{source}, line 1, in the header: {first.bad[0].reason}")
        end = first.text.find(b"\n") + 1
        _check_header(source, layout, first.text[:end].decode("utf-8"))
        yield Block(first.text[end:], first.lines[1:], first.bad)
    yield from blocks


def _check_header(source: Path, layout: Layout, line: str) -> None:
    names = [name.strip() for name in line.split(layout.delimiter)]
    if names != list(layout.columns):
        wrong = next((i for i, pair in enumerate(zip(names, layout.columns, strict=False)) if pair[0] != pair[1]), None)
        detail = f"{len(names)} names" if wrong is None else f"{names[wrong][:60]!r} as column {wrong + 1}"
        raise DataError(
            f"{source}, line 1: the header must be {layout.delimiter.join(layout.columns)} "
            f"({len(layout.columns)} names) but has {detail}"
        )


def _with_nulls(workspace: Workspace, path: Path, layout: Layout, name: str) -> ir.Table:
    """The staged rows. The texts that mean missing become nulls here, so that a rejected row can be shown unchanged."""
    table = workspace.connection.read_parquet(path)
    words = [word for word in layout.missing if word]
    if not words:
        return table
    nulls = {column: reduce(lambda value, word: value.nullif(word), words, table[column]) for column in layout.columns}
    text = ibis.literal(layout.delimiter).join([table[column].fill_null("") for column in layout.columns])
    return workspace.view(table.mutate(**nulls, **{TEXT: text}), f"staged_{name}")


def _part(block: Block, layout: Layout) -> list[pa.Array]:
    """The columns of the block's lines, null where there is no text."""
    table = pa.csv.read_csv(
        pa.BufferReader(block.text),
        pa.csv.ReadOptions(column_names=layout.columns, block_size=len(block.text) + 1),
        pa.csv.ParseOptions(
            delimiter=layout.delimiter, quote_char=False, newlines_in_values=False, ignore_empty_lines=False
        ),
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(layout.columns, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )
    return table.combine_chunks().to_batches()[0].columns
