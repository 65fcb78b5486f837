"""Table files of any origin as numbered record batches: Parquet, and text with a header and quotes.

Rows are counted from 1 and without the header, bad ones too; a row of text may have several lines, so it is not its
line that is told.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from data.preparation import DataError

UNCLOSED = (
    "a quotation mark that opens a value is not closed, so all that follows is taken for that value; inside a value in "
    'quotes, a quotation mark is written twice, as in "a ""word"" of it"'
)
BATCH_ROWS = 32_768
BLOCK_BYTES = 8 * 1024**2
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
ENDINGS = (".parquet", *(text + packed for text in DELIMITERS for packed in ("", ".gz", ".zst")))


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be parted into columns."""

    row: int
    reason: str
    text: str


@dataclass(frozen=True)
class TableFile:
    """One file: ``columns`` as they are called, with their types; all text is binary until it is known to be UTF-8."""

    path: Path
    columns: pa.Schema
    delimiter: str | None

    @property
    def is_text(self) -> bool:
        return self.delimiter is not None

    def batches(self, names: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch, list[BadRow]]]:
        """(rows' numbers, columns ``names``, bad rows met meanwhile). DataError: the file is damaged."""
        try:
            yield from self._text(names) if self.is_text else self._parquet(names)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(_damaged(self.path, error)) from error

    def _parquet(self, names: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch, list[BadRow]]]:
        done = 0
        with pa.parquet.ParquetFile(self.path, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(names)):
                yield np.arange(done + 1, done + batch.num_rows + 1), batch, []
                done += batch.num_rows

    def _text(self, names: Sequence[str]) -> Iterator[tuple[np.ndarray, pa.RecordBatch, list[BadRow]]]:
        bad: list[BadRow] = []
        skipped: list[int] = []

        def note(row: pa.csv.InvalidRow) -> str:
            # The parser counts the header as a row.
            number, found = row.number - 1, row.actual_columns
            reason = f"expected {row.expected_columns} columns parted by {self.delimiter!r}, found {found}"
            bad.append(
                BadRow(number, reason if row.text else reason.replace(f"found {found}", "found nothing"), row.text)
            )
            skipped.append(number)
            return "skip"

        done, final = 0, None
        # The parser takes a quotation mark that is never closed for closed at the end of the file. Then the last value
        # of the last row holds all the lines that were swallowed; so it is read as well, and looked at.
        last = self.columns.names[-1]
        with pa.input_stream(str(self.path), compression="detect") as stream:
            tail = _Tail(stream)
            for batch in _open_text(tail, self.delimiter or ",", list(dict.fromkeys([*names, last])), note):
                final = batch.column(last)[-1].as_py() if batch.num_rows else final
                batch = batch.select(list(names))
                numbers, at = np.empty(batch.num_rows, np.int64), 0
                while at < batch.num_rows:  # the good rows lie between those that were skipped
                    if skipped and skipped[0] == done + 1:
                        skipped.pop(0)
                        done += 1
                        continue
                    run = min(batch.num_rows - at, skipped[0] - done - 1 if skipped else batch.num_rows)
                    numbers[at : at + run] = np.arange(done + 1, done + run + 1)
                    at, done = at + run, done + run
                found, bad[:] = list(bad), []
                yield numbers, batch, found
            if final and b"\n" in final and not tail.end.rstrip().endswith(b'"'):
                raise DataError(f"{self.path}, row {done}, column {last}: {UNCLOSED}")
        if bad:
            empty = pa.RecordBatch.from_pydict({name: pa.array([], pa.binary()) for name in names})
            yield np.zeros(0, np.int64), empty, bad


def find_tables(place: Path, option: str) -> list[Path]:
    """The file at ``place``, or the table files of that folder and those in it. DataError: there are none, or a mix."""
    if place.is_file():
        if not place.name.lower().endswith(ENDINGS):
            raise DataError(f"{place}: tables are {', '.join(ENDINGS)}; give {option} one of these")
        return [place]
    if not place.exists():
        raise DataError(f"{place} does not exist; give {option} a file of a table, or the folder of its files")
    found = [path for path in place.rglob("*") if path.is_file() and path.name.lower().endswith(ENDINGS)]
    # Names that begin like this are not data where Spark, Hive and others write.
    found = [p for p in found if not any(part.startswith(("_", ".")) for part in p.relative_to(place).parts)]
    kinds = {path.name.lower().endswith(".parquet") for path in found}
    if not found or len(kinds) > 1:
        what = "Parquet and text files side by side" if found else f"no file that ends in {', '.join(ENDINGS)}"
        raise DataError(f"{place} holds {what}; give {option} the right file or folder")
    return sorted(found, key=lambda path: _natural(str(path)))


def match_tables(folder: Path, names: Sequence[str], key: str) -> list[Path]:
    """The files that ``names`` (files, folders or patterns in ``folder``) stand for; ``key`` says who asks."""
    found: list[Path] = []
    for name in names:
        places = [folder / name]
        if re.search(r"[*?\[]", name):
            places = sorted(folder.glob(name), key=lambda path: _natural(str(path)))
        if not places or not places[0].exists():
            inside = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
            raise DataError(f"{key}: {folder} has no {name!r} (there are: {inside})")
        found += [path for place in places for path in find_tables(place, key)]
    return found


def open_table(path: Path, delimiter: str | None) -> TableFile:
    """Read the names and types of the columns. DataError: the file is damaged, or has none."""
    try:
        if path.name.lower().endswith(".parquet"):
            schema, delimiter = pa.parquet.read_schema(path), None
        else:
            delimiter = delimiter or DELIMITERS[Path(re.sub(r"\.(gz|zst)$", "", path.name.lower())).suffix]
            with pa.input_stream(str(path), compression="detect") as stream:
                names = _header(stream, delimiter)
            schema = pa.schema([(name, pa.binary()) for name in names])
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(_damaged(path, error)) from error
    if not schema.names:
        raise DataError(f"{path}: there is nothing in it; is the download complete?")
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: two columns are called {twice[0]!r}; rename one of them")
    return TableFile(path, schema, delimiter)


def _header(stream: Any, delimiter: str) -> list[str]:
    """The first row, as the parser of the rest will take it: quotes may hide a delimiter or a line end."""
    start = stream.read(BLOCK_BYTES).decode("utf-8-sig", "replace")
    return next(csv.reader(io.StringIO(start, newline=""), delimiter=delimiter), [])


class _Tail(io.RawIOBase):
    """A stream that remembers its last bytes."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.end = stream, b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.end = (self.end + data[-64:])[-64:]
        return data


def _open_text(stream: Any, delimiter: str, names: Sequence[str], note: Any) -> Iterator[pa.RecordBatch]:
    """The batches; a file of a header alone has none."""
    return pa.csv.open_csv(
        stream,
        pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        pa.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=note
        ),
        pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()),
            include_columns=list(names),
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _natural(text: str) -> list[Any]:
    """A key that sorts the numbers in names as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _damaged(path: Path, error: Exception) -> str:
    if "straddling" in str(error):
        return f"{path}: a row is longer than {BLOCK_BYTES >> 20} MiB: {UNCLOSED}"
    return f"{path}: the file is truncated or damaged ({error}); fetch or write it again"
