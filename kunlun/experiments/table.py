"""The results as ``table.md`` and as text for a terminal: the same tables and numbers as in the report."""

from __future__ import annotations

import itertools
import textwrap
import unicodedata
from collections.abc import Sequence

from kunlun.experiments.findings import Group, findings
from kunlun.experiments.grid import Column, Grid, Row
from kunlun.experiments.matrix_tables import matrix_tables
from kunlun.experiments.results import MatrixResult, ScalingResult
from kunlun.experiments.scaling_tables import scaling_tables

WIDTH = 120
LEAST = 16  # columns that text is left at least


def tables(result: MatrixResult | ScalingResult) -> list[Grid]:
    return matrix_tables(result) if isinstance(result, MatrixResult) else scaling_tables(result)


def markdown(result: MatrixResult | ScalingResult) -> str:
    """``table.md``: what holds, in words, then the tables, each with its legend."""
    found = findings(result)
    parts = [f"# {_escaped(found.title)}", _escaped(found.question), f"**{_escaped(found.answer)}**"]
    parts += [_markdown_group(group) for group in found.groups]
    parts += [_escaped(found.caution)] if found.caution else []
    parts += [_markdown_table(grid) for grid in tables(result)]
    parts += ["## Notes\n\n" + "\n".join(f"- {_escaped(note)}" for note in result.notes)] if result.notes else []
    return "\n\n".join(parts) + "\n"


def terminal(result: MatrixResult | ScalingResult) -> str:
    """The same in at most 120 columns, without the legends and the sentences of single variants."""
    found = findings(result)
    parts = ["\n".join(line for said in (found.title, found.question, found.answer) for line in _filled(said))]
    parts += ["\n".join(_filled(found.caution))] if found.caution else []
    for grid in tables(result):
        parts.append("\n".join([grid.title, "─" * _width(grid.title), *_text_table(grid)]))
    if result.notes:
        parts.append("\n".join(line for note in result.notes for line in _filled(note, "- ")))
    return "\n\n".join(parts) + "\n"


def _markdown_group(group: Group) -> str:
    return "\n".join([f"**{_escaped(group.title)}**", "", *(f"- {_escaped(str(item))}" for item in group.items)])


def _escaped(text: str) -> str:
    """Text as GitHub shows it and does not obey it, in one line."""
    for character in "\\`*_<>[]|~#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _markdown_table(grid: Grid) -> str:
    lines = [f"## {grid.title}", ""]
    lines += [_escaped(grid.note), ""] if grid.note else []
    lines.append(f"| {' | '.join(_escaped(column.title) for column in grid.columns)} |")
    lines.append(f"|{'|'.join('---:' if column.number else '---' for column in grid.columns)}|")
    headed = len({row.group for row in grid.rows}) > 1
    for group, rows in grid.groups():
        if headed and group:
            lines.append(f"| **{_escaped(group)}** |{' |' * (len(grid.columns) - 1)}")
        lines += [f"| {' | '.join(_markdown_cells(row))} |" for row in rows]
    legend = [f"- **{_escaped(title)}**: {_escaped(meaning)}." for title, meaning in grid.legend()]
    return "\n".join([*lines, *([""] if legend else []), *legend])


def _markdown_cells(row: Row) -> list[str]:
    cells = [_escaped(cell) for cell in row.cells]
    return [f"**{cell}**" if row.strong and cell else cell for cell in cells]


def _text_table(grid: Grid) -> list[str]:
    """Lines of an aligned table that fits: text is cut or broken, figures never are."""
    shown = [[_printable(cell) for cell in row.cells] for row in grid.rows]
    titles = [textwrap.wrap(column.title, 12) or [""] for column in grid.columns]
    widths = [
        max(*(_width(part) for part in title), *(_width(row[i]) for row in shown)) for i, title in enumerate(titles)
    ]
    widths = _fit(grid.columns, widths)
    # Short titles stand on the line above their column.
    depth = max(map(len, titles))
    heads = [[""] * (depth - len(title)) + title for title in titles]
    lines = [_line(list(part), grid.columns, widths) for part in zip(*heads, strict=True)]
    headed = len({row.group for row in grid.rows}) > 1
    at = 0
    for group, rows in grid.groups():
        if headed and group:
            lines += _filled(f"· {group}")
        for _ in rows:
            parts = [_parts(cell, c, w) for cell, c, w in zip(shown[at], grid.columns, widths, strict=True)]
            lines += [_line(list(p), grid.columns, widths) for p in itertools.zip_longest(*parts, fillvalue="")]
            at += 1
    return lines


def _fit(columns: Sequence[Column], widths: list[int]) -> list[int]:
    """Widths that make a line of WIDTH at the expense of text: first what wraps, then the widest."""
    over = sum(widths) + 2 * (len(widths) - 1) - WIDTH
    texts = sorted((i for i, c in enumerate(columns) if not c.number), key=lambda i: (not columns[i].wraps, -widths[i]))
    for i in texts:
        cut = max(0, min(over, widths[i] - LEAST))
        widths[i] -= cut
        over -= cut
    return widths


def _parts(cell: str, column: Column, room: int) -> list[str]:
    return (textwrap.wrap(cell, room) or [""]) if column.wraps else [_cut(cell, room)]


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    aligned = []
    for cell, column, room in zip(cells, columns, widths, strict=True):
        blanks = " " * (room - _width(cell))
        aligned.append(blanks + cell if column.number else cell + blanks)
    return "  ".join(aligned).rstrip()


def _filled(text: str, bullet: str = "") -> list[str]:
    indent = " " * len(bullet)
    return textwrap.wrap(_printable(text), WIDTH, initial_indent=bullet, subsequent_indent=indent)


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _printable(text: str) -> str:
    """Nothing in a name or an error message may steer the terminal or break the line."""
    return "".join(c if c.isprintable() else " " for c in text)


def _cut(text: str, room: int) -> str:
    if _width(text) <= room:
        return text
    while text and _width(text) > room - 1:
        text = text[:-1]
    return f"{text}…"
