"""A table of words and figures: what the Markdown, the terminal and the report each draw in their own way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kunlun.experiments.numbers import NONE


@dataclass(frozen=True)
class Column:
    """``meaning`` is the column's line in the legend; long text is broken where ``wraps``."""

    title: str
    meaning: str = ""
    number: bool = True
    wraps: bool = False


@dataclass(frozen=True)
class Row:
    """``group``: rows beside one another with the same group stand under one heading; "" has none."""

    cells: tuple[str, ...]
    group: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Grid:
    """One table; ``note`` says in words what must be known to read it. The first column names the row."""

    key: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def groups(self) -> Iterator[tuple[str, list[Row]]]:
        for name, rows in itertools.groupby(self.rows, key=lambda row: row.group):
            yield name, list(rows)

    def legend(self) -> list[tuple[str, str]]:
        return [(column.title, column.meaning) for column in self.columns if column.meaning]


def trimmed(grids: Sequence[Grid]) -> list[Grid]:
    """The tables without the columns in which no row has a value, and without those of which only names are left."""
    kept = []
    for grid in grids:
        filled = [i for i in range(len(grid.columns)) if i == 0 or any(r.cells[i] not in ("", NONE) for r in grid.rows)]
        if len(filled) > 1:
            rows = tuple(replace(row, cells=tuple(row.cells[i] for i in filled)) for row in grid.rows)
            kept.append(replace(grid, columns=tuple(grid.columns[i] for i in filled), rows=rows))
    return kept
