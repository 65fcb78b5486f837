"""An inspection as text: aligned tables that fit 100 columns, on a terminal and in a pipe alike."""

from __future__ import annotations

import itertools
import textwrap
import unicodedata
from collections.abc import Sequence

from data.inspection.results import Inspection
from data.inspection.tables import Column, Section, rows_read, sections

WIDTH = 100
LEAST = 8  # text is never cut to fewer columns than this
MOST_ROWS = 100


def text(found: Inspection, own: Sequence[Section] = ()) -> str:
    """The whole inspection, ``own`` sections after the overview; every line ends with a newline."""
    blocks = [_section(section) for section in sections(found, own)]
    blocks.append("\n".join(textwrap.wrap(rows_read(found), WIDTH)))
    return "\n\n".join(blocks) + "\n"


def _section(section: Section) -> str:
    lines = [section.title, "─" * width(section.title)]
    if section.note:
        lines += textwrap.wrap(section.note, WIDTH)
    return "\n".join([*lines, *table(section)])


def table(section: Section) -> list[str]:
    """Lines of an aligned table; a long one loses its middle, and says so."""
    columns, rows, repeats = section.columns, section.rows, section.repeats
    shown = [[printable(cell) for cell in row] for row in rows]
    left_out = len(rows) - MOST_ROWS
    if left_out > 0:
        shown = shown[: MOST_ROWS // 2] + shown[-MOST_ROWS // 2 :]
    titles = [printable(column.title) for column in columns]
    widths = _fit(columns, [max(map(width, cells)) for cells in zip(titles, *shown, strict=True)])

    lines = [_groups(section, widths)] if any(column.group for column in columns) else []
    lines += _lines(titles, columns, widths) if any(titles) else []
    last: list[str] = []
    for number, row in enumerate(shown):
        if left_out > 0 and number == MOST_ROWS // 2:
            lines.append(f"… {left_out:,} more rows; the page that --html writes has them all …")
            last = []
        new = next((i for i in range(repeats) if row[: i + 1] != last[: i + 1]), repeats)
        lines += _lines(["" if i < new else cell for i, cell in enumerate(row)], columns, widths)
        last = row
    return lines


def width(text: str) -> int:
    """Columns that ``text`` takes on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def printable(text: str) -> str:
    """Names come from users' data: nothing in them may steer the terminal or break the line."""
    return "".join(c if c.isprintable() else "·" for c in text)


def _gap(columns: Sequence[Column], i: int) -> int:
    """Blanks before column ``i``: fewer inside a group."""
    return 0 if i == 0 else 1 if columns[i].group and columns[i].group == columns[i - 1].group else 2


def _fit(columns: Sequence[Column], widths: list[int]) -> list[int]:
    """Widths that make a line of WIDTH, at the expense of text: first what wraps, then the widest."""
    widths = list(widths)
    over = sum(widths) + sum(_gap(columns, i) for i in range(len(columns))) - WIDTH
    texts = [i for i, column in enumerate(columns) if not column.number]
    texts.sort(key=lambda i: (not columns[i].wraps, -widths[i]))
    for i in texts:
        cut = min(max(over, 0), max(widths[i] - (3 * LEAST if columns[i].wraps else LEAST), 0))
        widths[i] -= cut
        over -= cut
    return widths


def _groups(section: Section, widths: Sequence[int]) -> str:
    """The line of group names, each across its columns."""
    line = ""
    for group, span in section.groups():
        gap = _gap(section.columns, span[0])
        room = sum(widths[i] for i in span) + sum(_gap(section.columns, i) for i in span[1:])
        name = _cut(printable(group), room - 2)
        line += " " * gap + (f" {name} ".center(room + len(name) - width(name), "─") if group else " " * room)
    return line.rstrip()


def _lines(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> list[str]:
    """One row of cells: a line, or more where a cell is broken."""
    parts = []
    for cell, column, room in zip(cells, columns, widths, strict=True):
        parts.append(textwrap.wrap(cell, room) or [""] if column.wraps else [_cut(cell, room)])
    lines = []
    for broken in itertools.zip_longest(*parts, fillvalue=""):
        line = ""
        for i, (cell, column) in enumerate(zip(broken, columns, strict=True)):
            blanks = " " * (widths[i] - width(cell))
            line += " " * _gap(columns, i) + (blanks + cell if column.number else cell + blanks)
        lines.append(line.rstrip())
    return lines


def _cut(text: str, room: int) -> str:
    if width(text) <= room:
        return text
    while text and width(text) > room - 1:
        text = text[:-1]
    return f"{text}…"
