"""What happens to a bad row: by default it is an error; with ``--on_bad_row skip`` it goes to ``rejected.csv``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

from data.preparation import DataError

FILE = "rejected.csv"
COLUMNS = ("file", "line", "column", "reason", "text")
REMEDY = "correct or remove it, download the file again, or leave such rows out with --on_bad_row skip"


class Rejects:
    """Collects the rows that were refused. The file is made with the first of them.

    ``counts``: by the name of the source they came from.
    """

    def __init__(self, directory: Path, skip: bool) -> None:
        self.path, self.skip = directory / FILE, skip
        self.counts: dict[str, int] = {}
        self._file: IO[str] | None = None
        self._writer: Any = None

    def add(
        self,
        source: str,
        file: Path,
        line: int,
        column: str | None,
        reason: str,
        text: str,
        more: str = "",
        counted: Literal["line", "row"] = "line",
    ) -> None:
        """Keep one bad row, or DataError where bad rows are errors; ``column`` as the user should read it.

        ``counted``: what ``line`` is the number of; some files have no lines.
        """
        if not self.skip:
            place = f"{file}, {counted} {line}" + (f", column {column}" if column else "")
            raise DataError(f"{place}: {reason}{more}; {REMEDY}")
        if self._file is None:
            self._file = self.path.open("w", newline="", encoding="utf-8")
            self._writer = csv.writer(self._file)
            self._writer.writerow(COLUMNS)
        self._writer.writerow((file.name, line, column or "", reason, text))
        self.counts[source] = self.counts.get(source, 0) + 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def column_name(columns: Sequence[str], number: int | None) -> str | None:
    """``3 (price)`` for column number 3, counted from 1; a number past the last has no name."""
    if number is None:
        return None
    return f"{number} ({columns[number - 1]})" if number <= len(columns) else str(number)
